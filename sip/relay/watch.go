package relay

import (
	"net/netip"
	"time"

	"ringway/sip/abuse"
	"ringway/sip/dialog"
	"ringway/sip/message"
	"ringway/sip/refusal"
	"ringway/sip/transparent"
)

// What is done about abuse (package abuse).
const (
	AbuseOff   = "off"
	AbuseWarn  = "warn"  // it is reported
	AbuseBlock = "block" // and sources are banned, calls refused; only where the settings enforce
)

// maxReports bounds the reports that wait for the daemon.
const maxReports = 256

// Report is something that was seen of a source.
type Report struct {
	At      time.Time     `json:"at"`
	Source  netip.Addr    `json:"source"`
	Kind    string        `json:"kind"`
	Level   string        `json:"level"`
	Action  string        `json:"action"` // what to do: alarm, throttle, ban or refuse
	For     time.Duration `json:"for_ns,omitempty"`
	InRelay bool          `json:"in_relay,omitempty"` // a ban that the firewall must not carry out
	Text    string        `json:"text"`
}

// Standing is a ban or throttle that is in force.
type Standing struct {
	Source  netip.Addr `json:"source"`
	Kind    string     `json:"kind"`
	Action  string     `json:"action"` // ban or throttle
	Until   time.Time  `json:"until"`
	InRelay bool       `json:"in_relay,omitempty"` // what is no emergency call is dropped by the relay, not by the firewall
}

// limits are those on abuse by the settings. The hours of work are by the box's own clock.
func (p *policy) limits() abuse.Limits {
	l := abuse.Defaults()
	if p.settings.AbuseLimits != nil {
		l = *p.settings.AbuseLimits
	}
	l.Numbers.Country, l.Location = p.settings.Country, time.Local
	if n := p.settings.PhoneLimit; n > 0 {
		l.Flood.Phone = abuse.Rate{PerSecond: float64(n), Burst: 4 * n}
	}
	if n := p.settings.ServerLimit; n > 0 {
		l.Flood.Peer = abuse.Rate{PerSecond: float64(n), Burst: 2 * n}
	}
	return l
}

// placeOf says where an address is.
func (p *policy) placeOf(a netip.Addr) abuse.Place {
	s := &p.settings
	for _, server := range s.Servers {
		switch {
		case server != a:
		case holds(s.Own, a) || holds(s.Inside, a):
			return abuse.PBX
		default:
			return abuse.Trunk
		}
	}
	switch {
	case holds(s.Own, a):
		return abuse.LAN
	case holds(s.Inside, a):
		return abuse.Tunnel
	}
	return abuse.WAN
}

// watch looks at a message for abuse. stop: it does not go on, and action says what becomes of it.
func (c *core) watch(now time.Time, m *transparent.Message, emergency bool) (action transparent.Action, stop bool) {
	p := &c.policy
	if p.watch == nil {
		return action, false
	}
	in := abuse.Input{
		Now: now, From: m.From.Addr(), To: m.To.Addr(), Near: m.FromNear, Why: m.Reason, Emergency: emergency,
	}
	if m.Reason.Verdict() != message.Refused {
		in.Message = m.SIP
	}
	r := p.watch.Message(in)
	c.report(r.Events)
	if r.Verdict == abuse.Pass || !p.blocks() {
		return action, false
	}
	c.refused.add(r.Why.String())
	action.Drop = true
	if r.Verdict == abuse.Reject {
		action.Reply = p.answer(m, refusal.Forbidden)
	}
	return action, true
}

// endWatched tells of the end of a call that the watch does not see in its messages: time ended it, or a request within
// it was answered as by one who does not know it. Else its time abroad would count on.
func (c *core) endWatched(l *dialog.Leg) {
	if c.policy.watch == nil || len(c.tracker.Hops(l)) > 0 { // another leg of the call lives
		return
	}
	switch l.Why() {
	case dialog.ByBye, dialog.Cancelled, dialog.Rejected, dialog.Refused, dialog.Redirected:
	default:
		c.policy.watch.Ended(c.now(), l.CallID)
	}
}

// blocks reports whether something is done about abuse.
func (p *policy) blocks() bool { return p.settings.Enforce && p.settings.Abuse == AbuseBlock }

// report queues what the daemon is to be told.
func (c *core) report(events []abuse.Event) {
	for _, e := range events {
		if len(c.reports) == maxReports {
			c.reports = append(c.reports[:0], c.reports[1:]...)
		}
		c.reports = append(c.reports, Report{
			At: e.At, Source: e.Source, Kind: e.Kind.String(), Level: e.Level.String(), Action: e.Action.String(),
			For: e.For, InRelay: e.InRelay, Text: e.Text,
		})
	}
}

// standing are the bans and throttles that are in force.
func (c *core) standing() []Standing {
	c.mu.Lock()
	defer c.mu.Unlock()
	all := []Standing{}
	if c.policy.watch == nil {
		return all
	}
	for _, s := range c.policy.watch.Bans(c.now()) {
		all = append(all, Standing{
			Source: s.Source, Kind: s.Kind.String(), Action: s.Action.String(), Until: s.Until, InRelay: s.InRelay,
		})
	}
	return all
}

// unban lifts the bans of an address.
func (c *core) unban(a netip.Addr) (found bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.policy.watch != nil && c.policy.watch.Unban(c.now(), a)
}
