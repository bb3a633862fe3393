package firewall

import (
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
)

var rewrite = flag.Bool("update", false, "rewrite testdata")

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func port(p qos.Protocol, low, high uint16) qos.PortMatch {
	return qos.PortMatch{Protocol: p, Low: low, High: high}
}

func branch() Input {
	return Input{
		WANs:  []string{"wan0"},
		Voice: []LAN{{Device: "lan0.20", Networks: prefixes("10.1.10.0/24", "2001:db8:1:10::/64")}},
		Data:  []LAN{{Device: "data0", Networks: prefixes("192.0.2.0/24")}},
		Tunnels: []Tunnel{
			{Class: "voice", Device: "rw-voice", ListenPort: 51820, MTU: 1420},
			{Class: "data", Device: "rw-data", ListenPort: 51821, MTU: 1420},
		},
		SiteVoiceNetworks: prefixes("10.2.10.0/24"),
		SiteDataNetworks:  prefixes("10.2.20.0/24", "2001:db8:2:20::/64"),
		Classes: []qos.Class{
			{
				Name: qos.Media, DSCP: []qos.DSCP{46}, Outer: 46, FlowLimit: 256 * qos.Kbit,
				Ports: []qos.PortMatch{port(qos.UDP, 16384, 32767)},
			},
			{
				Name: qos.Signalling, DSCP: []qos.DSCP{24, 40, 26}, Outer: 24,
				Ports: []qos.PortMatch{
					port(qos.UDP, 5060, 5060), port(qos.TCP, 5061, 5061), port(qos.TCP, 5060, 5060),
				},
			},
			{Name: qos.Data, Ports: []qos.PortMatch{port(qos.UDP, 67, 67), port(qos.TCP, 80, 80)}},
			{Name: qos.Background, DSCP: []qos.DSCP{8, 1}, Outer: 8},
		},
		Priorities: []Priority{
			{"wan0", qos.Media, 0x10010}, {"wan0", qos.Signalling, 0x10020}, {"wan0", qos.Data, 0x10030},
			{"wan0", qos.Background, 0x10040},
		},
		Peers:     []Peer{{netip.MustParseAddrPort("203.0.113.2:51820"), qos.Media, 0x10110}},
		Reflector: true,
		Slow:      []SlowWAN{{Device: "wan0", Sent: 1198}},
		Downlink: Downlink{
			LANs: []string{"data0", "lan0.20"}, CallsID: qos.CallsID, WANs: []WANQueue{{"wan0", 0x20010}},
		},
	}
}

func TestText(t *testing.T) {
	router := branch()
	router.DHCP, router.Parents = []string{"wan0"}, []string{"lan0"}
	router.Reach = []Reach{{
		Device: "wan0", Networks: prefixes("192.168.100.1/32", "fd99::/48"),
		Gateways: []netip.Addr{netip.MustParseAddr("192.168.178.1")}, DNS: []netip.Addr{netip.MustParseAddr("192.168.178.2")},
		DHCP: []netip.Addr{netip.MustParseAddr("10.250.0.3")},
	}, {Device: "lte-0"}}
	router.WANs, router.Endpoints = []string{"wan0", "lte-0"}, []netip.Addr{netip.MustParseAddr("10.66.1.1")}
	lines := branch()
	lines.WANs, lines.Metered = []string{"wan0", "lte0"}, []string{"lte0"}
	lines.Lines = []Line{{"wan0", qos.LineMark(3)}, {"lte0", qos.LineMark(11)}}
	delegated := branch()
	delegated.WANs, delegated.DHCP, delegated.Subnets = []string{"wan0", "lte0"}, []string{"lte0"}, true
	delegated.Data[0].Delegated = prefixes("2001:db8:5600:2::/64")
	delegated.Data[0].Networks = append(delegated.Data[0].Networks, delegated.Data[0].Delegated...)
	delegated.Elsewhere = []Elsewhere{{Device: "wan0", Networks: prefixes("2001:db8:5600::/56")}, {Device: "lte0"}}
	for name, in := range map[string]Input{
		"branch": branch(), "empty": {}, "router": router, "lines": lines, "delegated": delegated,
	} {
		got := strings.Join(Want(in).Text(), "\n") + "\n"
		file := "testdata/" + name + ".nft"
		if *rewrite {
			require.NoError(t, os.WriteFile(file, []byte(got), 0o644))
		}
		want, err := os.ReadFile(file)
		require.NoError(t, err)
		assert.Equal(t, string(want), got, "%s; if it is meant: go test ./firewall -update", name)
	}
	assert.Empty(t, State{}.Text())
}

