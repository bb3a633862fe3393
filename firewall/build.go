package firewall

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"

	"ringway/qos"
)

// family is what nf_tables calls nfproto.
type family byte

const (
	ipv4 family = 2
	ipv6 family = 10
)

var families = []family{ipv4, ipv6}

func (f family) ip() string {
	if f == ipv4 {
		return "ip"
	}
	return "ip6"
}

// bits is the length of an address.
func (f family) bits() int {
	if f == ipv4 {
		return 32
	}
	return 128
}

// mask is the netmask of networks of a length.
func (f family) mask(bits int) netip.Addr {
	b := make([]byte, f.bits()/8)
	for i := range bits {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// suffix ends the names of sets that hold addresses of f.
func (f family) suffix() string {
	if f == ipv4 {
		return "4"
	}
	return "6"
}

const (
	protoICMP   = 1
	protoTCP    = 6
	protoUDP    = 17
	protoICMPv6 = 58
)

var prefixLinkLocal = netip.MustParsePrefix("fe80::/10")

// line collects a rule: every statement appends its words and its expressions.
type line struct {
	text   []string
	exprs  []Expr
	family family // already tested, as nft keeps its protocol context
	l4     byte
}

type statement func(*line)

func rule(sts ...statement) Rule {
	var l line
	for _, s := range sts {
		s(&l)
	}
	return Rule{Text: strings.Join(l.text, " "), Exprs: l.exprs}
}

func (l *line) say(format string, args ...any) { l.text = append(l.text, fmt.Sprintf(format, args...)) }
func (l *line) add(es ...Expr)                 { l.exprs = append(l.exprs, es...) }

// isFamily and isL4 add the tests that nft itself inserts before a header field.
func (l *line) isFamily(f family) {
	if l.family != f {
		l.add(Expr{Op: "meta", Key: "nfproto", Reg: 1}, eq([]byte{byte(f)}))
		l.family = f
	}
}

func (l *line) isL4(proto byte) {
	if l.l4 != proto {
		l.add(Expr{Op: "meta", Key: "l4proto", Reg: 1}, eq([]byte{proto}))
		l.l4 = proto
	}
}

func cmp(op string, b []byte) Expr {
	return Expr{Op: "cmp", Key: op, Reg: 1, Data: hex.EncodeToString(b)}
}
func eq(b []byte) Expr { return cmp("eq", b) }

func and(mask, xor []byte) Expr {
	return Expr{
		Op: "bitwise", Reg: 1, Len: uint32(len(mask)), Mask: hex.EncodeToString(mask),
		Xor: hex.EncodeToString(xor),
	}
}

// host32 is a number in the byte order of a register: marks, classids, ct state.
func host32(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
func net16(v uint16) []byte  { return binary.BigEndian.AppendUint16(nil, v) }

func in(set string, invert bool) Expr { return Expr{Op: "lookup", Reg: 1, Name: set, Invert: invert} }

// Devices.

func device(key, name string) statement {
	return func(l *line) {
		b := make([]byte, 16)
		copy(b, name)
		l.say("%s %q", key, name)
		l.add(Expr{Op: "meta", Key: key, Reg: 1}, eq(b))
	}
}

func deviceIn(key, set string) statement {
	return func(l *line) {
		l.say("%s @%s", key, set)
		l.add(Expr{Op: "meta", Key: key, Reg: 1}, in(set, false))
	}
}

func oifNotIn(set string) statement {
	return func(l *line) {
		l.say("oifname != @%s", set)
		l.add(Expr{Op: "meta", Key: "oifname", Reg: 1}, in(set, true))
	}
}

func iif(name string) statement  { return device("iifname", name) }
func oif(name string) statement  { return device("oifname", name) }
func iifIn(set string) statement { return deviceIn("iifname", set) }
func oifIn(set string) statement { return deviceIn("oifname", set) }

// Addresses. field is saddr or daddr; set is named without its family's suffix.

func addrLoad(f family, field string, reg uint32) Expr {
	e := Expr{Op: "payload", Key: "network", Reg: reg, Offset: 12, Len: 4}
	if f == ipv6 {
		e.Offset, e.Len = 8, 16
	}
	if field == "daddr" {
		e.Offset += e.Len
	}
	return e
}

func addrIn(f family, field, set string) statement {
	return func(l *line) {
		l.isFamily(f)
		l.say("%s %s @%s", f.ip(), field, set+f.suffix())
		l.add(addrLoad(f, field, 1), in(set+f.suffix(), false))
	}
}

func addrNotIn(f family, field, set string) statement {
	return func(l *line) {
		l.isFamily(f)
		l.say("%s %s != @%s", f.ip(), field, set+f.suffix())
		l.add(addrLoad(f, field, 1), in(set+f.suffix(), true))
	}
}

func addrIs(field string, p netip.Prefix) statement {
	return func(l *line) {
		f := ipv4
		if p.Addr().Is6() {
			f = ipv6
		}
		l.isFamily(f)
		l.add(addrLoad(f, field, 1))
		if p.IsSingleIP() {
			l.say("%s %s %s", f.ip(), field, p.Addr())
		} else {
			l.say("%s %s %s", f.ip(), field, p)
			mask := make([]byte, p.Addr().BitLen()/8)
			for i := range p.Bits() {
				mask[i/8] |= 0x80 >> (i % 8)
			}
			l.add(and(mask, make([]byte, len(mask))))
		}
		l.add(eq(p.Addr().AsSlice()))
	}
}

func isFamily(f family) statement {
	return func(l *line) {
		l.say("meta nfproto ipv%d", map[family]int{ipv4: 4, ipv6: 6}[f])
		l.isFamily(f)
	}
}

// Marks. Only masked writes exist: foreign bits stay as they are.

func markIs(key string, mask, value qos.Mark) statement {
	return func(l *line) {
		l.say("%s mark & 0x%x == 0x%x", key, uint32(mask), uint32(value))
		l.add(
			Expr{Op: key, Key: "mark", Reg: 1}, and(host32(uint32(mask)), host32(0)), eq(host32(uint32(value))),
		)
	}
}

func markAny(mask qos.Mark) statement {
	return func(l *line) {
		l.say("meta mark & 0x%x != 0x0", uint32(mask))
		l.add(
			Expr{Op: "meta", Key: "mark", Reg: 1}, and(host32(uint32(mask)), host32(0)), cmp("neq", host32(0)),
		)
	}
}

func markClear(mask qos.Mark) statement {
	return func(l *line) {
		l.say("meta mark set meta mark & 0x%x", ^uint32(mask))
		l.add(
			Expr{Op: "meta", Key: "mark", Reg: 1}, and(host32(^uint32(mask)), host32(0)),
			Expr{Op: "meta", Key: "mark", Reg: 1, Write: true},
		)
	}
}

func markOr(key string, value qos.Mark) statement {
	return func(l *line) {
		l.say("%s mark set %s mark | 0x%x", key, key, uint32(value))
		l.add(
			Expr{Op: key, Key: "mark", Reg: 1}, and(host32(^uint32(value)), host32(uint32(value))),
			Expr{Op: key, Key: "mark", Reg: 1, Write: true},
		)
	}
}

// DSCP. The six bits are compared and written in place under a mask, never shifted (the
// adapter's library cannot shift), and the two bits of ECN beside them stay (RFC 3168).

func dscp(f family, op string, d qos.DSCP) statement {
	return func(l *line) {
		l.isFamily(f)
		word := map[string]string{"eq": "", "neq": "!= "}[op]
		l.say("%s dscp %s0x%02x", f.ip(), word, uint8(d))
		if f == ipv4 {
			l.add(
				Expr{Op: "payload", Key: "network", Reg: 1, Offset: 1, Len: 1}, and([]byte{0xfc}, []byte{0}),
				cmp(op, []byte{d.TOS()}),
			)
			return
		}
		l.add(
			Expr{Op: "payload", Key: "network", Reg: 1, Len: 2}, and([]byte{0x0f, 0xc0}, []byte{0, 0}),
			cmp(op, net16(uint16(d)<<6)),
		)
	}
}

func dscpSet(f family, d qos.DSCP) statement {
	return func(l *line) {
		l.isFamily(f)
		l.say("%s dscp set 0x%02x", f.ip(), uint8(d))
		mask, value := []byte{0xff, 0x03}, []byte{0, d.TOS()}
		if f == ipv6 {
			mask, value = []byte{0xf0, 0x3f}, net16(uint16(d)<<6)
		}
		l.add(Expr{Op: "payload", Key: "network", Reg: 1, Len: 2}, and(mask, value),
			Expr{Op: "payload", Key: "network", Reg: 1, Len: 2, Write: true, Csum: f == ipv4})
	}
}

// Ports.

func portIn(p qos.Protocol, field, set string) statement {
	return func(l *line) {
		l.isL4(l4(p))
		l.say("%s %s @%s", p, field, set)
		l.add(portLoad(field, 1), in(set, false))
	}
}

func portIs(p qos.Protocol, field string, port uint16) statement {
	return func(l *line) {
		l.isL4(l4(p))
		l.say("%s %s %d", p, field, port)
		l.add(portLoad(field, 1), eq(net16(port)))
	}
}

// ports matches both: nft reads the two neighbours at once.
func ports(p qos.Protocol, source, dest uint16) statement {
	return func(l *line) {
		l.isL4(l4(p))
		l.say("%s sport %d %s dport %d", p, source, p, dest)
		l.add(Expr{Op: "payload", Key: "transport", Reg: 1, Len: 4}, eq(append(net16(source), net16(dest)...)))
	}
}

func l4(p qos.Protocol) byte {
	if p == qos.TCP {
		return protoTCP
	}
	return protoUDP
}

func portLoad(field string, reg uint32) Expr {
	e := Expr{Op: "payload", Key: "transport", Reg: reg, Len: 2}
	if field == "dport" {
		e.Offset = 2
	}
	return e
}

// ICMP.

func (f family) icmp() (string, byte) {
	if f == ipv4 {
		return "icmp", protoICMP
	}
	return "icmpv6", protoICMPv6
}

func icmpIn(f family, set string) statement {
	return func(l *line) {
		name, proto := f.icmp()
		l.isFamily(f)
		l.isL4(proto)
		l.say("%s type @%s", name, set)
		l.add(Expr{Op: "payload", Key: "transport", Reg: 1, Len: 1}, in(set, false))
	}
}

func icmpIs(f family, typ byte) statement {
	return func(l *line) {
		name, proto := f.icmp()
		l.isFamily(f)
		l.isL4(proto)
		l.say("%s type %d", name, typ)
		l.add(Expr{Op: "payload", Key: "transport", Reg: 1, Len: 1}, eq([]byte{typ}))
	}
}

func isICMP(f family) statement {
	return func(l *line) {
		name, proto := f.icmp()
		if f == ipv6 {
			name = "ipv6-icmp"
		}
		l.say("meta l4proto %s", name)
		l.isL4(proto)
	}
}

// hopLimit255 matches only packets sent on the link itself (RFC 4861, section 6.1).
func hopLimit255(l *line) {
	l.isFamily(ipv6)
	l.say("ip6 hoplimit 255")
	l.add(Expr{Op: "payload", Key: "network", Reg: 1, Offset: 7, Len: 1}, eq([]byte{255}))
}

func limit(rate uint64, burst uint32) statement {
	return func(l *line) {
		l.say("limit rate %d/second burst %d packets", rate, burst)
		l.add(Expr{Op: "limit", Rate: rate, Burst: burst})
	}
}

// flowLimit holds for what its flow's bucket has no room for. A flow is known by two addresses and, where
// ports are, two of them. A bucket holds a second of rate and burst bytes (the kernel's nft_limit).
func flowLimit(f family, set string, bytes uint64, burst uint32, ports bool) statement {
	return func(l *line) {
		l.isFamily(f)
		key := fmt.Sprintf("%[1]s saddr . %[1]s daddr", f.ip())
		// Registers of 32 bits are numbered from 8, those of 128 from 1: 2 is 12, 3 is 16.
		dest, sport, dport := uint32(9), uint32(10), uint32(11)
		if f == ipv6 {
			dest, sport, dport = 2, 3, 17
		}
		if ports {
			key += " . udp sport . udp dport"
			l.isL4(protoUDP)
		}
		l.say(
			"update @%s { %s limit rate over %d bytes/second burst %d bytes }", set+f.suffix(), key, bytes,
			burst,
		)
		l.add(addrLoad(f, "saddr", 1), addrLoad(f, "daddr", dest))
		if ports {
			l.add(portLoad("sport", sport), portLoad("dport", dport))
		}
		l.add(Expr{Op: "dynset", Reg: 1, Name: set + f.suffix(), Rate: bytes, Burst: burst})
	}
}

func isUDP(l *line) {
	l.say("meta l4proto udp")
	l.isL4(protoUDP)
}

// Connections and TCP.

func ctState(words string) statement {
	return func(l *line) {
		bits := map[string]uint32{"invalid": 1, "established": 2, "related": 4, "new": 8, "untracked": 64}
		var mask uint32
		for _, w := range strings.Split(words, ",") {
			mask |= bits[w]
		}
		l.say("ct state %s", words)
		l.add(Expr{Op: "ct", Key: "state", Reg: 1}, and(host32(mask), host32(0)), cmp("neq", host32(0)))
	}
}

func syn(l *line) {
	l.isL4(protoTCP)
	l.say("tcp flags syn")
	l.add(
		Expr{Op: "payload", Key: "transport", Reg: 1, Offset: 13, Len: 1}, and([]byte{2}, []byte{0}),
		cmp("neq", []byte{0}),
	)
}

// segment writes the TCP maximum segment size option; the kernel never raises it.
func segment(size uint16) statement {
	return func(l *line) {
		l.say("tcp option maxseg size set %d", size)
		l.add(
			Expr{Op: "immediate", Reg: 1, Data: hex.EncodeToString(net16(size))},
			Expr{Op: "exthdr", Key: "2", Reg: 1, Offset: 2, Len: 2, Write: true},
		)
	}
}

// Queues.

// ClassIDText is a classid in tc's words: 0x10010 is 1:10.
func ClassIDText(id uint32) string { return fmt.Sprintf("%x:%x", id>>16, id&0xffff) }

func priority(id uint32) statement {
	return func(l *line) {
		l.say("meta priority set %s", ClassIDText(id))
		l.add(
			Expr{Op: "immediate", Reg: 1, Data: hex.EncodeToString(host32(id))},
			Expr{Op: "meta", Key: "priority", Reg: 1, Write: true},
		)
	}
}

// priorityFrom looks up the UDP receiver in a map. A packet whose receiver is not in it keeps its priority.
func priorityFrom(f family, name string) statement {
	return func(l *line) {
		l.isFamily(f)
		l.isL4(protoUDP)
		l.say("meta priority set %s daddr . udp dport map @%s", f.ip(), name+f.suffix())
		second := uint32(9) // the 32-bit register after an IPv4 address in register 1
		if f == ipv6 {
			second = 2 // an IPv6 address fills register 1
		}
		l.add(addrLoad(f, "daddr", 1), portLoad("dport", second),
			Expr{Op: "lookup", Reg: 1, Dest: 1, Name: name + f.suffix()},
			Expr{Op: "meta", Key: "priority", Reg: 1, Write: true})
	}
}

// Verdicts.

func counter(name string) statement {
	return func(l *line) {
		l.say("counter name %q", name)
		l.add(Expr{Op: "objref", Name: name})
	}
}

func verdict(word string) statement {
	return func(l *line) {
		l.say("%s", word)
		l.add(Expr{Op: "verdict", Key: word})
	}
}

var (
	accept = verdict("accept")
	drop   = verdict("drop")
	leave  = verdict("return")
)

func to(word, chain string) statement {
	return func(l *line) {
		l.say("%s %s", word, chain)
		l.add(Expr{Op: "verdict", Key: word, Name: chain})
	}
}

func jump(chain string) statement { return to("jump", chain) }
func goTo(chain string) statement { return to("goto", chain) }

// notrack keeps a packet out of conntrack; only before it, at hookRaw.
func notrack(l *line) { l.say("notrack"); l.add(Expr{Op: "notrack"}) }

func masquerade(l *line)              { l.say("masquerade"); l.add(Expr{Op: "masq"}) }
func both(f func(family) Rule) []Rule { return []Rule{f(ipv4), f(ipv6)} }
