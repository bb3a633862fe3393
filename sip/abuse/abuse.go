// Package abuse watches signalling for what attackers do to phone systems, and says what to do about a source:
// report it, slow it down, ban it, or refuse its call. It is pure: the clock is an argument, and it executes
// nothing. What it drops itself it says in the Result of each message.
//
// What counts is the address that a packet came from. From, Contact and Via can name anybody, and a response
// counts against a source only if it answers a request of that source. A PBX, a trunk and the far site are never
// banned, nor is an address inside a tunnel, which may be any host of the far site; those are slowed down.
// Emergency calls, and the messages of calls in progress, pass a ban.
package abuse

import (
	"bytes"
	"fmt"
	"hash/maphash"
	"net/netip"
	"slices"
	"time"

	"ringway/sip/message"
)

// Place is where an address is, by the config.
type Place uint8

// Places. A PBX in a LAN is a PBX.
const (
	Elsewhere Place = iota // not known: treated as Tunnel
	LAN
	WAN
	Tunnel // a host of a far site
	FarSite
	PBX
	Trunk
)

// peer holds for those whose addresses are configured.
func (p Place) peer() bool { return p == FarSite || p == PBX || p == Trunk }

// Input is a message that a relay has received.
type Input struct {
	Now       time.Time
	From, To  netip.Addr // of the packet
	Near      bool       // it came in on a LAN; else from a tunnel or a WAN
	Message   *message.Message
	Why       message.Reason // what Message.Scan returned
	Emergency bool           // it starts an emergency call
}

// Watch remembers what each source did. It is not for several goroutines at once.
type Watch struct {
	limits  Limits
	where   func(netip.Addr) Place
	sources sources
	users   users
	calls   calls

	hash   maphash.Hash
	now    instant
	events []Event
}

// New makes a Watch. where says where an address is; it is asked several times for each message.
func New(l Limits, where func(netip.Addr) Place) (*Watch, error) {
	w := &Watch{
		where:   where,
		sources: newSources(l.MaxSources),
		users:   newUsers(l.MaxUsers),
		calls:   newCalls(l.MaxCalls),
	}
	if err := w.Use(l); err != nil {
		return nil, err
	}
	return w, nil
}

// Use takes other limits. What was counted stays, and so do bans, for as long as they were given. After an error the
// limits are as before.
func (w *Watch) Use(l Limits) error {
	if err := l.Validate(); err != nil {
		return fmt.Errorf("limits: %w", err)
	}
	if l.Location == nil {
		l.Location = time.UTC
	}
	l.Premium, l.Numbers.International = slices.Clone(l.Premium), slices.Clone(l.Numbers.International)
	w.limits = l // in place: users point to the rules in it
	w.sources.max, w.users.max, w.calls.max = l.MaxSources, l.MaxUsers, l.MaxCalls
	return nil
}

func (w *Watch) begin(now time.Time) {
	w.now = instantOf(now)
	w.events = w.events[:0]
}

// Message takes one message, before it goes on:
//
//  1. a ban, then the rate of its source: what is above is dropped;
//  2. what cannot be framed is counted, what is not understood passes;
//  3. a request is remembered until its answer; one that starts a call is looked at for toll fraud;
//  4. a response tells what became of a request, and is dropped if it asks a phone for credentials that are none
//     of its business.
func (w *Watch) Message(in Input) Result {
	w.begin(in.Now)
	r := w.message(&in)
	if len(w.events) > 0 {
		r.Events = w.events
	}
	return r
}

func (w *Watch) message(in *Input) Result {
	s := w.sources.get(key{in.From, in.Near}, w.where(in.From), w.now)
	read := in.Why == message.None && in.Message != nil
	var c *call
	if read {
		c = w.calls.find(w.callID(in.Message))
	}
	if !in.Emergency && !w.admit(s, read && !in.Message.Request, read && c.holds(in)) {
		return Result{Verdict: Drop, Why: s.why}
	}
	if in.Why.Verdict() == message.Refused && !in.Emergency {
		n := s.malformed.add(w.now, w.limits.Malformed.Within, w.limits.Malformed.count())
		w.judge(s, Malformed, n, &w.limits.Malformed)
	}
	if !read {
		return Result{}
	}

	m := in.Message
	if !m.Request {
		if w.response(in, s) {
			return Result{Verdict: Drop, Why: DigestLeak}
		}
		w.follow(in, c)
		return Result{}
	}
	if m.Method == message.INVITE && len(tagOf(m, message.To)) == 0 && c == nil {
		if why := w.start(in, s); why != None {
			return Result{Verdict: Reject, Why: why}
		}
	}
	w.request(in, s)
	w.follow(in, c)
	return Result{}
}

