package firewall

import (
	"fmt"
	"slices"
	"strings"
)

// Op is what a Change does.
type Op string

// The operations, in nft's words.
const (
	AddTable       Op = "add table"
	DeleteTable    Op = "delete table"
	AddCounter     Op = "add counter"
	DeleteCounter  Op = "delete counter"
	AddSet         Op = "add set"
	DeleteSet      Op = "delete set"
	FlushSet       Op = "flush set"
	AddElements    Op = "add element"
	DeleteElements Op = "delete element"
	AddChain       Op = "add chain"
	FlushChain     Op = "flush chain"
	DeleteChain    Op = "delete chain"
	AddRule        Op = "add rule"    // at the chain's end
	InsertRule     Op = "insert rule" // before the rule with handle Before
	DeleteRule     Op = "delete rule" // Rule.Handle
)

// Change is one step of a transaction. All Changes of one Diff are applied at once or not at all.
type Change struct {
	Op     Op
	Name   string // of the counter, set or chain
	Set    Set    // whose Elements are those added or deleted
	Chain  Chain  // without its rules
	Rule   Rule
	Before uint64
}

// String is the change as a line that nft(8) takes.
func (c Change) String() string {
	t := "inet " + Table
	switch c.Op {
	case AddTable, DeleteTable:
		return fmt.Sprintf("%s %s", c.Op, t)
	case AddCounter:
		return fmt.Sprintf("add counter %s %s { }", t, c.Name)
	case AddSet:
		return fmt.Sprintf("add %s %s %s { %s }", c.Set.kind(), t, c.Name, c.Set.spec())
	case DeleteSet, FlushSet:
		return fmt.Sprintf("%s %s %s %s", strings.Fields(string(c.Op))[0], c.Set.kind(), t, c.Name)
	case AddElements, DeleteElements:
		return fmt.Sprintf("%s %s %s { %s }", c.Op, t, c.Name, c.Set.words(c.Set.Elements))
	case AddChain:
		if c.Chain.Hook != "" {
			return fmt.Sprintf("add chain %s %s { %s }", t, c.Name, c.Chain.spec())
		}
	case AddRule:
		return fmt.Sprintf("add rule %s %s %s", t, c.Name, c.Rule)
	case InsertRule:
		return fmt.Sprintf("insert rule %s %s position %d %s", t, c.Name, c.Before, c.Rule)
	case DeleteRule:
		return fmt.Sprintf("delete rule %s %s handle %d", t, c.Name, c.Rule.Handle)
	}
	return fmt.Sprintf("%s %s %s", c.Op, t, c.Name)
}

// Diff returns the changes that turn have into want. Within a table that stays, named counters keep their
// values, chains and sets that do not differ are not touched, and in a chain that differs only
// the rules between the common beginning and the common end are replaced. Where a set changes
// its type, or the table was switched off, the whole table is replaced.
func Diff(want, have State) []Change {
	switch {
	case !want.Present && !have.Present:
		return nil
	case !want.Present:
		return []Change{{Op: DeleteTable}}
	case !have.Present:
		return append([]Change{{Op: AddTable}}, update(want, State{Present: true})...)
	case have.Dormant || !sameTypes(want, have):
		return append([]Change{{Op: DeleteTable}, {Op: AddTable}}, update(want, State{Present: true})...)
	}
	return update(want, have)
}

func sameTypes(want, have State) bool {
	for _, w := range want.Sets {
		if h, ok := find(have.Sets, w.Name, func(s Set) string { return s.Name }); ok && w.spec() != h.spec() {
			return false
		}
	}
	return true
}

func find[T any](list []T, name string, of func(T) string) (T, bool) {
	if i := slices.IndexFunc(list, func(t T) bool { return of(t) == name }); i >= 0 {
		return list[i], true
	}
	var none T
	return none, false
}

func chainOf(c Chain) string { return c.Name }
func setOf(s Set) string     { return s.Name }

