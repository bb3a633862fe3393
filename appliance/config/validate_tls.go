package config

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"ringway/appliance/secrets"
	"ringway/qos"
	"ringway/sip/certificate"
)

// DefaultTLSPort is that of RFC 3261, section 19.1.2.
const DefaultTLSPort = 5061

// sipPorts reads ports of signalling: single ones, since each server's are elements of a set. tls are those of them
// where TLS is spoken, which is known by the port: of a connection to another one the first bytes are not waited for.
func (c *checker) sipPorts(l scalars, servers list[rawSIPTLS]) (all []qos.PortMatch, tls []uint16) {
	if !l.set {
		all = ports(DefaultSIPPorts...)
		if len(servers.items) > 0 {
			all = append(all, tcpPort(DefaultTLSPort))
			tls = append(tls, DefaultTLSPort)
		}
		return all, tls
	}
	var plain []qos.PortMatch
	for _, item := range l.items {
		if !item.ok() {
			continue
		}
		text, isTLS := strings.CutPrefix(item.text, "tls/")
		if !isTLS {
			found := c.portsThat(scalars{at: l.at, items: []scalar{item}, set: true}, single)
			plain, all = append(plain, found...), append(all, found...)
			continue
		}
		n, err := strconv.ParseUint(text, 10, 16)
		switch {
		case !decimal.MatchString(text) || err != nil || n == 0:
			c.wrong(item.at, "%s is not a port (allowed: tls/ with 1 to 65535, like tls/5061)", show(item.text))
		case !servers.set:
			c.wrong(item.at, "%s needs sip.tls: without a certificate TLS cannot be read", item.text)
		default:
			tls = append(tls, uint16(n))
			all = append(all, tcpPort(uint16(n)))
		}
	}
	for _, p := range plain {
		if p.Protocol == qos.TCP && slices.Contains(tls, p.Low) {
			c.wrong(l.at, "%s is given as tls, too (allowed: one of both)", p)
		}
	}
	return all, tls
}

func single(p qos.PortMatch) string {
	if p.Low != p.High {
		return "is a range (allowed: single ports, like udp/5060)"
	}
	return ""
}

func tcpPort(n uint16) qos.PortMatch { return qos.PortMatch{Protocol: qos.TCP, Low: n, High: n} }

// sipTLS reads by which certificates TLS is read.
func (c *checker) sipTLS(r rawSIP, cfg *Config) {
	if len(r.TLS.items) > certificate.MaxServers {
		c.wrong(r.TLS.at, "has %d elements (allowed: up to %d)", len(r.TLS.items), certificate.MaxServers)
		return
	}
	labels, names := map[string]int{}, map[string]at{}
	for _, item := range r.TLS.items {
		c.need(item.at, item.Name, "name", "a name for it, like pbx")
		s := secrets.ServerFiles{Name: c.siteName(item.Name)}
		if first := labels[s.Name]; s.Name != "" && first > 0 {
			c.wrong(item.Name.at, "%q is given twice (first on line %d)", s.Name, first)
		}
		labels[s.Name] = item.Name.line
		s.Names = c.serverNames(item, names)
		c.serverFiles(item, &s)
		cfg.SIP.TLS = append(cfg.SIP.TLS, s)
	}
	spoken := len(cfg.SIP.TLSPorts) > 0 || slices.ContainsFunc(cfg.SIP.Servers, func(s SIPServer) bool {
		return len(s.TLSPorts) > 0
	})
	if len(r.TLS.items) > 0 && !spoken {
		c.wrong(r.TLS.at, "has no port (allowed: with tls/5061, or another port, in sip.ports or in those of a server)")
	}
}

