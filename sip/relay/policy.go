package relay

import (
	"cmp"
	"crypto/rand"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"ringway/sip/abuse"
	"ringway/sip/admission"
	"ringway/sip/dialog"
	"ringway/sip/emergency"
	"ringway/sip/message"
	"ringway/sip/privacy"
	"ringway/sip/refusal"
	"ringway/sip/registrar"
	"ringway/sip/transparent"
)

// policy is which calls go through, and what is known to decide it. The core's lock guards it.
type policy struct {
	settings  Settings
	media     *Media // of the settings; nil: there were none yet
	ledger    *admission.Ledger
	emergency *emergency.Set
	phones    *registrar.Table
	watch     *abuse.Watch         // nil: nothing is watched for
	muted     map[*dialog.Leg]bool // for an emergency call: their flows are closed

	refusals refusals
	secret   []byte // of the tags of refusals
	reply    []byte // the refusal that was written last
}

// maxBindings bounds the registrations that are known.
const maxBindings = 16384

func newPolicy() policy {
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	set, _ := emergency.New(nil, nil)
	return policy{
		ledger: admission.New(maxLegs, admission.World{}), emergency: set, phones: registrar.New(maxBindings),
		muted: map[*dialog.Leg]bool{}, secret: secret,
	}
}

// use takes other settings. Calls that are up keep what they have.
func (c *core) use(s Settings) error {
	set, err := emergency.New(s.EmergencyNumbers, s.EmergencyPrefixes)
	if err != nil {
		return fmt.Errorf("emergency numbers: %w", err)
	}
	shown, err := privacy.ParsePolicy(cmp.Or(s.Privacy, privacy.Mask.String()))
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	before := c.policy.settings
	if err := c.useTLS(&before, &s); err != nil {
		return err
	}
	c.policy.settings, c.policy.emergency, c.redactor.Policy = s, set, shown
	c.useMedia(s.Media)
	if err := c.policy.useWatch(); err != nil {
		return err
	}
	if !c.policy.mutes() {
		clear(c.policy.muted) // the whole, which is told next, has their flows
	}
	if before.Privacy == privacy.Show.String() && shown != privacy.Show {
		c.hideNumbers()
	}
	c.carryOut(nil, c.policy.ledger.Use(s.Budgets.World()))
	return nil
}

// useWatch begins to watch for abuse, or goes on by other limits.
func (p *policy) useWatch() (err error) {
	switch {
	case p.settings.Abuse == "" || p.settings.Abuse == AbuseOff:
		p.watch = nil
	case p.watch != nil:
		return p.watch.Use(p.limits())
	default:
		p.watch, err = abuse.New(p.limits(), p.placeOf)
	}
	return err
}

// admit charges a step to the budgets. refused is the response to a message whose offer does not fit; nil: it goes
// on.
func (c *core) admit(
	now time.Time, st *dialog.Step, m *transparent.Message, emergency bool, change *Change,
) (refused []byte) {
	p := &c.policy
	info := admission.Info{
		Refusable: p.settings.Enforce && p.settings.Admit && admission.Refusable(m.SIP),
		Emergency: emergency,
	}
	if m.SIP.Request && m.SIP.Method == message.INVITE {
		if at := p.phones.PhonesOf(m.SIP.URI()); len(at) == 1 {
			info.Callee = at[0]
		}
	}
	d := p.ledger.Follow(now, *st, info)
	c.carryOut(change, d)
	if d.Verdict == admission.Admitted {
		return nil
	}

	c.refused.add(string(d.Reason))
	st.Add(c.tracker.Refuse(now, *st))
	c.tracker.Net(st) // nothing opens for a moment
	return p.answer(m, refusal.NoRoom(p.settings.isPhone(m.From.Addr()), st.Dialog != nil))
}

// answer is this box's response to a request; empty if there can be none.
func (p *policy) answer(m *transparent.Message, form refusal.Form) []byte {
	reply, err := refusal.Append(p.reply[:0], m.SIP, refusal.Refusal{
		Form:   form,
		Source: m.From, Agent: p.settings.Site, Tag: refusal.Tag(p.secret, m.SIP),
	})
	if err != nil {
		return []byte{}
	}
	p.reply = reply
	return append([]byte{}, reply...) // used after the lock is given back
}

// carryOut has engines keep the places that were decided on, and takes the media of muted calls away. With change
// nil the daemon is told at once.
func (c *core) carryOut(change *Change, d admission.Decision) {
	own := Change{}
	if change == nil {
		change = &own
	}
	for _, a := range d.Actions {
		if r, ok := a.Tunnel(); ok {
			change.Places = append(change.Places, Place{Release: a.Do == admission.Release, Reserve: r})
		}
	}
	for _, m := range d.Mute {
		if !c.policy.mutes() {
			break // it only loses its place
		}
		for _, l := range m.Legs {
			c.policy.muted[l] = true
			c.asker.tell(Change{Hops: l.Hops, Close: l.Flows()})
		}
	}
	for _, m := range d.Unmute {
		for _, l := range m.Legs {
			delete(c.policy.muted, l)
			c.asker.tell(Change{Hops: l.Hops, Via: c.tracker.Hops(l), Open: l.Flows()})
		}
	}
	if change == &own && len(own.Places) > 0 {
		c.asker.tell(own)
	}
}

// mutes reports whether calls lose their media for an emergency call: where calls are not admitted, none does.
func (p *policy) mutes() bool { return p.settings.Enforce && p.settings.Admit }

// places are all that engines are to keep.
func (c *core) places() (all []Place) {
	for _, r := range c.policy.ledger.Reservations() {
		if t, ok := r.Tunnel(); ok {
			all = append(all, Place{Reserve: t})
		}
	}
	return all
}

// register follows registrations.
func (c *core) register(now time.Time, m *transparent.Message) {
	t := registrar.Transport(m.Transport.String())
	c.policy.phones.Message(now, registrar.Packet{From: m.From, To: m.To, Transport: t}, m.SIP)
}

// restorePhones takes the registrations that an earlier process knew: phones do not tell of them again for long.
func (c *core) restorePhones(all []registrar.Binding) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, p := c.now(), &c.policy
	for _, b := range all {
		p.phones.Restore(now, b)
		if user, _, _ := strings.Cut(b.AOR, "@"); p.watch != nil && b.Expires.After(now) {
			phone := b.Phone.Addr()
			p.watch.Registered(now, phone, p.settings.isPhone(phone), user, b.PBX.Addr(), b.Expires)
		}
	}
}

// bindings are the registrations that are known.
func (c *core) bindings() []registrar.Binding {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.policy.phones.Expire(c.now())
	return c.policy.phones.Bindings()
}

// isPhone reports whether an address is in a voice network of this box.
func (s *Settings) isPhone(a netip.Addr) bool { return holds(s.Phones, a) }
