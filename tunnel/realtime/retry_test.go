package realtime

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Our initiation was lost, and meanwhile the peer's own has made a session: there is nothing left to try
// again for.
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
	r.pass(rekeyTimeout + maxJitter + time.Second)
	assert.Nil(t, p.pending)
	assert.True(t, s == p.current.Load(), "no second handshake")
	assert.False(t, s.initiator)
	r.talk()
}

// While the peer's own session is answered and not used yet, ours has to wait: a stock peer keeps the session
// that we send in as its last, and an initiation takes it from there. When our answer got lost, it waits no
// longer than the peer does to begin again.
func TestInitiationWaitsForThePeersOwn(t *testing.T) {
	for _, lost := range []bool{false, true} {
		r := newRig(t)
		r.talk()
		r.now += int64(2 * rekeyTimeout)
		p := r.a.peerOf(r.b)
		r.b.Handshake()
		r.a.take() // the answer is on its way
		require.NotNil(t, p.next)
		r.a.Handshake()
		assert.Nil(t, p.pending)
		if lost {
			require.Len(t, r.b.wire(), 1)
			r.now += int64(rekeyTimeout)
		} else {
			r.settle()
			require.Nil(t, p.next, "the peer has used it")
		}
		r.a.Handshake()
		assert.NotNil(t, p.pending)
		r.settle()
		r.talk()
	}
}
