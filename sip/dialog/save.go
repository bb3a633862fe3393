package dialog

import (
	"container/heap"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"ringway/qos"
	"ringway/sip/compact"
	"ringway/sip/message"
	"ringway/sip/sdp"
)

// A leg as it is kept for the process that replaces this one. Numbers of fields are never given another meaning;
// unknown ones are ignored.
type (
	savedLeg struct {
		CallID    string        `cbor:"1,keyasint"`
		Hops      [2]netip.Addr `cbor:"2,keyasint"`
		Tag       string        `cbor:"3,keyasint"`
		Offer     []savedParty  `cbor:"4,keyasint,omitempty"`
		CSeq      uint32        `cbor:"5,keyasint"`
		Branches  []savedBranch `cbor:"6,keyasint,omitempty"`
		Cancelled bool          `cbor:"7,keyasint,omitempty"`
		Responded bool          `cbor:"8,keyasint,omitempty"`
		Accepted  bool          `cbor:"9,keyasint,omitempty"`
		Began     time.Time     `cbor:"10,keyasint"`
		Seen      time.Time     `cbor:"11,keyasint"`
		Dialogs   []savedDialog `cbor:"12,keyasint,omitempty"`
		Partial   bool          `cbor:"13,keyasint,omitempty"`
	}
	savedBranch struct {
		ID     string `cbor:"1,keyasint"`
		Failed bool   `cbor:"2,keyasint,omitempty"`
	}
	savedDialog struct {
		Tag      string            `cbor:"1,keyasint"`
		State    State             `cbor:"2,keyasint"`
		Why      End               `cbor:"3,keyasint,omitempty"`
		Media    [2][]savedParty   `cbor:"4,keyasint,omitzero"`
		Pending  [2]*savedExchange `cbor:"5,keyasint,omitzero"`
		Answered savedTransaction  `cbor:"6,keyasint"`
		Offerer  side              `cbor:"7,keyasint"`
		Deadline time.Time         `cbor:"8,keyasint,omitzero"`
		AtEnd    End               `cbor:"9,keyasint,omitempty"`
		Before   State             `cbor:"10,keyasint,omitempty"`
		Session  time.Duration     `cbor:"11,keyasint,omitempty"`
		Expires  time.Time         `cbor:"12,keyasint,omitzero"`
		Seen     time.Time         `cbor:"13,keyasint"`
		Held     bool              `cbor:"14,keyasint,omitempty"`
		Previous []Flow            `cbor:"17,keyasint,omitempty"` // 15 had another form
		Until    time.Time         `cbor:"16,keyasint,omitzero"`
		Answer   savedTransaction  `cbor:"18,keyasint,omitzero"`
	}
	savedExchange struct {
		savedTransaction
		Media []savedParty `cbor:"4,keyasint"`
		Until time.Time    `cbor:"5,keyasint,omitzero"`
	}
	savedTransaction struct {
		Method message.Method `cbor:"1,keyasint"`
		CSeq   uint32         `cbor:"2,keyasint"`
		Asker  side           `cbor:"3,keyasint"`
	}
	savedParty struct {
		Kind       sdp.Kind         `cbor:"1,keyasint"`
		Refused    bool             `cbor:"2,keyasint,omitempty"`
		RTP        netip.AddrPort   `cbor:"3,keyasint,omitzero"`
		RTCP       netip.AddrPort   `cbor:"4,keyasint,omitzero"`
		Direction  sdp.Direction    `cbor:"5,keyasint,omitempty"`
		Mux        bool             `cbor:"6,keyasint,omitempty"`
		Candidates []netip.AddrPort `cbor:"7,keyasint,omitempty"`
		Named      bool             `cbor:"8,keyasint,omitempty"`
		SRTP       bool             `cbor:"9,keyasint,omitempty"`
		Codecs     []qos.Codec      `cbor:"10,keyasint,omitempty"`
		TCP        bool             `cbor:"11,keyasint,omitempty"`
		Relayed    *savedRelayed    `cbor:"12,keyasint,omitempty"`
	}
	savedRelayed struct {
		Own   savedHop `cbor:"1,keyasint"`
		Other savedHop `cbor:"2,keyasint"`
	}
	savedHop struct {
		Box  netip.AddrPort `cbor:"1,keyasint,omitzero"`
		Mux  bool           `cbor:"2,keyasint,omitempty"`
		SRTP int            `cbor:"3,keyasint,omitempty"`
	}
)

// Save is the leg as bytes, for Tracker.Load. There are no names of people in it, and no keys.
func (l *Leg) Save() ([]byte, error) {
	s := savedLeg{
		CallID: l.CallID, Hops: l.Hops, Tag: l.Tag, Offer: saveParties(l.offer), CSeq: l.cseq, Cancelled: l.cancelled,
		Responded: l.responded, Accepted: l.accepted, Partial: l.partial, Began: l.began, Seen: l.seen,
	}
	for _, b := range l.branches {
		s.Branches = append(s.Branches, savedBranch{b.id, b.failed})
	}
	for _, d := range l.dialogs {
		x := savedDialog{
			Tag: d.Tag, State: d.State, Why: d.Why, Answered: saveTransaction(d.answered), Offerer: d.offerer,
			Deadline: d.deadline, AtEnd: d.atEnd, Before: d.before, Session: d.session, Expires: d.expires, Seen: d.seen,
			Held: d.held, Previous: d.previous, Until: d.until, Answer: saveTransaction(d.answer),
		}
		for i := range d.media {
			x.Media[i] = saveParties(d.media[i])
			if p := d.pending[i]; p != nil {
				x.Pending[i] = &savedExchange{saveTransaction(p.transaction), saveParties(p.media), p.until}
			}
		}
		s.Dialogs = append(s.Dialogs, x)
	}
	return compact.Encode(s)
}

