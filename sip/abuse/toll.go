package abuse

import (
	"container/list"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"ringway/sip/message"
)

// quiet is how long nothing is said again of the same thing.
const quiet = time.Minute

// user is somebody who pays for outside calls.
type user struct {
	name     string
	rule     *TollRule
	source   netip.Addr // of the latest call
	recent   window     // new outside calls of the latest minute
	abroad   []*call    // in progress, to foreign numbers
	day      int        // that spent is of: days since year 0
	spent    time.Duration
	reported [kinds][2]instant // the latest event of each kind and level
	seen     instant
	element  *list.Element
}

// leave takes a call away. u may be nil.
func (u *user) leave(c *call) {
	if u != nil {
		u.abroad = slices.DeleteFunc(u.abroad, func(x *call) bool { return x == c })
	}
}

// users are bounded: the one that called longest ago goes first.
type users struct {
	max   int
	all   map[string]*user
	order *list.List
	gone  uint64
}

func newUsers(limit int) users {
	return users{max: limit, all: map[string]*user{}, order: list.New()}
}

func (t *users) get(name string, now instant) *user {
	u := t.all[name]
	if u == nil {
		u = &user{name: name}
		t.all[name] = u
		u.element = t.order.PushBack(u)
		if t.order.Len() > t.max {
			t.remove(t.order.Front().Value.(*user))
			t.gone++
		}
	}
	u.seen = now
	t.order.MoveToBack(u.element)
	return u
}

func (t *users) remove(u *user) {
	t.order.Remove(u.element)
	delete(t.all, u.name)
}

// expire forgets users of yesterday.
func (t *users) expire(now instant) {
	for e := t.order.Front(); e != nil; e = t.order.Front() {
		u := e.Value.(*user)
		if u.seen.add(24*time.Hour) > now || len(u.abroad) > 0 {
			return
		}
		t.remove(u)
	}
}

// payer finds who pays for an outside call, and the rule for him. Without a rule, nobody is counted: the call is
// an inside one, or comes in from outside.
//
//   - From a phone: the user that is registered from its address and named in P-Asserted-Identity or From; if it
//     names another one, the address. So a phone that was taken over gains nothing by changing its name.
//   - From a PBX to a trunk: the user that the PBX names. A PBX is believed.
func (w *Watch) payer(in *Input, s *source, n *number) (name string, rule *TollRule) {
	m := in.Message
	to := w.where(in.To)
	named := []string{string(userOf(m, message.AssertedIdentity)), string(userOf(m, message.From))}
	for i, one := range named {
		named[i] = one[:min(len(one), maxName)]
	}
	switch {
	case s.place == PBX && (to == Trunk || to == WAN):
		if n.reach == internal {
			n.reach = national // a trunk's numbers may have no prefix
		}
		if named[0] == "" {
			named[0] = named[1]
		}
		return "pbx " + named[0], &w.limits.PBX
	case s.place.peer() || n.reach == internal:
		return "", nil
	case !in.Near && !s.registered(w.now) && !(s.place == Tunnel && (to.peer() || to == WAN)):
		return "", nil
	}
	for _, one := range named {
		if one != "" && s.has(one, w.now) {
			return one, &w.limits.Phones
		}
	}
	return s.addr.String(), &w.limits.Phones
}

// charge counts a call for who pays for it. It returns why it must not begin.
func (w *Watch) charge(in *Input, s *source, c *call) Kind {
	n := w.limits.Numbers.read(targetOf(in.Message))
	name, rule := w.payer(in, s, &n)
	if rule == nil {
		return None
	}
	u := w.users.get(name, w.now)
	u.rule, u.source = rule, s.addr
	if why := w.assess(u, rule, &n); why != None {
		return why
	}
	limit := max(rule.Warn.PerMinute, rule.Block.PerMinute) + 1
	u.recent.add(w.now, time.Minute, limit)
	c.number, c.user = n, u
	if n.reach == foreign {
		u.abroad = append(u.abroad, c)
	}
	return None
}

