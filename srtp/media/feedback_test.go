package media

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/stream"
	"ringway/srtp/suite"
)

// receiverReport has one block, about the stream of ssrc whose last packet had that number.
func receiverReport(from, ssrc, highest uint32) []byte {
	p := make([]byte, 8+24)
	p[0], p[1], p[3] = 0x81, 201, 7
	binary.BigEndian.PutUint32(p[4:], from)
	binary.BigEndian.PutUint32(p[8:], ssrc)
	binary.BigEndian.PutUint32(p[16:], highest)
	return p
}

// nack asks for a packet again.
func nack(from, ssrc uint32, seq uint16) []byte {
	p := make([]byte, 16)
	p[0], p[1], p[3] = 0x81, 205, 3
	binary.BigEndian.PutUint32(p[4:], from)
	binary.BigEndian.PutUint32(p[8:], ssrc)
	binary.BigEndian.PutUint16(p[12:], seq)
	return p
}

// A phone's packets are numbered again on their way, and what the far end reports of them reaches the phone in the
// phone's own numbers. What it reports of others does not change, nor do the phone's reports of what it hears.
func TestReportsAreTranslated(t *testing.T) {
	const s = suite.AES128CMHMACSHA180
	r := newRig(t, clearLeg(1), keyed(t, 2, s, 'i', 'o', nil))
	far := newPeer(t, s, 'i', 'o', nil)
	var came uint16
	for i := range uint16(10) {
		o := r.pass(1, rtp(7, 40_000+i))
		require.NotNil(t, o)
		plain, err := far.open(o.payload())
		require.NoError(t, err)
		came = binary.BigEndian.Uint16(plain[2:])
	}
	require.NotEqual(t, uint16(40_009), came)
	for _, c := range []struct{ said, want []byte }{
		{receiverReport(9, 7, uint32(came)), receiverReport(9, 7, 40_009)},
		{nack(9, 7, came-2), nack(9, 7, 40_007)},
		{receiverReport(9, 8, uint32(came)), receiverReport(9, 8, uint32(came))},
	} {
		o := r.pass(2, far.seal(c.said))
		require.NotNil(t, o, "%v", r.dropped(2))
		assert.Equal(t, c.want, o.payload())
	}
	require.NotNil(t, r.pass(2, far.seal(rtp(9, 50_000))))
	o := r.pass(1, receiverReport(7, 9, 50_000))
	require.NotNil(t, o)
	plain, err := far.open(o.payload())
	require.NoError(t, err)
	assert.Equal(t, receiverReport(7, 9, 50_000), plain)
}

// A flood of forged sources from elsewhere keeps no source of the far end's own from being heard at once.
func TestForgedSourcesFromElsewhere(t *testing.T) {
	const s = suite.AEADAES128GCM
	b := keyed(t, 2, s, 'i', 'o', nil)
	b.Learn = true
	r := newRig(t, clearLeg(1), b)
	far := newPeer(t, s, 'i', 'o', nil)
	elsewhere := netip.MustParseAddrPort("203.0.113.9:9")
	for i := range 5000 {
		r.now += int64(time.Millisecond)
		assert.Nil(t, r.at(2, arrival{payload: append(rtp(1000+uint32(i), 1), make([]byte, 16)...), from: elsewhere}, 0))
		if i%1000 == 999 {
			require.NotNil(t, r.at(2, arrival{payload: far.seal(rtp(7+uint32(i), 1))}, 0), "%v", r.dropped(2))
		}
	}
}

