// Package endpoint knows where every peer is: the address that its configured endpoint resolves to, and the
// address where it was last heard. It is the only owner of that knowledge, which outlives planes, the daemon
// and the machine: without it, a hub that restarts could not call the sites that dial in.
package endpoint

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"ringway/durable"
	"ringway/tunnel"
)

const (
	// silentAfter is REJECT-AFTER-TIME (WireGuard paper, section 6.1): no session lives longer without a
	// handshake.
	silentAfter = 180 * time.Second
	// tryFor is how long an address is tried before another one: four handshakes, REKEY-TIMEOUT apart. It doubles each
	// time that all were tried, up to longestTry: a site that is closed is no reason to be busy.
	tryFor     = 20 * time.Second
	longestTry = 5 * time.Minute
)

// Memory is safe for concurrent use.
type Memory struct {
	path string
	log  *slog.Logger
	now  func() time.Time

	saving sync.Mutex // held while the file is written; before mu

	mu      sync.Mutex
	known   map[tunnel.Class]map[string]place // by public key; what the file holds
	told    map[peerKey]told                  // what the engines were last told
	names   map[string]name                   // by configured endpoint
	steered map[peerKey]*steering             // of peers that have several addresses
	wan     func(netip.Addr) string           // the interface of an address of ours; nil: not known
	reports uint64                            // how many times a peer was heard at a new place
	unsaved bool                              // known is not what the file holds
	later   bool                              // nor is when peers were heard last
	changed time.Time                         // when it first became so
	written time.Time                         // the file, last; zero: not by this daemon
	saveErr string                            // of the last Save; logged once
}

// place is where one peer is in one class: each class has sockets of its own, and so NAT bindings of its own.
type place struct {
	Resolved netip.AddrPort        `json:"resolved"`        // what the configured endpoint last meant; zero: the site dials in
	Also     []netip.AddrPort      `json:"also,omitempty"`  // what further ones meant
	Current  netip.AddrPort        `json:"current"`         // where the latest authenticated packet came from, or one of those
	Meant    map[string]netip.Addr `json:"meant,omitempty"` // what each configured name meant last; it is replaced as a whole
	Heard    []heardAt             `json:"heard,omitempty"` // places where the peer was heard, the latest first
	heard    uint64                // the value of reports when it was heard there; 0 before this daemon heard it
}

type peerKey struct {
	class tunnel.Class
	peer  tunnel.PublicKey
}

// told is what an engine was last told of a peer, or is about to be told.
type told struct {
	resolved []netip.AddrPort // in order of preference
	current  netip.AddrPort
	revision int // as tunnel.Peer.EndpointRevision
	at       time.Time
	// left is where the peer was before that revision, as the engine goes on reporting until it has been
	// told; zero: it has.
	left netip.AddrPort
	// trying is where the peer is looked for while it is silent; zero: it is not. The file does not hold it: that
	// nobody answers is no reason to write.
	trying netip.AddrPort
	tries  int // how many places it was looked for at since it was heard
}

// place is where the peer is sent to: p's, unless it is looked for elsewhere.
func (t told) place(p place) netip.AddrPort {
	if t.trying.IsValid() {
		return t.trying
	}
	return p.Current
}

// name is what a configured endpoint means.
type name struct {
	addr  netip.Addr
	since time.Time // zero for an address literal
}

// Load reads the memory from a file. A file that cannot be read costs a wait until the peers call, but not
// the start.
func Load(path string, log *slog.Logger) *Memory {
	m := &Memory{
		path: path, log: log, now: time.Now,
		told: map[peerKey]told{}, names: map[string]name{}, steered: map[peerKey]*steering{}, unsaved: true,
	}
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &m.known)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Warn("cannot read the endpoint memory; starting without it", "file", path, "error", err)
		m.known = nil
	}
	if m.known == nil {
		m.known = map[tunnel.Class]map[string]place{}
	}
	return m
}