func saveTransaction(t transaction) savedTransaction {
	return savedTransaction{t.method, t.cseq, t.asker}
}

func (s savedTransaction) load() transaction { return transaction{s.Method, s.CSeq, s.Asker} }

func saveParties(all []party) (out []savedParty) {
	for _, p := range all {
		out = append(out, savedParty{
			p.kind, p.refused, p.rtp, p.rtcp, p.direction, p.mux, p.candidates, p.named, p.srtp, p.codecs, p.tcp,
			saveRelayed(p.relayed),
		})
	}
	return out
}

func saveRelayed(r *relayed) *savedRelayed {
	if r == nil {
		return nil
	}
	return &savedRelayed{r.own.save(), r.other.save()}
}

func (s *savedRelayed) load() *relayed {
	if s == nil {
		return nil
	}
	return &relayed{s.Own.load(), s.Other.load()}
}

func (h *hop) save() savedHop { return savedHop{h.box, h.mux, h.srtp} }
func (s *savedHop) load() hop { return hop{s.Box, s.Mux, s.SRTP} }

func loadParties(all []savedParty) (out []party) {
	for _, p := range all {
		if len(p.Codecs) == 0 {
			p.Codecs = []qos.Codec{qos.G711}
		}
		out = append(out, party{
			kind: p.Kind, refused: p.Refused, rtp: p.RTP, rtcp: p.RTCP, direction: p.Direction, mux: p.Mux,
			candidates: p.Candidates, tcp: p.TCP, named: p.Named, srtp: p.SRTP, codecs: p.Codecs, relayed: p.Relayed.load(),
		})
	}
	return out
}

// Load takes a leg that an earlier process has saved. What has expired meanwhile ends with the next Expire. It
// refuses what Save cannot have made.
func (t *Tracker) Load(now time.Time, saved []byte) (st Step, err error) {
	var s savedLeg
	if err := compact.Decode(saved, &s); err != nil {
		return st, fmt.Errorf("load a call: %w", err)
	}
	if s.CallID == "" || !s.Hops[0].IsValid() || !s.Hops[1].IsValid() {
		return st, errors.New("load a call: it has no Call-ID or no hops")
	}
	if t.legs >= t.MaxLegs || t.leg([]byte(s.CallID), []byte(s.Tag), s.Hops[0], s.Hops[1]) != nil {
		return st, errors.New("load a call: it is known, or there is no room")
	}
	l := &Leg{
		CallID: s.CallID, Hops: s.Hops, Tag: s.Tag, offer: loadParties(s.Offer), cseq: s.CSeq, cancelled: s.Cancelled,
		responded: s.Responded, accepted: s.Accepted, partial: s.Partial, began: s.Began, seen: s.Seen, due: now,
	}
	for _, b := range s.Branches[:min(len(s.Branches), maxBranches)] {
		l.branches = append(l.branches, branch{b.ID, b.Failed})
	}
	for _, x := range s.Dialogs[:min(len(s.Dialogs), maxDialogs)] {
		if x.State > Ended || x.Before > Ended || x.Offerer > callee {
			return st, errors.New("load a call: a state that does not exist")
		}
		l.dialogs = append(l.dialogs, x.load())
	}
	if l.accepted && len(l.dialogs) == 0 {
		return st, errors.New("load a call: it was accepted and has no dialog")
	}
	if l.accepted {
		l.forks = now.Add(timerB) // it is not known how long ago it was
	}
	for _, d := range l.dialogs {
		if since := now.Add(loadGrace - t.idle(d)); d.seen.Before(since) {
			d.seen = since
		}
	}
	if since := now.Add(loadGrace - t.Idle); l.responded && l.seen.Before(since) {
		l.seen = since
	}
	t.calls.add(l)
	t.legs++
	heap.Push(&t.timers, l)
	st.Leg = l
	t.settle(&st, l, now)
	return st, nil
}

func (s savedDialog) load() *Dialog {
	d := &Dialog{
		Tag: s.Tag, State: s.State, Why: s.Why, answered: s.Answered.load(), offerer: s.Offerer, deadline: s.Deadline,
		atEnd: s.AtEnd, before: s.Before, session: s.Session, expires: s.Expires, seen: s.Seen, held: s.Held,
		previous: s.Previous, until: s.Until, answer: s.Answer.load(),
		told: s.State == Ended,
	}
	for i := range s.Media {
		if s.Media[i] != nil {
			d.media[i] = slices.Clip(loadParties(s.Media[i]))
		}
		if p := s.Pending[i]; p != nil {
			d.pending[i] = &exchange{p.load(), loadParties(p.Media), p.Until}
		}
	}
	return d
}
