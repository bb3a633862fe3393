package dtls

import (
	"bytes"
	"crypto"
	_ "crypto/sha256" // the hashes below
	_ "crypto/sha512"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// ErrFingerprint says that the peer's certificate is not the one that its description announced.
var ErrFingerprint = errors.New("certificate does not match the fingerprint of the description")

// Fingerprint is the hash of a certificate, as a description gives it (RFC 8122 section 5).
type Fingerprint struct {
	hash  crypto.Hash // 0: one that we do not accept
	name  string      // lower case
	value string      // bytes
}

// hashes are those that we accept. MD5 and SHA-1 are not: whoever can make two certificates of one hash can stand
// between the ends. RFC 8122 section 5 forbids MD2 and MD5 itself.
var hashes = map[string]crypto.Hash{
	"sha-224": crypto.SHA224, "sha-256": crypto.SHA256, "sha-384": crypto.SHA384, "sha-512": crypto.SHA512,
}

// maxFingerprint is the length of the longest value, sha-512's, in bytes.
const maxFingerprint = 64

// ParseFingerprint reads the value of a=fingerprint: "sha-256 12:AB:…". Case does not matter in either part. A hash
// that is not accepted does not fail, because a description may have several fingerprints: see Accepted.
func ParseFingerprint(value string) (Fingerprint, error) {
	name, digits, _ := strings.Cut(strings.TrimSpace(value), " ")
	name, digits = strings.ToLower(name), strings.TrimSpace(digits)
	if name == "" || len(name) > 20 || len(digits) == 0 || len(digits) > 3*maxFingerprint-1 || len(digits)%3 != 2 {
		return Fingerprint{}, fmt.Errorf("fingerprint %.40q is not a hash and bytes in hex with colons", value)
	}
	b := make([]byte, 0, maxFingerprint)
	for i := 0; i < len(digits); i += 3 {
		var err error
		if b, err = hex.AppendDecode(b, []byte(digits[i:i+2])); err != nil || i > 0 && digits[i-1] != ':' {
			return Fingerprint{}, fmt.Errorf("fingerprint %.40q has bytes that are not hex with colons", value)
		}
	}
	hash := hashes[name]
	if hash != 0 && len(b) != hash.Size() {
		return Fingerprint{}, fmt.Errorf("fingerprint has %d bytes, %s needs %d", len(b), name, hash.Size())
	}
	return Fingerprint{hash: hash, name: name, value: string(b)}, nil
}

// Accepted says whether the hash is one that we accept.
func (f Fingerprint) Accepted() bool { return f.hash != 0 }

// String is the attribute's value.
func (f Fingerprint) String() string {
	return f.name + " " + strings.ReplaceAll(fmt.Sprintf("% X", f.value), " ", ":")
}

// matches says whether the certificate, in DER, has the fingerprint.
func (f Fingerprint) matches(certificate []byte) bool {
	if f.hash == 0 {
		return false
	}
	h := f.hash.New()
	h.Write(certificate)
	return bytes.Equal(h.Sum(nil), []byte(f.value))
}

// anyMatches says whether one of the fingerprints is the certificate's. One is enough: a description may announce
// several certificates (RFC 8122 section 5).
func anyMatches(all []Fingerprint, certificate []byte) bool {
	return slices.ContainsFunc(all, func(f Fingerprint) bool { return f.matches(certificate) })
}

// sameSet says whether both descriptions announce the same certificates.
func sameSet(a, b []Fingerprint) bool {
	within := func(a, b []Fingerprint) bool {
		return !slices.ContainsFunc(a, func(f Fingerprint) bool { return !slices.Contains(b, f) })
	}
	return within(a, b) && within(b, a)
}
