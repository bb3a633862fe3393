package appliance

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

	"ringway/appliance/config"
	"ringway/tunnel"
)

// endpointMemory remembers where each peer was last heard, over restarts of planes, of the daemon and
// of the box. Without it a hub that restarts could not call the sites that dial in.
type endpointMemory struct {
	path string
	log  *slog.Logger

	mu      sync.Mutex
	known   map[tunnel.Class]map[string]rememberedEndpoint // by public key
	changed bool                                           // since takeChanged
	told    map[toldKey]told                               // what choose last said, and for which resolved address
	heard   uint64                                         // how often saw was told something new
	now     func() time.Time
}

type toldKey struct {
	class tunnel.Class
	peer  tunnel.PublicKey
}

type told struct {
	rememberedEndpoint
	news int // as tunnel.Peer.EndpointNews
	at   time.Time
}

// rememberedEndpoint is what is known of one peer in one class.
type rememberedEndpoint struct {
	Resolved netip.AddrPort `json:"resolved"` // what the configured name or address last meant; zero for a site that dials in
	Current  netip.AddrPort `json:"current"`  // where the latest authenticated packet came from, or Resolved
	when     uint64         // the later it was heard there, the higher; 0 before this daemon heard it
}

func loadEndpoints(path string, log *slog.Logger) *endpointMemory {
	m := &endpointMemory{path: path, log: log, known: map[tunnel.Class]map[string]rememberedEndpoint{}, told: map[toldKey]told{}, now: time.Now}
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return m
	}
	if err == nil {
		err = json.Unmarshal(b, &m.known)
	}
	if err != nil || m.known == nil { // losing the memory costs a wait for the peers to call; it must not cost the start
		log.Warn("endpoint memory cannot be read; starting without it", "file", path, "error", err)
		m.known = map[tunnel.Class]map[string]rememberedEndpoint{}
	}
	return m
}

// choose gives the endpoint that a device should be told: resolved, unless the peer has moved since that
// same address was last told. A zero resolved (dials in, or the name does not resolve now) gives the last one known.
// It is news if it is not what the peer's endpoint meant before: an engine that has a session elsewhere must be told.
//
// What was said once is said again until resolved changes: an engine follows a roaming peer by itself, and takes a
// change from here for news, which would send a peer that moves quickly back to where it was a moment ago.
func (m *endpointMemory) choose(c tunnel.Class, k tunnel.PublicKey, resolved netip.AddrPort) (endpoint netip.AddrPort, news int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := toldKey{c, k}
	if t, ok := m.told[key]; ok && t.Current.IsValid() && (t.Resolved == resolved || !resolved.IsValid()) {
		return t.Current, t.news
	}
	e, ok := m.known[c][k.String()]
	if resolved.IsValid() && !(ok && e.Resolved == resolved && e.Current.IsValid()) {
		e, news = rememberedEndpoint{Resolved: resolved, Current: resolved}, m.told[key].news+1
		m.setLocked(c, k, e)
	}
	m.told[key] = told{rememberedEndpoint{Resolved: resolved, Current: e.Current}, news, m.now()}
	return e.Current, news
}

// giveUp goes back to what the configured endpoint means, for a peer that was last heard elsewhere and is silent there
// now (a hub that failed over to its second line and back while this box was off). It says whether that changed anything.
func (m *endpointMemory) giveUp(c tunnel.Class, k tunnel.PublicKey, lastHandshake time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	key := toldKey{c, k}
	t, ok := m.told[key]
	now := m.now()
	if !ok || !t.Resolved.IsValid() || now.Sub(lastHandshake) < silentAfter || now.Sub(t.at) < tryFor {
		return false
	}
	e := m.known[c][k.String()]
	if t.Current == t.Resolved && e.Current == t.Resolved {
		return false
	}
	e = rememberedEndpoint{Resolved: t.Resolved, Current: t.Resolved}
	m.setLocked(c, k, e)
	m.told[key] = told{e, t.news + 1, now}
	return true
}

// lastMeant is what the configured endpoint of a peer meant before, also before a restart; zero: not known.
func (m *endpointMemory) lastMeant(k tunnel.PublicKey) netip.Addr {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, c := range tunnel.Classes {
		if e := m.known[c][k.String()]; e.Resolved.IsValid() {
			return e.Resolved.Addr()
		}
	}
	return netip.Addr{}
}

// anew gives d the endpoints where its peers were heard last: an engine that is made now knows of no roaming.
func (m *endpointMemory) anew(d tunnel.Device) tunnel.Device {
	m.mu.Lock()
	defer m.mu.Unlock()
	d.Peers = slices.Clone(d.Peers)
	for i, p := range d.Peers {
		e := m.known[d.Class][p.PublicKey.String()]
		if !e.Current.IsValid() {
			continue
		}
		d.Peers[i].Endpoint = e.Current
		key := toldKey{d.Class, p.PublicKey}
		if t, ok := m.told[key]; ok {
			t.Current = e.Current
			m.told[key] = t
		}
	}
	return d
}

const (
	silentAfter = 180 * time.Second // REJECT-AFTER-TIME (WireGuard paper, section 6.1): a session is dead then
	tryFor      = 20 * time.Second  // four handshakes, REKEY-TIMEOUT apart
)

// saw records where peers were heard. It reports whether anything changed.
func (m *endpointMemory) saw(c tunnel.Class, eps map[tunnel.PublicKey]netip.AddrPort) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	changed := false
	for k, ep := range eps {
		e := m.known[c][k.String()]
		if ep.IsValid() && e.Current != ep {
			m.heard++
			e.Current, e.when = ep, m.heard
			m.setLocked(c, k, e)
			changed, m.changed = true, true
		}
	}
	return changed
}

// current is where a peer was last heard, or means to be; the later, the higher is when.
func (m *endpointMemory) current(c tunnel.Class, k tunnel.PublicKey) (at netip.AddrPort, when uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.known[c][k.String()]
	return e.Current, e.when
}

func (m *endpointMemory) setLocked(c tunnel.Class, k tunnel.PublicKey, e rememberedEndpoint) {
	if m.known[c] == nil {
		m.known[c] = map[string]rememberedEndpoint{}
	}
	m.known[c][k.String()] = e
}

// keepOnly forgets peers that are no longer configured, so that the file does not grow for ever.
func (m *endpointMemory) keepOnly(sites []config.Site) {
	keep := map[string]bool{}
	for _, s := range sites {
		keep[s.PublicKey.String()] = true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	maps.DeleteFunc(m.told, func(k toldKey, _ told) bool { return !keep[k.peer.String()] })
	for _, peers := range m.known {
		maps.DeleteFunc(peers, func(k string, _ rememberedEndpoint) bool { return !keep[k] })
	}
}

func (m *endpointMemory) save() error {
	m.mu.Lock()
	b, err := json.MarshalIndent(m.known, "", "  ")
	m.mu.Unlock()
	if err != nil {
		return err
	}
	return writeFileAtomic(m.path, append(b, '\n'), 0o600)
}

// takeChanged says whether saw changed anything since the last call.
func (m *endpointMemory) takeChanged() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.changed
	m.changed = false
	return c
}
