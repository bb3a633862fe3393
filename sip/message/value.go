package message

import (
	"bytes"
	"net/netip"

	"ringway/sip/host"
)

// The values of header fields. All of these take what Message.Header returns, with folded lines in it, and
// return parts of it.

// Address is the value of From, To, Contact or another field of that form (RFC 3261, section 20.10).
type Address struct {
	Display []byte // with its quotes, if it has them
	URI     []byte
	Params  []byte // of the header field, from the first semicolon on
}

// Tag is the tag of a From or To.
func (a Address) Tag() []byte {
	v, _ := Param(a.Params, "tag")
	return v
}

// ParseAddress reads one address. If more follow after a comma, the first one.
func ParseAddress(value []byte) (a Address, ok bool) {
	a, _, ok = NextAddress(value)
	return a, ok
}

// NextAddress reads the first address of a list, and returns the rest of it.
func NextAddress(value []byte) (a Address, rest []byte, ok bool) {
	value = trim(value)
	open, ok := indexOutsideQuotes(value, '<', ',')
	if !ok {
		return a, nil, false
	}
	if open < len(value) && value[open] == '<' {
		a.Display = trim(value[:open])
		length := bytes.IndexByte(value[open:], '>')
		if length < 0 {
			return a, nil, false
		}
		a.URI = trim(value[open+1 : open+length])
		value = value[open+length+1:]
	} else {
		// Without angle brackets, parameters are the header field's (section 20.10).
		end := bytes.IndexAny(value, ";,")
		if end < 0 {
			end = len(value)
		}
		a.URI = trim(value[:end])
		value = value[end:]
	}

	end, ok := indexOutsideQuotes(value, ',', ',')
	if !ok || len(a.URI) == 0 {
		return a, nil, false
	}
	a.Params = trim(value[:end])
	if len(a.Params) > 0 && a.Params[0] != ';' {
		return a, nil, false
	}
	if end < len(value) {
		rest = value[end+1:]
	}
	return a, rest, true
}

// indexOutsideQuotes finds the first byte that is x or y and not in a quoted string; len(b) if there is
// none. It fails on a string that does not end.
func indexOutsideQuotes(b []byte, x, y byte) (at int, ok bool) {
	quoted := false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case !quoted && (c == x || c == y):
			return i, true
		}
	}
	return len(b), !quoted
}

// Param is the value of a parameter in `;name=value;name`, without quotes. found is true for one without
// value, too.
func Param(params []byte, name string) (value []byte, found bool) {
	for len(params) > 0 {
		params = params[1:] // the semicolon
		end, _ := indexOutsideQuotes(params, ';', ';')
		one := params[:end]
		params = params[end:]

		equals := bytes.IndexByte(one, '=')
		if equals < 0 {
			if equalFold(trim(one), name) {
				return nil, true
			}
			continue
		}
		if equalFold(trim(one[:equals]), name) {
			return unquote(trim(one[equals+1:])), true
		}
	}
	return nil, false
}

func unquote(b []byte) []byte {
	if len(b) >= 2 && b[0] == '"' && b[len(b)-1] == '"' {
		return b[1 : len(b)-1]
	}
	return b
}

// HopVia is the topmost Via: who sent the message, and where answers go.
type HopVia struct {
	Transport []byte // UDP, TCP, TLS …
	SentBy    []byte // host, or host:port
	Params    []byte // from the first semicolon on
}

// Branch identifies the transaction (RFC 3261, section 17.2.3).
func (v HopVia) Branch() []byte {
	b, _ := Param(v.Params, "branch")
	return b
}

// Received is the address that a proxy saw the request come from. IPv6 addresses come with and without
// brackets.
func (v HopVia) Received() (netip.Addr, bool) {
	b, _ := Param(v.Params, "received")
	return host.Parse(b)
}

// ParseVia reads the first of the values of a Via.
func ParseVia(value []byte) (v HopVia, ok bool) {
	end, ok := indexOutsideQuotes(value, ',', ',')
	if !ok {
		return v, false
	}
	value = value[:end]
	for part := range 2 { // protocol name and version; white space may stand around the slashes
		slash := bytes.IndexByte(value, '/')
		if slash < 0 {
			return v, false
		}
		if one := trim(value[:slash]); part == 0 && !equalFold(one, "SIP") || part == 1 && string(one) != "2.0" {
			return v, false
		}
		value = trim(value[slash+1:])
	}
	blank := 0
	for blank < len(value) && !isSpace(value[blank]) {
		blank++
	}
	v.Transport, value = value[:blank], trim(value[blank:])

	semicolon := bytes.IndexByte(value, ';')
	if semicolon < 0 {
		semicolon = len(value)
	}
	v.SentBy, v.Params = trim(value[:semicolon]), trim(value[semicolon:])
	return v, len(v.Transport) > 0 && len(v.SentBy) > 0
}

