package realtime

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
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