// Clone returns a copy that can be asked and told without anybody noticing: it is never saved.
func (m *Memory) Clone() *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := &Memory{log: m.log, now: m.now, reports: m.reports, told: maps.Clone(m.told), names: maps.Clone(m.names)}
	c.steered = map[peerKey]*steering{}
	c.known = map[tunnel.Class]map[string]place{}
	for class, places := range m.known {
		c.known[class] = maps.Clone(places)
	}
	return c
}

// NameLines has the memory note by which WAN a peer is heard: wan is the interface of an address of ours, "" where
// there is none.
func (m *Memory) NameLines(wan func(netip.Addr) string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.wan = wan
}

// Tell returns the endpoint that an engine is to be told for a site: what the configured endpoint, or the first of
// several, resolves to, unless the peer has moved since that same address was last told. Where nothing resolves (the
// site dials in, or its name does not resolve now) it is the last known place; zero: none is known. revision counts up
// when the configured endpoint means something else than before: an engine that has a session elsewhere must be told.
//
// What was told once is told again until the resolved address changes. An engine follows a roaming peer by
// itself, and obeys every change from here, which would send a peer that moves quickly back to where it was a
// moment ago.
func (m *Memory) Tell(c tunnel.Class, s tunnel.Site) (at netip.AddrPort, revision int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	resolved, whole := m.resolvedLocked(c, s)
	m.meanLocked(c, s)
	return m.tellLocked(peerKey{c, s.PublicKey}, resolved, whole)
}

// tellLocked is Tell. While not every endpoint has an address (whole is false), one that is missing is not taken for
// one that has changed.
func (m *Memory) tellLocked(key peerKey, resolved []netip.AddrPort, whole bool) (at netip.AddrPort, revision int) {
	same := func(before []netip.AddrPort) bool {
		return slices.Equal(before, resolved) || !whole && within(resolved, before)
	}
	before, ok := m.told[key]
	if ok && before.current.IsValid() && (same(before.resolved) || len(resolved) == 0) {
		return before.current, before.revision
	}

	p, known := m.known[key.class][key.peer.String()]
	t := before
	t.resolved, t.current, t.at = resolved, before.place(p), m.now()
	switch {
	case len(resolved) == 0:
	case known && t.current.IsValid() && same(p.resolvedList()):
		t.resolved = p.resolvedList()
	case len(resolved) > 1 && slices.Contains(resolved, t.current): // another one of the list has changed
		p.setResolved(resolved)
		m.setLocked(key.class, key.peer, p)
	default:
		t = m.reviseLocked(key, resolved[0], resolved)
		t.tries = 0
	}
	m.told[key] = t
	return t.current, t.revision
}

// within reports whether all of some are in all.
func within(some, all []netip.AddrPort) bool {
	return !slices.ContainsFunc(some, func(a netip.AddrPort) bool { return !slices.Contains(all, a) })
}

// reviseLocked moves a peer to where a configured endpoint says.
func (m *Memory) reviseLocked(key peerKey, to netip.AddrPort, resolved []netip.AddrPort) told {
	p := m.known[key.class][key.peer.String()]
	t := m.movedLocked(key, p, to, resolved)
	p.setResolved(resolved)
	p.Current, p.heard = to, 0
	m.setLocked(key.class, key.peer, p)
	return t
}

// movedLocked is what an engine is told to have it send to a peer at another place.
func (m *Memory) movedLocked(key peerKey, p place, to netip.AddrPort, resolved []netip.AddrPort) told {
	before := m.told[key]
	t := told{resolved: resolved, current: to, revision: before.revision + 1, at: m.now(), tries: before.tries}
	if at := before.place(p); at != to {
		t.left = at
	}
	return t
}

// Told records that an engine was told d, as Tell said: from now on its reports count again.
func (m *Memory) Told(d tunnel.Device) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range d.Peers {
		key := peerKey{d.Class, p.PublicKey}
		if t, ok := m.told[key]; ok && t.revision == p.EndpointRevision {
			t.left = netip.AddrPort{}
			m.told[key] = t
		}
	}
}

