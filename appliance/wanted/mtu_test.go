package wanted

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/qos"
	"ringway/routing"
	"ringway/tunnel"
)

// twoWANs is the shipped branch with a second WAN behind the first.
func twoWANs(t *testing.T, change map[string]string) *config.Config {
	t.Helper()
	cfg := shipped(t, "branch-berlin.yaml", change)
	lte := cfg.WANs[0]
	lte.Interface = "lte0"
	lte.Addresses = []netip.Prefix{netip.MustParsePrefix("192.0.2.2/24")}
	lte.Gateways = []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	cfg.WANs = append(cfg.WANs, lte)
	return cfg
}

// routeMTUs are the MTUs of the routes to sites, by table.
func routeMTUs(s routing.State) map[uint32][]int {
	out := map[uint32][]int{}
	for _, r := range s.Routes {
		if strings.HasPrefix(r.Device, "rw-") && !slices.Contains(out[r.Table], r.MTU) {
			out[r.Table] = append(out[r.Table], r.MTU)
		}
	}
	return out
}

// Devices take what fits the WAN with the longest packets; what goes to a site keeps to what the WAN with the shortest
// takes, in both classes, and so do TCP's segments.
func TestMTUOfPaths(t *testing.T) {
	none := map[uint32][]int{routing.TableVoice: {0}, routing.TableData: {0}, routing.TableOwn: {0}}
	all := func(mtu int) map[uint32][]int {
		return map[uint32][]int{routing.TableVoice: {mtu}, routing.TableData: {mtu}, routing.TableOwn: {mtu}}
	}
	for _, c := range []struct {
		name   string
		cfg    *config.Config
		wire   map[string]int
		path   map[string]int
		device int
		routes map[uint32][]int
		why    string
	}{
		{"Ethernet", shipped(t, "branch-berlin.yaml", nil), map[string]int{"wan0": 1500}, nil, 1420, none,
			"it is the default"},
		{"not there yet", shipped(t, "branch-berlin.yaml", nil), nil, nil, 1420, none, "it is the default"},
		{"jumbo frames", shipped(t, "branch-berlin.yaml", nil), map[string]int{"wan0": 9000}, nil, 1420, none,
			"it is the default"},
		{"LTE", shipped(t, "branch-berlin.yaml", nil), map[string]int{"wan0": 1400}, nil, 1312, none, "wan0 takes 1400 bytes"},
		{"PPPoE", shipped(t, "branch-berlin.yaml", map[string]string{"wan[wan0].link": "pppoe-ptm"}),
			map[string]int{"wan0": 1500}, nil, 1408, none, "the link of wan0 takes 1492 bytes"},
		{"LTE beside Ethernet", twoWANs(t, nil), map[string]int{"wan0": 1500, "lte0": 1400}, nil, 1420, all(1312),
			"lte0 takes 1400 bytes"},
		{"as small as IPv6 inside allows", twoWANs(t, nil), map[string]int{"wan0": 1500, "lte0": 1300}, nil, 1420, all(1280),
			"lte0 takes 1300 bytes"},
		{"a path that was probed", shipped(t, "branch-berlin.yaml", nil), map[string]int{"wan0": 1500},
			map[string]int{"munich": 1450}, 1420, all(1360), "the path takes 1450 bytes"},
		{"a path that takes more than the WAN", twoWANs(t, nil), map[string]int{"wan0": 1500, "lte0": 1400},
			map[string]int{"munich": 1450}, 1420, all(1312), "lte0 takes 1400 bytes"},
		{"a path in which probing found what it looked for", shipped(t, "branch-berlin.yaml", nil),
			map[string]int{"wan0": 1500}, map[string]int{"munich": 1500}, 1420, none, "it is the default"},
		{"a path that takes as much as the WAN, to the step", twoWANs(t, nil), map[string]int{"wan0": 1500, "lte0": 1400},
			map[string]int{"munich": 1392}, 1420, all(1312), "lte0 takes 1400 bytes"},
		{"a path that was probed, set by hand", shipped(t, "branch-berlin.yaml",
			map[string]string{"tunnels[voice].mtu": "1420", "tunnels[data].mtu": "1420"}), map[string]int{"wan0": 1500},
			map[string]int{"munich": 1392}, 1420, none, "tunnels[voice].mtu says"},
		{"set by hand", twoWANs(t, map[string]string{"tunnels[voice].mtu": "1420", "tunnels[data].mtu": "1420"}),
			map[string]int{"wan0": 1500, "lte0": 1400}, nil, 1420, none, "tunnels[voice].mtu says"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := From(c.cfg, Facts{Queues: qos.AssumedFeatures(), WireMTU: c.wire, PathMTU: c.path})
			for _, class := range tunnel.Classes {
				assert.EqualValues(t, c.device, device(t, w, class).Settings.MTU, class)
			}
			assert.Equal(t, c.routes, routeMTUs(w.Routing))
			require.Len(t, w.MTUs, 1)
			assert.Equal(t, c.why, w.MTUs[0].Voice.Why)
			short := c.routes[routing.TableVoice][0]
			assert.EqualValues(t, cmp.Or(short, c.device), w.MTUs[0].Voice.MTU)

			rules := strings.Join(w.Firewall.Text(), "\n")
			assert.Equal(t, short > 0, strings.Contains(rules,
				fmt.Sprintf("ip daddr @short%d_4 tcp option maxseg size set %d", short, short-40)))
			assert.Equal(t, short > 0, strings.Contains(rules,
				fmt.Sprintf("ip6 saddr @short%d_6 tcp option maxseg size set %d", short, short-60)))
		})
	}
}

