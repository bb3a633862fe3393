package realtime

import (
	"bytes"
	"maps"
	"net/netip"
	"slices"

	"ringway/tunnel"
	"ringway/tunnel/datagram"
	"ringway/tunnel/path"
	"ringway/units"
)

// Far ends with several addresses, and how much of a line messages about paths may take.

// pathSettings is what holds for paths (tunnel.Paths), ready for a look-up. It is replaced as a whole.
type pathSettings struct {
	remotes map[tunnel.PublicKey][]netip.AddrPort // two at least
	rates   map[tunnel.PublicKey]units.BitRate
	lines   map[netip.Addr]units.BitRate
	metered []netip.Addr
	paces   map[netip.Addr]path.Pace // of our lines, at the last look; those that are not as usual
}

// peerPairs is the paths to a peer, as long as neither settings nor the used one changes.
type peerPairs struct {
	used     path.Path
	lines    *lineAddresses
	settings *pathSettings
	all      []path.Path
	pace     path.Pace // what the peer's own line has space for, at the last look
}

// SetPaths tells the engine at which addresses peers may be reached, and what lines have space for.
func (e *Engine) SetPaths(s tunnel.Paths) error {
	next := &pathSettings{
		remotes: map[tunnel.PublicKey][]netip.AddrPort{}, rates: map[tunnel.PublicKey]units.BitRate{},
		lines: map[netip.Addr]units.BitRate{}, paces: map[netip.Addr]path.Pace{},
	}
	for _, l := range s.Lines {
		if l.Rate > 0 {
			next.lines[l.Source] = l.Rate
		}
		if l.Metered {
			next.metered = append(next.metered, l.Source)
		}
	}
	for _, p := range s.Peers {
		var remotes []netip.AddrPort
		for _, r := range p.Remotes {
			if r.IsValid() && r.Port() != 0 && !r.Addr().IsUnspecified() {
				remotes = append(remotes, netip.AddrPortFrom(r.Addr().Unmap(), r.Port()))
			}
		}
		if len(remotes) > 1 {
			next.remotes[p.Key] = remotes
		}
		if p.Rate > 0 {
			next.rates[p.Key] = p.Rate
		}
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.paths = next
	return nil
}

// pairsLocked are the paths to a peer.
func (e *Engine) pairsLocked(p *peer, used path.Path) []path.Path {
	lines := e.lines.Load()
	if c := &p.pairs; c.used != used || c.lines != lines || c.settings != e.paths {
		var sources []netip.Addr
		if lines != nil {
			sources = append(slices.Clone(lines.v4), lines.v6...)
		}
		c.used, c.lines, c.settings = used, lines, e.paths
		c.all = path.Pairs(sources, e.paths.remotes[p.key], used)
	}
	return p.pairs.all
}

// paceLocked is how often messages about paths may be sent to a peer.
func (e *Engine) paceLocked(p *peer, s path.Seen) path.Pace {
	pace := p.pairs.pace
	for _, line := range s.Paths {
		other := e.paths.paces[line.Source]
		if line.Source != s.Used.Source {
			other.Send, other.Mute = 0, false // nothing but probes is sent there
		}
		pace = pace.Slower(other)
	}
	return pace
}

// setPacesLocked looks at what messages about paths come to on each line, and to each peer.
func (e *Engine) setPacesLocked(now int64) {
	if len(e.paths.lines)+len(e.paths.rates) == 0 {
		return
	}
	loads := map[netip.Addr]path.Load{}
	for _, p := range e.peers {
		to := p.endpoint.Load()
		if to == nil {
			continue
		}
		var whole path.Load
		p.paths.Load(now, e.seenLocked(p, to, now), func(source netip.Addr, l path.Load) {
			loads[source] = loads[source].Plus(l)
			whole = whole.Plus(l)
		})
		p.pairs.pace = path.PaceOf(e.paths.rates[p.key], to.raw.V6(), whole)
	}
	for source, rate := range e.paths.lines {
		e.paths.paces[source] = path.PaceOf(rate, source.Is6(), loads[source])
	}
	maps.DeleteFunc(e.paths.paces, func(_ netip.Addr, p path.Pace) bool { return p == path.Pace{} })
}

// moveLocked sends to a peer by another path from now on. It reports whether the peer was not heard elsewhere at this
// very moment.
func (e *Engine) moveLocked(p *peer, from, to *endpoint, s path.Seen, now int64) bool {
	// First what keeps packets that arrive now from undoing it. Without the move it does no harm.
	if len(e.paths.remotes[p.key]) > 1 {
		leads := bytes.Compare(e.self.public[:], p.key[:]) < 0
		p.hold.Store(path.NewHold(now, pathOf(from), s.Paths, leads))
	}
	if !p.endpoint.CompareAndSwap(from, to) {
		return false
	}
	if len(e.paths.remotes[p.key]) < 2 && from.src.IsValid() {
		p.left.Set([]netip.Addr{from.src}, now+int64(tunnel.TrialTime))
	}
	e.moved.Store(from.raw != to.raw)
	return true
}

// tryNextLocked has the next initiation go by another path, where the peer has several and nothing is heard of it. It
// reports whether it does. Each path has its turn.
func (e *Engine) tryNextLocked(p *peer) bool {
	to := p.endpoint.Load()
	remotes := e.paths.remotes[p.key]
	if to == nil || len(remotes) < 2 || p.receivedAt.Load() > p.initiated && p.initiated != 0 {
		return false
	}
	used := pathOf(to)
	all := e.pairsLocked(p, used)
	if len(all) == 0 { // no address of ours is known: the kernel chooses
		for _, r := range remotes {
			all = append(all, path.Path{Remote: r})
		}
	}
	next := after(all, used, p.tried)
	if next == used || !p.endpoint.CompareAndSwap(to, endpointOf(next)) {
		return false
	}
	p.tried = next
	p.paths.Left(used)
	e.moved.Store(true)
	return true
}

// after is the path that follows used. Where used is in none of all (it has lost its address of ours, which could not
// be sent from, or is that of a line that has gone) it counts as the one tried last, or else as the first to the same
// address of the peer.
func after(all []path.Path, used, tried path.Path) path.Path {
	i := slices.Index(all, used)
	if i < 0 && tried.Remote == used.Remote {
		i = slices.Index(all, tried)
	}
	if i < 0 {
		i = slices.IndexFunc(all, func(o path.Path) bool { return o.Remote == used.Remote })
	}
	return all[(i+1)%len(all)]
}

func endpointOf(p path.Path) *endpoint { return newEndpoint(datagram.RawSockaddr(p.Remote), p.Source) }

// pathOf is the path of an endpoint. It is not for a forwarding thread.
func pathOf(e *endpoint) path.Path { return path.Path{Source: e.src, Remote: e.raw.AddrPort()} }
