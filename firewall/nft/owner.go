package nft

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ringway/firewall"
)

// What the methods of SetOwner return, for callers to distinguish.
var (
	// ErrFull says that the set has its maximum of elements; none of the call's were added.
	ErrFull = errors.New("the set is full")
	// ErrPending says that the kernel does not have the change yet. It is remembered and follows.
	ErrPending = errors.New("the kernel does not have the change yet")
	// ErrExpired says that elements to refresh are no longer in the set.
	ErrExpired = errors.New("no longer in the set")
	// ErrRefused says that an element cannot be in the set: a bad key or life, or one that overlaps another.
	ErrRefused = errors.New("refused")
)

// SetOwner changes the elements of one dynamic set. Its table of elements, each with its deadline, is the
// truth; the kernel's copy follows, in as few transactions as possible (committer). It never reads the ruleset.
//
// When the set is created again, Ruleset.Apply puts the elements into the same transaction.
//
// Its methods are safe for concurrent use. Lock order: committer, then mu.
type SetOwner struct {
	set      firewall.DynamicSet
	features ElementFeatures
	commit   *committer

	mu       sync.Mutex
	elements *liveSet
	next     *round // takes the changes that come now
	awaited  bool   // somebody may wait for next
	counters SetCounters
	fullAt   time.Time
	lastErr  string
}

// round is one update of the kernel; done is closed after it.
type round struct {
	done    chan struct{}
	refused map[Key]error // elements that the kernel did not take
	pending error         // why the kernel has none of the changes
}

func newRound() *round { return &round{done: make(chan struct{})} }

// batchElements bounds a transaction; 1,024 elements of a set for IPv6 take 130 KiB.
const batchElements = 1024

func newSetOwner(d firewall.DynamicSet, f ElementFeatures, commit *committer) (*SetOwner, error) {
	if err := d.Check(); err != nil {
		return nil, err
	}
	if _, err := encodeSet(table(), d.Declaration()); err != nil {
		return nil, fmt.Errorf("dynamic set %s: %w", d.Name, err)
	}
	return &SetOwner{
		set: d, features: f, commit: commit, elements: newLiveSet(d.MaxElements), next: newRound(),
	}, nil
}

// close lets go who waits. The owner is no longer among those of the committer.
func (o *SetOwner) close() {
	o.commit.Lock()
	defer o.commit.Unlock()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.next.pending = errClosed
	close(o.next.done) // and stays: whoever comes now does not wait
}

var errClosed = errors.New("the set's owner was closed")

// Add puts the elements with these keys, in nft's words, into the set for life, or gives those that are there that
// life from now on. All of them are added or, with ErrFull or ErrRefused, none. It waits for the kernel until ctx
// ends: then the elements follow, and the error is ErrPending.
func (o *SetOwner) Add(ctx context.Context, life time.Duration, keys ...string) error {
	raw, err := o.encode(keys)
	if err != nil {
		return o.count(err, &o.counters.RefusedInvalid, len(keys))
	}
	r, err := o.add(life, raw)
	if err != nil {
		return err
	}
	o.commit.kick()
	return o.wait(ctx, "add", r, raw)
}

// AddKeys is Add for keys in the kernel's bytes. It has the kernel told in the calling goroutine if it can, also of
// what was changed in other sets: then it waits longer than ctx allows, as long as the kernel is busy.
func (o *SetOwner) AddKeys(ctx context.Context, life time.Duration, keys []Key) error {
	r, err := o.add(life, keys)
	if err != nil {
		return err
	}
	if ctx.Err() == nil {
		o.commit.updateNow()
	} else {
		o.commit.kick()
	}
	return o.wait(ctx, "add", r, keys)
}

