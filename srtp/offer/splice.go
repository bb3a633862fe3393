package offer

import (
	"bytes"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// fate is what becomes of a line m=.
type fate uint8

const (
	untouched fate = iota
	refused        // port 0
	relayed
)

// change is what is written in place of what a section says about addresses and keys.
type change struct {
	fate     fate
	local    netip.AddrPort
	protocol string
	mux      bool
	add      []string // attributes, without "a="
}

// dropped are attributes of relayed media that are an end's own: keys, addresses, and other ways of agreeing on either.
// What is kept is none of these: formats, directions, a=ssrc, a=mid, a=rtcp-fb, a=extmap.
var dropped = map[string]bool{
	attrCrypto: true, attrFingerprint: true, attrSetup: true, attrTLSID: true, attrMux: true, attrChannel: true,
	"dtls-id": true, "rtcp-mux-only": true, "rtcp": true, "connection": true,
	"key-mgmt":  true, // RFC 4567
	"zrtp-hash": true, // RFC 6189: its packets are not RTP
	// Of vendors: `optional` beside a=crypto, and a key that may be chosen in its place.
	"encryption": true, "cryptoscale": true,
	// ICE (RFC 8839): the box has one address, and checks none.
	"candidate": true, "end-of-candidates": true, "remote-candidates": true, "ice-ufrag": true, "ice-pwd": true,
	"ice-options": true, "ice-lite": true, "ice-mismatch": true, "ice-pacing": true,
	"bundle-only": true, // RFC 8843
	// RFC 5939 and what extends it: an answer may choose another protocol, with keys.
	"acap": true, "tcap": true, "pcfg": true, "acfg": true, "csup": true, "creq": true, "sescap": true, "lcfg": true,
	"mcap": true, "rmcap": true, "omcap": true, "mfcap": true, "mscap": true, "bcap": true, "ccap": true, "icap": true,
	"altc": true, "alt": true, "source-filter": true, // other addresses (RFC 6947, of a vendor, RFC 4570)
}

// moved are those of the session that media which the box leaves alone may need, too: TLS over TCP, SCTP over DTLS.
var moved = map[string]bool{
	attrFingerprint: true, attrSetup: true, attrTLSID: true, "dtls-id": true, "connection": true,
	"ice-ufrag": true, "ice-pwd": true, "ice-options": true,
}

func (l *line) dropped() bool {
	if l.key != 'a' {
		return false
	}
	if l.name == "group" { // a=group:BUNDLE (RFC 8843): each line has a port of the box for itself
		kind, _, _ := bytes.Cut(l.value, []byte(" "))
		return bytes.EqualFold(kind, []byte("BUNDLE"))
	}
	return dropped[l.name]
}

// splice writes the body with the changes, one for each section, which it uses up. Every byte that belongs to none of
// them stays.
func (d *description) splice(changes []change) []byte {
	if !slices.ContainsFunc(changes, func(c change) bool { return c.fate != untouched }) {
		return d.body
	}
	w := &splicer{description: d, changes: changes, out: make([]byte, 0, len(d.body)+512*len(changes))}
	w.plan()
	for i := range d.lines {
		w.line(i)
	}
	return w.out
}

type splicer struct {
	*description
	changes []change
	out     []byte

	last    []int        // of each section: its last line that is not empty
	session netip.Addr   // what the session's c= becomes; invalid: it stays
	insert  []netip.Addr // of each section: the c= that it gets
	muxed   map[int]bool // sections with a=rtcp-mux written
	pending netip.Addr   // the c= to be written before the next line that is not i=
}

// plan decides where the addresses go.
func (w *splicer) plan() {
	n := len(w.sections)
	w.last, w.insert = make([]int, n), make([]netip.Addr, n)
	w.muxed = map[int]bool{}
	for i, l := range w.lines {
		if l.section >= 0 && l.key != 0 {
			w.last[l.section] = i
		}
	}
	// The session's address is for all sections without their own: it stays as long as one is left alone.
	shared := true
	for i := range w.sections {
		s := &w.sections[i]
		if w.changes[i].fate == untouched && s.Port != 0 && !s.address {
			shared = false
		}
	}
	for i := range w.sections {
		s, c := &w.sections[i], &w.changes[i]
		if c.fate != relayed || s.address || s.held() {
			continue
		}
		switch a := c.local.Addr(); {
		case shared && !w.session.IsValid():
			w.session = a
		case !shared || w.session != a:
			w.insert[i] = a
		}
	}
	for i := range w.lines {
		l := &w.lines[i]
		if l.section != sessionLevel || !l.dropped() || !moved[l.name] {
			continue
		}
		for j := range w.sections {
			if w.changes[j].fate == untouched && w.sections[j].Port != 0 && !w.has(j, l.name) {
				w.changes[j].add = append(w.changes[j].add, string(l.text[2:]))
			}
		}
	}
}

func (w *splicer) has(section int, name string) bool {
	return slices.ContainsFunc(w.lines, func(l line) bool { return l.section == section && l.name == name })
}

// line writes one line, and what is inserted behind it.
func (w *splicer) line(i int) {
	l := &w.lines[i]
	if w.pending.IsValid() && l.key != 'i' {
		w.put(connection(w.pending))
		w.pending = netip.Addr{}
	}
	whole := w.body[l.start:l.end]
	switch {
	case l.section == sessionLevel:
		w.inSession(l, whole)
	case w.changes[l.section].fate == untouched:
		w.out = append(w.out, whole...)
	default:
		w.inSection(l, whole)
	}
	if l.section == sessionLevel || i != w.last[l.section] {
		return
	}
	if w.pending.IsValid() {
		w.put(connection(w.pending))
		w.pending = netip.Addr{}
	}
	c := &w.changes[l.section]
	if c.fate == relayed && c.mux && !w.muxed[l.section] {
		w.put("a=" + attrMux)
	}
	for _, a := range c.add {
		w.put("a=" + a)
	}
}

func (w *splicer) inSession(l *line, whole []byte) {
	switch {
	case l.key == 'c' && w.session.IsValid():
		w.address(l, whole, w.session)
	case !l.dropped():
		w.out = append(w.out, whole...)
	}
}

func (w *splicer) inSection(l *line, whole []byte) {
	s, c := &w.sections[l.section], &w.changes[l.section]
	switch {
	case l.key == 'm':
		w.head(l, whole, c)
		w.pending = w.insert[l.section]
	case l.key == 'c' && c.fate == relayed && !s.held():
		w.address(l, whole, c.local.Addr())
	case l.name == attrMux && c.fate == relayed && c.mux && !w.muxed[l.section]:
		w.muxed[l.section] = true
		w.out = append(w.out, whole...)
	case !l.dropped():
		w.out = append(w.out, whole...)
	}
}

// head writes a line m= with another port and protocol.
func (w *splicer) head(l *line, whole []byte, c *change) {
	f, _ := fields(l.text)
	port, protocol := "0", string(l.text[f.protocol:f.protocolEnd])
	if c.fate == relayed {
		port = strconv.Itoa(int(c.local.Port()))
	}
	if c.protocol != "" {
		protocol = c.protocol
	}
	w.out = append(w.out, l.text[:f.port]...)
	w.out = append(w.out, port...)
	w.out = append(w.out, l.text[f.portEnd:f.protocol]...)
	w.out = append(w.out, protocol...)
	w.out = append(w.out, l.text[f.protocolEnd:]...)
	w.out = append(w.out, whole[len(l.text):]...)
}

// address writes a line c=.
func (w *splicer) address(l *line, whole []byte, a netip.Addr) {
	w.out = append(w.out, connection(a)...)
	w.out = append(w.out, whole[len(l.text):]...)
}

// put writes a line of ours.
func (w *splicer) put(text string) {
	if n := len(w.out); n > 0 && w.out[n-1] != '\n' {
		w.out = append(w.out, w.eol...)
	}
	w.out = append(w.out, text...)
	w.out = append(w.out, w.eol...)
}

func connection(a netip.Addr) string {
	family := "IP6"
	if a.Is4() {
		family = "IP4"
	}
	return strings.Join([]string{"c=IN", family, a.String()}, " ")
}
