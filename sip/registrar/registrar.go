// Package registrar follows the REGISTER transactions that pass (RFC 3261, section 10), and so knows which
// phone is registered where, until when. It answers nothing and decides nothing: what a PBX grants is what
// counts. It is pure; the clock is an argument.
//
// A binding is made, changed and removed by a 2xx alone. A challenge (401, 407), a 423 (the expiry asked for
// is too short) and any other error leave everything as it was: a binding that was to be refreshed lives
// until it expires.
package registrar

import (
	"cmp"
	"container/heap"
	"net/netip"
	"slices"
	"time"

	"ringway/sip/message"
)

// Bounds and defaults.
const (
	// timerF is how long a request waits for its final response: 64*T1 (RFC 3261, section 17.1.2.2).
	timerF = 32 * time.Second
	// defaultExpiry holds where neither side says (section 20.19).
	defaultExpiry = time.Hour
	// maxExpiry bounds what is believed: nobody registers for longer, and a binding takes memory.
	maxExpiry = 7 * 24 * time.Hour

	maxContacts = 16  // of one message
	maxURI      = 512 // bytes of a contact's URI and of an address of record
	maxCallID   = 512 // bytes, with its branch
)

// Transport is how the messages of a registration travel.
type Transport string

// Transports.
const (
	UDP Transport = "udp"
	TCP Transport = "tcp"
	TLS Transport = "tls"
)

// Packet says how a message came: the two hops, as its packet has them.
type Packet struct {
	From, To  netip.AddrPort
	Transport Transport
}

// Binding is a contact that a PBX has for an address of record.
type Binding struct {
	AOR     string `json:"aor"`     // user and host of the address of record (section 10.3, step 5)
	Contact string `json:"contact"` // URI, as the phone wrote it
	// Phone is where the REGISTER came from, PBX where it went: the path that a call to the phone takes.
	Phone     netip.AddrPort `json:"phone"`
	PBX       netip.AddrPort `json:"pbx"`
	Transport Transport      `json:"transport"`
	Since     time.Time      `json:"since"`
	Refreshed time.Time      `json:"refreshed"`
	Expires   time.Time      `json:"expires"`

	// The path to the PBX, as the daemon knows it: the tunnel's site, or none, and the WAN; neither within the branch.
	// LineGone: NAT has forgotten the path, as when the WAN's address changes. Calls to the phone do not arrive until it
	// registers again.
	Site     string `json:"site,omitempty"`
	Line     string `json:"line,omitempty"`
	LineGone bool   `json:"line_gone,omitempty"`
}

// Path is the way to the PBX in words.
func (b *Binding) Path() string {
	switch {
	case b.LineGone:
		return b.Line + " as it was, gone"
	case b.Site != "":
		return b.Site + " by " + b.Line
	}
	return cmp.Or(b.Line, "-")
}

// Table has the bindings. It is not for several goroutines at once.
type Table struct {
	// MaxBindings bounds the bindings, and the requests that wait for an answer. A binding beyond it is not
	// followed; of requests the oldest makes way.
	MaxBindings int

	byPhone map[netip.Addr][]*binding
	byAOR   map[string][]*binding
	timers  timers
	pending pending
	beyond  uint64
}

// binding is a Binding in the table.
type binding struct {
	Binding
	at int // in timers
}

// New makes a Table without bindings.
func New(maxBindings int) *Table {
	return &Table{MaxBindings: maxBindings, byPhone: map[netip.Addr][]*binding{}, byAOR: map[string][]*binding{},
		pending: newPending()}
}

// Step is what a message, or time, changed.
type Step struct {
	Bound   []Binding // new or refreshed
	Removed []Binding // unregistered, replaced or expired
}

// Len is how many bindings there are; Beyond, how many more there were to follow.
func (t *Table) Len() int       { return len(t.timers) }
func (t *Table) Beyond() uint64 { return t.beyond }

