package admission

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"ringway/qos"
	"ringway/sip/dialog"
	"ringway/sip/sdp"
	"ringway/tunnel"
)

// model drives a Ledger with legs and streams as they may be in any order, and checks after each step what has
// to hold after all of them.
type model struct {
	ledger  *Ledger
	now     time.Time
	legs    []*dialog.Leg
	engine  *engine
	over    bool // an emergency call was let in, so that a budget may be exceeded
	shrunk  bool
	refused int
}

func newModel(w World) *model {
	return &model{
		ledger: New(40, w), now: time.Unix(1_800_000_000, 0), engine: &engine{held: map[tunnel.Flow]Reservation{}},
	}
}

func drawWorld(t *rapid.T) World {
	w := World{Own: prefixes("10.1.0.0/16")}
	calls := func(name string) qos.Budget {
		n := rapid.IntRange(0, 4).Draw(t, name)
		if n == 0 {
			return qos.Budget{Envelope: envelope} // no bound
		}
		return budget(n)
	}
	line := Line{Name: "wan0", Out: calls("out"), In: calls("in")}
	if rapid.Bool().Draw(t, "pooled") {
		line.Pool = budget(rapid.IntRange(1, 5).Draw(t, "pool")).Rate
	}
	w.Lines = []Line{line}
	for i := range 2 {
		w.Sites = append(w.Sites, Site{
			Name: fmt.Sprint("branch-", i+2), Key: tunnel.PublicKey{byte(i + 2)},
			Networks: prefixes(fmt.Sprintf("10.%d.0.0/16", i+2)),
			Ringway:  rapid.Bool().Draw(t, "ringway"), Out: calls("site"), In: calls("site<"),
		})
	}
	return w
}

var (
	drawnCodecs = []qos.Codec{qos.G729, qos.G711, {Name: "video", Payload: 1200, Interval: 10 * time.Millisecond}}
	drawnHosts  = []string{"10.1.10.10", "10.1.10.11", "10.2.10.5", "10.2.10.31", "10.3.10.31", "203.0.113.5",
		"192.168.1.1"}
)

func drawEnd(t *rapid.T) netip.AddrPort {
	if rapid.IntRange(0, 5).Draw(t, "known") == 0 {
		return netip.AddrPort{}
	}
	host := netip.MustParseAddr(rapid.SampledFrom(drawnHosts).Draw(t, "host"))
	return netip.AddrPortFrom(host, uint16(5000+rapid.IntRange(0, 3).Draw(t, "port")))
}

// drawStreams are streams as Leg.Streams might have them, in pairs.
func drawStreams(t *rapid.T) (all []dialog.Stream) {
	for range rapid.IntRange(0, 3).Draw(t, "media") {
		s := dialog.Stream{
			Index: rapid.IntRange(0, 1).Draw(t, "index"), Kind: sdp.Audio, FromCaller: true,
			From: drawEnd(t), To: drawEnd(t),
			FromHop: netip.MustParseAddr(rapid.SampledFrom(drawnHosts).Draw(t, "from hop")),
			ToHop:   netip.MustParseAddr(rapid.SampledFrom(drawnHosts).Draw(t, "to hop")),
			Codecs:  []qos.Codec{rapid.SampledFrom(drawnCodecs).Draw(t, "codec")},
			Sends:   rapid.Bool().Draw(t, "sends"), Settled: rapid.Bool().Draw(t, "settled"),
		}
		s.Exact = s.From.IsValid() && s.To.IsValid() && rapid.Bool().Draw(t, "exact")
		back := s
		back.FromCaller, back.Sends = false, rapid.Bool().Draw(t, "sends back")
		back.From, back.To, back.FromHop, back.ToHop = s.To, s.From, s.ToHop, s.FromHop
		all = append(all, s, back)
	}
	return all
}

