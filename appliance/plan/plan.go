// Package plan computes and describes what a config changes on a machine, in words of ip, tc, nft and wg, and
// what its WANs carry of calls. It is pure.
package plan

import (
	"fmt"
	"strings"
)

// Options choose what Plan gives.
type Options struct {
	All  bool   // the whole wanted state instead of the difference
	Only string // one of PartNames; empty: all
}

// PartNames are the parts of a plan, in their order.
var PartNames = []string{"nft", "ip", "wg", "tc", "calls"}

// Plan is what the config would change, by part, and what its WANs then carry of calls.
type Plan struct {
	Build string     `json:"build"`           // of the program that computed it
	Basis string     `json:"basis,omitempty"` // what it is based on, where that is not the running daemon of this build
	Parts []Part     `json:"parts"`
	Calls []WANCalls `json:"calls,omitempty"`
}

// Part is a part of it in the words of a tool, comments among them.
type Part struct {
	Part  string   `json:"part"`
	Title string   `json:"title"`
	Note  string   `json:"note,omitempty"` // what could not be compared, and why
	Lines []string `json:"lines"`
}

// String is the plan as text: commands of the tools, with everything else in comments.
func (p Plan) String() string {
	var b strings.Builder
	if p.Basis != "" {
		b.WriteString("# " + p.Basis + "\n")
	}
	for _, s := range p.Parts {
		b.WriteString("# " + s.Title)
		if s.Note != "" {
			b.WriteString(" (" + s.Note + ")")
		}
		b.WriteByte('\n')
		for _, l := range s.Lines {
			b.WriteString(l + "\n")
		}
	}
	return b.String()
}

// Words are the changes in the words of a tool.
func Words[C fmt.Stringer](changes []C) (out []string) {
	for _, c := range changes {
		out = append(out, c.String())
	}
	return out
}
