package certificate

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
)

// minVersion is the oldest TLS that is spoken (RFC 8996).
const minVersion = tls.VersionTLS12

// Offered is what a client says before it is answered.
type Offered struct {
	info tls.ClientHelloInfo
}

// NewOffered keeps a ClientHello.
func NewOffered(info *tls.ClientHelloInfo) *Offered { return &Offered{info: *info} }

// PeekConfig has a ClientHello read, and nothing answered: found is told what it offers.
func PeekConfig(found func(*tls.ClientHelloInfo)) *tls.Config {
	return &tls.Config{
		MinVersion: minVersion,
		GetConfigForClient: func(info *tls.ClientHelloInfo) (*tls.Config, error) {
			found(info)
			return nil, errPeeked
		},
	}
}

var errPeeked = errors.New("the ClientHello was read")

// ServerName is the name that the client asks for; empty: none.
func (o *Offered) ServerName() string { return o.info.ServerName }

// Supports says why this client cannot have the server's certificate shown: it is too old, above all.
func (o *Offered) Supports(s *Server) error {
	info := o.info
	info.ServerName = "" // a certificate for SIP may have the name elsewhere (Covers)
	return info.SupportsCertificate(&s.shown)
}

// ErrClientCertificate ends the handshake with a server that asks for a certificate which is not there.
var ErrClientCertificate = errors.New("it asks for a client certificate")

// UnverifiedError ends the handshake with a server that is not known to be the one.
type UnverifiedError struct{ cause error }

func (e *UnverifiedError) Error() string { return e.cause.Error() }
func (e *UnverifiedError) Unwrap() error { return e.cause }

// ToServer is how the server is spoken to, in the name of a client, which offered o. name is its own.
func (s *Server) ToServer(name string, o *Offered) *tls.Config {
	return &tls.Config{
		ServerName: name, MinVersion: minVersion, NextProtos: o.info.SupportedProtos, CurvePreferences: o.curves(),
		SessionTicketsDisabled: true,
		// Verified below: SIP has names in other places than HTTPS.
		InsecureSkipVerify: true,
		VerifyConnection: func(st tls.ConnectionState) error {
			if err := s.verify(st.PeerCertificates, name); err != nil {
				return &UnverifiedError{err}
			}
			return nil
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			if s.client == nil {
				return nil, ErrClientCertificate
			}
			return s.client, nil
		},
	}
}

// ToClient is how a client is answered in the server's name. protocol is what the server chose; empty: nothing.
func (s *Server) ToClient(protocol string) *tls.Config {
	c := &tls.Config{
		MinVersion: minVersion, Certificates: []tls.Certificate{s.shown},
		SessionTicketsDisabled: true, // a session outlives neither the process nor its certificate
	}
	if protocol != "" {
		c.NextProtos = []string{protocol}
	}
	return c
}

// curves leaves post-quantum key exchange out for a client that does not offer it: its server, which may be as old,
// then gets a ClientHello of one packet, as it is used to.
func (o *Offered) curves() []tls.CurveID {
	for _, c := range []tls.CurveID{tls.X25519MLKEM768, tls.SecP256r1MLKEM768, tls.SecP384r1MLKEM1024} {
		if slices.Contains(o.info.SupportedCurves, c) {
			return nil // all
		}
	}
	return []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384, tls.CurveP521}
}

// verify says why a chain is not that of the server.
func (s *Server) verify(chain []*x509.Certificate, name string) error {
	if len(chain) == 0 {
		return errors.New("it shows no certificate")
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: s.roots, Intermediates: between}); err != nil {
		return err
	}
	if err := Covers(chain[0], name); err != nil {
		return fmt.Errorf("its certificate %w", err)
	}
	return nil
}
