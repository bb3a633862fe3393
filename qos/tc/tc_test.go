package tc

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
	"ringway/test/netnstest"
)

//	ns a: wan0 ---- wan0 :ns b

func classes() []qos.Class {
	return []qos.Class{
		{Name: qos.Media, Share: 30, Limit: 20 * time.Millisecond},
		{Name: qos.Signalling, Share: 10, Limit: 100 * time.Millisecond},
		{Name: qos.Data, Share: 50, Limit: 50 * time.Millisecond},
		{Name: qos.Background, Share: 5, Limit: 200 * time.Millisecond},
	}
}

func input(uplink qos.BitRate) qos.Input {
	return qos.Input{
		WANs: []qos.Egress{{
			Interface: "wan0",
			Line:      qos.Line{Uplink: uplink, Margin: 3, LinkLayer: qos.LinkLayer{Overhead: 24, MPU: 84}},
			MTU:       1500,
		}},
		Classes:  classes(),
		Features: qos.AssumedFeatures(),
	}
}

func pair(t testing.TB) (a, b *netnstest.NS) {
	a, b = netnstest.New(t), netnstest.New(t)
	netnstest.Veth(t, a, "wan0", b, "wan0")
	return a, b
}

func observe(t testing.TB, ns *netnstest.NS) qos.State {
	t.Helper()
	var s qos.State
	require.NoError(t, ns.Do(func() (err error) {
		s, err = Observe([]string{"wan0"})
		return err
	}))
	return s
}

// reconcile applies what differs and returns it.
func reconcile(t testing.TB, ns *netnstest.NS, want qos.State) []qos.Change {
	t.Helper()
	changes := qos.Diff(want, observe(t, ns))
	require.NoError(t, ns.Do(func() error { return Apply(changes) }))
	return changes
}

// feed runs the plan's words through the real tc.
func feed(t testing.TB, ns *netnstest.NS, lines []string) {
	t.Helper()
	for _, l := range lines {
		w := strings.Fields(l)
		ns.Run(w[0], w[1:]...)
	}
}

// readBack is what tc lists, without counters.
func readBack(t testing.TB, ns *netnstest.NS) string {
	t.Helper()
	text := ns.Run("tc", "-d", "qdisc", "show", "dev", "wan0") +
		ns.Run("tc", "-d", "class", "show", "dev", "wan0") +
		ns.Run("tc", "-d", "-j", "qdisc", "show", "dev", "wan0") +
		ns.Run("tc", "-d", "-j", "class", "show", "dev", "wan0")
	// Flows that happen to wait in fq_codel or cake are shown as classes.
	text = regexp.MustCompile(`(?m)^class (fq_codel|cake) .*\n`).ReplaceAllString(text, "")
	return regexp.MustCompile(`direct_packets_stat"?[: ]\d+`).ReplaceAllString(text, "")
}

var rates = []qos.BitRate{
	64 * qos.Kbit, qos.Mbit, 1455 * qos.Kbit, 20 * qos.Mbit, qos.Gbit, 40 * qos.Gbit, 100 * qos.Gbit,
}

