package tunnel

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"hash"
	"log/slog"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/curve25519"
)

// KeySize is the length of every WireGuard key in bytes.
const KeySize = 32

// PublicKey is a site's Curve25519 public key. It prints as base64, as wg(8) does.
type PublicKey [KeySize]byte

// PrivateKey is a Curve25519 private key. It never prints.
type PrivateKey [KeySize]byte

// PresharedKey is a WireGuard preshared key; zero means none. It never prints.
type PresharedKey [KeySize]byte

const redacted = "(hidden)"

func (k PublicKey) String() string                { return base64.StdEncoding.EncodeToString(k[:]) }
func (k PublicKey) MarshalText() ([]byte, error)  { return []byte(k.String()), nil }
func (k *PublicKey) UnmarshalText(b []byte) error { return decodeKey(k[:], string(b)) }

// Hex is the form the UAPI wants.
func (k PublicKey) Hex() string    { return hex.EncodeToString(k[:]) }
func (k PrivateKey) Hex() string   { return hex.EncodeToString(k[:]) }
func (k PresharedKey) Hex() string { return hex.EncodeToString(k[:]) }

func (k PrivateKey) String() string                 { return redacted }
func (k PrivateKey) GoString() string               { return redacted }
func (k PrivateKey) Format(f fmt.State, _ rune)     { _, _ = f.Write([]byte(redacted)) }
func (k PrivateKey) MarshalText() ([]byte, error)   { return []byte(redacted), nil }
func (k PrivateKey) LogValue() slog.Value           { return slog.StringValue(redacted) }
func (k PresharedKey) String() string               { return redacted }
func (k PresharedKey) GoString() string             { return redacted }
func (k PresharedKey) Format(f fmt.State, _ rune)   { _, _ = f.Write([]byte(redacted)) }
func (k PresharedKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }
func (k PresharedKey) LogValue() slog.Value         { return slog.StringValue(redacted) }

// Base64 is the form of a key file; the one way a private key becomes text.
func (k PrivateKey) Base64() string { return base64.StdEncoding.EncodeToString(k[:]) }

// IsZero says whether no preshared key is set.
func (k PresharedKey) IsZero() bool {
	var z PresharedKey
	return subtle.ConstantTimeCompare(k[:], z[:]) == 1
}

// Public is the public key of k.
func (k PrivateKey) Public() PublicKey {
	var p PublicKey
	out, err := curve25519.X25519(k[:], curve25519.Basepoint)
	if err == nil { // X25519 with the base point fails for no scalar
		copy(p[:], out)
	}
	return p
}

// NewPrivateKey generates a key, clamped as Curve25519 wants (RFC 7748, section 5).
func NewPrivateKey() (PrivateKey, error) {
	var k PrivateKey
	if _, err := rand.Read(k[:]); err != nil {
		return k, fmt.Errorf("generate a private key: %w", err)
	}
	k[0] &= 248
	k[31] = k[31]&127 | 64
	return k, nil
}

// ParsePublicKey reads the base64 form of wg(8): 44 characters, 32 bytes.
func ParsePublicKey(s string) (k PublicKey, err error) { err = decodeKey(k[:], s); return }

// ParsePrivateKey reads a private key; its error never holds any of s.
func ParsePrivateKey(s string) (k PrivateKey, err error) { err = decodeKey(k[:], s); return }

// ParsePresharedKey reads a preshared key; its error never holds any of s.
func ParsePresharedKey(s string) (k PresharedKey, err error) { err = decodeKey(k[:], s); return }

func decodeKey(dst []byte, s string) error {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil {
		return fmt.Errorf("not base64 (a key is 44 characters, 32 bytes, as `ringway keygen` or `wg genkey` print it)")
	}
	if len(b) != KeySize {
		return fmt.Errorf("%d bytes (a key is 44 characters, 32 bytes)", len(b))
	}
	copy(dst, b)
	return nil
}

// ClassPresharedKey mixes a preshared key of its own for each class, so that nobody on the
// path can join one side's voice tunnel to the other's data tunnel (both use one key pair):
// HMAC-BLAKE2s(key = configured key or zeros, "ringway preshared key v1 " + class).
func ClassPresharedKey(configured PresharedKey, c Class) PresharedKey {
	m := hmac.New(func() hash.Hash { h, _ := blake2s.New256(nil); return h }, configured[:])
	m.Write([]byte("ringway preshared key v1 " + string(c)))
	var k PresharedKey
	copy(k[:], m.Sum(nil))
	return k
}
