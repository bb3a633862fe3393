// Package sdp parses session descriptions (RFC 8866) in place, for what a firewall and a budget have
// to know of them: which addresses and ports media will use, in which direction, and how many bytes a
// second it may take. It accepts what phones really send, which is less strict than the RFC: lines in
// another order, without `s=` or `t=`, ended by LF alone or not at all.
package sdp

import (
	"bytes"
	"net/netip"

	"ringway/sip/host"
)

// Bounds of ours, for one body. What is beyond is counted in Description.Beyond.
const (
	MaxMedia      = 8
	MaxFormats    = 32
	MaxCandidates = 16
)

// Description is what was read of a body. Read fills it; the slices in it are parts of the body. It is
// about 20 KB, to be used again and again, and not to be copied.
type Description struct {
	Sessions int // lines `v=`; a body with two describes two sessions
	Media    []Media
	Beyond   int // media, formats and candidates that were too many

	media   [MaxMedia]Media
	session Media // attributes that hold for all media that do not say otherwise
	spare   Media // attributes of media beyond the bound, of no interest
}

// Kind is the media type of an m-line (RFC 8866, section 5.14).
type Kind uint8

// Media types. Those without RTP are Other, T.38 is Image (RFC 3362).
const (
	Other Kind = iota
	Audio
	Video
	Image
)

// Direction is who sends (RFC 8866, section 6.7). The zero value is what holds without an attribute.
type Direction uint8

// Directions, as the one who wrote the description sees them.
const (
	SendRecv Direction = iota
	SendOnly
	RecvOnly
	Inactive
)

// Media is one m-line with its attributes. Its index is what an answer refers to.
type Media struct {
	Kind     Kind
	Port     uint16 // 0: refused, or gone
	Ports    int    // consecutive pairs of ports from Port on; 1 but for layered media
	Protocol []byte
	Address  netip.Addr // of its own or its session's c-line; invalid: none, or a name
	Named    bool       // the c-line has a name instead of an address
	Direction

	Formats     []Format
	Ptime       int              // milliseconds; 0: not given
	MaxPtime    int              // milliseconds; 0: not given
	Bandwidth   uint64           // of b=TIAS or b=AS, bits per second; 0: not given
	RTCP        netip.AddrPort   // of a=rtcp (RFC 3605); the address is Address unless given
	RTCPMux     bool             // RFC 5761
	Crypto      bool             // keys of SDES (RFC 4568)
	Fingerprint bool             // DTLS (RFC 8122)
	Candidates  []netip.AddrPort // of UDP (RFC 8839), with those of RTCP

	formats    [MaxFormats]Format
	candidates [MaxCandidates]netip.AddrPort
}

// Format is one format of an m-line.
type Format struct {
	Type     uint8  // payload type; NotRTP: none
	Name     []byte // encoding name: of rtpmap, or what the payload type stands for (RFC 3551, section 6)
	Clock    uint32 // hertz; 0: not known
	Channels uint8
	Params   []byte // of a=fmtp
}

// NotRTP is the Type of a format that is not a number from 0 to 127, as `t38`.
const NotRTP = 255

// Read reads a body. It reports whether it is a session description at all.
func (d *Description) Read(body []byte) bool {
	d.Sessions, d.Beyond = 0, 0
	d.Media = d.media[:0]

	media := d.beginSession()
	for len(body) > 0 {
		var text []byte
		text, body = cutLine(body)
		if len(text) < 2 || text[1] != '=' {
			continue
		}
		value := bytes.TrimSpace(text[2:])
		switch text[0] {
		case 'v':
			d.Sessions++
			media = d.beginSession()
		case 'm':
			media = d.add(value)
		case 'c':
			media.Address, media.Named = connection(value)
		case 'b':
			media.bandwidth(value)
		case 'a':
			d.Beyond += media.attribute(value)
		}
	}
	for i := range d.Media {
		d.Media[i].finish()
	}
	return d.Sessions > 0
}

func (d *Description) beginSession() *Media {
	d.session = Media{}
	return &d.session
}

func cutLine(b []byte) (text, rest []byte) {
	if i := bytes.IndexByte(b, '\n'); i >= 0 {
		return b[:i], b[i+1:]
	}
	return b, nil
}

