// Package privacy makes a SIP message safe to keep: for the ladder in memory, the journal, call records and a
// Homer server. Only a Redactor makes a Text, and whatever keeps messages takes nothing else, so that no raw
// message is kept by mistake.
//
// What is kept is listed, and what is not listed is blanked: a header field, a parameter or a line of a session
// description that nobody knows may carry a secret. Keys, passwords, credentials and all bodies other than
// session descriptions are blanked under every Policy; the Policy decides about numbers and names alone.
//
// The result is a SIP message again. What was blanked is marked, `[blanked 32 bytes]`, and Content-Length fits.
package privacy

import (
	"bytes"
	"cmp"
	"fmt"
	"strconv"

	"ringway/sip/message"
)

// Policy says what is shown of numbers and names. The zero value is the one that shows least.
type Policy uint8

// Policies.
const (
	Mask Policy = iota // the last three digits of numbers are hidden, and display names
	Show
)

var policyNames = [...]string{"mask", "show"}

func (p Policy) String() string { return policyNames[p] }

// ParsePolicy reads the value of `calls.privacy`.
func ParsePolicy(text string) (Policy, error) {
	for i, name := range policyNames {
		if text == name {
			return Policy(i), nil
		}
	}
	return Mask, fmt.Errorf("%q is not a privacy policy (allowed mask, show)", text)
}

// Text is a message, or what is left of one, that may be kept. It is valid until the Redactor that made it
// makes the next one. The zero value is empty.
type Text struct{ b []byte }

// Bytes are the text. The caller does not change them.
func (t Text) Bytes() []byte { return t.b }

// Clone is a Text that stays valid.
func (t Text) Clone() Text { return Text{bytes.Clone(t.b)} }

// Len is the length in bytes, message.MaxSize at most.
func (t Text) Len() int { return len(t.b) }

func (t Text) String() string { return string(t.b) }

// Redactor makes messages safe to keep. It is not for several goroutines at once.
type Redactor struct {
	Policy Policy

	head, body []byte // reused from message to message
}

// Redact is what may be kept of m. why is what m.Scan returned. Of a message that was refused, nothing but
// its length and the reason are kept: where its parts begin depends on who reads it. Of one that passed unread
// for another reason, what the scanner did read is kept.
func (r *Redactor) Redact(m *message.Message, why message.Reason) Text {
	if why == message.KeepAlive || why.Verdict() == message.Refused || !m.Request && m.Status == 0 {
		return r.placeholder(len(m.Raw), why.Name())
	}
	r.body = r.body[:0]
	var contentType []byte
	if why != message.HeadersUnended { // then there is none
		r.body, contentType = r.appendBody(r.body, m)
	}
	if r.appendHead(m, contentType, len(r.body)); len(r.head)+len(r.body) <= message.MaxSize {
		r.head = append(r.head, r.body...)
		return Text{r.head}
	}

	// Marks can be longer than what they replace.
	r.body = appendBlanked(r.body[:0], len(m.Body))
	if r.appendHead(m, contentType, len(r.body)); len(r.head)+len(r.body) <= message.MaxSize {
		r.head = append(r.head, r.body...)
		return Text{r.head}
	}
	return r.placeholder(len(m.Raw), "too long to keep")
}

func (r *Redactor) placeholder(size int, why string) Text {
	r.head = fmt.Appendf(r.head[:0], "[%s, blanked %d bytes]", cmp.Or(why, "not read"), size)
	return Text{r.head}
}

