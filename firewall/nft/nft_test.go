package nft

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/firewall"
	"ringway/qos"
	"ringway/test/netnstest"
)

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func classes() []qos.Class {
	port := func(p qos.Protocol, n uint16) qos.PortMatch { return qos.PortMatch{Protocol: p, Low: n, High: n} }
	return []qos.Class{
		{
			Name: qos.Media, DSCP: []qos.DSCP{46}, Outer: 46, Share: 30, Limit: 20 * time.Millisecond,
			FlowLimit: 256 * qos.Kbit,
		},
		{
			Name: qos.Signalling, DSCP: []qos.DSCP{24, 40, 26}, Outer: 24, Share: 10,
			Ports: []qos.PortMatch{port(qos.UDP, 5060), port(qos.TCP, 5060), port(qos.TCP, 5061)},
		},
		{
			Name: qos.Data, Outer: 0, Share: 50,
			Ports: []qos.PortMatch{
				port(qos.UDP, 67), port(qos.UDP, 123), port(qos.TCP, 80), port(qos.TCP, 443),
			},
		},
		{Name: qos.Background, DSCP: []qos.DSCP{8, 1}, Outer: 8, Share: 5},
	}
}

// branch is the plan's input for a whole branch, both families, shaped.
func branch() firewall.Input {
	return firewall.Input{
		WANs:  []string{"wan0"},
		DHCP:  []string{"wan0"},
		Voice: []firewall.LAN{{Device: "voice0", Networks: prefixes("10.1.10.0/24", "2001:db8:1:10::/64")}},
		Data:  []firewall.LAN{{Device: "data0", Networks: prefixes("10.1.20.0/24", "2001:db8:1:20::/64")}},
		Tunnels: []firewall.Tunnel{
			{Class: "voice", Device: "rw-voice", ListenPort: 51820, MTU: 1420},
			{Class: "data", Device: "rw-data", ListenPort: 51821, MTU: 1420},
		},
		SiteVoiceNetworks: prefixes("10.2.10.0/24", "2001:db8:2:10::/64"),
		SiteDataNetworks:  prefixes("10.2.20.0/24", "10.2.21.0/24", "2001:db8:2:20::/64"),
		Classes:           classes(),
		Slow:              []firewall.SlowWAN{{Device: "wan0", Sent: 1198, Received: 1400}},
		Priorities: []firewall.Priority{
			{
				WAN: "wan0", Class: qos.Media, ClassID: 0x10010,
			}, {WAN: "wan0", Class: qos.Signalling, ClassID: 0x10020},
			{
				WAN: "wan0", Class: qos.Data, ClassID: 0x10030,
			}, {WAN: "wan0", Class: qos.Background, ClassID: 0x10040},
		},
		Downlink: firewall.Downlink{
			LANs: []string{"data0", "voice0"}, CallsID: qos.CallsID,
			WANs: []firewall.WANQueue{{WAN: "wan0", ClassID: 0x20010}},
		},
		Peers: []firewall.Peer{
			{Endpoint: netip.MustParseAddrPort("203.0.113.2:51820"), Class: qos.Media, ClassID: 0x10110},
			{Endpoint: netip.MustParseAddrPort("[2001:db8:f::2]:51820"), Class: qos.Media, ClassID: 0x10110},
		},
	}
}

func observeIn(t *testing.T, ns *netnstest.NS) firewall.State {
	t.Helper()
	var s firewall.State
	require.NoError(t, ns.Do(func() (err error) { s, err = Observe(); return }))
	return s
}

func applyIn(t *testing.T, ns *netnstest.NS, want firewall.State) []firewall.Change {
	t.Helper()
	changes := firewall.Diff(want, observeIn(t, ns))
	require.NoError(t, ns.Do(func() error { return (&Ruleset{}).Apply(changes) }))
	return changes
}

func loadText(t *testing.T, ns *netnstest.NS, lines []string) {
	t.Helper()
	f := t.TempDir() + "/ruleset.nft"
	require.NoError(t, os.WriteFile(f, []byte(strings.Join(lines, "\n")+"\n"), 0o600))
	_, err := ns.Try("nft", "-f", f)
	require.NoError(t, err)
}

// bare is a state without what the kernel or the reader adds: handles and texts.
func bare(s firewall.State) string {
	for i := range s.Chains {
		for j := range s.Chains[i].Rules {
			s.Chains[i].Rules[j].Handle, s.Chains[i].Rules[j].Text = 0, ""
		}
	}
	b, _ := json.MarshalIndent(s, "", " ")
	return string(b)
}

