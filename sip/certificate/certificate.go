// Package certificate holds what it takes to read SIP over TLS: the certificates that a box shows to phones in a
// PBX's own name, and by what it knows that PBX. It reads no file.
package certificate

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// Bounds of what files may hold, so that the servers of a config fit one message to the process that uses them.
const (
	MaxChain   = 64 << 10
	MaxKey     = 16 << 10
	MaxCA      = 256 << 10
	MaxServers = 32
	MaxNames   = 16 // of one server
)

// PEM is what a file holds. It may be a private key, so no printed value shows it.
type PEM string

// Format keeps the text out of everything that is printed.
func (PEM) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("(hidden)")) }

// Source describes a server as its files do.
type Source struct {
	Name  string   `json:"name"`
	Names []string `json:"names"` // that phones ask for (SNI), lower case; or addresses, for phones that ask for none

	Chain PEM `json:"chain"` // that phones are shown, the server's first
	Key   PEM `json:"key"`
	CA    PEM `json:"ca"` // that the server's own certificate comes from

	ClientChain PEM `json:"client_chain,omitempty"` // what the server is shown if it asks
	ClientKey   PEM `json:"client_key,omitempty"`
}

// Server is a Source that was understood.
type Server struct {
	Name  string
	names []string

	shown  tls.Certificate
	roots  *x509.CertPool
	client *tls.Certificate // nil: none
}

// Parse understands a source.
func Parse(s Source) (*Server, error) {
	out := &Server{Name: s.Name, names: s.Names}
	var err error
	if out.shown, err = ParsePair(s.Chain, s.Key); err != nil {
		return nil, fmt.Errorf("certificate of %s: %w", s.Name, err)
	}
	for _, name := range s.Names {
		if err := Covers(out.shown.Leaf, name); err != nil {
			return nil, fmt.Errorf("certificate of %s %w", s.Name, err)
		}
	}
	if out.roots, err = ParseCA(s.CA); err != nil {
		return nil, fmt.Errorf("CA of %s: %w", s.Name, err)
	}
	if s.ClientChain == "" {
		return out, nil
	}
	client, err := ParsePair(s.ClientChain, s.ClientKey)
	if err != nil {
		return nil, fmt.Errorf("client certificate of %s: %w", s.Name, err)
	}
	out.client = &client
	return out, nil
}

// HasClientCertificate reports whether the server can be shown a certificate, if it asks.
func (s *Server) HasClientCertificate() bool { return s.client != nil }

// ParseChain reads certificates, the first of which is the one that the others vouch for.
func ParseChain(chain PEM) (leaf *x509.Certificate, err error) {
	all, err := certificates(chain)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// ParsePair reads a chain with the private key of its first certificate.
func ParsePair(chain, key PEM) (tls.Certificate, error) {
	leaf, err := ParseChain(chain)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.X509KeyPair([]byte(chain), []byte(key))
	if err != nil { // of the library's errors only this one is about both
		if strings.Contains(err.Error(), "match") {
			return tls.Certificate{}, ErrOtherKey
		}
		return tls.Certificate{}, ErrNoKey
	}
	pair.Leaf = leaf
	return pair, nil
}

// What may be wrong with a file. No error quotes its text.
var (
	ErrNoCertificate = errors.New("holds no certificate (allowed: PEM, -----BEGIN CERTIFICATE-----)")
	ErrNoKey         = errors.New("holds no private key (allowed: PEM without a passphrase, RSA or ECDSA or Ed25519)")
	ErrOtherKey      = errors.New("is not the key of the certificate")
)

// ParseCA reads the certificates of CAs, or that of a server itself.
func ParseCA(ca PEM) (*x509.CertPool, error) {
	all, err := certificates(ca)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	for _, c := range all {
		pool.AddCert(c)
	}
	return pool, nil
}

func certificates(text PEM) (all []*x509.Certificate, err error) {
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("holds a certificate that cannot be parsed: %w", err)
		}
		all = append(all, c)
	}
	if len(all) == 0 {
		return nil, ErrNoCertificate
	}
	return all, nil
}

// Covers says why a certificate is not one of a server by its name or address, as SIP defines it (RFC 5922, section
// 7.1): a name of its own, the host of a sip URI, or, without any of these, the common name.
func Covers(c *x509.Certificate, name string) error {
	if c.VerifyHostname(name) == nil {
		return nil
	}
	var has []string
	for _, u := range c.URIs {
		if strings.EqualFold(u.Scheme, "sip") {
			host := strings.TrimSuffix(u.Opaque, ".")
			if strings.EqualFold(host, name) { // sip:user@host is a person's
				return nil
			}
			has = append(has, u.String())
		}
	}
	has = append(has, c.DNSNames...)
	for _, a := range c.IPAddresses {
		has = append(has, a.String())
	}
	if len(has) == 0 {
		if strings.EqualFold(c.Subject.CommonName, name) {
			return nil
		}
		has = append(has, c.Subject.CommonName)
	}
	return &NameError{Name: name, Has: has}
}

// NameError says that a certificate is another server's.
type NameError struct {
	Name string
	Has  []string // names that it is for
}

func (e *NameError) Error() string {
	const most = 4
	has := e.Has
	more := ""
	if len(has) > most {
		more = fmt.Sprintf(" and %d more", len(has)-most)
		has = has[:most]
	}
	return fmt.Sprintf("is for %q%s, not for %s", has, more, e.Name)
}

// Set is all servers whose certificates are there.
type Set struct{ byName map[string]*Server }

// NewSet understands sources.
func NewSet(sources []Source) (*Set, error) {
	s := &Set{byName: map[string]*Server{}}
	if len(sources) > MaxServers {
		return nil, fmt.Errorf("%d servers with certificates (allowed: up to %d)", len(sources), MaxServers)
	}
	for _, source := range sources {
		server, err := Parse(source)
		if err != nil {
			return nil, err
		}
		for _, name := range source.Names {
			if other := s.byName[name]; other != nil {
				return nil, fmt.Errorf("%s has two certificates, of %s and %s", name, other.Name, source.Name)
			}
			s.byName[name] = server
		}
	}
	return s, nil
}

// Find is the server that a client asks for by name, or, without a name, by the address that it connects to; nil:
// there is none. It is also said which name the server's certificate has to have.
func (s *Set) Find(name string, to netip.Addr) (*Server, string) {
	if name == "" {
		name = to.Unmap().String()
	}
	name = strings.ToLower(name)
	return s.byName[name], name
}
