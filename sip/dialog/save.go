package dialog

import (
	"container/heap"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"ringway/qos"
	"ringway/sip/message"
	"ringway/sip/sdp"
)

// A leg as it is kept for the process that replaces this one. Names of fields are never given another meaning;
// unknown ones are ignored.
type (
	savedLeg struct {
		CallID    string        `json:"call_id"`
		Hops      [2]netip.Addr `json:"hops"`
		Tag       string        `json:"tag"`
		Offer     []savedParty  `json:"offer,omitempty"`
		CSeq      uint32        `json:"cseq"`
		Branches  []savedBranch `json:"branches,omitempty"`
		Cancelled bool          `json:"cancelled,omitempty"`
		Responded bool          `json:"responded,omitempty"`
		Accepted  bool          `json:"accepted,omitempty"`
		Began     time.Time     `json:"began"`
		Seen      time.Time     `json:"seen"`
		Dialogs   []savedDialog `json:"dialogs,omitempty"`
	}
	savedBranch struct {
		ID     string `json:"id"`
		Failed bool   `json:"failed,omitempty"`
	}
	savedDialog struct {
		Tag      string            `json:"tag"`
		State    State             `json:"state"`
		Why      End               `json:"why,omitempty"`
		Media    [2][]savedParty   `json:"media,omitzero"`
		Pending  [2]*savedExchange `json:"pending,omitzero"`
		Answered savedTransaction  `json:"answered"`
		Offerer  side              `json:"offerer"`
		Deadline time.Time         `json:"deadline,omitzero"`
		AtEnd    End               `json:"at_end,omitempty"`
		Before   State             `json:"before,omitempty"`
		Session  time.Duration     `json:"session,omitempty"`
		Expires  time.Time         `json:"expires,omitzero"`
		Seen     time.Time         `json:"seen"`
		Held     bool              `json:"held,omitempty"`
		Previous []Flow            `json:"previous,omitempty"`
		Until    time.Time         `json:"until,omitzero"`
	}
	savedExchange struct {
		savedTransaction
		Media []savedParty `json:"media"`
	}
	savedTransaction struct {
		Method message.Method `json:"method"`
		CSeq   uint32         `json:"cseq"`
		Asker  side           `json:"asker"`
	}
	savedParty struct {
		Kind       sdp.Kind         `json:"kind"`
		Refused    bool             `json:"refused,omitempty"`
		RTP        netip.AddrPort   `json:"rtp,omitzero"`
		RTCP       netip.AddrPort   `json:"rtcp,omitzero"`
		Direction  sdp.Direction    `json:"direction,omitempty"`
		Mux        bool             `json:"mux,omitempty"`
		Candidates []netip.AddrPort `json:"candidates,omitempty"`
		Named      bool             `json:"named,omitempty"`
		SRTP       bool             `json:"srtp,omitempty"`
		Codecs     []qos.Codec      `json:"codecs,omitempty"`
	}
)

// Save is the leg as bytes, for Tracker.Load. There are no names of people in it, and no keys.
func (l *Leg) Save() ([]byte, error) {
	s := savedLeg{
		CallID: l.CallID, Hops: l.Hops, Tag: l.Tag, Offer: saveParties(l.offer), CSeq: l.cseq, Cancelled: l.cancelled,
		Responded: l.responded, Accepted: l.accepted, Began: l.began, Seen: l.seen,
	}
	for _, b := range l.branches {
		s.Branches = append(s.Branches, savedBranch{b.id, b.failed})
	}
	for _, d := range l.dialogs {
		x := savedDialog{
			Tag: d.Tag, State: d.State, Why: d.Why, Answered: saveTransaction(d.answered), Offerer: d.offerer,
			Deadline: d.deadline, AtEnd: d.atEnd, Before: d.before, Session: d.session, Expires: d.expires, Seen: d.seen,
			Held: d.held, Previous: d.previous, Until: d.until,
		}
		for i := range d.media {
			x.Media[i] = saveParties(d.media[i])
			if p := d.pending[i]; p != nil {
				x.Pending[i] = &savedExchange{saveTransaction(p.transaction), saveParties(p.media)}
			}
		}
		s.Dialogs = append(s.Dialogs, x)
	}
	return json.Marshal(s)
}

func saveTransaction(t transaction) savedTransaction {
	return savedTransaction{t.method, t.cseq, t.asker}
}

func (s savedTransaction) load() transaction { return transaction{s.Method, s.CSeq, s.Asker} }

func saveParties(all []party) (out []savedParty) {
	for _, p := range all {
		out = append(out, savedParty{
			p.kind, p.refused, p.rtp, p.rtcp, p.direction, p.mux, p.candidates, p.named, p.srtp, p.codecs,
		})
	}
	return out
}

func loadParties(all []savedParty) (out []party) {
	for _, p := range all {
		if len(p.Codecs) == 0 {
			p.Codecs = []qos.Codec{qos.G711}
		}
		out = append(out, party{
			p.Kind, p.Refused, p.RTP, p.RTCP, p.Direction, p.Mux, p.Candidates, p.Named, p.SRTP, p.Codecs,
		})
	}
	return out
}

// Load takes a leg that an earlier process has saved. What has expired meanwhile ends with the next Expire. It
// refuses what Save cannot have made.
func (t *Tracker) Load(now time.Time, saved []byte) (st Step, err error) {
	var s savedLeg
	if err := json.Unmarshal(saved, &s); err != nil {
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
		responded: s.Responded, accepted: s.Accepted, began: s.Began, seen: s.Seen, due: now,
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
	t.calls[l.CallID] = append(t.calls[l.CallID], l)
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
		previous: s.Previous, until: s.Until,
	}
	for i := range s.Media {
		if s.Media[i] != nil {
			d.media[i] = slices.Clip(loadParties(s.Media[i]))
		}
		if p := s.Pending[i]; p != nil {
			d.pending[i] = &exchange{p.load(), loadParties(p.Media)}
		}
	}
	return d
}
