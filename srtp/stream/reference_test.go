package stream_test

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/binary"
	"encoding/hex"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/sdes"
	"ringway/srtp/stream"
	"ringway/srtp/suite"
)

// The transforms once more, as the RFCs have them and without a thought for speed: the oracle for what the library
// does, and itself held by the RFCs' vectors.

// derive is RFC 3711 section 4.3.3 with a key derivation rate of 0.
func derive(t require.TestingT, master, salt []byte, label byte, n int) []byte {
	x := make([]byte, 16)
	copy(x, salt)
	x[7] ^= label
	return keystream(t, master, x, n)
}

// keystream is AES in counter mode (section 4.1.1).
func keystream(t require.TestingT, key, iv []byte, n int) []byte {
	block, err := aes.NewCipher(key)
	require.NoError(t, err)
	out := make([]byte, n)
	cipher.NewCTR(block, iv).XORKeyStream(out, out)
	return out
}

// protect is the whole of section 3.3 and of RFC 7714 section 8 for a packet of that roll-over counter.
func protect(t require.TestingT, s suite.Suite, k sdes.Key, p []byte, roc uint32) []byte {
	key := derive(t, k.Master, k.Salt, 0, s.KeyLen())
	salt := derive(t, k.Master, k.Salt, 2, s.SaltLen())
	index := binary.BigEndian.AppendUint32(nil, roc)
	if s.AEAD() {
		iv := make([]byte, 12)
		copy(iv[2:], p[8:12])
		copy(iv[6:], append(index, p[2:4]...))
		for i := range iv {
			iv[i] ^= salt[i]
		}
		return sealGCM(t, key, iv, p[12:], p[:12], p[:12])
	}
	iv := make([]byte, 16)
	copy(iv[4:], p[8:12])
	copy(iv[8:], append(index, p[2:4]...))
	for i := range salt {
		iv[i] ^= salt[i]
	}
	out := append([]byte(nil), p...)
	for i, b := range keystream(t, key, iv, len(p)-12) {
		out[12+i] ^= b
	}
	mac := hmac.New(sha1.New, derive(t, k.Master, k.Salt, 1, 20))
	mac.Write(out)
	mac.Write(binary.BigEndian.AppendUint32(nil, roc))
	return append(out, mac.Sum(nil)[:s.Overhead()]...)
}

func sealGCM(t require.TestingT, key, iv, plain, aad, before []byte) []byte {
	block, err := aes.NewCipher(key)
	require.NoError(t, err)
	gcm, err := cipher.NewGCM(block)
	require.NoError(t, err)
	return gcm.Seal(append([]byte(nil), before...), iv, plain, aad)
}

// unencrypted is an SRTCP packet with the E bit off (section 3.4, RFC 7714 section 9.2).
func unencrypted(t require.TestingT, s suite.Suite, k sdes.Key, p []byte) []byte {
	word := []byte{0, 0, 0, 1}
	if s.AEAD() {
		iv := make([]byte, 12)
		copy(iv[2:], p[4:8])
		iv[11] = 1
		for i, b := range derive(t, k.Master, k.Salt, 5, s.SaltLen()) {
			iv[i] ^= b
		}
		aad := append(append([]byte(nil), p...), word...)
		tag := sealGCM(t, derive(t, k.Master, k.Salt, 3, s.KeyLen()), iv, nil, aad, nil)
		return append(append(append([]byte(nil), p...), tag...), word...)
	}
	mac := hmac.New(sha1.New, derive(t, k.Master, k.Salt, 4, 20))
	out := append(append([]byte(nil), p...), word...)
	mac.Write(out)
	return append(out, mac.Sum(nil)[:10]...)
}

func unhex(t *testing.T, s string) []byte {
	b, err := hex.DecodeString(s)
	require.NoError(t, err)
	return b
}

// RFC 3711 appendix B.2 and B.3, RFC 7714 section 16.1.1.
func TestTheReferenceItself(t *testing.T) {
	stream := keystream(t, unhex(t, "2b7e151628aed2a6abf7158809cf4f3c"), unhex(t, "f0f1f2f3f4f5f6f7f8f9fafbfcfd0000"), 48)
	assert.Equal(t, "e03ead0935c95e80e166b16dd92b4eb4d23513162b02d0f72a43a2fe4a5f97ab41e95b3bb0a2e8dd477901e4fca894c0",
		hex.EncodeToString(stream))

	master, salt := unhex(t, "e1f97a0d3e018be0d64fa32c06de4139"), unhex(t, "0ec675ad498afeebb6960b3aabe6")
	assert.Equal(t, "c61e7a93744f39ee10734afe3ff7a087", hex.EncodeToString(derive(t, master, salt, 0, 16)))
	assert.Equal(t, "30cbbc08863d8c85d49db34a9ae1", hex.EncodeToString(derive(t, master, salt, 2, 14)))
	assert.Equal(t, "cebe321f6ff7716b6fd4ab49af256a156d38baa4", hex.EncodeToString(derive(t, master, salt, 1, 20)))

	header := unhex(t, "8040f17b8041f8d35501a0b2")
	plain := unhex(t, "47616c6c696120657374206f6d6e69732064697669736120696e207061727465732074726573")
	iv := unhex(t, "51753c6580c2726f20718414")
	sealed := sealGCM(t, unhex(t, "000102030405060708090a0b0c0d0e0f"), iv, plain, header, header)
	assert.Equal(t, "8040f17b8041f8d35501a0b2f24de3a3fb34de6cacba861c9d7e4bcabe633bd50d294e6f42a5f47a51c7d19b36de3adf88"+
		"33899d7f27beb16a9152cf765ee4390cce", hex.EncodeToString(sealed))
}

func TestSealIsWhatTheRFCsSay(t *testing.T) {
	each(t, func(t *testing.T, s suite.Suite) {
		k := sdes.NewKey(s)
		for _, at := range []uint64{1, 65_535, 65_536, 3<<16 + 9, 1 << 33} {
			sender := begun(t, s, k, at)
			p := packet(7, int(at))
			want := protect(t, s, k, p, uint32(at>>16))
			assert.Equal(t, hex.EncodeToString(want), hex.EncodeToString(seal(t, sender, p)), "index %d", at)

			receiver := stream.NewReceiver(key(t, s, k))
			receiver.Restore([]stream.Heard{{SSRC: 7, Index: at - 1, HasRTP: true, Exact: true}}, 0)
			got, err := open(receiver, want, 0)
			require.NoError(t, err)
			assert.Equal(t, p, got)
		}
	})
}
