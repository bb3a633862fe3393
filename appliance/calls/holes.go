package calls

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"ringway/firewall"
	"ringway/firewall/nft"
	"ringway/sip/dialog"
	"ringway/sip/relay"
)

const (
	// holeLife is how long a hole outlives the relay and the daemon; refreshEvery is how often it is given that
	// life again while its call lives.
	holeLife     = 60 * time.Second
	refreshEvery = 20 * time.Second
	// maxHolesOf bounds the holes of calls of one phone: eight media with 16 candidates each. maxHolesOfServer does
	// for calls without a phone of this box, whichever address began them: nobody can take all holes.
	maxHolesOf       = 256
	maxHolesOfServer = 8192
	// againAfter is how long a relay is not told again that a set has no room. It answers by telling the whole.
	againAfter = 5 * time.Second
	// refreshBatch is how many holes are refreshed at a time.
	refreshBatch = 512
	// lowestPort keeps services out of reach of what a session description asks for.
	lowestPort = 1024
)

// Reasons why a flow gets no hole.
const (
	refusedPort    = "port"     // below 1024
	refusedAddress = "address"  // of this box, or of no host
	refusedNetwork = "network"  // in no network that the call reaches
	refusedPhone   = "phone"    // the phone has too many
	refusedFull    = "set_full" // the set has no room
	refusedKernel  = "kernel"   // it could not be told
	late           = "late"     // not refused: the kernel was told after the message went on
)

// Set is a dynamic set of the firewall, as nft.SetOwner is.
type Set interface {
	Add(ctx context.Context, life time.Duration, keys ...string) error
	Delete(ctx context.Context, keys ...string) error
	Clear(ctx context.Context) error
	Elements() map[string]time.Time // until when each is there

	AddKeys(ctx context.Context, life time.Duration, keys []nft.Key) error
	DropKeys(keys []nft.Key)
}

// world is which addresses are where.
type world struct {
	own       []netip.Prefix   // networks of this box's LANs
	voice     []netip.Prefix   // those of phones
	addresses []netip.Addr     // of this box
	sites     [][]netip.Prefix // networks of each site
	servers   []netip.Addr     // PBXs and trunks (sip.servers), wherever they are
	relayed   relayed          // media that this box relays
}

// side is where an address is, seen from this box.
type side int

const (
	nowhere side = iota
	here
	atSite
	internet
)

func (w *world) side(a netip.Addr) side {
	switch {
	case !a.IsValid() || !a.IsGlobalUnicast() || slices.Contains(w.addresses, a):
		return nowhere
	case a.Zone() != "" || a.Is4In6(): // no network contains it, and an element for it would be another address's
		return nowhere
	case slices.ContainsFunc(w.own, func(n netip.Prefix) bool { return broadcast(n, a) }):
		return nowhere
	case contains(w.own, a):
		return here
	case w.site(a) != nil:
		return atSite
	case a.IsPrivate():
		return nowhere
	}
	return internet
}

// site is the networks of the site that an address is at.
func (w *world) site(a netip.Addr) []netip.Prefix {
	for _, s := range w.sites {
		if contains(s, a) {
			return s
		}
	}
	return nil
}

// broadcast reports whether an address stands for all hosts of an IPv4 network: its last address, or its first, which
// is the old form (RFC 1122, section 3.3.6). A /31 has neither (RFC 3021).
func broadcast(n netip.Prefix, a netip.Addr) bool {
	if !a.Is4() || n.Bits() > 30 || !n.Contains(a) {
		return false
	}
	b := a.As4()
	host := ^uint32(0) >> n.Bits()
	is := binary.BigEndian.Uint32(b[:]) & host
	return is == 0 || is == host
}

func contains(networks []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(networks, func(n netip.Prefix) bool { return n.Contains(a) })
}

// mayBan reports whether the firewall may drop all signalling of an address: never that of this box, of its own
// networks, where somebody may have to make an emergency call, of a site or of a server.
func (h *holes) mayBan(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	h.mu.Lock()
	defer h.mu.Unlock()
	w := &h.world
	return a.IsValid() && a.IsGlobalUnicast() && !contains(w.own, a) && w.site(a) == nil &&
		!slices.Contains(w.addresses, a) && !slices.Contains(w.servers, a)
}

