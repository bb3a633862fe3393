// Package message parses SIP messages (RFC 3261) in place: a Message is a set of ranges of the bytes
// that came, and nothing is copied, decoded or made again. What it cannot read it says so of, with a
// Reason; whether such a message goes on is the Verdict.
//
// A scanner here is not a validator. It reads what Ringway follows calls by, tells apart what two readers
// could read as two different messages, and leaves everything else to the phones.
package message

import (
	"bytes"
	"math"
)

// Bounds of ours.
const (
	// MaxSize is the longest message, in bytes. RFC 3261, section 18.1.1, wants 65535 at least over UDP.
	MaxSize = math.MaxUint16
	// MaxHeaders is how many header fields a message has at most. A call through ten proxies has about 60.
	MaxHeaders = 256
)

// Range is a part of a message, by its offsets in Message.Raw.
type Range struct{ Start, End uint16 }

// Len is the length in bytes.
func (r Range) Len() int { return int(r.End) - int(r.Start) }

// Header is one header field.
type Header struct {
	Kind  Kind
	Name  Range
	Value Range // without white space around it; folded lines are still folded
}

// Message is one message. Scan fills it; it is valid as long as the bytes that it was scanned from. It is
// about 3 KB, to be used again and again.
type Message struct {
	Raw []byte // borrowed from the caller of Scan

	Request bool
	Method  Method // of a request, or from CSeq of a response
	Status  int    // of a response, 100-699
	CSeq    uint32

	method Range // of a request
	uri    Range // of a request
	reason Range // of a response

	first   [kinds]uint16 // of each kind, the position in headers plus one
	headers [MaxHeaders]Header
	count   int

	// Body is what Content-Length says; without it, the rest of the datagram.
	Body []byte
	head int // bytes before the body
}

// Headers are all header fields in the order in which they came.
func (m *Message) Headers() []Header { return m.headers[:m.count] }

// Bytes is a range of the message.
func (m *Message) Bytes(r Range) []byte { return m.Raw[r.Start:r.End:r.End] }

// Head is everything before the body.
func (m *Message) Head() []byte { return m.Raw[:m.head:m.head] }

// Header is the value of the first header field of a kind; nil without one.
func (m *Message) Header(k Kind) []byte {
	if i := m.first[k]; i > 0 {
		return m.Bytes(m.headers[i-1].Value)
	}
	return nil
}

// Has reports whether there is a header field of a kind, empty ones included.
func (m *Message) Has(k Kind) bool { return m.first[k] > 0 }

// URI is the Request-URI.
func (m *Message) URI() []byte { return m.Bytes(m.uri) }

// MethodName is the method as it came: of a request from its start line, of a response from CSeq.
func (m *Message) MethodName() []byte {
	if m.Request {
		return m.Bytes(m.method)
	}
	_, name, _ := splitCSeq(m.Header(CSeq))
	return name
}

// ReasonPhrase is the text of a response's start line.
func (m *Message) ReasonPhrase() []byte { return m.Bytes(m.reason) }

// CallID is the Call-ID.
func (m *Message) CallID() []byte { return m.Header(CallID) }

// Scan reads one message: a datagram, or what Framer cut out of a stream. It keeps b.
func (m *Message) Scan(b []byte) Reason {
	if isKeepAlive(b) {
		m.reset(b)
		return KeepAlive
	}
	body, odd := m.scanHead(b)
	if odd.Verdict() == Refused {
		return odd
	}
	if odd = worse(odd, m.cutBody(body)); odd != None {
		return odd
	}
	return m.identify()
}

// scanHead reads everything before the body, and returns where that begins.
func (m *Message) scanHead(b []byte) (body int, odd Reason) {
	m.reset(b)
	if len(b) > MaxSize {
		return 0, TooLong
	}
	at := skipLineEnds(b) // RFC 3261, section 7.5
	end, next := line(b, at)
	if next < 0 {
		return 0, BadStartLine
	}
	if odd = m.startLine(at, end); odd.Verdict() == Refused {
		return 0, odd
	}
	body, why := m.scanHeaders(next)
	return body, worse(odd, why)
}