// variants are the forms that a plan's tree has.
func variants(t testing.TB) map[string]qos.Input {
	out := map[string]qos.Input{}
	for _, r := range rates {
		out[r.String()] = input(r)
	}
	with := func(name string, change func(*qos.Input)) {
		in := input(20 * qos.Mbit)
		change(&in)
		out[name] = in
	}
	with("one site", func(in *qos.Input) { in.Sites = []qos.Site{{Name: "hub"}} })
	with("sites that fit", func(in *qos.Input) {
		in.WANs[0].Uplink = 100 * qos.Mbit
		in.Sites = []qos.Site{{Name: "berlin", Downlink: 10 * qos.Mbit}, {Name: "munich", Downlink: qos.Mbit}}
	})
	with("sites beyond the uplink", func(in *qos.Input) {
		for i := range 20 {
			in.Sites = append(in.Sites, qos.Site{Name: fmt.Sprintf("branch-%d", i), Downlink: 10 * qos.Mbit})
		}
	})
	with("a LAN's", func(in *qos.Input) { // the tree of LANs, on the same device
		in.LANs = []string{"wan0"}
		in.WANs = []qos.Egress{
			{
				Interface: "wan1",
				Line:      qos.Line{Downlink: 20 * qos.Mbit, Margin: 3, LinkLayer: in.WANs[0].LinkLayer},
			},
			{Interface: "wan2", Line: qos.Line{Downlink: 2 * qos.Mbit, LinkLayer: in.WANs[0].LinkLayer}},
		}
	})
	for _, n := range qos.LinkNames() {
		with(n, func(in *qos.Input) {
			l, err := qos.ParseLink(n)
			require.NoError(t, err)
			in.WANs[0].LinkLayer = l
		})
	}
	f, err := Probe()
	require.NoError(t, err)
	if f.FQCoDel {
		with("fq_codel", func(in *qos.Input) { in.Features, in.Sites = f, []qos.Site{{Name: "hub"}} })
		with("a LAN's fq_codel", func(in *qos.Input) {
			in.Features, in.LANs, in.WANs = f, []string{"wan0"}, []qos.Egress{{
				Interface: "wan1", Line: qos.Line{Downlink: 20 * qos.Mbit},
			}}
		})
		with("slow fq_codel", func(in *qos.Input) { in.Features, in.WANs[0].Uplink = f, qos.Mbit })
	}
	if f.Cake {
		with("cake", func(in *qos.Input) { in.Features, in.Features.FQCoDel = f, false })
	}
	return out
}

func TestOracle(t *testing.T) {
	netnstest.Root(t)
	t.Parallel()
	for name, in := range variants(t) {
		t.Run(name, func(t *testing.T) {
			ours, _ := pair(t)
			theirs, _ := pair(t)
			want := qos.Want(in)
			changes := reconcile(t, ours, want)
			assert.NotEmpty(t, changes)
			feed(t, theirs, want.Text())

			got := readBack(t, ours)
			assert.Equal(t, readBack(t, theirs), got, "tc's own tree from the printed words, and ours")
			l := in.WANs[0].LinkLayer
			for text, set := range map[string]bool{
				fmt.Sprintf(
					"overhead %d", l.Overhead,
				): l.Overhead != 0, fmt.Sprintf("mpu %d", l.MPU): l.MPU != 0, "linklayer atm": l.Cells == qos.ATM,
			} {
				if set {
					assert.Contains(t, got, text)
				}
			}
			assert.Equal(t, raw(t, theirs), raw(t, ours), "raw values")

			assert.Empty(t, qos.Diff(want, observe(t, ours)), "applied twice")
			assert.Empty(t, qos.Diff(want, observe(t, theirs)), "the words make what is wanted")
		})
	}
}

// raw is what the kernel dumps of qdiscs and classes, attribute by attribute, without statistics.
func raw(t testing.TB, ns *netnstest.NS) []string {
	t.Helper()
	var out []string
	require.NoError(t, ns.Do(func() error {
		index, err := linkIndex("wan0")
		if err != nil {
			return err
		}
		for _, get := range []uint16{36 /* RTM_NEWQDISC */, 40 /* RTM_NEWTCLASS */} {
			msgs, err := dump(get+2, get, index)
			if err != nil {
				return err
			}
			for _, m := range msgs {
				if get == 40 && m.kind != "htb" {
					continue // a leaf's own pseudo classes
				}
				opts := m.attrs[2] // TCA_OPTIONS
				if m.kind == "htb" && get == 36 {
					opts = nil // holds a counter (direct packets); tc's words are compared above
				}
				b, err := json.Marshal([]any{m.handle, m.parent, m.kind, opts, m.attrs[8] /* TCA_STAB */})
				if err != nil {
					return err
				}
				out = append(out, string(b))
			}
		}
		return nil
	}))
	return out
}

