package pppoe

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Progress is how far a session got, by the log of the pppd that dials it.
type Progress struct {
	Discovered bool         // an access concentrator has answered
	Address    netip.Addr   // this machine's IPv4 address; zero: none yet
	Peer       netip.Addr   // the other end's
	IPv6       bool         // IPv6 is negotiated
	DNS        []netip.Addr // the provider's name servers
	Failure    Failure
	Detail     string // what the other end said of the failure, printable; "": nothing

	last string // line of the log, printable
}

// Up reports whether packets pass.
func (p Progress) Up() bool { return p.Address.IsValid() || p.IPv6 }

// Failure is why a session ended or did not come about.
type Failure string

// The failures. NoFailure is also that of a session that nothing is known of.
const (
	NoFailure       Failure = ""
	NoAnswer        Failure = "no access concentrator answers (no PADO)"
	NoService       Failure = "the access concentrator refuses the service or the session"
	Refused         Failure = "the provider refuses user or password"
	NoPPP           Failure = "the other end does not speak PPP (LCP)"
	NoAddress       Failure = "the provider gives no address"
	EchoLost        Failure = "the provider does not answer any more (LCP echo)"
	PeerEnded       Failure = "the provider has ended the session"
	NoKernelSupport Failure = "this kernel has no PPPoE (modules ppp_generic and pppoe)"
	WrongOptions    Failure = "pppd does not take its options"
	Interrupted     Failure = "the connection broke off"
)

// sign is a line of pppd's log, known by its beginning.
type sign struct {
	prefix  string
	failure Failure
	detail  bool // what follows is the other end's text
}

// signs are in the order in which they count: the first that the log has is the reason.
var signs = []sign{
	{"Sorry - this system lacks PPP kernel support", NoKernelSupport, false},
	{"Linux kernel does not support PPPoE", NoKernelSupport, false},
	{"This system lacks kernel support for PPP", NoKernelSupport, false},
	{"Couldn't open the /dev/ppp device", NoKernelSupport, false},
	{"Failed to create PPPoE socket", NoKernelSupport, false},
	{"PAP authentication failed", Refused, false},
	{"CHAP authentication failed", Refused, false},
	{"EAP authentication failed", Refused, false},
	{"PADS: Service-Name-Error:", NoService, true},
	{"PADS: System-Error:", NoService, true},
	{"PADS: Generic-Error:", NoService, true},
	{"PADO: Service-Name-Error:", NoService, true},
	{"PADO: System-Error:", NoService, true},
	{"PADO: Generic-Error:", NoService, true},
	{"Timeout waiting for PADO packets", NoAnswer, false},
	{"Timeout waiting for PADS packets", NoService, false},
	{"LCP: timeout sending Config-Requests", NoPPP, false},
	{"No response to ", EchoLost, false},
	{"Serial link appears to be disconnected", EchoLost, false},
	{"Could not determine local IP address", NoAddress, false},
	{"IPCP: timeout sending Config-Requests", NoAddress, false},
	{"LCP terminated by peer", PeerEnded, true},
	{"Unable to complete PPPoE Discovery", NoAnswer, false},
	{"Modem hangup", Interrupted, false},
}

const maxDetail = 100 // bytes of the other end's text that are shown

// Exit statuses of pppd (pppd(8), EXIT STATUS): its options are wrong, the provider refuses the caller.
const (
	exitOptions = 2
	exitRefused = 19
)

// Read reads a log of one session. The log has what the other end sent, so any bytes may be in it.
func Read(log string) Progress {
	var p Progress
	remote, order := "", len(signs)
	for line := range strings.SplitSeq(log, "\n") {
		switch {
		case strings.HasPrefix(line, "Connected to "), strings.HasPrefix(line, "Connect: "):
			p.Discovered = true
		case addressIn(line, "local  IP address ", &p.Address), addressIn(line, "remote IP address ", &p.Peer):
		case strings.HasPrefix(line, "local  LL address "):
			p.IPv6 = true
		case strings.HasPrefix(line, "Remote message: "):
			remote = printable(strings.TrimPrefix(line, "Remote message: "))
		}
		if text := printable(line); text != "" {
			p.last = text
		}
		for _, prefix := range []string{"primary   DNS address ", "secondary DNS address "} {
			var a netip.Addr
			if addressIn(line, prefix, &a) && !slices.Contains(p.DNS, a) && len(p.DNS) < 2 {
				p.DNS = append(p.DNS, a)
			}
		}
		i := slices.IndexFunc(signs, func(s sign) bool { return strings.HasPrefix(line, s.prefix) })
		if i >= 0 && i < order {
			order = i
			p.Failure, p.Detail = signs[i].failure, ""
			if signs[i].detail {
				p.Detail = printable(strings.TrimPrefix(line, signs[i].prefix))
			}
		}
	}
	if p.Failure == Refused {
		p.Detail = remote
	}
	return p
}

// Log is a log from which Read reads the session again, for who empties a long one.
func (p Progress) Log() string {
	var b strings.Builder
	if p.Discovered {
		b.WriteString("Connect: \n")
	}
	line := func(what string, a netip.Addr) {
		if a.IsValid() {
			fmt.Fprintf(&b, "%s%s\n", what, a)
		}
	}
	line("local  IP address ", p.Address)
	line("remote IP address ", p.Peer)
	if p.IPv6 {
		b.WriteString("local  LL address \n")
	}
	for _, a := range p.DNS {
		line("primary   DNS address ", a)
	}
	return b.String()
}

// Ended is p once pppd has ended with that exit status; -1: it is not known.
func (p Progress) Ended(status int) Progress {
	switch {
	case status == exitRefused:
		p.Failure = Refused
	case status == exitOptions:
		p.Failure, p.Detail = WrongOptions, p.last
	case p.Failure == NoFailure:
		p.Failure = Interrupted
	}
	return p
}

// addressIn reads the IPv4 address of a line that begins so.
func addressIn(line, prefix string, to *netip.Addr) bool {
	rest, ok := strings.CutPrefix(line, prefix)
	if !ok {
		return false
	}
	word, _, _ := strings.Cut(rest, " ")
	a, err := netip.ParseAddr(strings.TrimSpace(word))
	if err != nil || !a.Is4() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() {
		return false
	}
	*to = a
	return true
}

// printable is what may be shown of a text from the network.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return -1
		}
		return r
	}, strings.TrimSpace(s))
	if len(s) > maxDetail {
		s = s[:maxDetail]
	}
	return strings.Trim(s, " ()")
}