func (o *SetOwner) add(life time.Duration, keys []Key) (*round, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	refuse := func(counter *uint64, why error) (*round, error) {
		*counter += uint64(len(keys))
		return nil, fmt.Errorf("add %s to set %s of %s: %w", o.text(keys), o.set.Name, o.set.Owner, why)
	}
	if life < time.Millisecond || life > o.set.MaxLife {
		return refuse(&o.counters.RefusedInvalid,
			fmt.Errorf("%w: a life of %s (allowed: 1ms to %s)", ErrRefused, life, o.set.MaxLife))
	}

	now := time.Now()
	fresh, ok := o.elements.fits(keys, now)
	switch {
	case !ok:
		o.fullAt = now
		return refuse(&o.counters.RefusedFull, fmt.Errorf("%w (%d elements)", ErrFull, o.set.MaxElements))
	case o.elements.backlog():
		o.fullAt = now
		return refuse(&o.counters.RefusedBacklog,
			fmt.Errorf("%w: %d changes wait for the kernel", ErrFull, len(o.elements.changed)))
	}
	for _, k := range keys {
		o.elements.put(k, life, now)
	}
	o.counters.Added += uint64(fresh)
	o.counters.Refreshed += uint64(len(keys) - fresh)
	o.awaited = true
	return o.next, nil
}

// Refresh gives the elements that are in the set life from now on. Those that are not, because they expired
// or were deleted, stay out; then the error is ErrExpired. Else as Add.
func (o *SetOwner) Refresh(ctx context.Context, life time.Duration, keys ...string) error {
	raw, err := o.encode(keys)
	if err == nil && (life < time.Millisecond || life > o.set.MaxLife) {
		err = fmt.Errorf("%w: a life of %s in set %s of %s (allowed: 1ms to %s)", ErrRefused, life, o.set.Name,
			o.set.Owner, o.set.MaxLife)
	}
	if err != nil {
		return o.count(err, &o.counters.RefusedInvalid, len(keys))
	}

	r, there, gone := o.refresh(life, raw, keys)
	o.commit.kick()
	err = o.wait(ctx, "refresh", r, there)
	if gone != nil {
		expired := fmt.Errorf("refresh %s in set %s of %s: %w",
			strings.Join(gone, ", "), o.set.Name, o.set.Owner, ErrExpired)
		return errors.Join(expired, err)
	}
	return err
}

// refresh gives the elements that are in the set another life. gone are the keys of the others.
func (o *SetOwner) refresh(life time.Duration, raw []Key, keys []string) (r *round, there []Key, gone []string) {
	o.mu.Lock()
	defer o.mu.Unlock()

	now := time.Now()
	for i, k := range raw {
		if o.elements.live(k, now) == nil {
			gone = append(gone, keys[i])
			continue
		}
		o.elements.put(k, life, now)
		there = append(there, k)
	}
	o.counters.Refreshed += uint64(len(there))
	o.counters.RefusedExpired += uint64(len(gone))
	o.awaited = true
	return o.next, there, gone
}

// Delete removes the elements with these keys. Those that are not in the set are ignored. It waits as Add does.
func (o *SetOwner) Delete(ctx context.Context, keys ...string) error {
	raw, err := o.encode(keys)
	if err != nil {
		return o.count(err, &o.counters.RefusedInvalid, len(keys))
	}
	r := o.remove(slices.Values(raw))
	o.commit.kick()
	return o.wait(ctx, "delete", r, raw)
}

// DropKeys removes the elements with these keys, in the kernel's bytes, and does not wait for the kernel.
func (o *SetOwner) DropKeys(keys []Key) {
	o.remove(slices.Values(keys))
	o.commit.kick()
}

// Clear removes all elements. It waits as Add does.
func (o *SetOwner) Clear(ctx context.Context) error {
	r := o.remove(maps.Keys(o.elements.elements))
	o.commit.kick()
	return o.wait(ctx, "clear", r, nil)
}

// remove deletes elements. It iterates over keys under the lock.
func (o *SetOwner) remove(keys iter.Seq[Key]) *round {
	o.mu.Lock()
	defer o.mu.Unlock()

	now := time.Now()
	for k := range keys {
		if o.elements.remove(k, now) {
			o.counters.Deleted++
		}
	}
	o.awaited = true
	return o.next
}

