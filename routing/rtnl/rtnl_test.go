package rtnl_test

import (
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/routing"
	"ringway/routing/rtnl"
	"ringway/test/netnstest"
)

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

// The numbers of qos/mark.go, as the appliance passes them.
var marks = routing.Marks{
	OuterValues: []uint32{0x2000, 0x4000}, OuterMask: 0x6000,
	VoiceValues: []uint32{0x1200, 0x1400}, DataValues: []uint32{0x1600, 0x1800}, ClassMask: 0x1e00,
}

func branch() routing.Input {
	voice := []routing.LAN{{Interface: "voice0", Addresses: pfx("10.1.10.1/24", "fd01:10::1/64")}}
	data := []routing.LAN{{Interface: "data0", Addresses: pfx("10.1.20.1/24", "fd01:20::1/64")}}
	return routing.Input{
		WANs: []routing.Upstream{{
			Interface: "wan0",
			Addresses: pfx("198.51.100.2/24", "2001:db8:1::2/64"), Gateways: addr("198.51.100.1", "2001:db8:1::1"),
		}},
		LANs: append(append([]routing.LAN{}, voice...), data...),
		Tunnels: []routing.TunnelDevice{
			{Class: "voice", Name: "rw-voice", MTU: 1420, TxQueueLen: 50},
			{Class: "data", Name: "rw-data", MTU: 1400, TxQueueLen: 100, GSOMax: 20000},
		},
		Sites: []routing.SiteRoute{
			{
				Name: "munich", Prefixes: pfx("10.2.10.0/24", "10.2.20.0/24", "fd02:10::/64"),
				VoiceDevice: "rw-voice", DataDevice: "rw-data", DataMTU: 1300,
			},
			{Name: "plain", Prefixes: pfx("10.3.0.0/16"), VoiceDevice: "rw-data", DataDevice: "rw-data"},
		},
		Marks: marks, VoiceSource: routing.FirstAddresses(voice), DataSource: routing.FirstAddresses(data),
	}
}

// delegated has one LAN, with a part of a prefix that belongs to the second of two WANs.
func delegated() routing.Input {
	in := branch()
	in.WANs = append(in.WANs, routing.Upstream{Interface: "voice0", DHCP6: true})
	in.LANs = in.LANs[1:]
	in.LANs[0].Delegated = pfx("2001:db8:5600:2::1/64")
	in.Delegated = map[string][]routing.Delegation{"voice0": {{Prefix: pfx("2001:db8:5600::/56")[0]}}}
	in.Advertised = map[string]routing.Advertised{"voice0": {Addresses: pfx("2001:db8:ff::100/128")}}
	return in
}

// newBox is the namespace of an edge with its devices, all down, as before the first start.
//
//	wan0 = veth = (peers in one more namespace, which only hold the other ends)   tun rw-voice, rw-data
func newBox(t *testing.T) *netnstest.NS {
	box, far := netnstest.New(t), netnstest.New(t)
	for _, d := range []string{"wan0", "voice0", "data0"} {
		netnstest.Veth(t, far, "far-"+d, box, d)
		box.Run("ip", "link", "set", d, "down")
	}
	for _, d := range []string{"rw-voice", "rw-data"} {
		box.Run("ip", "tuntap", "add", d, "mode", "tun")
	}
	return box
}

func observe(t *testing.T, box *netnstest.NS, scope routing.State) (s routing.State) {
	t.Helper()
	require.NoError(t, box.Do(func() (err error) { s, err = rtnl.Observe(scope); return err }))
	return s
}

func apply(t *testing.T, box *netnstest.NS, changes []routing.Change) {
	t.Helper()
	require.NoError(t, box.Do(func() error { return rtnl.Apply(changes) }))
}

func texts(changes []routing.Change) string { return strings.Join(routing.Text(changes), "\n") }

// look is what ip(8) and sysctl(8) print of the whole namespace, without what differs from one
// namespace to the next by nature (numbers of peers, hardware addresses and what is made of them).
func look(t *testing.T, box *netnstest.NS) string {
	var out strings.Builder
	for _, args := range []string{
		"-4 rule", "-6 rule", "-4 route show table all", "-6 route show table all", "addr", "link",
	} {
		var v any
		text := box.Run("ip", append([]string{"-d", "-j"}, strings.Fields(args)...)...)
		require.NoError(t, json.Unmarshal([]byte(text), &v), text)
		for _, e := range strip(v).([]any) {
			line, err := json.Marshal(e)
			require.NoError(t, err)
			out.WriteString(args + ": " + string(line) + "\n")
		}
	}
	out.WriteString(box.Run("sysctl", "net.ipv4.conf", "net.ipv4.ip_forward", "net.ipv6.conf"))
	return out.String()
}

