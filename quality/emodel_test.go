package quality

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"pgregory.net/rapid"
)

// G.107 clause 7.7: with all parameters at their defaults R = 93.2; annex B gives MOS 4.41 for it.
func TestDefaultConnectionIsThePublishedOne(t *testing.T) {
	r := DefaultEModel().R()
	assert.InDelta(t, 93.2, r, 0.05)
	assert.InDelta(t, 4.41, MOS(r), 0.005)
}

// G.107 annex B, table B.1 (also G.109): the lower limits of user satisfaction.
func TestMOSIsTheTableOfAnnexB(t *testing.T) {
	for _, c := range []struct{ r, mos float64 }{{90, 4.34}, {80, 4.03}, {70, 3.60}, {60, 3.10}, {50, 2.58}} {
		assert.InDelta(t, c.mos, MOS(c.r), 0.0065, "R %v", c.r)
	}
	assert.Equal(t, 1.0, MOS(-3))
	assert.Equal(t, 1.0, MOS(0))
	assert.Equal(t, 1.0, MOS(3), "never below the worst score")
	assert.Equal(t, 4.5, MOS(100))
	assert.Equal(t, 4.5, MOS(120))
}

// The E-model without echo: R falls by delay alone, as G.114 figure 1 (2003) and the well-known fit to it,
// Id = 0.024 d + 0.11 (d - 177.3) H(d - 177.3) (Cole and Rosenbluth, 2001), which is itself some points off.
func TestDelayImpairsAsPublished(t *testing.T) {
	for _, ms := range []float64{0, 50, 100, 150, 200, 250, 300, 350} {
		m := DefaultEModel()
		m.T, m.Ta, m.Tr = ms, ms, 2*ms
		fit := 0.024 * ms
		if ms > 177.3 {
			fit += 0.11 * (ms - 177.3)
		}
		assert.InDelta(t, 93.2-fit, m.R(), 2.2, "%v ms", ms)
	}
	// G.114: below 150 ms most users are very satisfied or satisfied; at 400 ms many are dissatisfied.
	m := DefaultEModel()
	m.T, m.Ta, m.Tr = 150, 150, 300
	assert.Greater(t, m.R(), 88.0)
	m.T, m.Ta, m.Tr = 400, 400, 800
	assert.InDelta(t, 62, m.R(), 3)
}

// The delay impairment by its own formula at its corner points: Idd(2 mT) has X = 1.
func TestIddAtKnownPoints(t *testing.T) {
	idd := func(ms float64) float64 {
		m := DefaultEModel()
		without := m.R()
		m.Ta = ms // echo paths without delay: Idte and Idle stay
		return without - m.R()
	}
	assert.Zero(t, idd(100))
	assert.InDelta(t, 25*(1.1224620483-3*1.0002285+2), idd(200), 0.001)
	// Equation 7-27 with X of 7-28, reckoned apart.
	for ms, want := range map[float64]float64{150: 0.1635, 200: 3.0444, 300: 14.7607, 400: 24.0701} {
		assert.InDelta(t, want, idd(ms), 0.0005, "%v ms", ms)
	}
}

// G.113 appendix I: Ie of G.711 with packet loss as measured (table I.2/I.3), with and without concealment. The
// formula of G.107 with the Bpl of appendix I reproduces these provisional values to a few points.
func TestLossImpairsAsPublished(t *testing.T) {
	for _, c := range []struct{ loss, ie float64 }{
		{0, 0}, {1, 5}, {2, 7}, {3, 10}, {5, 15}, {7, 20}, {10, 25}, {15, 35}, {20, 45},
	} {
		m := DefaultEModel()
		m.Bpl, m.Ppl = G711.Bpl, c.loss
		assert.InDelta(t, c.ie, m.equipment(), 3, "with PLC, %v %%", c.loss)
	}
	for _, c := range []struct{ loss, ie float64 }{{0, 0}, {1, 25}, {2, 35}, {3, 45}, {5, 55}} {
		m := DefaultEModel()
		m.Bpl, m.Ppl = G711NoPLC.Bpl, c.loss
		assert.InDelta(t, c.ie, m.equipment(), 8, "without PLC, %v %%", c.loss)
	}
	// By hand from equation 7-29.
	m := DefaultEModel()
	m.Bpl, m.Ppl, m.BurstR = 25.1, 5, 2
	assert.InDelta(t, 95*5/(5.0/2+25.1), m.equipment(), 1e-9)
}

