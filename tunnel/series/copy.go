package series

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"time"
)

// Record is a series as it was when it was copied.
type Record struct {
	e entry
}

// Copy copies series to records, from the one at position from on, and returns how many and where to go on; 0: that
// were all. Series without a packet since a time are left out. It looks at no more than len(to) series: the thread that
// forwards packets does it.
func (t *Table) Copy(to []Record, from int, since int64) (n, next int) {
	end := min(from+len(to), t.made)
	for i := from; i < end; i++ {
		if e := &t.entries[i]; e.last >= since {
			to[n].e = *e
			n++
		}
	}
	if end >= t.made {
		return n, 0
	}
	return n, end
}

// Flow is the addresses and ports of the series' packets.
func (r *Record) Flow() (from, to netip.AddrPort) {
	n := &r.e.name
	a, b := netip.AddrFrom16([16]byte(n.addresses[:16])), netip.AddrFrom16([16]byte(n.addresses[16:]))
	if !n.v6 {
		a, b = netip.AddrFrom4([4]byte(n.addresses[:4])), netip.AddrFrom4([4]byte(n.addresses[16:20]))
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(n.ports[:])),
		netip.AddrPortFrom(b, binary.BigEndian.Uint16(n.ports[2:]))
}

// Source is the SSRC.
func (r *Record) Source() uint32 { return r.e.name.source }

// Number is that of the series, different from others of the same process.
func (r *Record) Number() uint32 { return r.e.born }

// Peer is what Arrive was told when the series began.
func (r *Record) Peer() uint32 { return r.e.peer }

// Life is when the first and the last packet came, in ns of the clock of Arrive.
func (r *Record) Life() (began, last int64) { return r.e.began, r.e.last }

// Payload is the payload type of most packets.
func (r *Record) Payload() uint8 { return r.e.payload }

// Expected is how many packets there are between the first and the last that came, those included: losses before and
// after cannot be known.
func (r *Record) Expected() uint32 { return r.e.expected + r.e.highest - r.e.lowest + 1 }

// Arrived is how many of them came, copies apart, and Passed how many of these went on.
func (r *Record) Arrived() uint32 {
	n := r.e.arrivedOut
	for _, w := range r.e.window {
		n += uint32(bits.OnesCount64(w.arrived))
	}
	return n
}

func (r *Record) Passed() uint32 {
	n := r.e.passedOut
	for _, w := range r.e.window {
		n += uint32(bits.OnesCount64(w.passed))
	}
	return n
}

// Copies is how many packets came more than once, Late how many were too late or too far from the others to have a
// place, Restarts how often the sequence numbers began again.
func (r *Record) Copies() uint32   { return r.e.copies }
func (r *Record) Late() uint32     { return r.e.late }
func (r *Record) Restarts() uint32 { return r.e.restarts }

// Dropped is how many packets this box dropped for each reason.
func (r *Record) Dropped() [Reasons]uint32 { return r.e.dropped }

// Jitter is the interarrival jitter: of late, its mean, and its highest value. known is false as long as the rate of
// the sender's clock is not known.
func (r *Record) Jitter() (now, mean, peak time.Duration, known bool) {
	c := &r.e.clock
	if c.packets == 0 {
		return 0, 0, 0, false
	}
	return time.Duration(c.jitter >> 4), time.Duration(c.sum / uint64(c.packets)), time.Duration(c.peak >> 4), true
}
