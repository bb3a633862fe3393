package realtime

import (
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"ringway/tunnel"
	"ringway/tunnel/series"
)

// What calls are like: each forwarding direction counts its packets of media in a table of its own (package series).
// Outbound, a packet arrives before admission and passes when the socket took it; inbound, it arrives when its message
// was opened and was no replay, and passes when the tunnel device took it. The control side reads the tables by asking
// the thread that has the turn for a few series at a time, as it does with reservations: nothing on the packet path is
// slower for it.

// measuring is which packets are counted, and where. Each table belongs to its direction's thread.
type measuring struct {
	tunnel.Measured
	seen [64]bool // by inner code point
	out  *series.Table
	in   *series.Table
}

// SetMeasured changes what is counted, from the next packet on. What was counted stays unless the tables have to grow.
func (e *Engine) SetMeasured(m tunnel.Measured) error {
	if err := m.Check(); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	was := e.measuring.Load()
	if m.Media == 0 {
		e.measuring.Store(nil)
		return nil
	}
	next := &measuring{Measured: m}
	for dscp := range next.seen {
		next.seen[dscp] = m.Media>>dscp&1 != 0
	}
	if was != nil && was.Series >= m.Series {
		next.Series, next.out, next.in = was.Series, was.out, was.in
	} else {
		seed := series.Seed{rand.Uint64(), rand.Uint64()}
		next.out, next.in = series.New(seed, 2*m.Series), series.New(seed, 2*m.Series)
	}
	e.measuring.Store(next)
	return nil
}

// seriesReasons are the reasons for which a packet that has arrived does not pass, as series count them. Each direction
// has its own.
var seriesReasons = [reasons]series.Reason{
	dropNoSession:   0,
	dropOversized:   1,
	dropSendRefused: 2,
	dropUnreachable: 3,
	dropNoBuffers:   4,
	dropSend:        5,
	dropOverBudget:  6,

	dropCongestion: 0,
	dropTUNWrite:   1,
}

var (
	outReasons = []reason{
		dropNoSession, dropOversized, dropSendRefused, dropUnreachable, dropNoBuffers, dropSend, dropOverBudget,
	}
	inReasons = []reason{dropCongestion, dropTUNWrite}
)

// followMeasuring takes up what SetMeasured changed. Packets that wait bear marks of the table that was.
func (o *outbound) followMeasuring() {
	m := o.e.measuring.Load()
	if m == o.measure {
		return
	}
	if m == nil || o.measure == nil || m.out != o.measure.out {
		for i := range o.staged {
			o.staged[i].mark = series.Mark{}
		}
	}
	o.measure = m
}

// arrive counts a packet of media to a peer.
func (o *outbound) arrive(p *peer, packet []byte, now int64) series.Mark {
	if m := o.measure; m != nil && m.seen[trafficClass(packet)>>2] {
		return m.out.Arrive(packet, p.number, now)
	}
	return series.Mark{}
}

// pass notes that a packet was sent.
func (o *outbound) pass(mark series.Mark) {
	if mark != (series.Mark{}) && o.measure != nil {
		o.measure.out.Pass(mark)
	}
}

// drop counts a packet that is not sent.
func (o *outbound) drop(why reason, mark series.Mark) {
	o.e.drops.add(why)
	if mark != (series.Mark{}) && o.measure != nil {
		o.measure.out.Drop(mark, seriesReasons[why])
	}
}

// arrive counts a packet of media from a peer, and hands a report of a far phone to the control side. One that finds
// no space there is not missed: the next one says all that it said. The table may be nil, with a mark of nothing.
func (in *inbound) arrive(p *peer, packet []byte, now int64) (*series.Table, series.Mark) {
	m := in.e.measuring.Load()
	if m == nil || !m.seen[trafficClass(packet)>>2] {
		return nil, series.Mark{}
	}
	mark := m.in.Arrive(packet, p.number, now)
	if mark == (series.Mark{}) && series.IsReceptionReport(packet) && in.e.rtcp.put(p.number, packet, now) {
		in.e.notify()
	}
	return m.in, mark
}

// seriesCopy asks a forwarding thread for some of its series. The thread copies seriesAtOnce at most, which takes it a
// few microseconds.
type seriesCopy struct {
	from  int
	since int64

	records  [seriesAtOnce]series.Record
	n, next  int
	beyond   uint64
	served   atomic.Bool
	answered chan struct{}
}

const (
	seriesAtOnce = 32
	// seriesOfPage is how many series one page has at most.
	seriesOfPage = 512
	// fromInbound is where positions in the inbound table begin.
	fromInbound = 1 << 20
	// seriesFor is for how long a series is shown after its last packet: a reader that comes more often misses none.
	seriesFor = 50 * time.Second
)

