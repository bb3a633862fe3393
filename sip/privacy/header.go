package privacy

import (
	"bytes"
	"strings"

	"ringway/sip/message"
)

// treatment is what happens to the value of a header field.
type treatment uint8

const (
	blanked   treatment = iota // what is not listed
	verbatim                   // protocol: nothing of a person, and no secret
	prose                      // text for people
	addresses                  // names, numbers and URIs
	scheme                     // credentials and challenges
	media                      // a media type
)

// longestName is the longest name in treatments.
const longestName = 40

// treatments are the header fields that are kept in some form, by their names in lower case, compact forms
// included (RFC 3261, section 7.3.3, and the RFC of each).
var treatments = map[string]treatment{
	// What a ladder is read by.
	"via": verbatim, "v": verbatim, "call-id": verbatim, "i": verbatim, "cseq": verbatim,
	"max-forwards": verbatim, "content-encoding": verbatim, "e": verbatim, "content-disposition": verbatim,
	"mime-version": verbatim, "expires": verbatim, "min-expires": verbatim, "session-expires": verbatim,
	"x": verbatim, "min-se": verbatim, "require": verbatim, "proxy-require": verbatim, "supported": verbatim,
	"k": verbatim, "unsupported": verbatim, "allow": verbatim, "allow-events": verbatim, "u": verbatim,
	"accept": verbatim, "accept-encoding": verbatim, "accept-language": verbatim, "event": verbatim, "o": verbatim,
	"subscription-state": verbatim, "rack": verbatim, "rseq": verbatim, "retry-after": verbatim, "date": verbatim,
	"timestamp": verbatim, "replaces": verbatim, "join": verbatim, "target-dialog": verbatim,
	"user-agent": verbatim, "server": verbatim, "priority": verbatim, "privacy": verbatim,
	"p-early-media": verbatim, "recv-info": verbatim, "info-package": verbatim, "refer-sub": verbatim,
	"resource-priority": verbatim, "answer-mode": verbatim, "flow-timer": verbatim, "max-breadth": verbatim,

	"reason": prose, "warning": prose,

	"from": addresses, "f": addresses, "to": addresses, "t": addresses, "contact": addresses, "m": addresses,
	"route": addresses, "record-route": addresses, "path": addresses, "service-route": addresses,
	"reply-to": addresses, "refer-to": addresses, "r": addresses, "referred-by": addresses, "b": addresses,
	"diversion": addresses, "cc-diversion": addresses, "history-info": addresses,
	"remote-party-id": addresses, "p-asserted-identity": addresses, "p-preferred-identity": addresses,
	"p-called-party-id": addresses, "p-associated-uri": addresses, "p-served-user": addresses,
	"p-profile-key": addresses, "alert-info": addresses, "call-info": addresses, "error-info": addresses,

	"authorization": scheme, "proxy-authorization": scheme, "www-authenticate": scheme,
	"proxy-authenticate": scheme,

	"content-type": media, "c": media,
}

// lowered is a name in lower case, on the stack. It is empty for one that is longer than any that is listed.
type lowered struct {
	b [longestName]byte
	n int
}

func lower(name []byte) (l lowered) {
	if len(name) > longestName {
		return l
	}
	for i, c := range name {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		l.b[i] = c
	}
	l.n = len(name)
	return l
}

func (l *lowered) bytes() []byte { return l.b[:l.n] }

func treatmentOf(name []byte) treatment {
	l := lower(name)
	return treatments[string(l.bytes())]
}