// sameLines shows only the lines that differ: the whole is thousands of lines long.
func sameLines(t *testing.T, want, got string) {
	t.Helper()
	assert.ElementsMatch(t, without(want, got), without(got, want))
}

func without(a, b string) (out []string) {
	for _, line := range strings.Split(a, "\n") {
		if !strings.Contains("\n"+b+"\n", "\n"+line+"\n") {
			out = append(out, line)
		}
	}
	return out
}

func strip(v any) any {
	switch v := v.(type) {
	case []any:
		var out []any
		for _, e := range v {
			if m, ok := e.(map[string]any); ok {
				if s, _ := m["dst"].(string); strings.HasPrefix(s, "fe80") || s == "ff00::/8" || s == "multicast" {
					continue
				}
				if s, _ := m["local"].(string); strings.HasPrefix(s, "fe80") {
					continue
				}
			}
			out = append(out, strip(e))
		}
		return out
	case map[string]any:
		out := map[string]any{}
		for k, e := range v {
			switch k {
			case "address", "ifindex", "link_index", "link_netnsid", "operstate", "flags", "permaddr",
				"stable_secret", "inet6_addr_gen_mode",
				"qdisc": // a device gets its queue for good when it is first set up
				continue
			}
			out[k] = strip(e)
		}
		return out
	}
	return v
}

// The text of the plan, run by ip(8) and sysctl(8), makes the same as Apply.
func TestApplyMakesWhatTheTextSays(t *testing.T) {
	for name, in := range map[string]routing.Input{
		"branch": branch(), "with a relay": relayed(), "delegated": delegated(),
	} {
		t.Run(name, func(t *testing.T) { applyMakesWhatTheTextSays(t, in) })
	}
}

func applyMakesWhatTheTextSays(t *testing.T, in routing.Input) {
	want := routing.Want(in)
	byHand, byUs := newBox(t), newBox(t)
	for _, line := range want.Text() {
		byHand.Run("sh", "-ec", line)
	}
	apply(t, byUs, routing.Diff(want, observe(t, byUs, want)))

	sameLines(t, look(t, byHand), look(t, byUs))
	assert.Empty(t, texts(routing.Diff(want, observe(t, byUs, want))), "applied twice")
	assert.Empty(t, texts(routing.Diff(want, observe(t, byHand, want))), "made by hand")
}

func TestStopLeavesWhatStartFound(t *testing.T) {
	box := newBox(t)
	for _, line := range []string{ // somebody else's
		"ip link set wan0 up", "ip addr add 198.51.100.2/24 dev wan0", "ip route add default via 198.51.100.1",
		"ip addr add 198.51.100.77/24 dev wan0", "ip route add 10.99.0.0/16 via 198.51.100.9",
		"ip rule add pref 100 fwmark 0x7 lookup 77",
		"sysctl -w net.ipv4.conf.all.rp_filter=2 net.ipv4.conf.all.accept_redirects=0 net.ipv4.conf.wan0.rp_filter=0",
		"ip link set rw-voice up",
	} {
		box.Run("sh", "-ec", line)
	}
	before := look(t, box)
	want := routing.Want(branch())
	found := observe(t, box, want).Foreign()

	kept, err := json.Marshal(found) // the daemon writes it down
	require.NoError(t, err)
	found = routing.State{}
	require.NoError(t, json.Unmarshal(kept, &found))

	apply(t, box, routing.Diff(want, observe(t, box, want)))
	rpFilter := strings.TrimSpace(box.Run("cat", "/proc/sys/net/ipv4/conf/all/rp_filter"))
	assert.Equal(t, "0", rpFilter, "2 would have made strict devices loose")
	assert.Contains(t, box.Run("ip", "route"), "default via 198.51.100.1 dev wan0 \n", "the default route that was there")
	assert.Contains(t, box.Run("ip", "route"), "default via 198.51.100.1 dev wan0 proto 82 metric 10")

	// A reload in between: another address on a LAN, a site gone.
	in := branch()
	in.LANs[1].Addresses = pfx("10.1.20.2/24")
	in.DataSource = addr("10.1.20.2")
	in.Sites = in.Sites[:1]
	next := routing.Want(in)
	apply(t, box, routing.Diff(next, observe(t, box, routing.Scope(next, want))))
	assert.Empty(t, texts(routing.Diff(next, observe(t, box, next))))
	assert.NotContains(t, box.Run("ip", "addr"), "10.1.20.1/24")

	apply(t, box, routing.Diff(found, observe(t, box, routing.Scope(next, want))))
	sameLines(t, before, look(t, box))
	assert.Empty(t, texts(routing.Diff(found, observe(t, box, next))))
}

