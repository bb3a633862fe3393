package quality

import (
	"math"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"pgregory.net/rapid"
)

func TestPercentilesAreWithinAThousandth(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.SliceOfN(rapid.Int64Range(0, int64(20*time.Second)), 1, 500).Draw(t, "delays")
		d := NewDistribution()
		for _, v := range values {
			d.Record(time.Duration(v))
		}
		slices.Sort(values)
		for _, p := range []float64{50, 90, 99, 99.9, 99.99, 100} {
			rank := max(1, int(math.Ceil(p/100*float64(len(values))-1e-9))) // nearest rank
			want := float64(values[rank-1])
			assert.InDelta(t, want, float64(d.Percentile(p)), want/1000+1, "p%v of %d", p, len(values))
		}
		assert.Equal(t, time.Duration(values[0]), d.Min())
		assert.Equal(t, time.Duration(values[len(values)-1]), d.Max())
		assert.LessOrEqual(t, d.Percentile(99), d.Percentile(99.9))
		assert.Equal(t, d.Percentile(99.9)-d.Min(), d.PDV())
	})
}

func TestDistributionKeepsItsBounds(t *testing.T) {
	d := NewDistribution()
	assert.Zero(t, d.Percentile(50))
	assert.Zero(t, d.Mean())
	d.Record(-time.Millisecond)
	d.Record(time.Hour)
	assert.EqualValues(t, 1, d.Negative())
	assert.Zero(t, d.Min())
	assert.Equal(t, time.Hour, d.Max(), "the maximum is exact, also beyond what the histogram tells apart")

	a, b := NewDistribution(), NewDistribution()
	a.Record(3 * time.Millisecond)
	b.Record(1 * time.Millisecond)
	b.Record(2 * time.Millisecond)
	a.Merge(b)
	a.Merge(NewDistribution())
	assert.EqualValues(t, 3, a.Count())
	assert.Equal(t, time.Millisecond, a.Min())
	assert.Equal(t, 3*time.Millisecond, a.Max())
	assert.Equal(t, 2*time.Millisecond, a.Mean())
	assert.InDelta(t, 2.0/3, a.FractionAbove(1500*time.Microsecond), 1e-9)
	assert.Zero(t, a.FractionAbove(3*time.Millisecond))
}

// RFC 3550 section 6.4.1 by hand: transit 10, 26, 10 ms: D = 16, 16; J = 1, 1 + (16-1)/16.
func TestJitterIsTheRFCs(t *testing.T) {
	const ms = Timestamp(time.Millisecond)
	var j Jitter
	j.Record(0, 10*ms)
	assert.Zero(t, time.Duration(j.j))
	j.Record(20*ms, 46*ms)
	assert.Equal(t, time.Millisecond, time.Duration(j.j))
	j.Record(40*ms, 50*ms)
	assert.Equal(t, 1937500*time.Nanosecond, time.Duration(j.j))
	assert.Equal(t, 1937500*time.Nanosecond, j.Max())
	assert.Equal(t, 1468750*time.Nanosecond, j.Mean())
}

// A sender that paces badly adds nothing; a constant delay of any size is no jitter.
func TestJitterIsTheNetworksAlone(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		delay := Timestamp(rapid.Int64Range(0, int64(time.Second)).Draw(t, "delay"))
		var j Jitter
		var now Timestamp
		for _, gap := range rapid.SliceOfN(rapid.Int64Range(0, int64(time.Second)), 2, 50).Draw(t, "gaps") {
			now += Timestamp(gap)
			j.Record(now, now+delay)
		}
		assert.Zero(t, j.Max())
	})
}
