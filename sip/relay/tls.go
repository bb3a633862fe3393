package relay

import (
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"

	"ringway/sip/certificate"
	"ringway/sip/transparent"
)

// TLSServer is what came of TLS with a server by whose certificate it is read.
type TLSServer struct {
	Name   string            `json:"name"`   // in the config
	Read   uint64            `json:"read"`   // connections
	Failed map[string]uint64 `json:"failed"` // handshakes with the server, by reason

	// Of the latest handshake with the server.
	Server netip.AddrPort `json:"server,omitzero"`
	At     time.Time      `json:"at,omitzero"`
	Why    string         `json:"why,omitempty"`   // it failed; empty: it did not
	Error  string         `json:"error,omitempty"` // in words
}

// Reasons of TLSServer.
const (
	TLSUnverified        = "tls_server_unverified"
	TLSClientCertificate = "tls_unread_client_certificate"
)

// maxTLSError is how much is kept of an error, which may quote what a server sent.
const maxTLSError = 256

// useTLS has TLS read as the settings say. What is known of a server's TLS stays while its certificates do. The caller
// holds the lock.
func (c *core) useTLS(before, s *Settings) error {
	same := slices.EqualFunc(before.TLS, s.TLS, func(a, b certificate.Source) bool { return equalSources(&a, &b) })
	set := c.certificates
	if !same || set == nil {
		var err error
		if set, err = certificate.NewSet(s.TLS); err != nil {
			return err
		}
	}
	c.certificates = set
	if len(s.TLS) == 0 {
		c.security.Store(nil)
		c.tls = nil
		return nil
	}
	states := make([]TLSServer, len(s.TLS))
	for i, source := range s.TLS {
		states[i] = TLSServer{Name: source.Name, Failed: map[string]uint64{}}
		if at := slices.IndexFunc(c.tls, func(t TLSServer) bool { return t.Name == source.Name }); at >= 0 {
			states[i] = c.tls[at]
			if !same {
				states[i].Why, states[i].Error = "", "" // it may be for this that they were changed
			}
		}
	}
	c.tls = states
	ports, servers := slices.Clone(s.TLSPorts), slices.Clone(s.TLSServers)
	c.security.Store(&transparent.Security{
		Servers: set,
		Port: func(to netip.AddrPort) bool {
			return slices.Contains(ports, to.Port()) || slices.Contains(servers, to)
		},
		Lenient: !s.Enforce,
		Outcome: c.tlsOutcome,
	})
	return nil
}

func equalSources(a, b *certificate.Source) bool {
	return a.Name == b.Name && slices.Equal(a.Names, b.Names) && a.Chain == b.Chain && a.Key == b.Key && a.CA == b.CA &&
		a.ClientChain == b.ClientChain && a.ClientKey == b.ClientKey
}

// tlsOutcome notes what came of a handshake with a server.
func (c *core) tlsOutcome(name string, to netip.AddrPort, why string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.tls, func(t TLSServer) bool { return t.Name == name })
	if i < 0 {
		return
	}
	t := &c.tls[i]
	t.Server, t.At, t.Why, t.Error = to, c.now(), why, ""
	if why == "" {
		t.Read++
		return
	}
	t.Failed[why]++
	if err != nil {
		t.Error = printable(err.Error())
	}
}

// printable is what may be shown of a text in which a stranger has a say.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	if len(s) > maxTLSError {
		s = strings.ToValidUTF8(s[:maxTLSError], "") + "..."
	}
	return s
}

// tlsServers is a copy of what is known. The caller holds the lock.
func (c *core) tlsServers() []TLSServer {
	all := slices.Clone(c.tls)
	for i := range all {
		failed := make(map[string]uint64, len(all[i].Failed))
		for why, n := range all[i].Failed {
			failed[why] = n
		}
		all[i].Failed = failed
	}
	return all
}
