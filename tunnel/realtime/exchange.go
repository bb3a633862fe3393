package realtime

import (
	"sync"
	"sync/atomic"
	"time"

	"ringway/tunnel/series"
)

// The exchange with the far ends about what became of media (series.Comparer). Once a second the control side looks at
// all series, and tells each peer the words that closed two seconds ago, in messages of the peer's session: what is in
// them is no IP packet, so it never reaches a network. An end that does not know them drops them (inner_malformed here,
// an error of the device elsewhere), so a peer that has said nothing in a minute is told that we would, every ten
// seconds and only while there is a call with it. The last report of a second has times, from which both ends know the
// round trip between them: it is sent without words, too.

const (
	tellEvery  = time.Second
	helloEvery = int64(10 * time.Second)
	heardFor   = int64(time.Minute)
	// tellFor is for how long a series is told after its last packet: its end is.
	tellFor = int64(10 * time.Second)
	// dscpOfReports is the inner DSCP that reports are sent like: CS3, as signalling (RFC 4594, section 4.2). As media
	// they would be beyond the voice budget when calls take all of it, and calls would lose packets for it.
	dscpOfReports = 24
	// maxReports bounds the reports to one peer in one look: those of 8000 series.
	maxReports = 512
)

// exchange belongs to the control side.
type exchange struct {
	telling sync.Mutex // held while series are looked at and told; before reservations.mu
	copy    seriesCopy

	mu       sync.Mutex // guards what follows
	comparer *series.Comparer
	heard    map[uint32]int64 // when a peer, by number, last told something
	greeted  map[uint32]int64 // when it was last told that we would
	outboxes map[uint32]*outbox
	message  reportMessage

	// Memory for sendReportLocked, under Engine.mu.
	wire  [headerSize + series.MaxReport + paddingMultiple + tagSize]byte
	nonce [12]byte
}

// outbox is the reports to one peer. Their memory is used again.
type outbox struct {
	reports [][]byte
	n       int
	called  bool // there is a call with the peer
}

func newExchange() *exchange {
	return &exchange{
		comparer: series.NewComparer(), heard: map[uint32]int64{}, greeted: map[uint32]int64{},
		outboxes: map[uint32]*outbox{},
	}
}

// runExchange tells the far ends until the engine is closed.
func (e *Engine) runExchange() {
	t := time.NewTicker(tellEvery)
	defer t.Stop()
	for {
		select {
		case <-e.closed:
			return
		case <-t.C:
			e.tell()
		}
	}
}

// tell looks at all series, and tells the peers what they do not know.
func (e *Engine) tell() {
	x := e.exchange
	x.telling.Lock()
	defer x.telling.Unlock()
	if e.measuring.Load() == nil {
		return
	}
	x.mu.Lock()
	x.comparer.Begin(e.now())
	x.mu.Unlock()
	for _, out := range []bool{true, false} {
		if e.lookAt(out) != nil {
			return // the engine ends
		}
	}
	e.sendReports()
}

// lookAt looks at the series of a direction.
func (e *Engine) lookAt(out bool) error {
	x, c := e.exchange, &e.exchange.copy
	for c.from = 0; ; c.from = c.next {
		c.since = e.now() - tellFor
		e.reservations.mu.Lock()
		err := e.askForSeries(c, out)
		e.reservations.mu.Unlock()
		if err != nil {
			return err
		}
		x.mu.Lock()
		for i := range c.records[:c.n] {
			r := &c.records[i]
			x.outbox(r.Peer()).called = true
			x.comparer.Look(r, out, x.report)
		}
		x.mu.Unlock()
		if c.next == 0 {
			return nil
		}
	}
}

// outbox is that of a peer with which there is a call.
func (x *exchange) outbox(peer uint32) *outbox {
	b := x.outboxes[peer]
	if b == nil {
		b = &outbox{}
		x.outboxes[peer] = b
	}
	return b
}

// report is the report to a peer that has so much space.
func (x *exchange) report(peer uint32, space int) *[]byte {
	b := x.outbox(peer)
	if b.n > 0 && len(b.reports[b.n-1])+space <= series.MaxReport-series.TimesSize {
		return &b.reports[b.n-1]
	}
	if b.n == maxReports {
		b.n-- // the last one is not told
	}
	if b.n == len(b.reports) {
		b.reports = append(b.reports, make([]byte, 0, series.MaxReport))
	}
	b.reports[b.n] = series.NewReport(b.reports[b.n])
	b.n++
	return &b.reports[b.n-1]
}

