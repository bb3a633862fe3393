package wireguardgo

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/blake2s"
	"golang.zx2c4.com/wireguard/device"

	"ringway/tunnel"
)

// initiationFor is a message whose first MAC says that it is for k, and nothing else of it is right.
func initiationFor(k tunnel.PublicKey) []byte {
	m := make([]byte, device.MessageInitiationSize)
	binary.LittleEndian.PutUint32(m, device.MessageInitiationType)
	m[4] = 77
	label, _ := blake2s.New256(nil)
	label.Write([]byte("mac1----"))
	label.Write(k[:])
	mac, _ := blake2s.New128(label.Sum(nil))
	mac.Write(m[:116])
	copy(m[116:], mac.Sum(nil))
	return m
}

func TestOfTwoHandshakesThatCrossOneGoesOn(t *testing.T) {
	low, high, other := tunnel.PublicKey{1}, tunnel.PublicKey{2}, tunnel.PublicKey{3}
	from := netip.MustParseAddrPort("192.0.2.1:51820")
	woken := make(chan struct{}, 1)
	atHigh, atLow := newCrossings(func() { woken <- struct{}{} }), newCrossings(func() {})
	at := newEndpoint(from)
	theirs := initiationFor(high)
	knows := func(c *crossings, keys ...tunnel.PublicKey) {
		clear(c.peers)
		for _, k := range keys {
			c.expect([]byte("public_key=" + k.Hex() + "\n"))
		}
	}
	atHigh.setOwn(high)
	atLow.setOwn(low)
	knows(atHigh, other, low)
	knows(atLow, other, high)
	assert.False(t, atHigh.holdBack(theirs, at), "nothing of ours is on the way")
	assert.False(t, atHigh.leave(from, [][]byte{initiationFor(low)}), "the device is taking theirs in")
	assert.True(t, atHigh.leave(from, [][]byte{initiationFor(low)}), "but not twice: it may be forged")
	assert.True(t, atLow.leave(from, [][]byte{theirs}))
	assert.True(t, atHigh.holdBack(theirs, at), "ours goes on")
	assert.False(t, atLow.holdBack(initiationFor(low), at), "and theirs is answered")
	assert.False(t, atHigh.holdBack(theirs, newEndpoint(netip.MustParseAddrPort("192.0.2.9:51820"))), "another peer's")
	knows(atHigh, other)
	assert.False(t, atHigh.holdBack(theirs, at), "for a peer that went")
	knows(atHigh, other, low)
	atHigh.answered(from)
	assert.False(t, atHigh.holdBack(theirs, at), "a new handshake")

	atHigh.leave(from, [][]byte{initiationFor(low)})
	ours := atHigh.sent[from]
	atHigh.giveBack(&initiation{}, heldBack{from: at})
	assert.Empty(t, atHigh.late, "of a handshake that is over")
	require.True(t, atHigh.holdBack(theirs, at))
	<-woken
	got := <-atHigh.late // after crossingTime: ours was not answered
	assert.Equal(t, theirs, got.message[:])
	assert.Same(t, at, got.from)
	assert.NotContains(t, atHigh.sent, from)
	assert.True(t, ours.held)

	atHigh.leave(from, [][]byte{make([]byte, device.MessageInitiationSize)})
	assert.NotContains(t, atHigh.sent, from, "only an initiation is one")
	for i := range 4 * keptInitiations {
		to := netip.AddrPortFrom(from.Addr(), uint16(i+1))
		atHigh.leave(to, [][]byte{initiationFor(low)})
		atHigh.sent[to].at = atHigh.sent[to].at.Add(-2 * crossingTime)
	}
	assert.LessOrEqual(t, len(atHigh.sent), keptInitiations, "old ones do not pile up")
}
