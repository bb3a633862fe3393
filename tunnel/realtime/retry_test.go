package realtime

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Our initiation was lost, and meanwhile the peer's own has made a session: there is nothing left to try again for.
func TestInitiationIsNotTriedAgainOnceThePeersOwnHasMadeASession(t *testing.T) {
	r := newRig(t)
	r.a.send(packet(1, 2, 0, 100))
	r.a.take()
	require.Len(t, r.b.wire(), 1, "the initiation, which gets lost")
	r.now += int64(tick)
	r.b.send(packet(2, 1, 0, 100))
	r.settle()
	require.Len(t, r.a.got(), 1)
	require.Len(t, r.b.got(), 1, "what waited for a session")

	p := r.a.peerOf(r.b)
	s := p.current.Load()
	require.NotNil(t, s)
	r.pass(rekeyTimeout + jitterMax + time.Second)
	assert.Nil(t, p.pending)
	assert.True(t, s == p.current.Load(), "no second handshake")
	assert.False(t, s.initiator)
	r.talk()
}