// encode turns keys into the kernel's bytes.
func (o *SetOwner) encode(keys []string) ([]Key, error) {
	raw := make([]Key, len(keys))
	for i, k := range keys {
		var err error
		if raw[i], err = encodeKey(o.set.Type, k); err != nil {
			return nil, fmt.Errorf("%w: element of set %s of %s: %w", ErrRefused, o.set.Name, o.set.Owner, err)
		}
	}
	return raw, nil
}

// text is keys in nft's words.
func (o *SetOwner) text(keys []Key) string {
	words := make([]string, len(keys))
	for i, k := range keys {
		words[i] = k.Text(o.set.Type)
	}
	return strings.Join(words, ", ")
}

func (o *SetOwner) count(err error, counter *uint64, n int) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	*counter += uint64(n)
	return err
}

// wait returns when the kernel has the changes of round r, or ctx ends.
func (o *SetOwner) wait(ctx context.Context, verb string, r *round, keys []Key) error {
	what := func(err error) error {
		return fmt.Errorf("%s %s in set %s of %s: %w", verb, o.text(keys), o.set.Name, o.set.Owner, err)
	}
	select {
	case <-r.done:
	default:
		select {
		case <-r.done:
		case <-ctx.Done():
			return o.count(what(ErrPending), &o.counters.Late, 1)
		}
	}

	if r.pending != nil {
		return what(fmt.Errorf("%w: %w", ErrPending, r.pending))
	}
	if verb == "delete" || len(r.refused) == 0 {
		return nil
	}
	for _, k := range keys {
		if err := r.refused[k]; err != nil {
			return what(fmt.Errorf("%w: %w", ErrRefused, err))
		}
	}
	return nil
}

// begin takes the changes that the kernel was not told of; false: nobody changed anything since.
func (o *SetOwner) begin() (p part, changed bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.awaited && len(o.elements.changed) == 0 {
		return p, false
	}

	now := time.Now()
	o.elements.expire(now)
	p = part{owner: o, round: o.next, keys: o.elements.take()}
	o.next, o.awaited = newRound(), false
	for k := range p.keys {
		e := o.elements.live(k, now)
		if e == nil {
			p.remove = append(p.remove, rawElement{Key: k})
			continue
		}
		p.add = append(p.add, e.raw(k, now))
	}
	return p, true
}

func (e *liveElement) raw(k Key, now time.Time) rawElement {
	return rawElement{
		Key: k, timeout: e.life, remains: max(e.deadline.Sub(now), time.Millisecond),
		known: now.Before(e.installed),
	}
}

// finish notes what became of the changes that begin took, and lets those who wait for them go on. It returns true if
// they have to be tried again.
func (o *SetOwner) finish(p part, failed map[Key]error, err error) (again bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	defer close(p.round.done)

	now := time.Now()
	if err != nil {
		o.lastErr = err.Error()
		p.round.pending = err
		if errors.Is(err, errNoSet) {
			o.counters.NoTable++ // the elements go in with the table
			return false
		}
		o.counters.Retried++
		o.elements.giveBack(p.keys)
		return true
	}

	p.round.refused = failed
	for _, a := range p.add {
		e := o.elements.elements[a.Key]
		switch {
		case failed[a.Key] != nil:
			o.counters.RefusedKernel++
			o.lastErr = failed[a.Key].Error()
			if _, changed := o.elements.changed[a.Key]; !changed {
				delete(o.elements.elements, a.Key)
			}
		case e != nil:
			e.installed = now.Add(a.remains)
		}
	}
	return false
}

// errNoSet says that the table, or the set in it, is not there.
var errNoSet = fmt.Errorf("table inet %s has no such set", firewall.Table)

