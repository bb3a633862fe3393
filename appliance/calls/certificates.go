package calls

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"ringway/appliance/config"
	"ringway/appliance/problem"
	"ringway/appliance/secrets"
	"ringway/sip/certificate"
	"ringway/sip/relay"
)

const (
	// certificatesEvery is how often it is looked whether the files of sip.tls have changed.
	certificatesEvery = 10 * time.Second
	// expiresSoon is how long before a certificate expires that is a problem.
	expiresSoon = 14 * 24 * time.Hour
	// tlsFailedLately is how long a handshake that failed is a problem, if no other follows.
	tlsFailedLately = time.Hour
)

// certificates is what the files of sip.tls hold. They are renewed by others, one file after the other, so that they
// may not fit for a moment: what they held before holds until they do.
type certificates struct {
	files secrets.Files

	mu     sync.Mutex // guards what follows
	wanted []secrets.ServerFiles
	held   map[string]heldServer // by name
}

type heldServer struct {
	files   secrets.ServerFiles
	source  certificate.Source // without a name: the files have never been good
	expires time.Time
	err     error // of the latest look
}

func newCertificates(files secrets.Files) *certificates {
	return &certificates{files: files, held: map[string]heldServer{}}
}

// follow takes up other servers, and gives what is known of them.
func (x *certificates) follow(servers []secrets.ServerFiles) []certificate.Source {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.wanted = servers
	x.readLocked()
	return x.sourcesLocked()
}

// look reads the files again. It reports whether they hold something else.
func (x *certificates) look() (all []certificate.Source, changed bool) {
	x.mu.Lock()
	defer x.mu.Unlock()
	changed = x.readLocked()
	return x.sourcesLocked(), changed
}

func (x *certificates) readLocked() (changed bool) {
	held := map[string]heldServer{}
	for _, f := range x.wanted {
		before, known := x.held[f.Name]
		known = known && sameFiles(&before.files, &f)
		if !known {
			before = heldServer{files: f}
		}
		source, err := secrets.ReadServer(x.files, f)
		if err != nil {
			before.err = err
			held[f.Name] = before
			continue
		}
		now := heldServer{files: f, source: source}
		if leaf, err := certificate.ParseChain(source.Chain); err == nil {
			now.expires = leaf.NotAfter
		}
		changed = changed || !known || !sameSource(&before.source, &source)
		held[f.Name] = now
	}
	x.held = held
	return changed
}

func sameFiles(a, b *secrets.ServerFiles) bool {
	return slices.Equal(a.Names, b.Names) && a.Chain == b.Chain && a.Key == b.Key && a.CA == b.CA &&
		a.ClientChain == b.ClientChain && a.ClientKey == b.ClientKey
}

func sameSource(a, b *certificate.Source) bool {
	return slices.Equal(a.Names, b.Names) && a.Chain == b.Chain && a.Key == b.Key && a.CA == b.CA &&
		a.ClientChain == b.ClientChain && a.ClientKey == b.ClientKey
}

func (x *certificates) sourcesLocked() (all []certificate.Source) {
	for _, f := range x.wanted {
		if h := x.held[f.Name]; h.source.Name != "" {
			all = append(all, h.source)
		}
	}
	return all
}

// expiries are when certificates expire, by server.
func (x *certificates) expiries() map[string]time.Time {
	x.mu.Lock()
	defer x.mu.Unlock()
	all := map[string]time.Time{}
	for name, h := range x.held {
		if !h.expires.IsZero() {
			all[name] = h.expires
		}
	}
	return all
}

// problems say which files are not good, and what expires.
func (x *certificates) problems(now time.Time) (all []problem.Problem) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, f := range x.wanted {
		h := x.held[f.Name]
		p := problem.Problem{Subject: "tls " + f.Name}
		switch {
		case h.err != nil && h.source.Name == "":
			p.Severity = problem.Critical
			p.Text = "SIP over TLS is not read: " + h.err.Error()
			p.Action = fmt.Sprintf("correct it; it is read again every %v", certificatesEvery)
		case h.err != nil:
			p.Severity = problem.Warning
			p.Text = "its files have changed and are not used: " + h.err.Error()
			p.Action = fmt.Sprintf("correct it; it is read again every %v, and what it held before is used until then",
				certificatesEvery)
		case !now.Before(h.expires):
			p.Severity = problem.Critical
			p.Text = fmt.Sprintf("%s has expired at %s: phones refuse it", f.Chain, h.expires.UTC().Format(time.DateTime))
			p.Action = "renew it; it is read when it changes"
		case h.expires.Sub(now) < expiresSoon:
			p.Severity = problem.Warning
			p.Text = fmt.Sprintf("%s expires at %s", f.Chain, h.expires.UTC().Format(time.DateTime))
			p.Action = "renew it; it is read when it changes"
		default:
			continue
		}
		all = append(all, p)
	}
	return all
}

// lookAtTLS has the process work with what the files hold now, and asks it what came of TLS, which may be a problem.
func (c *Calls) lookAtTLS(ctx context.Context) {
	sources, changed := c.certificates.look()
	if len(sources) > 0 {
		if stats, err := c.relay.Stats(ctx); err == nil { // else the supervision says so
			c.mu.Lock()
			c.stats = stats
			c.mu.Unlock()
		}
	}
	if !changed {
		return
	}
	c.log.Info("certificates of SIP over TLS have changed and are used", "servers", len(sources))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settings.TLS, c.applied = sources, false
	c.again.Raise()
}

// tlsOf adds to the settings what reading TLS takes.
func (c *Calls) tlsOf(cfg *config.Config, s *relay.Settings) {
	wanted := cfg.SIP.TLS
	if cfg.SIP.Mode == config.SIPOff {
		wanted = nil
	}
	s.TLS = c.certificates.follow(wanted)
	s.TLSPorts = cfg.SIP.TLSPorts
	for _, x := range cfg.SIP.Servers {
		for _, a := range x.Addresses {
			for _, port := range x.TLSPorts {
				s.TLSServers = append(s.TLSServers, netip.AddrPortFrom(a, port))
			}
		}
	}
}

// failedTLS are the problems with servers' TLS. It is called with c.mu held.
func (c *Calls) failedTLS(now time.Time) (all []problem.Problem) {
	for _, t := range c.stats.TLS {
		if t.Why == "" || now.Sub(t.At) > tlsFailedLately {
			continue
		}
		p := problem.Problem{Subject: "tls server " + t.Name, Severity: problem.Warning}
		what := "its phones' connections are reset"
		if c.cfg.Mode != config.SIPEnforce {
			what = "its phones' connections pass unread"
		}
		switch t.Why {
		case relay.TLSClientCertificate:
			p.Text = fmt.Sprintf("%s asks for a client certificate: what is sent to it over TLS passes unread", t.Server)
			p.Action = fmt.Sprintf("give sip.tls[%s].client_cert and client_key", t.Name)
		case relay.TLSUnverified:
			p.Text = fmt.Sprintf("%s is not known to be this server, and %s: %s", t.Server, what, t.Error)
			p.Action = fmt.Sprintf("give the CA of its certificate in sip.tls[%s].ca, and its name in server_names", t.Name)
		default:
			p.Text = fmt.Sprintf("TLS with %s failed: %s", t.Server, t.Error)
			p.Action = "see whether it answers TLS 1.2 or later there"
		}
		all = append(all, p)
	}
	return all
}
