package routing_test

import (
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/routing"
)

var update = flag.Bool("update", false, "write the golden files")

func pfx(s ...string) (out []netip.Prefix) {
	for _, p := range s {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

func addr(s ...string) (out []netip.Addr) {
	for _, a := range s {
		out = append(out, netip.MustParseAddr(a))
	}
	return out
}

func branch() routing.Input {
	return routing.Input{
		WANs: []routing.Upstream{{
			Interface: "wan0",
			Addresses: pfx("198.51.100.2/24", "2001:db8:1::2/64"), Gateways: addr("198.51.100.1", "fe80::1"),
		}},
		LANs: []routing.LAN{
			{Interface: "lan0", VLAN: 20, Addresses: pfx("10.1.10.1/24", "fd01:10::1/64")},
			{Interface: "data0", Addresses: pfx("10.1.20.1/24")},
		},
		Tunnels: []routing.TunnelDevice{
			{Class: "voice", Name: "rw-voice", MTU: 1420, TxQueueLen: 50, GSOMax: 3000},
			{Class: "data", Name: "rw-data", MTU: 1000},
		},
		Sites: []routing.SiteRoute{
			{Name: "munich", Prefixes: pfx("10.2.10.0/24", "fd02:10::/64"), VoiceDevice: "rw-voice", DataDevice: "rw-data"},
			{Name: "plain", Prefixes: pfx("10.3.0.0/16"), VoiceDevice: "rw-data", DataDevice: "rw-data", DataMTU: 900},
		},
		Marks: routing.Marks{OuterValues: []uint32{0x2000, 0x4000}, OuterMask: 0x6000,
			VoiceValues: []uint32{0x1200, 0x1400}, DataValues: []uint32{0x1600, 0x1800}, ClassMask: 0x1e00},
		VoiceSource: addr("10.1.10.1", "fd01:10::1"), DataSource: addr("10.1.20.1"),
	}
}

// delegated has parts of prefixes of two WANs, one of them on its way out.
func delegated() routing.Input {
	in := twoWANs()
	in.WANs[1].DHCP6 = true
	in.Advertised = map[string]routing.Advertised{
		"wan1": {Addresses: pfx("2001:db8:ff::100/128"), Gateway: addr("fe80::9")[0]},
	}
	in.Delegated = map[string][]routing.Delegation{"wan1": {
		{Prefix: pfx("2001:db8:5600::/56")[0]}, {Prefix: pfx("2001:db8:7700::/56")[0], Deprecated: true},
	}}
	in.LANs[1].Delegated = pfx("2001:db8:5600:2::1/64", "2001:db8:7700:2::1/64")
	return in
}

func twoWANs() routing.Input {
	in := branch()
	in.WANs = append(in.WANs,
		routing.Upstream{Interface: "wan1", DHCP: true},
		routing.Upstream{Interface: "wan2", Addresses: pfx("203.0.113.7/32"), Gateways: addr("203.0.113.1")})
	lease := routing.Lease{Address: netip.MustParsePrefix("192.0.2.50/24"), Gateways: addr("192.0.2.1")}
	in.Leases = map[string]routing.Lease{"wan1": lease}
	in.LANs[0].VLAN, in.SoftirqBudget = 0, 16
	return in
}

// bare is a machine that has the cards and the tunnel devices, and nothing on them.
func bare(want routing.State) (have routing.State) {
	for _, l := range want.Links {
		if l.VLAN == 0 {
			have.Links = append(have.Links, routing.Link{Name: l.Name})
		}
	}
	return have
}

func TestPlans(t *testing.T) {
	first := routing.Want(branch())
	in := branch()
	in.Sites = in.Sites[:1]
	in.Sites[0].DataDevice = "rw-voice" // one tunnel from now on
	in.LANs[1].Addresses = pfx("10.1.20.2/24")
	in.DataSource = addr("10.1.20.2")
	running := model{t: t, State: first}.State
	stopped := bare(first)
	stopped.Links[0].Up = true
	stopped.Sysctls = []routing.Sysctl{
		{Key: "net/ipv4/conf/all/accept_redirects"},
		{Key: "net/ipv4/conf/wan0/promote_secondaries"},
		{Key: "net/ipv4/ip_forward"},
	}
	noTunnel := bare(first)
	noTunnel.Links = slices.DeleteFunc(noTunnel.Links, func(l routing.Link) bool { return l.Name == "rw-voice" })
	noTunnel.NoIPv6 = true
	relayed := branch()
	relayed.Marks.Relayed, relayed.Marks.RelayedMask = 0x8000, 0x8000
	withRelay := model{t: t, State: routing.Want(relayed)}.State
	for name, text := range map[string][]string{
		"relay-comes":           routing.Text(routing.Diff(routing.Want(relayed), running)),
		"relay-goes":            routing.Text(routing.Diff(first, withRelay)),
		"state":                 first.Text(),
		"state-two-wans":        routing.Want(twoWANs()).Text(),
		"state-delegated":       routing.Want(delegated()).Text(),
		"reload":                routing.Text(routing.Diff(routing.Want(in), running)),
		"stop":                  routing.Text(routing.Diff(stopped, running)),
		"no-voice-tunnel-no-v6": routing.Text(routing.Diff(first, noTunnel)),
	} {
		t.Run(name, func(t *testing.T) {
			got := strings.Join(text, "\n") + "\n"
			file := filepath.Join("testdata", name+".txt")
			if *update {
				require.NoError(t, os.WriteFile(file, []byte(got), 0o644))
			}
			want, err := os.ReadFile(file)
			require.NoError(t, err)
			assert.Equal(t, string(want), got)
		})
	}
}

func TestStateSurvivesJSON(t *testing.T) {
	want := routing.Want(twoWANs())
	b, err := json.Marshal(want)
	require.NoError(t, err)
	var got routing.State
	require.NoError(t, json.Unmarshal(b, &got))
	assert.Equal(t, want, got)
	assert.Empty(t, routing.Diff(got, want))
}

func TestMissing(t *testing.T) {
	want := routing.Want(branch())
	have := routing.State{Links: []routing.Link{
		{Name: "wan0"}, {Name: "lan0.20", Parent: "lan0", VLAN: 30}, {Name: "rw-voice"}, {Name: "rw-data"},
	}}
	assert.Equal(t, []string{
		"data0: no such network device",
		"lan0: no such network device",
		"lan0.20: exists, but is not VLAN 20 of lan0",
	}, routing.Missing(want, have))
	have.Links = have.Links[:1]
	assert.Contains(t, routing.Missing(want, have), "lan0.20: its network device lan0 does not exist")
}

// A sysctl of the machine that is no longer wanted is restored at once; those of a device wait for the stop.
func TestWithRestored(t *testing.T) {
	with, without := branch(), branch()
	with.SoftirqBudget = 16
	without.WANs, without.LANs = without.WANs[:1], without.LANs[:1]
	last, want := routing.Want(with), routing.Want(without)
	before := routing.State{Sysctls: []routing.Sysctl{
		{Key: "net/core/netdev_budget", Value: 300},
		{Key: "net/ipv4/conf/data0/rp_filter", Value: 2},
		{Key: "net/ipv4/ip_forward"},
	}}
	running := model{t: t, State: last}.State
	changes := routing.Text(routing.Diff(want.WithRestored(last, before), running))
	assert.Contains(t, changes, "sysctl -q -w net.core.netdev_budget=300")
	assert.NotContains(t, changes, "sysctl -q -w net.ipv4.conf.data0.rp_filter=2")
	assert.Equal(t, want, want.WithRestored(want, before))
	assert.Equal(t, last, last.WithRestored(last, before))
	assert.Equal(t, want, want.WithRestored(last, routing.State{}), "it is not there, as in a network namespace")
}

// The recorded state is extended by an interface that a later config uses for the first time.
func TestExtend(t *testing.T) {
	before := routing.State{
		Links:   []routing.Link{{Name: "wan0", Up: true}},
		Sysctls: []routing.Sysctl{{Key: "net/ipv4/ip_forward"}},
	}
	now := routing.State{
		Links: []routing.Link{
			{Name: "lan0.20", Parent: "lan0", VLAN: 20, Own: true, Up: true}, {Name: "wan0"}, {Name: "wan1"},
		},
		Addresses: []routing.Address{
			{Device: "wan0", Prefix: pfx("192.0.2.1/24")[0]},
			{Device: "wan1", Prefix: pfx("192.0.2.2/24")[0]},
			{Device: "wan1", Prefix: pfx("192.0.2.3/24")[0], Protocol: routing.Protocol},
		},
		Rules: []routing.Rule{{Family: 4, Priority: 5200, Protocol: routing.Protocol}},
		Sysctls: []routing.Sysctl{
			{Key: "net/ipv4/conf/lan0.20/rp_filter", Value: 1},
			{Key: "net/ipv4/conf/wan1/rp_filter", Value: 2},
			{Key: "net/ipv4/ip_forward", Value: 1},
		},
	}
	assert.Equal(t, routing.State{
		Links:     []routing.Link{{Name: "wan0", Up: true}, {Name: "wan1"}},
		Addresses: []routing.Address{{Device: "wan1", Prefix: pfx("192.0.2.2/24")[0]}},
		Sysctls:   []routing.Sysctl{{Key: "net/ipv4/conf/wan1/rp_filter", Value: 2}, {Key: "net/ipv4/ip_forward"}},
	}, before.Extend(now))
}

// model is a kernel that makes and refuses changes as the real one does.
type model struct {
	t fataler
	routing.State
}

type fataler interface{ Fatalf(string, ...any) }

func (m *model) link(name string) *routing.Link {
	for i := range m.Links {
		if m.Links[i].Name == name {
			return &m.Links[i]
		}
	}
	return nil
}

func (m *model) mustUp(c routing.Change, device string) {
	if l := m.link(device); l == nil || !l.Up {
		m.t.Fatalf("%s: %s is not up", c, device)
	}
}

func (m *model) apply(c routing.Change) {
	switch {
	case c.Link != nil:
		m.applyLink(c)
	case c.Address != nil:
		i := slices.IndexFunc(m.Addresses, func(a routing.Address) bool {
			return a.Device == c.Address.Device && a.Prefix == c.Address.Prefix
		})
		switch {
		case c.Verb == routing.Add && i >= 0 || c.Verb == routing.Delete && i < 0:
			m.t.Fatalf("%s: cannot be", c)
		case c.Verb == routing.Add:
			m.mustUp(c, c.Address.Device)
			m.Addresses = append(m.Addresses, *c.Address)
		default:
			m.Addresses = slices.Delete(m.Addresses, i, i+1)
		}
	case c.Route != nil:
		m.applyRoute(c)
	case c.Rule != nil:
		i := slices.Index(m.Rules, *c.Rule)
		switch {
		case c.Verb == routing.Add && i >= 0 || c.Verb == routing.Delete && i < 0:
			m.t.Fatalf("%s: cannot be", c)
		case c.Verb == routing.Add:
			m.Rules = append(m.Rules, *c.Rule)
		default:
			m.Rules = slices.Delete(m.Rules, i, i+1)
		}
	case c.Sysctl != nil:
		m.set(c.Sysctl.Key, c.Sysctl.Value)
		if c.Sysctl.Key == "net/ipv4/ip_forward" { // inet_forward_change
			m.set("net/ipv4/conf/all/accept_redirects", 1-c.Sysctl.Value)
		}
	}
}

func (m *model) set(key string, v int) {
	for i := range m.Sysctls {
		if m.Sysctls[i].Key == key {
			m.Sysctls[i].Value = v
			return
		}
	}
	m.Sysctls = append(m.Sysctls, routing.Sysctl{Key: key, Value: v})
}

func (m *model) applyLink(c routing.Change) {
	l := m.link(c.Link.Name)
	if (l == nil) != (c.Verb == routing.Add) {
		m.t.Fatalf("%s: cannot be", c)
	}
	switch {
	case c.Verb == routing.Add:
		if m.link(c.Link.Parent) == nil {
			m.t.Fatalf("%s: no parent", c)
		}
		m.Links = append(m.Links, routing.Link{Name: c.Link.Name, Parent: c.Link.Parent, VLAN: c.Link.VLAN, Own: true})
	case c.Verb == routing.Delete:
		name := c.Link.Name
		m.Links = slices.DeleteFunc(m.Links, func(l routing.Link) bool { return l.Name == name })
		m.flush(name)
		m.Sysctls = slices.DeleteFunc(m.Sysctls, func(s routing.Sysctl) bool {
			return strings.Contains(s.Key, "/"+name+"/")
		})
	case c.Down:
		l.Up = false
		m.flush(c.Link.Name)
	case c.Link.MTU != 0:
		l.MTU = c.Link.MTU
	case c.Link.TxQueueLen != 0:
		l.TxQueueLen = c.Link.TxQueueLen
	case c.Link.GSOMax != 0:
		l.GSOMax = c.Link.GSOMax
	default:
		l.Up = true
	}
}

func (m *model) flush(device string) {
	m.Addresses = slices.DeleteFunc(m.Addresses, func(a routing.Address) bool { return a.Device == device })
	m.Routes = slices.DeleteFunc(m.Routes, func(r routing.Route) bool { return r.Device == device })
}

func (m *model) applyRoute(c routing.Change) {
	r := *c.Route
	i := slices.IndexFunc(m.Routes, func(h routing.Route) bool {
		return h.Table == r.Table && h.Prefix == r.Prefix && h.Metric == r.Metric
	})
	switch {
	case c.Verb == routing.Delete:
		if i = slices.Index(m.Routes, r); i < 0 {
			m.t.Fatalf("%s: cannot be", c)
		}
		m.Routes = slices.Delete(m.Routes, i, i+1)
		return
	case (c.Verb == routing.Add) == (i >= 0):
		m.t.Fatalf("%s: cannot be", c)
	}
	if r.Device != "" {
		m.mustUp(c, r.Device)
	}
	own := slices.ContainsFunc(m.Addresses, func(a routing.Address) bool { return a.Prefix.Addr() == r.Source })
	if r.Source.IsValid() && !own {
		m.t.Fatalf("%s: the source is not an address of this machine", c)
	}
	if i >= 0 {
		m.Routes = slices.Delete(m.Routes, i, i+1)
	}
	m.Routes = append(m.Routes, r)
}

// way returns where the policy sends a packet to the address: a device, or "" for nowhere.
func (m *model) way(to netip.Addr, mark uint32, local bool) string {
	rules := slices.Clone(m.Rules)
	slices.SortStableFunc(rules, func(a, b routing.Rule) int { return a.Priority - b.Priority })
	family := 4
	if to.Is6() {
		family = 6
	}
	rules = append(rules, routing.Rule{Family: family, Table: routing.TableMain})
	for _, rule := range rules {
		if rule.Family != family || mark&rule.Mask != rule.Mark || rule.Input == "lo" && !local {
			continue
		}
		best := routing.Route{}
		for _, r := range m.Routes {
			if r.Table == rule.Table && r.Prefix.Contains(to) && (best.Type == "" || r.Prefix.Bits() > best.Prefix.Bits()) {
				best = r
			}
		}
		switch best.Type {
		case routing.Unicast:
			return best.Device
		case routing.Unreachable:
			return ""
		}
	}
	return ""
}

// What the kernel does not report is compared by looking, with the values that are allowed besides the wanted one.
func TestUnmetSysctls(t *testing.T) {
	want := []routing.Sysctl{{Key: "a", Value: 1}, {Key: "b", Value: 0, UpTo: 1}, {Key: "gone", Value: 1}}
	have := []routing.Sysctl{{Key: "a", Value: 0}, {Key: "b", Value: 1}}
	assert.Equal(t, want[:1], routing.Unmet(want, have))

	var unheard []string
	for _, c := range routing.Want(branch()).Sysctls {
		if !c.Notified() {
			unheard = append(unheard, c.Key)
		}
	}
	for _, key := range unheard {
		assert.NotContains(t, key, "rp_filter")
		assert.NotContains(t, key, "forward")
	}
	assert.Contains(t, unheard, "net/ipv4/conf/rw-voice/src_valid_mark")
}

func TestSubnets(t *testing.T) {
	n := routing.Subnet{WAN: "wan0", Number: 0x12, Suffix: addr("::5")[0]}
	a, ok := n.In(pfx("2001:db8:5600::/56")[0])
	assert.True(t, ok)
	assert.Equal(t, "2001:db8:5600:12::5/64", a.String())
	for _, short := range []string{"2001:db8:5600:10::/60", "2001:db8:5600::/64", "2001:db8:5600::/80"} {
		_, ok = n.In(pfx(short)[0])
		assert.False(t, ok, short)
	}
	n.Number = 0
	a, ok = n.In(pfx("2001:db8:5600:99::/64")[0])
	assert.True(t, ok)
	assert.Equal(t, "2001:db8:5600:99::5/64", a.String())
}
