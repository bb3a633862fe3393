// Package admission decides which calls fit the voice budgets, and which places in them are to be reserved.
// It is pure: it knows of calls what package dialog made of their messages, and reckons as package qos does
// for the queues.
//
// What a call costs follows the addresses in its descriptions. Each direction of each medium is charged to
// the budgets that its packets pass through here (world.go): of the site that it goes to, of the line for all
// sites together, of the internet. Media within one LAN cost nothing; a PBX that relays them has two legs,
// which cost each for itself; the same packets described in two dialogs count once (claim.go).
//
//  1. An offer is charged with the dearest format and packet duration in it. While nothing is known of the
//     called party's address, its hop's counts, or where it is registered (Update.Callee).
//  2. If it does not fit, it is refused, and everything stays as it was. An answer settles it to the codec
//     that was chosen: then the flows are known, and engines are asked for reservations.
//  3. A place is kept through hold, and given back when the leg or the medium ends.
//  4. An emergency call always gets its place. Where there is none, the newest calls lose theirs, one after
//     the other, until there is; they get it back when there is room.
//  5. What cannot be refused any more goes on without a place until there is room: an answer from another
//     place than the offer went to, or an offer in a response.
package admission

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"ringway/qos"
	"ringway/sip/dialog"
	"ringway/tunnel"
)

// maxLegs bounds the legs of one call. Its proxy passes it through here twice or three times.
const maxLegs = 32

// Ledger has the places of all calls. It is not for several goroutines at once.
type Ledger struct {
	// MaxCalls bounds the calls. What is beyond passes and takes no place.
	MaxCalls int

	world   *world
	calls   map[string]*call // by Call-ID
	byLeg   map[*dialog.Leg]*call
	places  map[key]*place
	flows   map[tunnel.Flow]sent     // that are sent from here
	touched map[tunnel.Flow]struct{} // whose place changed in this step
	waiting int                      // calls that have less than they need
	order   uint64                   // of the call that came last
	beyond  uint64
}

// call is all legs with one Call-ID.
type call struct {
	id        string
	since     time.Time
	order     uint64 // of calls of one moment, later ones have higher numbers
	legs      []*leg
	has       []want // the places that it has
	emergency bool
	muted     bool // for an emergency
	short     bool // it has less than it needs
}

type leg struct {
	*dialog.Leg
	callee  netip.Addr
	streams []dialog.Stream
	claims  []claim
}

// byAge compares the ages of two calls, the older one first.
func byAge(a, b *call) int { return cmp.Or(a.since.Compare(b.since), cmp.Compare(a.order, b.order)) }

// inOrder are all calls, the oldest first.
func (l *Ledger) inOrder() []*call {
	all := make([]*call, 0, len(l.calls))
	for _, c := range l.calls {
		all = append(all, c)
	}
	slices.SortFunc(all, byAge)
	return all
}

// place is what some packets take of a budget. Several calls may speak of the same packets.
type place struct {
	key
	users []user
	rate  qos.BitRate // the most that one of them needs
}

type user struct {
	call *call
	rate qos.BitRate
}

// sent is a flow that is sent from here.
type sent struct {
	place *place      // nil: it has none any more
	at    *account    // of the reservation that engines were asked for; nil: none
	rate  qos.BitRate // of the same
}

// New makes a Ledger without calls.
func New(maxCalls int, w World) *Ledger {
	l := &Ledger{MaxCalls: maxCalls, calls: map[string]*call{}, byLeg: map[*dialog.Leg]*call{},
		flows: map[tunnel.Flow]sent{}, touched: map[tunnel.Flow]struct{}{}}
	l.reset(w)
	return l
}

func (l *Ledger) reset(w World) {
	l.world, l.places = compile(w), map[key]*place{}
	for f, s := range l.flows {
		l.flows[f] = sent{at: s.at, rate: s.rate}
		l.touched[f] = struct{}{}
	}
}

// Len is how many calls there are; Beyond, how many changes there were to calls beyond the bound.
func (l *Ledger) Len() int       { return len(l.calls) }
func (l *Ledger) Beyond() uint64 { return l.beyond }

// Update is a leg as it is after a message.
type Update struct {
	Leg     *dialog.Leg
	Streams []dialog.Stream // Leg.Streams()
	// Emergency: the message says so (package emergency). A call that was one once remains one.
	Emergency bool
	// Callee is where the called party is registered, if that is known: its media will probably be there, and
	// not where its PBX is. Invalid: not known.
	Callee netip.Addr
}

// Admit takes the leg of a message whose offer may be refused (Refusable).
func (l *Ledger) Admit(now time.Time, u Update) (d Decision) {
	l.change(now, []Update{u}, true, &d)
	return l.finish(d)
}

// Settle takes the leg of any other message: an answer, an error that withdraws an offer, hold. A call is as old
// as its first update says: a process that takes calls over from another one settles each with the time at
// which it began.
func (l *Ledger) Settle(now time.Time, u Update) (d Decision) {
	l.change(now, []Update{u}, false, &d)
	return l.finish(d)
}

