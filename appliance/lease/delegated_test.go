package lease

import (
	"log/slog"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/boottime"
	"ringway/routing"
	"ringway/routing/advert"
	"ringway/routing/dhcp6"
	"ringway/tunnel"
)

func pfx(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func delegating() *config.Config {
	cfg := wans("rw-none0", "rw-none1")
	cfg.WANs[0].DHCP6, cfg.WANs[0].PrefixBits, cfg.WANs[0].DHCP6Address = true, 56, true
	cfg.WANs[1].DHCP, cfg.WANs[1].Addresses = false, []netip.Prefix{pfx("2001:db8:31::2/64")}
	cfg.WANs[1].Gateways = []netip.Addr{netip.MustParseAddr("2001:db8:32::1")}
	cfg.Voice = []routing.LAN{{
		Interface: "voice0", Addresses: []netip.Prefix{pfx("2001:db8:1:10::1/64")},
		Subnet: routing.Subnet{WAN: "rw-none0", Number: 3, Suffix: netip.MustParseAddr("::1")},
	}}
	cfg.Sites = []config.Site{{Site: tunnel.Site{
		Name: "munich", Endpoint: "2001:db8:41::9", MoreEndpoints: []string{"munich.example.net", "2001:db8:43::9"},
		VoiceNetworks: []netip.Prefix{pfx("2001:db8:2:10::/64")},
	}}}
	return cfg
}

// A prefix is refused that holds anything which is not the provider's to give.
func TestWhatNobodyMayDelegate(t *testing.T) {
	k := New(t.TempDir(), slog.New(slog.DiscardHandler), func() {})
	k.Where = func(tunnel.Class, tunnel.Site) (netip.AddrPort, uint64) {
		return netip.MustParseAddrPort("[2001:db8:42::9]:51820"), 1
	}
	k.Remotes = func(tunnel.Class, tunnel.Site) []netip.AddrPort {
		return []netip.AddrPort{netip.MustParseAddrPort("[2001:db8:44::9]:51820")}
	}
	k.Follow(delegating())
	k.take("rw-none0", func(w *wan) {
		w.advertised = advert.Result{Addresses: []netip.Prefix{pfx("2001:db8:5600:3::7/64")}}
	})
	for p, want := range map[string]string{
		"2001:db8:1::/56":    "2001:db8:1::/56 overlaps 2001:db8:1:10::/64 of voice0",
		"2001:db8:2::/48":    "2001:db8:2::/48 overlaps 2001:db8:2:10::/64 of site munich",
		"2001:db8:31::/56":   "2001:db8:31::/56 overlaps 2001:db8:31::/64 of rw-none1",
		"2001:db8:32::/56":   "2001:db8:32::/56 overlaps 2001:db8:32::1/128 of the gateway of rw-none1",
		"2001:db8:41::/56":   "2001:db8:41::/56 overlaps 2001:db8:41::9/128 of the endpoint of site munich",
		"2001:db8:42::/56":   "2001:db8:42::/56 holds 2001:db8:42::9, where site munich is",
		"2001:db8:43::/56":   "2001:db8:43::/56 overlaps 2001:db8:43::9/128 of the endpoint of site munich",
		"2001:db8:44::/56":   "2001:db8:44::/56 holds 2001:db8:44::9, where site munich is",
		"2001:db8:5600::/56": "its subnet 3 overlaps 2001:db8:5600:3::/64 of rw-none0 itself; give that LAN another subnet",
	} {
		assert.EqualError(t, k.refuseDelegated("rw-none0", pfx(p)), want)
	}
	assert.NoError(t, k.refuseDelegated("rw-none0", pfx("2001:db8:7700::/56")))
}

// What was delegated becomes facts, as long as it is valid and overlaps nothing; what lacks is a problem.
func TestWhatWasDelegated(t *testing.T) {
	k := New(t.TempDir(), slog.New(slog.DiscardHandler), func() {})
	cfg := delegating()
	k.Follow(cfg)
	texts := func() (all []string) {
		for _, p := range k.Problems() {
			all = append(all, p.Subject+": "+p.Text)
		}
		return all
	}
	assert.Contains(t, texts(), "rw-none0: no prefix was delegated")

	now := boottime.Now()
	k.take("rw-none0", func(w *wan) {
		w.lease6 = dhcp6.Lease{
			Interface: "rw-none0", Server: []byte{1},
			Prefixes: []dhcp6.Prefix{
				{Prefix: pfx("2001:db8:7700::/56"), Preferred: now + time.Hour, Valid: now + time.Hour},
				{Prefix: pfx("2001:db8:5600::/56"), Preferred: now, Valid: now + time.Hour},
				{Prefix: pfx("2001:db8:5500::/56"), Preferred: now, Valid: now},
			},
			Addresses: []dhcp6.Address{{Address: netip.MustParseAddr("2001:db8:ff::100"), Valid: now + time.Hour}},
		}
	})
	held := k.Held()
	assert.Equal(t, []routing.Delegation{
		{Prefix: pfx("2001:db8:7700::/56")}, {Prefix: pfx("2001:db8:5600::/56"), Deprecated: true},
	}, held.Delegated["rw-none0"])
	assert.Equal(t, []netip.Prefix{pfx("2001:db8:ff::100/128")}, held.Advertised["rw-none0"].Addresses)
	k.take("rw-none0", func(w *wan) { w.advertised.Addresses = []netip.Prefix{pfx("2001:db8:ff::100/64")} })
	assert.Equal(t, []netip.Prefix{pfx("2001:db8:ff::100/64")}, k.Held().Advertised["rw-none0"].Addresses,
		"the same address, by an advertisement as well")
	assert.NotContains(t, texts(), "rw-none0: no prefix was delegated")
	with, short := cfg.Delegated(held.Delegated)
	assert.Empty(t, short)
	assert.Equal(t, []netip.Prefix{pfx("2001:db8:7700:3::1/64"), pfx("2001:db8:5600:3::1/64")}, with.Voice[0].Delegated)
	assert.Empty(t, cfg.Voice[0].Delegated, "the config itself is as it was")

	clash := delegating()
	clash.Data = []routing.LAN{{Interface: "data0", Addresses: []netip.Prefix{pfx("2001:db8:7700:9::1/64")}}}
	assert.ErrorContains(t, k.Conflict(clash),
		"rw-none0 has the delegated prefix 2001:db8:7700::/56: 2001:db8:7700::/56 overlaps 2001:db8:7700:9::/64 of data0")
	assert.Len(t, k.HeldFor(clash).Delegated["rw-none0"], 1)

	k.take("rw-none0", func(w *wan) { w.lease6.Prefixes[0].Prefix = pfx("2001:db8:7700:80::/63") })
	require.Contains(t, texts(), "voice0: the delegated prefix 2001:db8:7700:80::/63 has no subnet 3")
	assert.Empty(t, k.HeldFor(wans("rw-none0")).Delegated, "of a config that wants none")
}
