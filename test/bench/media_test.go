package bench

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/bench/media"
)

// Media gets through Ringway's media plane, re-keyed, and through a router, and the books of both are right. It asserts
// nothing about speed.
func TestMediaThroughTheBox(t *testing.T) {
	before := machine(t)
	var r media.Report
	measured(t, &r, "media", "--json", "--vs", "", "--suites", "AEAD_AES_128_GCM", "--rates", "2000", "--calls", "20",
		"--duration", "500ms", "--rounds", "1", "--best=false")
	assert.Equal(t, before, machine(t))
	require.Len(t, r.Cases, 2)
	for i, other := range []string{"RTP", "AEAD_AES_256_GCM"} {
		c := r.Cases[i]
		assert.Equal(t, []media.Case{media.Encrypt, media.ReKey}[i], c.Case)
		assert.Equal(t, other, c.Other)
		require.Len(t, c.Paths, 2)
		for k, name := range []media.Path{media.Ringway, media.Kernel} {
			p := c.Paths[k]
			assert.Equal(t, name, p.Name)
			require.Len(t, p.Rates, 1)
			require.Len(t, p.Rates[0].Rounds, 1)
			assert.Equal(t, 1000, p.Rates[0].Sent, name)
			assert.Zero(t, p.Rates[0].Rounds[0].Strange, name)
			assert.Positive(t, p.Rates[0].Delay.P50, name)
			assert.Equal(t, k == 0, p.MemoryMiB > 0, name)
		}
	}
}