func TestStopGivesBackWhatStartFound(t *testing.T) {
	for name, found := range map[string][]string{
		"kernel default": nil,
		"bfifo":          {"tc qdisc replace dev wan0 root handle 8005: bfifo limit 77000"},
		"own tree": {
			"tc qdisc replace dev wan0 root handle 1: htb default 7",
			"tc class add dev wan0 parent 1: classid 1:7 htb rate 5mbit ceil 9mbit burst 3000 cburst 4000 prio 3 quantum 2000",
			"tc qdisc add dev wan0 parent 1:7 handle 70: pfifo limit 33",
		},
		"own bucket": {
			"tc qdisc replace dev wan0 root handle 9: tbf rate 7mbit burst 5000 limit 9000 peakrate 8mbit mtu 1600",
		},
	} {
		t.Run(name, func(t *testing.T) {
			a, _ := pair(t)
			feed(t, a, found)
			before, text := observe(t, a), readBack(t, a)
			saved, err := json.Marshal(before) // as the daemon's journal keeps it
			require.NoError(t, err)

			reconcile(t, a, qos.Want(input(20*qos.Mbit)).Over(before))
			assert.Contains(t, readBack(t, a), "htb 1:10")

			var restored qos.State
			require.NoError(t, json.Unmarshal(saved, &restored))
			reconcile(t, a, restored)
			assert.Equal(t, text, readBack(t, a))
			assert.Empty(t, qos.Diff(restored, observe(t, a)))
		})
	}
}

func TestNewRateChangesClassesInPlace(t *testing.T) {
	a, _ := pair(t)
	reconcile(t, a, qos.Want(input(20*qos.Mbit)))
	for _, rate := range []qos.BitRate{50 * qos.Mbit, 3 * qos.Mbit, 20 * qos.Mbit} {
		for _, c := range reconcile(t, a, qos.Want(input(rate))) {
			assert.Equal(t, qos.ChangeOp, c.Op, "%s", c)
		}
		assert.Empty(t, qos.Diff(qos.Want(input(rate)), observe(t, a)))
	}
}

// The words of a difference do what its calls do, for every way from one plan to another.
func TestWordsOfADifferenceAreTrue(t *testing.T) {
	ours, _ := pair(t)
	theirs, _ := pair(t)
	narrow := input(20 * qos.Mbit)
	narrow.Classes[0].Share, narrow.Classes[2].Share = 50, 25
	plain := input(30 * qos.Mbit)
	plain.Features.TBF = false
	sites := input(20 * qos.Mbit)
	sites.Sites = []qos.Site{{Name: "berlin", Downlink: 2 * qos.Mbit}, {Name: "munich"}}
	fewer := sites
	fewer.Sites = sites.Sites[:1]
	atm := sites
	atm.WANs = []qos.Egress{sites.WANs[0]}
	atm.WANs[0].LinkLayer, _ = qos.ParseLink("ipoa-vcmux")
	jumbo := input(20 * qos.Mbit)
	jumbo.WANs[0].MTU = 9000
	lan := qos.Input{
		LANs: []string{"wan0"},
		WANs: []qos.Egress{{Interface: "wan1", Line: qos.Line{Downlink: 20 * qos.Mbit}}}, Classes: classes(),
		Features: qos.AssumedFeatures(),
	}
	for _, want := range []qos.State{
		qos.Want(input(20 * qos.Mbit)), qos.Want(input(50 * qos.Mbit)), qos.Want(narrow), qos.Want(plain),
		qos.Want(sites), qos.Want(fewer), qos.Want(atm), qos.Want(sites),
		qos.Want(jumbo), qos.Want(input(qos.Mbit)), {Links: []qos.Link{{Interface: "wan0"}}}, qos.Want(narrow), qos.Want(lan),
	} {
		var words []string
		for _, c := range qos.Diff(want, observe(t, theirs)) {
			words = append(words, c.String())
		}
		feed(t, theirs, words)
		reconcile(t, ours, want)
		assert.Equal(t, readBack(t, theirs), readBack(t, ours))
		assert.Empty(t, qos.Diff(want, observe(t, ours)))
		assert.Empty(t, qos.Diff(want, observe(t, theirs)))
	}
}

