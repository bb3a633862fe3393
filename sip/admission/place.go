package admission

import (
	"cmp"
	"maps"
	"slices"

	"ringway/qos"
	"ringway/tunnel"
)

// delta is by how much an account would change.
type delta struct {
	*account
	more, less qos.BitRate
}

// full are the accounts in which a call would not fit if it had these places and no others. Those that it
// takes no more of than now are none of them, whatever is in them.
func (l *Ledger) full(c *call, wants []want) (all []*account) {
	var deltas []delta
	for _, w := range wants {
		now, then := l.rates(c, w.key, w.rate)
		deltas = addTo(deltas, w.account, now, then)
	}
	for _, w := range c.has {
		if find(wants, w.key) < 0 {
			now, then := l.rates(c, w.key, 0)
			deltas = addTo(deltas, w.account, now, then)
		}
	}
	for _, d := range deltas {
		if d.more > d.less && d.bounded() && d.taken+d.other+d.more > d.limit+d.less {
			all = append(all, d.account)
		}
	}
	return all
}

// rates are what a place takes now, and what it would take if a call needed so much of it.
func (l *Ledger) rates(c *call, k key, rate qos.BitRate) (now, then qos.BitRate) {
	then = rate
	p := l.places[k]
	if p == nil {
		return 0, then
	}
	for _, u := range p.users {
		if u.call != c {
			then = max(then, u.rate)
		}
	}
	return p.rate, then
}

// addTo adds a change to an account and to the pool that it is in.
func addTo(deltas []delta, a *account, now, then qos.BitRate) []delta {
	for ; a != nil; a = a.pool {
		at := slices.IndexFunc(deltas, func(d delta) bool { return d.account == a })
		if at < 0 {
			at = len(deltas)
			deltas = append(deltas, delta{account: a})
		}
		deltas[at].more += then
		deltas[at].less += now
	}
	return deltas
}

// give has a call have these places and no others. short: they are less than it needs.
func (l *Ledger) give(c *call, wants []want, short bool) {
	for _, w := range c.has {
		if find(wants, w.key) < 0 {
			l.set(c, w.key, 0)
		}
	}
	for _, w := range wants {
		l.set(c, w.key, w.rate)
	}
	c.has = slices.Clone(wants)
	if short != c.short {
		l.waiting += bit(short) - bit(c.short)
		c.short = short
	}
}

// set changes what a call needs of a place. 0: it needs it no longer.
func (l *Ledger) set(c *call, k key, rate qos.BitRate) {
	p := l.places[k]
	if p == nil {
		p = &place{key: k}
		l.places[k] = p
		k.account.open(p, l)
	}
	at := slices.IndexFunc(p.users, func(u user) bool { return u.call == c })
	switch {
	case rate == 0 && at >= 0:
		p.users = slices.Delete(p.users, at, at+1)
	case rate > 0 && at >= 0:
		p.users[at].rate = rate
	case rate > 0:
		p.users = append(p.users, user{c, rate})
	}

	before := p.rate
	p.rate = 0
	for _, u := range p.users {
		p.rate = max(p.rate, u.rate)
	}
	for a := p.account; a != nil; a = a.pool {
		a.taken = a.taken - before + p.rate
	}
	if p.sent() {
		l.touched[p.flow] = struct{}{}
	}
	if len(p.users) == 0 {
		l.close(p)
	}
}

// sent reports whether the packets of a place are known, and are sent from here.
func (p *place) sent() bool { return !p.account.Inbound && p.exact() }

func (a *account) open(p *place, l *Ledger) {
	for ; a != nil; a = a.pool {
		a.places++
	}
	l.setSent(p, p)
}

func (l *Ledger) close(p *place) {
	for a := p.account; a != nil; a = a.pool {
		a.places--
	}
	delete(l.places, p.key)
	l.setSent(p, nil)
}

// setSent takes down which place the flow of p has.
func (l *Ledger) setSent(p, now *place) {
	if p.sent() {
		f := l.flows[p.flow]
		f.place = now
		l.flows[p.flow] = f
	}
}

// actions are for the engines, of all flows whose place changed since they were last asked.
func (l *Ledger) actions() (all []Action) {
	if len(l.touched) == 0 {
		return nil
	}
	flows := slices.SortedFunc(maps.Keys(l.touched), compare)
	clear(l.touched)
	for _, f := range flows {
		s := l.flows[f]
		told, has := s.at.reservation(f, s.rate), s.at != nil
		if s.place == nil {
			if has {
				all = append(all, Action{Do: Release, Reservation: told})
			}
			delete(l.flows, f)
			continue
		}

		r := s.place.account.reservation(f, s.place.rate)
		switch {
		case !has:
			all = append(all, Action{Do: Reserve, Reservation: r})
		case r.Site != told.Site || r.Key != told.Key || r.Line != told.Line:
			all = append(all, Action{Do: Release, Reservation: told}, Action{Do: Reserve, Reservation: r})
		case r.Rate != told.Rate:
			all = append(all, Action{Do: Settle, Reservation: r, raised: r.Rate > told.Rate})
		}
		s.at, s.rate = s.place.account, r.Rate
		l.flows[f] = s
	}
	sortActions(all)
	return all
}

// reservation is one in an account; the zero value for none.
func (a *account) reservation(f tunnel.Flow, rate qos.BitRate) Reservation {
	if a == nil {
		return Reservation{}
	}
	return Reservation{Flow: f, Site: a.Site, Key: a.key, Line: a.Line, Rate: rate}
}

func compare(a, b tunnel.Flow) int {
	return cmp.Or(a.Source.Compare(b.Source), a.Destination.Compare(b.Destination))
}