// step makes one change.
func (m *model) step(t *rapid.T) {
	m.now = m.now.Add(time.Second)
	if len(m.legs) > 0 && rapid.IntRange(0, 3).Draw(t, "ends") == 0 {
		i := rapid.IntRange(0, len(m.legs)-1).Draw(t, "leg")
		m.took(t, m.ledger.Release(m.legs[i]))
		m.legs = slices.Delete(m.legs, i, i+1)
		return
	}
	var g *dialog.Leg
	if len(m.legs) > 0 && rapid.Bool().Draw(t, "again") {
		g = rapid.SampledFrom(m.legs).Draw(t, "leg")
	} else {
		g = &dialog.Leg{CallID: fmt.Sprint(rapid.IntRange(1, 8).Draw(t, "call"))}
	}
	u := Update{Leg: g, Streams: drawStreams(t), Emergency: rapid.IntRange(0, 15).Draw(t, "emergency") == 0}
	if c := m.ledger.calls[g.CallID]; u.Emergency || c != nil && c.emergency {
		m.over = true
	}
	if rapid.IntRange(0, 5).Draw(t, "callee") == 0 {
		u.Callee = netip.MustParseAddr(rapid.SampledFrom(drawnHosts).Draw(t, "registered"))
	}

	if rapid.Bool().Draw(t, "refusable") {
		calls, budgets := m.ledger.Calls(), m.ledger.Budgets()
		d := m.ledger.Admit(m.now, u)
		if d.Verdict == Refused {
			m.refused++
			require.NotEmpty(t, d.Reason)
			require.Empty(t, d.Actions)
			require.Empty(t, d.Mute)
			require.Empty(t, d.Unmute)
			require.Equal(t, calls, m.ledger.Calls(), "a refused offer changes nothing")
			require.Equal(t, budgets, m.ledger.Budgets())
			return
		}
		m.took(t, d)
	} else {
		d := m.ledger.Settle(m.now, u)
		require.Equal(t, Admitted, d.Verdict)
		m.took(t, d)
	}
	if !slices.Contains(m.legs, g) {
		m.legs = append(m.legs, g)
	}
}

// took checks what holds after each step.
func (m *model) took(t *rapid.T, d Decision) {
	l := m.ledger
	limits := map[string]qos.BitRate{}
	for _, b := range l.Budgets() {
		require.True(t, m.over || m.shrunk || b.Limit == 0 || b.Taken <= b.Limit, "%+v", b)
		if !b.Inbound && b.Site != "" {
			limits[b.Site] = b.Limit
		}
	}
	m.engine.take(t, d.Actions, func(site string) qos.BitRate {
		if m.over || m.shrunk {
			return 0
		}
		return limits[site]
	})
	require.Equal(t, len(m.engine.held), len(l.Reservations()))
	for _, r := range l.Reservations() {
		require.Equal(t, m.engine.held[r.Flow], r)
	}
	for _, x := range d.Mute {
		require.False(t, l.calls[x.CallID].emergency, "an emergency call is never muted")
		require.True(t, l.calls[x.CallID].muted)
	}
	m.sums(t)
}

// sums compares the accounts with the places, and the places with the calls.
func (m *model) sums(t *rapid.T) {
	l := m.ledger
	taken, places := map[*account]qos.BitRate{}, map[*account]int{}
	for k, p := range l.places {
		require.Equal(t, k, p.key)
		require.NotEmpty(t, p.users)
		most := qos.BitRate(0)
		for _, u := range p.users {
			most = max(most, u.rate)
			at := find(u.call.has, k)
			require.GreaterOrEqual(t, at, 0)
			require.Equal(t, u.rate, u.call.has[at].rate)
		}
		require.Equal(t, most, p.rate)
		for a := p.account; a != nil; a = a.pool {
			taken[a] += p.rate
			places[a]++
		}
	}
	for _, a := range l.world.all {
		require.Equal(t, taken[a], a.taken, "%+v", a.Where)
		require.Equal(t, places[a], a.places)
	}
	waiting, legs := 0, 0
	for _, c := range l.calls {
		require.False(t, c.muted && (c.emergency || len(c.has) > 0))
		waiting += bit(c.muted) + bit(c.short)
		legs += len(c.legs)
		for _, w := range c.has {
			require.NotNil(t, l.places[w.key])
		}
	}
	require.Equal(t, waiting, l.waiting)
	require.Equal(t, legs, len(l.byLeg))
}

func TestWhateverCallsDo(t *testing.T) {
	refused := 0
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(drawWorld(t))
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			if rapid.IntRange(0, 30).Draw(t, "reload") == 0 {
				m.shrunk = true
				m.took(t, m.ledger.Use(drawWorld(t)))
			}
			m.step(t)
		}
		refused += m.refused
		for _, g := range m.legs {
			m.took(t, m.ledger.Release(g))
		}
		require.Zero(t, m.ledger.Len())
		require.Empty(t, m.ledger.byLeg)
		require.Empty(t, m.ledger.places)
		require.Empty(t, m.ledger.flows)
		require.Empty(t, m.engine.held, "after all calls have ended, nothing is reserved")
		require.Zero(t, m.ledger.waiting)
	})
	t.Logf("%d offers refused", refused)
}

