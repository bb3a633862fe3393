package abuse

import (
	"slices"
	"strings"
)

// maxDigits is the longest number (ITU-T E.164, section 6).
const maxDigits = 15

// Numbers says how numbers are dialled here.
type Numbers struct {
	Country       string   // own country code, as 49; empty: every international number is foreign
	International []string // prefixes of international numbers beside the plus sign, as 00
	Line          string   // what is dialled before an outside number; empty: nothing
	Internal      int      // without Line: numbers of so many digits at most are extensions
}

func (n *Numbers) validate(p *problems) {
	known := isDigits(n.Country) && countryCode(n.Country+"00") == n.Country
	p.check(n.Country == "" || known, "country", n.Country, "a country code, as 49")
	for _, prefix := range n.International {
		p.check(isDigits(prefix) && len(prefix) <= 6, "international", prefix, "1-6 digits")
	}
	p.check(n.Line == "" || isDigits(n.Line) && len(n.Line) <= 3, "line", n.Line, "0-3 digits")
	p.check(n.Internal >= 0 && n.Internal <= maxDigits, "internal", n.Internal, "0-15")
}

// reach is how far a call goes.
type reach uint8

const (
	internal reach = iota // an extension, a name, a service of the PBX
	national
	foreign
)

// number is a dialled number.
type number struct {
	reach
	// digits are those after all prefixes: with the country code if international, or if own country has it.
	digits string
	prefix string // country code of a foreign number; in North America with the area code of another country
}

// read reads the user part of a URI, or the number of a tel URI.
func (n *Numbers) read(user []byte) number {
	digits, plus, ok := bareDigits(user)
	if !ok || digits == "" {
		return number{}
	}
	if plus {
		return n.international(digits)
	}
	if n.Line != "" {
		rest, outside := strings.CutPrefix(digits, n.Line)
		if !outside || rest == "" {
			return number{}
		}
		digits = rest
	}
	for _, prefix := range n.International {
		if rest, has := strings.CutPrefix(digits, prefix); has && rest != "" {
			return n.international(rest)
		}
	}
	if n.Line == "" && len(digits) <= n.Internal {
		return number{}
	}
	return n.national(digits)
}

func (n *Numbers) international(digits string) number {
	code := countryCode(digits)
	if code == n.Country && code != "" {
		return n.national(digits[len(code):])
	}
	if code == "1" && len(digits) >= 4 && slices.Contains(otherNANP, digits[1:4]) {
		code = digits[:4]
	}
	return number{foreign, digits, code}
}

// national takes a number of the own country, with or without its national prefix.
func (n *Numbers) national(digits string) number {
	if n.Country == "1" {
		if len(digits) == 11 && digits[0] == '1' {
			digits = digits[1:]
		}
		if len(digits) == 10 && slices.Contains(otherNANP, digits[:3]) {
			return number{foreign, "1" + digits, "1" + digits[:3]}
		}
	} else {
		digits = strings.TrimPrefix(digits, "0")
	}
	return number{national, n.Country + digits, ""}
}

// bareDigits are the digits of a number without separators (RFC 3966, section 5.1.1) and parameters. ok is
// false for anything else than a number.
func bareDigits(user []byte) (digits string, plus, ok bool) {
	var b [maxDigits + 10]byte // with prefixes
	n := 0
	for i, c := range user {
		switch {
		case c >= '0' && c <= '9':
			if n == len(b) {
				return "", false, false
			}
			b[n] = c
			n++
		case c == '+' && i == 0:
			plus = true
		case c == '-' || c == '.' || c == '(' || c == ')' || c == ' ':
		case c == ';':
			return string(b[:n]), plus, true
		default:
			return "", false, false
		}
	}
	return string(b[:n]), plus, true
}

func isDigits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// countryCode cuts the country code off a number (ITU-T E.164, annex D): 1 and 7, the codes of two digits that
// are listed, else three digits.
func countryCode(digits string) string {
	const two = " 20 27 30 31 32 33 34 36 39 40 41 43 44 45 46 47 48 49 51 52 53 54 55 56 57 58 60 61 62 63 64 65 66 " +
		"81 82 84 86 90 91 92 93 94 95 98 "
	switch {
	case digits == "":
		return ""
	case digits[0] == '1' || digits[0] == '7':
		return digits[:1]
	case len(digits) >= 2 && strings.Contains(two, " "+digits[:2]+" "):
		return digits[:2]
	default:
		return digits[:min(3, len(digits))]
	}
}

// otherNANP are the area codes of the North American plan that belong neither to the United States with their
// territories nor to Canada. They are dialled like a long-distance call, and are a common aim of toll fraud.
var otherNANP = []string{"242", "246", "264", "268", "284", "345", "441", "473", "649", "658", "664", "721", "758",
	"767", "784", "809", "829", "849", "868", "869", "876"}