// A tunnel device goes away and comes back: its sites are unreachable meanwhile, never in clear.
func TestMissingTunnelStaysUnreachable(t *testing.T) {
	box := newBox(t)
	want := routing.Want(branch())
	apply(t, box, routing.Diff(want, observe(t, box, want)))
	get := func(mark string) string {
		out, err := box.Try("ip", "route", "get", "10.2.10.9", "mark", mark)
		if err != nil {
			return err.Error()
		}
		return out
	}
	assert.Contains(t, get("0x1200"), "dev rw-voice table 5271 src 10.1.10.1")
	assert.Contains(t, get("0x1600"), "dev rw-data table 5272 src 10.1.20.1")
	assert.Contains(t, get("0"), "dev rw-data table 5274 src 10.1.20.1", "what the box itself sends")

	box.Run("ip", "link", "del", "rw-voice")
	have := observe(t, box, want)
	assert.Empty(t, texts(routing.Diff(want, have)), "nothing can be done without the device")
	assert.Equal(t, []string{"rw-voice: no such network device"}, routing.Missing(want, have))
	assert.Contains(t, get("0x1200"), "No route to host")
	assert.Contains(t, get("0x1600"), "dev rw-data")
	box.Run("ip", "link", "del", "rw-data")
	assert.Contains(t, get("0"), "No route to host", "guard")

	box.Run("ip", "tuntap", "add", "rw-voice", "mode", "tun")
	apply(t, box, routing.Diff(want, observe(t, box, want)))
	assert.Contains(t, get("0x1200"), "dev rw-voice table 5271 src 10.1.10.1")
	assert.Empty(t, texts(routing.Diff(want, observe(t, box, want))))
}

func TestNoVLANInTheKernelIsSaid(t *testing.T) {
	box := newBox(t)
	if _, err := box.Try("ip", "link", "add", "link", "wan0", "name", "probe", "type", "vlan", "id", "2"); err == nil {
		t.Skip("this kernel has VLAN")
	}
	in := branch()
	in.LANs[0].VLAN = 20
	want := routing.Want(in)
	for range 2 { // also when it is tried again
		changes := routing.Diff(want, observe(t, box, want))
		err := box.Do(func() error { return rtnl.Apply(changes) })
		require.ErrorIs(t, err, rtnl.ErrNoVLAN)
		assert.EqualError(t, err, "ip link add link voice0 name voice0.20 type vlan id 20\n"+
			"ip link set dev voice0.20 alias ringway: "+rtnl.ErrNoVLAN.Error(),
			"said once, and nothing of what follows from it")
		sites := box.Run("ip", "route", "show", "table", "5271") + box.Run("ip", "route", "show", "table", "5272")
		assert.Contains(t, sites, "10.2.10.0/24 dev rw-voice", "the rest is made, without the source that is not there")
		assert.Contains(t, sites, "10.2.10.0/24 dev rw-data")
		assert.Contains(t, box.Run("ip", "addr", "show", "dev", "data0"), "10.1.20.1/24")
		assert.Equal(t, "1", strings.TrimSpace(box.Run("cat", "/proc/sys/net/ipv4/ip_forward")))
	}
}

// Without the guard nothing is forwarded; the other family is.
func TestNoForwardingWithoutGuard(t *testing.T) {
	box := newBox(t)
	want := routing.Want(branch())
	changes := routing.Diff(want, observe(t, box, want))
	for i, c := range changes {
		if c.Guards() == 6 && c.Rule != nil {
			bad := *c.Rule
			bad.Input = strings.Repeat("x", 20) // longer than a device's name can be: the kernel refuses it
			changes[i].Rule = &bad
		}
	}
	err := box.Do(func() error { return rtnl.Apply(changes) })
	require.ErrorContains(t, err, "net.ipv6.conf.all.forwarding=1: omitted")
	assert.Equal(t, "0", strings.TrimSpace(box.Run("cat", "/proc/sys/net/ipv6/conf/all/forwarding")))
	assert.Equal(t, "1", strings.TrimSpace(box.Run("cat", "/proc/sys/net/ipv4/ip_forward")))

	apply(t, box, routing.Diff(want, observe(t, box, want)))
	assert.Equal(t, "1", strings.TrimSpace(box.Run("cat", "/proc/sys/net/ipv6/conf/all/forwarding")), "repaired")
}