// A map that is always empty would be asked for every packet on the WAN.
func TestNoMapsWithoutPeers(t *testing.T) {
	in := branch()
	assert.Contains(t, strings.Join(Want(in).Text(), "\n"), "@prio_media4")
	in.Peers = nil
	text := strings.Join(Want(in).Text(), "\n")
	assert.NotContains(t, text, "prio_")
	assert.Contains(t, text, `oifname "wan0" meta priority set 1:10`)
	in.PeerQueues = true
	assert.Contains(
		t, strings.Join(Want(in).Text(), "\n"), "map prio_data6 { type ipv6_addr . inet_service : classid; }",
		"a peer that is not heard yet changes no rule later",
	)
	in = branch()
	in.Priorities = nil
	assert.NotContains(t, strings.Join(Want(in).Text(), "\n"), "prio_", "nothing is shaped")
}

// Calls come first, and only packets that arrived by a WAN are queued.
func TestWhatComesInIsSteered(t *testing.T) {
	in := branch()
	rules := func() (out []string) {
		for _, c := range Want(in).Chains {
			if c.Name == "arriving" {
				for _, r := range c.Rules {
					out = append(out, r.Text)
				}
			}
		}
		return out
	}
	assert.Equal(t, []string{
		"meta mark & 0xe00 == 0x200 meta priority set 2:e0 return",
		"meta mark & 0xe00 == 0x400 meta priority set 2:e0 return",
		`iifname "wan0" meta priority set 2:10`,
	}, rules())
	in.Downlink.WANs = nil
	assert.Empty(t, rules())
	assert.NotContains(t, strings.Join(Want(in).Text(), "\n"), "shaped_lan")
}

// What must hold for every rule, whoever adds the next one.
func TestRulesKeepTheirPromises(t *testing.T) {
	all := uint32(qos.MarkAll)
	for _, c := range append(Want(branch()).Chains, Want(signalled()).Chains...) {
		rulesKeepTheirPromises(t, c, all)
	}
	lines := signalled()
	lines.Lines = []Line{{"wan0", qos.LineMark(15)}, {"lte0", qos.LineMark(1)}}
	for _, c := range Want(lines).Chains {
		rulesKeepTheirPromises(t, c, all|uint32(qos.MarkLineMask))
	}
	// Only where the kernel can answer may a rule do so: it refuses the whole table otherwise.
	text := strings.Join(Want(lines).Text(), "\n")
	for _, c := range Want(lines).Chains {
		for _, r := range c.Rules {
			answers := strings.Contains(r.Text, "reject")
			assert.False(t, answers && !slices.Contains([]string{"refuse_own", "refused", "metered"}, c.Name), c.Name)
		}
	}
	assert.NotContains(t, text[strings.Index(text, "chain egress_wan"):], "refuse")
	lines.Missing = []Feature{FeatureReject}
	assert.NotContains(t, strings.Join(Want(lines).Text(), "\n"), "reject")
}

func rulesKeepTheirPromises(t *testing.T, c Chain, all uint32) {
	{
		for _, r := range c.Rules {
			assert.NotContains(t, r.Text, "helper", "the kernel's SIP helper stays off")
			assert.NotContains(t, r.Text, "ttl", "TTL is the kernel's")
			assert.NotContains(t, r.Text, "ecn")
			for i, e := range r.Exprs {
				if !e.Write || e.Key != "mark" {
					continue
				}
				// A mark is written from itself, under a mask that keeps every foreign bit.
				require.GreaterOrEqual(t, i, 2, r.Text)
				mask := r.Exprs[i-1]
				require.Equal(t, "bitwise", mask.Op, r.Text)
				keep, set := number(t, mask.Mask), number(t, mask.Xor)
				assert.Equal(t, ^all, keep&^all, "%s: foreign bits are kept", r.Text)
				assert.Zero(t, set&^all, "%s: foreign bits are not set", r.Text)
			}
		}
	}
}

// number is a register's 32 bits, in host order.
func number(t *testing.T, h string) uint32 {
	b, err := hex.DecodeString(h)
	require.NoError(t, err)
	require.Len(t, b, 4)
	return binary.NativeEndian.Uint32(b)
}

func TestOrderOfClassification(t *testing.T) {
	s := Want(branch())
	first := func(chain, word string) int {
		c, ok := find(s.Chains, chain, chainOf)
		require.True(t, ok, chain)
		for i, r := range c.Rules {
			if strings.Contains(r.Text, word) {
				return i
			}
		}
		t.Fatalf("no %q in %s", word, chain)
		return 0
	}
	for _, chain := range []string{"trusted", "from_voice_tunnel"} {
		assert.Less(t, first(chain, "dport"), first(chain, "dscp"), "%s: ports beat DSCP", chain)
	}
	assert.Less(t, first("trusted", "dscp"), first("trusted", "goto remembered"), "DSCP beats memory")
	assert.Less(t, first("from_voice_tunnel", "dscp"), first("from_voice_tunnel", "ct mark"))
	assert.Less(
		t, first("from_data_lan", "ct mark"), first("from_data_lan", "dscp"),
		"memory beats what is not trusted",
	)
}

