package quality

import (
	"math"
	"time"
)

// EModel holds the inputs of the E-model, ITU-T G.107 (06/2015), under the names of its table 2. Take
// DefaultEModel and set what the connection is known to differ in.
type EModel struct {
	SLR, RLR   float64 // send and receive loudness rating, dB
	STMR       float64 // sidetone masking rating, dB
	LSTR       float64 // listener sidetone rating, dB
	Ds, Dr     float64 // D-value of the telephones at the send and the receive side
	TELR       float64 // talker echo loudness rating, dB
	WEPL       float64 // weighted echo path loss, dB
	T, Tr, Ta  float64 // one-way delay of the echo path, round trip, one-way without echo: all ms
	Qdu        float64 // quantization distortion units
	Ie         float64 // equipment impairment factor of the codec
	Bpl        float64 // the codec's packet-loss robustness
	Ppl        float64 // packet loss, percent
	BurstR     float64 // burst ratio
	Nc         float64 // circuit noise, dBm0p
	Nfor       float64 // noise floor at the receive side, dBmp
	Ps, Pr     float64 // ambient noise at the send and the receive side, dB(A)
	A          float64 // advantage factor
	MinDelay   float64 // mT: delay sensitivity of the talkers, minimum perceivable delay, ms
	DelaySense float64 // sT: delay sensitivity class
}

// DefaultEModel is table 2 of G.107: a connection without any of the impairments that a network adds, R = 93.2.
func DefaultEModel() EModel {
	return EModel{
		SLR: 8, RLR: 2, STMR: 15, LSTR: 18, Ds: 3, Dr: 3, TELR: 65, WEPL: 110, Qdu: 1,
		Bpl: 4.3, BurstR: 1, Nc: -70, Nfor: -64, Ps: 35, Pr: 35, MinDelay: 100, DelaySense: 1,
	}
}

// R is the transmission rating factor: R = Ro - Is - Id - Ie,eff + A (equation 7-1).
func (m EModel) R() float64 {
	no := m.noise()
	ro := 15 - 1.5*(m.SLR+no)
	return ro - m.simultaneous(ro, no) - m.delay(ro, no) - m.equipment() + m.A
}

// noise is No, the power sum of all noise at the 0 dBr point (equations 7-3 to 7-7).
func (m EModel) noise() float64 {
	olr := m.SLR + m.RLR
	nos := m.Ps - m.SLR - m.Ds - 100 + 0.004*math.Pow(m.Ps-olr-m.Ds-14, 2)
	pre := m.Pr + 10*math.Log10(1+math.Pow(10, (10-m.LSTR)/10))
	nor := m.RLR - 121 + pre + 0.008*math.Pow(pre-35, 2)
	nfo := m.Nfor + m.RLR
	return 10 * math.Log10(math.Pow(10, m.Nc/10)+math.Pow(10, nos/10)+math.Pow(10, nor/10)+math.Pow(10, nfo/10))
}

// simultaneous is Is: what impairs while the voice sounds (equations 7-8 to 7-16).
func (m EModel) simultaneous(ro, no float64) float64 {
	olr := m.SLR + m.RLR
	x := olr + 0.2*(64+no-m.RLR)
	iolr := 20 * (root(1+math.Pow(x/8, 8), 8) - x/8)

	q := 37 - 15*math.Log10(m.Qdu)
	g := 1.07 + 0.258*q + 0.0602*q*q
	y := (ro-100)/15 + 46/8.4 - g/9
	z := 46.0/30 - g/40
	iq := 15 * math.Log10(1+math.Pow(10, y)+math.Pow(10, z))
	return iolr + m.sidetone() + iq
}

// sidetone is Ist (equations 7-11, 7-12).
func (m EModel) sidetone() float64 {
	s := -10 * math.Log10(math.Pow(10, -m.STMR/10)+math.Exp(-m.T/4)*math.Pow(10, -m.TELR/10))
	return 12*root(1+math.Pow((s-13)/6, 8), 8) -
		28*root(1+math.Pow((s+1)/19.4, 35), 35) -
		13*root(1+math.Pow((s-3)/33, 13), 13) + 29
}

