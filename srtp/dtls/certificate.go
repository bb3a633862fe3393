package dtls

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"time"
)

// Certificate is our own, with its key. Peers know it by the fingerprint in our descriptions.
type Certificate struct{ tls tls.Certificate }

// The certificate's dates do not depend on a clock, because a box may start without one. Peers do not look at them:
// the fingerprint is what counts (RFC 5763 section 5).
var (
	notBefore = time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)
	notAfter  = time.Date(2120, 1, 1, 0, 0, 0, 0, time.UTC)
)

// Types of the PEM blocks.
const (
	certificateBlock = "CERTIFICATE"
	keyBlock         = "PRIVATE KEY"
)

// NewCertificate makes a self-signed certificate and a key of ECDSA P-256 (RFC 8827 section 6.5), as PEM. Both are
// new at each call and name nobody.
func NewCertificate() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key of the DTLS certificate: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, fmt.Errorf("make serial number of the DTLS certificate: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "voice"}, NotBefore: notBefore, NotAfter: notAfter,
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make DTLS certificate: %w", err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key of the DTLS certificate: %w", err)
	}
	defer clear(private)
	out := pem.EncodeToMemory(&pem.Block{Type: certificateBlock, Bytes: certificate})
	text := pem.EncodeToMemory(&pem.Block{Type: keyBlock, Bytes: private})
	defer clear(text)
	return append(out, text...), nil
}

// ParseCertificate reads what NewCertificate has made. The caller overwrites the bytes afterwards. No error repeats
// any of them.
func ParseCertificate(text []byte) (*Certificate, error) {
	var c Certificate
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		switch block.Type {
		case certificateBlock:
			c.tls.Certificate = append(c.tls.Certificate, block.Bytes)
		case keyBlock:
			key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
			clear(block.Bytes)
			if err != nil {
				return nil, errors.New("key of the DTLS certificate is not in PKCS 8")
			}
			c.tls.PrivateKey = key
		}
	}
	if len(c.tls.Certificate) != 1 {
		return nil, fmt.Errorf("DTLS needs one certificate, not %d", len(c.tls.Certificate))
	}
	leaf, err := x509.ParseCertificate(c.tls.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("parse DTLS certificate: %w", err)
	}
	key, ok := c.tls.PrivateKey.(*ecdsa.PrivateKey)
	if !ok || key.Curve != elliptic.P256() || !key.PublicKey.Equal(leaf.PublicKey) {
		return nil, errors.New("DTLS certificate has no key of ECDSA P-256 that belongs to it")
	}
	return &c, nil
}

// DER is the certificate without its key.
func (c *Certificate) DER() []byte { return bytes.Clone(c.tls.Certificate[0]) }

// Fingerprint returns the certificate's for our description. An answer has the hash of the offer, so that a peer that
// knows one only can compare: that of the first fingerprint that we accept. Without any it is sha-256.
func (c *Certificate) Fingerprint(offered []Fingerprint) Fingerprint {
	name := "sha-256"
	for _, f := range offered {
		if f.Accepted() {
			name = f.name
			break
		}
	}
	h := hashes[name].New()
	h.Write(c.tls.Certificate[0])
	return Fingerprint{hash: hashes[name], name: name, value: string(h.Sum(nil))}
}

// Format prints nothing of the key.
func (c *Certificate) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, "DTLS certificate") }
