package firewall

import (
	"fmt"
	"net/netip"
	"slices"

	"ringway/qos"
)

// voiceNetworks declares the pair of sets with every voice network, here and at the sites. A site whose phones and PCs
// share a network counts as a whole.
func (p *plan) voiceNetworks() {
	if len(p.Signalling.Servers) == 0 && !p.mediaHasPorts() {
		return
	}
	var voice []netip.Prefix
	for _, l := range p.Voice {
		voice = append(voice, l.Networks...)
	}
	sets := networkSets("voice_networks", voice, p.SiteVoiceNetworks, p.SiteFlatNetworks)
	p.state.Sets = append(p.state.Sets, sets...)
}

// mediaHasPorts says whether UDP ports of class media are configured.
func (p *plan) mediaHasPorts() bool {
	return slices.ContainsFunc(p.class(qos.Media).Ports, func(m qos.PortMatch) bool { return m.Protocol == qos.UDP })
}

// mediaToVoice gives the class to media of a data network that goes to a voice network: a PBX that speaks first. Only
// ports of class media count, which nobody has unless the operator lists them; a flow's rate and the voice budget bound
// what a PC makes of that. Ports of signalling do not: that class may borrow the whole line, and all that a PC needs is
// the number 5060.
func (p *plan) mediaToVoice() []Rule {
	if !p.mediaHasPorts() {
		return nil
	}
	p.chain("media_to_voice",
		one(portIn(qos.UDP, "dport", "media_udp"), goTo("set_media")),
		one(portIn(qos.UDP, "sport", "media_udp"), goTo("set_media")))
	return both(func(f family) Rule {
		return rule(addrIn(f, "daddr", "voice_networks"), isUDP, jump("media_to_voice"))
	})
}

// mediaFrom lets media pass that is known by the port that it comes from: the far end's port is its own choice, and
// either end may speak first. Not to ports below 1024, where services are.
func (p *plan) mediaFrom() []Rule {
	if !p.mediaHasPorts() {
		return nil
	}
	high := portCompare(qos.UDP, "dport", "gte", ">=", 1024)
	return one(portIn(qos.UDP, "sport", "media_udp"), high, accept)
}

// raise gives a connection a higher class than its first packet had: a phone whose first packet is unmarked, an end
// that marks nothing beside one that does. It stands where ports and code points of voice networks, or the voice
// tunnel, have decided. Nothing lowers a class again.
//
// What a data network began does not become signalling, which may borrow the whole line: only media, which has its
// budget.
func raise(to qos.ClassName) []Rule {
	var rules []Rule
	for _, from := range []qos.ClassName{qos.Data, qos.Background} {
		sts := []statement{markIs("ct", qos.MarkClassMask, qos.ClassMark(from))}
		switch to {
		case qos.Media:
		case qos.Signalling:
			sts = append(sts, ctOriginal)
		default:
			return nil
		}
		rules = append(rules, rule(append(sts, markReplace("ct", qos.MarkClassMask, qos.ClassMark(to)))...))
	}
	return rules
}

// ctOriginal matches the direction of the connection's first packet.
func ctOriginal(l *line) {
	l.say("ct direction original")
	l.add(Expr{Op: "ct", Key: "direction", Reg: 1}, eq([]byte{0}))
}

// TFTP (RFC 1350, section 4): a request goes to port 69, and the answer comes from a port that the server chooses, to
// the one that the client asked from. Conntrack takes that for another connection. The kernel's helper would need its
// module and a rule in a hook of its own; these need a set.
const (
	tftpPort = 69
	tftpSet  = "tftp"

	tftpWait = 30   // seconds in which an answer is expected
	maxTFTP  = 4096 // requests known at a time, in each family
)

// passesTFTP says whether phones may ask servers by TFTP.
func (p *plan) passesTFTP() bool {
	all, _ := p.classPorts()
	return !p.lacks(FeatureFlowLimit) && slices.ContainsFunc(all, func(m qos.PortMatch) bool {
		return m.Protocol == qos.UDP && m.Low <= tftpPort && tftpPort <= m.High
	})
}

// tftpSets declares the sets of requests: server . client . client's port.
func (p *plan) tftpSets() {
	if !p.passesTFTP() {
		return
	}
	for _, f := range families {
		p.state.Sets = append(p.state.Sets, Set{
			Name: tftpSet + f.suffix(), Type: fmt.Sprintf("ipv%[1]s_addr . ipv%[1]s_addr . inet_service", f.suffix()),
			Size: maxTFTP, Timeout: tftpWait,
		})
	}
}

