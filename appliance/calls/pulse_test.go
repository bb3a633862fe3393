package calls

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"ringway/sip/relay"
)

// A process that is silent for 200 ms is taken for one that hangs; a daemon that did not look for so long is not
// a reason.
func TestSilence(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	look := func(p *pulse, beats uint64, after time.Duration) bool {
		now = now.Add(after)
		return p.alive(beats, now)
	}
	var p pulse
	assert.True(t, look(&p, 1, 0))
	for range 4 {
		assert.True(t, look(&p, 1, relay.BeatInterval))
	}
	assert.False(t, look(&p, 1, relay.BeatInterval), "five intervals without a beat")
	assert.True(t, look(&p, 2, relay.BeatInterval), "it is back")
	assert.True(t, look(&p, 2, time.Second), "nobody looked for a second")
	assert.True(t, look(&p, 3, relay.BeatInterval))
}