// appendHead writes the start line and the header fields into r.head, with the Content-Length of a body of
// size bytes.
func (r *Redactor) appendHead(m *message.Message, contentType []byte, size int) {
	b := r.head[:0]
	if m.Request {
		b = append(append(b, m.MethodName()...), ' ')
		b = r.appendURI(b, m.URI())
		b = append(b, " SIP/2.0\r\n"...)
	} else {
		b = append(b, "SIP/2.0 "...)
		b = strconv.AppendInt(b, int64(m.Status), 10)
		b = append(b, ' ')
		b = append(r.appendProse(b, m.ReasonPhrase()), "\r\n"...)
	}

	for _, h := range m.Headers() {
		if h.Kind == message.ContentLength {
			continue
		}
		name, value := m.Bytes(h.Name), m.Bytes(h.Value)
		b = append(append(b, name...), ':')
		start := len(b)
		b = append(b, ' ')
		switch treatmentOf(name) {
		case verbatim:
			b = appendUnfolded(b, value)
		case prose:
			b = r.appendProse(b, value)
		case addresses:
			b = r.appendAddresses(b, value)
		case scheme:
			b = appendScheme(b, value)
		case media:
			b = append(b, mediaType(value)...)
			if bytes.Equal(value, m.Header(message.ContentType)) {
				b = append(b, contentType...)
			}
		default:
			b = appendBlanked(b, len(value))
		}
		if len(b) == start+1 {
			b = b[:start] // an empty value
		}
		b = append(b, "\r\n"...)
	}

	if m.Has(message.ContentLength) || size > 0 {
		b = append(b, "Content-Length: "...)
		b = append(strconv.AppendInt(b, int64(size), 10), "\r\n"...)
	}
	r.head = append(b, "\r\n"...)
}

// appendBlanked marks what was there: so many bytes.
func appendBlanked(b []byte, size int) []byte {
	if size == 0 {
		return b
	}
	b = append(b, "[blanked "...)
	b = strconv.AppendInt(b, int64(size), 10)
	return append(b, " bytes]"...)
}

// appendUnfolded writes a value on one line (RFC 3261, section 7.3.1).
func appendUnfolded(b, value []byte) []byte {
	if bytes.IndexByte(value, '\n') < 0 && bytes.IndexByte(value, '\r') < 0 {
		return append(b, value...)
	}
	for i := 0; i < len(value); i++ {
		if value[i] != '\r' && value[i] != '\n' {
			b = append(b, value[i])
			continue
		}
		for i+1 < len(value) && isSpace(value[i+1]) {
			i++
		}
		b = append(b, ' ')
	}
	return b
}

// appendProse writes text for people, such as a reason phrase. Numbers in it are masked.
func (r *Redactor) appendProse(b, text []byte) []byte {
	start := len(b)
	b = appendUnfolded(b, text)
	if r.Policy == Show {
		return b
	}
	for i := start; i < len(b); i++ {
		from := i
		for i < len(b) && isDigit(b[i]) {
			i++
		}
		if i-from >= minNumber {
			copy(b[i-masked:i], maskText)
		}
	}
	return b
}

// minNumber is how many digits in a row may be a number: fewer are codes, as 404 in a text.
const minNumber = 5

// appendScheme keeps the name of an authentication scheme and blanks the rest: nonce and response are what a
// password is guessed from offline.
func appendScheme(b, value []byte) []byte {
	end := 0
	for end < len(value) && !isSpace(value[end]) {
		end++
	}
	word := value[:end]
	for _, known := range [...]string{"Digest", "Basic", "Bearer"} {
		if equalFold(word, known) {
			b = append(append(b, known...), ' ')
			return appendBlanked(b, len(value)-len(word))
		}
	}
	return appendBlanked(b, len(value))
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\r' || c == '\n' }
func isDigit(c byte) bool { return c >= '0' && c <= '9' }

func isLetter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }

func equalFold(b []byte, name string) bool { return len(b) == len(name) && hasPrefixFold(b, name) }

// hasPrefixFold compares the beginning in ASCII, in either case.
func hasPrefixFold(b []byte, prefix string) bool {
	if len(b) < len(prefix) {
		return false
	}
	for i := range len(prefix) {
		if c := b[i]; c != prefix[i] && (!isLetter(c) || c|0x20 != prefix[i]|0x20) {
			return false
		}
	}
	return true
}