// What another program put in a place of Ringway's stays, through start, reload and stop, and is listed.
func TestOthersRoutesAndRulesStay(t *testing.T) {
	box := newBox(t)
	for _, line := range []string{
		"ip link set wan0 up", "ip addr add 198.51.100.77/24 dev wan0",
		"ip route add default via 198.51.100.9 metric 10 proto static",
		"ip -6 route add default via fe80::9 dev wan0 metric 10",
		"ip rule add pref 5210 from 192.0.2.0/24 lookup 77", "ip rule add pref 5229 lookup 254",
		"ip rule add pref 5230 lookup 5273", // the same as Ringway's guard, but for its maker
	} {
		box.Run("sh", "-ec", line)
	}
	before := look(t, box)
	in := branch()
	in.WANs[0].Gateways = addr("198.51.100.1", "fe80::9")
	want := routing.Want(in)
	have := observe(t, box, want)
	found := have.Foreign()
	conflicts := routing.Conflicts(want, have)
	require.Len(t, conflicts, 3)
	assert.Equal(t, `another program's route is in the place of `+
		`"ip -4 route add default via 198.51.100.1 dev wan0 table 254 proto 82 metric 10": `+
		`"ip -4 route add default via 198.51.100.9 dev wan0 table 254 proto 4 metric 10"`, conflicts[0])
	assert.Contains(t, conflicts[1], `another program's rule is among Ringway's (priorities 5190 to 5240): `+
		`"ip -4 rule add pref 5210 lookup 77 (and more)"`)
	assert.Contains(t, conflicts[2], "pref 5229")

	apply(t, box, routing.Diff(want, have))
	assert.Empty(t, texts(routing.Diff(want, observe(t, box, want))))
	assert.Len(t, routing.Conflicts(want, observe(t, box, want)), 3)
	assert.Contains(t, box.Run("ip", "route"), "default via 198.51.100.9")
	assert.Contains(t, box.Run("ip", "route", "show", "table", "5271"), "10.2.10.0/24 dev rw-voice", "the rest is made")
	assert.Contains(t, box.Run("ip", "rule"), "5210:\tfrom 192.0.2.0/24 lookup 77")

	apply(t, box, routing.Diff(found, observe(t, box, routing.Scope(found, want))))
	sameLines(t, before, look(t, box))

	box.Run("ip", "route", "del", "default", "metric", "10")
	apply(t, box, routing.Diff(want, observe(t, box, want)))
	assert.Contains(t, box.Run("ip", "route"), "default via 198.51.100.1 dev wan0 proto 82 metric 10",
		"when the place is free")
}

// A device that the config no longer names loses the address that Ringway gave it, even when only the
// kernel remembers that; what others gave it stays. The firewall takes no new connections for addresses that
// are not there, and does not judge a device that is not named.
func TestNoAddressStaysOnADeviceThatIsNamedNoMore(t *testing.T) {
	box := newBox(t)
	want := routing.Want(branch())
	before := observe(t, box, want).Foreign()
	apply(t, box, routing.Diff(want, observe(t, box, want)))
	box.Run("ip", "addr", "add", "192.0.2.7/24", "dev", "wan0")
	local := func(a string) string { return box.Run("ip", "-o", "addr", "show", "to", a) }
	require.Contains(t, local("198.51.100.2"), "wan0")

	in := branch()
	in.WANs[0].Interface = "wan9" // which is not there yet
	next := routing.Want(in)
	have := observe(t, box, next) // a daemon that does not know what ran before
	assert.Equal(t, []string{"wan9: no such network device"}, routing.Missing(next, have))
	apply(t, box, routing.Diff(next, have))
	assert.Empty(t, local("198.51.100.2"))
	assert.Empty(t, local("2001:db8:1::2"))
	assert.Contains(t, local("192.0.2.7"), "wan0", "of another program")
	assert.Empty(t, texts(routing.Diff(next, observe(t, box, next))))

	// It comes by another name (a rename), and stop takes the address from a device that only the kernel can
	// tell of.
	netnstest.Veth(t, netnstest.New(t), "far", box, "wan9")
	apply(t, box, routing.Diff(next, observe(t, box, next)))
	assert.Contains(t, local("198.51.100.2"), "wan9")
	apply(t, box, routing.Diff(before, observe(t, box, before)))
	assert.Empty(t, local("198.51.100.2"))
	assert.Empty(t, local("10.1.10.1"))
	assert.Contains(t, local("192.0.2.7"), "wan0")
}