// The oracle: nft(8) reads the plan's text in one namespace, the adapter applies the plan in
// another; both read back as the same expressions and values, and as the plan itself.
func TestTextAndApplyMakeTheSame(t *testing.T) {
	t.Parallel()
	flat := branch()
	flat.SingleSiteNetworks = prefixes("10.9.0.0/16")
	flat.Data[0].Device = "lan-0.20"
	flat.LocalServices = []qos.PortMatch{{Protocol: qos.TCP, Low: 22, High: 22}}
	edges := branch() // intervals that touch, and that end where numbers end
	edges.SiteDataNetworks = prefixes("0.0.0.0/1", "128.0.0.0/1", "::/0")
	edges.SiteVoiceNetworks = prefixes("255.255.255.255/32", "255.255.255.254/32", "10.0.0.0/8")
	edges.Classes[0].Ports = []qos.PortMatch{
		{Protocol: qos.UDP, Low: 1, High: 65535}, {Protocol: qos.TCP, Low: 65535, High: 65535},
	}
	behind := behindRouter()
	behind.Parents = []string{"lan0", "lan1"}
	calls := branch()
	calls.Dynamic = dynamicSets()
	enforced := signalled(firewall.Enforce)
	enforced.Signalling.Unread = true
	media := withMediaPorts(branch())
	media.SiteFlatNetworks = prefixes("10.9.0.0/16", "2001:db8:9::/48")
	media.SingleSiteNetworks = media.SiteFlatNetworks
	required := terminating()
	required.Signalling.Required = prefixes("10.1.10.0/24", "2001:db8:2:10::/64")
	tftp := withMediaPorts(signalled(firewall.Enforce))
	for name, in := range map[string]firewall.Input{
		"branch": branch(), "empty": {}, "single": flat, "edges": edges, "dynamic sets": calls,
		"behind a router": behind,
		"observed":        signalled(firewall.Observe), "enforced": enforced, "media": media, "tftp": tftp,
		"terminated": required,
	} {
		t.Run(name, func(t *testing.T) {
			want := firewall.Want(in)
			byText, byCalls := netnstest.New(t), netnstest.New(t)
			loadText(t, byText, want.Text())
			applyIn(t, byCalls, want)
			text, calls := observeIn(t, byText), observeIn(t, byCalls)
			assert.Empty(t, firewall.Diff(want, calls), "applied twice")
			assert.Empty(t, firewall.Diff(want, text), "nft's own reading of the text is the plan")
			assert.Equal(t, bare(text), bare(calls))
			assert.Equal(t, listing(t, byText), listing(t, byCalls))
		})
	}
}

// listing is `nft -j list ruleset` without handles and without maps' values, whose byte order
// the library does not declare (they are compared raw above).
func listing(t *testing.T, ns *netnstest.NS) string {
	var top struct {
		Nftables []map[string]map[string]any `json:"nftables"`
	}
	require.NoError(t, json.Unmarshal([]byte(ns.Run("nft", "-j", "list", "ruleset")), &top))
	var out []string
	for _, obj := range top.Nftables {
		for kind, o := range obj {
			delete(o, "handle")
			if kind == "map" {
				delete(o, "elem")
			}
			if kind == "rule" {
				// How a classid is printed depends on declared byte order only for maps.
				delete(o, "index")
			}
			b, err := json.Marshal(o)
			require.NoError(t, err)
			// An SSRC is a mark to the kernel, where nft would say integer (elements.go).
			text := strings.ReplaceAll(string(b), `"mark"]`, `"integer"]`)
			out = append(out, fmt.Sprint(kind, " ", text))
		}
	}
	return strings.Join(out, "\n")
}

