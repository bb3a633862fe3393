package realtime

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/tunnel"
)

// An address is left: the peer hears at once where we are, what it still sends to the old address brings us back there
// only when the trial is over, and peers that were sent to from elsewhere stay.
func TestAnAddressIsLeft(t *testing.T) {
	r := newRig(t)
	require.NoError(t, unix.SetsockoptInt(r.a.udp[0], unix.IPPROTO_IP, unix.IP_PKTINFO, 1))
	r.talk()
	old, p := netip.MustParseAddr("127.0.0.1"), r.a.peerOf(r.b)
	require.Equal(t, old, p.endpoint.Load().src, "we answer from where we are heard")

	r.a.Reroute(tunnel.Reroute{From: []netip.Addr{netip.MustParseAddr("127.0.0.9")}})
	assert.Equal(t, old, p.endpoint.Load().src)
	assert.Empty(t, r.b.wire(), "nothing was left that the peer knows")
	r.a.Reroute(tunnel.Reroute{From: []netip.Addr{old}, Keys: []tunnel.PublicKey{{1}}})
	assert.Equal(t, old, p.endpoint.Load().src, "it was about another peer")

	r.a.Reroute(tunnel.Reroute{From: []netip.Addr{old}})
	assert.False(t, p.endpoint.Load().src.IsValid())
	assert.Len(t, r.b.wire(), 1, "a keepalive")
	r.talk()
	assert.False(t, p.endpoint.Load().src.IsValid(), "what was on its way does not undo it")
	r.now += int64(tunnel.TrialTime)
	r.talk()
	assert.Equal(t, old, p.endpoint.Load().src, "the peer has not heard of the new one")
}

// A peer without a session that has been there before is called; one that never was is not.
func TestAnAddressIsLeftWithoutASession(t *testing.T) {
	r := newRig(t)
	r.a.Reroute(tunnel.Reroute{})
	assert.Empty(t, r.b.wire())
	r.talk()
	r.pass(rejectAfterTime + time.Second)
	r.b.wire()
	r.a.Reroute(tunnel.Reroute{})
	assert.Len(t, r.b.wire(), 1, "an initiation")
}
