package endpoint

import (
	"context"
	"net/netip"
	"time"

	"ringway/tunnel"
)

const (
	lookupInterval = 30 * time.Second // a name that moved is found within this
	retryInterval  = 2 * time.Second  // while a name does not resolve, as at boot before the WAN is up
	lookupTimeout  = 5 * time.Second
)

// Query is what is to be looked up, and with which means.
type Query struct {
	Sites    []tunnel.Site
	Families Families
	Servers  []Server // named by DHCP; none: the system's are asked
	// Alive are the peers that some tunnel has a living session with.
	Alive map[tunnel.PublicKey]bool
}

// Names keeps the memory's names up to date.
type Names struct {
	memory *Memory
	query  func(context.Context) Query
	report func(changed bool, failed map[string]error)
	again  chan struct{}
	lookup func(servers []Server) lookup
}

// NewNames returns Names that ask query before every round of look-ups what is wanted, and call report after
// it: whether a name has a new address, and which names do not resolve.
func NewNames(
	m *Memory, query func(context.Context) Query, report func(changed bool, failed map[string]error),
) *Names {
	return &Names{memory: m, query: query, report: report, again: make(chan struct{}, 1), lookup: lookupAt}
}

// Again makes Run look up the names at once. It does not block.
func (n *Names) Again() {
	select {
	case n.again <- struct{}{}:
	default:
	}
}

// Run looks up the names at once and then regularly, until ctx ends.
func (n *Names) Run(ctx context.Context, ready func()) error {
	ready()
	for {
		wait := lookupInterval
		if n.round(ctx) > 0 {
			wait = retryInterval
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-n.again:
			timer.Stop()
		case <-timer.C:
		}
	}
}

func (n *Names) round(ctx context.Context) (failures int) {
	limited, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	found, failed := n.resolveAll(limited, n.query(limited))
	if ctx.Err() != nil {
		return 0
	}
	n.report(n.memory.setNames(found), failed)
	return len(failed)
}

// resolveAll looks up all names at the same time: ten dead names take one timeout and not ten.
func (n *Names) resolveAll(ctx context.Context, q Query) (found map[string]netip.Addr, failed map[string]error) {
	look := n.lookup(q.Servers)
	type answer struct {
		host string
		addr netip.Addr
		err  error
	}
	answers := make(chan answer)

	uses := n.memory.uses(q)
	for host, u := range uses {
		go func() {
			a, err := q.Families.resolve(ctx, look, host, u.addr, u.silent)
			answers <- answer{host, a, err}
		}()
	}

	found, failed = map[string]netip.Addr{}, map[string]error{}
	for range uses {
		a := <-answers
		if a.err != nil {
			failed[a.host] = a.err
			continue
		}
		found[a.host] = a.addr
	}
	return found, failed
}

// use is the address that a configured endpoint has meant so far.
type use struct {
	addr   netip.Addr
	silent bool // no peer behind it has answered for long enough
}

// uses returns the use of every configured endpoint.
func (m *Memory) uses(q Query) map[string]use {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := map[string]use{}
	alive := map[string]bool{}
	for _, s := range q.Sites {
		for i, host := range s.Endpoints() {
			alive[host] = alive[host] || q.Alive[s.PublicKey]
			if all[host].addr.IsValid() {
				continue
			}

			if n, ok := m.names[host]; ok {
				all[host] = use{addr: n.addr, silent: m.now().Sub(n.since) >= tryFor}
				continue
			}
			// The daemon has just started: its planes may have a session at what the name meant before.
			all[host] = use{addr: m.lastMeantLocked(s, i)}
		}
	}
	for host, u := range all {
		u.silent = u.silent && !alive[host]
		all[host] = u
	}
	return all
}

// lastMeantLocked is what the nth configured endpoint of a site meant before, also before a restart; zero: not known.
func (m *Memory) lastMeantLocked(s tunnel.Site, n int) netip.Addr {
	hosts := s.Endpoints()
	for _, c := range tunnel.Classes {
		p := m.known[c][s.PublicKey.String()]
		if a := p.Meant[hosts[n]]; a.IsValid() {
			return a
		}
		// An earlier build noted no names.
		if all := p.resolvedList(); p.Meant == nil && len(all) == len(hosts) {
			return all[n].Addr()
		}
	}
	return netip.Addr{}
}

// setNames takes what was found. A name that does not resolve keeps its address.
func (m *Memory) setNames(found map[string]netip.Addr) (changed bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for host, a := range found {
		old := m.names[host]
		if old.addr == a {
			continue
		}
		if old.addr.IsValid() {
			m.log.Info("endpoint has a new address", "endpoint", host, "was", old.addr, "is", a)
		}
		m.names[host], changed = name{addr: a, since: m.now()}, true
	}
	return changed
}

// SetLiterals takes the endpoints that are addresses: they need no name server.
func (m *Memory) SetLiterals(sites []tunnel.Site) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range sites {
		for _, host := range s.Endpoints() {
			if a, err := netip.ParseAddr(host); err == nil {
				m.names[host] = name{addr: a.Unmap()}
			}
		}
	}
}

// Alive returns the peers of an engine that it has a living session with, as far as handshakes show.
func Alive(peers []tunnel.PeerStatus) (alive []tunnel.PublicKey) {
	for _, p := range peers {
		if time.Since(p.LastHandshake) < silentAfter {
			alive = append(alive, p.PublicKey)
		}
	}
	return alive
}
