package wanted

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/firewall"
	"ringway/qos"
	"ringway/tunnel"
)

// hubConfig is a box with that many sites, which dial in.
func hubConfig(t testing.TB, sites int) *config.Config {
	var b strings.Builder
	b.WriteString(`site: hub
wan: [{interface: wan0, address: 198.51.100.2/24, gateway: 198.51.100.1, uplink: 1gbit}]
voice: [{interface: voice0, address: 10.0.10.1/24}]
sites:
`)
	for i := range sites {
		key, err := tunnel.NewPrivateKey()
		require.NoError(t, err)
		fmt.Fprintf(
			&b,
			"  - {name: branch-%d, public_key: %s, downlink: 20mbit, voice_networks: 10.%d.%d.0/24}\n",
			i,
			key.Public(),
			100+i/250,
			i%250,
		)
	}
	cfg, err := config.Parse("hub.yaml", []byte(b.String()), config.WithoutKeyFiles())
	require.NoError(t, err)
	return cfg
}

// heardIn is the test's own memory of where sites are.
type heardIn map[string]netip.AddrPort

func (h heardIn) at(c tunnel.Class, s tunnel.Site) (netip.AddrPort, uint64) {
	a := h[s.Name]
	if c == tunnel.Data && a.IsValid() {
		a = netip.AddrPortFrom(a.Addr(), a.Port()+1)
	}
	return a, uint64(len(s.Name))
}

func whereMaps(s firewall.State) map[string]string {
	out := map[string]string{}
	for _, set := range s.Sets {
		for _, e := range set.Elements {
			if strings.HasPrefix(set.Name, "prio_") {
				out[set.Name+" "+e.Key] = e.Value
			}
		}
	}
	return out
}

// A site's ciphertext is known by where the site is: each of its tunnels has the two classes that it carries.
// A site that moves changes elements and no rule; one that was never heard is in no map.
func TestSitesAreKnownByWhereTheyAre(t *testing.T) {
	cfg := hubConfig(t, 3)
	heard := heardIn{
		"branch-0": netip.MustParseAddrPort("203.0.113.7:4000"),
		"branch-1": netip.MustParseAddrPort("[2001:db8:f::1]:51820"),
	}
	f := Facts{Queues: qos.AssumedFeatures(), Heard: heard.at}
	w := From(cfg, f)
	id := map[string]string{}
	for _, p := range qos.SitePriorities(w.QueueInput) {
		id[p.Site+" "+string(p.Class)] = firewall.ClassIDText(p.ClassID)
	}
	assert.Equal(t, map[string]string{
		"prio_media4 203.0.113.7 . 4000":         id["branch-0 media"],
		"prio_signalling4 203.0.113.7 . 4000":    id["branch-0 signalling"],
		"prio_data4 203.0.113.7 . 4001":          id["branch-0 data"],
		"prio_background4 203.0.113.7 . 4001":    id["branch-0 background"],
		"prio_media6 2001:db8:f::1 . 51820":      id["branch-1 media"],
		"prio_signalling6 2001:db8:f::1 . 51820": id["branch-1 signalling"],
		"prio_data6 2001:db8:f::1 . 51821":       id["branch-1 data"],
		"prio_background6 2001:db8:f::1 . 51821": id["branch-1 background"],
	}, whereMaps(w.Firewall))

	heard["branch-0"] = netip.MustParseAddrPort("192.0.2.9:9999")
	heard["branch-2"] = netip.MustParseAddrPort("192.0.2.10:9999")
	for _, c := range firewall.Diff(Firewall(cfg, f), w.Firewall) {
		assert.Contains(t, []firewall.Op{firewall.AddElements, firewall.DeleteElements}, c.Op, "%s", c)
	}

	f.Refused = map[string]string{"wan0": "htb 1:"}
	refused := From(cfg, f)
	assert.Empty(t, refused.Queues.Links)
	assert.Empty(t, whereMaps(refused.Firewall), "no packet is steered where somebody else's classes are")
}

// Of two sites said to be in one place it is the one heard there last, as after a NAT gave the port of one to
// the other.
func TestTheSiteHeardLastIsThere(t *testing.T) {
	cfg := hubConfig(t, 2)
	place := netip.MustParseAddrPort("203.0.113.7:4000")
	for last := range 2 {
		f := Facts{
			Queues: qos.AssumedFeatures(),
			Heard: func(_ tunnel.Class, s tunnel.Site) (netip.AddrPort, uint64) {
				return place, map[bool]uint64{true: 2, false: 1}[s.Name == fmt.Sprintf("branch-%d", last)]
			},
		}
		w := From(cfg, f)
		got := whereMaps(w.Firewall)
		for _, p := range qos.SitePriorities(w.QueueInput) {
			if p.Site == fmt.Sprintf("branch-%d", last) {
				assert.Equal(t, firewall.ClassIDText(p.ClassID), got["prio_"+string(p.Class)+"4 203.0.113.7 . 4000"])
			}
		}
		assert.Len(t, got, 4)
	}
}

