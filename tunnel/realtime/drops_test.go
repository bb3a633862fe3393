package realtime

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"

	"ringway/tunnel/datagram"
)

// Every reason has a name of its own, and is known by it before it occurs.
func TestEveryReasonIsNamed(t *testing.T) {
	all := Reasons()
	assert.Len(t, all, int(reasons))
	assert.NotContains(t, all, "")
	slices.Sort(all)
	assert.Len(t, slices.Compact(all), int(reasons), "two have one name")
	for r := range reasons {
		var d drops
		d.add(r)
		assert.Equal(t, map[string]uint64{Reasons()[r]: 1}, d.all())
	}
}

// For the same errno each engine has the same reason: that of package datagram.
func TestSendErrorsHaveOneReason(t *testing.T) {
	for errno := unix.Errno(1); errno < 134; errno++ {
		var d drops
		d.sendError(errno, 2)
		assert.Equal(t, map[string]uint64{datagram.ClassifySend(errno).String(): 2}, d.all(), errno.Error())
	}
}
