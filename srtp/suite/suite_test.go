package suite_test

import (
	"testing"

	pion "github.com/pion/srtp/v3"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/suite"
)

// The lengths are those of the library that does the work.
func TestLengthsAreThoseOfTheLibrary(t *testing.T) {
	require.Len(t, suite.All(), 6)
	for _, s := range suite.All() {
		t.Run(s.String(), func(t *testing.T) {
			profile := pion.ProtectionProfile(s)
			key, err := profile.KeyLen()
			require.NoError(t, err)
			salt, err := profile.SaltLen()
			require.NoError(t, err)
			tag, err := profile.AuthTagRTPLen()
			require.NoError(t, err)
			aead, err := profile.AEADAuthTagLen()
			require.NoError(t, err)
			rtcp, err := profile.AuthTagRTCPLen()
			require.NoError(t, err)

			assert.True(t, s.Valid())
			assert.Equal(t, key, s.KeyLen())
			assert.Equal(t, salt, s.SaltLen())
			assert.Equal(t, tag+aead, s.Overhead())
			assert.Equal(t, rtcp+aead+4, s.RTCPOverhead())
			assert.Equal(t, aead > 0, s.AEAD())
		})
	}
}

func TestNames(t *testing.T) {
	for _, s := range suite.All() {
		got, err := suite.Parse(s.String())
		require.NoError(t, err)
		assert.Equal(t, s, got)
	}
	for name, want := range map[string]suite.Suite{
		"aes_cm_128_hmac_sha1_80": suite.AES128CMHMACSHA180,
		"AES_CM_256_HMAC_SHA1_80": suite.AES256CMHMACSHA180, // by drafts of RFC 6188
		"AES_CM_256_HMAC_SHA1_32": suite.AES256CMHMACSHA132,
	} {
		got, err := suite.Parse(name)
		require.NoError(t, err, name)
		assert.Equal(t, want, got, name)
	}
	for _, name := range []string{"", "F8_128_HMAC_SHA1_80", "NULL_HMAC_SHA1_80", "AES_CM_128_HMAC_SHA1_8"} {
		_, err := suite.Parse(name)
		assert.ErrorContains(t, err, "is not supported", name)
	}
	assert.False(t, suite.Suite(0).Valid())
	assert.Equal(t, "suite 5", suite.Suite(5).String())
}