// Message follows a REGISTER or a response to one; all other messages change nothing.
func (t *Table) Message(now time.Time, p Packet, m *message.Message) (st Step) {
	if m.Method != message.REGISTER {
		return st
	}
	p.From, p.To = unmapped(p.From), unmapped(p.To)
	if m.Request {
		if r := read(now, p, m); r != nil {
			t.pending.add(r, t.MaxBindings)
		}
		return st
	}
	if m.Status < 200 {
		return st
	}
	r := t.pending.take(now, keyOf(m, p.To.Addr(), p.From.Addr()))
	if r != nil && m.Status < 300 {
		t.granted(now, &st, r, m)
	}
	return st
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// granted carries out what a 2xx says of a request. One without contacts is a query (section 10.2.3).
func (t *Table) granted(now time.Time, st *Step, r *request, m *message.Message) {
	listed := contactsOf(m)
	if r.all { // Contact: * with Expires: 0 (section 10.2.2)
		t.removeIf(st, t.byAOR[r.aor], func(b *binding) bool { return b.PBX.Addr() == r.pbx.Addr() })
		return
	}

	for _, c := range r.contacts {
		if expiry := c.granted(listed, m); expiry > 0 {
			t.bind(now, st, r, c.uri, expiry)
			continue
		}
		t.removeIf(st, t.byAOR[r.aor], func(b *binding) bool { return r.has(b) && sameURI(b.Contact, c.uri) })
	}
	t.removeUnlisted(st, r, listed)
}

// removeUnlisted removes the bindings of the same phone that a 2xx no longer has: it lists all there are
// (section 10.3, step 8), and a phone that starts again may do so with another contact. A PBX that lists not
// even what was asked for does not list them all, and neither does one that lists nothing but that; so other
// phones with the same address of record are left alone.
func (t *Table) removeUnlisted(st *Step, r *request, listed []contact) {
	has := func(all []contact, uri string) bool {
		return slices.ContainsFunc(all, func(c contact) bool { return sameURI(c.uri, uri) })
	}
	if !slices.ContainsFunc(r.contacts, func(c contact) bool { return has(listed, c.uri) }) {
		return
	}
	t.removeIf(st, t.byAOR[r.aor], func(b *binding) bool {
		return r.has(b) && !has(r.contacts, b.Contact) && !has(listed, b.Contact)
	})
}

// has reports whether a binding is of the same phone, address of record and PBX.
func (r *request) has(b *binding) bool {
	return b.AOR == r.aor && b.Phone.Addr() == r.phone.Addr() && b.PBX.Addr() == r.pbx.Addr()
}

// bind makes or refreshes a binding.
func (t *Table) bind(now time.Time, st *Step, r *request, uri string, expiry time.Duration) {
	all := t.byAOR[r.aor]
	i := slices.IndexFunc(all, func(b *binding) bool { return r.has(b) && sameURI(b.Contact, uri) })
	var b *binding
	switch {
	case i >= 0:
		b = all[i]
	case len(t.timers) >= t.MaxBindings:
		t.beyond++
		return
	default:
		b = &binding{Binding: Binding{AOR: r.aor, Since: now}}
		t.byAOR[r.aor] = append(all, b)
		t.byPhone[r.phone.Addr()] = append(t.byPhone[r.phone.Addr()], b)
		heap.Push(&t.timers, b)
	}
	b.Contact, b.Phone, b.PBX, b.Transport = uri, r.phone, r.pbx, r.transport
	b.Refreshed, b.Expires = now, now.Add(expiry)
	heap.Fix(&t.timers, b.at)
	st.Bound = append(st.Bound, b.Binding)
}

// Restore takes a binding that an earlier process had. One that has expired, or is in the table, changes nothing.
func (t *Table) Restore(now time.Time, was Binding) {
	known := slices.ContainsFunc(t.byAOR[was.AOR], func(b *binding) bool {
		return b.Phone == was.Phone && sameURI(b.Contact, was.Contact)
	})
	switch {
	case known, was.AOR == "", !was.Phone.IsValid(), !was.PBX.IsValid(), !was.Expires.After(now):
		return
	case len(t.timers) >= t.MaxBindings:
		t.beyond++
		return
	}
	if limit := now.Add(maxExpiry); was.Expires.After(limit) {
		was.Expires = limit
	}
	was.Site, was.Line, was.LineGone = "", "", false // the daemon's
	b := &binding{Binding: was}
	t.byAOR[was.AOR] = append(t.byAOR[was.AOR], b)
	t.byPhone[was.Phone.Addr()] = append(t.byPhone[was.Phone.Addr()], b)
	heap.Push(&t.timers, b)
}

func (t *Table) removeIf(st *Step, from []*binding, which func(*binding) bool) {
	for _, b := range slices.Clone(from) {
		if which(b) {
			t.remove(b)
			st.Removed = append(st.Removed, b.Binding)
		}
	}
}

func (t *Table) remove(b *binding) {
	heap.Remove(&t.timers, b.at)
	drop(t.byAOR, b.AOR, b)
	drop(t.byPhone, b.Phone.Addr(), b)
}

func drop[K comparable](from map[K][]*binding, k K, b *binding) {
	rest := slices.DeleteFunc(from[k], func(x *binding) bool { return x == b })
	if len(rest) == 0 {
		delete(from, k)
		return
	}
	from[k] = rest
}

// Next is when Expire has something to do; zero: never.
func (t *Table) Next() (next time.Time) {
	if len(t.timers) > 0 {
		next = t.timers[0].Expires
	}
	if r := t.pending.oldest(); r != nil && (next.IsZero() || r.until.Before(next)) {
		next = r.until
	}
	return next
}

// Expire removes what has expired.
func (t *Table) Expire(now time.Time) (st Step) {
	t.pending.expire(now)
	for len(t.timers) > 0 && !t.timers[0].Expires.After(now) {
		b := t.timers[0]
		t.remove(b)
		st.Removed = append(st.Removed, b.Binding)
	}
	return st
}

// Bindings are all bindings, by phone, then by address of record.
func (t *Table) Bindings() []Binding {
	all := make([]Binding, 0, len(t.timers))
	for _, b := range t.timers {
		all = append(all, b.Binding)
	}
	slices.SortFunc(all, compare)
	return all
}

// Known reports whether a phone has a binding at a PBX.
func (t *Table) Known(phone, pbx netip.Addr) bool {
	return slices.ContainsFunc(t.byPhone[phone.Unmap()], func(b *binding) bool { return b.PBX.Addr() == pbx.Unmap() })
}

// RegistrarsOf are the PBXs that a phone has bindings at, in order. Only they may challenge what the phone
// sends within a dialog. Otherwise an attacker INVITEs a phone, answers its BYE with a 407 and gets its digest.
func (t *Table) RegistrarsOf(phone netip.Addr) (all []netip.Addr) {
	for _, b := range t.byPhone[phone.Unmap()] {
		if !slices.Contains(all, b.PBX.Addr()) {
			all = append(all, b.PBX.Addr())
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return all
}

// PhonesOf are the phones with a binding for the address of record in a URI, in order: where a call to it will
// probably be answered.
func (t *Table) PhonesOf(uri []byte) (all []netip.Addr) {
	for _, b := range t.byAOR[aorOf(uri)] {
		if !slices.Contains(all, b.Phone.Addr()) {
			all = append(all, b.Phone.Addr())
		}
	}
	slices.SortFunc(all, netip.Addr.Compare)
	return all
}

// Mapping is a path over UDP that a call from the PBX takes. Where it crosses a NAT, the NAT's mapping has to be
// kept: it ends 120 s after the last packet, and a phone may send nothing for an hour.
type Mapping struct {
	Phone netip.AddrPort `json:"phone"`
	PBX   netip.AddrPort `json:"pbx"`
	Until time.Time      `json:"until"` // of the binding that expires last
}

// Mappings are those of all bindings over UDP, each once, by phone. Over TCP and TLS it is the connection that
// counts.
func (t *Table) Mappings() []Mapping {
	until := map[Mapping]time.Time{}
	for _, b := range t.timers {
		m := Mapping{Phone: b.Phone, PBX: b.PBX}
		if b.Transport == UDP && until[m].Before(b.Expires) {
			until[m] = b.Expires
		}
	}
	all := make([]Mapping, 0, len(until))
	for m, u := range until {
		m.Until = u
		all = append(all, m)
	}
	slices.SortFunc(all, func(a, b Mapping) int { return comparePaths(a.Phone, a.PBX, b.Phone, b.PBX) })
	return all
}

// timers are bindings by expiry, the next one first.
type timers []*binding

func (t timers) Len() int           { return len(t) }
func (t timers) Less(i, j int) bool { return t[i].Expires.Before(t[j].Expires) }
func (t timers) Swap(i, j int)      { t[i], t[j] = t[j], t[i]; t[i].at, t[j].at = i, j }

func (t *timers) Push(x any) {
	b := x.(*binding)
	b.at = len(*t)
	*t = append(*t, b)
}

func (t *timers) Pop() any {
	old := *t
	b := old[len(old)-1]
	old[len(old)-1] = nil
	*t = old[:len(old)-1]
	return b
}
