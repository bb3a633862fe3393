package offer

import (
	"bytes"
	"errors"
	"net/netip"
	"slices"
	"strings"

	"ringway/sip/sdp"
	"ringway/srtp/sdes"
	"ringway/srtp/suite"
)

// Bounds of ours, for a description that the box changes.
const (
	MaxBody      = 32 << 10                       // bytes, as received
	MaxPassed    = MaxBody + sdp.MaxMedia*(2<<10) // bytes, as passed on: what a line m= gets is less than 2 KiB
	maxLines     = 1000
	maxCrypto    = 16 // attributes of a line m=
	maxPrints    = 8  // fingerprints of a line m=
	maxProtocol  = 40 // bytes of a protocol's name, as it is reported
	sessionLevel = -1
)

// Attributes of our own and of others, in lower case: names are compared without case, since what one end takes for
// another attribute the other may not.
const (
	attrCrypto      = "crypto"
	attrFingerprint = "fingerprint"
	attrSetup       = "setup"
	attrTLSID       = "tls-id"
	attrMux         = "rtcp-mux"
	// attrChannel says that the keys of a line pass by the channel between the boxes, and names the suite.
	attrChannel = "ringway-srtp"
)

// line is one line of a body. text is without the terminator, which ends at end.
type line struct {
	start, end int
	text       []byte
	key        byte // 0: an empty line
	name       string
	value      []byte // of an attribute: what follows the colon
	section    int    // index of the line m=, or sessionLevel
}

// protocol is the transport of a line m=.
type protocol struct {
	class    class
	feedback bool // ends in F (RFC 4585)
}

type class uint8

const (
	other   class = iota // not RTP
	unknown              // RTP, or sound or video, by a protocol that the box does not speak
	avp
	savp
	tls // UDP/TLS/RTP/SAVP (RFC 5764 section 8)
)

func (p protocol) String() string {
	name := [...]string{"", "", "RTP/AVP", "RTP/SAVP", "UDP/TLS/RTP/SAVP"}[p.class]
	if p.feedback {
		name += "F"
	}
	return name
}

// relayable says whether the box can be an end of it.
func (p protocol) relayable() bool { return p.class >= avp }

func parseProtocol(text []byte, kind sdp.Kind) protocol {
	name := strings.ToUpper(string(text))
	base, feedback := strings.CutSuffix(name, "F")
	switch base {
	case "RTP/AVP":
		return protocol{avp, feedback}
	case "RTP/SAVP":
		return protocol{savp, feedback}
	case "UDP/TLS/RTP/SAVP":
		return protocol{tls, feedback}
	}
	if strings.Contains(name, "RTP") || kind == sdp.Audio || kind == sdp.Video {
		return protocol{class: unknown}
	}
	return protocol{}
}

// section is a line m= with what follows it.
type section struct {
	*sdp.Media
	head     int // index of the line m=
	protocol protocol
	keyed
	channel suite.Suite // of attrChannel; 0: none
	mux     bool
	ice     bool
	named   bool // has attributes for keys, also such as are not supported
	address bool // has a line c= of its own
}

// keyed are attributes about keys. Those for DTLS may also be of the session (RFC 8122 section 5, RFC 4145 section 4).
type keyed struct {
	crypto []sdes.Attribute
	prints []Fingerprint
	setup  string
	tlsID  string
}

// description is a body that was read.
type description struct {
	body     []byte
	lines    []line
	sections []section
	session  section // Media is nil
	eol      []byte

	sdp sdp.Description
}

var errUnreadable = errors.New("the session description cannot be read")

// read reads a body more strictly than sip/sdp does: what two ends could read in different ways is refused, since one
// of the two would get something else than what the box has decided.
func read(body []byte) (*description, error) {
	d := &description{body: body, eol: []byte("\r\n")}
	if len(body) > MaxBody || !d.sdp.Read(body) || d.sdp.Sessions != 1 {
		return nil, errUnreadable
	}
	if err := d.split(); err != nil {
		return nil, err
	}
	heads := 0
	for _, l := range d.lines {
		if l.key == 'm' {
			heads++
		}
	}
	if heads != len(d.sdp.Media) {
		return nil, errUnreadable
	}
	for i := range d.sdp.Media {
		d.sections = append(d.sections, section{Media: &d.sdp.Media[i]})
	}
	for i := range d.lines {
		if err := d.note(i); err != nil {
			return nil, err
		}
	}
	for i := range d.sections {
		s := &d.sections[i]
		if len(s.prints) == 0 {
			s.prints = d.session.prints
		}
		if s.setup == "" {
			s.setup = d.session.setup
		}
		if s.tlsID == "" {
			s.tlsID = d.session.tlsID
		}
		s.ice = s.ice || d.session.ice
	}
	return d, nil
}

// split finds the lines.
func (d *description) split() error {
	at, in := 0, sessionLevel
	for at < len(d.body) {
		if len(d.lines) == maxLines {
			return errUnreadable
		}
		l := line{start: at, end: len(d.body), section: in}
		if i := bytes.IndexByte(d.body[at:], '\n'); i >= 0 {
			l.end = at + i + 1
		}
		l.text = bytes.TrimSuffix(bytes.TrimSuffix(d.body[at:l.end], []byte("\n")), []byte("\r"))
		if len(d.lines) == 0 && l.end-len(l.text) == at+1 {
			d.eol = []byte("\n")
		}
		at = l.end
		if bytes.ContainsAny(l.text, "\r\x00") {
			return errUnreadable
		}
		if len(bytes.TrimSpace(l.text)) > 0 {
			if len(l.text) < 2 || l.text[1] != '=' || l.text[0] < 'a' || l.text[0] > 'z' {
				return errUnreadable
			}
			l.key = l.text[0]
		}
		switch l.key {
		case 'm':
			in++
			l.section = in
		case 'a':
			name, value, _ := bytes.Cut(l.text[2:], []byte(":"))
			l.name = strings.ToLower(string(bytes.TrimSpace(name)))
			l.value = bytes.TrimSpace(value)
		}
		d.lines = append(d.lines, l)
	}
	return nil
}

