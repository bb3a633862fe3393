package lease

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"ringway/appliance/config"
	"ringway/routing"
	"ringway/routing/advert"
	"ringway/routing/dhcp"
	"ringway/test/polltest"
)

// No client of these tests gets an answer: their interfaces do not exist.
func wans(names ...string) *config.Config {
	cfg := &config.Config{}
	for _, name := range names {
		cfg.WANs = append(cfg.WANs, config.WAN{Upstream: routing.Upstream{Interface: name, DHCP: true}})
	}
	return cfg
}

func leaseOf(iface string) dhcp.Lease {
	return dhcp.Lease{
		Interface: iface,
		Address:   netip.MustParsePrefix("198.51.100.7/24"),
		Gateways:  []netip.Addr{netip.MustParseAddr("198.51.100.1")},
		DNS:       []netip.Addr{netip.MustParseAddr("198.51.100.53")},
		Server:    netip.MustParseAddr("10.250.0.3"),
		Expiry:    time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC),
	}
}

func (k *Keeper) grant(l dhcp.Lease) { k.take(l.Interface, func(w *wan) { w.lease = l }) }

func TestTheStatusOfLeases(t *testing.T) {
	k := New(t.TempDir(), slog.New(slog.DiscardHandler), func() {})
	k.Follow(wans("rw-none0", "rw-none1"))
	assert.Len(t, k.Problems(), 2)
	k.grant(leaseOf("rw-none0"))
	require.Len(t, k.NameServers(), 1)
	server := k.NameServers()[0]
	assert.Equal(t, netip.MustParseAddr("198.51.100.53"), server.Address)
	assert.Equal(t, "rw-none0", server.By.Interface)
	assert.Equal(t, netip.MustParseAddr("198.51.100.1"), server.By.Gateway)
	require.Len(t, k.Problems(), 1)
	assert.Equal(t, "rw-none1", k.Problems()[0].Subject)
	assert.Equal(t, "DHCP leases: rw-none0 198.51.100.7/24 via 198.51.100.1, rw-none1 no lease", k.Status().String())
	text, err := json.Marshal(k.Status())
	require.NoError(t, err)
	assert.JSONEq(t, `[{"interface": "rw-none0", "address": "198.51.100.7/24", "gateways": ["198.51.100.1"],
		"name_servers": ["198.51.100.53"], "expiry": "2026-11-28T12:00:00Z"}, {"interface": "rw-none1"}]`, string(text))

	k.take("rw-none0", func(w *wan) {
		w.advertised = advert.Result{
			Addresses: []netip.Prefix{netip.MustParsePrefix("2001:db8:a::7/64")}, Gateway: netip.MustParseAddr("fe80::1"),
		}
		w.advertNote = "refused the prefix"
	})
	assert.Equal(t, "DHCP leases: rw-none0 198.51.100.7/24 via 198.51.100.1 and 2001:db8:a::7/64 via fe80::1 "+
		"(refused the prefix), rw-none1 no lease", k.Status().String())
	require.Len(t, k.Problems(), 2)
	assert.Equal(t, map[string]routing.Advertised{"rw-none0": {
		Addresses: []netip.Prefix{netip.MustParsePrefix("2001:db8:a::7/64")}, Gateway: netip.MustParseAddr("fe80::1"),
	}}, k.Held().Advertised)
}

func TestLeasesFollowTheConfigAndOutliveTheirClients(t *testing.T) {
	defer goleak.VerifyNone(t)
	var changes atomic.Int32
	k := New(t.TempDir(), slog.New(slog.DiscardHandler), func() { changes.Add(1) })
	k.Follow(wans("rw-none0", "rw-none1"))

	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error)
	go func() { done <- k.Run(ctx, func() { close(ready) }) }()
	<-ready
	require.Len(t, k.Problems(), 2)
	assert.Empty(t, k.Held().Leases)

	k.grant(leaseOf("rw-none0"))
	want := map[string]routing.Lease{"rw-none0": {
		Address: netip.MustParsePrefix("198.51.100.7/24"), Gateways: []netip.Addr{netip.MustParseAddr("198.51.100.1")},
		Server: netip.MustParseAddr("10.250.0.3"), DNS: []netip.Addr{netip.MustParseAddr("198.51.100.53")},
	}}
	assert.Equal(t, want, k.Held().Leases)

	// A daemon that restarts leaves the address in use.
	cancel()
	require.NoError(t, <-done)
	assert.Equal(t, want, k.Held().Leases)

	k.Follow(wans("rw-none1"))
	assert.Empty(t, k.Held().Leases)
	before := changes.Load()
	assert.Positive(t, before)
	k.grant(leaseOf("rw-none0"))
	assert.Empty(t, k.Held().Leases, "of a WAN that wants none by now")
	assert.Equal(t, before, changes.Load())
}