// admit reports whether a message may pass the ban and the rate of its source. answer: it is a response. inCall: it
// belongs to a call in progress.
func (w *Watch) admit(s *source, answer, inCall bool) bool {
	flood := &w.limits.Flood
	spared := func() bool { return inCall && s.spare.take(w.now, &flood.Throttled) }
	if s.banned > w.now {
		return spared()
	}
	if answer && s.owed > 0 {
		s.owed--
		return true
	}
	rate := &flood.Phone
	switch {
	case s.place.peer():
		rate = &flood.Peer
	case s.throttled > w.now:
		rate = &flood.Throttled
	}
	if s.messages.take(w.now, rate) || spared() {
		return true
	}
	if s.throttled <= w.now {
		s.why = Flooding
		w.judge(s, Flooding, s.dropped.add(w.now, flood.Dropped.Within), &flood.Dropped)
	}
	return false
}

// count is the most that has to be counted.
func (r *Rule) count() int { return max(r.Warn, r.Block, 1) }

// texts are what events say, with a number and a duration.
var texts = [kinds]string{
	Scan:      "%d users or targets refused within %v",
	Guess:     "%d requests with wrong credentials within %v",
	Flooding:  "%d messages above its rate within %v",
	Malformed: "%d messages that cannot be framed within %v",
}

// judge does what a rule says about so many of something.
func (w *Watch) judge(s *source, k Kind, n int, r *Rule) {
	e := Event{
		At: w.now.time(), Source: s.addr, Kind: k, Level: Warn, Action: Alarm,
	}
	if k == Flooding {
		e.Action = Throttle
	}
	due := s.reported[k] == 0 || s.reported[k].add(max(r.Within, time.Minute)) <= w.now
	switch {
	case r.Block > 0 && n >= r.Block && !s.place.peer():
		w.block(s, &e, r)
	case r.Warn > 0 && n >= r.Warn && due:
		s.reported[k] = w.now
	default:
		return
	}
	e.Text = fmt.Sprintf(texts[k], n, r.Within)
	w.events = append(w.events, e)
}

// block bans a source, or slows it down if a ban would hit others.
func (w *Watch) block(s *source, e *Event, r *Rule) {
	e.Level = Block
	s.why = e.Kind
	s.clear()
	if s.bannable() {
		e.Action, e.For = Ban, w.sentence(s, r)
		s.banned = w.now.add(e.For)
		s.inRelay = s.place == LAN || w.calls.involve(s.addr)
		e.InRelay = s.inRelay
	} else {
		e.Action, e.For = Throttle, w.sentence(s, r)
		s.throttled = w.now.add(e.For)
	}
	w.sources.hold(s, true)
}

// sentence is how long a ban is. It doubles as long as the next one comes within MaxBan of the latest one's end.
func (w *Watch) sentence(s *source, r *Rule) time.Duration {
	if r.MaxBan <= r.Ban {
		return r.Ban
	}
	if s.struck.add(r.MaxBan) <= w.now {
		s.strikes = 0
	}
	d := r.Ban
	for range s.strikes {
		d = min(2*d, r.MaxBan)
	}
	s.strikes = min(s.strikes+1, 32)
	s.struck = w.now.add(d)
	return d
}

// Expire counts what has waited long enough, and forgets what is old. It looks at every source and call: some
// milliseconds at full tables, so once in some seconds is enough.
func (w *Watch) Expire(now time.Time) []Event {
	w.begin(now)
	idle := max(w.limits.Scan.Within, w.limits.Guess.Within, w.limits.Malformed.Within, w.limits.Flood.Dropped.Within)
	for _, s := range w.sources.all {
		if len(s.probes) > 0 && s.banned <= w.now && s.throttled <= w.now {
			w.judgeScan(s)
		}
		keeps := s.keeps(w.now, w.limits.Guess.MaxBan)
		w.sources.hold(s, keeps)
		if !keeps && s.seen.add(idle) <= w.now {
			w.sources.remove(s)
		}
	}
	w.expireCalls()
	slices.SortStableFunc(w.events, func(a, b Event) int { return a.Source.Compare(b.Source) })
	return w.events
}