// update orders the steps so that nothing refers to what is not there: first all that is new, then
// rules go, then rules come, then what is no longer referred to goes.
func update(want, have State) []Change {
	var out, rules, last []Change
	for _, c := range want.Counters {
		if !slices.Contains(have.Counters, c) {
			out = append(out, Change{Op: AddCounter, Name: c})
		}
	}
	for _, w := range want.Sets {
		h, ok := find(have.Sets, w.Name, setOf)
		if !ok {
			out = append(out, Change{Op: AddSet, Name: w.Name, Set: w.with(nil)})
		}
		out = append(out, elements(w, h)...)
	}
	for _, w := range want.Chains {
		h, ok := find(have.Chains, w.Name, chainOf)
		switch {
		case !ok:
			out = append(out, Change{Op: AddChain, Name: w.Name, Chain: w.bare()})
		case w.bare().key() != h.bare().key():
			// A base chain cannot change its hook, so it is deleted and added again. Nothing jumps to one.
			out = append(out,
				Change{Op: FlushChain, Name: w.Name},
				Change{Op: DeleteChain, Name: w.Name, Chain: h.bare()},
				Change{Op: AddChain, Name: w.Name, Chain: w.bare()},
			)
			h.Rules = nil
		}
		rules = append(rules, ruleChanges(w, h)...)
	}
	for _, h := range have.Chains {
		if _, ok := find(want.Chains, h.Name, chainOf); !ok {
			// Flushed before any is deleted: they may jump to each other.
			rules = append(rules, Change{Op: FlushChain, Name: h.Name})
			last = append(last, Change{Op: DeleteChain, Name: h.Name, Chain: h.bare()})
		}
	}
	for _, h := range have.Sets {
		if _, ok := find(want.Sets, h.Name, setOf); !ok {
			last = append(last, Change{Op: DeleteSet, Name: h.Name, Set: h.with(nil)})
		}
	}
	for _, c := range have.Counters {
		if !slices.Contains(want.Counters, c) {
			last = append(last, Change{Op: DeleteCounter, Name: c})
		}
	}
	return slices.Concat(out, rules, last)
}

func (t Set) with(elems []Element) Set {
	t.Elements = elems
	return t
}

func (c Chain) bare() Chain {
	c.Rules = nil
	return c
}

func (c Chain) key() string { return fmt.Sprint(c.Name, c.Type, c.Hook, c.Priority, c.Policy) }

// elements changes a set's content. An interval set is emptied and filled in the same
// transaction: new intervals that overlap old ones would be refused otherwise.
func elements(want, have Set) []Change {
	minus := func(a, b Set) []Element {
		var out []Element
		has := make(map[Element]bool, len(b.Elements))
		for _, e := range b.Elements {
			has[e] = true
		}
		for _, e := range a.Elements {
			if !has[e] {
				out = append(out, e)
			}
		}
		return out
	}
	gone, come := minus(have, want), minus(want, have)
	if len(gone) == 0 && len(come) == 0 {
		return nil
	}
	var out []Change
	if want.Interval {
		if len(have.Elements) > 0 {
			out = append(out, Change{Op: FlushSet, Name: want.Name, Set: want.with(nil)})
		}
		come = want.Elements
	} else if len(gone) > 0 {
		out = append(out, Change{Op: DeleteElements, Name: want.Name, Set: want.with(gone)})
	}
	if len(come) > 0 {
		out = append(out, Change{Op: AddElements, Name: want.Name, Set: want.with(come)})
	}
	return out
}

func ruleChanges(want, have Chain) []Change {
	same := func(a, b Rule) bool { return slices.Equal(a.Exprs, b.Exprs) }
	w, h := want.Rules, have.Rules
	for len(w) > 0 && len(h) > 0 && same(w[0], h[0]) {
		w, h = w[1:], h[1:]
	}
	var before uint64
	for len(w) > 0 && len(h) > 0 && same(w[len(w)-1], h[len(h)-1]) {
		before = h[len(h)-1].Handle
		w, h = w[:len(w)-1], h[:len(h)-1]
	}
	var out []Change
	for _, r := range h {
		out = append(out, Change{Op: DeleteRule, Name: want.Name, Rule: r})
	}
	for _, r := range w {
		if before != 0 {
			out = append(out, Change{Op: InsertRule, Name: want.Name, Rule: r, Before: before})
		} else {
			out = append(out, Change{Op: AddRule, Name: want.Name, Rule: r})
		}
	}
	return out
}
