package plan

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/appliance/wanted"
	"ringway/configs"
	"ringway/qos"
)

// shipped loads a shipped config with values replaced.
func shipped(t *testing.T, name string, change map[string]string) *config.Config {
	t.Helper()
	data, err := configs.Variant(name, change)
	require.NoError(t, err)
	cfg, err := config.Parse(name, data, config.WithoutKeyFiles())
	require.NoError(t, err)
	return cfg
}

// What is promised is what the queues give: ceiling of the class media of each site and of what goes to none,
// and its rate where budgets are reserved. On every kind of line, and at a hub whose sites have more than it.
func TestTheBudgetIsTheQueues(t *testing.T) {
	for _, c := range []struct {
		uplink, downlink, link string
		sites                  int
		reserved               bool
	}{
		{"500kbit", "", "kernel", 1, true}, {"1mbit", "", "pppoe-llcsnap", 1, true}, {"1234567bit", "", "pppoe-ptm", 1, true},
		{"20mbit", "", "ethernet", 1, true}, {"1gbit", "", "docsis", 1, true},
		{"20mbit", "3mbit", "bridged-ptm", 1, true}, {"20mbit", "2gbit", "kernel", 1, true},
		{"20mbit", "2mbit", "kernel", 7, true}, {"20mbit", "20mbit", "kernel", 60, false},
	} {
		cfg := shipped(
			t,
			"branch-berlin.yaml",
			map[string]string{"wan[wan0].uplink": c.uplink, "wan[wan0].downlink": "", "wan[wan0].link": c.link,
				"sites[munich].downlink": c.downlink, "classes[media].share": "29"},
		)
		for i := 1; i < c.sites; i++ {
			s := cfg.Sites[0]
			s.Name = fmt.Sprintf("branch-%d", i)
			cfg.Sites = append(cfg.Sites, s)
		}
		planned := Calls(cfg)[0]
		assert.Equal(t, c.reserved, planned.Reserved, "%+v", c)
		budget := map[string]qos.BitRate{qos.Local: planned.Local}
		for _, s := range planned.Sites {
			for _, name := range s.Sites {
				budget[name] = s.Media
			}
		}
		require.Len(t, budget, 1+c.sites)
		places := qos.Places(slices.Collect(maps.Keys(budget)))
		found, all := 0, qos.BitRate(0)
		for _, class := range wanted.From(cfg, wanted.Facts{Queues: qos.AssumedFeatures()}).Queues.Links[0].Classes {
			p, ok := places[class.Handle]
			if !ok || p.Class != qos.Media {
				continue
			}
			found++
			assert.Equal(t, class.Ceil, budget[p.Site], "%s of %+v", p.Site, c)
			if c.reserved {
				assert.Equal(t, class.Rate, budget[p.Site], "%s of %+v", p.Site, c)
			}
			if p.Site != qos.Local {
				all += class.Ceil
			}
		}
		assert.Equal(t, len(budget), found)
		assert.Equal(t, all, planned.All)
	}
}

func calls(w WANCalls, site, inner, codec string, srtp bool) int {
	for _, s := range w.Sites {
		for _, name := range s.Sites {
			for _, c := range s.Codecs {
				if name == site && s.Inner == inner && c.Codec == codec && c.SRTP == srtp {
					return c.Calls
				}
			}
		}
	}
	return -1
}

func TestCallsBySite(t *testing.T) {
	w := Calls(shipped(t, "branch-berlin.yaml", nil))[0]
	assert.Equal(t, 49, calls(w, "munich", "IPv4", "G.711", false))
	assert.Equal(t, 46, calls(w, "munich", "IPv4", "G.711", true))
	assert.Equal(t, 46, calls(w, "munich", "IPv6", "G.722", false))
	assert.Equal(t, 100, calls(w, "munich", "IPv4", "G.729", false))
	assert.Equal(t, 68, calls(w, "munich", "IPv4", "Opus", false))

	// 2 Mbit/s less 3 %, 30 % of it, less RTCP's share: 554,285 bit/s.
	w = Calls(shipped(t, "branch-berlin.yaml", map[string]string{"sites[munich].downlink": "2mbit"}))[0]
	assert.Equal(t, 4, calls(w, "munich", "IPv4", "G.711", false))
	w = Calls(shipped(t, "branch-berlin.yaml", map[string]string{"sites[munich].downlink": "2gbit"}))[0]
	assert.Equal(t, 49, calls(w, "munich", "IPv4", "G.711", false), "our own uplink is what counts")

	w = Calls(shipped(t, "branch-berlin.yaml", map[string]string{
		"sites[munich].endpoint": "2001:db8::2", "wan[wan0].address": "[198.51.100.2/24, 2001:db8:a::2/64]",
	}))[0]
	assert.Equal(t, 45, calls(w, "munich", "IPv4", "G.711", false), "over IPv6 outside, 302 bytes")

	w = Calls(shipped(t, "branch-berlin.yaml", map[string]string{"wan[wan0].uplink": ""}))[0]
	assert.Zero(t, calls(w, "munich", "IPv4", "G.711", false), "nothing is promised of what nobody knows")
	assert.Contains(
		t,
		strings.Join(CallLines([]WANCalls{w}), "\n"),
		"# wan0: its uplink is not known, so nothing is promised",
	)

	w = Calls(shipped(t, "branch-berlin.yaml", map[string]string{"sites[munich].tunnels": "data"}))[0]
	assert.Empty(t, w.Sites)
	assert.Equal(t, []string{"munich"}, w.AsData)
	assert.Contains(
		t,
		strings.Join(CallLines([]WANCalls{w}), "\n"),
		"# wan0 to munich: the one tunnel is for data",
	)
}

