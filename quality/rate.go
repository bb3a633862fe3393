package quality

import (
	"strings"
	"time"
)

// codecs are those that the E-model has values for: ITU-T G.113, appendix I (random loss), with the names of
// https://www.iana.org/assignments/rtp-parameters. Others are rated as G.711, on whose scale a wideband codec would do
// better and most narrowband ones worse.
var codecs = map[string]Codec{
	"PCMU": G711,
	"PCMA": G711,
	"G729": {Name: "G.729A", Ie: 11, Bpl: 19, Frame: 20 * time.Millisecond, Ahead: 5 * time.Millisecond},
	"G723": {
		Name: "G.723.1, 6.3 kbit/s", Ie: 15, Bpl: 16.1, Frame: 30 * time.Millisecond, Ahead: 7500 * time.Microsecond,
	},
	"GSM-EFR": {Name: "GSM EFR", Ie: 5, Bpl: 10, Frame: 20 * time.Millisecond},
}

// CodecNamed is the codec with that name in a session description; known is false for one that is rated as G.711.
func CodecNamed(name string) (c Codec, known bool) {
	if c, known = codecs[strings.ToUpper(name)]; known {
		return c, true
	}
	return G711, false
}

// bufferPerJitter is how much deeper a jitter buffer is than the jitter of RFC 3550, a mean deviation: of delays that
// spread exponentially, one packet in 50 comes later than four times that, of those that spread evenly none.
const bufferPerJitter = 4

// Rate rates a call of which no delays are known, but loss (share, 0 to 1) and jitter, by the E-model. The receiver is
// modelled as a jitter buffer of four times the jitter, at least 20 ms and at most 200 ms, for which nothing comes too
// late. network is the one-way delay of the network, as far as it is known.
//
//	mouth-to-ear = packetization + codec look-ahead + network + buffer
//	Ppl          = packets lost
func Rate(loss float64, jitter, network time.Duration, c Codec) Voice {
	v := Voice{Buffer: min(maxBuffer, max(minBuffer, bufferPerJitter*jitter))}
	v.MouthToEar = c.Frame + c.Ahead + network + v.Buffer
	v.rate(100*loss, 1, c)
	return v
}

// rate computes R and MOS from the rest, with a loss of ppl percent.
func (v *Voice) rate(ppl, burstR float64, c Codec) {
	m := DefaultEModel()
	m.Ie, m.Bpl = c.Ie, c.Bpl
	m.Ta = float64(v.MouthToEar) / float64(time.Millisecond)
	m.T, m.Tr = m.Ta, 2*m.Ta
	m.Ppl = ppl
	m.BurstR = boundedBurst(burstR, m.Ppl)
	v.R = max(0, m.R())
	v.MOS = MOS(v.R)
}
