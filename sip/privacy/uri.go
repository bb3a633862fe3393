package privacy

import (
	"bytes"
	"strings"
)

// appendNowhere writes a URI in place of one that cannot be read. The host is one that never exists (RFC 2606).
func appendNowhere(b []byte, scheme string) []byte {
	return append(append(b, scheme...), ":blanked@blanked.invalid"...)
}

// appendURI writes a URI without its password, without the header fields in it, which may be credentials
// (RFC 3261, section 19.1.1), and with its user as the policy wants it. A URI that two readers may cut at
// different places is replaced as a whole.
func (r *Redactor) appendURI(b, uri []byte) []byte {
	colon := bytes.IndexByte(uri, ':')
	if colon < 1 {
		return appendNowhere(b, "sip")
	}
	name, rest := uri[:colon], uri[colon+1:]
	switch {
	case equalFold(name, "sip"):
		return r.appendSIP(b, "sip", rest)
	case equalFold(name, "sips"):
		return r.appendSIP(b, "sips", rest)
	case equalFold(name, "tel"):
		return r.appendTel(b, rest)
	case equalFold(name, "urn") && isPlain(rest, ":.-_;="): // services, alerts and device names
		return append(append(b, "urn:"...), rest...)
	case isPlain(name, "+-.") && len(name) <= longestName:
		return append(append(b, name...), ":blanked"...)
	default:
		return appendNowhere(b, "sip")
	}
}

// appendSIP writes what follows `sip:`, user:password@host:port;params?headers.
func (r *Redactor) appendSIP(b []byte, scheme string, rest []byte) []byte {
	user, host := []byte(nil), rest
	at := bytes.IndexByte(rest, '@')
	if at >= 0 {
		user, host = rest[:at], rest[at+1:]
	}
	var params []byte
	headers := false
	if i := bytes.IndexByte(host, '?'); i >= 0 {
		host, headers = host[:i], true
	}
	if i := bytes.IndexByte(host, ';'); i >= 0 {
		host, params = host[:i], host[i:]
	}
	// An at sign in a password or in header fields would put a part of either into user or host.
	if !isPlain(host, "-.:[]_") || len(host) == 0 || bytes.ContainsAny(user, "?<> \t\r\n") {
		return appendNowhere(b, scheme)
	}

	b = append(append(b, scheme...), ':')
	if at < 0 && !bytes.ContainsAny(host, ".:[") { // `sip:0301234567`: a number, more likely than a host
		return r.appendParams(r.appendUser(b, host), params)
	}
	if at >= 0 {
		name, _, password := bytes.Cut(user, []byte(":"))
		b = r.appendUser(b, name)
		if password {
			b = append(b, ":blanked"...)
		}
		b = append(b, '@')
	}
	b = append(b, host...)
	b = r.appendParams(b, params)
	if headers {
		b = append(b, "?blanked=yes"...)
	}
	return b
}

// appendTel writes what follows `tel:` (RFC 3966).
func (r *Redactor) appendTel(b, rest []byte) []byte {
	number, params := rest, []byte(nil)
	if i := bytes.IndexByte(rest, ';'); i >= 0 {
		number, params = rest[:i], rest[i:]
	}
	if !isPlain(number, "+-.()*#") {
		return append(b, "tel:blanked"...)
	}
	b = append(b, "tel:"...)
	b = r.appendUser(b, number)
	return r.appendParams(b, params)
}

// isPlain holds if b is letters, digits and some other characters.
func isPlain(b []byte, others string) bool {
	for _, c := range b {
		if !isLetter(c) && !isDigit(c) && strings.IndexByte(others, c) < 0 {
			return false
		}
	}
	return true
}

// What replaces the end of a number.
const (
	maskText = "xxx"
	masked   = len(maskText)
)

// Number is a number, or the name of a user, as a policy shows it: `+49301234567` is `+49301234xxx`.
func Number(p Policy, number string) string {
	r := Redactor{Policy: p}
	return string(r.appendUser(nil, []byte(number)))
}

// appendUser writes the user part of a URI. Masked, it loses its last three letters or digits, so that a short
// number loses all. What follows a semicolon (RFC 3261, section 19.1.6) is treated as parameters.
func (r *Redactor) appendUser(b, user []byte) []byte {
	if r.Policy == Show {
		return appendUnfolded(b, user)
	}
	var params []byte
	if i := bytes.IndexByte(user, ';'); i >= 0 {
		user, params = user[:i], user[i:]
	}
	start := len(b)
	b = appendDecoded(b, user)
	left := masked
	for i := len(b) - 1; i >= start && left > 0; i-- {
		switch c := b[i]; {
		case i >= start+2 && b[i-2] == '%':
			i -= 2 // an escaped character
		case c >= 0x80 && c < 0xc0: // within a character of UTF-8
			b[i] = maskText[0]
		case isLetter(c), isDigit(c), c >= 0xc0:
			b[i] = maskText[0]
			left--
		}
	}
	return r.appendParams(b, params)
}

// appendDecoded writes letters and digits plainly that were escaped (`%31` is 1): masked as they came, a part
// of each would stay.
func appendDecoded(b, user []byte) []byte {
	for i := 0; i < len(user); i++ {
		if user[i] == '%' && i+2 < len(user) {
			high, low := hex(user[i+1]), hex(user[i+2])
			if c := byte(high<<4 | low); high >= 0 && low >= 0 && (isLetter(c) || isDigit(c)) {
				b = append(b, c)
				i += 2
				continue
			}
		}
		if !isSpace(user[i]) {
			b = append(b, user[i])
		}
	}
	return b
}

// hex is the value of a hexadecimal digit; -1: it is another character.
func hex(c byte) int {
	switch {
	case isDigit(c):
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