// worse is the reason that decides: a refusal if there is one, else the first one.
func worse(a, b Reason) Reason {
	if a == None || b.Verdict() == Refused && a.Verdict() != Refused {
		return b
	}
	return a
}

func (m *Message) reset(b []byte) {
	m.Raw, m.Body, m.head = b, nil, 0
	m.Request, m.Method, m.Status, m.CSeq = false, Other, 0, 0
	m.method, m.uri, m.reason = Range{}, Range{}, Range{}
	m.first = [kinds]uint16{}
	m.count = 0
}

// isKeepAlive tells packets that keep a NAT's mapping: nothing but line ends and zeros (RFC 5626, section
// 3.5.1, and what phones made of it), and STUN (section 3.5.2), by its magic cookie.
func isKeepAlive(b []byte) bool {
	if len(b) >= 20 && b[0] < 4 && bytes.Equal(b[4:8], stunCookie) {
		return true
	}
	for _, c := range b {
		if c != '\r' && c != '\n' && c != 0 && c != ' ' {
			return false
		}
	}
	return true
}

var stunCookie = []byte{0x21, 0x12, 0xa4, 0x42} // RFC 8489, section 5

func skipLineEnds(b []byte) int {
	at := 0
	for at < len(b) && (b[at] == '\r' || b[at] == '\n') {
		at++
	}
	return at
}

// line finds the line that begins at an offset: where it ends, and where the next one begins. next is -1 if
// the bytes end before the line does, or if it holds a CR or an LF that ends no line: readers differ about
// those.
func line(b []byte, at int) (end, next int) {
	i := bytes.IndexByte(b[at:], '\n')
	if i < 1 || b[at+i-1] != '\r' {
		return 0, -1
	}
	end = at + i - 1
	if bytes.IndexByte(b[at:end], '\r') >= 0 {
		return 0, -1
	}
	return end, end + 2
}

// startLine reads a Request-Line or a Status-Line (RFC 3261, sections 7.1 and 7.2).
func (m *Message) startLine(start, end int) Reason {
	text := m.Raw[start:end]
	if isVersion(text, true) {
		return m.statusLine(start, text)
	}
	if trimmed := bytes.TrimRight(text, " \t"); len(trimmed) < len(text) {
		return worse(m.requestLine(start, trimmed), LooseStartLine)
	}
	return m.requestLine(start, text)
}

// isVersion reports whether text is, or begins with, `SIP/2.0` and a blank. A version of another number
// counts as well.
func isVersion(text []byte, begins bool) bool {
	if len(text) < len(version) || !equalFold(text[:4], version[:4]) {
		return false
	}
	rest := bytes.TrimLeft(text[4:], "0123456789.")
	return len(rest) < len(text)-4 && (begins && len(rest) > 0 && rest[0] == ' ' || len(rest) == 0)
}

const version = "SIP/2.0"

func (m *Message) statusLine(start int, text []byte) Reason {
	odd := None
	blank := bytes.IndexByte(text, ' ')
	if blank < 0 {
		return BadStartLine
	}
	if !equalFold(text[:blank], version) {
		odd = OtherVersion
	}
	code := text[blank+1:]
	if len(code) < 3 || len(code) > 3 && code[3] != ' ' {
		return BadStartLine
	}
	status, ok := number(code[:3])
	if !ok || status < 100 || status > 699 {
		return BadStartLine
	}
	m.Status = int(status)
	m.reason = rangeOf(start+min(blank+5, len(text)), start+len(text))
	return odd
}

func (m *Message) requestLine(start int, text []byte) Reason {
	first, last := bytes.IndexByte(text, ' '), bytes.LastIndexByte(text, ' ')
	if first < 1 || !isToken(text[:first]) || !isVersion(text[last+1:], false) {
		return BadStartLine
	}
	odd := None
	if !equalFold(text[last+1:], version) {
		odd = OtherVersion
	}
	uri := text[min(first+1, last):last]
	if len(uri) == 0 || bytes.ContainsAny(uri, " \t") {
		odd = LooseStartLine // several blanks, or a URI with blanks in it
	}
	m.Request = true
	m.Method = methodOf(text[:first])
	m.method = rangeOf(start, start+first)
	m.uri = rangeOf(start+min(first+1, last), start+last)
	return odd
}

