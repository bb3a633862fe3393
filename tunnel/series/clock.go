package series

import (
	"time"
)

// clock measures how even packets come: the interarrival jitter of RFC 3550, appendix A.8, of packets of one payload
// type in the order of their arrival, copies apart. Packets of another type are left out: those of an event all bear
// the time at which it began (RFC 4733, section 2.2.1). The sending time is that of RTP, so a phone that sends unevenly
// counts as well.
type clock struct {
	heard   int64  // when the last packet came, ns; with a tick of 0: the first
	jitter  uint64 // ns, 16 times
	sum     uint64 // of jitter over all packets but the first, ns
	peak    uint64 // ns, 16 times
	packets uint32 // in sum
	time    uint32 // of RTP, of the packet heard
	tick    uint32 // ns of one unit of it; 0: not known yet
	payload uint8  // type
	others  uint8  // packets in a row of other types
}

const (
	// longestGap bounds the difference of one packet, so that sums cannot overflow.
	longestGap = uint64(10 * time.Second)
	// adoptAfter is how many packets of another type make it the series' own.
	adoptAfter = 50
	// learnFor is over how long the rate of an unknown clock is measured.
	learnFor = int64(time.Second)
)

// staticRates are the clock rates of payload types that have one (RFC 3551, section 6).
var staticRates = [35]uint32{
	0: 8000, 3: 8000, 4: 8000, 5: 8000, 6: 16000, 7: 8000, 8: 8000, 9: 8000, 10: 44100, 11: 44100, 12: 8000, 13: 8000,
	14: 90000, 15: 8000, 16: 11025, 17: 22050, 18: 8000, 25: 90000, 26: 90000, 28: 90000, 31: 90000, 32: 90000,
	33: 90000, 34: 90000,
}

// usualRates are those that a dynamic type can have. Neighbours are far enough apart to be told by a second of sound.
var usualRates = [...]uint32{8000, 16000, 24000, 32000, 48000, 90000}

func (c *clock) start(payload uint8, rtp uint32, now int64) {
	c.payload, c.others, c.tick = payload, 0, 0
	if int(payload) < len(staticRates) && staticRates[payload] != 0 {
		c.tick = uint32(int64(time.Second) / int64(staticRates[payload]))
	}
	c.heard, c.time = now, rtp
}

// lose has the next packet be the first of its type again.
func (c *clock) lose() { c.others = adoptAfter; c.payload = 0xff }

// measure takes the next packet.
func (c *clock) measure(payload uint8, rtp uint32, now int64) {
	if payload != c.payload {
		if c.others++; c.others >= adoptAfter {
			c.start(payload, rtp, now)
		}
		return
	}
	c.others = 0
	if c.tick == 0 {
		c.learn(rtp, now)
		return
	}

	d := now - c.heard - int64(int32(rtp-c.time))*int64(c.tick)
	c.heard, c.time = now, rtp
	gap := min(uint64(max(d, -d)), longestGap)
	c.jitter += gap - (c.jitter+8)>>4
	c.sum += c.jitter >> 4
	c.packets++
	c.peak = max(c.peak, c.jitter)
}

// learn finds the rate of a clock from how far it went in a second.
func (c *clock) learn(rtp uint32, now int64) {
	elapsed := now - c.heard
	if elapsed < learnFor {
		return
	}
	units := int64(int32(rtp - c.time))
	best, off := uint32(0), 0.2
	measured := float64(units) * float64(time.Second) / float64(elapsed)
	for _, rate := range usualRates {
		if d := measured/float64(rate) - 1; max(d, -d) < off {
			best, off = rate, max(d, -d)
		}
	}
	c.heard, c.time = now, rtp
	if best != 0 { // else another second: there may have been a pause
		c.tick = uint32(int64(time.Second) / int64(best))
	}
}
