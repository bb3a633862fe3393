package wanted

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/qos"
	"ringway/routing"
	"ringway/tunnel"
)

// Which sites calls are sent twice to reaches the engine of the voice tunnel, with what the queues of each WAN have for
// calls; without the key nothing does.
func TestCopiesReachTheEngine(t *testing.T) {
	cfg := shipped(t, "branch-berlin.yaml", nil)
	f := Facts{Queues: qos.AssumedFeatures()}
	of := func(c tunnel.Class) tunnel.Copies { return device(t, From(cfg, f), c).Copies }
	assert.Equal(t, tunnel.Copies{}, of(tunnel.Voice))

	cfg = shipped(t, "branch-berlin.yaml", map[string]string{"sites[munich].copies": "on_loss"})
	lte := cfg.WANs[0]
	lte.Interface, lte.Uplink = "lte0", 2*qos.Mbit
	lte.Addresses = []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24")}
	cfg.WANs = append(cfg.WANs, lte)
	c := of(tunnel.Voice)
	require.NoError(t, c.Check())
	assert.Equal(t, tunnel.Copies{}, of(tunnel.Data))
	assert.Equal(t, uint64(1)<<46, c.Media)
	require.Len(t, c.Lines, 2)
	assert.Equal(t, []netip.Addr{netip.MustParseAddr("192.0.2.2")}, c.Lines[1].Sources)
	require.Len(t, c.Sites, 1)
	s := c.Sites[0]
	assert.Equal(t, tunnel.CopiesOnLoss, s.When)
	for i, w := range cfg.WANs {
		b, _ := cfg.SiteBudget(w, cfg.Sites[0], false)
		assert.Equal(t, b.Rate, s.Rates[i], w.Interface)
	}

	// Calls with a site to which nothing is sent twice count, too: they leave less for copies.
	other := cfg.Sites[0]
	other.Name, other.PublicKey, other.Copies = "paris", tunnel.PublicKey{1}, ""
	cfg.Sites = append(cfg.Sites, other)
	c = of(tunnel.Voice)
	require.NoError(t, c.Check())
	require.Len(t, c.Sites, 2)
	assert.Equal(t, []tunnel.CopiesWhen{tunnel.CopiesOff, tunnel.CopiesOnLoss},
		[]tunnel.CopiesWhen{c.Sites[0].When, c.Sites[1].When})
	cfg.Sites = cfg.Sites[:1]

	// Our addresses on a line are those of its lease and of advertisements, however they are asked for.
	lease, global := netip.MustParsePrefix("198.51.100.7/32"), netip.MustParsePrefix("2001:db8:7::2/64")
	f.Leases = map[string]routing.Lease{"lte0": {Address: lease}}
	f.Advertised = map[string]routing.Advertised{"lte0": {Addresses: []netip.Prefix{global}}}
	for name, change := range map[string]func(*config.WAN){
		"DHCP":  func(w *config.WAN) { w.DHCP = true },
		"PPPoE": func(w *config.WAN) { w.Upstream.PPPoE = true },
	} {
		cfg.WANs[1].Addresses, cfg.WANs[1].DHCP, cfg.WANs[1].Upstream.PPPoE = nil, false, false
		change(&cfg.WANs[1])
		assert.Equal(t, []netip.Addr{lease.Addr(), global.Addr()}, of(tunnel.Voice).Lines[1].Sources, name)
	}
	cfg.WANs[1] = lte
	cfg.WANs[1].DHCP6 = true
	assert.Equal(t, []netip.Addr{lte.Addresses[0].Addr(), global.Addr()}, of(tunnel.Voice).Lines[1].Sources)
	cfg.WANs[1] = lte

	// A WAN with a queue of somebody else is not shaped, and bounds nothing; copies go all the same.
	f.Refused = map[string]string{"wan0": "cake 1:"}
	c = of(tunnel.Voice)
	require.NoError(t, c.Check())
	require.Len(t, c.Sites, 1)
	assert.Zero(t, c.Sites[0].Rates[0])
	assert.NotZero(t, c.Sites[0].Rates[1])

	cfg = shipped(t, "branch-berlin.yaml", map[string]string{"wan[wan0].uplink": "", "wan[wan0].downlink": "",
		"sites[munich].copies": "always"})
	f = Facts{Queues: qos.AssumedFeatures()}
	require.Len(t, of(tunnel.Voice).Sites, 1, "nor does one whose uplink is not known")
}