// tftpAsks notes a request of a phone.
func (p *plan) tftpAsks() []Rule {
	if !p.passesTFTP() {
		return nil
	}
	return both(func(f family) Rule {
		return rule(isFamily(f), portIs(qos.UDP, "dport", tftpPort), tftpKey(f, "daddr", "update"))
	})
}

// tftpAnswers lets the answers to what phones asked pass.
func (p *plan) tftpAnswers() []Rule {
	if !p.passesTFTP() {
		return nil
	}
	return both(func(f family) Rule { return rule(isUDPOf(f), tftpKey(f, "saddr", "lookup"), accept) })
}

// tftpOpen is for where even established connections need a hole: a transfer, either way, until it pauses. server is
// the field with the server's address.
func (p *plan) tftpOpen(server string) []Rule {
	if !p.passesTFTP() {
		return nil
	}
	return both(func(f family) Rule {
		return rule(isUDPOf(f), tftpKey(f, server, "lookup"), tftpKey(f, server, "update"), leave)
	})
}

func isUDPOf(f family) statement {
	return func(l *line) {
		isFamily(f)(l)
		isUDP(l)
	}
}

// tftpKey looks up, or notes, who asked whom. server says where the server's address is: saddr in an answer.
func tftpKey(f family, server, do string) statement {
	return func(l *line) {
		client, port := "daddr", "dport"
		if server == "daddr" {
			client, port = "saddr", "sport"
		}
		l.isFamily(f)
		l.isL4(protoUDP)
		regs := keyRegisters(f)
		l.add(addrLoad(f, server, regs[0]), addrLoad(f, client, regs[1]), portLoad(port, regs[2]))
		key := fmt.Sprintf("%[1]s %[2]s . %[1]s %[3]s . udp %[4]s", f.ip(), server, client, port)
		set := tftpSet + f.suffix()
		if do == "lookup" {
			l.say("%s @%s", key, set)
			l.add(in(set, false))
			return
		}
		l.say("update @%s { %s }", set, key)
		l.add(Expr{Op: "dynset", Key: DynsetRefresh, Reg: 1, Name: set})
	}
}

// keyRegisters are those of a key of two addresses and up to three values of 32 bits. Registers of 32 bits are numbered
// from 8, those of 128 from 1: 2 is 12, 3 is 16.
func keyRegisters(f family) [5]uint32 {
	if f == ipv4 {
		return [5]uint32{1, 9, 10, 11, 2}
	}
	return [5]uint32{1, 2, 3, 17, 18}
}

// Names of the sets of flows that look like media, without the suffix of their family, and what happens to them.
const (
	SetUnmarkedMedia = "media_unmarked" // forwarded in class data
	SetDroppedMedia  = "media_dropped"  // dropped: no media passes between the two networks
)

// MediaFlowSets lists the sets of flows that look like media.
func MediaFlowSets() (names []string) {
	for _, f := range families {
		names = append(names, SetUnmarkedMedia+f.suffix(), SetDroppedMedia+f.suffix())
	}
	return names
}

// A flow that looks like media is known for seenPause seconds after its last packet; so many are, in each set.
const (
	seenPause = 30
	maxSeen   = 1024
)

// Packets of calls, as UDP lengths: 8 bytes of UDP, 12 of RTP, and from G.729's 10 bytes of one frame to what Opus or
// 30 ms of G.711 with an SRTP tag need.
const (
	minRTP = 30
	maxRTP = 330
)

// unmarked notes flows in class data that look like media, from and to voice networks and sites. What data networks
// send to the internet is not looked at: conferences in a browser are there, and nobody wants to know of them.
func (p *plan) unmarked() {
	if p.lacks(FeatureFlowLimit) {
		return
	}
	for _, f := range families {
		for _, name := range []string{SetUnmarkedMedia, SetDroppedMedia} {
			p.state.Sets = append(p.state.Sets, Set{
				Name: name + f.suffix(), Type: mediaFlowType(f), Size: maxSeen, Timeout: seenPause,
			})
		}
	}
	p.base("unmarked", "filter", "forward", hookMangle, "accept",
		one(markIs("meta", qos.MarkClassMask, qos.ClassMark(qos.Data)), isUDP, goTo("unmarked_data")))
	p.chain("unmarked_data",
		one(iifIn("voice_lan"), goTo("unmarked_media")), one(oifIn("voice_lan"), goTo("unmarked_media")),
		one(iifIn("tunnel"), goTo("unmarked_media")), one(oifIn("tunnel"), goTo("unmarked_media")))
	p.chain("unmarked_media", p.looksLikeRTP(SetUnmarkedMedia))
	p.chain("dropped_media", p.looksLikeRTP(SetDroppedMedia))
}

