package lease

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"ringway/appliance/config"
	"ringway/routing"
	"ringway/routing/dhcp"
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
		Expiry:    time.Date(2026, 11, 28, 12, 0, 0, 0, time.UTC),
	}
}

func TestLeasesFollowTheConfigAndOutliveTheirClients(t *testing.T) {
	defer goleak.VerifyNone(t)
	changes := 0
	k := New(t.TempDir(), slog.New(slog.DiscardHandler), func() { changes++ })
	k.Follow(wans("rw-none0", "rw-none1"))

	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error)
	go func() { done <- k.Run(ctx, func() { close(ready) }) }()
	<-ready
	require.Len(t, k.Problems(), 2)
	assert.Empty(t, k.Held())

	k.mu.Lock()
	c := k.clients["rw-none0"]
	k.mu.Unlock()
	k.take(c, leaseOf("rw-none0"))
	want := map[string]routing.Lease{"rw-none0": {
		Address: netip.MustParsePrefix("198.51.100.7/24"), Gateways: []netip.Addr{netip.MustParseAddr("198.51.100.1")},
	}}
	assert.Equal(t, want, k.Held())
	assert.Equal(t, []netip.Addr{netip.MustParseAddr("198.51.100.53")}, k.NameServers())
	require.Len(t, k.Problems(), 1)
	assert.Equal(t, "rw-none1", k.Problems()[0].Subject)
	assert.Equal(t, "DHCP leases: rw-none0 198.51.100.7/24 via 198.51.100.1, rw-none1 no lease", k.Status().String())
	text, err := json.Marshal(k.Status())
	require.NoError(t, err)
	assert.JSONEq(t, `[{"interface": "rw-none0", "address": "198.51.100.7/24", "gateways": ["198.51.100.1"],
		"name_servers": ["198.51.100.53"], "expiry": "2026-11-28T12:00:00Z"}, {"interface": "rw-none1"}]`, string(text))

	// A daemon that restarts leaves the address in use.
	cancel()
	require.NoError(t, <-done)
	assert.Equal(t, want, k.Held())

	k.Follow(wans("rw-none1"))
	assert.Empty(t, k.Held())
	k.take(c, leaseOf("rw-none0"))
	assert.Empty(t, k.Held(), "of a WAN that wants none by now")
	assert.Equal(t, 1, changes)
}

func TestALeaseThatIsLostIsAProblem(t *testing.T) {
	k := New(t.TempDir(), slog.New(slog.DiscardHandler), func() {})
	k.Follow(wans("rw-none0"))
	c := &client{dhcp: &dhcp.Client{Interface: "rw-none0"}}
	k.take(c, leaseOf("rw-none0"))
	assert.Empty(t, k.Problems())

	lost := leaseOf("rw-none0")
	lost.Lost = true
	k.take(c, lost)
	assert.Len(t, k.Problems(), 1)
	assert.Empty(t, k.Held())
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