func TestDegrades(t *testing.T) {
	in := branch()
	in.Missing = []Feature{FeatureMasquerade, FeatureMSS, FeatureLimit, FeatureFlowLimit}
	text := strings.Join(Want(in).Text(), "\n")
	for _, word := range []string{
		"masquerade", "type nat", "maxseg", "limit rate", "media_flows4", "media_hosts4",
	} {
		assert.NotContains(t, text, word)
	}
	assert.Contains(
		t, text, `iifname @lan oifname @wan ip saddr @nat4 counter name "forward_drop" drop`,
		"what is private does not leave untranslated",
	)
	for _, f := range []Feature{
		FeatureMasquerade, FeatureMSS, FeatureLimit, FeatureNAT, FeatureFlowLimit, FeatureTProxy,
	} {
		assert.NotEqual(t, "unknown feature", f.Cost())
	}
}

func TestNetworksInsideOthersAreLeftOut(t *testing.T) {
	sets := networkSets(
		"n", prefixes("10.1.2.0/24", "10.0.0.0/8", "10.1.0.0/16", "11.0.0.1/32", "2001:db8::1/32"),
	)
	assert.Equal(
		t, "set n4 { type ipv4_addr; flags interval; elements = { 10.0.0.0/8, 11.0.0.1 }; }",
		sets[0].declaration(),
	)
	assert.Equal(
		t, "set n6 { type ipv6_addr; flags interval; elements = { 2001:db8::/32 }; }", sets[1].declaration(),
	)
	assert.Equal(t, "set p { type inet_service; flags interval; elements = { 1-4, 65535 }; }",
		portSet(
			"p", qos.UDP,
			[]qos.PortMatch{
				port(qos.UDP, 3, 4), port(qos.UDP, 65535, 65535), port(qos.UDP, 1, 2), port(qos.TCP, 9, 9),
			},
		).declaration())
}

func TestDiff(t *testing.T) {
	want := Want(branch())
	assert.Empty(t, Diff(want, want))
	assert.Empty(t, Diff(State{}, State{}))
	assert.Equal(t, []Change{{Op: DeleteTable}}, Diff(State{}, want))
	assert.Equal(t, "delete table inet ringway", Diff(State{}, want)[0].String())

	words := func(changes []Change) string {
		var out []string
		for _, c := range changes {
			out = append(out, c.String())
		}
		return strings.Join(out, "\n")
	}
	have := Want(branch())
	h := uint64(0)
	for i := range have.Chains {
		for j := range have.Chains[i].Rules {
			h++
			have.Chains[i].Rules[j].Handle, have.Chains[i].Rules[j].Text = h, ""
		}
	}
	assert.Empty(t, Diff(want, have), "handles and texts are no difference")

	in := branch()
	in.SiteDataNetworks = prefixes("10.2.20.0/24", "2001:db8:2:20::/64", "10.3.20.0/24")
	assert.Equal(t, `flush set inet ringway sites4
add element inet ringway sites4 { 10.2.10.0/24, 10.2.20.0/24, 10.3.20.0/24 }
flush set inet ringway sites_data4
add element inet ringway sites_data4 { 10.2.20.0/24, 10.3.20.0/24 }`, words(Diff(Want(in), have)))

	in = branch()
	in.Peers[0].ClassID = 0x10120
	assert.Equal(t, `delete element inet ringway prio_media4 { 203.0.113.2 . 51820 : 1:110 }
add element inet ringway prio_media4 { 203.0.113.2 . 51820 : 1:120 }`, words(Diff(Want(in), have)))

	// Two peers said to be in one place: the kernel would refuse all of it.
	in.Peers = append(in.Peers, Peer{netip.MustParseAddrPort("[::ffff:203.0.113.2]:51820"), qos.Media, 0x10130},
		Peer{netip.MustParseAddrPort("[fe80::1%wan0]:51820"), qos.Media, 0x10130})
	assert.Equal(t, `delete element inet ringway prio_media4 { 203.0.113.2 . 51820 : 1:110 }
add element inet ringway prio_media4 { 203.0.113.2 . 51820 : 1:120 }
add element inet ringway prio_media6 { fe80::1 . 51820 : 1:130 }`, words(Diff(Want(in), have)))

	in = branch()
	in.Classes[3].DSCP = []qos.DSCP{8}
	for _, c := range Diff(Want(in), have) {
		assert.Equal(t, DeleteRule, c.Op)
	}

	gone := State{
		Present: true, Counters: []string{"old"}, Sets: []Set{{Name: "old", Type: "ifname"}},
		Chains: []Chain{{Name: "old"}, {Name: "older", Type: "filter", Hook: "input", Policy: "accept"}},
	}
	assert.Equal(t, `flush chain inet ringway old
flush chain inet ringway older
delete chain inet ringway old
delete chain inet ringway older
delete set inet ringway old
delete counter inet ringway old`, words(Diff(State{Present: true}, gone)))
	typed := State{Present: true, Sets: []Set{{Name: "old", Type: "ipv4_addr"}}}
	assert.Equal(t, DeleteTable, Diff(typed, gone)[0].Op, "a set that changes its type takes the table with it")
}