// Latest returns d with every peer where it was last heard, for an engine that starts and so has heard none.
func (m *Memory) Latest(d tunnel.Device) tunnel.Device {
	m.mu.Lock()
	defer m.mu.Unlock()
	d.Peers = slices.Clone(d.Peers)
	for i, p := range d.Peers {
		at := m.told[peerKey{d.Class, p.PublicKey}].place(m.known[d.Class][p.PublicKey.String()])
		if at.IsValid() {
			d.Peers[i].Endpoint = at
		}
	}
	return d
}

// Where returns where a site is now as far as is known: where it was last heard, or else where its configured
// endpoint says. Of two peers at one place, the one with the higher heard was heard there last.
func (m *Memory) Where(c tunnel.Class, s tunnel.Site) (at netip.AddrPort, heard uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	t := m.told[peerKey{c, s.PublicKey}]
	if t.trying.IsValid() {
		return t.trying, 0
	}
	if p := m.known[c][s.PublicKey.String()]; p.Current.IsValid() {
		return p.Current, p.heard
	}
	if all, _ := m.resolvedLocked(c, s); len(all) > 0 {
		return all[0], 0
	}
	return netip.AddrPort{}, 0
}

// Heard records where an engine has its peers, and reports whether any of them moved. It ignores a peer that no
// engine was told of: a plane is not trusted, and must not fill the memory and the file.
func (m *Memory) Heard(c tunnel.Class, at map[tunnel.PublicKey]netip.AddrPort) (moved bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, a := range at {
		p, known := m.known[c][k.String()]
		t, asked := m.told[peerKey{c, k}]
		if !known && !asked || !a.IsValid() || a == t.place(p) || a == t.left {
			continue
		}
		m.heardLocked(peerKey{c, k}, a)
		moved = true
	}
	return moved
}

// heardLocked notes that a peer was heard at a place.
func (m *Memory) heardLocked(key peerKey, at netip.AddrPort) {
	m.reports++
	p := m.known[key.class][key.peer.String()]
	p.heard = m.reports
	if t := m.told[key]; t.trying.IsValid() { // it is not looked for any more
		t.trying = netip.AddrPort{}
		m.told[key] = t
	}
	if p.Current != at {
		p.Current = at
		m.changedLocked()
	}
	m.putLocked(key.class, key.peer, p)
}

// Observe records where an engine has the peers it has shaken hands with. A peer that is silent where it was
// last heard is looked for where its configured endpoints say (a hub that failed over to its second line and back while
// this machine was off), and where it was heard before: retried reports that an engine is to be told.
func (m *Memory) Observe(c tunnel.Class, peers []tunnel.PeerStatus) (moved, retried bool) {
	at := map[tunnel.PublicKey]netip.AddrPort{}
	for _, p := range peers {
		if !p.LastHandshake.IsZero() {
			at[p.PublicKey] = p.Endpoint
		}
		if m.answered(c, p) {
			moved = true
			continue
		}
		if to, tries := m.retry(c, p.PublicKey, p.LastHandshake); to.IsValid() {
			level := slog.LevelDebug
			if tries == 1 { // the further ones are for every site that is switched off
				level = slog.LevelInfo
			}
			m.log.Log(context.Background(), level, "site is silent where it was last heard; trying another address",
				"site", p.Site, "class", c, "address", to)
			retried = true
		}
	}
	moved = m.Heard(c, at) || moved
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range peers {
		if m.now().Sub(p.LastHandshake) < silentAfter {
			m.rememberLocked(c, p.PublicKey, heardAt{p.Endpoint, m.wanOfLocked(p), p.LastHandshake.UTC().Truncate(time.Second)})
		}
	}
	return moved, retried
}

// wanOfLocked is the interface by which a peer is sent to; "": not known.
func (m *Memory) wanOfLocked(p tunnel.PeerStatus) string {
	i := slices.IndexFunc(p.Paths, func(s tunnel.PathStatus) bool { return s.Used && s.Source.IsValid() })
	if i < 0 || m.wan == nil {
		return ""
	}
	return m.wan(p.Paths[i].Source)
}

