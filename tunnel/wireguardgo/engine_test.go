package wireguardgo

import (
	"fmt"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"ringway/test/enginetest"
	"ringway/test/polltest"
	"ringway/tunnel"
)

var wide = enginetest.Wide

func makeEngine(s enginetest.Start) (enginetest.Engine, error) {
	return New(Files{TUN: s.TUN, UDP4: s.UDP4, UDP6: s.UDP6}, tunnel.Data, s.Bounds, s.MTU, s.Log)
}

func wire(t testing.TB) (a, b *enginetest.Box) { return enginetest.Wire(t, makeEngine) }

func pair(t testing.TB, bounds tunnel.Bounds) (a, b *enginetest.Box) {
	return enginetest.Pair(t, makeEngine, bounds)
}

// engine is the box's, with what is inside.
func engine(b *enginetest.Box) *Engine { return b.E.(*Engine) }

func TestMain(m *testing.M) {
	if ran, err := enginetest.Child(makeEngine); ran {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) { enginetest.RemoveStock(); os.Exit(code) }))
}

func TestSuite(t *testing.T) {
	t.Parallel()
	enginetest.Suite(t, makeEngine, enginetest.Options{})
}

func TestDeviceGoesDownAndUp(t *testing.T) {
	t.Parallel()
	a, b := pair(t, wide)
	require.NoError(t, a.Ping("10.66.0.2"))
	require.NoError(t, engine(a).dev.Down())
	require.NoError(t, engine(a).dev.Up())
	// The far end takes no initiation within 20 ms of the last, and the next follows after 5 s.
	polltest.Require(t, func() bool { return a.Ping("10.66.0.2") == nil }, 15*time.Second, 10*time.Millisecond)
	require.NoError(t, b.Ping("10.66.0.1"))
}

func TestPairTalks(t *testing.T) {
	t.Parallel()
	a, b := pair(t, wide)
	require.NoError(t, a.Ping("10.66.0.2"))
	require.NoError(t, b.Ping("fd66::1"))
	require.NoError(t, a.Ping("10.66.0.2", "-s", "1392", "-M", "do"))

	s := a.E.Status()
	require.Len(t, s.Peers, 1)
	p := s.Peers[0]
	assert.Equal(t, b.Key.Public(), p.PublicKey)
	assert.Equal(t, netip.MustParseAddrPort("192.0.2.2:51820"), p.Endpoint)
	assert.Equal(t, a.Key.Public().String(), s.PublicKey)
	assert.WithinDuration(t, time.Now(), p.LastHandshake, 10*time.Second)
	assert.EqualValues(t, 9, p.TxPackets)
	assert.EqualValues(t, 9, p.RxPackets)
	assert.Equal(t, uint16(51820), s.ListenPort)
	assert.Equal(t, "rw0", s.Interface)
	assert.Zero(t, engine(a).hub.out.inside.Load())
}
