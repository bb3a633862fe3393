package realtime

import (
	"sync/atomic"

	"ringway/tunnel"
)

// Voice budgets: what admission (admission.go) holds the flows of media to, as the control side sets it and status reads it.

// share is a part of a rate, bits a second: of RTP, and of RTCP, which has its own, so that neither can take the other's.
type share struct{ calls, control int64 }

func shareOf(rate uint64) share {
	calls := int64(rate) * 100 / (100 + tunnel.RTCPShare)
	return share{calls, int64(rate) - calls}
}

func (s share) of(control bool) int64 {
	if control {
		return s.control
	}
	return s.calls
}

// line is a WAN. taken is the outbound thread's.
type line struct {
	tunnel.AdmissionLine
	limit   share
	bounded bool
	taken   share
}

// wire is what a message of n bytes, with UDP and IP header, counts on the provider's meter.
func (l *line) wire(n int) int64 {
	b := int64(max(n+l.Overhead, l.MPU, 1))
	if l.ATM {
		b = (b + 47) / 48 * 53
	}
	return b
}

// budget is one site's, immutable.
type budget struct {
	limit share
	line  *line
}

// media is what a peer's flows take; written by the outbound thread alone.
type media struct {
	calls, control atomic.Int64 // bit/s
	flows          atomic.Int64 // of calls
	at             atomic.Int64 // about when the last packet passed
	refused        atomic.Uint64
	refusedAt      atomic.Int64
	lineFull       atomic.Bool // what was refused last found the line full, not the site's budget
}

func (m *media) taken(control bool) *atomic.Int64 {
	if control {
		return &m.control
	}
	return &m.calls
}

func (l *line) take(control bool, n int64) {
	if control {
		l.taken.control += n
	} else {
		l.taken.calls += n
	}
}

// room says whether a flow may take more. It notes which of the two budgets was full.
func (b *budget) room(p *peer, control bool, more int64) bool {
	if l := b.line; l.bounded && b.lineTaken(control)+more > l.limit.of(control) {
		p.media.lineFull.Store(true)
		return false
	}
	if p.media.taken(control).Load()+more > b.limit.of(control) {
		p.media.lineFull.Store(false)
		return false
	}
	return true
}

func (b *budget) lineTaken(control bool) int64 { return b.line.taken.of(control) }

// refuse counts a packet. That RTCP does not fit makes no call one that is refused.
func (m *media) refuse(control bool, now int64) {
	m.refused.Add(1)
	if !control {
		m.refusedAt.Store(now)
	}
}

// SetAdmission changes the voice budgets, from the next packet on. Who is in stays in, as far as it fits. Of peers without a budget everything passes.
func (e *Engine) SetAdmission(a tunnel.Admission) error {
	if err := a.Check(); err != nil {
		return err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(a.Sites) == 0 || a.Media == 0 {
		e.budgets = nil
		for _, p := range e.peers {
			p.budget.Store(nil)
		}
		return nil
	}
	lines := make([]*line, len(a.Lines))
	for i, l := range a.Lines {
		lines[i] = &line{AdmissionLine: l, limit: shareOf(l.Rate), bounded: l.Rate > 0}
	}
	together := make([]uint64, len(lines))
	e.budgets = make(map[tunnel.PublicKey]*budget, len(a.Sites))
	for _, s := range a.Sites {
		e.budgets[s.Key] = &budget{limit: shareOf(s.Rate), line: lines[s.Line]}
		together[s.Line] += s.Rate
	}
	rate := uint64(0)
	for i, l := range lines {
		if l.bounded {
			together[i] = min(together[i], l.Rate)
		}
		rate += together[i]
	}
	table := newFlows(rate)
	if g := e.guard.Load(); g != nil && len(g.table.slots) >= len(table.slots) {
		table = g.table
	}
	e.guard.Store(&guard{media: a.Media, table: table}) // before the first budget: who has one finds it
	for k, p := range e.peers {
		p.budget.Store(e.budgets[k])
	}
	return nil
}

// admission is what calls with the peer take, for status; nil: no budget.
func (p *peer) admission(now int64) *tunnel.MediaStatus {
	b := p.budget.Load()
	if b == nil {
		return nil
	}
	m := &p.media
	s := &tunnel.MediaStatus{Budget: uint64(b.limit.calls + b.limit.control), LineBudget: b.line.Rate, Refused: m.refused.Load()}
	if now-m.at.Load() < int64(patienceMost) { // else all of them have ended, and none came after them to find that out
		s.Taken, s.Flows = uint64(max(m.calls.Load()+m.control.Load(), 0)), int(m.flows.Load())
	}
	if at := m.refusedAt.Load(); at != 0 && now-at < int64(refusingFor) {
		s.Refusing, s.LineFull = true, m.lineFull.Load()
	}
	return s
}