// What `plan` prints are commands: nft(8) takes them, one difference as one file, and the result is the plan.
func TestChangesAreCommands(t *testing.T) {
	t.Parallel()
	ns := netnstest.New(t)
	next := branch()
	next.SiteDataNetworks = next.SiteDataNetworks[1:]
	next.Classes[1].Ports = next.Classes[1].Ports[:1]
	next.Classes[3].DSCP = next.Classes[3].DSCP[:1]
	next.Tunnels[1].MTU = 1300
	next.Peers = next.Peers[1:]
	plain := branch()
	plain.Peers = nil // the maps and what asks them come and go
	next.WANs = append(next.WANs, "wan1")
	next.Voice = append(next.Voice, firewall.LAN{Device: "voice1", Networks: prefixes("10.1.30.0/24")})
	next.Missing = []firewall.Feature{firewall.FeatureMasquerade}
	for _, want := range []firewall.State{
		firewall.Want(branch()), firewall.Want(next), firewall.Want(plain), firewall.Want(branch()),
		firewall.Want(signalled(firewall.Observe)), firewall.Want(signalled(firewall.Enforce)),
		firewall.Want(branch()), firewall.Want(firewall.Input{}), {},
	} {
		changes := firewall.Diff(want, observeIn(t, ns))
		require.NotEmpty(t, changes)
		var lines []string
		for _, c := range changes {
			lines = append(lines, c.String())
		}
		loadText(t, ns, lines)
		assert.Empty(t, firewall.Diff(want, observeIn(t, ns)))
	}
	// And the same steps by the adapter.
	for _, want := range []firewall.State{
		firewall.Want(branch()), firewall.Want(next), firewall.Want(plain), firewall.Want(branch()),
		firewall.Want(signalled(firewall.Observe)), firewall.Want(signalled(firewall.Enforce)),
		firewall.Want(branch()), firewall.Want(firewall.Input{}), {},
	} {
		require.NotEmpty(t, applyIn(t, ns, want))
		assert.Empty(t, firewall.Diff(want, observeIn(t, ns)))
	}
}

func TestATransactionIsAllOrNothing(t *testing.T) {
	t.Parallel()
	ns := netnstest.New(t)
	applyIn(t, ns, firewall.Want(branch()))
	before := observeIn(t, ns)
	err := ns.Do(func() error {
		return (&Ruleset{}).Apply([]firewall.Change{
			{Op: firewall.FlushChain, Name: "egress_wan"},
			{
				Op: firewall.AddRule, Name: "egress_wan",
				Rule: firewall.Rule{Exprs: []firewall.Expr{{Op: "verdict", Key: "goto", Name: "nowhere"}}},
			},
		})
	})
	require.ErrorContains(
		t, err, "apply 2 changes to table inet ringway in one transaction (nothing was changed)",
	)
	assert.Equal(t, bare(before), bare(observeIn(t, ns)))
}

// A hub with many sites: sets grow, rules do not, and the transaction still fits.
func TestManySites(t *testing.T) {
	t.Parallel()
	ns := netnstest.New(t)
	in := branch()
	for i := range 2000 {
		in.SiteVoiceNetworks = append(
			in.SiteVoiceNetworks,
			netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(16 + i/256), byte(i), 0}), 25),
		)
		in.SiteDataNetworks = append(
			in.SiteDataNetworks,
			netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(16 + i/256), byte(i), 128}), 25),
		)
		in.Peers = append(
			in.Peers,
			firewall.Peer{
				Endpoint: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i / 256), byte(i)}), 51820),
				Class:    qos.Media, ClassID: 0x10110,
			},
		)
	}
	want := firewall.Want(in)
	applyIn(t, ns, want)
	assert.Empty(t, firewall.Diff(want, observeIn(t, ns)))
	rules := func(s firewall.State) (n int) {
		for _, c := range s.Chains {
			n += len(c.Rules)
		}
		return
	}
	assert.Equal(t, rules(firewall.Want(branch())), rules(want))
	applyIn(t, ns, firewall.Want(branch()))
	assert.Empty(t, firewall.Diff(firewall.Want(branch()), observeIn(t, ns)))
}

// What somebody changed by hand comes back: a rule, an element, the whole table switched off.
func TestRepairs(t *testing.T) {
	t.Parallel()
	ns := netnstest.New(t)
	want := firewall.Want(branch())
	applyIn(t, ns, want)
	for _, harm := range []string{
		"insert rule inet ringway egress_wan accept",
		"flush chain inet ringway egress_wan",
		"delete element inet ringway sites4 { 10.2.10.0/24 }",
		"add element inet ringway wan { \"eth9\" }",
		"add chain inet ringway forward { policy accept; }",
		"add rule inet ringway input_wan ip dscp vmap { ef : accept }",
		"add table inet ringway { flags dormant; }",
	} {
		ns.Run("nft", harm)
		require.NotEmpty(t, applyIn(t, ns, want), harm)
		assert.Empty(t, firewall.Diff(want, observeIn(t, ns)), harm)
	}
}
