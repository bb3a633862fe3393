package dtls

import (
	"hash/maphash"
	"net/netip"
	"time"
)

// bucket limits how often something happens: burst at once, then rate a second. The zero value is full.
type bucket struct {
	used float64 // of the burst
	at   time.Time
}

// take counts one, unless that is too many.
func (b *bucket) take(now time.Time, rate, burst float64) bool {
	b.used = max(0, b.used-now.Sub(b.at).Seconds()*rate)
	b.at = now
	if b.used+1 > burst {
		return false
	}
	b.used++
	return true
}

// sources limits each source address. Addresses can be forged, so that there is no entry for each: those that fall
// into one bucket share it, and the seed keeps an attacker from choosing whose he shares.
type sources struct {
	seed    maphash.Seed
	buckets [1024]bucket
}

func newSources() *sources { return &sources{seed: maphash.MakeSeed()} }

func (s *sources) take(from netip.Addr, now time.Time) bool {
	b := &s.buckets[maphash.Comparable(s.seed, from.Unmap())%uint64(len(s.buckets))]
	return b.take(now, sourceRate, sourceBurst)
}
