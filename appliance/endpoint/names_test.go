package endpoint

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/dns/dnsmessage"

	"ringway/tunnel"
)

var (
	v4 = netip.MustParseAddr("203.0.113.2")
	v6 = netip.MustParseAddr("2001:db8::2")
)

func answer(addrs ...netip.Addr) lookup {
	return func(context.Context, string, string) ([]netip.Addr, error) { return addrs, nil }
}

func noAnswer(context.Context, string, string) ([]netip.Addr, error) {
	return nil, errors.New("no such host")
}

func TestNamesResolveToAFamilyThatTheWANHas(t *testing.T) {
	for _, c := range []struct {
		name     string
		look     lookup
		families Families
		want     netip.Addr
		wantErr  string
	}{
		{"both: IPv4 is shorter", answer(v6, v4), Families{IPv4: true, IPv6: true}, v4, ""},
		{"a WAN with IPv6 only", answer(v4, v6), Families{IPv6: true}, v6, ""},
		{"an IPv4-mapped address", answer(netip.MustParseAddr("::ffff:203.0.113.2")), Families{IPv4: true}, v4, ""},
		{"no usable address", answer(v6), Families{IPv4: true}, netip.Addr{}, "no address of a family that the WAN has"},
		{"a lease, and IPv6 that may be there", answer(v6), Families{IPv4: true, MaybeIPv6: true}, v6, ""},
		{"a lease, and a name with both", answer(v6, v4), Families{IPv4: true, MaybeIPv6: true}, v4, ""},
		{"no answer", noAnswer, Families{IPv4: true, IPv6: true}, netip.Addr{}, "no such host"},
	} {
		got, err := c.families.resolve(t.Context(), c.look, "munich.example.net", netip.Addr{}, false)
		if c.wantErr != "" {
			assert.ErrorContains(t, err, c.wantErr, c.name)
			continue
		}
		require.NoError(t, err, c.name)
		assert.Equal(t, c.want, got, c.name)
	}

	got, err := Families{}.resolve(t.Context(), noAnswer, "2001:db8::2", netip.Addr{}, false)
	require.NoError(t, err, "an address is itself, whatever the WAN")
	assert.Equal(t, v6, got)
}

// Round-robin DNS returns the addresses of a hub with two lines in another order each time.
func TestTheAddressInUseStaysAmongSeveral(t *testing.T) {
	one, two := netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("203.0.113.19")
	f := Families{IPv4: true, IPv6: true}
	for _, addrs := range [][]netip.Addr{{one, two}, {two, one}} {
		for _, inUse := range addrs {
			got, err := f.resolve(t.Context(), answer(addrs...), "hub.example.net", inUse, false)
			require.NoError(t, err)
			assert.Equal(t, inUse, got)
		}

		got, err := f.resolve(t.Context(), answer(addrs...), "hub.example.net", one, true)
		require.NoError(t, err)
		assert.Equal(t, two, got, "the peer is silent there: try the other")
		got, err = f.resolve(t.Context(), answer(addrs...), "hub.example.net", two, true)
		require.NoError(t, err)
		assert.Equal(t, one, got)
	}
}

// On a WAN with a lease IPv6 is a guess: a peer that is silent at its IPv4 address is not looked for there.
func TestASilentPeerIsNotLookedForWhereIPv6MayBe(t *testing.T) {
	f := Families{IPv4: true, MaybeIPv6: true}
	got, err := f.resolve(t.Context(), answer(v4, v6), "hub.example.net", v4, true)
	require.NoError(t, err)
	assert.Equal(t, v4, got)
}

// dns is a name server and what the daemon knows meanwhile.
type dns struct {
	mu     sync.Mutex
	addrs  []netip.Addr
	alive  bool
	failed map[string]error
	rounds int
}

func (d *dns) names(m *Memory) *Names {
	n := NewNames(m, func(context.Context) Query {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.rounds++
		alive := map[tunnel.PublicKey]bool{munich.PublicKey: d.alive}
		return Query{Sites: []tunnel.Site{munich}, Families: Families{IPv4: true}, Alive: alive}
	}, func(_ bool, failed map[string]error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.failed = failed
	})
	n.lookup = func([]Server) lookup {
		return func(context.Context, string, string) ([]netip.Addr, error) {
			d.mu.Lock()
			defer d.mu.Unlock()
			if len(d.addrs) == 0 {
				return nil, errors.New("no such host")
			}
			return d.addrs, nil
		}
	}
	return n
}

// set changes something while Names runs.
func (d *dns) set(change func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	change()
}

func (d *dns) run(t *testing.T, m *Memory) *Names {
	n := d.names(m)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- n.Run(ctx, func() {}) }()
	t.Cleanup(func() {
		cancel()
		require.NoError(t, <-done)
	})
	synctest.Wait()
	return n
}

