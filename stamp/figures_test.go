package stamp

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// simulated is a run whose truth is known: the far clock is ahead and drifts, each way has a delay of its own.
func simulated(
	count int, ahead time.Duration, ppm float64, there, back func(n int) time.Duration, synchronized bool,
) *Result {
	good := ClockState{Synchronized: synchronized, MaxError: time.Millisecond}
	r := &Result{Probe: Probe{Streams: 1, Interval: 20 * time.Millisecond}, Before: good, After: good}
	s := Stream{}
	const epoch = int64(1_795_600_800_000_000_000)
	for n := range count {
		sent := epoch + int64(n)*20e6
		far := func(at int64) int64 { return at + int64(ahead) + int64(float64(at-epoch)*ppm/1e6) }
		in := sent + int64(there(n))
		out := in + 50_000
		s.Packets = append(s.Packets, Packet{Sent: sent, ThereIn: far(in), ThereOut: far(out), Received: out + int64(back(n)),
			FarSeq: uint32(n), Far: Far{Counted: true}, Error: NewErrorEstimate(good, NTP)})
	}
	r.Streams = []Stream{s}
	return r
}

// Two crystals 40 ppm apart and an hour out of step, over 60 s: 2.4 ms of drift must not look like variation.
func TestVariationNeedsNoCommonClock(t *testing.T) {
	noise := rand.New(rand.NewPCG(1, 2))
	delay := func(least, most time.Duration) func(int) time.Duration {
		return func(int) time.Duration { return least + time.Duration(noise.Int64N(int64(most-least))) }
	}
	g := simulated(
		3000, time.Hour, 40, delay(5*time.Millisecond, 5100*time.Microsecond),
		delay(9*time.Millisecond, 9900*time.Microsecond), false,
	).Figures()
	assert.False(t, g.Clocks.OneWay)
	assert.True(t, g.Clocks.Drift)
	assert.InDelta(t, 40, g.Clocks.DriftPPM, 0.5)
	assert.InDelta(t, 100e3, float64(g.Forward.PDV), 25e3, "ns")
	assert.InDelta(t, 900e3, float64(g.Backward.PDV), 25e3, "ns")
	assert.InDelta(t, 14e6, float64(g.RoundTrip.Delay.Min()), 100e3)
	assert.InDelta(t, 7e6, float64(g.Forward.Delay.Min()), 600e3, "half of the round trip, for MOS")
	assert.Contains(
		t, g.Clocks.Statement, "neither clock is synchronized: no one-way delay, only its variation",
	)
	assert.Contains(t, g.Clocks.Statement, "ppm, which is corrected")
}

// Noise is not drift: one clock, and queues that come and go.
func TestNoiseIsNotTakenForDrift(t *testing.T) {
	noise := rand.New(rand.NewPCG(3, 4))
	queue := func(n int) time.Duration {
		wait := time.Duration(noise.ExpFloat64() * float64(20*time.Millisecond))
		return 5*time.Millisecond + wait + time.Duration(n/50%7)*3*time.Millisecond
	}
	g := simulated(500, time.Hour, 0, queue, queue, false).Figures()
	assert.False(t, g.Clocks.Drift, "%v ± %v ppm", g.Clocks.DriftPPM, g.Clocks.DriftFuzz)
	assert.Contains(t, g.Clocks.Statement, "no drift shows above ± ")
}

