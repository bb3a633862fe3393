package relay

import (
	"crypto/rand"
	"encoding/hex"
	"net/netip"
	"slices"
	"time"

	"ringway/sip/admission"
	"ringway/sip/body"
	"ringway/sip/dialog"
	"ringway/sip/message"
	"ringway/sip/refusal"
	"ringway/sip/sdp"
	"ringway/sip/terminate"
	"ringway/sip/transparent"
	"ringway/srtp/offer"
	"ringway/srtp/sdes"
)

// maxReplaced bounds a message with another description, in bytes: what an IPv4 datagram has room for (RFC 768, RFC
// 791). On TCP it is the same, so that what a call may say does not depend on its transport.
const maxReplaced = message.MaxSize - 20 - 8

// What happened to descriptions, as counters name it.
const (
	srtpRefused    = "srtp_refused"    // an offer
	srtpVoided     = "srtp_voided"     // it went on with port 0 in all lines
	srtpStale      = "srtp_stale"      // it came again, much later
	srtpUnreadable = "srtp_unreadable" // there may be one, and it cannot be read in one way alone
)

// useMedia takes other settings of media. Ports of the process before rest when this one begins.
func (c *core) useMedia(m *Media) {
	before := c.policy.media
	if c.policy.media = m; m == nil {
		m = &Media{}
	}
	if before == nil {
		for _, a := range m.Used {
			c.ports.rest(a)
		}
	}
	c.ports.use(m.First, m.Last)
	c.relayed.Configure(c.offerConfig(m.Certificate))
	c.relayed.Use(m.Places.Sorted())
	c.settleAlone(&dialog.Step{}, Change{}) // media that is not allowed any more
}

func (c *core) offerConfig(certificate []byte) offer.Config {
	return offer.Config{Ports: c.ports, NewKey: sdes.NewKey, NewID: newTLSID, Certificate: certificate}
}