// keptParams are the parameters of addresses and URIs whose values are kept. All others are kept by name, and
// their values blanked: some are secrets, as the tokens of push services (pn-prid, RFC 8599) are.
var keptParams = map[string]bool{
	"tag": true, "transport": true, "lr": true, "maddr": true, "ttl": true, "user": true, "method": true,
	"ob": true, "gr": true, "comp": true, "expires": true, "q": true, "reg-id": true,
	"received": true, "rport": true, "alias": true, "r2": true, "ftag": true, "nat": true,
	"party": true, "screen": true, "privacy": true, "id-type": true, "reason": true, "counter": true,
	"limit": true, "index": true, "cause": true, "rc": true, "mp": true, "np": true, "purpose": true,
	"audio": true, "video": true, "text": true, "automata": true, "isfocus": true, "methods": true,
	"events": true, "mobility": true, "sescase": true, "regstate": true, "npdi": true, "verstat": true,
	"cpc": true, "oli": true, "noa": true,
}

// appendAddresses writes a list of addresses (RFC 3261, section 20.10).
func (r *Redactor) appendAddresses(b, value []byte) []byte {
	if string(value) == "*" { // Contact, to take all registrations back
		return append(b, '*')
	}
	for n := 0; len(trim(value)) > 0; n++ {
		a, rest, ok := message.NextAddress(value)
		if n > 0 {
			b = append(b, ", "...)
		}
		if !ok {
			return append(appendNowhere(append(b, '<'), "sip"), '>')
		}
		b = r.appendDisplay(b, a.Display)
		b = append(b, '<')
		b = r.appendURI(b, a.URI)
		b = append(b, '>')
		b = r.appendParams(b, a.Params)
		value = rest
	}
	return b
}

// appendDisplay writes a display name. Beside a masked number it would still name the person.
func (r *Redactor) appendDisplay(b, display []byte) []byte {
	switch {
	case len(display) == 0:
		return b
	case r.Policy == Show:
		return append(appendUnfolded(b, display), ' ')
	default:
		return append(b, `"[blanked]" `...)
	}
}

// appendParams writes `;name=value;name`. What is not of that form ends the list.
func (r *Redactor) appendParams(b, params []byte) []byte {
	for len(params) > 0 && params[0] == ';' {
		params = params[1:]
		end := indexUnquoted(params, ';')
		one := params[:end]
		params = params[end:]

		name, value, has := bytes.Cut(one, []byte("="))
		if name = trim(name); !isName(name) {
			continue
		}
		b = append(append(b, ';'), name...)
		if !has {
			continue
		}
		b = append(b, '=')
		l := lower(name)
		switch value = trim(value); {
		case keptParams[string(l.bytes())] && isValue(value, "\"\\<>@\r\n"):
			b = append(b, value...)
		case equalFold(name, "+sip.instance") && isValue(value, "\"\\@\r\n"):
			b = append(b, value...) // its value is in angle brackets (RFC 5626, section 4.1)
		case equalFold(name, "phone-context") && len(value) > 0 && value[0] == '+': // RFC 3966, section 5.1.5
			b = r.appendUser(b, value)
		default:
			b = append(b, "blanked"...)
		}
	}
	return b
}

// isName holds for names of parameters.
func isName(b []byte) bool {
	for _, c := range b {
		if !isLetter(c) && !isDigit(c) && strings.IndexByte("-.+_*!", c) < 0 {
			return false
		}
	}
	return len(b) > 0 && len(b) <= longestName
}

// isValue holds for a token or a whole quoted string without some characters.
func isValue(b []byte, without string) bool {
	if len(b) >= 2 && b[0] == '"' && b[len(b)-1] == '"' {
		b = b[1 : len(b)-1]
	}
	return !bytes.ContainsAny(b, without)
}

// indexUnquoted finds a byte that is in no quoted string; len(b) if there is none.
func indexUnquoted(b []byte, x byte) int {
	quoted := false
	for i := 0; i < len(b); i++ {
		switch c := b[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case !quoted && c == x:
			return i
		}
	}
	return len(b)
}

func trim(b []byte) []byte {
	for len(b) > 0 && isSpace(b[0]) {
		b = b[1:]
	}
	for len(b) > 0 && isSpace(b[len(b)-1]) {
		b = b[:len(b)-1]
	}
	return b
}
