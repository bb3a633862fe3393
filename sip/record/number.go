package record

import (
	"strings"

	"ringway/sip/privacy"
)

// match is how surely a record is one of a number.
type match uint8

const (
	no     match = iota
	unsure       // the record is masked: its number may be this one
	yes
)

// minSuffix is how many digits one number has at least to be the end of another, as 30 1234567 is of
// +49 30 1234567: extensions are shorter.
const minSuffix = 7

// same compares the number of a record with one that is asked for. Numbers are the same in every form: with
// country code, with the national prefix, or without.
func same(recorded, asked string) match {
	if recorded == "" || asked == "" {
		return no
	}
	r, q, sure := canonical(recorded), canonical(asked), yes
	if strings.HasSuffix(r, hidden) && !strings.HasSuffix(q, hidden) {
		q, sure = canonical(privacy.Number(privacy.Mask, q)), unsure
	}
	long := isNumber(r) && isNumber(q) && min(len(r), len(q)) >= minSuffix
	if r == q || long && (strings.HasSuffix(r, q) || strings.HasSuffix(q, r)) {
		return sure
	}
	return no
}

// hidden is what masking puts in place of the last digits.
const hidden = "xxx"

// canonical is a number without separators, and without the prefix of international or national calls. A name
// is only put into lower case.
func canonical(number string) string {
	bare := strings.NewReplacer(" ", "", "-", "", ".", "", "(", "", ")", "", "/", "").Replace(number)
	for _, prefix := range []string{"+", "00", "0"} {
		if rest, has := strings.CutPrefix(bare, prefix); has {
			if isNumber(rest) {
				return rest
			}
			break
		}
	}
	if isNumber(bare) {
		return bare
	}
	return strings.ToLower(number)
}

// isNumber holds for digits, of which the last may be masked.
func isNumber(text string) bool {
	return text != "" && strings.Trim(strings.TrimSuffix(text, hidden), "0123456789") == ""
}