// What a tunnel may hold follows from where its packets go: a site's line that is narrower than ours, all
// sites' lines together, and no super-packet is more than half of what the narrowest leaf holds.
func TestBoundsFollowTheSites(t *testing.T) {
	bounds := func(change map[string]string) tunnel.Bounds {
		return device(
			t,
			From(shipped(t, "branch-berlin.yaml", change), Facts{Queues: qos.AssumedFeatures()}),
			tunnel.Data,
		).Bounds
	}
	assert.Equal(
		t,
		bounds(map[string]string{"wan[wan0].uplink": "10mbit"}),
		bounds(map[string]string{"sites[munich].downlink": "10mbit"}),
	)
	assert.Equal(t, bounds(nil), bounds(map[string]string{"sites[munich].downlink": "100mbit"}))
	hub := func(downlink qos.BitRate) tunnel.Bounds {
		cfg := hubConfig(t, 60)
		for i := range cfg.Sites {
			cfg.Sites[i].Downlink = downlink
		}
		return device(t, From(cfg, Facts{Queues: qos.AssumedFeatures()}), tunnel.Data).Bounds
	}
	assert.EqualValues(t, 970*qos.Mbit, hub(20*qos.Mbit).Rate, "60 lines of 20 Mbit/s are more than ours")
	assert.Equal(t, 60625/2, hub(20*qos.Mbit).SuperPacket)
	assert.Equal(t, 15156, hub(10*qos.Mbit).SuperPacket)
	assert.Equal(t, 3036, hub(qos.Mbit).SuperPacket, "two packets of a leaf of four")
	cfg := hubConfig(t, 60)
	for i := range cfg.Sites {
		cfg.Sites[i].Downlink = qos.Mbit
	}
	alone := qos.PathBounds(slowestUplink(cfg), cfg.Class(qos.Data), 1500).SendBuffer
	assert.Equal(
		t,
		alone+len(cfg.Sites)*sitePacket,
		hub(qos.Mbit).SendBuffer,
		"each site may have a packet that waits for its line",
	)
}

// What comes in is held on each LAN's card, VLANs of one together, and steered where it is held and nowhere
// else.
func TestWhatComesInIsHeldOnTheLANs(t *testing.T) {
	parse := func(wan string) *config.Config {
		cfg, err := config.Parse("branch.yaml", []byte(`site: branch
wan:
  - {interface: wan0, address: dhcp, uplink: 10mbit, downlink: 50mbit`+wan+`}
  - {interface: lte0, address: dhcp}
voice: [{interface: lan0, vlan: 20, address: 10.0.20.1/24}]
data: [{interface: lan0, vlan: 30, address: 10.0.30.1/24}, {interface: lan1, address: 10.0.40.1/24}]
`), config.WithoutKeyFiles())
		require.NoError(t, err)
		return cfg
	}
	f := Facts{Queues: qos.AssumedFeatures()}
	w := From(parse(""), f)
	assert.Equal(t, []string{"lan0", "lan1", "wan0"}, w.Queues.Interfaces())
	lans := func(w State) (out []string) {
		for _, s := range w.Firewall.Sets {
			for _, e := range s.Elements {
				if s.Name == "shaped_lan" {
					out = append(out, e.Key)
				}
			}
		}
		return out
	}
	assert.Equal(t, []string{"lan0.20", "lan0.30", "lan1"}, lans(w))
	text := strings.Join(w.Firewall.Text(), "\n")
	assert.Contains(t, text, `iifname "wan0" meta priority set 2:10`)
	assert.NotContains(t, text, `iifname "lte0" meta priority set`)

	f.Refused = map[string]string{"lan0": "htb 7:"}
	assert.Equal(
		t,
		[]string{"lan1"},
		lans(From(parse(""), f)),
		"no packet is steered where somebody else's classes are",
	)
	assert.Equal(t, []string{"lan1", "wan0"}, From(parse(""), f).Queues.Interfaces())
	f.Refused = map[string]string{"wan0": "htb 7:"}
	assert.Equal(
		t,
		[]string{"lan0", "lan1"},
		From(parse(""), f).Queues.Interfaces(),
		"the way in does not depend on the way out",
	)
	f.Refused = nil
	off := From(parse(", shape_downlink: false"), f)
	assert.Equal(t, []string{"wan0"}, off.Queues.Interfaces())
	assert.Empty(t, lans(off))
	assert.NotContains(t, strings.Join(off.Firewall.Text(), "\n"), "arriving")
}