// take is the forwarding thread's part.
func (c *seriesCopy) take(m *measuring, out bool) {
	c.n, c.next = 0, 0
	if m == nil {
		return
	}
	table := m.in
	if out {
		table = m.out
	}
	c.n, c.next = table.Copy(c.records[:], c.from, c.since)
	c.beyond = table.Beyond()
}

// serveCopy serves a request to the inbound direction.
func (in *inbound) serveCopy() {
	c := in.copying.Load()
	if c == nil || c.served.Load() {
		return
	}
	c.take(in.e.measuring.Load(), false)
	c.served.Store(true)
	in.e.notify()
}

// Series returns a part of the series that had packets lately, from a position on: 0, and then Next of the part before.
func (e *Engine) Series(from int) (page tunnel.SeriesPage, err error) {
	if from < 0 {
		return page, fmt.Errorf("series from position %d (allowed 0 and more)", from)
	}
	rs := &e.reservations // one request at a time
	rs.mu.Lock()
	defer rs.mu.Unlock()

	sites := e.peerNumbers()
	c := &seriesCopy{from: from}
	for {
		out := c.from < fromInbound
		if !out {
			c.from -= fromInbound
		}
		if err := e.askForSeries(c, out); err != nil {
			return tunnel.SeriesPage{}, fmt.Errorf("read series of media: %w", err)
		}
		now, wall := e.now(), time.Now()
		for i := range c.records[:c.n] {
			s := seriesStatus(&c.records[i], out, now, wall)
			e.addFate(&s, &c.records[i], now, wall)
			s.Site = sites[c.records[i].Peer()]
			page.Series = append(page.Series, s)
		}
		switch {
		case c.next == 0 && !out:
			page.Next = 0
			page.Beyond += c.beyond
			return page, nil
		case c.next == 0:
			c.from = fromInbound
			page.Beyond += c.beyond
		case out:
			c.from = c.next
		default:
			c.from = c.next + fromInbound
		}
		if len(page.Series)+seriesAtOnce > seriesOfPage {
			page.Next = c.from
			return page, nil
		}
	}
}

// askForSeries has a direction's thread fill c.
func (e *Engine) askForSeries(c *seriesCopy, out bool) error {
	c.since = e.now() - int64(seriesFor)
	if out {
		return e.ask(&request{copy: c})
	}
	c.served.Store(false)
	c.answered = make(chan struct{})
	e.in.copying.Store(c)
	e.in.Wake()
	select {
	case <-c.answered:
		return nil
	case <-e.closed:
		return errEnded
	}
}

// addFate adds what both ends together know of a series. now and wall are one moment.
func (e *Engine) addFate(s *tunnel.SeriesStatus, r *series.Record, now int64, wall time.Time) {
	e.exchange.mu.Lock()
	defer e.exchange.mu.Unlock()
	f := e.exchange.comparer.Fate(r, s.Out)
	s.Compared, s.FarLAN, s.FarBox, s.Line, s.Delay = f.Compared, f.FarLAN, f.FarBox, f.Line, f.Delay
	if s.Out && f.Line > 0 {
		for _, at := range e.exchange.comparer.LineAt(r) {
			s.LineAt = append(s.LineAt, wall.Add(time.Duration(at-now)))
		}
	}
}

func (e *Engine) peerNumbers() map[uint32]tunnel.PublicKey {
	e.mu.Lock()
	defer e.mu.Unlock()
	numbers := make(map[uint32]tunnel.PublicKey, len(e.peers))
	for k, p := range e.peers {
		numbers[p.number] = k
	}
	return numbers
}

// seriesStatus is a series for people. now and wall are one moment.
func seriesStatus(r *series.Record, out bool, now int64, wall time.Time) tunnel.SeriesStatus {
	began, last := r.Life()
	s := tunnel.SeriesStatus{
		Source:   r.Source(),
		Out:      out,
		Number:   r.Number(),
		Began:    wall.Add(time.Duration(began - now)),
		Last:     wall.Add(time.Duration(last - now)),
		Payload:  r.Payload(),
		Expected: r.Expected(),
		Arrived:  r.Arrived(),
		Passed:   r.Passed(),
		Copies:   r.Copies(),
		Late:     r.Late(),
		Restarts: r.Restarts(),
	}
	s.Flow.Source, s.Flow.Destination = r.Flow()
	s.Jitter, s.JitterMean, s.JitterPeak, _ = r.Jitter()
	which := inReasons
	if out {
		which = outReasons
	}
	dropped := r.Dropped()
	for _, why := range which {
		if n := dropped[seriesReasons[why]]; n > 0 {
			if s.Dropped == nil {
				s.Dropped = map[string]uint32{}
			}
			s.Dropped[why.String()] = n
		}
	}
	return s
}
