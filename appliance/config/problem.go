package config

import (
	"cmp"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// String prints the problem the way compilers do, so that editors can jump to it.
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	if p.Key != "" {
		b.WriteString(": " + p.Key)
	}
	return b.String() + ": " + p.Message
}

// Error makes a single problem an error too.
func (p Problem) Error() string { return p.String() }

// Problems is everything wrong with a file, in the order of its lines. It is the error of Load and Parse.
type Problems []Problem

// Error prints one problem a line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// maxProblems bounds a report: a file of another kind must not print a megabyte.
const maxProblems = 500

func sorted(ps []Problem) []Problem {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Key, b.Key), cmp.Compare(a.Message, b.Message))
	})
	ps = slices.Compact(ps)
	if n := len(ps); n > maxProblems {
		ps = append(
			ps[:maxProblems:maxProblems],
			Problem{File: ps[0].File, Message: fmt.Sprintf("and %d more problems", n-maxProblems)},
		)
	}
	return ps
}

// keyLike finds what may be a private or preshared key that was pasted in the wrong place.
var keyLike = regexp.MustCompile(`[A-Za-z0-9+/]{42,}=?`)

// show quotes a value from the file for a message: short, printable, and never a key.
func show(s string) string {
	if keyLike.MatchString(s) {
		return plain(s)
	}
	return fmt.Sprintf("%q", plain(s))
}

// plain is show without quotes, for keys.
func plain(s string) string {
	if keyLike.MatchString(s) {
		return "(hidden: looks like a key)"
	}
	if utf8.RuneCountInString(s) > 64 {
		s = string([]rune(s)[:61]) + "..."
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
}