// sendReports sends what was collected.
func (e *Engine) sendReports() {
	x := e.exchange
	e.mu.Lock()
	defer e.mu.Unlock()
	x.mu.Lock()
	defer x.mu.Unlock()
	x.comparer.End()
	if len(x.outboxes)+len(x.heard) == 0 {
		return
	}
	now := e.now()
	numbers := make(map[uint32]bool, len(e.peers))
	for _, p := range e.peers {
		numbers[p.number] = true
		b := x.outboxes[p.number]
		if b == nil || !b.called {
			continue
		}
		if at, ok := x.heard[p.number]; ok && now-at < heardFor {
			last := x.report(p.number, 0)
			for _, r := range b.reports[:b.n-1] {
				e.sendReportLocked(p, r)
			}
			e.sendReportLocked(p, x.comparer.AppendTimes(*last, p.number, e.now()))
		} else if at, ok := x.greeted[p.number]; !ok || now-at >= helloEvery {
			e.sendReportLocked(p, x.comparer.AppendTimes(series.NewReport(nil), p.number, e.now()))
			x.greeted[p.number] = now
		}
	}
	for n, b := range x.outboxes { // of a peer without a call the memory goes, too
		if !b.called {
			delete(x.outboxes, n)
		}
		b.n, b.called = 0, false
	}
	forgetOthers(x.heard, numbers)
	forgetOthers(x.greeted, numbers)
}

// forgetOthers forgets peers that were removed.
func forgetOthers[T any](m map[uint32]T, peers map[uint32]bool) {
	for n := range m {
		if !peers[n] {
			delete(m, n)
		}
	}
}

// sendReportLocked sends a report in the peer's session, if it has one.
func (e *Engine) sendReportLocked(p *peer, report []byte) {
	s := p.current.Load()
	if !s.usable(e.now()) {
		return
	}
	x := e.exchange
	n := copy(x.wire[headerSize:], report)
	size := (n + paddingMultiple - 1) &^ (paddingMultiple - 1)
	clear(x.wire[headerSize+n : headerSize+size])
	e.sealMessage(s, &x.nonce, x.wire[:], size)
	e.sendAsLocked(p, x.wire[:headerSize+size+tagSize], e.outer.Load().tos[dscpOfReports])
}

// hearReports takes what peers have told, and what phones behind them report by RTCP.
func (e *Engine) hearReports() {
	x := e.exchange
	x.mu.Lock()
	defer x.mu.Unlock()
	for e.reports.get(&x.message) {
		if m := &x.message; x.comparer.Hear(m.peer, m.b[:m.n], m.at) {
			x.heard[m.peer] = e.now()
		} else {
			e.drops.add(dropReport)
		}
	}
	for e.rtcp.get(&x.message) {
		x.comparer.HearRTCP(x.message.peer, x.message.b[:x.message.n])
	}
}

// roundTrip is how long messages took lately to a peer and back; 0: not known.
func (x *exchange) roundTrip(peer uint32) time.Duration {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.comparer.RoundTrip(peer)
}

// reportMessage is a report of a peer, or a packet of RTCP, on its way to the control side.
type reportMessage struct {
	peer uint32 // its number
	at   int64  // when it came
	n    int
	b    [series.MaxReport + paddingMultiple]byte
}

// reportRing carries reports from the inbound thread to the control side: one writer, one reader, no lock, no
// allocation. Whoever reads it holds exchange.mu.
type reportRing struct {
	messages [reportRingSize]reportMessage
	head     atomic.Uint64 // next to read
	tail     atomic.Uint64 // next to write
}

const reportRingSize = 64

// put is for the inbound thread. It returns false if the ring is full, or the report is too long.
func (r *reportRing) put(peer uint32, p []byte, now int64) bool {
	t := r.tail.Load()
	if t-r.head.Load() == reportRingSize || len(p) > len(r.messages[0].b) {
		return false
	}
	m := &r.messages[t%reportRingSize]
	m.peer, m.at, m.n = peer, now, copy(m.b[:], p)
	r.tail.Store(t + 1)
	return true
}

// get is for the control side. It returns false if the ring is empty.
func (r *reportRing) get(m *reportMessage) bool {
	h := r.head.Load()
	if h == r.tail.Load() {
		return false
	}
	*m = r.messages[h%reportRingSize]
	r.head.Store(h + 1)
	return true
}
