package nft

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/nftables"

	"ringway/firewall"
)

// Ruleset is Ringway's table and the owners of its dynamic sets. It changes the table so that a set which
// is replaced has its elements from the first packet on.
type Ruleset struct {
	mu       sync.Mutex // guards the next two; held for moments
	owners   []*SetOwner
	features *ElementFeatures // nil: not probed yet

	commit committer
	swept  bool // no stand-in of an earlier process is left; with commit
}

// NewRuleset opens the owners of sets in the calling thread's network namespace, and takes over the
// elements that an earlier process left in the kernel. Without sets it asks the kernel nothing.
func NewRuleset(sets ...firewall.DynamicSet) (*Ruleset, error) {
	r := &Ruleset{}
	if err := r.Use(sets...); err != nil {
		r.Close()
		return nil, err
	}
	return r, nil
}

// Use has owners for these sets and no others. Owners of sets that are described as before stay, with their
// elements. What a closed owner added stays in the kernel until its life ends or a plan deletes the set.
func (r *Ruleset) Use(sets ...firewall.DynamicSet) error {
	var closed []*SetOwner
	for _, o := range r.list() {
		if !slices.Contains(sets, o.set) {
			closed = append(closed, o)
		}
	}
	r.keep(func(o *SetOwner) bool { return !slices.Contains(closed, o) })
	for _, o := range closed {
		o.close()
	}
	if len(sets) == 0 {
		return nil
	}

	if r.features == nil {
		f, err := ProbeElements()
		if err != nil {
			return err
		}
		r.features = &f
	}
	return r.open(*r.features, sets)
}

// open makes the owners of sets that have none yet.
func (r *Ruleset) open(features ElementFeatures, sets []firewall.DynamicSet) error {
	if err := r.commit.open(r.list); err != nil {
		return err
	}
	names := map[string]bool{}
	for _, d := range sets {
		if names[d.Name] {
			return fmt.Errorf("dynamic set %s: two sets have this name", d.Name)
		}
		names[d.Name] = true
		if _, there := r.Set(d.Name); there {
			continue
		}
		o, err := newSetOwner(d, features, &r.commit)
		if err != nil {
			return err
		}
		if err := o.adopt(); err != nil {
			return err
		}
		r.mu.Lock()
		r.owners = append(r.owners, o)
		r.mu.Unlock()
	}
	return nil
}

// list are the owners as they are now.
func (r *Ruleset) list() []*SetOwner {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.owners)
}

// keep forgets the owners that do not fit.
func (r *Ruleset) keep(fits func(*SetOwner) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.owners = slices.DeleteFunc(slices.Clone(r.owners), func(o *SetOwner) bool { return !fits(o) })
}

// Close ends the owners. What they added stays in the kernel until its life ends.
func (r *Ruleset) Close() {
	all := r.list()
	r.keep(func(*SetOwner) bool { return false })
	for _, o := range all {
		o.close()
	}
	r.commit.close()
}

// Set is the owner of the set called name.
func (r *Ruleset) Set(name string) (o *SetOwner, ok bool) {
	all := r.list()
	i := slices.IndexFunc(all, func(o *SetOwner) bool { return o.set.Name == name })
	if i < 0 {
		return nil, false
	}
	return all[i], true
}

// Sets describes the dynamic sets, for firewall.Input.
func (r *Ruleset) Sets() []firewall.DynamicSet {
	var sets []firewall.DynamicSet
	for _, o := range r.list() {
		sets = append(sets, o.set)
	}
	return sets
}

// Status tells of each set, in the order of NewRuleset.
func (r *Ruleset) Status() []SetStatus {
	var all []SetStatus
	for _, o := range r.list() {
		all = append(all, o.Status())
	}
	return all
}

// Apply makes all changes in one transaction: the kernel takes all of them or none. Dynamic sets that the
// changes create get their live elements in the same transaction, each with the life that it has left.
//
// A table that is made, or replaced, takes several transactions, so that no packet meets a part of it
// (remake.go).
func (r *Ruleset) Apply(changes []firewall.Change) error {
	if len(r.madeAnew(changes)) > 0 {
		r.commit.Lock()
		defer r.commit.Unlock()
	}

	var err error
	switch {
	case len(changes) > 1 && changes[0].Op == firewall.DeleteTable && changes[1].Op == firewall.AddTable:
		err = r.remake(changes)
	case len(changes) > 0 && changes[0].Op == firewall.AddTable:
		err = r.create(changes)
	default:
		err = r.withElements(table(), changes)
	}
	if err != nil || len(changes) == 0 && r.swept {
		return err
	}
	r.swept = true
	return removeStandIn()
}

// madeAnew are the owners whose sets the changes add.
func (r *Ruleset) madeAnew(changes []firewall.Change) []*SetOwner {
	var owners []*SetOwner
	for _, c := range changes {
		if o, ok := r.Set(c.Name); ok && c.Op == firewall.AddSet {
			owners = append(owners, o)
		}
	}
	return owners
}