// sources are the networks that a flow may come from. What comes from the receiver's own network does not cross this
// box.
func (w *world) sources(f dialog.Flow) []netip.Prefix {
	source := f.Source()
	if f.From().IsValid() {
		return []netip.Prefix{netip.PrefixFrom(source, source.BitLen())}
	}
	var all []netip.Prefix
	switch w.side(source) {
	case here:
		all = w.own
	case atSite:
		all = w.site(source)
	default:
		all = []netip.Prefix{netip.PrefixFrom(source, source.BitLen())}
	}
	to := f.To().Addr()
	return slices.DeleteFunc(slices.Clone(all), func(n netip.Prefix) bool {
		return n.Addr().Is4() != to.Is4() || n.Contains(to) && !n.IsSingleIP()
	})
}

// check says why the call of a change may not have a flow; empty: it may.
func (w *world) check(f dialog.Flow, c *relay.Change) string {
	from, to := f.Source(), f.To()
	var reached [internet + 1]bool
	for _, hops := range [][]netip.Addr{c.Hops[:], c.Via} {
		for _, h := range hops {
			reached[w.side(h)] = true
		}
	}
	x, y := w.side(from), w.side(to.Addr())
	if w.relayed.has(f) {
		x, y = w.relayedSides(f)
	}
	switch {
	case to.Port() < lowestPort:
		return refusedPort
	case x == nowhere || y == nowhere || f.From().IsValid() && from.Is4() != to.Addr().Is4():
		return refusedAddress
	case !reached[x] || !reached[y]:
		return refusedNetwork
	}
	return ""
}

// key is an element of a set of holes.
type key struct {
	set     string
	element nft.Key
}

// hole is an element with how many flows need it.
type hole struct {
	flows int
	phone netip.Addr // or server, that it is counted for
}

// holes opens and closes what calls need. Its table is the truth; the sets of the firewall follow.
type holes struct {
	sets func(name string) (Set, bool)

	// order is held while a change goes to the sets, so that they have changes in the order in which the table
	// had them. Before mu.
	order sync.Mutex

	mu      sync.Mutex // guards what follows
	world   world
	flows   map[dialog.Flow][]key
	open    map[key]*hole
	phones  map[netip.Addr]int
	refused map[string]uint64
	told    time.Time // the relay, that a set has no room
}

func newHoles(sets func(string) (Set, bool)) *holes {
	return &holes{
		sets: sets, flows: map[dialog.Flow][]key{}, open: map[key]*hole{}, phones: map[netip.Addr]int{},
		refused: map[string]uint64{},
	}
}

func (h *holes) follow(w world) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.world = w
}

// change takes what calls need; whole: they need nothing else. It returns once the kernel has what opens, or
// ctx ends: what closes follows at once.
func (h *holes) change(ctx context.Context, changes []relay.Change, whole bool) error {
	h.order.Lock()
	defer h.order.Unlock()
	add, remove := h.plan(changes, whole)
	for set, keys := range remove { // first: it goes with what is added, in one transaction
		if s, ok := h.sets(set); ok {
			s.DropKeys(keys)
		}
	}
	var errs []error
	var gone []key
	for set, keys := range add {
		refused, err := h.add(ctx, set, keys)
		gone, errs = append(gone, refused...), append(errs, err)
	}
	h.forget(gone)
	return errors.Join(errs...)
}

// ended is a context that is over: a set's owner remembers a change and does not wait for the kernel.
var ended = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// add adds elements to a set. refused are those that it did not take.
func (h *holes) add(ctx context.Context, set string, elements []nft.Key) (refused []key, err error) {
	s, ok := h.sets(set)
	if !ok {
		return nil, h.count(refusedKernel, len(elements), fmt.Errorf("open holes: there is no set %s", set))
	}
	not, err := addEach(ctx, s, elements)
	switch {
	case len(not) > 0:
		return keysOf(set, not), h.count(refusedFull, len(not), h.again(fmt.Errorf("open holes: %w", err)))
	case err != nil: // it follows
		return nil, h.count(late, len(elements), nil)
	}
	return nil, nil
}

