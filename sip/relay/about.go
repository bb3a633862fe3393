package relay

import (
	"net/netip"
	"slices"
	"time"

	"ringway/sip/call"
	"ringway/sip/dialog"
	"ringway/sip/sdp"
)

// about is what is known of a leg beside what package dialog knows. It is small, since there is one for each call that
// is up: what people are told of a call is made of it when somebody wants to know.
type about struct {
	from, to  string // names that may be shown
	answered  time.Time
	codecs    []string // of the latest description, one for each medium
	media     []dialog.Flow
	holes     int
	emergency bool
}

// had notes the flows of RTP that a leg needs. What was asked of a hop and what then comes from it are one.
func (x *about) had(l *dialog.Leg) {
	for f := range l.EachFlow {
		f = dialog.NewFlow(f.Source(), f.To(), f.RTCP())
		if !f.RTCP() && len(x.media) < call.MaxMedia && !slices.Contains(x.media, f) {
			x.media = append(x.media, f)
		}
	}
}

// endedLeg is a leg that has ended.
type endedLeg struct {
	about
	callID, tag  string
	hops         [2]netip.Addr
	began, ended time.Time
	why          dialog.End
	status       int
}

// told is a leg as it was when somebody asked. What people see is made of it without the core's lock.
type told struct {
	endedLeg
	state string
	flows []dialog.Flow // nil: it has ended
	srtp  []string
}

// tell takes down a leg that lives. Lists of an about are appended to, and never changed.
func tell(l *dialog.Leg, x *about) told {
	t := told{
		endedLeg: endedLeg{about: *x, callID: l.CallID, tag: l.Tag, hops: l.Hops, began: l.Began()},
		state:    l.State().String(), flows: l.Flows(),
	}
	if l.Held() {
		t.state = "on hold"
	}
	return t
}

// call is what people are told of it.
func (t *told) call() call.Call {
	c := call.Call{
		ID: shortID(t.callID, t.tag, t.hops), CallID: t.callID, From: t.from, To: t.to,
		Hops: [2]string{t.hops[0].String(), t.hops[1].String()}, State: t.state,
		Began: t.began, Answered: t.answered, Ended: t.ended, Emergency: t.emergency,
		Why: string(t.why), Status: t.status, Codecs: t.codecs, Holes: t.holes, Media: flowsOf(t.media),
		SRTP: t.srtp,
	}
	if t.ended.IsZero() {
		c.Flows = flowsOf(t.flows)
	}
	return c
}

func flowsOf(flows []dialog.Flow) []call.Flow {
	all := make([]call.Flow, 0, len(flows))
	for _, f := range flows {
		all = append(all, call.Flow{From: f.Source().String(), To: f.To().String(), RTCP: f.RTCP()})
	}
	return all
}

// codecNames shares lists of names between calls: most phones of a branch offer the same.
type codecNames struct {
	lists [16][]string
	next  int
}

// of are the names of the formats that a description puts first, one for each medium.
func (c *codecNames) of(d *sdp.Description) []string {
	var buf [sdp.MaxMedia][]byte
	names := buf[:0]
	for i := range d.Media {
		m := &d.Media[i]
		if m.Port != 0 && len(m.Formats) > 0 {
			name := m.Formats[0].Name
			names = append(names, name[:min(len(name), maxCodec)])
		}
	}
	for _, list := range c.lists {
		if slices.EqualFunc(list, names, func(a string, b []byte) bool { return a == string(b) }) {
			return list
		}
	}
	list := make([]string, len(names))
	for i, name := range names {
		list[i] = string(name)
	}
	c.lists[c.next] = list
	c.next = (c.next + 1) % len(c.lists)
	return list
}

// savedAbout is an about in the journal. Numbers of fields are never given another meaning.
type savedAbout struct {
	From      string        `cbor:"1,keyasint,omitempty"`
	To        string        `cbor:"2,keyasint,omitempty"`
	Answered  time.Time     `cbor:"3,keyasint,omitzero"`
	Codecs    []string      `cbor:"4,keyasint,omitempty"`
	Media     []dialog.Flow `cbor:"5,keyasint,omitempty"`
	Holes     int           `cbor:"6,keyasint,omitempty"`
	Emergency bool          `cbor:"7,keyasint,omitempty"`
}

func (x *about) save() *savedAbout {
	if x == nil {
		return nil
	}
	return &savedAbout{x.from, x.to, x.answered, x.codecs, x.media, x.holes, x.emergency}
}

func (s *savedAbout) load() *about {
	media := s.Media[:min(len(s.Media), call.MaxMedia)]
	return &about{s.From, s.To, s.Answered, s.Codecs, media, s.Holes, s.Emergency}
}
