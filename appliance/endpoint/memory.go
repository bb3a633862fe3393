// Package endpoint knows where every peer is: the address that its configured endpoint resolves to, and the
// address where it was last heard. It is the only owner of that knowledge, which outlives planes, the daemon
// and the machine: without it, a hub that restarts could not call the sites that dial in.
package endpoint

import (
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
	// tryFor is how long an address is tried before another one: four handshakes, REKEY-TIMEOUT apart.
	tryFor = 20 * time.Second
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
	reports uint64                            // how many times a peer was heard at a new place
	unsaved bool                              // known is not what the file holds
	saveErr string                            // of the last Save; logged once
}

// place is where one peer is in one class: each class has sockets of its own, and so NAT bindings of its own.
type place struct {
	Resolved netip.AddrPort `json:"resolved"` // what the configured endpoint last meant; zero: the site dials in
	Current  netip.AddrPort `json:"current"`  // where the latest authenticated packet came from, or Resolved
	heard    uint64         // the value of reports when it was heard there; 0 before this daemon heard it
}

type peerKey struct {
	class tunnel.Class
	peer  tunnel.PublicKey
}

// told is what an engine was last told of a peer, or is about to be told.
type told struct {
	resolved, current netip.AddrPort
	revision          int // as tunnel.Peer.EndpointRevision
	at                time.Time
	// left is where the peer was before that revision, as the engine goes on reporting until it has been
	// told; zero: it has.
	left netip.AddrPort
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
		told: map[peerKey]told{}, names: map[string]name{}, unsaved: true,
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
	c.known = map[tunnel.Class]map[string]place{}
	for class, places := range m.known {
		c.known[class] = maps.Clone(places)
	}
	return c
}

// Tell returns the endpoint that an engine is to be told for a site: what the configured endpoint resolves
// to, unless the peer has moved since that same address was last told. Where nothing resolves (the site dials
// in, or its name does not resolve now) it is the last known place; zero: none is known. revision counts up
// when the configured endpoint means something else than before: an engine that has a session elsewhere must
// be told.
//
// What was told once is told again until the resolved address changes. An engine follows a roaming peer by
// itself, and obeys every change from here, which would send a peer that moves quickly back to where it was a
// moment ago.
func (m *Memory) Tell(c tunnel.Class, s tunnel.Site) (at netip.AddrPort, revision int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.tellLocked(peerKey{c, s.PublicKey}, m.resolvedLocked(c, s))
}

func (m *Memory) tellLocked(key peerKey, resolved netip.AddrPort) (at netip.AddrPort, revision int) {
	if t, ok := m.told[key]; ok && t.current.IsValid() && (t.resolved == resolved || !resolved.IsValid()) {
		return t.current, t.revision
	}

	p, known := m.known[key.class][key.peer.String()]
	t := told{resolved: resolved, current: p.Current, at: m.now()}
	if resolved.IsValid() && !(known && p.Resolved == resolved && p.Current.IsValid()) {
		t = m.reviseLocked(key, resolved)
	}
	m.told[key] = t
	return t.current, t.revision
}

// reviseLocked moves a peer to where its configured endpoint says.
func (m *Memory) reviseLocked(key peerKey, resolved netip.AddrPort) told {
	t := told{resolved: resolved, current: resolved, revision: m.told[key].revision + 1, at: m.now()}
	if left := m.known[key.class][key.peer.String()].Current; left != resolved {
		t.left = left
	}
	m.setLocked(key.class, key.peer, place{Resolved: resolved, Current: resolved})
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
		if at := m.known[d.Class][p.PublicKey.String()].Current; at.IsValid() {
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
	if p := m.known[c][s.PublicKey.String()]; p.Current.IsValid() {
		return p.Current, p.heard
	}
	return m.resolvedLocked(c, s), 0
}

func (m *Memory) resolvedLocked(c tunnel.Class, s tunnel.Site) netip.AddrPort {
	if a := m.names[s.Endpoint].addr; a.IsValid() {
		return netip.AddrPortFrom(a, s.Port(c))
	}
	return netip.AddrPort{}
}

// Heard records where an engine has its peers, and reports whether any of them moved. It ignores a peer that no
// engine was told of: a plane is not trusted, and must not fill the memory and the file.
func (m *Memory) Heard(c tunnel.Class, at map[tunnel.PublicKey]netip.AddrPort) (moved bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k, a := range at {
		p, known := m.known[c][k.String()]
		t, asked := m.told[peerKey{c, k}]
		if !known && !asked || !a.IsValid() || a == p.Current || a == t.left {
			continue
		}
		m.reports++
		p.Current, p.heard = a, m.reports
		m.setLocked(c, k, p)
		moved = true
	}
	return moved
}

// Observe records where an engine has the peers it has shaken hands with. A peer that is silent where it was
// last heard is looked for again where its configured endpoint says (a hub that failed over to its second
// line and back while this machine was off): retried reports that an engine is to be told.
func (m *Memory) Observe(c tunnel.Class, peers []tunnel.PeerStatus) (moved, retried bool) {
	at := map[tunnel.PublicKey]netip.AddrPort{}
	for _, p := range peers {
		if !p.LastHandshake.IsZero() {
			at[p.PublicKey] = p.Endpoint
		}
		if m.retry(c, p.PublicKey, p.LastHandshake) {
			m.log.Info("site is silent where it was last heard; trying its configured endpoint",
				"site", p.Site, "class", c)
			retried = true
		}
	}
	return m.Heard(c, at), retried
}

func (m *Memory) retry(c tunnel.Class, k tunnel.PublicKey, lastHandshake time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := peerKey{c, k}
	t, ok := m.told[key]
	now := m.now()
	if !ok || !t.resolved.IsValid() || now.Sub(lastHandshake) < silentAfter || now.Sub(t.at) < tryFor {
		return false
	}
	if t.current == t.resolved && m.known[c][k.String()].Current == t.resolved {
		return false // there is nowhere else to look
	}
	m.told[key] = m.reviseLocked(key, t.resolved)
	return true
}

func (m *Memory) setLocked(c tunnel.Class, k tunnel.PublicKey, p place) {
	if m.known[c] == nil {
		m.known[c] = map[string]place{}
	}
	m.known[c][k.String()] = p
	m.unsaved = true
}

// KeepOnly forgets everything about other peers and other names, so that the file does not grow forever.
func (m *Memory) KeepOnly(sites []tunnel.Site) {
	peers, hosts := map[string]bool{}, map[string]bool{}
	for _, s := range sites {
		peers[s.PublicKey.String()], hosts[s.Endpoint] = true, true
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.told, func(k peerKey, _ told) bool { return !peers[k.peer.String()] })
	maps.DeleteFunc(m.names, func(host string, _ name) bool { return !hosts[host] })
	for _, known := range m.known {
		before := len(known)
		maps.DeleteFunc(known, func(k string, _ place) bool { return !peers[k] })
		m.unsaved = m.unsaved || len(known) < before
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
	if err == nil {
		m.saveErr = ""
		return nil
	}
	m.unsaved = true
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
	if !m.unsaved {
		return nil, nil
	}
	b, err := json.MarshalIndent(m.known, "", "  ")
	if err != nil {
		return nil, err
	}
	m.unsaved = false
	return append(b, '\n'), nil
}