// Sources that a stranger makes up in a phone's name end neither the phone's, nor what the far end hears of its next.
func TestMadeUpSourcesGiveWay(t *testing.T) {
	const s = suite.AEADAES128GCM
	r := newRig(t, clearLeg(1), keyed(t, 2, s, 'i', 'o', nil))
	far := newPeer(t, s, 'i', 'o', nil)
	said := 0
	for i := range uint32(3000) {
		o := r.pass(1, rtp(7, uint16(i)))
		require.NotNil(t, o, "%v", r.dropped(2))
		_, err := far.open(o.payload())
		require.NoError(t, err)
		if i%10 == 0 {
			if o = r.pass(1, rtp(1000+i, 1)); o != nil {
				_, _ = far.open(o.payload())
			}
		}
		for f := r.sides[LAN]; f.updates.first() != nil; f.updates.drop() {
			said++
			assert.LessOrEqual(t, len(f.updates.first().sent.Sources), stream.MaxSources)
		}
	}
	assert.Positive(t, said)
	assert.False(t, endOf(map[uint64]*pair{2: r.pair}, 2).crowded.Load())
	r.now += int64(time.Second)
	o := r.pass(1, rtp(8, 1))
	require.NotNil(t, o, "%v", r.dropped(2))
	_, err := far.open(o.payload())
	assert.NoError(t, err)
}

// DTLS that one leg is flooded with leaves room for another one's handshake.
func TestDTLSOfOneLegLeavesRoom(t *testing.T) {
	a, b := keyed(t, 1, suite.AES128CMHMACSHA180, 'i', 'o', nil), keyed(t, 2, suite.AES128CMHMACSHA180, 'j', 'p', nil)
	a.DTLS, b.DTLS = true, true
	b.Local = next(b.Local)
	r := newRig(t, a, b)
	hello := []byte{22, 254, 253, 0, 1, 2, 3}
	for range 10 * dtlsRing {
		r.pass(1, bytes.Clone(hello))
	}
	r.pass(2, hello)
	assert.Positive(t, r.dropped(1)["dtls_queue_full"])
	assert.Empty(t, r.dropped(2))
}

// A key with no room for another source says so, until there is another key.
func TestACrowdedKeyIsTold(t *testing.T) {
	const s = suite.AEADAES128GCM
	b := keyed(t, 2, s, 'i', 'o', nil)
	r := newRig(t, clearLeg(1), b)
	drain := func() {
		for f := r.sides[LAN]; f.updates.first() != nil; f.updates.drop() {
		}
	}
	seq := 0
	for ssrc := range uint32(stream.MaxSources) {
		for i := range 220 {
			if seq++; i > 200 {
				seq += 2998
			}
			require.NotNil(t, r.pass(1, rtp(ssrc, uint16(seq))), "%v", r.dropped(2))
			drain()
		}
	}
	crowded := func() bool { return endOf(map[uint64]*pair{2: r.pair}, 2).crowded.Load() }
	assert.False(t, crowded())
	assert.Nil(t, r.pass(1, rtp(999, 1)))
	assert.True(t, crowded())
	assert.Equal(t, map[string]uint64{"too_many_sources": 1}, r.dropped(2))
	b.Sender.Use(newKey(t, s, 'n', nil))
	assert.NotNil(t, r.pass(1, rtp(999, 1)))
	assert.False(t, crowded())
}

// Updates for the next process come seldom, and allocate nothing either.
func TestUpdatesAllocateNothing(t *testing.T) {
	const s, packets = suite.AES128CMHMACSHA180, 5000
	r := newRig(t, clearLeg(1), keyed(t, 2, s, 'i', 'o', testMKI))
	far := newPeer(t, s, 'i', 'o', testMKI)
	arrive := make([][]byte, 2*packets) // AllocsPerRun does everything once before it measures
	for i := range arrive {
		arrive[i] = far.seal(rtp(9, uint16(i)))
	}
	leave, sent, heard := rtp(7, 0), 0, 0
	seq := uint16(0)
	allocated := testing.AllocsPerRun(1, func() {
		for range packets {
			seq++
			binary.BigEndian.PutUint16(leave[2:], seq)
			if r.pass(1, leave) == nil || r.pass(2, arrive[seq-1]) == nil {
				t.Fatalf("%v", r.dropped(2))
			}
			for _, f := range r.sides {
				for u := f.updates.first(); u != nil; u = f.updates.first() {
					if u.isSent {
						sent++
					} else {
						heard++
					}
					f.updates.drop()
				}
			}
		}
	})
	assert.Zero(t, allocated)
	assert.Greater(t, sent, 2)
	assert.Greater(t, heard, 100)
}
