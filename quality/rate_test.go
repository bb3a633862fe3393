package quality

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestRate(t *testing.T) {
	c, known := CodecNamed("pcma")
	assert.True(t, known)
	good := Rate(0, 0, 0, c)
	assert.Equal(t, 20*time.Millisecond, good.Buffer)
	assert.Equal(t, 43750*time.Microsecond, good.MouthToEar)
	assert.InDelta(t, 92, good.R, 1)
	assert.InDelta(t, 4.4, good.MOS, 0.05)

	// One percent of random loss costs G.711 with concealment 95/(1+25.1) of R (equation 7-29).
	lossy := Rate(0.01, 0, 0, c)
	assert.InDelta(t, 95.0/26.1, good.R-lossy.R, 0.01)

	even := Rate(0, 30*time.Millisecond, 0, c)
	assert.Equal(t, 120*time.Millisecond, even.Buffer)
	assert.Less(t, even.R, good.R)
	assert.Equal(t, 200*time.Millisecond, Rate(0, time.Second, 0, c).Buffer)
	assert.Less(t, Rate(0, 0, 300*time.Millisecond, c).R, good.R-10, "delay counts")
	assert.EqualValues(t, 1, Rate(1, 0, 0, G711NoPLC).MOS)

	g729, known := CodecNamed("G729")
	assert.True(t, known)
	assert.InDelta(t, 11, good.R-Rate(0, 0, 0, g729).R, 1, "its impairment factor")
	opus, known := CodecNamed("opus")
	assert.False(t, known)
	assert.Equal(t, G711, opus)
}

// The same figures from a distribution of delays.
func TestRateAgreesWithListen(t *testing.T) {
	d := NewDistribution()
	for range 1000 {
		d.Record(30 * time.Millisecond)
	}
	for _, loss := range []float64{0, 0.005, 0.03, 0.2} {
		assert.Equal(t, Listen(d, loss, 1, G711), Rate(loss, 0, 30*time.Millisecond, G711))
	}
}
