package calls

import (
	"context"
	"encoding/json"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/sip/call"
	"ringway/tunnel"
)

// rig is a meter whose engine and clock are the test's.
type meterRig struct {
	*meter
	engine *fakeEngine
	clock  time.Time
}

func newMeterRig() *meterRig {
	r := &meterRig{engine: &fakeEngine{keeper: 7}, clock: time.Date(2026, 11, 29, 9, 0, 0, 0, time.UTC)}
	r.meter = newMeter(r.engine)
	r.now = func() time.Time { return r.clock }
	return r
}

// ask asks the engine again, some seconds later.
func (r *meterRig) ask(after time.Duration) {
	r.clock = r.clock.Add(after)
	r.refresh(context.Background())
}

// series is one from or to a phone of the test's call.
func (r *meterRig) series(number uint32, out bool, expected, arrived, passed uint32) tunnel.SeriesStatus {
	phone, far := netip.MustParseAddrPort("10.1.10.21:16384"), netip.MustParseAddrPort("10.2.10.31:20000")
	s := tunnel.SeriesStatus{
		Flow: tunnel.Flow{Source: phone, Destination: far}, Out: out, Number: number, SiteName: "hamburg", Began: r.clock,
		Last: r.clock, Expected: expected, Arrived: arrived, Passed: passed,
		JitterMean: 1500 * time.Microsecond, JitterPeak: 4 * time.Millisecond,
	}
	if !out {
		s.Flow.Source, s.Flow.Destination = far, phone
	}
	return s
}

// testCall has two flows of RTP.
func (r *meterRig) testCall() call.Call {
	return call.Call{ID: "5f2a91c3", Began: r.clock, Codecs: []string{"PCMA"}, Media: []call.Flow{
		{From: "10.1.10.21", To: "10.2.10.31:20000"}, {From: "10.2.10.31", To: "10.1.10.21:16384"},
	}}
}

func TestTheQualityOfACall(t *testing.T) {
	r := newMeterRig()
	c := r.testCall()
	sent, received := r.series(1, true, 1000, 990, 985), r.series(1, false, 2000, 2000, 2000)
	sent.Dropped = map[string]uint32{"over_budget": 5}
	r.engine.series = []tunnel.SeriesStatus{sent, received}
	r.ask(20 * time.Second)
	all := []call.Call{c, {ID: "another", Began: c.Began}}
	r.fill(all)
	assert.Equal(t, &call.Quality{
		Packets: 985, Lost: 15, Jitter: 1.5, JitterMax: 4, R: 86.55, MOS: 4.25,
		Where: map[string]uint64{"phone's LAN": 10, "this box": 5}, Why: map[string]uint64{"over_budget": 5},
	}, all[0].Sent)
	assert.Equal(t, "4.25, 1.5%, 1.5ms (phone's LAN 10, this box 5)", all[0].Sent.String())
	assert.Equal(t, "4.38, 0.0%, 1.5ms", all[0].Received.String())
	assert.Nil(t, all[1].Sent)
	assert.Equal(t, "-", all[1].Received.String())

	// Another source in the middle of the call, and another codec.
	c.Codecs = []string{"G729"}
	more := r.series(2, false, 10, 10, 10)
	more.JitterPeak = 0
	r.engine.series = append(r.engine.series, more)
	r.ask(2 * time.Second)
	r.fill(all[:1])
	assert.EqualValues(t, 2010, all[0].Received.Packets)
	assert.EqualValues(t, 4, all[0].Received.JitterMax)
	good := all[0].Received.R
	all[0].Codecs = []string{"G729"}
	r.fill(all[:1])
	assert.InDelta(t, 11, good-all[0].Received.R, 1)

	// What the description does not say: who sends.
	all[0].Media[0].From = "192.0.2.9"
	r.fill(all[:1])
	assert.NotNil(t, all[0].Sent)
}

// The delay of the line counts, by ITU-T G.107, with that of packet, codec and jitter buffer: 43.75 ms of G.711. Below
// 100 ms in all it costs next to nothing; where it is not known, it is absent.
func TestTheDelayOfACall(t *testing.T) {
	r := newMeterRig()
	all := []call.Call{r.testCall()}
	rated := func(delay time.Duration) call.Quality {
		s := r.series(1, false, 1000, 1000, 1000)
		s.JitterMean, s.JitterPeak, s.Delay = 0, 0, delay
		r.engine.series = []tunnel.SeriesStatus{s}
		r.ask(5 * time.Second)
		r.fill(all)
		return *all[0].Received
	}
	unknown := rated(0)
	b, err := json.Marshal(unknown)
	require.NoError(t, err)
	assert.NotContains(t, string(b), "delay_ms")
	near := rated(40 * time.Millisecond)
	assert.EqualValues(t, 40, near.Delay)
	assert.InDelta(t, unknown.R, near.R, 1.5)
	b, err = json.Marshal(near)
	require.NoError(t, err)
	assert.Contains(t, string(b), `"delay_ms":40,`)
	assert.Contains(t, near.String(), "0.0ms, delay 40.0ms")

	// Id = 0.024 d + 0.11 (d - 177.3) H(d - 177.3) is the well-known fit (Cole and Rosenbluth, 2001), good to 2 points.
	for ms, r := range map[float64]float64{100: 90.8, 200: 85.9, 300: 72.5} {
		q := rated(time.Duration((ms - 43.75) * float64(time.Millisecond)))
		assert.InDelta(t, r, q.R, 2.2, "%v ms from mouth to ear", ms)
	}
	assert.Less(t, rated(300*time.Millisecond).MOS, 3.6, "annex B: many are dissatisfied below R = 70")
	assert.EqualValues(t, 0.01, rated(2*time.Microsecond).Delay, "known, however short")
}