// serverNames reads the names that phones ask for.
func (c *checker) serverNames(r rawSIPTLS, seen map[string]at) (names []string) {
	if !r.ServerNames.set || !r.ServerNames.bad && len(r.ServerNames.items) == 0 {
		c.missing(r.at, "server_names", "the host name or address of the PBX that phones connect to, or a list of them")
	}
	if len(r.ServerNames.items) > certificate.MaxNames {
		c.wrong(r.ServerNames.at, "has %d elements (allowed: up to %d)", len(r.ServerNames.items), certificate.MaxNames)
		return nil
	}
	for _, s := range r.ServerNames.items {
		if !s.ok() {
			continue
		}
		name := strings.ToLower(s.text)
		if a, err := netip.ParseAddr(name); err == nil {
			if a.Zone() != "" || a.Is4In6() || !c.usable(s, a) {
				continue
			}
			name = a.String()
		} else if !hostName.MatchString(name) || strings.HasSuffix(name, ".") || len(name) > 253 || dotted.MatchString(name) {
			c.wrong(s.at, "%s is neither a host name nor an address (allowed: like pbx.example.com or 10.2.20.5)",
				show(s.text))
			continue
		}
		if first, dup := seen[name]; dup {
			c.wrong(s.at, "%s is given twice (first on line %d)", name, first.line)
			continue
		}
		seen[name] = s.at
		names = append(names, name)
	}
	return names
}

// soonExpired is how long before a certificate expires that is said.
const soonExpired = 14 * 24 * time.Hour

// serverFiles reads the names of a server's files, and what they hold.
func (c *checker) serverFiles(r rawSIPTLS, s *secrets.ServerFiles) {
	c.need(r.at, r.Cert, "cert", "the file with the certificate that phones are shown, PEM")
	c.need(r.at, r.Key, "key", "the file with its private key, PEM, mode 0600")
	c.need(r.at, r.CA, "ca", "the file with the CA that the PBX's own certificate comes from, PEM")
	s.Chain, s.Key, s.CA = c.keyPath(r.Cert, ""), c.keyPath(r.Key, ""), c.keyPath(r.CA, "")
	s.ClientChain, s.ClientKey = c.keyPath(r.ClientCert, ""), c.keyPath(r.ClientKey, "")
	switch {
	case r.ClientCert.set && !r.ClientKey.set:
		c.missing(r.at, "client_key", "the file with the private key of client_cert, PEM, mode 0600")
	case !r.ClientCert.set && r.ClientKey.set:
		c.missing(r.at, "client_cert", "the file with the certificate of client_key, PEM")
	case !r.ClientCert.set:
		c.warn(r.at, "has no client_cert: if this PBX asks for client certificates, its calls pass unread")
	}
	if c.skip {
		return
	}
	c.pair(r.Cert, r.Key, s.Chain, s.Key, s.Names)
	c.pair(r.ClientCert, r.ClientKey, s.ClientChain, s.ClientKey, nil)
	if s.CA != "" {
		_, err := secrets.ReadCA(c.keys, s.CA)
		c.checkKey(r.CA.at, err, "copy it to %s")
	}
}

// pair checks that two files hold a certificate for names, and its key.
func (c *checker) pair(cert, key scalar, chainPath, keyPath string, names []string) {
	if chainPath == "" || keyPath == "" {
		return
	}
	chain, err := secrets.ReadChain(c.keys, chainPath)
	c.checkKey(cert.at, err, "copy it to %s")
	if err != nil { // the key may be missing, too, or be readable by others
		_, err = secrets.ReadChainKey(c.keys, keyPath, "")
		c.checkKey(key.at, err, "copy it to %s")
		return
	}
	c.checkKey(cert.at, secrets.CheckNames(chainPath, chain, names), "%s")
	if leaf, err := certificate.ParseChain(chain); err == nil && time.Until(leaf.NotAfter) < soonExpired {
		c.warn(cert.at, "%s is valid until %s only", chainPath, leaf.NotAfter.UTC().Format(time.DateTime))
	}
	_, err = secrets.ReadChainKey(c.keys, keyPath, chain)
	c.checkKey(key.at, err, "copy it to %s")
}
