package appliance

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// A difference is reconciled at once. One that stays is tried again less and less often; one that comes again after it
// was gone waits for two seconds at most.
func TestDriftIsPaced(t *testing.T) {
	var d drift
	now := time.Unix(1_700_000_000, 0)
	at := func(after time.Duration) time.Time { return now.Add(after) }
	assert.False(t, d.due(at(0), false))
	assert.True(t, d.due(at(0), true), "at once")
	assert.False(t, d.due(at(time.Second), true), "the round may be under way")
	assert.False(t, d.due(at(1500*time.Millisecond), false), "repaired")
	assert.True(t, d.due(at(2*time.Second), true), "somebody does it again")

	tries := 0
	for s := 4; s < 604; s++ {
		if d.due(at(time.Duration(s)*time.Second), true) {
			tries++
		}
	}
	assert.InDelta(t, 13, tries, 2, "in ten minutes of a difference that cannot be removed")
}