// URI is a SIP, SIPS, TEL or URN URI in its parts (RFC 3261, section 19.1; RFC 3966; RFC 5031).
type URI struct {
	Scheme []byte
	User   []byte // of tel and urn: everything up to the parameters
	Host   []byte // IPv6 with its brackets
	Port   uint16 // 0: none
	Params []byte // from the first semicolon on
}

// ParseURI reads a URI.
func ParseURI(b []byte) (u URI, ok bool) {
	colon := bytes.IndexByte(b, ':')
	if colon < 1 {
		return u, false
	}
	u.Scheme, b = b[:colon], b[colon+1:]
	if !equalFold(u.Scheme, "sip") && !equalFold(u.Scheme, "sips") {
		u.User, u.Params = cutParams(b)
		return u, len(u.User) > 0
	}

	// A user part may hold semicolons and question marks, so the at sign comes first.
	if at := bytes.IndexByte(b, '@'); at >= 0 {
		u.User, b = b[:at], b[at+1:]
		if password := bytes.IndexByte(u.User, ':'); password >= 0 {
			u.User = u.User[:password]
		}
	}
	if question := bytes.IndexByte(b, '?'); question >= 0 {
		b = b[:question]
	}
	b, u.Params = cutParams(b)
	u.Host, u.Port, ok = splitHostPort(b)
	return u, ok
}

func cutParams(b []byte) (before, params []byte) {
	if semicolon := bytes.IndexByte(b, ';'); semicolon >= 0 {
		return b[:semicolon], b[semicolon:]
	}
	return b, nil
}

func splitHostPort(b []byte) (host []byte, port uint16, ok bool) {
	b = trim(b)
	host = b
	after := 0
	if len(b) > 0 && b[0] == '[' {
		if after = bytes.IndexByte(b, ']'); after < 0 {
			return nil, 0, false
		}
	}
	if colon := bytes.IndexByte(b[after:], ':'); colon >= 0 {
		host = trim(b[:after+colon])
		n, ok := number(trim(b[after+colon+1:]))
		if !ok || n == 0 || n > 65535 {
			return nil, 0, false
		}
		port = uint16(n)
	}
	return host, port, len(host) > 0
}

// Seconds reads the number at the start of Expires, Session-Expires or Retry-After.
func Seconds(value []byte) (n uint64, ok bool) {
	i := 0
	for i < len(value) && value[i] >= '0' && value[i] <= '9' {
		i++
	}
	return number(value[:i])
}

func splitCSeq(value []byte) (n uint32, method []byte, ok bool) {
	i := 0
	for i < len(value) && !isSpace(value[i]) {
		i++
	}
	v, ok := number(value[:i])
	method = trim(value[i:])
	return uint32(v), method, ok && v < 1<<31 && isToken(method) // section 8.1.1.5
}

// number reads decimal digits, up to 2^32-1: what is larger has no meaning in SIP (RFC 3261, section 20).
func number(b []byte) (n uint64, ok bool) {
	if len(b) == 0 || len(b) > 20 {
		return 0, false
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		if n = n*10 + uint64(c-'0'); n >= 1<<32 {
			return 0, false
		}
	}
	return n, true
}

// isSpace holds for the white space of SIP's grammar; CR and LF are there where a line is folded.
func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }

func trim(b []byte) []byte {
	for len(b) > 0 && isSpace(b[0]) {
		b = b[1:]
	}
	for len(b) > 0 && isSpace(b[len(b)-1]) {
		b = b[:len(b)-1]
	}
	return b
}

// equalFold compares with a name in ASCII, in either case.
func equalFold(b []byte, name string) bool {
	if len(b) != len(name) {
		return false
	}
	for i, c := range b {
		if c != name[i] && lower(c) != lower(name[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// isToken holds for one or more characters of a token (RFC 3261, section 25.1).
func isToken(b []byte) bool {
	for _, c := range b {
		if !tokenBytes[c] {
			return false
		}
	}
	return len(b) > 0
}

var tokenBytes = func() (t [256]bool) {
	for c := range 256 {
		t[c] = c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
	}
	for _, c := range []byte("-.!%*_+`'~") {
		t[c] = true
	}
	return t
}()