// The next call between the same ports is not taken for this one, nor the one before.
func TestCallsOfTheSamePortsAreApart(t *testing.T) {
	r := newMeterRig()
	first := r.testCall()
	r.engine.series = []tunnel.SeriesStatus{r.series(1, true, 100, 100, 100)}
	r.ask(time.Minute)
	first.Ended = r.clock
	r.clock = r.clock.Add(10 * time.Second)
	second := r.testCall()
	r.engine.series = []tunnel.SeriesStatus{r.series(2, true, 300, 300, 300)}
	r.ask(time.Minute)

	all := []call.Call{first, second}
	r.fill(all)
	assert.EqualValues(t, 100, all[0].Sent.Packets, "the engine has forgotten it")
	assert.EqualValues(t, 300, all[1].Sent.Packets)
}

// A new plane counts from the start: what the one before counted stays the call's.
func TestACallOutlivesAPlane(t *testing.T) {
	r := newMeterRig()
	all := []call.Call{r.testCall()}
	r.engine.series, r.engine.beyond = []tunnel.SeriesStatus{r.series(1, true, 100, 90, 90)}, 5
	r.ask(time.Minute)
	r.engine.keeper, r.engine.beyond = 8, 1
	r.engine.series = []tunnel.SeriesStatus{r.series(1, true, 50, 50, 50)}
	r.ask(10 * time.Second)
	r.fill(all)
	assert.EqualValues(t, 140, all[0].Sent.Packets)
	assert.EqualValues(t, 10, all[0].Sent.Lost)
	s := r.status()
	assert.EqualValues(t, 6, s.Beyond)
	assert.Equal(t, [2]int{0, 1}, s.Series)
}

// Totals only grow, also where a packet that looked lost comes late.
func TestTotalsOfMedia(t *testing.T) {
	r := newMeterRig()
	for _, x := range [][3]uint32{{100, 98, 97}, {110, 109, 109}, {200, 195, 194}} {
		s := r.series(1, true, x[0], x[1], x[2])
		received := r.series(1, false, 50, 46, 46)
		received.Line, received.FarLAN = 2, 1
		r.engine.series = []tunnel.SeriesStatus{s, received}
		r.ask(5 * time.Second)
	}
	s := r.status()
	assert.True(t, s.Measured)
	sent := MediaTotal{Site: "hamburg", Out: true, Packets: 194,
		Lost: map[string]uint64{"phone's LAN": 5, "this box": 1, "line": 0}}
	received := MediaTotal{Site: "hamburg", Packets: 46, Lost: map[string]uint64{"line": 2, "far LAN": 1}}
	assert.Equal(t, []MediaTotal{sent, received}, s.Sites)

	// What the far end has not told until then stays unknown.
	r.ask(5 * time.Second)
	received.Lost["unknown"] = 1
	assert.Equal(t, []MediaTotal{sent, received}, r.status().Sites)
}

// Where both ends know of packets, each segment has its own; the rest is unknown.
func TestWherePacketsWereLost(t *testing.T) {
	r := newMeterRig()
	all := []call.Call{r.testCall()}
	sent, received := r.series(1, true, 1000, 990, 990), r.series(1, false, 1000, 960, 960)
	sent.Line, sent.FarBox = 20, 5
	received.Line, received.FarLAN, received.FarBox = 15, 10, 5
	r.engine.series = []tunnel.SeriesStatus{sent, received}
	r.ask(time.Minute)
	r.fill(all)
	assert.Equal(t, map[string]uint64{"phone's LAN": 10, "line": 20, "far box": 5}, all[0].Sent.Where)
	assert.EqualValues(t, 965, all[0].Sent.Packets)
	assert.Equal(t, map[string]uint64{"line": 15, "far LAN": 10, "far box": 5, "unknown": 10}, all[0].Received.Where)
	assert.EqualValues(t, 40, all[0].Received.Lost)
	assert.EqualValues(t, 960, all[0].Received.Packets)

	received.Arrived, received.Passed = 985, 985 // late
	r.engine.series = []tunnel.SeriesStatus{received}
	r.ask(time.Minute)
	r.fill(all)
	assert.EqualValues(t, 15, all[0].Received.Lost)
	assert.NotContains(t, all[0].Received.Where, "unknown")
}

func TestTheEngineIsNotAskedTooOften(t *testing.T) {
	r := newMeterRig()
	for range 10 {
		r.ask(100 * time.Millisecond)
	}
	assert.Equal(t, 1, r.engine.asked)
	r.ask(time.Second)
	assert.Equal(t, 2, r.engine.asked)

	r.engine.fails = true
	r.ask(time.Second)
	s := r.status()
	assert.False(t, s.Measured)
	assert.Equal(t, "the plane does not answer", s.Why)
	assert.Contains(t, Status{Mode: "observe", Reading: true, Media: s}.String(),
		"; quality of calls not measured: the plane does not answer")
}

// Memory is bounded: the oldest is forgotten.
func TestMediaThatEndedIsForgotten(t *testing.T) {
	r := newMeterRig()
	for i := range 3 {
		r.engine.series = nil
		for n := range uint32(maxSeriesKept / 2) {
			r.engine.series = append(r.engine.series, r.series(uint32(i)<<16|n, true, 1, 1, 1))
		}
		r.ask(time.Minute)
	}
	require.Len(t, r.meter.series, maxSeriesKept)
	assert.NotContains(t, r.meter.series, seriesKey{7, true, 0})
	assert.Contains(t, r.meter.series, seriesKey{7, true, 2 << 16}, "the latest stays")
	r.engine.series = nil
	r.ask(2 * time.Hour)
	assert.Empty(t, r.meter.series)
}
