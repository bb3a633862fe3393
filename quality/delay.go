// Package quality measures how good voice was: one-way delay from pairs of kernel timestamps, its variation
// (RFC 3550, RFC 5481, RFC 8219), loss and reordering by sequence number (RFC 4737), and what a listener
// would think of it (the E-model, ITU-T G.107). It is pure: timestamps in, figures out; no socket, no
// clock.
package quality

import (
	"math"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Timestamp is a reading of the clock that stamped a packet, in nanoseconds (for the kernel's packet
// timestamps: CLOCK_REALTIME since 1970). Only differences between stamps of one clock are meaningful: a
// one-way delay between two machines is only as good as their clocks agree.
type Timestamp int64

// Sub is how long t is after u.
func (t Timestamp) Sub(u Timestamp) time.Duration { return time.Duration(t - u) }

// Add is d after t.
func (t Timestamp) Add(d time.Duration) Timestamp { return t + Timestamp(d) }

// longest is the upper end of the histogram: longer delays are recorded as this.
const longest = 100 * time.Second

// Distribution collects delays in a HDR histogram: three significant digits at any magnitude from a
// nanosecond to 100 s, so a percentile is at most 0.1 % off; minimum, maximum and mean are exact.
type Distribution struct {
	h        *hdrhistogram.Histogram
	n        int64
	sum      float64
	min, max time.Duration
	negative int64
}

// NewDistribution returns an empty Distribution.
func NewDistribution() *Distribution {
	return &Distribution{h: hdrhistogram.New(1, int64(longest), 3)}
}

// Record counts one delay. A negative one (the two stamps came from clocks that disagree) counts as zero and as
// Negative, which every report of the figures has to mention.
func (d *Distribution) Record(v time.Duration) {
	if v < 0 {
		d.negative++
		v = 0
	}
	if d.n == 0 || v < d.min {
		d.min = v
	}
	if v > d.max {
		d.max = v
	}
	d.n++
	d.sum += float64(v)
	// Within the trackable range RecordValue cannot fail.
	_ = d.h.RecordValue(int64(min(v, longest)))
}

// Merge adds the delays that o has recorded.
func (d *Distribution) Merge(o *Distribution) {
	if o.n == 0 {
		return
	}
	if d.n == 0 || o.min < d.min {
		d.min = o.min
	}
	d.max = max(d.max, o.max)
	d.n += o.n
	d.sum += o.sum
	d.negative += o.negative
	d.h.Merge(o.h)
}

// Count is how many delays were recorded.
func (d *Distribution) Count() int64 { return d.n }

// Negative is how many of them were negative.
func (d *Distribution) Negative() int64 { return d.negative }

// Min is the smallest delay, or 0 if there is none.
func (d *Distribution) Min() time.Duration { return d.min }

// Max is the largest delay.
func (d *Distribution) Max() time.Duration { return d.max }

// Mean is the arithmetic mean.
func (d *Distribution) Mean() time.Duration {
	if d.n == 0 {
		return 0
	}
	return time.Duration(d.sum / float64(d.n))
}

// Percentile is the delay that p percent of packets did not exceed (99.99 for p99.99).
// With fewer than 1/(1-p) packets it is the maximum, as a nearest-rank percentile must be.
func (d *Distribution) Percentile(p float64) time.Duration {
	if d.n == 0 {
		return 0
	}
	// Nearest rank, rounded up; the library alone would round to the closer rank, which may have been
	// exceeded by more.
	rank := math.Ceil(p/100*float64(d.n) - 1e-9)
	if rank >= float64(d.n) {
		return d.max
	}
	// The histogram answers with the upper end of a bucket: never below Min nor above Max.
	return max(d.min, min(d.max, time.Duration(d.h.ValueAtPercentile(100*rank/float64(d.n)))))
}

// PDV is the packet delay variation as RFC 8219 section 7.3.1 reports it: the 99.9th percentile of the
// delay minus its minimum (the D99.9thPtile and Dmin of that section; per packet, RFC 5481 section 4.2).
func (d *Distribution) PDV() time.Duration { return d.Percentile(99.9) - d.min }

// FractionAbove is the share of packets, 0 to 1, whose delay exceeded v.
func (d *Distribution) FractionAbove(v time.Duration) float64 {
	if d.n == 0 || v >= d.max {
		return 0
	}
	var above int64
	for _, b := range d.h.Distribution() {
		if b.From > int64(v) {
			above += b.Count
		}
	}
	return float64(above) / float64(d.n)
}

// Jitter is the interarrival jitter of RFC 3550 section 6.4.1 and appendix A.8: a running mean of
// the change in transit time between packets that arrive one after the other, with a gain of 1/16.
//
// The RFC takes the sending time from the RTP timestamp, so a sender that paces unevenly (SIPp's
// replay, a phone's own clock) is measured as if the network did it. Here the sending time is the kernel's
// timestamp of the packet leaving: what is left is the network's part. A jitter from here is therefore at
// most comparable to, and usually lower than, what the phones' own RTCP reports show.
type Jitter struct {
	transit time.Duration
	j       float64
	sum     float64
	max     float64
	n       int
}

// Record takes the next packet in order of arrival.
func (j *Jitter) Record(sent, received Timestamp) {
	transit := received.Sub(sent)
	if j.n > 0 {
		d := float64(transit - j.transit)
		if d < 0 {
			d = -d
		}
		j.j += (d - j.j) / 16
		j.sum += j.j
		j.max = max(j.max, j.j)
	}
	j.transit = transit
	j.n++
}

// Mean is the mean of J over all packets: the last J alone covers about the last 16 packets.
func (j *Jitter) Mean() time.Duration {
	if j.n < 2 {
		return 0
	}
	return time.Duration(j.sum / float64(j.n-1))
}

// Max is the highest value of J.
func (j *Jitter) Max() time.Duration { return time.Duration(j.max) }
