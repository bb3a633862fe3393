package line

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/routing"
	"ringway/routing/echo"
	"ringway/test/netnstest"
	"ringway/test/polltest"
	"ringway/tunnel"
)

// Two lines with a target behind each. One delivers nothing any more, with its carrier: it is silent after 3 s, and the
// connections of its address are to be forgotten once the routes have been asked for.
//
//	box wan0 198.51.100.2 --- .1 far, which has the target 203.0.113.9 on both lines
//	    lte0 192.0.2.2    --- .1
func TestTargetsAreAskedByTheirLine(t *testing.T) {
	t.Parallel()
	box, far := netnstest.New(t), netnstest.New(t)
	netnstest.Veth(t, box, "wan0", far, "eth0")
	netnstest.Veth(t, box, "lte0", far, "eth1")
	for n, lines := range map[*netnstest.NS][]string{
		box: {"addr add 198.51.100.2/24 dev wan0", "addr add 192.0.2.2/24 dev lte0",
			"route add default via 198.51.100.1 metric 10", "route add default via 192.0.2.1 metric 20"},
		far: {"addr add 198.51.100.1/24 dev eth0", "addr add 192.0.2.1/24 dev eth1", "addr add 203.0.113.9/32 dev lo"},
	} {
		n.IP(lines...)
	}
	target := netip.MustParseAddr("203.0.113.9")
	wan := func(name, gateway string) config.WAN {
		return config.WAN{Targets: []netip.Addr{target}, Upstream: routing.Upstream{
			Interface: name, Gateways: []netip.Addr{netip.MustParseAddr(gateway)},
		}}
	}
	cfg := &config.Config{WANs: []config.WAN{wan("wan0", "198.51.100.1"), wan("lte0", "192.0.2.1")}}

	var mu sync.Mutex
	var flushed []netip.Prefix
	l := New(Options{
		Log: slog.New(slog.DiscardHandler), Changed: func() {},
		Reroute: func(context.Context, tunnel.Class, tunnel.Reroute) error { return nil },
		Flush: func(networks []netip.Prefix) (int, error) {
			mu.Lock()
			defer mu.Unlock()
			flushed = append(flushed, networks...)
			return len(networks), nil
		},
	})
	l.asker.open = func(device string, ipv6 bool) (c *echo.Conn, err error) {
		err = box.Do(func() (err error) { c, err = echo.Open(device, ipv6); return })
		return c, err
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	ready := make(chan struct{})
	go func() {
		done <- box.Do(func() error {
			l.Follow(cfg)
			return l.Run(ctx, func() { close(ready) })
		})
	}()
	t.Cleanup(func() { cancel(); assert.NoError(t, <-done) })
	<-ready
	answers := func(name string) func() bool {
		return func() bool { return !l.asker.last(name, []netip.Addr{target}).IsZero() }
	}
	polltest.Require(t, answers("wan0"), 5*time.Second, 10*time.Millisecond, "no answer by wan0")
	polltest.Require(t, answers("lte0"), 5*time.Second, 10*time.Millisecond, "no answer by lte0")
	assert.Empty(t, l.Silent())

	far.Run("nft", "add", "table", "inet", "hole")
	far.Run("nft", "add", "chain", "inet", "hole", "in", "{ type filter hook input priority 0; }")
	far.Run("nft", "add", "rule", "inet", "hole", "in", "iifname", "eth0", "ip", "daddr", target.String(), "drop")
	began := time.Now()
	polltest.Require(t, func() bool { return len(l.Silent()) == 1 }, 8*time.Second, 10*time.Millisecond, "not noticed")
	took := time.Since(began)
	assert.Greater(t, took, 1500*time.Millisecond)
	t.Logf("noticed after %s", took)
	assert.Equal(t, []string{"wan0"}, l.Silent())
	problems := l.Problems()
	require.Len(t, problems, 1)
	assert.Contains(t, problems[0].Text, "none of its targets answers; its gateway does")
	mu.Lock()
	assert.Empty(t, flushed, "the routes do not lead elsewhere yet")
	mu.Unlock()
	require.NoError(t, box.Do(func() error { l.Follow(cfg); return nil })) // a round of reconciliation has ended
	polltest.Require(t, func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(flushed) == 1 && flushed[0] == netip.MustParsePrefix("198.51.100.2/32")
	}, 5*time.Second, 10*time.Millisecond, "the connections of the line are not forgotten")
}

// An interface that is made again, as a modem's or a session's is, is asked on again, in both families.
func TestAnInterfaceThatIsMadeAnewIsAsked(t *testing.T) {
	t.Parallel()
	box, far := netnstest.New(t), netnstest.New(t)
	cable := func() {
		netnstest.Veth(t, box, "wan0", far, "eth0")
		box.Run("ip", "addr", "add", "198.51.100.2/24", "dev", "wan0")
		box.Run("ip", "-6", "addr", "add", "2001:db8::2/64", "dev", "wan0", "nodad")
		far.Run("ip", "addr", "add", "198.51.100.1/24", "dev", "eth0")
		far.Run("ip", "-6", "addr", "add", "2001:db8::1/64", "dev", "eth0", "nodad")
	}
	cable()
	a := newAsker()
	a.open = func(device string, ipv6 bool) (c *echo.Conn, err error) {
		err = box.Do(func() (err error) { c, err = echo.Open(device, ipv6); return })
		return c, err
	}
	targets := addresses("198.51.100.1", "2001:db8::1")
	a.follow(map[string]asked{"wan0": {targets: targets, every: 200 * time.Millisecond}})
	var readers sync.WaitGroup
	t.Cleanup(func() {
		for _, s := range a.socks {
			assert.NoError(t, s.conn.Close())
		}
		readers.Wait()
	})
	heardSince := func(began time.Time) {
		t.Helper()
		for _, host := range targets {
			polltest.Require(t, func() bool {
				a.ask(time.Now(), &readers)
				return a.last("wan0", []netip.Addr{host}).After(began)
			}, 10*time.Second, 10*time.Millisecond, "%s is not heard", host)
		}
	}
	heardSince(time.Time{})
	box.Run("ip", "link", "del", "wan0")
	cable()
	heardSince(time.Now())
}