// scanHeaders reads all header fields, to the empty line. It returns where the body begins.
func (m *Message) scanHeaders(at int) (body int, odd Reason) {
	for {
		end, next := line(m.Raw, at)
		if next < 0 {
			if bytes.IndexByte(m.Raw[at:], '\n') < 0 && bytes.IndexByte(m.Raw[at:], '\r') < 0 {
				return 0, HeadersUnended
			}
			return 0, BareLineEnd
		}
		if end == at {
			return next, odd
		}
		for next < len(m.Raw) && (m.Raw[next] == ' ' || m.Raw[next] == '\t') { // folded: the value goes on
			if end, next = line(m.Raw, next); next < 0 {
				return 0, BareLineEnd
			}
		}
		if odd = worse(odd, m.addHeader(at, end)); odd.Verdict() == Refused {
			return 0, odd
		}
		at = next
	}
}

func (m *Message) addHeader(start, end int) Reason {
	if m.count == MaxHeaders {
		return TooManyHeaders
	}
	text := m.Raw[start:end]
	colon := bytes.IndexByte(text, ':')
	if colon < 0 {
		return NoColon
	}
	name := bytes.TrimRight(text[:colon], " \t")
	if len(name) == 0 || !isToken(name) {
		return NoColon
	}
	from, to := start+colon+1, end
	for from < to && isSpace(m.Raw[from]) {
		from++
	}
	for from < to && isSpace(m.Raw[to-1]) {
		to--
	}

	kind := kindOf(name)
	m.headers[m.count] = Header{Kind: kind, Name: rangeOf(start, start+len(name)), Value: rangeOf(from, to)}
	m.count++
	if m.first[kind] == 0 {
		m.first[kind] = uint16(m.count)
		return None
	}
	return repeated[kind]
}

// repeated are header fields of which a message has one at most: a reader that takes the first sees another
// message than one that takes the last.
var repeated = [kinds]Reason{
	ContentLength: RepeatedContentLength,
	CallID:        RepeatedCallID,
	CSeq:          RepeatedCSeq,
	From:          RepeatedFrom,
	To:            RepeatedTo,
}

// cutBody finds the body.
func (m *Message) cutBody(start int) Reason {
	m.Body, m.head = m.Raw[start:len(m.Raw):len(m.Raw)], start
	if !m.Has(ContentLength) {
		return None
	}
	length, why := m.contentLength()
	if why != None {
		return why
	}
	if length > len(m.Body) {
		return BodyCut
	}
	m.Body = m.Body[:length:length] // the rest of a datagram is discarded (RFC 3261, section 18.3)
	return None
}

func (m *Message) contentLength() (int, Reason) {
	n, ok := number(m.Header(ContentLength))
	switch {
	case !ok:
		return 0, BadContentLength
	case n > MaxSize:
		return 0, TooLong
	}
	return int(n), None
}

// identify reads what every message has (RFC 3261, section 8.1.1).
func (m *Message) identify() Reason {
	for _, k := range [...]Kind{CallID, CSeq, From, To, Via} {
		if len(m.Header(k)) == 0 {
			return MissingHeader
		}
	}
	n, name, ok := splitCSeq(m.Header(CSeq))
	if !ok || m.Request && !bytes.Equal(name, m.Bytes(m.method)) {
		return BadCSeq
	}
	m.CSeq = n
	if !m.Request {
		m.Method = methodOf(name)
	}
	if _, ok := ParseVia(m.Header(Via)); !ok {
		return BadVia
	}
	for _, k := range [...]Kind{From, To} {
		if _, ok := ParseAddress(m.Header(k)); !ok {
			return BadAddress
		}
	}
	return None
}

func rangeOf(start, end int) Range { return Range{uint16(start), uint16(end)} }