// A hub's sites are alike, but for a few: it must not print the same arithmetic 500 times.
func TestSitesThatAreAlikeStandTogether(t *testing.T) {
	cfg := shipped(t, "branch-berlin.yaml", nil)
	munich := cfg.Sites[0]
	for i := range 500 {
		s := munich
		s.Name = fmt.Sprintf("branch-%d", i)
		cfg.Sites = append(cfg.Sites, s)
	}
	cfg.Sites[8].Downlink = 2 * qos.Mbit // branch-7
	w := Calls(cfg)
	require.Len(t, w[0].Sites, 4, "two families, and one site that is slow")
	assert.Len(t, w[0].Sites[0].Sites, 500)
	text := strings.Join(CallLines(w), "\n")
	assert.Contains(
		t,
		text,
		"# wan0 to munich, branch-0, branch-1, branch-2, branch-3 and 495 more, IPv4 in IPv4:",
	)
	assert.Contains(t, text, "# wan0 to branch-7, IPv4 in IPv4, by its downlink 582kbit:")
	b, err := json.Marshal(w)
	require.NoError(t, err)
	assert.Less(t, len(b), 100_000)
}

func TestWhatACallCostsIsPlanned(t *testing.T) {
	remarks := func(change map[string]string) []string {
		cfg := shipped(t, "minimal.yaml", change)
		out := TunnelRemarks(wanted.From(cfg, wanted.Facts{Queues: qos.AssumedFeatures()}).Devices)
		for _, l := range CallLines(Calls(cfg)) {
			if strings.Contains(l, "G.711:") {
				out = append(out, l)
			}
		}
		return out
	}
	const plain = "160 + 12 RTP + 8 UDP + 20 IPv4 = 200, padded to 208, " +
		"+ 32 WireGuard + 8 UDP + 20 IPv4 + 14 link = 282 bytes; 50 a second, 112.8 kbit/s a call, calls: 49"
	assert.Equal(
		t,
		[]string{"#   G.711: " + plain},
		remarks(map[string]string{"tunnels[voice].engine": "wireguard-go"}),
	)
	assert.Equal(
		t,
		[]string{
			"# rw-voice: outer DSCP CS3 for inner CS3, AF31, CS5; EF for inner EF; EF for everything else; padded to 512 bytes",
			"# rw-voice: calls are admitted up to the voice budget, sites: 1, of 5.8mbit",
			"#   G.711: 160 + 12 RTP + 8 UDP + 20 IPv4 = 200, padded to 512, " +
				"+ 32 WireGuard + 8 UDP + 20 IPv4 + 14 link = 586 bytes; 50 a second, 234.4 kbit/s a call, calls: 23; " +
				"without pad_to 282 bytes, 50 a second, 112.8 kbit/s a call, calls: 49",
		},
		remarks(map[string]string{"tunnels[voice].engine": "realtime", "tunnels[voice].pad_to": "512"}),
	)
}

// What the box adds to packets counts: between boxes the tag of GCM and the MKI.
func TestWhatSRTPCostsIsPlanned(t *testing.T) {
	change := map[string]string{
		"sip.mode": "enforce", "sip.unread": "deny", "sip.on_failure": "closed", "sites[munich].srtp": "prefer",
	}
	lines := func() []string {
		var out []string
		for _, l := range CallLines(Calls(shipped(t, "minimal.yaml", change))) {
			if strings.Contains(l, "G.711") {
				out = append(out, l)
			}
		}
		return out
	}
	const plain = "#   G.711: 160 + 12 RTP + 8 UDP + 20 IPv4 = 200, padded to 208, " +
		"+ 32 WireGuard + 8 UDP + 20 IPv4 + 14 link = 282 bytes; 50 a second, 112.8 kbit/s a call, calls: 49"
	assert.Equal(t, []string{
		"#   srtp: prefer, with phones there, at most: 16 bytes a packet, 6.4 kbit/s a call of G.711, calls: 3 fewer",
		plain,
		"#   G.711 with SRTP: 160 + 12 RTP + 16 SRTP + 8 UDP + 20 IPv4 = 216, padded to 224, " +
			"+ 32 WireGuard + 8 UDP + 20 IPv4 + 14 link = 298 bytes; 50 a second, 119.2 kbit/s a call, calls: 46",
	}, lines())

	change["sites[munich].srtp"], change["sites[munich].box"] = "require", "10.2.10.1"
	change["sites[munich].identity"] = "IDENTITYmunichIDENTITYmunichIDENTITYmuniAAA="
	change["tunnels[voice].pad_to"] = "256"
	assert.Contains(t, lines()[0], "srtp: require, between the boxes: 20 bytes a packet, 0.0 kbit/s a call of G.711, "+
		"calls: 0 fewer", "it fits into what is padded")
	change["tunnels[voice].pad_to"] = ""
	assert.Contains(t, lines()[0], "20 bytes a packet, 6.4 kbit/s a call of G.711, calls: 3 fewer")
	assert.Contains(t, lines()[2], "12 RTP + 20 SRTP + 8 UDP + 20 IPv4 = 220, padded to 224,")
}