// assess compares a new call with all limits. It returns the first one that blocks.
func (w *Watch) assess(u *user, rule *TollRule, n *number) Kind {
	recent := 1
	for _, at := range u.recent {
		if at.recent(w.now, time.Minute) {
			recent++
		}
	}
	atOnce := 1
	for _, c := range u.abroad {
		if c.number.prefix == n.prefix {
			atOnce++
		}
	}
	spent := w.abroadToday(u)
	far := n.reach == foreign
	premium := slices.ContainsFunc(w.limits.Premium, func(p string) bool { return strings.HasPrefix(n.digits, p) })
	for _, limit := range [...]struct {
		kind Kind
		over func(t *Toll) bool
		text string
	}{
		{TollPremium, func(t *Toll) bool { return t.Premium && premium }, "a call to a premium number"},
		{TollRate, func(t *Toll) bool { return t.PerMinute > 0 && recent > t.PerMinute },
			fmt.Sprintf("%d new outside calls within a minute", recent)},
		{TollAtOnce, func(t *Toll) bool { return t.AtOnce > 0 && far && atOnce > t.AtOnce },
			fmt.Sprintf("%d calls at once to +%s", atOnce, n.prefix)},
		{TollAbroad, func(t *Toll) bool { return t.Abroad > 0 && far && spent >= t.Abroad },
			abroadText(spent)},
		{TollHours, func(t *Toll) bool { return t.OutOfHours && far && !w.working() }, "a call abroad out of hours"},
	} {
		if limit.over(&rule.Block) {
			w.reportToll(u, limit.kind, Block, limit.text)
			return limit.kind
		}
		if limit.over(&rule.Warn) {
			w.reportToll(u, limit.kind, Warn, limit.text)
		}
	}
	return None
}

func (w *Watch) reportToll(u *user, k Kind, l Level, text string) {
	last := &u.reported[k][l]
	wait := quiet
	if k == TollAbroad && l == Warn {
		wait = 24 * time.Hour // it stays so for the rest of the day
	}
	if *last != 0 && last.add(wait) > w.now {
		return
	}
	*last = w.now
	e := Event{At: w.now.time(), Source: u.source, User: u.name, Kind: k, Level: l, Action: Alarm, Text: text}
	if l == Block {
		e.Action = Refuse
	}
	w.events = append(w.events, e)
}

// working reports whether it is within the hours of work.
func (w *Watch) working() bool {
	h := &w.limits.Hours
	local := w.now.time().In(w.limits.Location)
	clock := time.Duration(local.Hour())*time.Hour + time.Duration(local.Minute())*time.Minute
	return h.Days[local.Weekday()] && clock >= h.From && clock < h.To
}

// midnight is when the day of an instant began, and the number of the day.
func (w *Watch) midnight(at instant) (instant, int) {
	y, m, d := at.time().In(w.limits.Location).Date()
	return instantOf(time.Date(y, m, d, 0, 0, 0, 0, w.limits.Location)), y*366 + at.time().In(w.limits.Location).YearDay()
}

// spend adds what a call abroad took of today.
func (w *Watch) spend(c *call, until instant) {
	if c.user == nil || c.answered == 0 || c.number.reach != foreign {
		return
	}
	began, day := w.midnight(w.now)
	if c.user.day != day {
		c.user.day, c.user.spent = day, 0
	}
	c.user.spent += max(0, until.sub(max(c.answered, began)))
}

// abroadToday is how long a user has talked to foreign numbers today, on all calls together.
func (w *Watch) abroadToday(u *user) time.Duration {
	began, day := w.midnight(w.now)
	if u.day != day {
		u.day, u.spent = day, 0
	}
	total := u.spent
	for _, c := range u.abroad {
		if until := c.end(w.now); c.answered != 0 {
			total += max(0, until.sub(max(c.answered, began)))
		}
	}
	return total
}

// end is when a call ended, or now.
func (c *call) end(now instant) instant {
	if c.ending != 0 {
		return c.ending
	}
	return now
}

// watchAbroad reports users who pass a limit while their calls go on. The calls go on: only a new one is refused.
func (w *Watch) watchAbroad() {
	for _, u := range w.users.all {
		if len(u.abroad) == 0 || u.rule.Warn.Abroad == 0 {
			continue
		}
		if spent := w.abroadToday(u); spent >= u.rule.Warn.Abroad {
			w.reportToll(u, TollAbroad, Warn, abroadText(spent))
		}
	}
}

func abroadText(spent time.Duration) string {
	return fmt.Sprintf("%d minutes of calls abroad today", int(spent.Minutes()))
}
