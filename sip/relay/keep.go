package relay

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"ringway/process"
	"ringway/sip/call"
	"ringway/sip/compact"
	"ringway/sip/ladder"
	"ringway/sip/privacy"
	"ringway/sip/record"
	"ringway/sip/transparent"
)

// maxRecords bounds the records that wait for the daemon.
const maxRecords = 4096

// draw keeps a message of a call for its ladder, without what must not be kept.
func (c *core) draw(now time.Time, callID string, m *transparent.Message) {
	c.mirror(now, callID, m)
	c.ladder.Add(callID, ladder.Message{
		At: now, From: m.From, To: m.To, Transport: transportNames[m.Transport], Text: c.redactor.Redact(m.SIP, m.Reason),
	})
}

var transportNames = map[transparent.Transport]string{
	transparent.UDP: "UDP", transparent.TCP: "TCP", transparent.TLS: "TLS",
}

// view is the ladder of a call; ok is false if nothing is kept of it. id is a leg's, or a Call-ID.
func (c *core) view(id string) (v ladder.View, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	callID := id
	for l := range c.known {
		if shortID(l.CallID, l.Tag, l.Hops) == id {
			callID = l.CallID
		}
	}
	for e := range c.endedInOrder {
		if shortID(e.callID, e.tag, e.hops) == id {
			callID = e.callID
		}
	}
	kept, ok := c.ladder.Call(callID)
	if !ok {
		return v, false
	}
	return kept.View(), true
}

// forget removes what is kept in memory of a number.
func (c *core) forget(number string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	masked := privacy.Number(privacy.Mask, number)
	is := func(x *about) bool {
		for _, n := range []string{x.from, x.to} {
			if n == number || n == masked {
				return true
			}
		}
		return false
	}
	var rest []endedLeg
	for e := range c.endedInOrder {
		if is(&e.about) {
			c.ladder.Forget(e.callID)
			continue
		}
		rest = append(rest, *e)
	}
	c.ended, c.first = rest, 0
}

// hideNumbers masks what was kept while numbers were shown. Messages have them in many places: those go.
func (c *core) hideNumbers() {
	c.ladder = ladder.New(ladder.Defaults())
	hide := func(x *about) {
		x.from, x.to = privacy.Number(privacy.Mask, x.from), privacy.Number(privacy.Mask, x.to)
	}
	for l, x := range c.known {
		hide(x)
		c.dirty[l] = true
	}
	for i := range c.ended {
		hide(&c.ended[i].about)
	}
}

// record queues the record of a call that has ended.
func (c *core) record(e *endedLeg) {
	if len(c.records) == maxRecords {
		return // it is counted where they are written: nothing takes them
	}
	s := &c.policy.settings
	r := record.Record{
		ID:     shortID(e.callID, e.tag, e.hops),
		CallID: e.callID[:min(len(e.callID), maxCallID)], Began: e.began, Answered: e.answered, Ended: e.ended,
		Caller: record.Party{Number: e.from}, Callee: record.Party{Number: e.to},
		Emergency: e.emergency,
		Why:       string(e.why), Status: e.status, Hops: slices.Clone(e.hops[:]), Holes: e.holes,
	}
	if len(e.codecs) > 0 {
		r.Codec = e.codecs[0]
	}
	r.Direction, r.Site = s.direction(e.hops)
	if s.isPhone(e.hops[0]) {
		r.Caller.Address = e.hops[0]
	}
	if s.isPhone(e.hops[1]) {
		r.Callee.Address = e.hops[1]
	}
	c.records = append(c.records, Ended{Record: r, Media: flowsOf(e.media)})
}

// Ended is the record of a call that has ended, and the flows of RTP that it had: what they were like is for whoever
// measures it.
type Ended struct {
	record.Record
	Media []call.Flow `json:"media,omitempty"`
}

// direction is that of a leg between two hops, and the site of the far one.
func (s *Settings) direction(hops [2]netip.Addr) (d record.Direction, site string) {
	here := [2]bool{holds(s.Own, hops[0]), holds(s.Own, hops[1])}
	for i, a := range hops {
		for _, x := range s.Budgets.Sites {
			if !here[i] && holds(x.Networks, a) {
				site = x.Name
			}
		}
	}
	switch here {
	case [2]bool{true, true}:
		return record.Internal, ""
	case [2]bool{true, false}:
		return record.Outbound, site
	case [2]bool{false, true}:
		return record.Inbound, site
	}
	return record.Transit, site
}

// handOver gives the daemon reports and records, until ctx ends. What it does not take is tried again.
func (c *core) handOver(ctx context.Context, send func(context.Context, process.Request) error) {
	tick := time.NewTicker(journalEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for c.handOverOnce(ctx, send) {
		}
	}
}

// handOverOnce reports whether there is more.
func (c *core) handOverOnce(ctx context.Context, send func(context.Context, process.Request) error) (more bool) {
	c.mu.Lock()
	reports := slices.Clone(c.reports)
	records := c.records[:min(len(c.records), recordsAtOnce)]
	c.mu.Unlock()
	if len(reports)+len(records) == 0 {
		return false
	}
	packed, err := compact.Encode(reportsRequest{Reports: reports, Records: records})
	if err != nil || send(ctx, process.Request{Type: typeReports, Attached: packed, Within: handOverLimit}) != nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.records = c.records[len(records):]
	c.reports = c.reports[min(len(reports), len(c.reports)):]
	return len(c.records) > 0
}

// handOverLimit is long: what the daemon takes and does not answer in time is written twice.
const handOverLimit = 10 * time.Second

const (
	// recordsAtOnce is how many records one request has, so that it is no longer than the daemon takes, whatever is in
	// them. maxRecordsAtOnce is what the daemon takes: processes of earlier builds send more.
	recordsAtOnce    = 48
	maxRecordsAtOnce = 512
	// maxCallID bounds a Call-ID in a record. Most have 30 bytes; a message has room for one of 64 KiB.
	maxCallID = 256
)

// reportsRequest crosses the control connection beside the fields, in the compact form.
type reportsRequest struct {
	Reports []Report `json:"reports,omitempty"`
	Records []Ended  `json:"records,omitempty"`
}