// The kernel's WireGuard believes ICMP, so the routes of its packets are locked to what the WAN takes.
func TestRoutesOfTheKernelsCiphertextAreLocked(t *testing.T) {
	locked := func(f Facts) (mtu int, is bool) {
		f.Queues, f.WireMTU = qos.AssumedFeatures(), map[string]int{"wan0": 1400}
		for _, r := range From(shipped(t, "branch-berlin.yaml", nil), f).Routing.Routes {
			if r.Table == routing.TableMain && r.Prefix.Bits() == 0 {
				mtu, is = r.MTU, r.MTULock
			}
		}
		return mtu, is
	}
	mtu, is := locked(Facts{KernelWireGuard: true})
	assert.True(t, is)
	assert.Equal(t, 1400, mtu)
	mtu, is = locked(Facts{})
	assert.False(t, is)
	assert.Zero(t, mtu)
}

// A packet that is padded fits the path as well.
func TestPaddingFitsThePath(t *testing.T) {
	cfg := twoWANs(t, map[string]string{"tunnels[voice].pad_to": "1400"})
	f := Facts{Queues: qos.AssumedFeatures(), WireMTU: map[string]int{"wan0": 1500, "lte0": 1400}}
	assert.Equal(t, 1312, device(t, From(cfg, f), tunnel.Voice).Outer.PadTo)
	f.WireMTU = map[string]int{"wan0": 1400, "lte0": 1400}
	assert.Equal(t, 1312, device(t, From(cfg, f), tunnel.Voice).Outer.PadTo)
}

// Each class says what decides its MTU.
func TestWhyAnMTU(t *testing.T) {
	slow := map[string]string{"wan[wan0].uplink": "1150kbit", "wan[wan0].downlink": "1150kbit"}
	for _, c := range []struct {
		change      map[string]string
		wire        int
		voice, data string
	}{
		{nil, 1400, "1312 wan0 takes 1400 bytes", "1312 wan0 takes 1400 bytes"},
		{map[string]string{"tunnels[voice].mtu": "1300"}, 1400, "1300 tunnels[voice].mtu says",
			"1312 wan0 takes 1400 bytes"},
		{map[string]string{"tunnels[data].mtu": "1290"}, 1500, "1420 it is the default", "1290 tunnels[data].mtu says"},
		{slow, 1500, "1420 it is the default", "1320 a line is slow"},
		{slow, 1380, "1296 wan0 takes 1380 bytes", "1296 wan0 takes 1380 bytes"},
		{map[string]string{"sites[munich].downlink": "1150kbit"}, 1500, "1420 it is the default", "1312 a line is slow"},
	} {
		m := From(shipped(t, "branch-berlin.yaml", c.change),
			Facts{Queues: qos.AssumedFeatures(), WireMTU: map[string]int{"wan0": c.wire}}).MTUs[0]
		assert.Equal(t, c.voice, fmt.Sprintf("%d %s", m.Voice.MTU, m.Voice.Why), "%v %d", c.change, c.wire)
		assert.Equal(t, c.data, fmt.Sprintf("%d %s", m.Data.MTU, m.Data.Why), "%v %d", c.change, c.wire)
	}
}

