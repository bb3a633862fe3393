package dtls_test

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"ringway/srtp/dtls"
)

// RFC 7983 section 7 and RFC 9443 section 3: every first byte.
func TestSort(t *testing.T) {
	from := map[int]dtls.Kind{
		0: dtls.STUN, 4: dtls.Unknown, 16: dtls.ZRTP, 20: dtls.DTLS, 64: dtls.TURN, 80: dtls.QUIC, 128: dtls.Media,
		192: dtls.QUIC,
	}
	var want dtls.Kind
	for b := range 256 {
		if k, ok := from[b]; ok {
			want = k
		}
		assert.Equal(t, want, dtls.Sort([]byte{byte(b), 0}), "first byte %d", b)
	}
	assert.Equal(t, dtls.Unknown, dtls.Sort(nil))
	packet := make([]byte, 172)
	assert.Zero(t, testing.AllocsPerRun(100, func() { dtls.Sort(packet) }))
	assert.Equal(t, "media", dtls.Media.String())
}