// add reads the value of an m-line. One that makes no sense keeps its index, with port 0.
func (d *Description) add(value []byte) *Media {
	if len(d.Media) == MaxMedia {
		d.Beyond++
		d.spare = Media{}
		return &d.spare
	}
	session := &d.session
	d.Media = d.media[:len(d.Media)+1]
	m := &d.Media[len(d.Media)-1]
	*m = Media{
		Address: session.Address, Named: session.Named, Direction: session.Direction,
		Ptime: session.Ptime, MaxPtime: session.MaxPtime,
		Crypto: session.Crypto, Fingerprint: session.Fingerprint,
	}

	var kind, port []byte
	kind, value = cutField(value)
	port, value = cutField(value)
	m.Protocol, value = cutField(value)
	m.Kind = kindOf(kind)
	m.Ports = 1
	if slash := bytes.IndexByte(port, '/'); slash >= 0 {
		m.Ports = min(max(1, number(port[slash+1:], 65535)), 65535)
		port = port[:slash]
	}
	m.Port = uint16(max(0, number(port, 65535)))

	m.Formats = m.formats[:0]
	for len(value) > 0 {
		var one []byte
		one, value = cutField(value)
		if len(m.Formats) == MaxFormats {
			d.Beyond++
			break
		}
		m.Formats = append(m.Formats, formatOf(one))
	}
	return m
}

func kindOf(name []byte) Kind {
	switch string(name) {
	case "audio":
		return Audio
	case "video":
		return Video
	case "image":
		return Image
	}
	return Other
}

func formatOf(name []byte) Format {
	n := number(name, 127)
	if n < 0 {
		return Format{Type: NotRTP, Name: name}
	}
	f := Format{Type: uint8(n)}
	if n < len(static) {
		f.Name, f.Clock, f.Channels = static[n].Name, static[n].Clock, static[n].Channels
	}
	return f
}

// static are the payload types with a fixed meaning (RFC 3551, tables 4 and 5).
var static = [...]Format{
	0:  {Name: []byte("PCMU"), Clock: 8000, Channels: 1},
	3:  {Name: []byte("GSM"), Clock: 8000, Channels: 1},
	4:  {Name: []byte("G723"), Clock: 8000, Channels: 1},
	5:  {Name: []byte("DVI4"), Clock: 8000, Channels: 1},
	6:  {Name: []byte("DVI4"), Clock: 16000, Channels: 1},
	7:  {Name: []byte("LPC"), Clock: 8000, Channels: 1},
	8:  {Name: []byte("PCMA"), Clock: 8000, Channels: 1},
	9:  {Name: []byte("G722"), Clock: 8000, Channels: 1},
	10: {Name: []byte("L16"), Clock: 44100, Channels: 2},
	11: {Name: []byte("L16"), Clock: 44100, Channels: 1},
	12: {Name: []byte("QCELP"), Clock: 8000, Channels: 1},
	13: {Name: []byte("CN"), Clock: 8000, Channels: 1},
	15: {Name: []byte("G728"), Clock: 8000, Channels: 1},
	16: {Name: []byte("DVI4"), Clock: 11025, Channels: 1},
	17: {Name: []byte("DVI4"), Clock: 22050, Channels: 1},
	18: {Name: []byte("G729"), Clock: 8000, Channels: 1},
	26: {Name: []byte("JPEG"), Clock: 90000},
	28: {Name: []byte("nv"), Clock: 90000},
	31: {Name: []byte("H261"), Clock: 90000},
	32: {Name: []byte("MPV"), Clock: 90000},
	33: {Name: []byte("MP2T"), Clock: 90000},
	34: {Name: []byte("H263"), Clock: 90000},
}

// connection reads the value of a c-line: `IN IP4 192.0.2.1`, for multicast with `/127` and more behind it. named
// reports that a name is there instead of an address.
func connection(value []byte) (a netip.Addr, named bool) {
	_, value = cutField(value)
	family, value := cutField(value)
	text, _ := cutField(value)
	text, _, _ = bytes.Cut(text, []byte("/"))
	a, ok := host.Parse(text)
	switch {
	case !ok:
		return netip.Addr{}, len(text) > 0
	case string(family) == "IP4" && !a.Is4(), string(family) != "IP4" && bytes.IndexByte(text, ':') < 0:
		// Of the other family than it says: not to be relied on. An IPv4-mapped address is of IPv6 in its text, and
		// of IPv4 in its packets (RFC 5118, section 4.9).
		return netip.Addr{}, false
	}
	return a, false
}

func (m *Media) bandwidth(value []byte) {
	kind, n, ok := bytes.Cut(value, []byte(":"))
	bits := number(n, 1<<30)
	if !ok || bits < 0 {
		return
	}
	switch string(kind) {
	case "TIAS": // RFC 3890, without the headers below RTP
		m.Bandwidth = uint64(bits)
	case "AS":
		if m.Bandwidth == 0 {
			m.Bandwidth = uint64(bits) * 1000
		}
	}
}

// attribute reads the value of an a-line. It returns how many candidates were too many.
func (m *Media) attribute(value []byte) (beyond int) {
	name, rest, _ := bytes.Cut(value, []byte(":"))
	switch string(name) {
	case "sendrecv":
		m.Direction = SendRecv
	case "sendonly":
		m.Direction = SendOnly
	case "recvonly":
		m.Direction = RecvOnly
	case "inactive":
		m.Direction = Inactive
	case "ptime":
		m.Ptime = milliseconds(rest)
	case "maxptime":
		m.MaxPtime = milliseconds(rest)
	case "rtpmap":
		m.rtpmap(rest)
	case "fmtp":
		which, params := cutField(rest)
		if f := m.format(which); f != nil {
			f.Params = params
		}
	case "rtcp":
		m.rtcp(rest)
	case "rtcp-mux":
		m.RTCPMux = true
	case "crypto":
		m.Crypto = true
	case "fingerprint":
		m.Fingerprint = true
	case "candidate":
		return m.candidate(rest)
	}
	return 0
}

