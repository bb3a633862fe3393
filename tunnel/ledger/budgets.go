package ledger

import (
	"sync/atomic"
	"time"

	"ringway/qos"
	"ringway/tunnel"
	"ringway/units"
)

// Voice budgets: the control side sets them (NewBudgets), the ledger charges flows to them, and status reads
// the sums. Package qos alone computes how large they are, how RTP and RTCP share them, and what a packet
// counts on the provider's meter.

const refusingFor = 3 * time.Second // after a refused packet, as status says it

// share divides a rate, in bit/s: RTP and RTCP each have their own part, so that neither can take the other's.
type share struct{ media, rtcp int64 }

func shareOf(rate units.BitRate) share {
	media := qos.Budget{Rate: rate}.RTP()
	return share{int64(media), int64(rate - media)}
}

func (s share) of(rtcp bool) int64 {
	if rtcp {
		return s.rtcp
	}
	return s.media
}

// Budgets are the voice budgets of all sites. They do not change, but are replaced as a whole.
type Budgets struct {
	media uint64 // inner DSCP that are media, a bit each
	sites map[tunnel.PublicKey]*Budget
	table *table
}

// Budget is that of one site.
type Budget struct {
	limit share
	line  *Line
}

// Line is a WAN.
type Line struct {
	link    qos.LinkLayer
	rate    units.BitRate
	limit   share
	bounded bool  // it carries less than the budgets of its sites together
	taken   share // the ledger's alone
}

func newLine(l tunnel.AdmissionLine) *Line {
	line := &Line{
		link:    qos.LinkLayer{Overhead: l.Overhead, MPU: l.MPU},
		rate:    l.Rate,
		limit:   shareOf(l.Rate),
		bounded: l.Rate > 0,
	}
	if l.ATM {
		line.link.Cells = qos.ATM
	}
	return line
}

// NewBudgets makes budgets of what was checked (tunnel.Admission.Check). With previous, they share its table
// if that is large enough.
func NewBudgets(a tunnel.Admission, previous *Budgets) *Budgets {
	lines := make([]*Line, len(a.Lines))
	for i, l := range a.Lines {
		lines[i] = newLine(l)
	}

	b := &Budgets{media: a.Media, sites: make(map[tunnel.PublicKey]*Budget, len(a.Sites))}
	together := make([]units.BitRate, len(lines)) // of a line's sites
	for _, s := range a.Sites {
		b.sites[s.Key] = &Budget{limit: shareOf(s.Rate), line: lines[s.Line]}
		together[s.Line] += s.Rate
	}

	rate := units.BitRate(0)
	for i, l := range lines {
		if l.bounded {
			together[i] = min(together[i], l.rate)
		}
		rate += together[i]
	}
	b.table = newTable(rate)
	if previous != nil && len(previous.table.slots) >= len(b.table.slots) {
		b.table = previous.table
	}
	return b
}

// Site returns a site's budget; nil if it has none. b may be nil.
func (b *Budgets) Site(key tunnel.PublicKey) *Budget {
	if b == nil {
		return nil
	}
	return b.sites[key]
}

// IsMedia reports whether packets with that traffic class, ECN included, are media.
func (b *Budgets) IsMedia(class uint8) bool { return b.media>>(class>>2)&1 != 0 }

// fits returns Held if a flow of the site may take more, and else which budget is full, as status then shows.
func (b *Budget) fits(site *Account, rtcp bool, more int64) State {
	if l := b.line; l.bounded && l.taken.of(rtcp)+more > l.limit.of(rtcp) {
		site.lineFull.Store(true)
		return LostLineBudget
	}
	if site.sum(rtcp).Load()+more > b.limit.of(rtcp) {
		site.lineFull.Store(false)
		return LostSiteBudget
	}
	return Held
}

// Wire is what the provider's meter of a line counts for an IP packet of n bytes.
func Wire(l tunnel.AdmissionLine, n int) units.ByteCount { return units.ByteCount(newLine(l).wire(n)) }

// wire is what the provider's meter counts for an IP packet of n bytes.
func (l *Line) wire(n int) int64 { return int64(l.link.Wire(units.ByteCount(n))) }

func (l *Line) add(rtcp bool, n int64) {
	if rtcp {
		l.taken.rtcp += n
	} else {
		l.taken.media += n
	}
}

// Account is what the flows of one site take. The ledger alone writes the sums.
type Account struct {
	budget atomic.Pointer[Budget]
	gone   atomic.Bool

	media, rtcp atomic.Int64 // bit/s
	flows       atomic.Int64 // of media, reserved ones included
	reserved    atomic.Int64 // flows whose place is reserved
	at          atomic.Int64 // about when the last packet passed

	refused   atomic.Uint64 // packets
	refusedAt atomic.Int64
	lineFull  atomic.Bool // the last refusal was due to the line's budget
}

// SetBudget changes what the site's flows may take; with nil, everything passes.
func (a *Account) SetBudget(b *Budget) { a.budget.Store(b) }

// Budget is what the site's flows may take; nil: everything passes.
func (a *Account) Budget() *Budget { return a.budget.Load() }

// Taken is the rate of what the site's flows take, RTCP included; 0 where it has no budget.
func (a *Account) Taken(now int64) units.BitRate {
	// Without reservations and without a packet for so long all calls have ended, and none came after them to
	// find that out.
	if a.reserved.Load() == 0 && now-a.at.Load() >= int64(maxSilence) {
		return 0
	}
	return units.BitRate(max(a.media.Load()+a.rtcp.Load(), 0))
}

// Close frees the places of all flows of a site that was removed.
func (a *Account) Close() { a.gone.Store(true) }

func (a *Account) sum(rtcp bool) *atomic.Int64 {
	if rtcp {
		return &a.rtcp
	}
	return &a.media
}

// refuse counts a packet. A call is not refused because its RTCP does not fit.
func (a *Account) refuse(rtcp bool, now int64) {
	a.refused.Add(1)
	if !rtcp {
		a.refusedAt.Store(now)
	}
}

// Status is what calls with the site take; nil: it has no budget.
func (a *Account) Status(now int64) *tunnel.MediaStatus {
	b := a.budget.Load()
	if b == nil {
		return nil
	}
	s := &tunnel.MediaStatus{
		Budget:     units.BitRate(b.limit.media + b.limit.rtcp),
		LineBudget: b.line.rate,
		Refused:    a.refused.Load(),
		Reserved:   int(a.reserved.Load()),
	}
	if s.Taken = a.Taken(now); s.Taken > 0 {
		s.Flows = int(a.flows.Load())
	}
	if at := a.refusedAt.Load(); at != 0 && now-at < int64(refusingFor) {
		s.Refusing, s.LineFull = true, a.lineFull.Load()
	}
	return s
}