// Identical calls: exactly as many as the queues' arithmetic promises are admitted, whatever the budget, the
// codec and the envelope, and in whatever order some of them end.
func TestCallsAreThoseOfTheQueues(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := testWorld(1)
		b := &w.Sites[0].Out
		b.Rate = qos.BitRate(rapid.Uint64Range(0, uint64(3*qos.Mbit)).Draw(t, "rate")) + 1
		b.PadTo = qos.ByteCount(rapid.SampledFrom([]int{0, 208, 512}).Draw(t, "pad"))
		b.Envelope.IPv6 = rapid.Bool().Draw(t, "outer6")
		c := qos.Codec{Name: "drawn", Payload: qos.ByteCount(rapid.IntRange(1, 320).Draw(t, "payload")),
			Interval: time.Duration(rapid.IntRange(5, 60).Draw(t, "ms")) * time.Millisecond}
		l, now := New(1000, w), time.Unix(1_800_000_000, 0)
		var legs []*dialog.Leg
		for n := range rapid.IntRange(1, 60).Draw(t, "calls") {
			if len(legs) > 0 && rapid.IntRange(0, 4).Draw(t, "ends") == 0 {
				l.Release(legs[0])
				legs = legs[1:]
			}
			g := &dialog.Leg{CallID: fmt.Sprint(n)}
			d := l.Admit(now, Update{Leg: g, Streams: []dialog.Stream{{
				FromCaller: true, From: netip.AddrPortFrom(hosts["A"], uint16(5000+n)), FromHop: hosts["A"],
				ToHop: hosts["P"], Codecs: []qos.Codec{c}, Sends: true,
			}}})
			require.Equal(t, len(legs) < b.Calls(c), d.Verdict == Admitted)
			if d.Verdict == Admitted {
				legs = append(legs, g)
			}
		}
	})
}

// Messages in any order, through dialogs and ledger together: both have the same legs, and in the end there is
// nothing in either.
func TestWhateverMessagesCome(t *testing.T) {
	paths := []string{"A>P", "P>A", "P>B", "B>P", "A>L", "L>A", "L>X", "X>L", "V>L", "L>V", "A>T", "T>A"}
	bodies := []string{"", " c=10.1.10.10:5004", " c=10.1.10.11:5006 m=18", " c=10.2.10.31:7000", " c=0.0.0.0:5004",
		" c=10.3.10.31:7000 v=10.3.10.31:7002", " c=203.0.113.9:9000 a=sendonly", " c=10.2.10.5:0", " n=media.example.com"}
	starts := []string{"INVITE a", "INVITE a b", "INVITE b a", "UPDATE a b", "ACK a b", "BYE a b", "CANCEL a", "PRACK a b",
		"180 INVITE a b", "183 INVITE a b", "200 INVITE a b", "200 INVITE a c", "200 INVITE b a", "488 INVITE a b",
		"487 INVITE a b", "200 BYE a b", "200 UPDATE a b", "200 PRACK a b", "407 INVITE a b"}
	var refusals, muted, moved int
	rapid.Check(t, func(rt *rapid.T) {
		s := play(t, testWorld(rapid.IntRange(1, 3).Draw(rt, "calls")))
		same := func() {
			lives := map[*dialog.Leg]bool{}
			s.tr.Legs(func(g *dialog.Leg) {
				lives[g] = true
				if s.ledger.byLeg[g] == nil { // what was refused, of a call that was there before
					require.Empty(rt, g.Streams())
				}
			})
			for g := range s.ledger.byLeg {
				require.True(rt, lives[g])
			}
			muted += len(s.d.Mute)
			moved += len(s.d.Actions)
		}
		for range rapid.IntRange(1, 60).Draw(rt, "messages") {
			to := rapid.SampledFrom([]string{"", "", "", "", "", "", " to=112"}).Draw(rt, "to")
			s.says(fmt.Sprintf("%s %s id=%d cseq=%d%s%s", rapid.SampledFrom(paths).Draw(rt, "path"),
				rapid.SampledFrom(starts).Draw(rt, "start"), rapid.IntRange(1, 3).Draw(rt, "call"),
				rapid.IntRange(1, 3).Draw(rt, "cseq"), to, rapid.SampledFrom(bodies).Draw(rt, "body")))
			if s.d.Verdict == Refused {
				refusals++
				continue // the leg may have ended with it, and the ledger never had it
			}
			same()
			if rapid.IntRange(0, 10).Draw(rt, "time") == 0 {
				s.after(time.Duration(rapid.IntRange(1, 40).Draw(rt, "s")) * time.Second)
				same()
			}
		}
		for end := s.now.Add(48 * time.Hour); s.now.Before(end) && s.tr.Len() > 0; {
			s.now = s.tr.Next()
			s.follow(s.tr.Expire(s.now), Info{})
		}
		s.tr.Legs(func(g *dialog.Leg) { // on hold, and not idle therefore
			require.True(rt, g.Held())
			s.follow(dialog.Step{Ended: []*dialog.Leg{g}}, Info{})
		})
		s.empty()
	})
	t.Logf("%d offers refused, %d calls muted, %d actions", refusals, muted, moved)
}