// Release gives back what a leg has that ended.
func (l *Ledger) Release(g *dialog.Leg) (d Decision) {
	l.leave(g, &d)
	return l.finish(d)
}

// Info is what a step of the dialogs does not tell of its message.
type Info struct {
	Refusable bool // Refusable(m)
	Emergency bool
	Callee    netip.Addr
}

// Follow takes a step of a dialog.Tracker. If the verdict is Refused, the step is to be taken back
// (dialog.Tracker.Refuse). What that leads to is followed already: a call that is up stays as it was, and a leg
// whose INVITE is refused ends, also if an INVITE before it was let through.
func (l *Ledger) Follow(now time.Time, st dialog.Step, i Info) (d Decision) {
	for _, g := range st.Ended {
		l.leave(g, &d)
	}
	var updates []Update
	if g := st.Leg; g != nil && g.Why() == "" && st.Drop == "" {
		updates = append(updates, Update{Leg: g, Streams: g.Streams(), Emergency: i.Emergency, Callee: i.Callee})
	}
	for _, g := range st.Others {
		if g.Why() == "" {
			updates = append(updates, Update{Leg: g, Streams: g.Streams()})
		}
	}
	if i.Refusable && st.Offered && len(updates) > 0 { // then all are of one call
		l.change(now, updates, true, &d)
		if d.Verdict == Refused && st.Dialog == nil {
			l.leave(st.Leg, &d)
		}
		return l.finish(d)
	}
	for k := range updates {
		l.change(now, updates[k:k+1], false, &d)
	}
	return l.finish(d)
}

// change charges legs of one call as they are now.
func (l *Ledger) change(now time.Time, updates []Update, refusable bool, d *Decision) {
	c, isNew := l.callOf(now, updates[0].Leg.CallID)
	if c == nil {
		l.beyond++
		d.Reason = TableFull
		return
	}
	legs, emergency, changed := slices.Clone(c.legs), c.emergency, false
	for i := range updates {
		u := &updates[i]
		emergency = emergency || u.Emergency
		at := slices.IndexFunc(legs, func(g *leg) bool { return g.Leg == u.Leg })
		switch {
		case at >= 0 && legs[at].is(u):
		case at >= 0:
			legs[at], changed = l.next(legs[at], u), true
		case len(legs) < maxLegs:
			legs, changed = append(legs, l.next(&leg{Leg: u.Leg}, u)), true
		default:
			l.beyond++
			d.Reason = TableFull
		}
	}
	if !changed && emergency == c.emergency {
		return
	}

	wants := c.wants(legs)
	if full := l.full(c, wants); len(full) > 0 && !emergency && !c.muted {
		d.Reason, d.Where = full[0].reason(), full[0].Where
		if refusable {
			d.Verdict = Refused
			return
		}
	}
	if isNew {
		l.calls[c.id] = c
	}
	c.legs, c.emergency = legs, emergency
	for _, g := range legs {
		l.byLeg[g.Leg] = c
	}
	l.place(c, wants, d)
}

// callOf finds or makes a call; nil if it would be one too many. One that was made is not in the ledger yet.
func (l *Ledger) callOf(now time.Time, id string) (c *call, isNew bool) {
	if c = l.calls[id]; c != nil {
		return c, false
	}
	if len(l.calls) >= l.MaxCalls {
		return nil, false
	}
	l.order++
	return &call{id: id, order: l.order, since: now}, true
}

// is reports whether a leg is as an update says.
func (g *leg) is(u *Update) bool {
	return (!u.Callee.IsValid() || u.Callee == g.callee) && slices.EqualFunc(g.streams, u.Streams, equal)
}

// next is a leg as an update says.
func (l *Ledger) next(g *leg, u *Update) *leg {
	n := &leg{Leg: g.Leg, callee: g.callee, streams: u.Streams}
	if u.Callee.IsValid() {
		n.callee = u.Callee
	}
	n.claims = l.world.claims(n.streams, n.callee, g.claims)
	return n
}

// leave gives back what a leg has.
func (l *Ledger) leave(ended *dialog.Leg, d *Decision) {
	c := l.byLeg[ended]
	if c == nil {
		return
	}
	delete(l.byLeg, ended)
	c.legs = slices.DeleteFunc(c.legs, func(g *leg) bool { return g.Leg == ended })
	if len(c.legs) > 0 {
		l.place(c, c.wants(c.legs), d)
		return
	}
	l.give(c, nil, false)
	if c.muted {
		l.waiting--
	}
	delete(l.calls, c.id)
}

// place gives a call what it wants: an emergency call all of it, another one what there is room for.
func (l *Ledger) place(c *call, wants []want, d *Decision) {
	if !c.emergency {
		l.fit(c, wants, d)
		return
	}
	l.makeRoom(c, wants, d)
	if c.muted {
		l.unmute(c, d)
	}
	l.give(c, wants, false)
}

func (l *Ledger) mute(c *call, d *Decision) {
	l.give(c, nil, false)
	c.muted = true
	l.waiting++
	d.Mute = append(d.Mute, c.asMuted())
}

