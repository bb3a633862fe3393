package qos

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// fakeKernel holds queues by the kernel's own rules and refuses what it refuses.
type fakeKernel struct {
	t     require.TestingT
	links map[string]*Link
}

func newFake(t require.TestingT, s State) *fakeKernel {
	k := &fakeKernel{t, map[string]*Link{}}
	for _, l := range s.Canonical().Links {
		k.links[l.Interface] = &l
	}
	return k
}

func (k *fakeKernel) state() State {
	var s State
	for _, l := range k.links {
		s.Links = append(s.Links, *l)
	}
	return s.Canonical()
}

func (k *fakeKernel) apply(c Change) {
	l := k.links[c.Interface]
	if l == nil {
		l = &Link{Interface: c.Interface}
		k.links[c.Interface] = l
	}
	if c.Class != nil {
		k.class(l, c)
		return
	}
	at := -1
	for i, q := range l.Qdiscs {
		if q.Parent == c.Qdisc.Parent {
			at = i
		}
	}
	switch c.Op {
	case DeleteOp:
		require.GreaterOrEqual(k.t, at, 0, "%s: nothing there", c)
		if c.Qdisc.isRoot() {
			*l = Link{Interface: l.Interface}
			return
		}
		k.drop(l, c.Qdisc.Parent)
	case ChangeOp:
		require.GreaterOrEqual(k.t, at, 0, "%s: nothing there", c)
		require.Equal(k.t, c.Qdisc.Kind, l.Qdiscs[at].Kind, "%s: another kind", c)
		require.NotEqual(k.t, "htb", c.Qdisc.Kind, "%s: HTB can't", c)
		if c.Qdisc.FQCoDel != nil {
			require.Equal(k.t, l.Qdiscs[at].FQCoDel.Flows, c.Qdisc.FQCoDel.Flows)
		}
		l.Qdiscs[at] = *c.Qdisc
	case Add:
		require.Less(k.t, at, 0, "%s: is there", c)
		up := false
		for _, q := range l.Qdiscs {
			require.NotEqual(k.t, q.Handle, c.Qdisc.Handle, "%s: handle in use", c)
			up = up || q.Handle == c.Qdisc.Parent&^0xffff
		}
		require.True(k.t, up, "%s: no parent", c)
		l.Qdiscs = append(l.Qdiscs, *c.Qdisc)
	case ReplaceOp:
		require.True(k.t, c.Qdisc.isRoot())
		require.True(k.t, at < 0 || l.Qdiscs[at].Handle != c.Qdisc.Handle, "%s: HTB can't change", c)
		*l = Link{Interface: l.Interface, Qdiscs: []Qdisc{*c.Qdisc}}
	}
}

// drop takes the qdisc under parent away, with what is in it.
func (k *fakeKernel) drop(l *Link, parent Handle) {
	for i, q := range l.Qdiscs {
		if q.Parent == parent {
			l.Qdiscs = append(l.Qdiscs[:i:i], l.Qdiscs[i+1:]...)
			k.drop(l, q.Handle|1)
			return
		}
	}
}

func (k *fakeKernel) class(l *Link, c Change) {
	at, parent := -1, c.Class.Parent&0xffff == 0
	for i, o := range l.Classes {
		if o.Handle == c.Class.Handle {
			at = i
		}
		parent = parent || o.Handle == c.Class.Parent
		if c.Op == DeleteOp {
			require.NotEqual(k.t, c.Class.Handle, o.Parent, "%s: has children", c)
		}
	}
	switch c.Op {
	case Add:
		require.True(k.t, at < 0 && parent, "%s: is there, or has no parent", c)
		l.Classes = append(l.Classes, *c.Class)
	case ChangeOp:
		require.GreaterOrEqual(k.t, at, 0, "%s: is not there", c)
		require.Equal(k.t, l.Classes[at].Parent, c.Class.Parent)
		l.Classes[at] = *c.Class
	case DeleteOp:
		require.GreaterOrEqual(k.t, at, 0, "%s: is not there", c)
		l.Classes = append(l.Classes[:at:at], l.Classes[at+1:]...)
		k.drop(l, c.Class.Handle)
	}
	// The invariant that the order of a diff is for: also in between, green leaves fit their parent.
	for _, p := range l.Classes {
		sum := BitRate(0)
		for _, o := range l.Classes {
			if o.Parent == p.Handle {
				sum += o.Rate
			}
		}
		require.LessOrEqual(k.t, sum, p.Rate, "after %s: the children of %s", c, p.Handle)
	}
}

// cards are what drawInput's WANs run on, with the kernel's default queue.
var cards = State{
	Links: []Link{
		{Interface: "wan0"},
		{Interface: "wan1"},
		{Interface: "wan2"},
		{Interface: "lan0"},
		{Interface: "lan1"},
	},
}

