package terminate

import (
	"crypto/sha256"
	"slices"

	"ringway/sip/dialog"
)

// maxPassed bounds the descriptions of a leg that are kept for when they come again. A transaction has two at most,
// and each end one of its own under way.
const maxPassed = 8

// key names a description by the transaction that it belongs to, and its text. A 2xx that has the same one as the 1xx
// before is the same.
type key struct {
	transaction dialog.Transaction
	fromCaller  bool
	tag         string
	text        [sha256.Size]byte
}

func keyOf(x *dialog.Exchange, text []byte) key {
	return key{x.Transaction, x.FromCaller, x.Tag(), sha256.Sum256(text)}
}

// entry is what went on in place of a description.
type entry struct {
	key
	text   []byte // nil: what came
	lines  []dialog.Line
	void   bool
	reason string
}

// passed are the latest of a leg, the oldest first.
type passed struct{ all []*entry }

func (p *passed) empty() bool { return len(p.all) == 0 }

func (p *passed) find(k key) *entry {
	for _, e := range p.all {
		if e.key == k {
			return e
		}
	}
	return nil
}

// latest is what went on last from one end in a dialog, or with the INVITE that all dialogs of the leg are of.
func (p *passed) latest(fromCaller bool, tag string) *entry {
	for _, e := range slices.Backward(p.all) {
		if e.fromCaller == fromCaller && (e.tag == tag || e.tag == "") {
			return e
		}
	}
	return nil
}

func (p *passed) add(k key, e entry) *entry {
	e.key = k
	if len(p.all) == maxPassed {
		clear(p.all[0].text) // it has keys
		p.all = append(p.all[:0], p.all[1:]...)
	}
	p.all = append(p.all, &e)
	return &e
}

func (p *passed) wipe() {
	for _, e := range p.all {
		clear(e.text)
	}
	p.all = nil
}
