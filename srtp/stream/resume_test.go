package stream

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/suite"
)

// A process that seals packets and ends before it says so leaves the account that it was given. The one after it, which
// is given the account as it was advanced, uses no index twice: neither of SRTCP, nor of a source that is new to both.
func TestProcessesThatEndBeforeTheySaySoUseNoIndexTwice(t *testing.T) {
	const known, fresh = 7, 8
	key := func() *Key {
		k, err := NewKey(suite.AEADAES128GCM, make([]byte, 16), make([]byte, 12), nil, 0)
		require.NoError(t, err)
		return k
	}
	control, media := map[uint32]bool{}, map[uint16]bool{}
	report := func(s *Sender) {
		for range 100 {
			p := make([]byte, rtcpHeader, 64)
			p[0], p[1], p[3], p[7] = 0x80, 201, 1, known
			out, err := s.SealRTCP(p, p, 1)
			require.NoError(t, err)
			index := binary.BigEndian.Uint32(out[len(out)-rtcpIndex:])
			require.False(t, control[index], "index %d of SRTCP", index)
			control[index] = true
		}
	}
	begin := func(s *Sender) {
		for seq := range byte(100) {
			p := make([]byte, rtpHeader, 64)
			p[0], p[3], p[11] = 0x80, seq, fresh
			out, err := s.Seal(p, p, 1)
			require.NoError(t, err)
			index := binary.BigEndian.Uint16(out[2:]) // nothing rolls over here
			require.False(t, media[index], "index %d", index)
			media[index] = true
		}
	}

	first := NewSender(key())
	report(first)
	account := first.Account()
	for range 2 {
		next := NewSender(key())
		next.Restore(account)
		account = account.Advanced()
		report(next)
		begin(next)
	}
	assert.Len(t, control, 300)
	assert.Len(t, media, 200)
}
