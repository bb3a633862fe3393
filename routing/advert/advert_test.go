package advert_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/ndp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"ringway/routing/advert"
	"ringway/test/netnstest"
)

// box wan0 --- up0 provider (radvd), and a stranger on the same link
func TestAdvertisements(t *testing.T) {
	box, provider := netnstest.New(t), netnstest.New(t)
	netnstest.Veth(t, provider, "up0", box, "wan0")
	// What the appliance sets; a provider forwards.
	box.Run("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/wan0/accept_ra")
	provider.Run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")
	provider.Run("ip", "-6", "addr", "add", "2001:db8:a::1/64", "dev", "up0", "nodad")
	radvd(t, provider, `interface up0 { AdvSendAdvert on; MinRtrAdvInterval 3; MaxRtrAdvInterval 4;
		prefix 2001:db8:a::/64 { }; route 2001:db8:9::/48 { }; };`)

	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())

	own := netip.MustParsePrefix("2001:db8:1:10::/64")
	results, notes := make(chan advert.Result, 100), make(chan string, 100)
	file := filepath.Join(t.TempDir(), "advertised.json")
	start := func() (stop func()) {
		c := &advert.Client{
			Interface: "wan0", File: file, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
			Report: func(r advert.Result) { results <- r },
			Note:   func(s string) { notes <- s },
			Refuse: func(p netip.Prefix) error {
				if own.Overlaps(p) {
					return errors.New("it is ours")
				}
				return nil
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- box.Do(func() error { return c.Run(ctx) }) }()
		return func() { cancel(); assert.NoError(t, <-done) }
	}

	stop := start()
	r := next(t, results)
	for len(r.Addresses) == 0 || !r.Gateway.IsValid() {
		r = next(t, results)
	}
	require.Len(t, r.Addresses, 1)
	assert.Equal(t, "2001:db8:a::/64", r.Addresses[0].Masked().String())
	assert.True(t, r.Gateway.IsLinkLocalUnicast())

	// A stranger's advertisement with our own network is refused, and nothing of the kernel's has changed by itself.
	send(t, provider, "up0", &ndp.RouterAdvertisement{Options: []ndp.Option{&ndp.PrefixInformation{
		Prefix: own.Addr(), PrefixLength: 64, OnLink: true, AutonomousAddressConfiguration: true,
		ValidLifetime: time.Hour, PreferredLifetime: time.Hour,
	}}})
	assert.Contains(t, next(t, notes), "it is ours")
	routes := box.Run("ip", "-6", "route", "show", "table", "all")
	for _, p := range []string{"2001:db8:1:10:", "2001:db8:9:", "default"} {
		assert.NotContains(t, routes, p)
	}
	stop()

	// A daemon that starts again goes on with what is known, before any router has said anything.
	held := advert.Last(file, "wan0", func(netip.Prefix) error { return nil })
	assert.Equal(t, r.Addresses, held.Addresses)
	assert.Empty(t, advert.Last(file, "wan1", func(netip.Prefix) error { return nil }))
	stop = start()
	assert.Equal(t, r.Addresses, next(t, results).Addresses)
	stop()
}

func next[T any](t *testing.T, from chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(20 * time.Second):
		t.Fatal("nothing was reported")
		panic("unreachable")
	}
}

// radvd runs the usual daemon of routers.
func radvd(t *testing.T, ns *netnstest.NS, config string) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "radvd.conf")
	require.NoError(t, os.WriteFile(file, []byte(config), 0o644))
	cmd := ns.Command("radvd", "--nodaemon", "--logmethod=stderr", "--config="+file, "--pidfile="+file+".pid")
	var said strings.Builder
	cmd.Stderr = &said
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("radvd said:\n%s", said.String())
		}
	})
}

func send(t *testing.T, ns *netnstest.NS, device string, ra *ndp.RouterAdvertisement) {
	t.Helper()
	require.NoError(t, ns.Do(func() error {
		ifc, err := net.InterfaceByName(device)
		if err != nil {
			return err
		}
		c, _, err := ndp.Listen(ifc, ndp.LinkLocal)
		if err != nil {
			return err
		}
		defer c.Close()
		return c.WriteTo(ra, nil, netip.IPv6LinkLocalAllNodes())
	}))
}
