package e2e

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
	"ringway/test/lab"
	"ringway/test/lab/capture"
	"ringway/tunnel"
)

// Padding is switched on in a call. Nothing is lost, no process is replaced, and from then on a media
// packet's length does not reveal its content.
func TestPaddingInACall(t *testing.T) {
	t.Parallel()
	const padTo, keepalive = 512, 32
	l := branches(t, lab.Options{WAN: twenty})
	e := l.Edge("a")
	was, _ := status(t, e).Tunnel(tunnel.Voice)
	calls := talking(t, l, 4, 6*time.Second)
	config, err := e.Config()
	require.NoError(t, err)
	require.NoError(t, e.WriteConfig(append(config, "\ntunnels: [{name: voice, pad_to: 512}]\n"...)))
	out, err := e.Ringway(t.Context(), "reload")
	require.NoError(t, err)
	assert.Equal(
		t, "# rw-voice: outer DSCP CS3 for inner CS3, AF31, CS5; EF for inner EF; EF for everything else; "+
			"padded to 512 bytes\n", out)
	wan := watchWAN(t, l)
	calls.unharmed()
	media := 0
	for _, f := range wan.stop(t) {
		if f.Kind != capture.WireGuard || f.Type != 4 || f.Source.Port() != voicePort ||
			f.Source.Addr().String() != edgeA || f.DSCP != expedited {
			continue
		}
		if n := f.Bytes - 14 - 20 - 8; n != keepalive {
			media++
			assert.Equal(t, padTo+32, n, "a message with %d bytes inside", n-32)
		}
	}
	assert.Greater(t, media, 100)
	is, _ := status(t, e).Tunnel(tunnel.Voice)
	assert.Equal(t, was.PlanePID, is.PlanePID)
	assert.Less(t, resident(t, e, is.PlanePID), qos.ByteCount(24<<20),
		"the one binary's pages that a plane does not need are not its own")
}