func keysOf(set string, elements []nft.Key) (keys []key) {
	for _, e := range elements {
		keys = append(keys, key{set, e})
	}
	return keys
}

// addEach adds the elements that a set takes. It takes all of one call or none, so those that it refuses are looked
// for by halves: one that cannot be there must not cost other calls their media. Without any, err is nil or
// nft.ErrPending.
func addEach(ctx context.Context, s Set, keys []nft.Key) (refused []nft.Key, err error) {
	err = s.AddKeys(ctx, holeLife, keys)
	switch {
	case err == nil, errors.Is(err, nft.ErrPending):
		return nil, err
	case len(keys) == 1:
		return keys, err
	}
	half := len(keys) / 2
	first, errFirst := addEach(ctx, s, keys[:half])
	second, errSecond := addEach(ctx, s, keys[half:])
	if errSecond == nil || len(first) > 0 {
		errSecond = errFirst
	}
	return slices.Concat(first, second), errSecond
}

// again gives the error to the relay, unless it had one a moment ago: it tells the whole then, which is much work
// for both.
func (h *holes) again(err error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if time.Since(h.told) < againAfter {
		return nil
	}
	h.told = time.Now()
	return err
}

// forget takes flows off the table of which a set did not take an element: with it, no other one could be refreshed.
// What only they needed goes from the sets, also what those had taken. It comes after all that is added: what is added
// behind it would stay.
func (h *holes) forget(refused []key) {
	if len(refused) == 0 {
		return
	}
	for set, elements := range h.forgetFlows(refused) {
		if s, ok := h.sets(set); ok {
			s.DropKeys(elements)
		}
	}
}

func (h *holes) forgetFlows(refused []key) (remove map[string][]nft.Key) {
	h.mu.Lock()
	defer h.mu.Unlock()
	gone := map[key]bool{}
	for _, k := range refused {
		gone[k] = true
	}
	var touched []key
	for f, keys := range h.flows {
		if slices.ContainsFunc(keys, func(k key) bool { return gone[k] }) {
			touched = h.closeFlow(f, touched)
		}
	}
	remove = map[string][]nft.Key{}
	for _, k := range touched {
		if h.open[k] == nil {
			remove[k.set] = append(remove[k.set], k.element)
		}
	}
	return remove
}

func (h *holes) count(reason string, n int, err error) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.refused[reason] += uint64(n)
	return err
}

// plan brings the table up to date, and says which elements are to be added to each set and removed from it.
func (h *holes) plan(changes []relay.Change, whole bool) (add, remove map[string][]nft.Key) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var touched []key
	if whole {
		touched = h.keepOnly(changes, touched)
	}
	for i := range changes {
		c := &changes[i]
		for _, f := range c.Open {
			touched = h.openFlow(f, c, whole, touched)
		}
		for _, f := range c.Close {
			touched = h.closeFlow(f, touched)
		}
	}

	add, remove = map[string][]nft.Key{}, map[string][]nft.Key{}
	for _, k := range touched {
		if h.open[k] != nil {
			add[k.set] = append(add[k.set], k.element)
		} else {
			remove[k.set] = append(remove[k.set], k.element)
		}
	}
	return add, remove
}

// keepOnly closes what none of the changes opens, and what may no longer be open: the config may be another one. Like
// openFlow and closeFlow it appends to touched the elements that were added or removed.
func (h *holes) keepOnly(changes []relay.Change, touched []key) []key {
	needed := map[dialog.Flow]bool{}
	for i := range changes {
		for _, f := range changes[i].Open {
			needed[f] = needed[f] || h.world.check(f, &changes[i]) == ""
		}
	}
	for f := range h.flows {
		if !needed[f] {
			touched = h.closeFlow(f, touched)
		}
	}
	return touched
}