func TestNamesAreLookedUpAgainSoonWhileOneFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, m := &dns{alive: true}, empty(t)
		d.run(t, m)
		assert.Contains(t, d.failed, munich.Endpoint)

		d.set(func() { d.addrs = []netip.Addr{v4} })
		time.Sleep(retryInterval + time.Nanosecond)
		synctest.Wait()
		assert.Empty(t, d.failed)
		assert.Equal(t, netip.AddrPortFrom(v4, 51820), where(m))

		d.set(func() { d.addrs = nil })
		time.Sleep(lookupInterval)
		synctest.Wait()
		assert.Contains(t, d.failed, munich.Endpoint)
		assert.Equal(t, netip.AddrPortFrom(v4, 51820), where(m), "a name that does not resolve now keeps its address")
	})
}

func TestNamesAreLookedUpAtOnceOnDemand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, m := &dns{addrs: []netip.Addr{v4}}, empty(t)
		n := d.run(t, m)
		n.Again()
		synctest.Wait()
		assert.Equal(t, 2, d.rounds)
	})
}

func TestASilentHubIsLookedForAtItsOtherAddress(t *testing.T) {
	other := netip.MustParseAddr("203.0.113.19")
	synctest.Test(t, func(t *testing.T) {
		d, m := &dns{addrs: []netip.Addr{v4, other}, alive: true}, empty(t)
		d.run(t, m)
		time.Sleep(time.Hour)
		synctest.Wait()
		assert.Equal(t, v4, m.names[munich.Endpoint].addr, "it answers there")

		d.set(func() { d.alive = false })
		time.Sleep(lookupInterval)
		synctest.Wait()
		assert.Equal(t, other, m.names[munich.Endpoint].addr)
	})
}

// After a restart the planes may have a session at what the name meant before.
func TestAfterARestartTheAddressInUseStays(t *testing.T) {
	m := empty(t)
	tells(t, m, tunnel.Voice, next)
	m = restart(t, m)
	q := Query{Sites: []tunnel.Site{munich}}
	assert.Equal(t, map[string]use{munich.Endpoint: {addr: next.Addr()}}, m.uses(q))
}

func TestLiteralsNeedNoNameServer(t *testing.T) {
	m := empty(t)
	s := tunnel.Site{Endpoint: "::ffff:203.0.113.2", VoicePort: 51820}
	m.SetLiterals([]tunnel.Site{s, munich})
	at, _ := m.Where(tunnel.Voice, s)
	assert.Equal(t, home, at)
	assert.NotContains(t, m.names, munich.Endpoint)
}

// nameServer answers for a name with both families, as much as is said; "" is no answer.
func nameServer(t *testing.T, a, aaaa string) string {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	go func() {
		b := make([]byte, 512)
		for {
			n, from, err := c.ReadFrom(b)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(b[:n]) != nil || len(m.Questions) != 1 {
				continue
			}
			q := m.Questions[0]
			m.Response, m.Additionals = true, nil
			head := dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}
			says := map[dnsmessage.Type]string{dnsmessage.TypeA: a, dnsmessage.TypeAAAA: aaaa}[q.Type]
			switch {
			case says == "":
				continue
			case says == "none":
			case says == "failure":
				m.RCode = dnsmessage.RCodeServerFailure
			case q.Type == dnsmessage.TypeA:
				m.Answers = append(m.Answers, dnsmessage.Resource{
					Header: head, Body: &dnsmessage.AResource{A: netip.MustParseAddr(says).As4()},
				})
			default:
				m.Answers = append(m.Answers, dnsmessage.Resource{
					Header: head, Body: &dnsmessage.AAAAResource{AAAA: netip.MustParseAddr(says).As16()},
				})
			}
			reply, err := m.Pack()
			if err == nil {
				_, _ = c.WriteTo(reply, from)
			}
		}
	}()
	return c.LocalAddr().String()
}

// Half an answer is none: a tunnel that works would go over to a family that the WAN may not have. And a server that is
// dead does not get the question about one of the families each time.
func TestHalfAnAnswerIsNone(t *testing.T) {
	whole := nameServer(t, "203.0.113.2", "2001:db8::2")
	ask := func(servers ...string) ([]netip.Addr, error) {
		r := resolver(len(servers), func(ctx context.Context, n int, network string) (net.Conn, error) {
			if servers[n] == "unreachable" {
				return nil, errors.New("no neighbour")
			}
			var d net.Dialer
			return d.DialContext(ctx, network, servers[n])
		})
		all, err := r.LookupNetIP(t.Context(), "ip", "munich.example.net.")
		for i := range all {
			all[i] = all[i].Unmap()
		}
		return all, err
	}
	for range 5 {
		all, err := ask(whole)
		require.NoError(t, err)
		assert.ElementsMatch(t, []netip.Addr{v4, v6}, all)
		all, err = ask("unreachable", whole)
		require.NoError(t, err)
		assert.ElementsMatch(t, []netip.Addr{v4, v6}, all)
	}
	_, err := ask(nameServer(t, "failure", "2001:db8::2"))
	require.Error(t, err)
	_, err = ask("unreachable", "unreachable")
	require.Error(t, err)
	all, err := ask(nameServer(t, "none", "2001:db8::2"))
	require.NoError(t, err, "that there is no address of a family is an answer")
	assert.Equal(t, []netip.Addr{v6}, all)
}