// origin is the line o=.
func (d *description) origin() string {
	i := slices.IndexFunc(d.lines, func(l line) bool { return l.key == 'o' })
	if i < 0 {
		return ""
	}
	return string(d.lines[i].text)
}

// note reads what sip/sdp does not.
func (d *description) note(i int) error {
	l := &d.lines[i]
	s := &d.session
	if l.section >= 0 {
		s = &d.sections[l.section]
	}
	switch l.key {
	case 'm':
		s.head = i
		f, ok := fields(l.text)
		if !ok {
			return errUnreadable
		}
		port := l.text[f.port:f.portEnd]
		// A port that sip/sdp takes for 0 and others might not.
		digits, count, several := bytes.Cut(port, []byte("/"))
		if several && len(bytes.Trim(count, "0123456789")) > 0 || s.Port == 0 && len(bytes.Trim(digits, "0")) > 0 {
			return errUnreadable
		}
		s.protocol = parseProtocol(s.Protocol, s.Kind)
	case 'c':
		if s.address {
			return errUnreadable // of several, who knows which is meant
		}
		s.address = true
	case 'a':
		s.attribute(l)
	}
	return nil
}

func (s *section) attribute(l *line) {
	switch l.name {
	case attrCrypto:
		s.named = true
		if len(s.crypto) == maxCrypto {
			return
		}
		// One that is not supported is passed over (RFC 4568 section 6.3.7).
		if a, err := sdes.Parse(string(l.value)); err == nil {
			s.crypto = append(s.crypto, a)
		}
	case attrFingerprint:
		s.named = true
		if f, ok := parseFingerprint(l.value); ok && len(s.prints) < maxPrints {
			s.prints = append(s.prints, f)
		}
	case attrSetup:
		s.setup = strings.ToLower(string(l.value))
	case attrTLSID:
		s.tlsID = string(l.value)
	case attrMux, "rtcp-mux-only":
		s.mux = true
	case "ice-ufrag", "candidate":
		s.ice = true
	case attrChannel:
		if c, err := suite.Parse(string(l.value)); err == nil && c.AEAD() {
			s.channel = c
		}
	}
}

// positions are where the fields of a line m= are that change.
type positions struct{ port, portEnd, protocol, protocolEnd int }

// fields finds the port and the protocol of `m=audio 5004 RTP/AVP 0`.
func fields(text []byte) (p positions, ok bool) {
	at := 2
	next := func() (start, end int) {
		for at < len(text) && (text[at] == ' ' || text[at] == '\t') {
			at++
		}
		start = at
		for at < len(text) && text[at] != ' ' && text[at] != '\t' {
			at++
		}
		return start, at
	}
	next()
	p.port, p.portEnd = next()
	p.protocol, p.protocolEnd = next()
	return p, p.protocolEnd > p.protocol
}

// encrypted says that the line is one over TLS or DTLS, such as TCP/TLS/MSRP, UDP/DTLS/SCTP or UDP/TLS/UDPTL. What the
// ends then agree on passes the box.
func (s *section) encrypted() bool {
	return slices.ContainsFunc(strings.Split(string(s.Protocol), "/"), func(part string) bool {
		return strings.EqualFold(part, "TLS") || strings.EqualFold(part, "DTLS")
	})
}

// onlyICE says that the line has no address but those of candidates (RFC 8839 section 4.2.1.2: port 9, often with
// 0.0.0.0).
func (s *section) onlyICE() bool {
	return s.ice && (s.Port == 9 || !s.Address.IsValid() || s.Address.IsUnspecified())
}

// held says that the line is on hold as RFC 2543 has it: nothing is to be sent to it.
func (s *section) held() bool { return s.Address.IsValid() && s.Address.IsUnspecified() }

// remote is where the end receives RTP and RTCP. Neither is valid while the line is held.
func (s *section) remote(mux bool) (rtp, rtcp netip.AddrPort, reason string) {
	switch {
	case s.held():
		return rtp, rtcp, ""
	case !s.Address.IsValid():
		return rtp, rtcp, "a media line has no address"
	case s.Address.IsMulticast(), s.Address.IsLoopback(), s.Address == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return rtp, rtcp, "a media line has an address that is not a host's"
	}
	rtp = netip.AddrPortFrom(s.Address, s.Port)
	if rtcp = s.Control(); mux || !rtcp.IsValid() || rtcp.Addr().Is4() != s.Address.Is4() {
		rtcp = rtp
	}
	if a := rtcp.Addr(); a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
		rtcp = rtp
	}
	return rtp, rtcp, ""
}

func (s *section) codecs() []Codec {
	var all []Codec
	for _, f := range s.Formats {
		if f.Type != sdp.NotRTP {
			all = append(all, Codec{f.Type, string(f.Name), f.Clock, f.Channels, string(f.Params)})
		}
	}
	return all
}

// wipe overwrites the keys that were read.
func (d *description) wipe() {
	for i := range d.sections {
		for _, a := range d.sections[i].crypto {
			wipe(a.Keys)
		}
	}
	for _, a := range d.session.crypto {
		wipe(a.Keys)
	}
}