func (h *holes) openFlow(f dialog.Flow, c *relay.Change, again bool, touched []key) []key {
	if keys, there := h.flows[f]; there {
		if again {
			touched = append(touched, keys...)
		}
		return touched
	}
	if why := h.world.check(f, c); why != "" {
		h.refused[why]++
		return touched
	}
	phone, most := h.countedFor(c.Hops, f)
	var keys []key
	if !h.world.relayed.has(f) { // else it is not forwarded: the rules of the media plane let it pass
		for _, source := range h.world.sources(f) {
			keys = append(keys, key{firewall.HoleSet(source), nft.HoleKey(source, f.To())})
		}
	}
	if h.phones[phone]+len(keys) > most {
		h.refused[refusedPhone]++
		return touched
	}
	for _, k := range keys {
		x := h.open[k]
		if x == nil {
			x = &hole{phone: phone}
			h.open[k] = x
			h.phones[phone]++
			touched = append(touched, k)
		}
		x.flows++
	}
	h.flows[f] = keys
	return touched
}

// countedFor is the address that a flow's holes are counted for, and how many it may have: the phone of this box
// that takes part, or else who began the call. A PBX among the phones has more calls than a phone has.
func (h *holes) countedFor(hops [2]netip.Addr, f dialog.Flow) (a netip.Addr, most int) {
	for _, a := range []netip.Addr{hops[0], hops[1], f.To().Addr(), f.From()} {
		if contains(h.world.voice, a) && !slices.Contains(h.world.servers, a) {
			return a, maxHolesOf
		}
	}
	return hops[0], maxHolesOfServer
}

func (h *holes) closeFlow(f dialog.Flow, touched []key) []key {
	for _, k := range h.flows[f] {
		x := h.open[k]
		if x.flows--; x.flows > 0 {
			continue
		}
		delete(h.open, k)
		touched = append(touched, k)
		if h.phones[x.phone]--; h.phones[x.phone] == 0 {
			delete(h.phones, x.phone)
		}
	}
	delete(h.flows, f)
	return touched
}

// refresh gives all holes their life again. It does not wait for the kernel, so that no change waits for it.
func (h *holes) refresh() error {
	h.order.Lock()
	defer h.order.Unlock()
	h.mu.Lock()
	keys := map[string][]nft.Key{}
	for k := range h.open {
		keys[k.set] = append(keys[k.set], k.element)
	}
	h.mu.Unlock()
	var errs []error
	var gone []key
	for set, list := range keys {
		s, ok := h.sets(set)
		if !ok {
			continue
		}
		for part := range slices.Chunk(list, refreshBatch) {
			if refused, err := addEach(ended, s, part); len(refused) > 0 {
				gone = append(gone, keysOf(set, refused)...)
				errs = append(errs, h.count(refusedFull, len(refused), err))
			}
		}
	}
	h.forget(gone)
	return errors.Join(errs...)
}

// seen are the flows of calls that one of these packets belongs to.
func (h *holes) seen(packets func(yield func(from, to netip.AddrPort))) (flows []dialog.Flow) {
	h.mu.Lock()
	byTo := map[netip.AddrPort][]dialog.Flow{}
	for f := range h.flows {
		if !f.RTCP() {
			byTo[f.To()] = append(byTo[f.To()], f)
		}
	}
	h.mu.Unlock()
	found := map[dialog.Flow]bool{}
	packets(func(from, to netip.AddrPort) {
		for _, f := range byTo[to] {
			if !f.From().IsValid() || f.From() == from.Addr() {
				found[f] = true
			}
		}
	})
	for f := range found {
		flows = append(flows, f)
	}
	return flows
}

// busy reports whether calls need any flow.
func (h *holes) busy() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.flows) > 0
}

// state is how many flows and holes there are, and what was refused.
func (h *holes) state() (flows, open int, refused map[string]uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	refused = map[string]uint64{}
	for k, n := range h.refused {
		refused[k] = n
	}
	return len(h.flows), len(h.open), refused
}