func TestDiffLeavesOutWhatIsNotThere(t *testing.T) {
	want := Want(Input{Classes: reference(), Features: AssumedFeatures(),
		WANs: []Egress{
			{Interface: "wan0", Line: Line{Uplink: 20 * Mbit}, MTU: 1500},
			{Interface: "lte0", Line: Line{Uplink: 5 * Mbit}, MTU: 1500},
		}})
	assert.Empty(t, Diff(want, State{}))
	only := State{Links: []Link{{Interface: "wan0"}}}
	assert.NotEmpty(t, Diff(want, only))
	for _, c := range Diff(want, only) {
		assert.Equal(t, "wan0", c.Interface)
	}
}

func TestDiffAppliedIsWanted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		have, want := Want(drawInput(t)).Over(cards), Want(drawInput(t)).Over(cards)
		k := newFake(t, have)
		for _, c := range Diff(want, have) {
			k.apply(c)
		}
		require.Empty(t, Diff(want, k.state()))
		for _, w := range want.Links {
			got, ok := k.state().Link(w.Interface)
			require.True(t, ok || w.root() == nil)
			require.Len(t, got.Classes, len(w.Classes))
			require.Len(t, got.Qdiscs, len(w.Qdiscs))
		}
	})
}

// An apply that is cut off anywhere (the daemon was killed) is finished by the next one.
func TestDiffGoesOnFromAnyStep(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		have, want := Want(drawInput(t)).Over(cards), Want(drawInput(t))
		k := newFake(t, have)
		changes := Diff(want, have)
		for _, c := range changes[:rapid.IntRange(0, len(changes)).Draw(t, "killed after")] {
			k.apply(c)
		}
		for _, c := range Diff(want, k.state()) {
			k.apply(c)
		}
		require.Empty(t, Diff(want, k.state()))
	})
}

func TestSameTreeOtherRateIsChangedInPlace(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := drawInput(t)
		have := Want(in)
		for i := range in.WANs {
			in.WANs[i].Uplink = BitRate(rapid.Uint64Range(uint64(64*Kbit), uint64(100*Gbit)).Draw(t, "uplink"))
			if in.WANs[i].Downlink > 0 {
				in.WANs[i].Downlink = BitRate(rapid.Uint64Range(uint64(64*Kbit), uint64(100*Gbit)).Draw(t, "downlink"))
			}
		}
		for i := range in.Sites {
			in.Sites[i].Downlink = BitRate(rapid.Uint64Range(uint64(64*Kbit), uint64(100*Gbit)).Draw(t, "downlink"))
		}
		for _, c := range Diff(Want(in), have) {
			require.Equal(t, ChangeOp, c.Op, "%s", c)
		}
	})
}

// The state found before start is kept in the daemon's journal.
func TestStateSurvivesJSON(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Want(drawInput(t))
		b, err := json.Marshal(s)
		require.NoError(t, err)
		var got State
		require.NoError(t, json.Unmarshal(b, &got))
		require.Equal(t, s, got.Canonical())
	})
}

func TestOnlyWhatDiffersIsWritten(t *testing.T) {
	in := Input{
		WANs: []Egress{
			{Interface: "wan0", Line: Line{Uplink: 20 * Mbit}, MTU: 1500},
			{Interface: "wan1", Line: Line{Uplink: 20 * Mbit}, MTU: 1500},
		},
		Classes: reference(), Features: AssumedFeatures(),
	}
	have := Want(in)
	assert.Empty(t, Diff(have, have))

	in.Classes = reference()
	in.Classes[3].Limit *= 2
	in.WANs = in.WANs[:1]
	changes := Diff(Want(in), have)
	require.Len(t, changes, 1, "wan1 is not wanted and left alone")
	assert.Equal(
		t,
		"tc qdisc change dev wan0 parent 1:40 handle 40: tbf rate 121440mbit burst 1518 limit 50000",
		changes[0].String(),
	)

	// Media grows, data shrinks: what shrinks goes first.
	in.Classes = reference()
	in.Classes[0].Share, in.Classes[2].Share = 40, 40
	var got []string
	for _, c := range Diff(Want(in), have) {
		got = append(got, c.String())
	}
	assert.Equal(t, []string{
		"tc class change dev wan0 parent 1:2 classid 1:30 htb rate 8mbit ceil 20mbit burst 1518 cburst 2500 " +
			"prio 2 quantum 1518",
		"tc class change dev wan0 parent 1:2 classid 1:10 htb rate 8mbit ceil 8mbit burst 5000 cburst 20000 " +
			"prio 0 quantum 1518",
		"tc qdisc change dev wan0 parent 1:10 handle 10: tbf rate 121440mbit burst 1518 limit 20000",
		"tc qdisc change dev wan0 parent 1:30 handle 30: tbf rate 121440mbit burst 1518 limit 50000",
	}, got)

	assert.Equal(t, []Change{{Op: DeleteOp, Interface: "wan0", Qdisc: &have.Links[0].Qdiscs[0]}},
		Diff(State{Links: []Link{{Interface: "wan0"}}}, have))
	assert.Equal(
		t,
		"tc qdisc delete dev wan0 root handle 1:",
		Diff(State{Links: []Link{{Interface: "wan0"}}}, have)[0].String(),
	)
}
