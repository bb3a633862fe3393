// Package rules says what the firewall has to do for the media plane: bring the packets for our media ports to its
// sockets, with a limit for each port, and let nothing else leave by its raw sockets. It computes text in nft's
// words; who applies it is the firewall's matter.
package rules

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Ports is a range of UDP ports, both ends included.
type Ports struct{ First, Last uint16 }

// Side is what the rules need to know of LANs or tunnels.
type Side struct {
	Interfaces []string     // that its media arrives on
	Addresses  []netip.Addr // ours, that its legs have
	// Port4 and Port6 are those of the sockets for TPROXY, on loopback; 0: none.
	Port4, Port6 uint16
	Mark         uint32 // of its raw sockets, not 0
}

// Plan is what is wanted.
type Plan struct {
	Table       string // of family inet
	Ports       Ports
	LAN, Tunnel Side
	// Delivered is the mark of packets for the media plane: by it the chain of input accepts them.
	Delivered uint32
	// PacketsPerPort is how many packets a second one of our ports takes. One socket is one queue: without this limit,
	// a flood of one port delays every call.
	PacketsPerPort int
}

// hookIntercept comes after conntrack's NAT, as for signalling (package firewall).
const hookIntercept = -90

// minBurst is how many packets may come at once at any rate: half a second of voice, after a line was silent.
const minBurst = 25

// Text returns the rules, which replace those of the same table when they are loaded at once.
//
// A packet for us:
//
//	media_untrack    no conntrack: two legs of a call may have the same addresses and ports
//	media_intercept  by destination and port, to the chain of its side
//	media_in_…       from an interface of that side, and within the limit of its port
//	media_take_…     TPROXY
//
// A packet of a raw socket, which may claim any source and which meta skuid does not match:
//
//	media_out        by the socket's mark, which its process cannot change
//	media_from_…     our addresses and ports on that side pass, untracked; the rest fails with EPERM
func (p Plan) Text() (string, error) {
	if err := p.check(); err != nil {
		return "", err
	}
	w := &writer{}
	w.line("table inet %s {}", p.Table)
	w.line("delete table inet %s", p.Table)
	w.open("table inet %s", p.Table)
	w.line("counter media_flood { }")
	w.line("counter media_foreign { }")
	w.line("counter media_strayed { }")
	for _, f := range families {
		p.sets(w, f)
	}
	w.line("set media_lan { type ifname; elements = { %s }; }", quoted(p.LAN.Interfaces))
	w.line("set media_tunnel { type ifname; elements = { %s }; }", quoted(p.Tunnel.Interfaces))

	w.open("chain media_untrack")
	w.line("type filter hook prerouting priority raw; policy accept;")
	for _, f := range families {
		if p.addresses(f) > 0 {
			w.line("udp dport %s %s daddr @media_all%s notrack", p.Ports, f.word, f.suffix)
		}
	}
	w.close()

	for _, s := range p.sides() {
		for _, f := range families {
			if len(of(s.Addresses, f)) > 0 {
				p.in(w, s, f)
			}
		}
	}
	w.open("chain media_intercept")
	w.line("type filter hook prerouting priority %d; policy accept;", hookIntercept)
	for _, f := range families {
		if p.addresses(f) > 0 {
			w.line("udp dport %s %s daddr vmap @media_to%s", p.Ports, f.word, f.suffix)
		}
	}
	w.close()

	for _, s := range p.sides() {
		p.from(w, s)
	}
	w.open("chain media_out")
	w.line("type filter hook output priority raw; policy accept;")
	for _, s := range p.sides() {
		w.line("meta mark 0x%x goto media_from_%s", s.Mark, s.name)
	}
	w.close()
	w.close()
	return w.String(), nil
}

// sets writes the sets of a family.
func (p Plan) sets(w *writer, f family) {
	if p.addresses(f) == 0 {
		return
	}
	var all, to []string
	for _, s := range p.sides() {
		for _, a := range of(s.Addresses, f) {
			all = append(all, a.String())
			to = append(to, fmt.Sprintf("%s : goto media_in_%s%s", a, s.name, f.suffix))
		}
		if mine := of(s.Addresses, f); len(mine) > 0 {
			w.line("set media_%s%s { type %s; elements = { %s }; }", s.name, f.suffix, f.kind, joined(mine))
		}
	}
	w.line("set media_all%s { type %s; elements = { %s }; }", f.suffix, f.kind, strings.Join(all, ", "))
	// Chains of a map's verdicts may follow in the same text.
	w.line("map media_to%s { type %s : verdict; elements = { %s }; }", f.suffix, f.kind, strings.Join(to, ", "))
	// It has a place for every port of every address, twice, since one that has timed out is kept until it is collected:
	// what finds no place is dropped.
	w.line("set media_rate%s { type %s . inet_service; flags dynamic,timeout; timeout 10s; size %d; }",
		f.suffix, f.kind, 2*p.Ports.count()*p.addresses(f))
}

