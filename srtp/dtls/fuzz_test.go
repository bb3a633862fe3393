package dtls_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/dtls"
)

func FuzzSort(f *testing.F) {
	f.Add([]byte{22, 0xfe, 0xfd})
	f.Fuzz(func(t *testing.T, packet []byte) {
		k := dtls.Sort(packet)
		assert.LessOrEqual(t, k, dtls.Media)
		assert.NotEmpty(t, k.String())
	})
}

func FuzzFingerprint(f *testing.F) {
	f.Add("sha-256 " + strings.Repeat("AB:", 31) + "0F")
	f.Add("SHA-1 00:11:22:33:44:55:66:77:88:99:aa:bb:cc:dd:ee:ff:00:11:22:33")
	f.Fuzz(func(t *testing.T, value string) {
		p, err := dtls.ParseFingerprint(value)
		if err != nil {
			return
		}
		again, err := dtls.ParseFingerprint(p.String())
		require.NoError(t, err)
		assert.Equal(t, p, again)
	})
}