func TestStateSurvivesJSON(t *testing.T) {
	want := Want(branch())
	b, err := json.Marshal(want)
	require.NoError(t, err)
	var back State
	require.NoError(t, json.Unmarshal(b, &back))
	assert.Equal(t, want, back)
}

func TestNamesOfDevices(t *testing.T) {
	assert.Equal(t, "lan0.20", chainName("lan0.20"))
	assert.Equal(t, "lan/2d0", chainName("lan-0"))
	assert.NotEqual(t, chainName("a-b"), chainName("a_b"))
}

// Without dynamic sets the ruleset is what it was (TestText); with holes, packets look for one before
// conntrack is asked.
func TestHoles(t *testing.T) {
	in := branch()
	in.Dynamic = append(HoleSets("calls", 512, 64, 2*time.Minute, in.SiteDataNetworks),
		DynamicSet{Name: "banned4", Owner: "abuse", Type: "ipv4_addr", MaxElements: 100, MaxLife: time.Hour})
	text := strings.Join(Want(in).Text(), "\n")
	for _, line := range []string{
		"	set media4 { type ipv4_addr . ipv4_addr . inet_service; flags timeout; timeout 120s; size 1024; }",
		"	set media6_64 { type ipv6_addr . ipv6_addr . inet_service; flags timeout; timeout 120s; size 128; }",
		"	set banned4 { type ipv4_addr; flags timeout; timeout 3600s; size 200; }",
		"		meta l4proto udp jump holes\n		ct state established,related accept",
		"	chain holes {\n		ip saddr . ip daddr . udp dport @media4 accept\n" +
			"		ip saddr & 255.255.255.0 . ip daddr . udp dport @media4_24 accept\n" +
			"		ip6 saddr . ip6 daddr . udp dport @media6 accept\n" +
			"		ip6 saddr & ffff:ffff:ffff:ffff:: . ip6 daddr . udp dport @media6_64 accept\n	}",
	} {
		assert.Contains(t, text, line)
	}

	more := in
	more.Dynamic = slices.Clone(in.Dynamic)
	more.Dynamic[0].MaxElements = 1024
	assert.Equal(
		t, DeleteTable, Diff(Want(more), Want(in))[0].Op, "a set with another bound takes the table with it",
	)
	assert.NotEqual(t, DeleteTable, Diff(Want(in), Want(branch()))[0].Op, "one that comes does not")
}

func TestHoleSets(t *testing.T) {
	networks := prefixes("10.2.20.0/24", "10.2.30.0/24", "10.4.0.0/16", "10.5.0.1/32", "0.0.0.0/0", "2001:db8::/48")
	var names []string
	for _, d := range HoleSets("calls", 512, 64, time.Minute, networks) {
		require.NoError(t, d.Check())
		names = append(names, d.Name)
	}
	assert.Equal(t, []string{"media4", "media4_24", "media4_16", "media6", "media6_48"}, names)
	for source, want := range map[string]string{
		"10.2.20.2/32": "media4", "10.2.20.0/24": "media4_24", "2001:db8::1/128": "media6", "2001:db8::/48": "media6_48",
	} {
		assert.Equal(t, want, HoleSet(netip.MustParsePrefix(source)))
	}
}

func TestDynamicSetCheck(t *testing.T) {
	good := DynamicSet{
		Name: "s", Owner: "calls", Type: "ipv4_addr . inet_service", MaxElements: 1, MaxLife: time.Second,
	}
	require.NoError(t, good.Check())
	for text, spoil := range map[string]func(*DynamicSet){
		`dynamic set "s": name, owner and key type must be set`: func(d *DynamicSet) { d.Owner = "" },
		"dynamic set s: a bound of 0 elements (allowed: 1 to 65536)": func(d *DynamicSet) {
			d.MaxElements = 0
		},
		"dynamic set s: a longest life of 1.5s (allowed: 1s to 168h, whole seconds)": func(d *DynamicSet) {
			d.MaxLife = 1500 * time.Millisecond
		},
		"dynamic set s: a key with 33 bits of the source address (allowed: 0 to 32)": func(d *DynamicSet) {
			d.SourceBits = 33
		},
	} {
		bad := good
		spoil(&bad)
		assert.EqualError(t, bad.Check(), text)
	}
}