func TestHandMadeChangeIsMended(t *testing.T) {
	want := qos.Want(input(20 * qos.Mbit))
	for _, harm := range []string{
		"tc qdisc del dev wan0 root",
		"tc qdisc del dev wan0 parent 1:10",
		"tc qdisc replace dev wan0 parent 1:10 handle 10: tbf rate 1mbit burst 1600 limit 2000",
		"tc qdisc replace dev wan0 parent 1:20 handle 99: pfifo limit 3",
		"tc class change dev wan0 parent 1:2 classid 1:30 htb rate 1mbit ceil 2mbit prio 0",
		"tc class add dev wan0 parent 1:1 classid 1:50 htb rate 9mbit",
		"tc class add dev wan0 parent 1: classid 1:3 htb rate 9mbit",
		"tc class del dev wan0 classid 1:40",
		"tc qdisc replace dev wan0 root handle 1: pfifo limit 50",
		"tc qdisc replace dev wan0 root handle 77: pfifo limit 50",
	} {
		t.Run(harm, func(t *testing.T) {
			a, _ := pair(t)
			reconcile(t, a, want)
			if strings.Contains(harm, "handle 1: pfifo") {
				feed(t, a, []string{"tc qdisc del dev wan0 root"})
			}
			feed(t, a, []string{harm})
			assert.NotEmpty(t, reconcile(t, a, want), "noticed")
			assert.Empty(t, qos.Diff(want, observe(t, a)), "repaired")
		})
	}
}

func TestErrorsSayWhatAndWhere(t *testing.T) {
	a, _ := pair(t)
	class := qos.Want(input(20 * qos.Mbit)).Links[0].Classes[2]
	err := a.Do(func() error { return Apply([]qos.Change{{Op: qos.Add, Interface: "wan0", Class: &class}}) })
	assert.ErrorContains(t, err, "add HTB class 1:10 on wan0: ")
	err = a.Do(func() error { return Apply([]qos.Change{{Op: qos.Add, Interface: "wan9", Class: &class}}) })
	assert.ErrorContains(t, err, "add HTB class 1:10 on wan9: find interface wan9: ")
	assert.NoError(t, a.Do(func() error {
		s, err := Observe([]string{"wan9"})
		assert.Empty(t, s.Links)
		return err
	}))
}

// A WAN whose device is not there, or refuses, keeps no other from being shaped, and is shaped once it appears.
func TestMissingInterfaceStopsNoOther(t *testing.T) {
	a, b := pair(t)
	in := input(20 * qos.Mbit)
	in.WANs = append(
		[]qos.Egress{{Interface: "lte0", Line: qos.Line{Uplink: 5 * qos.Mbit}, MTU: 1500}}, in.WANs...,
	)
	want := qos.Want(in)
	look := func() (s qos.State) {
		t.Helper()
		require.NoError(t, a.Do(func() (err error) {
			s, err = Observe(want.Interfaces())
			return err
		}))
		return s
	}
	// lte0 goes right after it was looked at
	gone := qos.State{Links: []qos.Link{{Interface: "lte0"}, {Interface: "wan0"}}}
	err := a.Do(func() error { return Apply(qos.Diff(want, gone)) })
	require.ErrorContains(t, err, "find interface lte0")
	assert.Equal(t, 1, strings.Count(err.Error(), "find interface lte0"), "said once: %v", err)
	assert.Contains(t, readBack(t, a), "htb 1:10")
	assert.Empty(t, qos.Diff(want, look()), "nothing can be done about lte0")

	netnstest.Veth(t, a, "lte0", b, "lte0")
	changes := qos.Diff(want, look())
	require.NoError(t, a.Do(func() error { return Apply(changes) }))
	assert.Contains(t, a.Run("tc", "class", "show", "dev", "lte0"), "htb 1:10")
	assert.Empty(t, qos.Diff(want, look()))
}

func TestProbe(t *testing.T) {
	netnstest.Root(t)
	f, err := Probe()
	require.NoError(t, err)
	// The oracle is tc, asked for the same in a namespace of its own.
	ns := netnstest.New(t)
	for kind, has := range map[string]bool{"fq_codel": f.FQCoDel, "cake": f.Cake, "fq": f.FQ, "prio": f.Prio, "htb": f.HTB,
		"bfifo": f.BFIFO, "tbf rate 1mbit burst 5000 limit 9000": f.TBF} {
		_, err := ns.Try(
			"tc", append([]string{"qdisc", "replace", "dev", "lo", "root"}, strings.Fields(kind)...)...,
		)
		assert.Equal(t, err == nil, has, "%s: %v", kind, err)
	}
	_, err = ns.Try("tc", "qdisc", "add", "dev", "lo", "clsact")
	assert.Equal(t, err == nil, f.Ingress, "clsact: %v", err)
	_, err = ns.Try("ip", "link", "add", "probe0", "type", "ifb")
	assert.Equal(t, err == nil, f.IFB, "ifb: %v", err)
}