// droppedMedia notes what looks like media before it is dropped.
func (p *plan) droppedMedia() []Rule {
	if p.lacks(FeatureFlowLimit) {
		return nil
	}
	return one(isUDP, jump("dropped_media"))
}

func (p *plan) looksLikeRTP(set string) []Rule {
	return both(func(f family) Rule { return rule(isUDPOf(f), isRTP, countMediaFlow(f, set)) })
}

func mediaFlowType(f family) string {
	return fmt.Sprintf("ipv%[1]s_addr . ipv%[1]s_addr . inet_service . inet_service . integer", f.suffix())
}

// typeofMediaFlow is mediaFlowType in the words of what is in the key.
func typeofMediaFlow(typ string) string {
	f := ipv4
	if typ == mediaFlowType(ipv6) {
		f = ipv6
	}
	return fmt.Sprintf("%[1]s saddr . %[1]s daddr . udp sport . udp dport . @th,128,32", f.ip())
}

// isRTP matches packets of the size of a call's whose payload begins with RTP's version 2 (RFC 3550, section 5.1). What
// shares ports with RTP begins otherwise: STUN, DTLS, TURN (RFC 7983), QUIC (RFC 9443).
func isRTP(l *line) {
	l.isL4(protoUDP)
	l.say("udp length >= %d udp length < %d @th,64,8 & 0xc0 == 0x80", minRTP, maxRTP)
	length := Expr{Op: "payload", Key: "transport", Reg: 1, Offset: 4, Len: 2}
	l.add(length, cmp("gte", net16(minRTP)), length, cmp("lt", net16(maxRTP)),
		Expr{Op: "payload", Key: "transport", Reg: 1, Offset: 8, Len: 1}, and([]byte{0xc0}, []byte{0}), eq([]byte{0x80}))
}

// countMediaFlow counts the packets of a flow. A source of RTP has one SSRC for the whole call, bytes 8 to 11: with it
// in the key, what only looks like RTP now and then counts for many flows of a few packets each.
func countMediaFlow(f family, set string) statement {
	return func(l *line) {
		l.isFamily(f)
		l.isL4(protoUDP)
		regs := keyRegisters(f)
		l.say("update @%[1]s { %[2]s saddr . %[2]s daddr . udp sport . udp dport . @th,128,32 counter }",
			set+f.suffix(), f.ip())
		l.add(addrLoad(f, "saddr", regs[0]), addrLoad(f, "daddr", regs[1]),
			portLoad("sport", regs[2]), portLoad("dport", regs[3]),
			Expr{Op: "payload", Key: "transport", Reg: regs[4], Offset: 16, Len: 4},
			Expr{Op: "dynset", Key: DynsetCounter, Reg: 1, Name: set + f.suffix()})
	}
}

// MediaFlow is one direction of a flow that looks like media, as the key of an element says it.
type MediaFlow struct {
	From, To netip.AddrPort
	SSRC     uint32
}

// ParseMediaFlow reads the key of an element of MediaFlowSets, in the kernel's bytes. ok is false if it is none.
func ParseMediaFlow(key []byte) (flow MediaFlow, ok bool) {
	n := (len(key) - 12) / 2 // two addresses; two ports and an SSRC in registers of their own
	if n != 4 && n != 16 || len(key) != 2*n+12 {
		return flow, false
	}
	from, _ := netip.AddrFromSlice(key[:n])
	to, _ := netip.AddrFromSlice(key[n : 2*n])
	rest := key[2*n:]
	number := func(b []byte) uint16 { return uint16(b[0])<<8 | uint16(b[1]) }
	return MediaFlow{
		From: netip.AddrPortFrom(from, number(rest)), To: netip.AddrPortFrom(to, number(rest[4:])),
		SSRC: uint32(number(rest[8:]))<<16 | uint32(number(rest[10:])),
	}, true
}
