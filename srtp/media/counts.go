package media

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"ringway/tunnel/datagram"
)

// Counts is what is known of a leg.
type Counts struct {
	ID                             uint64
	ReceivedPackets, ReceivedBytes uint64 // authentic, or from where signalling said
	SentPackets, SentBytes         uint64 // handed to the kernel; bytes of UDP payload
	Sealed                         uint64 // SRTP packets with the key in use
	Rotations                      uint64 // changes of the key that the leg is sent with
	Recovered                      uint64 // times that the roll-over counter was found again
	Moved                          uint64 // times that its packets moved where it is sent to
	// Crowded says that a source (SSRC) was refused because the key that the leg is sent with has no room for it. Another
	// key has.
	Crowded      bool
	LastReceived time.Time
	Remote       netip.AddrPort // where RTP is sent to
	Drops        map[string]uint64
}

// Totals are sums over all legs that there are and were.
type Totals struct {
	ReceivedPackets uint64 `json:"received_packets"` // as in Counts
	ReceivedBytes   uint64 `json:"received_bytes"`
	SentPackets     uint64 `json:"sent_packets"`
	SentBytes       uint64 `json:"sent_bytes"`
	Rotations       uint64 `json:"rotations"`
	Recovered       uint64 `json:"recovered"`
	Moved           uint64 `json:"moved"`
}

// add adds what a leg counts.
func (t *Totals) add(e *end) {
	t.ReceivedPackets += e.receivedPackets.Load()
	t.ReceivedBytes += e.receivedBytes.Load()
	t.SentPackets += e.sentPackets.Load()
	t.SentBytes += e.sentBytes.Load()
	t.Rotations += e.rotations.Load()
	t.Recovered += e.recovered.Load()
	t.Moved += e.moved.Load()
}

// Totals returns the sums over all legs that there are and were.
func (r *Relay) Totals() Totals {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.goneTotals
	for id := range r.pairs {
		t.add(endOf(r.pairs, id))
	}
	return t
}

// Counts returns every leg, by ID.
func (r *Relay) Counts() []Counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make([]Counts, 0, len(r.pairs))
	for id := range r.pairs {
		e := endOf(r.pairs, id)
		c := Counts{
			ID:              id,
			ReceivedPackets: e.receivedPackets.Load(), ReceivedBytes: e.receivedBytes.Load(),
			SentPackets: e.sentPackets.Load(), SentBytes: e.sentBytes.Load(),
			Sealed: e.sealed.Load(), Rotations: e.rotations.Load(), Recovered: e.recovered.Load(), Moved: e.moved.Load(),
			Crowded: e.crowded.Load(), Remote: e.towards(false), Drops: map[string]uint64{},
		}
		if at := e.lastReceived.Load(); at != 0 {
			c.LastReceived = time.Unix(0, at)
		}
		e.drops.addTo(c.Drops)
		all = append(all, c)
	}
	slices.SortFunc(all, func(a, b Counts) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// Drops returns how many packets were dropped by reason, of all legs that there are and were, and of none.
func (r *Relay) Drops() map[string]uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	m := maps.Clone(r.gone)
	r.total.addTo(m)
	for id := range r.pairs {
		endOf(r.pairs, id).drops.addTo(m)
	}
	overflow := uint64(0)
	select {
	case <-r.closed: // its sockets may be somebody else's
	default:
		for _, w := range r.workers {
			for _, fd := range w.in {
				if fd >= 0 {
					overflow += datagram.Overflow(fd)
				}
			}
		}
	}
	if overflow > 0 {
		m[Overflow] = overflow
	}
	return m
}
