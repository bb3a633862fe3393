package stream

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/suite"
)

// A key's own memory is overwritten, and what it was made of is the caller's.
func TestWipe(t *testing.T) {
	const s = suite.AEADAES128GCM
	master, salt := make([]byte, s.KeyLen()), make([]byte, s.SaltLen())
	for i := range master {
		master[i] = 1
	}
	for i := range salt {
		salt[i] = 2
	}
	k, err := NewKey(s, master, salt, nil, 0)
	require.NoError(t, err)
	ownMaster, ownSalt := k.master, k.salt
	assert.Equal(t, master, ownMaster)
	assert.Equal(t, salt, ownSalt)
	k.Wipe()
	assert.Equal(t, make([]byte, len(master)), ownMaster)
	assert.Equal(t, make([]byte, len(salt)), ownSalt)
	assert.Equal(t, byte(1), master[0])
}