func TestWorseNetworksAreNeverRatedBetter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		at := func(ms, loss, burst float64) float64 {
			m := DefaultEModel()
			m.Bpl, m.Ppl, m.BurstR = G711.Bpl, loss, boundedBurst(burst, loss)
			m.T, m.Ta, m.Tr = ms, ms, 2*ms
			return m.R()
		}
		// From one packet's time up: near zero the model's sidetone term makes R rise by 0.02 with delay.
		ms, loss := rapid.Float64Range(20, 400).Draw(t, "ms"), rapid.Float64Range(0, 30).Draw(t, "loss")
		more := rapid.Float64Range(0, 100).Draw(t, "more")
		assert.LessOrEqual(t, at(ms+more, loss, 1), at(ms, loss, 1)+1e-9)
		assert.LessOrEqual(t, at(ms, loss+more/10, 1), at(ms, loss, 1)+1e-9)
		assert.LessOrEqual(t, at(ms, loss, 1+more/50), at(ms, loss, 1)+1e-9)
	})
	rapid.Check(t, func(t *rapid.T) {
		r, more := rapid.Float64Range(-10, 110).Draw(t, "r"), rapid.Float64Range(0, 20).Draw(t, "more")
		assert.LessOrEqual(t, MOS(r), MOS(r+more)+1e-9)
	})
}

// steady is n packets of the given delay, of which late ones take long.
func steady(n int, delay time.Duration, late int, long time.Duration) *Distribution {
	d := NewDistribution()
	for i := range n {
		if i < late {
			d.Record(long)
			continue
		}
		d.Record(delay)
	}
	return d
}

func TestListenerWaitsForHisBufferAndMissesWhatIsLate(t *testing.T) {
	v := Listen(steady(10000, time.Millisecond, 0, 0), 0, 1, G711)
	assert.Equal(t, 20*time.Millisecond, v.Buffer, "one packet at least")
	assert.Equal(t, 44750*time.Microsecond, v.MouthToEar, "20 + 3.75 + 1 + 20 ms")
	assert.Zero(t, v.Late)
	assert.Greater(t, v.MOS, 4.35)

	// One packet in 2000 at 90 ms lies above p99.9: the buffer stays small and these are lost.
	v = Listen(steady(10000, time.Millisecond, 5, 90*time.Millisecond), 0, 1, G711)
	assert.Equal(t, 20*time.Millisecond, v.Buffer)
	assert.InDelta(t, 0.0005, v.Late, 1e-9)

	// One in 100 lies below: the buffer grows to hold them, and everybody waits.
	v = Listen(steady(10000, time.Millisecond, 100, 90*time.Millisecond), 0, 1, G711)
	assert.InDelta(t, float64(89*time.Millisecond), float64(v.Buffer), float64(time.Millisecond))
	assert.Zero(t, v.Late)

	// Beyond 200 ms the buffer gives up.
	v = Listen(steady(10000, time.Millisecond, 100, 900*time.Millisecond), 0, 1, G711)
	assert.Equal(t, 200*time.Millisecond, v.Buffer)
	assert.InDelta(t, 0.01, v.Late, 1e-9)

	assert.Equal(t, Voice{R: 0, MOS: 1}, Listen(NewDistribution(), 1, 1, G711), "nothing arrived")
	assert.Equal(t, Voice{}, Listen(NewDistribution(), 0, 1, G711), "nothing was sent: no rating")
}

func TestBurstRatioStaysWhereTheModelHolds(t *testing.T) {
	assert.Equal(t, 8.0, boundedBurst(20, 1))
	assert.Equal(t, 2.0, boundedBurst(20, 5))
	assert.Equal(t, 1.0, boundedBurst(0.3, 5))
}

func ExampleListen() {
	delays := NewDistribution()
	for range 1000 {
		delays.Record(30 * time.Millisecond)
	}
	v := Listen(delays, 0.01, 1, G711)
	fmt.Printf("mouth to ear %v, R %.0f, MOS %.1f\n", v.MouthToEar, v.R, v.MOS)
	// Output: mouth to ear 73.75ms, R 88, MOS 4.3
}