// answered notes that a peer that was silent has answered. moved reports that it did where it was looked for.
func (m *Memory) answered(c tunnel.Class, s tunnel.PeerStatus) (moved bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := peerKey{c, s.PublicKey}
	t, ok := m.told[key]
	if !ok || m.now().Sub(s.LastHandshake) >= silentAfter {
		return false
	}
	t.tries = 0
	m.told[key] = t
	if moved = t.trying.IsValid() && s.Endpoint == t.trying && !s.LastHandshake.Before(t.at); moved {
		m.heardLocked(key, s.Endpoint)
	}
	return moved
}

// retry is where a silent peer is to be looked for next, and at how many places it was since it was silent; zero: it is
// not silent, or there is nowhere else to look, or it has time to answer yet.
func (m *Memory) retry(c tunnel.Class, k tunnel.PublicKey, lastHandshake time.Time) (to netip.AddrPort, tries int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := peerKey{c, k}
	t, ok := m.told[key]
	now := m.now()
	if !ok || now.Sub(lastHandshake) < silentAfter {
		return to, 0
	}
	p := m.known[c][k.String()]
	to = p.after(t.place(p), t.resolved)
	if !to.IsValid() || now.Sub(t.at) < patience(t.tries, len(p.places(t.resolved))) {
		return netip.AddrPort{}, 0
	}
	t = m.movedLocked(key, p, to, t.resolved)
	t.trying = to
	t.tries++
	m.told[key] = t
	return to, t.tries
}

// patience is how long a peer has to answer where it is looked for, after so many tries at one of so many places.
func patience(tries, places int) time.Duration {
	d := tryFor
	for ; tries >= places && d < longestTry; tries -= places {
		d *= 2
	}
	return min(d, longestTry)
}

func (m *Memory) setLocked(c tunnel.Class, k tunnel.PublicKey, p place) {
	m.putLocked(c, k, p)
	m.changedLocked()
}

func (m *Memory) putLocked(c tunnel.Class, k tunnel.PublicKey, p place) {
	if m.known[c] == nil {
		m.known[c] = map[string]place{}
	}
	m.known[c][k.String()] = p
}

// KeepOnly forgets everything about other peers and other names, so that the file does not grow forever.
func (m *Memory) KeepOnly(sites []tunnel.Site) {
	peers, hosts := map[string]bool{}, map[string]bool{}
	for _, s := range sites {
		peers[s.PublicKey.String()] = true
		for _, host := range s.Endpoints() {
			hosts[host] = true
		}
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.told, func(k peerKey, _ told) bool { return !peers[k.peer.String()] })
	maps.DeleteFunc(m.steered, func(k peerKey, _ *steering) bool { return !peers[k.peer.String()] })
	maps.DeleteFunc(m.names, func(host string, _ name) bool { return !hosts[host] })
	for _, known := range m.known {
		before := len(known)
		maps.DeleteFunc(known, func(k string, _ place) bool { return !peers[k] })
		if len(known) < before {
			m.changedLocked()
		}
	}
}

// Save writes the file if it has to change. A new error is logged; the next call tries again.
func (m *Memory) Save() error {
	m.saving.Lock()
	defer m.saving.Unlock()

	b, err := m.take()
	if b == nil || err != nil {
		return err
	}

	// The disk may be slow, and engines report all the time: the memory is not locked meanwhile.
	err = durable.WriteFile(m.path, b, 0o600)

	m.mu.Lock()
	defer m.mu.Unlock()
	m.written = m.now() // also if that failed: a disk that is full is not tried every second
	if err == nil {
		m.saveErr = ""
		return nil
	}
	m.changedLocked()
	if err.Error() != m.saveErr {
		m.saveErr = err.Error()
		m.log.Warn("cannot save the endpoint memory; will retry", "error", err)
	}
	return err
}

// take returns what the file has to hold, and nil if it does already.
func (m *Memory) take() ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.unsaved && !m.later {
		return nil, nil
	}
	b, err := json.MarshalIndent(m.known, "", "  ")
	if err != nil {
		return nil, err
	}
	m.unsaved, m.later = false, false
	return append(b, '\n'), nil
}