// delay is Id = Idte + Idle + Idd: talker echo, listener echo, and delay itself (equations 7-17 to 7-28).
func (m EModel) delay(ro, no float64) float64 {
	terv := m.TELR - 40*math.Log10((1+m.T/10)/(1+m.T/150)) + 6*math.Exp(-0.3*m.T*m.T)
	if m.STMR < 9 {
		terv += m.sidetone() / 2
	}
	roe := -1.5 * (no - m.RLR)
	re := 80 + 2.5*(terv-14)
	idte := ((roe-re)/2 + math.Sqrt((roe-re)*(roe-re)/4+100) - 1) * (1 - math.Exp(-m.T))
	if m.STMR > 20 {
		idte = math.Hypot(idte, m.sidetone())
	}

	rle := 10.5 * (m.WEPL + 7) * math.Pow(m.Tr+1, -0.25)
	idle := (ro-rle)/2 + math.Sqrt((ro-rle)*(ro-rle)/4+169)

	idd := 0.0 // equations 7-27 and 7-28: 0 up to mT, 100 ms by default
	if m.Ta > m.MinDelay {
		x, e := math.Log2(m.Ta/m.MinDelay), 6*m.DelaySense
		idd = 25 * (root(1+math.Pow(x, e), e) - 3*root(1+math.Pow(x/3, e), e) + 2)
	}
	return idte + idle + idd
}

// equipment is Ie,eff: the codec, and what packet loss makes of it (equation 7-29).
func (m EModel) equipment() float64 {
	if m.Ppl <= 0 {
		return m.Ie
	}
	return m.Ie + (95-m.Ie)*m.Ppl/(m.Ppl/m.BurstR+m.Bpl)
}

func root(x, n float64) float64 { return math.Pow(x, 1/n) }

// MOS is the mean opinion score that goes with r (G.107 annex B, MOS-CQE): 1 bad to 4.5 best.
func MOS(r float64) float64 {
	switch {
	case r <= 0:
		return 1
	case r >= 100:
		return 4.5
	}
	// Below R = 6.5 the polynomial dips under 1, the lowest score there is.
	return max(1, 1+0.035*r+r*(r-60)*(100-r)*7e-6)
}

// Codec is what the E-model has to know of a codec.
type Codec struct {
	Name  string
	Ie    float64
	Bpl   float64
	Frame time.Duration // audio in a packet: the talker's first sample waits this long
	Ahead time.Duration // algorithmic delay beyond it
}

// G.711 in 20 ms packets with the values of ITU-T G.113 appendix I (random loss). Phones conceal loss, so G711
// (with the concealment of G.711 appendix I, whose overlap-add delays by 3.75 ms) is what calls are rated
// by; it is also the choice that flatters us least, because the path that loses packets is the other one.
var (
	G711 = Codec{
		Name: "G.711 with PLC", Ie: 0, Bpl: 25.1, Frame: 20 * time.Millisecond, Ahead: 3750 * time.Microsecond,
	}
	G711NoPLC = Codec{Name: "G.711 without PLC", Ie: 0, Bpl: 4.3, Frame: 20 * time.Millisecond}
)

// Bounds of the receiver's jitter buffer.
const (
	minBuffer = 20 * time.Millisecond  // one packet: no phone plays with less
	maxBuffer = 200 * time.Millisecond // beyond this a conversation suffers more than from the loss
)

// Voice is what a listener gets.
type Voice struct {
	R, MOS     float64
	MouthToEar time.Duration
	Buffer     time.Duration // depth of the jitter buffer
	Late       float64       // share of the sent packets that came too late for it, 0 to 1
}

// Listen rates voice packets with these delays and this loss (share, 0 to 1) by the E-model.
//
// The receiver is modelled as a fixed jitter buffer: playout starts Dmin + B after sending, the same for
// every packet, with B = PDV (p99.9 - Dmin), at least 20 ms (one packet) and at most 200 ms. A packet whose
// delay exceeds Dmin + B has missed its turn: it counts as lost, like those that never came. So
//
//	mouth-to-ear = packetization (20 ms) + codec look-ahead + Dmin + B
//	Ppl          = packets lost + packets late
//
// and T = Ta = mouth-to-ear, Tr = 2 Ta; everything else has the defaults of G.107. A real phone's adaptive
// buffer would do a little better than this on a path that changes, and none does better on one that
// doesn't.
func Listen(delay *Distribution, loss, burstR float64, c Codec) Voice {
	if delay.Count() == 0 { // nothing was heard
		if loss == 0 {
			return Voice{}
		}
		return Voice{R: 0, MOS: 1}
	}
	v := Voice{Buffer: min(maxBuffer, max(minBuffer, delay.PDV()))}
	v.Late = delay.FractionAbove(delay.Min()+v.Buffer) * (1 - loss)
	v.MouthToEar = c.Frame + c.Ahead + delay.Min() + v.Buffer
	v.rate(100*(loss+v.Late), burstR, c)
	return v
}

// boundedBurst keeps BurstR to where the model is known to hold: G.107 allows 1 to 8, above 2 only while
// less than 2 percent of packets are lost.
func boundedBurst(b, ppl float64) float64 {
	limit := 8.0
	if ppl >= 2 {
		limit = 2
	}
	return min(limit, max(1, b))
}
