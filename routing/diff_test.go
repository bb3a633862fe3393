package routing_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"pgregory.net/rapid"

	"ringway/routing"
)

func pick[T any](t *rapid.T, label string, from ...T) T {
	return rapid.SampledFrom(from).Draw(t, label)
}

// drawInput draws an input from few values, so that two of them have much in common.
func drawInput(t *rapid.T) routing.Input {
	in := branch()
	in.WANs, in.LANs, in.Tunnels, in.Sites = nil, nil, nil, nil
	for i := range rapid.IntRange(1, 2).Draw(t, "wans") {
		w := routing.Upstream{Interface: fmt.Sprintf("wan%d", i), DHCP: rapid.Bool().Draw(t, "dhcp")}
		n := rapid.IntRange(2, 4).Draw(t, "wan address")
		w.Addresses = pfx(fmt.Sprintf("198.51.%d.%d/24", 100+i, n), fmt.Sprintf("2001:db8:%d::%d/64", i, n))
		w.Gateways = addr(fmt.Sprintf("198.51.%d.1", 100+i), pick(t, "gateway6", "fe80::1", "2001:db8:99::1"))
		if w.DHCP {
			w.Addresses, w.Gateways = nil, nil
			if rapid.Bool().Draw(t, "leased") {
				lease := routing.Lease{Address: netip.MustParsePrefix(fmt.Sprintf("192.0.2.%d/24", n)), Gateways: addr("192.0.2.1")}
				in.Leases = map[string]routing.Lease{w.Interface: lease}
			}
		}
		in.WANs = append(in.WANs, w)
	}
	for i, name := range []string{"lan0", "lan1"} {
		n := rapid.IntRange(1, 3).Draw(t, "lan address")
		in.LANs = append(in.LANs, routing.LAN{Interface: name, VLAN: pick[uint16](t, "vlan", 0, 0, 20, 30),
			Addresses: pfx(fmt.Sprintf("10.1.%d.%d/24", i, n), fmt.Sprintf("fd01:%d::%d/64", i, n))})
	}
	if rapid.Bool().Draw(t, "relay") {
		in.Marks.Relayed, in.Marks.RelayedMask = 0x8000, 0x8000
	}
	in.VoiceSource, in.DataSource = routing.FirstAddresses(in.LANs[:1]), routing.FirstAddresses(in.LANs[1:])
	in.Tunnels = []routing.TunnelDevice{
		{Class: "voice", Name: "rw-voice", MTU: pick(t, "mtu", 1420, 1380, 1000)},
		{
			Class: "data", Name: "rw-data", MTU: 1420,
			TxQueueLen: pick(t, "qlen", 0, 50), GSOMax: pick(t, "gso", 0, 3000),
		},
	}
	for i := range 4 {
		if !rapid.Bool().Draw(t, "site") {
			continue
		}
		p := pfx(fmt.Sprintf("10.2.%d.0/24", i), fmt.Sprintf("fd02:%d::/64", i))
		in.Sites = append(in.Sites, routing.SiteRoute{Name: fmt.Sprint(i), Prefixes: p,
			VoiceDevice: pick(t, "voice", "rw-voice", "rw-data"),
			DataDevice:  pick(t, "data", "rw-voice", "rw-data"),
			DataMTU:     pick(t, "data mtu", 0, 1280, 1300)})
	}
	return in
}