// withElements makes all changes to t in one transaction, with the live elements of dynamic sets that they add.
func (r *Ruleset) withElements(t *nftables.Table, changes []firewall.Change) error {
	var restored []restoring
	err := transact(t, changes, func(c *nftables.Conn) error {
		for _, o := range r.madeAnew(changes) {
			again := o.beginRestore()
			restored = append(restored, again)
			if err := o.queueElements(c, t, again.add); err != nil {
				return err
			}
		}
		return nil
	})

	if err == nil {
		for _, again := range restored {
			again.end(nil)
		}
		return nil
	}
	// The rules matter more than the elements. If those were what the kernel refused, they follow one by
	// one, as far as it takes them.
	if slices.ContainsFunc(restored, func(again restoring) bool { return len(again.add) > 0 }) {
		err = transact(t, changes, nil)
	}
	for _, again := range restored {
		again.end(errNotRestored)
	}
	return err
}

var errNotRestored = fmt.Errorf("table inet %s was replaced without its elements", firewall.Table)

// restoring is an owner whose elements are part of a transaction: all of them, and what was removed and not sent yet.
type restoring struct{ part }

// beginRestore takes all live elements, and the changes that wait. restoring.end must follow.
func (o *SetOwner) beginRestore() restoring {
	o.changeAll()
	p, _ := o.begin()
	return restoring{p}
}

// changeAll marks every element as unknown to the kernel.
func (o *SetOwner) changeAll() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for k := range o.elements.elements {
		o.elements.changed[k] = struct{}{}
	}
	o.awaited = true // begin gives a part, though an empty one
}

// liveElements are the set's elements as they are now.
func (o *SetOwner) liveElements() (out []rawElement) {
	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	for k := range o.elements.elements {
		if e := o.elements.live(k, now); e != nil {
			out = append(out, e.raw(k, now))
		}
	}
	return out
}

// queueElements makes the elements part of c's transaction.
func (o *SetOwner) queueElements(c *nftables.Conn, t *nftables.Table, list []rawElement) error {
	set, err := encodeSet(t, o.set.Declaration())
	if err != nil {
		return err
	}
	var elements []nftables.SetElement
	for _, e := range list {
		// The library cannot write how much of a timeout is left. As a timeout of its own it does as well.
		elements = append(
			elements, nftables.SetElement{Key: []byte(e.Key), Timeout: e.remains},
		)
	}
	for part := range slices.Chunk(elements, elementsPerMessage) {
		if err := c.SetAddElements(set, part); err != nil {
			return err
		}
	}
	return nil
}

func (r restoring) end(err error) {
	o := r.owner
	again := o.finish(r.part, nil, err)
	if again {
		o.commit.kick()
	}

	o.mu.Lock()
	defer o.mu.Unlock()
	if err == nil {
		o.counters.Restored += uint64(len(r.add))
	}
}

// Watch calls f from its own goroutine, one call at a time, after Ringway's table was changed, by whomever,
// until ctx ends. Apply's own changes are told too; an Observe after them finds no difference. Elements of
// dynamic sets are not: their owner knows. Others' tables are no business of ours. It calls ready once it
// hears.
func (r *Ruleset) Watch(ctx context.Context, ready, f func()) error {
	if err := r.commit.open(r.list); err != nil {
		return err
	}
	return watch(ctx, r.commit.port(), r.owned, ready, f)
}

// owned says whether set is a dynamic set.
func (r *Ruleset) owned(set string) bool {
	_, ok := r.Set(set)
	return ok
}

// adopt takes over the elements that are in the kernel: an earlier process's, whose holes have to outlive it.
func (o *SetOwner) adopt() error {
	c, err := open()
	if err != nil {
		return err
	}
	defer c.CloseLasting()
	found, err := find(c)
	if err != nil || found == nil {
		return err
	}
	sets, err := c.GetSets(table())
	if err != nil {
		return fmt.Errorf("list sets of table inet %s: %w", firewall.Table, err)
	}
	want := o.set.Declaration()
	i := slices.IndexFunc(sets, func(s *nftables.Set) bool {
		return s.Name == want.Name && typeOf(s) == want.Type && !s.Interval && s.HasTimeout
	})
	if i < 0 {
		return nil // the plan creates it
	}
	elements, err := c.GetSetElements(sets[i])
	if err != nil {
		return fmt.Errorf("list elements of set %s: %w", want.Name, err)
	}

	o.mu.Lock()
	defer o.mu.Unlock()
	now := time.Now()
	for _, e := range elements {
		k := Key(e.Key)
		if e.Expires <= 0 || len(o.elements.elements) == o.set.MaxElements {
			continue
		}
		o.elements.put(k, e.Expires, now)
		o.elements.elements[k].installed = now.Add(e.Expires)
		o.counters.Adopted++
	}
	o.elements.take() // the kernel knows
	return nil
}
