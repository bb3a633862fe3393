package abuse

import (
	"container/list"
	"net/netip"
	"slices"
	"time"

	"ringway/sip/message"
)

// instant is a time in nanoseconds since 1970; 0: never.
type instant int64

func instantOf(t time.Time) instant { return instant(t.UnixNano()) }

func (i instant) add(d time.Duration) instant { return i + instant(d) }

func (i instant) sub(j instant) time.Duration { return time.Duration(i - j) }

func (i instant) time() time.Time { return time.Unix(0, int64(i)) }

// recent reports whether i is at most so long ago. What lies in the future is from before the clock was set back.
func (i instant) recent(now instant, within time.Duration) bool {
	return i <= now && now < i.add(within)
}

// bucket is a token bucket. The zero value is full.
type bucket struct {
	tokens float64
	at     instant
}

// take takes a token, if there is one.
func (b *bucket) take(now instant, r *Rate) bool {
	if b.at == 0 {
		b.tokens = float64(r.Burst)
	}
	b.tokens = min(b.tokens+max(0, now.sub(b.at).Seconds())*r.PerSecond, float64(r.Burst))
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// window remembers the times of the latest events.
type window []instant

// add counts an event. It returns how many there were within a duration, limit at most, which is positive.
func (w *window) add(now instant, within time.Duration, limit int) int {
	*w = slices.DeleteFunc(*w, func(i instant) bool { return !i.recent(now, within) })
	if len(*w) >= limit {
		*w = slices.Delete(*w, 0, 1)
	}
	*w = append(*w, now)
	return len(*w)
}

// counter counts events in windows that do not overlap. It needs no memory for each, and finds up to twice as
// many within a duration as it says.
type counter struct {
	n     int
	since instant
}

func (c *counter) add(now instant, within time.Duration) int {
	if !c.since.recent(now, within) {
		c.n, c.since = 0, now
	}
	c.n++
	return c.n
}

// key identifies a source: an address, and the side that it sends from. On the far side, an address of a LAN is
// one that somebody else has taken.
type key struct {
	addr netip.Addr
	near bool
}

// source is what is remembered of an address that sends.
type source struct {
	key
	place Place
	seen  instant

	messages bucket  // of all messages but answers that are owed
	owed     int     // answers to requests that it was sent
	spare    bucket  // of those within calls, when messages is empty
	dropped  counter // messages above the rate

	asked     []transaction // its latest requests without a final answer, oldest first
	probes    []probe       // whom it tried to reach, oldest first
	failures  []failure     // wrong credentials, oldest first
	malformed window
	reported  [kinds]instant // the latest warning of each kind

	phone *phone // nil: nothing is registered from here

	banned    instant // until then
	throttled instant // until then
	why       Kind    // of the latest ban or throttle
	inRelay   bool    // see Event.InRelay
	strikes   int     // bans that grew
	struck    instant // when the latest of them ends

	held    bool
	element *list.Element
}

// transaction is a request without a final answer.
type transaction struct {
	id          uint64 // of branch, Call-ID and CSeq
	peer        netip.Addr
	at          instant
	user        uint64 // hash of the user to be reached
	account     uint64 // hash of the sender's user
	method      message.Method
	credentials bool
	inDialog    bool
}

// maxAsked is how many requests of a source are remembered. One that waits for more answers than that has
// sent them within a round trip, which is above any rate.
const maxAsked = 32

// probe is a user, or a target address, that refused a source or has not answered it yet.
type probe struct {
	what    uint64 // hash of the user or address
	at      instant
	target  bool
	refused bool // else it counts when Limits.Grace has passed
}

// failure is a refusal of credentials.
type failure struct {
	account uint64
	at      instant
}

// ask remembers a request. The same again is a retransmission.
func (s *source) ask(tx transaction) {
	if slices.ContainsFunc(s.asked, func(x transaction) bool { return x.id == tx.id && x.peer == tx.peer }) {
		return
	}
	if len(s.asked) == maxAsked {
		s.asked = slices.Delete(s.asked, 0, 1)
	}
	s.asked = append(s.asked, tx)
}

// try remembers whom the source tries to reach. What is refused stays refused.
func (s *source) try(p probe, limit int) {
	for i := range s.probes {
		if old := &s.probes[i]; old.what == p.what && old.target == p.target {
			if p.refused {
				old.at, old.refused = p.at, true
			}
			return
		}
	}
	if len(s.probes) >= limit {
		s.probes = slices.Delete(s.probes, 0, 1)
	}
	s.probes = append(s.probes, p)
}

// reached forgets a user or a target that has answered well.
func (s *source) reached(what uint64, target bool) {
	s.probes = slices.DeleteFunc(s.probes, func(p probe) bool { return p.what == what && p.target == target })
}

// refusals counts distinct users and distinct targets that were refused, and returns the larger number.
func (s *source) refusals(now instant, within, grace time.Duration) int {
	s.probes = slices.DeleteFunc(s.probes, func(p probe) bool { return !p.at.recent(now, within) })
	users, targets := 0, 0
	for i := range s.probes {
		p := &s.probes[i]
		switch {
		case !p.refused && p.at.add(grace) > now:
		case p.target:
			targets++
		default:
			users++
		}
	}
	return max(users, targets)
}

// fail counts wrong credentials of an account.
func (s *source) fail(now instant, account uint64, within time.Duration, limit int) int {
	s.failures = slices.DeleteFunc(s.failures, func(f failure) bool { return !f.at.recent(now, within) })
	if len(s.failures) >= limit {
		s.failures = slices.Delete(s.failures, 0, 1)
	}
	s.failures = append(s.failures, failure{account, now})
	return len(s.failures)
}

// clear forgets what was counted, after something was done about it.
func (s *source) clear() {
	s.probes, s.failures, s.malformed, s.dropped = nil, nil, nil, counter{}
}

// bannable reports whether a ban hits the sender and nobody else: on a LAN, where its address was checked, or
// on the WAN. The address of a LAN from the far side, or of the internet from the near side, is taken.
func (s *source) bannable() bool { return s.place == LAN && s.near || s.place == WAN && !s.near }

// keeps reports whether there is something about s that must not be forgotten as soon as others come.
func (s *source) keeps(now instant, strikes time.Duration) bool {
	return s.banned > now || s.throttled > now || s.strikes > 0 && s.struck.add(strikes) > now || s.registered(now)
}

// sources are two lists of at most max sources each: those that were banned, throttled or have registered, and
// all others. Of each list, the one that was silent longest goes first. So a million made-up addresses push out
// one another, and no ban.
type sources struct {
	max         int
	all         map[key]*source
	plain, kept *list.List // least recently seen first
	gone        uint64
}

func newSources(limit int) sources {
	return sources{max: limit, all: map[key]*source{}, plain: list.New(), kept: list.New()}
}

func (t *sources) list(s *source) *list.List {
	if s.held {
		return t.kept
	}
	return t.plain
}

// get finds or makes the source of a message.
func (t *sources) get(k key, place Place, now instant) *source {
	s := t.all[k]
	if s == nil {
		s = &source{key: k}
		t.all[k] = s
		s.element = t.plain.PushBack(s)
		t.bound(t.plain)
	}
	s.place, s.seen = place, now
	t.list(s).MoveToBack(s.element)
	return s
}

// hold moves a source to those that stay, or back.
func (t *sources) hold(s *source, held bool) {
	if s.held == held || t.all[s.key] != s {
		return
	}
	t.list(s).Remove(s.element)
	s.held = held
	s.element = t.list(s).PushBack(s)
	t.bound(t.list(s))
}

func (t *sources) bound(l *list.List) {
	for l.Len() > t.max {
		t.remove(l.Front().Value.(*source))
		t.gone++
	}
}

func (t *sources) remove(s *source) {
	t.list(s).Remove(s.element)
	delete(t.all, s.key)
}