// A config that makes a lease's network one of ours is refused; whatever happens, the lease is not used with it.
func TestALeaseIsNotUsedWithAConfigThatItOverlaps(t *testing.T) {
	k := New(t.TempDir(), slog.New(slog.DiscardHandler), func() {})
	k.Follow(wans("rw-none0"))
	k.grant(leaseOf("rw-none0"))
	assert.NoError(t, k.Conflict(wans("rw-none0")))

	other := wans("rw-none0")
	other.Voice = []routing.LAN{{
		Interface: "voice0", Addresses: []netip.Prefix{netip.MustParsePrefix("198.51.100.129/25")},
	}}
	assert.EqualError(t, k.Conflict(other), "rw-none0 has the lease 198.51.100.7/24: "+
		"its network 198.51.100.0/24 overlaps 198.51.100.128/25 of voice0")
	assert.Empty(t, k.HeldFor(other).Leases)
	assert.Len(t, k.Held().Leases, 1, "of the config that runs")

	k.Follow(other)
	assert.Empty(t, k.Held().Leases)
	assert.Empty(t, k.NameServers())
	assert.ErrorContains(t, k.refuse(leaseOf("rw-none0")), "overlaps 198.51.100.128/25 of voice0")
}

// Of two WANs in one network neither overlaps anything.
func TestTwoWANsMayBeInOneNetwork(t *testing.T) {
	k := New(t.TempDir(), slog.New(slog.DiscardHandler), func() {})
	k.Follow(wans("rw-none0", "rw-none1"))
	k.grant(leaseOf("rw-none0"))
	other := leaseOf("rw-none1")
	other.Address = netip.MustParsePrefix("198.51.100.8/24")
	k.grant(other)
	assert.Len(t, k.Held().Leases, 2)
	assert.Empty(t, k.Problems())
}

func TestWhatALeaseLacksIsSaid(t *testing.T) {
	k := New(t.TempDir(), slog.New(slog.DiscardHandler), func() {})
	k.Follow(wans("rw-none0"))
	l := leaseOf("rw-none0")
	l.Gateways, l.RouterIgnored = nil, true
	k.grant(l)
	const lacks = "the lease has no gateway: its classless routes (option 121) have no default, and replace the " +
		"router option (RFC 3442)"
	require.Len(t, k.Problems(), 1)
	assert.Equal(t, lacks, k.Problems()[0].Text)
	assert.Equal(t, "DHCP leases: rw-none0 198.51.100.7/24 ("+lacks+")", k.Status().String())

	k.take("rw-none0", func(w *wan) { w.leaseNote = "refused 10.1.10.5 by server 10.1.10.1: it overlaps" })
	k.take("rw-none0", func(w *wan) { w.lease = dhcp.Lease{Interface: "rw-none0", Lost: true} })
	require.Len(t, k.Problems(), 1)
	assert.Equal(t, "no DHCP lease: refused 10.1.10.5 by server 10.1.10.1: it overlaps", k.Problems()[0].Text)
}

func TestALeaseThatIsLostIsAProblem(t *testing.T) {
	k := New(t.TempDir(), slog.New(slog.DiscardHandler), func() {})
	k.Follow(wans("rw-none0"))
	k.grant(leaseOf("rw-none0"))
	assert.Empty(t, k.Problems())

	lost := leaseOf("rw-none0")
	lost.Lost = true
	k.grant(lost)
	assert.Len(t, k.Problems(), 1)
	assert.Empty(t, k.Held().Leases)
	assert.Empty(t, k.NameServers())
}

func TestNothingIsSaidWithoutDHCP(t *testing.T) {
	k := New(t.TempDir(), slog.New(slog.DiscardHandler), func() {})
	k.Follow(&config.Config{})
	assert.Empty(t, k.Status().String())
	text, err := json.Marshal(k.Status())
	require.NoError(t, err)
	assert.Equal(t, "[]", string(text))
}

func TestOptionsReachTheClient(t *testing.T) {
	defer goleak.VerifyNone(t)
	k := New(t.TempDir(), slog.New(slog.DiscardHandler), func() {})
	cfg := wans("rw-none0")
	cfg.WANs[0].DHCPOptions = []config.DHCPOption{{Code: 60, Value: []byte("modem")}}
	k.Follow(cfg)
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error)
	go func() { done <- k.Run(ctx, func() { close(ready) }) }()
	<-ready
	options := func() []dhcp.Option {
		k.mu.Lock()
		defer k.mu.Unlock()
		if c := k.clients["rw-none0"]; c != nil {
			return c.dhcp.Options
		}
		return nil
	}
	has := func(value string) func() bool {
		return func() bool { o := options(); return len(o) == 1 && o[0].Code == 60 && string(o[0].Value) == value }
	}
	polltest.Assert(t, has("modem"), 5*time.Second, time.Millisecond)

	other := wans("rw-none0")
	other.WANs[0].DHCPOptions = []config.DHCPOption{{Code: 60, Value: []byte("router")}}
	k.Follow(other)
	polltest.Assert(t, has("router"), 5*time.Second, time.Millisecond)
	cancel()
	require.NoError(t, <-done)
}