// Standing is a ban or throttle that is in force.
type Standing struct {
	Source  netip.Addr
	Near    bool // the side of the source
	Kind    Kind
	Action  Action // Ban or Throttle
	Until   time.Time
	InRelay bool
	Strikes int // how often bans have grown
}

// Bans are all bans and throttles that are in force, in the order of addresses.
func (w *Watch) Bans(now time.Time) []Standing {
	w.begin(now)
	all := []Standing{}
	for _, s := range w.sources.all {
		b := Standing{Source: s.addr, Near: s.near, Kind: s.why, InRelay: s.inRelay, Strikes: s.strikes}
		switch {
		case s.banned > w.now:
			b.Action, b.Until = Ban, s.banned.time()
		case s.throttled > w.now:
			b.Action, b.Until = Throttle, s.throttled.time()
		default:
			continue
		}
		all = append(all, b)
	}
	slices.SortFunc(all, func(a, b Standing) int { return a.Source.Compare(b.Source) })
	return all
}

// Restore puts bans back after a restart. Those of a source that must no longer be banned are left out.
func (w *Watch) Restore(now time.Time, all []Standing) {
	w.begin(now)
	for _, b := range all {
		s := w.sources.get(key{b.Source, b.Near}, w.where(b.Source), w.now)
		until := instantOf(b.Until)
		switch {
		case until <= w.now || s.place.peer():
			continue
		case b.Action == Ban && s.bannable():
			s.banned = until
		default:
			s.throttled = until
		}
		s.why, s.inRelay, s.strikes, s.struck = b.Kind, b.InRelay, b.Strikes, until
		w.sources.hold(s, true)
	}
}

// Unban lifts the bans of an address and forgets what they were for. It reports whether there was one.
func (w *Watch) Unban(now time.Time, addr netip.Addr) (found bool) {
	w.begin(now)
	for _, near := range [...]bool{true, false} {
		s := w.sources.all[key{addr, near}]
		if s == nil {
			continue
		}
		found = found || s.banned > w.now || s.throttled > w.now
		s.clear()
		s.banned, s.throttled, s.strikes, s.struck, s.messages = 0, 0, 0, 0, bucket{}
	}
	return found
}

// Sizes are how much is remembered, and how much had to be forgotten to make room.
type Sizes struct {
	Sources, Users, Calls             int
	SourcesGone, UsersGone, CallsGone uint64
}

// Sizes returns them.
func (w *Watch) Sizes() Sizes {
	return Sizes{
		len(w.sources.all), len(w.users.all), len(w.calls.all),
		w.sources.gone, w.users.gone, w.calls.gone,
	}
}

// sum is a hash of some texts. Two that differ are the same with a chance of 2^-64, and no sender can arrange it.
func (w *Watch) sum(parts ...[]byte) uint64 {
	w.hash.Reset()
	for _, p := range parts {
		_, _ = w.hash.Write(p)
		_ = w.hash.WriteByte(0)
	}
	return w.hash.Sum64()
}

func (w *Watch) sumAddr(a netip.Addr) uint64 {
	b := a.As16()
	return w.sum(b[:])
}

func (w *Watch) callID(m *message.Message) uint64 { return w.sum(m.CallID()) }

func tagOf(m *message.Message, k message.Kind) []byte {
	a, _ := message.ParseAddress(m.Header(k))
	return a.Tag()
}

// userOf is the user in the first address of a header field.
func userOf(m *message.Message, k message.Kind) []byte {
	a, _ := message.ParseAddress(m.Header(k))
	u, _ := message.ParseURI(a.URI)
	return u.User
}

// targetOf is the user that a request is to reach.
func targetOf(m *message.Message) []byte {
	if m.Method != message.REGISTER {
		if u, _ := message.ParseURI(m.URI()); len(u.User) > 0 {
			return u.User
		}
	}
	return userOf(m, message.To)
}

// otherHeader is the first header field of a name that package message does not tell apart.
func otherHeader(m *message.Message, name string) []byte {
	for _, h := range m.Headers() {
		if h.Kind == message.OtherHeader && bytes.EqualFold(m.Bytes(h.Name), []byte(name)) {
			return m.Bytes(h.Value)
		}
	}
	return nil
}