// in writes the chains of what arrives for a side.
func (p Plan) in(w *writer, s side, f family) {
	port, loopback := s.Port4, "127.0.0.1"
	if f.v6 {
		port, loopback = s.Port6, "[::1]"
	}
	w.open("chain media_take_%s%s", s.name, f.suffix)
	w.line("meta l4proto udp tproxy %s to %s:%d meta mark set 0x%x accept", f.word, loopback, port, p.Delivered)
	w.close()
	w.open("chain media_in_%s%s", s.name, f.suffix)
	w.line("iifname != @media_%s counter name media_strayed drop", s.name)
	// The rule says what passes, not what is over the limit: it ends without a verdict where the set is full.
	w.line("update @media_rate%s { %s daddr . udp dport limit rate %d/second burst %d packets } goto media_take_%s%s",
		f.suffix, f.word, p.PacketsPerPort, max(minBurst, p.PacketsPerPort/4), s.name, f.suffix)
	w.line("counter name media_flood drop")
	w.close()
}

// from writes the chain of what a side's raw sockets send.
func (p Plan) from(w *writer, s side) {
	w.open("chain media_from_%s", s.name)
	for _, f := range families {
		if len(of(s.Addresses, f)) > 0 {
			w.line("%s saddr @media_%s%s udp sport %s notrack accept", f.word, s.name, f.suffix, p.Ports)
		}
	}
	w.line("counter name media_foreign drop")
	w.close()
}

func (p Plan) check() error {
	var all []error
	add := func(format string, args ...any) { all = append(all, fmt.Errorf(format, args...)) }
	if p.Table == "" || strings.ContainsFunc(p.Table, notWord) {
		add("%q is not the name of a table", p.Table)
	}
	if p.Ports.First < 1024 || p.Ports.First > p.Ports.Last {
		add("media ports %s (allowed 1024-65535, the first at most the last)", p.Ports)
	}
	if p.PacketsPerPort < 50 || p.PacketsPerPort > 100_000 {
		add("%d packets a second of a port (allowed 50-100000)", p.PacketsPerPort)
	}
	if p.LAN.Mark == p.Tunnel.Mark || p.Delivered == p.LAN.Mark || p.Delivered == p.Tunnel.Mark {
		add("marks 0x%x, 0x%x and 0x%x are not three", p.LAN.Mark, p.Tunnel.Mark, p.Delivered)
	}
	seen := map[netip.Addr]bool{}
	for _, s := range p.sides() {
		if s.Mark == 0 {
			add("%s: no mark for its raw sockets", s.name)
		}
		if len(s.Interfaces) == 0 {
			add("%s: no interface", s.name)
		}
		for _, n := range s.Interfaces {
			if n == "" || len(n) > 15 || strings.ContainsFunc(n, notName) {
				add("%s: %q is not the name of an interface", s.name, n)
			}
		}
		for _, a := range s.Addresses {
			if !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Is4In6() || a.Zone() != "" || seen[a] {
				add("%s: %s is not an address of this side alone", s.name, a)
			}
			seen[a] = true
		}
		if len(of(s.Addresses, families[0])) > 0 && s.Port4 == 0 || len(of(s.Addresses, families[1])) > 0 && s.Port6 == 0 {
			add("%s: no socket for TPROXY", s.name)
		}
	}
	return errors.Join(all...)
}

type side struct {
	Side
	name string
}

func (p Plan) sides() []side { return []side{{p.LAN, "lan"}, {p.Tunnel, "tunnel"}} }

type family struct {
	word, suffix, kind string
	v6                 bool
}

var families = []family{{"ip", "4", "ipv4_addr", false}, {"ip6", "6", "ipv6_addr", true}}

// addresses is how many of a family there are.
func (p Plan) addresses(f family) int {
	return len(of(p.LAN.Addresses, f)) + len(of(p.Tunnel.Addresses, f))
}

// of is the addresses of a family, sorted.
func of(all []netip.Addr, f family) (mine []netip.Addr) {
	for _, a := range all {
		if a.Is4() != f.v6 {
			mine = append(mine, a)
		}
	}
	slices.SortFunc(mine, netip.Addr.Compare)
	return mine
}

func joined(all []netip.Addr) string {
	var text []string
	for _, a := range all {
		text = append(text, a.String())
	}
	return strings.Join(text, ", ")
}

func quoted(names []string) string {
	var text []string
	for _, n := range slices.SortedFunc(slices.Values(names), cmp.Compare) {
		text = append(text, fmt.Sprintf("%q", n))
	}
	return strings.Join(slices.Compact(text), ", ")
}

// notWord and notName keep anything out of the text that nft would read as more than a name.
func notWord(r rune) bool {
	return !(r == '_' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9')
}

func notName(r rune) bool { return notWord(r) && r != '.' && r != '-' && r != '@' && r != ':' }

func (p Ports) count() int { return int(p.Last) - int(p.First) + 1 }

func (p Ports) String() string { return fmt.Sprintf("%d-%d", p.First, p.Last) }

// writer writes indented lines.
type writer struct {
	strings.Builder
	depth int
}

func (w *writer) line(format string, args ...any) {
	w.WriteString(strings.Repeat("\t", w.depth))
	fmt.Fprintf(w, format+"\n", args...)
}

func (w *writer) open(format string, args ...any) {
	w.line(format+" {", args...)
	w.depth++
}

func (w *writer) close() {
	w.depth--
	w.line("}")
}
