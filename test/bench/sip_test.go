package bench

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/bench/sip"
)

// Calls get through a box that reads them and through one that does not, and the books of both are right. It asserts
// nothing about speed.
func TestSignallingThroughTheBox(t *testing.T) {
	before := machine(t)
	var r sip.Report
	measured(t, &r, "sip", "--json", "--vs", "", "--rates", "50", "--duration", "1s", "--hold", "200ms", "--rounds", "1",
		"--calls", "50", "--best=false")
	assert.Equal(t, before, machine(t))
	require.Len(t, r.Paths, 2)
	for i, name := range []sip.Path{sip.Ringway, sip.Kernel} {
		p := r.Paths[i]
		assert.Equal(t, name, p.Name)
		assert.Equal(t, []int{50, 0}, []int{p.Placed, p.Lost}, name)
		require.Len(t, p.Rounds, 1)
		assert.Len(t, p.Rounds[0].Messages, 6, name)
		assert.Positive(t, p.Delay.P50, name)
		assert.Positive(t, p.CPUPerCallUS, name)
	}
	assert.Positive(t, r.Paths[0].DelayAdded.P50)
	assert.Zero(t, r.Paths[0].Rounds[0].HolesLeft)
	assert.Less(t, r.Paths[0].Rounds[0].Unread, 100, "a busy machine may silence the relay for a moment")
	require.Len(t, r.Memory, 1)
	assert.Equal(t, 50, r.Memory[0].Dialogs)
	assert.Equal(t, 200, r.Memory[0].Holes, "RTP and RTCP both ways")
}