// A WAN over which a site cannot be reached does not shorten its packets.
func TestOnlyWANsThatCanCarryASiteDecideItsMTU(t *testing.T) {
	cfg := twoWANs(t, nil)
	cfg.WANs[1].Addresses = []netip.Prefix{netip.MustParsePrefix("2001:db8:c::2/64")}
	w := From(cfg, Facts{Queues: qos.AssumedFeatures(), WireMTU: map[string]int{"wan0": 1500, "lte0": 1400}})
	assert.Zero(t, w.MTUs[0].Short, "the endpoint is an IPv4 address")

	cfg.Sites[0].Endpoint = "munich.example.net"
	w = From(cfg, Facts{Queues: qos.AssumedFeatures(), WireMTU: map[string]int{"wan0": 1500, "lte0": 1400}})
	assert.EqualValues(t, 1312, w.MTUs[0].Short, "a name may have both")
}

// Hosts of the LANs that talk to the internet get segments that fit a WAN below Ethernet's 1500.
func TestInternetSegmentsFitTheWAN(t *testing.T) {
	text := func(wire int) string {
		w := From(shipped(t, "branch-berlin.yaml", nil),
			Facts{Queues: qos.AssumedFeatures(), WireMTU: map[string]int{"wan0": wire}})
		return strings.Join(w.Firewall.Text(), "\n")
	}
	assert.NotContains(t, text(1500), `oifname "wan0" meta nfproto ipv4 tcp option maxseg`)
	assert.Contains(t, text(1492), `oifname "wan0" meta nfproto ipv4 tcp option maxseg size set 1452`)
	assert.Contains(t, text(1492), `iifname "wan0" meta nfproto ipv6 tcp option maxseg size set 1432`)
}

// What cannot be sent whole is said, with what to do.
func TestFragments(t *testing.T) {
	say := func(cfg *config.Config, wire int) string {
		var said []string
		for _, f := range Fragments(cfg, Facts{WireMTU: map[string]int{"wan0": wire}}) {
			said = append(said, f.WAN+": "+f.Text+"; "+f.Action)
		}
		return strings.Join(said, "\n")
	}
	auto := shipped(t, "branch-berlin.yaml", nil)
	for _, wire := range []int{1500, 1492, 1400, 1360, 1340} {
		assert.Empty(t, say(auto, wire), wire)
	}
	assert.Equal(t, "wan0: full packets to munich leave in fragments: the voice tunnel's MTU of 1280 and "+
		"WireGuard's 60 bytes exceed the 1339 that the WAN takes; raise the WAN's MTU to 1340: IPv6 networks need "+
		"packets of 1280 bytes inside",
		say(auto, 1339))
	byHand := shipped(t, "branch-berlin.yaml", map[string]string{"tunnels[data].mtu": "1420"})
	assert.Empty(t, say(byHand, 1500))
	assert.Equal(t, "wan0: full packets to munich leave in fragments: the data tunnel's MTU of 1420 and "+
		"WireGuard's 60 bytes exceed the 1400 that the WAN takes; set tunnels[data].mtu: auto", say(byHand, 1400))
}

// Paths are probed for what the devices take, unless both tunnels' mtu is set by hand, and by engines that can.
func TestWhatIsProbedFor(t *testing.T) {
	for _, c := range []struct {
		change map[string]string
		wire   int
		voice  int
	}{
		{nil, 1500, 1500},
		{nil, 9000, 1500},
		{nil, 1492, 1488},
		{nil, 1400, 1392},
		{nil, 1300, 1360},
		{map[string]string{"tunnels[voice].mtu": "1420"}, 1500, 1500},
		{map[string]string{"tunnels[voice].mtu": "1420", "tunnels[data].mtu": "1420"}, 1500, 0},
		{map[string]string{"tunnels[voice].engine": "wireguard-go"}, 1500, 0},
	} {
		w := From(shipped(t, "branch-berlin.yaml", c.change),
			Facts{Queues: qos.AssumedFeatures(), WireMTU: map[string]int{"wan0": c.wire}})
		assert.Equal(t, c.voice, device(t, w, tunnel.Voice).ProbeMTU, "%v %d", c.change, c.wire)
		assert.Zero(t, device(t, w, tunnel.Data).ProbeMTU)
	}
}

// The kernel's WireGuard keeps to what probing found as well: the route is what decides.
func TestAProbedPathHoldsForTheKernelsEngine(t *testing.T) {
	w := From(shipped(t, "branch-berlin.yaml", nil), Facts{Queues: qos.AssumedFeatures(), KernelWireGuard: true,
		WireMTU: map[string]int{"wan0": 1500}, PathMTU: map[string]int{"munich": 1392}})
	assert.Equal(t, map[uint32][]int{routing.TableVoice: {1312}, routing.TableData: {1312}, routing.TableOwn: {1312}},
		routeMTUs(w.Routing))
	assert.Equal(t, tunnel.EngineKernel, device(t, w, tunnel.Data).Settings.Engine)
}