// TestDiffLeadsThere: from any state that a machine can be in to any wanted one, the kernel refuses no
// change, and at no step can a packet for a site that is in both configs leave but through a tunnel.
func TestDiffLeadsThere(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := model{t: t}
		for _, d := range []string{"wan0", "wan1", "lan0", "lan1", "rw-voice", "rw-data"} {
			if rapid.IntRange(0, 9).Draw(t, d) > 0 {
				m.Links = append(m.Links, routing.Link{Name: d, Up: rapid.Bool().Draw(t, d+" up")})
			}
		}
		m.Sysctls = []routing.Sysctl{{Key: "net/ipv4/ip_forward", Value: rapid.IntRange(0, 1).Draw(t, "forward")},
			{Key: "net/ipv4/conf/all/accept_redirects", Value: rapid.IntRange(0, 1).Draw(t, "redirects")},
			{Key: "net/ipv4/conf/all/rp_filter", Value: rapid.IntRange(0, 2).Draw(t, "rp_filter")}}
		before := m.snapshot()

		inputs := []routing.Input{drawInput(t), drawInput(t)}
		for i, in := range inputs {
			want := routing.Want(in)
			for _, c := range routing.Diff(want, m.snapshot()) {
				m.apply(c)
				// At the first start the guard comes first of all; what the box forwarded before that is not
				// ours to say.
				m.noClear(t, c, inputs[max(i-1, 0)], in, i == 0)
				if m.on() && i == 0 && before.Sysctls[2].Value == 0 {
					m.noClear(t, c, in, in, false) // but Ringway does not switch forwarding on before that
				}
			}
			if again := routing.Diff(want, m.snapshot()); len(again) > 0 {
				t.Fatalf("applied twice:\n%s", strings.Join(routing.Text(again), "\n"))
			}
		}
		for _, c := range routing.Diff(before, m.snapshot()) {
			m.apply(c)
			m.noClear(t, c, inputs[1], inputs[1], before.Sysctls[2].Value == 1 || !m.on())
		}
		after := m.snapshot()
		for _, l := range after.Links { // what "left as it is" means to the model
			b := model{State: before}
			if l.Up != b.link(l.Name).Up {
				t.Fatalf("%s is up: %v", l.Name, l.Up)
			}
		}
		if len(after.Addresses)+len(after.Routes)+len(after.Rules) > 0 {
			t.Fatalf("left behind: %v", after)
		}
		for _, s := range before.Sysctls {
			if !slices.Contains(after.Sysctls, s) {
				t.Fatalf("%s was %d: %v", s.Key, s.Value, after.Sysctls)
			}
		}
	})
}

// on reports whether the machine forwards.
func (m *model) on() bool {
	return slices.ContainsFunc(m.Sysctls, func(s routing.Sysctl) bool {
		return s.Key == "net/ipv4/ip_forward" && s.Value == 1
	})
}

func (m *model) snapshot() routing.State {
	s := routing.State{
		Links: slices.Clone(m.Links), Addresses: slices.Clone(m.Addresses), Routes: slices.Clone(m.Routes),
		Rules: slices.Clone(m.Rules), Sysctls: slices.Clone(m.Sysctls)}
	s.Sort()
	return s
}

// noClear asserts that a packet for a site that is in both configs goes into a tunnel or nowhere, from the
// moment in which the site is guarded, and during a reload at all times.
func (m *model) noClear(t *rapid.T, c routing.Change, a, b routing.Input, guardMayLack bool) {
	rule := slices.ContainsFunc(m.Rules, func(r routing.Rule) bool {
		return r.Priority == routing.PriorityGuard && r.Family == 4
	})
	for _, s := range a.Sites {
		for _, p := range s.Prefixes {
			inBoth := slices.ContainsFunc(b.Sites, func(o routing.SiteRoute) bool { return slices.Contains(o.Prefixes, p) })
			if p.Addr().Is6() || !inBoth {
				continue
			}
			if !rule || !m.guarded(p) {
				if !guardMayLack {
					t.Fatalf("after %s: %s is not guarded", c, p)
				}
				continue
			}
			for _, mark := range []uint32{0, 0x1200, 0x1400, 0x1600, 0x1800} {
				for _, local := range []bool{false, true} {
					if d := m.way(p.Addr().Next(), mark, local); d != "" && !strings.HasPrefix(d, "rw-") {
						t.Fatalf("after %s: %s with mark 0x%x leaves by %s", c, p, mark, d)
					}
				}
			}
		}
	}
}

func (m *model) guarded(p netip.Prefix) bool {
	return slices.ContainsFunc(m.Routes, func(r routing.Route) bool {
		return r.Table == routing.TableGuard && r.Prefix == p
	})
}

func TestSysctlsThatTheKernelLacksAreLeftOut(t *testing.T) {
	want := routing.State{Sysctls: []routing.Sysctl{
		{Key: "net/netfilter/nf_conntrack_helper", Optional: true},
		{Key: "net/ipv4/conf/gone0/rp_filter", Value: 1},
	}}
	assert.Empty(t, routing.Diff(want, routing.State{}))
}