func TestOneWayWhereBothClocksAreSynchronized(t *testing.T) {
	five := func(int) time.Duration { return 5 * time.Millisecond }
	nine := func(int) time.Duration { return 9 * time.Millisecond }
	r := simulated(200, 0, 0, five, nine, true)
	g := r.Figures()
	assert.True(t, g.Clocks.OneWay)
	assert.Equal(t, 5*time.Millisecond, g.Forward.Delay.Min())
	assert.Equal(t, 9*time.Millisecond, g.Backward.Delay.Max())
	assert.InDelta(t, 2e6, float64(g.Clocks.Error), 20e3)
	assert.Contains(t, g.Clocks.Statement, "both clocks are synchronized, together to within 2.0")

	r = simulated(200, -6*time.Millisecond, 0, five, nine, true)
	g = r.Figures()
	assert.Equal(t, int64(200), g.Clocks.Negative)
	assert.Contains(t, g.Clocks.Statement, "so they are not")

	r = simulated(200, 0, 0, five, nine, true)
	r.Streams[0].Packets[77].Error &^= 1 << 15 // one packet says otherwise
	g = r.Figures()
	assert.False(t, g.Clocks.OneWay)

	r = simulated(200, 0, 0, five, nine, true)
	r.After.Synchronized = false
	assert.False(t, r.Figures().Clocks.OneWay)

	r = simulated(200, 0, 0, five, nine, true)
	r.ClockMoved = 2 * time.Second
	g = r.Figures()
	assert.False(t, g.Clocks.OneWay)
	assert.Contains(t, g.Clocks.Statement, "was set by 2s")

	r = simulated(200, 0, 0, five, nine, true)
	for i := range r.Streams[0].Packets {
		r.Streams[0].Packets[i].Error |= 1 << 14
	}
	assert.Contains(t, r.Figures().Clocks.Statement, "stamps in TAI")
}

// A reflector that keeps no state echoes numbers: what is lost is lost somewhere, and counts in both
// directions.
func TestStatelessReflectorTellsNoPlaceOfLoss(t *testing.T) {
	flat := func(int) time.Duration { return 5 * time.Millisecond }
	r := simulated(100, 0, 0, flat, flat, false)
	for i := range r.Streams[0].Packets {
		r.Streams[0].Packets[i].Far = Far{}
	}
	for _, n := range []int{10, 11, 50} {
		r.Streams[0].Packets[n].Received = 0
	}
	g := r.Figures()
	assert.Equal(t, Lost{Sent: 100, Total: 3, Unknown: 3}, g.Lost)
	assert.InDelta(t, 0.03, g.Forward.Loss, 1e-9)
	assert.InDelta(t, 0.03, g.Backward.Loss, 1e-9)
}

func TestWhatIsLostLastIsLostSomewhere(t *testing.T) {
	flat := func(int) time.Duration { return 5 * time.Millisecond }
	r := simulated(10, 0, 0, flat, flat, false)
	p := r.Streams[0].Packets
	p[0].Received, p[1].Received, p[8].Received, p[9].Received = 0, 0, 0, 0
	for n := 2; n < 8; n++ {
		p[n].FarSeq = uint32(n - 1) // one of the first two was never seen there
	}
	assert.Equal(
		t, Lost{Sent: 10, Total: 4, Forward: 1, Backward: 1, Unknown: 2, Stateful: true}, r.Figures().Lost,
	)
}

func TestReorderingIsToldApart(t *testing.T) {
	flat := func(int) time.Duration { return 5 * time.Millisecond }
	r := simulated(10, 0, 0, flat, flat, false)
	p := r.Streams[0].Packets
	p[3].FarSeq, p[4].FarSeq = 4, 3 // overtaken on the way there
	p[7].Received, p[8].Received = p[8].Received, p[7].Received
	g := r.Figures()
	assert.Equal(t, 1, g.Forward.Reordered)
	assert.Equal(
		t, 2, g.Backward.Reordered, "7 and 8; and the answer to 4, which went first there, came second here",
	)
	assert.Zero(t, g.Lost.Total)
}

func TestNothingCameBack(t *testing.T) {
	r := &Result{Streams: []Stream{{Packets: []Packet{{Sent: 1}, {Sent: 2}}}}}
	g := r.Figures()
	assert.Equal(t, Lost{Sent: 2, Total: 2, Unknown: 2}, g.Lost)
	assert.False(t, g.Clocks.OneWay)
}
