package channel

import (
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"fmt"
)

const keyLen = 32 // Curve25519 (RFC 7748)

// PublicKey is the public half of a site's identity. The far site has it in its config.
type PublicKey [keyLen]byte

// String is the key in base64, as configs have it.
func (k PublicKey) String() string { return base64.StdEncoding.EncodeToString(k[:]) }

// MarshalText is String, for JSON.
func (k PublicKey) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// ParsePublicKey reads what String makes.
func ParsePublicKey(text string) (k PublicKey, err error) {
	b, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil || len(b) != keyLen {
		return k, fmt.Errorf("public key %.60q is not %d bytes in base64", text, keyLen)
	}
	return PublicKey(b), nil
}

// Identity is a site's static key pair for channels.
type Identity struct {
	private [keyLen]byte
	public  PublicKey
}

// NewIdentity makes an identity of its private half, 32 bytes, which it copies.
func NewIdentity(private []byte) (*Identity, error) {
	k, err := ecdh.X25519().NewPrivateKey(private)
	if err != nil {
		return nil, fmt.Errorf("identity of a site: %w", err)
	}
	return &Identity{private: [keyLen]byte(private), public: PublicKey(k.PublicKey().Bytes())}, nil
}

// GenerateIdentity draws an identity.
func GenerateIdentity() (*Identity, error) {
	var private [keyLen]byte
	defer clear(private[:])
	_, _ = rand.Read(private[:]) // never fails
	return NewIdentity(private[:])
}

// Public returns the public half.
func (i *Identity) Public() PublicKey { return i.public }

// Private returns the private half, to be stored. It is the Identity's own memory.
func (i *Identity) Private() []byte { return i.private[:] }

// Wipe overwrites the private half.
func (i *Identity) Wipe() { clear(i.private[:]) }

// Format prints the public half, whatever the verb.
func (i Identity) Format(s fmt.State, _ rune) { _, _ = fmt.Fprintf(s, "identity %s", i.public) }

var _ fmt.Formatter = Identity{}

// Dials says whether own is the site that opens the connection to far, and begins the Noise handshake on it: it is the
// one with the lower public key. Both ends compute the same.
func Dials(own, far PublicKey) bool { return bytes.Compare(own[:], far[:]) < 0 }
