// Package pppoe speaks with pppd (Debian's package ppp, pppd(8)): the options by which it dials a session of PPPoE (RFC
// 2516), and what its log says of how far it got. It runs nothing: package appliance/dial does.
package pppoe

import (
	"fmt"
	"slices"
	"strings"
)

// Options are those of one session.
type Options struct {
	Device   string // name of the PPP device
	Under    string // Ethernet device that carries the session's frames
	User     string
	Password string
	Service  string // name of the provider's service; "": any
	MTU      int    // bytes of an IP packet; above 1492 frames are longer than Ethernet's (RFC 4638)
	Log      string // file that pppd appends to
}

// How the line is watched: a session that answers none of EchoFailures requests, one every EchoInterval seconds, is
// over.
const (
	EchoInterval = 1
	EchoFailures = 3
)

// Discovery and negotiation end after some seconds, so that the reason is known and the next try begins.
const (
	discoveryTimeout  = 2 // seconds
	discoveryAttempts = 3
	restartTimeout    = 2 // seconds until a request of LCP, IPCP or IPV6CP is repeated
	maxConfigure      = 5 // such requests
)

// fixed are the same for every session. What /etc/ppp/options says comes before.
var fixed = []string{
	"noauth",   // a provider does not prove who it is
	"nodetach", // the daemon watches the process
	"nopersist", "maxfail 1",
	// Routes and name servers are the daemon's. It asks for the provider's servers, and keeps Debian's script away,
	// which would give them to the whole machine.
	"nodefaultroute", "nodefaultroute6", "noproxyarp",
	"usepeerdns", "ip-up-script /bin/true", "ip-down-script /bin/true",
	"noipdefault", "ipcp-accept-local", "ipcp-accept-remote",
	"+ipv6",
	// Nothing of a packet is left out or compressed (RFC 2516, section 7, forbids some of it).
	"noaccomp", "nopcomp", "noccp", "novj", "nobsdcomp", "nodeflate", "default-asyncmap",
	"hide-password",
	fmt.Sprintf("lcp-echo-interval %d", EchoInterval), fmt.Sprintf("lcp-echo-failure %d", EchoFailures),
	fmt.Sprintf("lcp-restart %d", restartTimeout), fmt.Sprintf("lcp-max-configure %d", maxConfigure),
	fmt.Sprintf("ipcp-restart %d", restartTimeout), fmt.Sprintf("ipcp-max-configure %d", maxConfigure),
	fmt.Sprintf("ipv6cp-restart %d", restartTimeout), fmt.Sprintf("ipv6cp-max-configure %d", maxConfigure),
}

// Text is the file of options, for `pppd file`. It holds the password.
func (o Options) Text() string {
	lines := []string{
		"# Made by ringway: changes are lost.",
		"plugin pppoe.so",
		"nic-" + o.Under,
		fmt.Sprintf("pppoe-padi-timeout %d", discoveryTimeout),
		fmt.Sprintf("pppoe-padi-attempts %d", discoveryAttempts),
		"ifname " + o.Device,
		"user " + quote(o.User),
		"password " + quote(o.Password),
	}
	if o.Service != "" {
		lines = append(lines, "pppoe-service "+quote(o.Service))
	}
	lines = append(lines, fmt.Sprintf("mtu %d", o.MTU), fmt.Sprintf("mru %d", o.MTU), "logfile "+quote(o.Log))
	return strings.Join(append(lines, fixed...), "\n") + "\n"
}

// SameSession reports whether a file of options, perhaps of another release, is for the session of o: all is the same
// but the password and what holds for every session.
func (o Options) SameSession(text string) bool {
	return slices.Equal(identity(text), identity(o.Text()))
}

// identity are the options in a file that say which session it is, and where its log is.
func identity(text string) (lines []string) {
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch name, _, _ := strings.Cut(line, " "); name {
		case "ifname", "user", "pppoe-service", "mtu", "mru", "logfile":
			lines = append(lines, line)
		default:
			if strings.HasPrefix(name, "nic-") {
				lines = append(lines, line)
			}
		}
	}
	slices.Sort(lines)
	return lines
}

// quote writes a word as pppd reads it (getword in its options.c).
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}