// milliseconds reads a ptime. Some phones write `20.0`.
func milliseconds(b []byte) int {
	b, _, _ = bytes.Cut(b, []byte("."))
	return max(0, number(bytes.TrimSpace(b), 10000))
}

func (m *Media) format(which []byte) *Format {
	n := number(which, 127)
	for i := range m.Formats {
		if f := &m.Formats[i]; n >= 0 && int(f.Type) == n {
			return f
		}
	}
	return nil
}

// rtpmap reads `96 opus/48000/2`.
func (m *Media) rtpmap(value []byte) {
	which, value := cutField(value)
	f := m.format(which)
	if f == nil {
		return
	}
	name, value, _ := bytes.Cut(value, []byte("/"))
	clock, channels, _ := bytes.Cut(value, []byte("/"))
	f.Name = name
	f.Clock = uint32(max(0, number(clock, 1<<30)))
	f.Channels = uint8(max(1, number(channels, 255)))
}

// rtcp reads `5005` or `5005 IN IP4 192.0.2.1` (RFC 3605).
func (m *Media) rtcp(value []byte) {
	port, value := cutField(value)
	n := number(port, 65535)
	if n <= 0 {
		return
	}
	a, _ := connection(value)
	m.RTCP = netip.AddrPortFrom(a, uint16(n))
}

// candidate reads `1 1 UDP 2130706431 192.0.2.1 5000 typ host` (RFC 8839, section 5.1).
func (m *Media) candidate(value []byte) (beyond int) {
	_, value = cutField(value)
	_, value = cutField(value)
	transport, value := cutField(value)
	_, value = cutField(value)
	text, value := cutField(value)
	port, _ := cutField(value)
	n := number(port, 65535)
	a, ok := host.Parse(text) // a name is one of multicast DNS, which nobody else can look up
	if !bytes.EqualFold(transport, []byte("udp")) || n <= 0 || !ok {
		return 0
	}
	have := len(m.Candidates)
	if have == MaxCandidates {
		return 1
	}
	m.candidates[have] = netip.AddrPortFrom(a, uint16(n))
	m.Candidates = m.candidates[:have+1]
	return 0
}

// finish fills in what depends on the order of lines.
func (m *Media) finish() {
	if m.RTCP.Port() > 0 && !m.RTCP.Addr().IsValid() {
		m.RTCP = netip.AddrPortFrom(m.Address, m.RTCP.Port())
	}
}

// Control is where RTCP goes: of a=rtcp, else the port above (RFC 3550, section 11), both also if RTCPMux
// is offered, for it may not be accepted. It is invalid without an address or a port, and where there is no RTP, as
// with T.38 over UDPTL.
func (m *Media) Control() netip.AddrPort {
	switch {
	case !m.isRTP():
		return netip.AddrPort{}
	case m.RTCP.IsValid():
		return m.RTCP
	case m.Port == 0 || m.Port == 65535 || !m.Address.IsValid():
		return netip.AddrPort{}
	default:
		return netip.AddrPortFrom(m.Address, m.Port+1)
	}
}

// isRTP reports whether the medium is RTP: its protocol says so, as RTP/AVP and UDP/TLS/RTP/SAVPF do, or is one that
// nobody knows, of sound or video.
func (m *Media) isRTP() bool {
	return m.Kind == Audio || m.Kind == Video || bytes.Contains(bytes.ToUpper(m.Protocol), []byte("RTP"))
}

// IsTCP reports whether the medium is a TCP connection, as MSRP is (RFC 4975) and T.38 may be (RFC 4145).
func (m *Media) IsTCP() bool {
	return len(m.Protocol) >= 3 && bytes.EqualFold(m.Protocol[:3], []byte("TCP"))
}

// cutField cuts at white space.
func cutField(b []byte) (field, rest []byte) {
	b = bytes.TrimLeft(b, " \t")
	if i := bytes.IndexAny(b, " \t"); i >= 0 {
		return b[:i], bytes.TrimLeft(b[i:], " \t")
	}
	return b, nil
}

// number reads decimal digits up to limit; -1: it is none, or is above.
func number(b []byte, limit int) int {
	if len(b) == 0 || len(b) > 10 {
		return -1
	}
	n := 0
	for _, c := range b {
		if c < '0' || c > '9' {
			return -1
		}
		n = n*10 + int(c-'0')
	}
	if n > limit {
		return -1
	}
	return n
}