func (l *Ledger) unmute(c *call, d *Decision) {
	c.muted = false
	l.waiting--
	d.Unmute = append(d.Unmute, c.asMuted())
}

// fit gives a call what it wants, or as much of that as there is room for: what it has already first, then
// one medium after the other. A muted call gets all or nothing.
func (l *Ledger) fit(c *call, wants []want, d *Decision) {
	if len(l.full(c, wants)) == 0 {
		if c.muted {
			l.unmute(c, d)
		}
		l.give(c, wants, false)
		return
	}
	if c.muted {
		return
	}

	had := func(i int) bool { return find(c.has, wants[i].key) >= 0 }
	order := make([]int, len(wants))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(i, k int) int { return cmp.Compare(bit(!had(i)), bit(!had(k))) })

	var some []want
	for _, i := range order {
		w := wants[i]
		if len(l.full(c, append(some, w))) == 0 {
			some = append(some, w)
			continue
		}
		if at := find(c.has, w.key); at >= 0 && c.has[at].rate < w.rate { // no more than it has
			w.rate = c.has[at].rate
			if len(l.full(c, append(some, w))) == 0 {
				some = append(some, w)
			}
		}
	}
	slices.SortFunc(some, func(a, b want) int { return cmp.Compare(find(wants, a.key), find(wants, b.key)) })
	l.give(c, some, true)
}

func bit(b bool) int {
	if b {
		return 1
	}
	return 0
}

// makeRoom mutes the newest calls until an emergency call has what it wants. Where no more can be muted, it
// gets it all the same.
func (l *Ledger) makeRoom(c *call, wants []want, d *Decision) {
	for {
		var victim *call
		for _, a := range l.full(c, wants) {
			if victim = l.newestOn(a, c); victim != nil {
				break
			}
		}
		if victim == nil {
			return
		}
		l.mute(victim, d)
	}
}

// newestOn is the newest call that may be muted and has something of an account; nil if there is none.
func (l *Ledger) newestOn(a *account, except *call) (newest *call) {
	for _, c := range l.calls {
		if c == except || c.emergency || c.muted || newest != nil && byAge(newest, c) > 0 {
			continue
		}
		if slices.ContainsFunc(c.has, func(w want) bool { return w.account == a || w.account.pool == a }) {
			newest = c
		}
	}
	return newest
}

func (c *call) asMuted() Muted {
	m := Muted{CallID: c.id}
	for _, g := range c.legs {
		m.Legs = append(m.Legs, g.Leg)
	}
	return m
}

// retry gives calls that have less than they need what there is room for now, the oldest first.
func (l *Ledger) retry(d *Decision) {
	if l.waiting == 0 {
		return
	}
	var waiting []*call
	for _, c := range l.calls {
		if c.muted || c.short {
			waiting = append(waiting, c)
		}
	}
	slices.SortFunc(waiting, byAge)
	for _, c := range waiting {
		l.fit(c, c.wants(c.legs), d)
	}
}

// finish ends a step: calls that wait get what was freed, and engines are asked for what changed.
func (l *Ledger) finish(d Decision) Decision {
	l.retry(&d)
	muted, unmuted := d.Mute, d.Unmute // in one step it is neither
	d.Mute, d.Unmute = except(muted, unmuted), except(unmuted, muted)
	d.Actions = l.actions()
	return d
}

// except are those of a list that are not in another one; nil if there is none.
func except(list, others []Muted) (all []Muted) {
	for _, m := range list {
		if !slices.ContainsFunc(others, func(o Muted) bool { return o.CallID == m.CallID }) {
			all = append(all, m)
		}
	}
	return all
}

// Use takes another world: sites, budgets and networks after a change of the configuration, or a site that is
// reached over another line. Calls that have a place keep it, also where it is more than the budget is now.
func (l *Ledger) Use(w World) (d Decision) {
	l.reset(w)
	for _, c := range l.inOrder() {
		c.has = nil
		for _, g := range c.legs {
			g.claims = l.world.claims(g.streams, g.callee, l.world.moved(g.claims))
		}
		switch {
		case c.muted:
		case c.short:
			l.fit(c, c.wants(c.legs), &d)
		default:
			l.give(c, c.wants(c.legs), false)
		}
	}
	return l.finish(d)
}

// moved are claims on accounts of a world before, on those of this one.
func (w *world) moved(before []claim) (all []claim) {
	for _, c := range before {
		if c.account = w.account(c.account.Where); c.account != nil {
			all = append(all, c)
		}
	}
	return all
}

func equal(a, b dialog.Stream) bool {
	return a.Index == b.Index && a.Kind == b.Kind && a.FromCaller == b.FromCaller && a.From == b.From &&
		a.To == b.To && a.FromHop == b.FromHop && a.ToHop == b.ToHop && a.SRTP == b.SRTP && a.Sends == b.Sends &&
		a.FromBox == b.FromBox && a.ToBox == b.ToBox && a.Overhead == b.Overhead &&
		a.Settled == b.Settled && a.Exact == b.Exact && slices.Equal(a.Codecs, b.Codecs)
}