// newTLSID makes the value of an a=tls-id (RFC 8842, section 4).
func newTLSID() string {
	b := make([]byte, 16)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

// relayMedia replaces the description of a message where the box relays media. refused is the response to a message
// whose offer is not acceptable.
func (c *core) relayMedia(
	now time.Time, st *dialog.Step, m *transparent.Message, text []byte, found body.Found, readable, emergency bool,
) (action transparent.Action, refused []byte) {
	if c.policy.media == nil && c.relayed.Len() == 0 || !carries(m.SIP) || len(m.SIP.Body) == 0 {
		return action, nil
	}
	hops := st.HopsOf(m.From.Addr(), m.To.Addr())
	if !c.relayed.Needs(hops...) && c.relayed.Len() == 0 {
		return action, nil
	}
	emergency = emergency || st.Leg != nil && c.known[st.Leg] != nil && c.known[st.Leg].emergency
	requires := c.relayed.Requires(emergency, hops...)
	known, reason := len(st.Exchanges) > 0, "SRTP is required, and the call is not known"
	over := !known && !requires && st.Leg != nil && c.relayed.Follows(st.Leg)
	if over {
		reason = "the dialog that it belongs to is over"
	}
	switch {
	case requires && (found == body.Unreadable || body.Stray(m.SIP, text) || found == body.Plain && !readable):
		return c.refuseMedia(now, st, m, srtpUnreadable, notAcceptable("the session description cannot be read"))
	case !readable:
		return action, nil
	case !known && !requires && !over:
		return action, nil
	case !known && admission.Refusable(m.SIP):
		return c.refuseMedia(now, st, m, srtpRefused, notAcceptable(reason))
	}

	var o terminate.Outcome
	if known {
		handling := terminate.Handling{
			Refusable: admission.Refusable(m.SIP), Emergency: emergency,
			Lasting: !m.SIP.Request || m.SIP.Method == message.ACK,
		}
		o = c.relayed.Message(st, text, handling,
			func(x *dialog.Exchange, passed *sdp.Description, lines []dialog.Line) {
				c.tracker.Relay(now, st, x, passed, lines)
			})
	} else {
		o = terminate.Outcome{Text: terminate.Void(text), Voided: true, Reason: reason}
		o.Stale = o.Text == nil
	}
	defer clear(o.Text)
	switch {
	case o.Refusal != nil:
		return c.refuseMedia(now, st, m, srtpRefused, o.Refusal)
	case o.Stale:
		c.noMedia(now, m, srtpStale, o.Reason)
		return transparent.Action{Drop: true}, nil
	case o.Text == nil:
		return action, nil
	case o.Voided:
		c.noMedia(now, m, srtpVoided, o.Reason)
	}
	if action.Raw = body.Replace(m.SIP, text, o.Text, maxReplaced); action.Raw == nil {
		return c.refuseMedia(now, st, m, srtpRefused, notAcceptable("the session description would be too long"))
	}
	action.Secret = true
	return action, nil
}

// adds reports whether there is a pair that the media plane is to have.
func adds(all []terminate.Change) bool {
	return slices.ContainsFunc(all, func(c terminate.Change) bool { return c.Pair != nil })
}

// carries reports whether a message may bring an offer or an answer: in others a description is none (RFC 6337, section
// 2.2; RFC 3261, section 11.2 for OPTIONS).
func carries(m *message.Message) bool {
	switch m.Method {
	case message.INVITE, message.UPDATE, message.PRACK, message.ACK:
		return true
	}
	return false
}

func notAcceptable(reason string) *offer.Refusal { return &offer.Refusal{Status: 488, Reason: reason} }

const requestPending = 491

// phrases of the responses that package offer asks for.
var phrases = map[int]string{
	488: "Not Acceptable Here", requestPending: "Request Pending", 503: "Service Unavailable",
}

// miscellaneous is the warn-code for what has none of its own (RFC 3261, section 20.43).
const miscellaneous = 399

// NoMedia is a message whose session description was not sent on as it was, for want of SRTP.
type NoMedia struct {
	At     time.Time  `json:"at"`
	What   string     `json:"what"` // as Stats.Refused counts it
	Reason string     `json:"reason"`
	From   netip.Addr `json:"from"` // hops of the message
	To     netip.Addr `json:"to"`
}

// noMedia counts a description that did not go on as it was, and remembers the latest for a person. Without a reason it
// is one that comes again, much later, of a call that has had its answer.
func (c *core) noMedia(now time.Time, m *transparent.Message, what, reason string) {
	c.refused.add(what)
	if reason == "" {
		return
	}
	c.latestNoMedia = &NoMedia{At: now, What: what, Reason: reason, From: m.From.Addr(), To: m.To.Addr()}
}

// refuseMedia answers a message whose description cannot go on, and takes it back; what cannot be answered is dropped.
func (c *core) refuseMedia(
	now time.Time, st *dialog.Step, m *transparent.Message, what string, r *offer.Refusal,
) (action transparent.Action, refused []byte) {
	reason := r.Reason
	if r.Status == requestPending { // offers of both ends that met: the call has media all the same
		reason = ""
	}
	c.noMedia(now, m, what, reason)
	if len(st.Exchanges) > 0 && st.Offered {
		st.Add(c.tracker.Refuse(now, *st))
		c.tracker.Net(st) // what the description itself says was never to be open
		st.Offered = false
	}
	if !admission.Refusable(m.SIP) {
		return transparent.Action{Drop: true}, nil
	}
	refused = c.policy.answer(m, refusal.Form{
		Status: r.Status, Phrase: phrases[r.Status],
		Warning: miscellaneous, Text: r.Reason[:min(len(r.Reason), refusal.MaxText)],
	})
	return transparent.Action{}, refused
}

// mayHideOffer reports whether a message that goes on unread may have a description where SRTP is required: then it
// must not.
func (c *core) mayHideOffer(m *transparent.Message) bool {
	return m.Reason != message.KeepAlive && c.relayed.Requires(false, m.From.Addr(), m.To.Addr()) && body.Describes(m.Raw)
}
