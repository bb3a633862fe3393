package qos

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

// To give a device's queue another length takes the device off the air for a moment: no call's packet may
// meet that because somebody typed in another uplink.
func TestTheVoiceQueueKeepsItsLength(t *testing.T) {
	packets := func(rate BitRate) int {
		return PathBounds(rate, Class{Name: Media, Share: 30, Limit: 20 * time.Millisecond}, 1500).TUNPackets
	}
	for _, rate := range []BitRate{Mbit, 10 * Mbit, 20 * Mbit, 90 * Mbit} {
		assert.Equal(t, packets(64*Kbit), packets(rate), "%s", rate)
	}
	assert.Greater(t, packets(Gbit), packets(90*Mbit), "the queue of a hub holds what comes in 20 ms")
	assert.Equal(t, packets(Gbit), packets(900*Mbit))
}
