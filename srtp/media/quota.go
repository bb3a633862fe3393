package media

import (
	"fmt"
	"time"
)

// Quota bounds what a leg may send, by the codecs that were negotiated: packets and bytes of RTP (header and payload,
// without what SRTP, UDP and IP add) a second, and for how long the same may come at once.
type Quota struct {
	Packets int // a second, 1 to 100,000
	Bytes   int // a second, 1 to 125,000,000
	Burst   time.Duration
}

const (
	maxQuotaPackets = 100_000
	maxQuotaBytes   = 125_000_000 // 1 Gbit/s
	maxQuotaBurst   = 10 * time.Second
)

// controlQuota bounds RTCP, of which even a video call sends a few packets a second (RFC 4585 section 3).
var controlQuota = Quota{Packets: 50, Bytes: 50 * 1200, Burst: time.Second}

func (q Quota) check() error {
	switch {
	case q.Packets < 1 || q.Packets > maxQuotaPackets:
		return fmt.Errorf("quota of %d packets a second (allowed 1-%d)", q.Packets, maxQuotaPackets)
	case q.Bytes < 1 || q.Bytes > maxQuotaBytes:
		return fmt.Errorf("quota of %d bytes a second (allowed 1-%d)", q.Bytes, maxQuotaBytes)
	case q.Burst < time.Millisecond || q.Burst > maxQuotaBurst:
		return fmt.Errorf("quota with a burst of %s (allowed %s-%s)", q.Burst, time.Millisecond, maxQuotaBurst)
	}
	return nil
}

// bucket is what is left of a quota. Amounts are times 1e9, so that a nanosecond adds a whole number.
type bucket struct {
	quota          Quota
	at             int64
	packets, bytes int64
}

const perSecond = int64(time.Second)

func newBucket(q Quota, now int64) bucket {
	b := bucket{quota: q, at: now}
	b.packets, b.bytes = b.limits()
	return b
}

// limits are what a full bucket holds: the burst, and one packet at least of any length.
func (b *bucket) limits() (packets, bytes int64) {
	burst := int64(b.quota.Burst)
	return max(int64(b.quota.Packets)*burst, perSecond), max(int64(b.quota.Bytes)*burst, 1<<16*perSecond)
}

// take takes a packet of n bytes, or nothing.
func (b *bucket) take(n int, now int64) bool {
	maxPackets, maxBytes := b.limits()
	if elapsed := min(now-b.at, int64(maxQuotaBurst)*2); elapsed > 0 {
		b.packets = min(b.packets+elapsed*int64(b.quota.Packets), maxPackets)
		b.bytes = min(b.bytes+elapsed*int64(b.quota.Bytes), maxBytes)
	}
	b.at = max(b.at, now)
	if b.packets < perSecond || b.bytes < int64(n)*perSecond {
		return false
	}
	b.packets -= perSecond
	b.bytes -= int64(n) * perSecond
	return true
}
