// Package emergency recognises calls to an emergency service, and calls back from one. Such a call is admitted
// where others are refused, so what it looks for is what a phone dialled, before any rule of this box or of
// a dial plan is applied: a rule that takes the 9 off 9* must not make 11 of 911.
//
// A false alarm costs little, a call that is missed may cost a life: what might be one is taken for one.
package emergency

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"ringway/sip/message"
)

// Defaults are the emergency numbers that are known without being configured: of Europe, North America and
// its test line, the United Kingdom and many more, Australia, and Germany's police.
var Defaults = []string{"110", "112", "911", "933", "999", "000"}

// Bounds of ours.
const (
	minDigits, maxDigits = 2, 15 // E.164 has at most 15
	maxPrefix            = 8     // digits
	maxNumbers           = 64
	maxPrefixes          = 16
)

// Set are the emergency numbers of a place and what is dialled before them.
type Set struct {
	numbers  map[string]bool
	prefixes []string
}

// New makes a Set. numbers are digits, with a plus sign before them if they are international; without any,
// Defaults. prefixes are what a PBX wants dialled to reach the outside (0, 9) or to hide the caller's number
// (*31#), and country codes (+49) that it puts before what was dialled. The error names all that is wrong.
func New(numbers, prefixes []string) (*Set, error) {
	if len(numbers) == 0 {
		numbers = Defaults
	}
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }

	s := &Set{numbers: map[string]bool{}}
	if len(numbers) > maxNumbers || len(prefixes) > maxPrefixes {
		fault("%d emergency numbers and %d prefixes (allowed: up to %d and %d)",
			len(numbers), len(prefixes), maxNumbers, maxPrefixes)
	}
	for _, n := range numbers {
		digits := strings.TrimPrefix(n, "+")
		if len(digits) < minDigits || len(digits) > maxDigits || !consists(digits, "0123456789") {
			fault("emergency number %q cannot be dialled (allowed: %d to %d digits, with a + before them if it is"+
				" international)", n, minDigits, maxDigits)
			continue
		}
		s.numbers[digits] = true
	}
	for _, p := range prefixes {
		digits := strings.TrimPrefix(p, "+")
		if digits == "" || len(digits) > maxPrefix || !consists(digits, "0123456789*#") {
			fault("prefix %q of emergency numbers cannot be dialled (allowed: 1 to %d of 0-9, * and #, with a +"+
				" before them if it is a country code)", p, maxPrefix)
			continue
		}
		s.prefixes = append(s.prefixes, p)
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	return s, nil
}

func consists(s, of string) bool { return strings.Trim(s, of) == "" }

// Sign is what shows that a call is an emergency call.
type Sign uint8

// Signs, the most reliable one first. What is excepted from a limit on fraud should have the first: the To
// means nothing to whoever routes the call, and anybody may write a Priority.
const (
	None     Sign = iota
	Dialled       // the Request-URI
	To            // the To alone: something on the way has changed the Request-URI
	Callback      // Priority: psap-callback (RFC 7090)
)

func (s Sign) String() string { return [...]string{"none", "dialled", "to", "callback"}[s] }

// Call reports whether m is an INVITE of an emergency call, or of a call back from an emergency service.
func (s *Set) Call(m *message.Message) bool { return s.Sign(m) != None }

// Sign is what shows that m is an INVITE of an emergency call.
func (s *Set) Sign(m *message.Message) Sign {
	if !m.Request || m.Method != message.INVITE {
		return None
	}
	if s.URI(m.URI()) {
		return Dialled
	}
	if to, ok := message.ParseAddress(m.Header(message.To)); ok && s.URI(to.URI) {
		return To
	}
	for _, h := range m.Headers() {
		if h.Kind == message.Priority && bytes.EqualFold(m.Bytes(h.Value), []byte("psap-callback")) {
			return Callback
		}
	}
	return None
}

// URI reports whether a SIP, SIPS, tel or service URI is that of an emergency service. Those of RFC 5031 are
// for every place: urn:service:sos, and services below it as urn:service:sos.police.
func (s *Set) URI(b []byte) bool {
	u, _ := message.ParseURI(b) // of a URI that is wrong in its host, the user part is good enough
	switch scheme := string(bytes.ToLower(u.Scheme)); scheme {
	case "urn":
		return isService(unescape(u.User))
	case "tel":
		return s.number(unescape(u.User))
	case "sip", "sips":
		if len(u.User) == 0 { // sip:112
			return consists(string(u.Host), "0123456789") && s.number(u.Host)
		}
		user := unescape(u.User)
		if name, isURN := bytes.CutPrefix(bytes.ToLower(user), []byte("urn:")); isURN {
			return isService(name)
		}
		return s.number(user)
	}
	return false
}

// isService takes what follows `urn:`. RFC 5031, section 3: the labels are compared without regard to case.
func isService(name []byte) bool {
	label, ok := strings.CutPrefix(strings.ToLower(string(name)), "service:sos")
	return ok && (label == "" || label[0] == '.')
}

// number looks at a number as it was dialled: first as it is, then without one of the prefixes. Its
// parameters, as phone-context and isub, are of no interest: where the number is local to tells who answers.
func (s *Set) number(user []byte) bool {
	user, _, _ = bytes.Cut(user, []byte(";"))
	dialled := string(bytes.Map(func(r rune) rune {
		if strings.ContainsRune("-.() ", r) { // RFC 3966, section 5.1.1, and people
			return -1
		}
		return r
	}, user))
	if s.numbers[strings.TrimPrefix(dialled, "+")] { // no subscriber has a number that short
		return true
	}
	for _, p := range s.prefixes {
		if rest, ok := strings.CutPrefix(dialled, p); ok && s.numbers[rest] {
			return true
		}
	}
	return false
}

// unescape replaces %31 by 1 (RFC 3261, section 19.1.2). What is no escape stays.
func unescape(b []byte) []byte {
	if !bytes.Contains(b, []byte("%")) {
		return b
	}
	out := make([]byte, 0, len(b))
	for i := 0; i < len(b); i++ {
		if b[i] == '%' && i+2 < len(b) {
			high, low := hexDigit(b[i+1]), hexDigit(b[i+2])
			if high >= 0 && low >= 0 {
				out = append(out, byte(high<<4|low))
				i += 2
				continue
			}
		}
		out = append(out, b[i])
	}
	return out
}

func hexDigit(c byte) int {
	switch {
	case c >= '0' && c <= '9':
		return int(c - '0')
	case c >= 'a' && c <= 'f':
		return int(c-'a') + 10
	case c >= 'A' && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}