// refusedByKernel are the errors that blame an element; others, like want of memory, pass.
func refusedByKernel(err error) bool {
	for _, e := range []unix.Errno{
		unix.EEXIST, unix.ENOTEMPTY, unix.ENFILE, unix.EINVAL, unix.ERANGE, unix.EOPNOTSUPP,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// send changes the kernel's copy. failed are the elements that it refused; err is why it took none.
func (o *SetOwner) send(add, gone []rawElement) (failed map[Key]error, err error) {
	if !o.features.Destroy {
		if err := o.deleteEach(gone); err != nil {
			return nil, err
		}
		gone = nil
	}
	var replace []rawElement
	if !o.features.Refresh {
		add, replace = split(add, func(e rawElement) bool { return !e.known })
		if o.features.Destroy {
			add, replace, gone = append(add, replace...), nil, append(gone, replace...)
		}
	}
	for _, e := range replace {
		if err := o.replace(e); err != nil {
			return nil, err
		}
	}
	return o.sendAll(add, gone)
}

// sendAll removes and adds in transactions of batchElements. One that the kernel refuses is sent again
// element by element, so that one bad element does not take the others with it.
func (o *SetOwner) sendAll(add, gone []rawElement) (failed map[Key]error, err error) {
	for len(add) > 0 || len(gone) > 0 {
		g := gone[:min(len(gone), batchElements)]
		a := add[:min(len(add), batchElements-len(g))]
		gone, add = gone[len(g):], add[len(a):]

		err := o.transact(append(
			o.messages(msgDestroySetElem, g), o.messages(unix.NFT_MSG_NEWSETELEM, a)...,
		)...)
		switch {
		case err == nil:
			continue
		case !refusedByKernel(err):
			return nil, err
		}
		if err := o.transact(o.messages(msgDestroySetElem, g)...); err != nil {
			return nil, err
		}
		for _, e := range a {
			err := o.transact(o.messages(unix.NFT_MSG_NEWSETELEM, []rawElement{e})...)
			switch {
			case err == nil:
			case refusedByKernel(err):
				if failed == nil {
					failed = map[Key]error{}
				}
				failed[e.Key] = err
			default:
				return nil, err
			}
		}
	}
	return failed, nil
}

// deleteEach removes elements where the kernel has no NFT_MSG_DESTROYSETELEM: one in a transaction, since
// one that has expired would take all the others' deletion with it.
func (o *SetOwner) deleteEach(gone []rawElement) error {
	for _, e := range gone {
		err := o.transact(o.messages(unix.NFT_MSG_DELSETELEM, []rawElement{e})...)
		if err != nil && !errors.Is(err, errNoSet) { // the element or the set: either way it is gone
			return err
		}
	}
	return nil
}

// replace gives an element another life where the kernel can neither update one nor delete one that may be
// gone.
func (o *SetOwner) replace(e rawElement) error {
	one := []rawElement{e}
	put := o.messages(unix.NFT_MSG_NEWSETELEM, one)
	err := o.transact(append(o.messages(unix.NFT_MSG_DELSETELEM, one), put...)...)
	if errors.Is(err, errNoSet) {
		err = o.transact(put...)
	}
	return err
}

// messages are the steps of a transaction that add or remove elements, of elementsPerMessage each.
func (o *SetOwner) messages(kind uint16, elements []rawElement) (out []elementMessage) {
	for part := range slices.Chunk(elements, elementsPerMessage) {
		out = append(out, elementMessage{kind: kind, set: o.set.Name, elements: part})
	}
	return out
}

func (o *SetOwner) transact(messages ...elementMessage) error {
	if len(messages) == 0 {
		return nil
	}
	err := o.commit.socket.commit(firewall.Table, messages...)
	if errors.Is(err, unix.ENOENT) {
		return errNoSet
	}
	return err
}

func split[T any](list []T, first func(T) bool) (a, b []T) {
	for _, e := range list {
		if first(e) {
			a = append(a, e)
		} else {
			b = append(b, e)
		}
	}
	return a, b
}
