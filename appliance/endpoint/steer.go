package endpoint

import (
	"net/netip"
	"slices"
	"time"

	"ringway/tunnel"
)

// Engines that do not know several addresses of a peer (the kernel's, wireguard-go, the plane of an earlier release)
// are led by the daemon: by what the voice tunnel finds of the same site, or by silence.

const (
	// silentFor is the longest time in which nothing is heard of a peer that was sent data: any WireGuard answers with a
	// keepalive after 10 s, if with nothing else (paper, section 6.5), and takes a moment.
	silentFor     = 12 * time.Second
	longestSilent = 5 * time.Minute
	// keepalives in a look are this many bytes at most: two.
	keepalives = 2 * 32
	// steerLooks is how often in a row the voice tunnel has to find an address silent, and backAfter, for how long it has
	// to use another one until the data tunnel follows although its own is heard.
	steerLooks = 2
	backAfter  = 5 * time.Second

	maxMoves = 10
)

// Why a peer is sent to at another address.
const (
	whyNotHeard = "nothing was received"
	whyVoice    = "the voice tunnel uses it"
)

// steering is what is known of a peer with several addresses.
type steering struct {
	at      netip.AddrPort
	rx, tx  uint64
	pending time.Time // since when what was sent is unanswered; zero: it is not
	heard   time.Time // when something was received last at the present address; zero: nothing yet
	futile  int       // moves in a row after which nothing was received
	silent  int       // looks in a row at which the voice tunnel found the address silent
	voice   time.Time // since when the voice tunnel uses another address
	moves   []tunnel.PathMove
}

// Steer looks at the peers of an engine, once a second, and has those that have several addresses sent to at another
// one where that is needed. voice are the peers of the voice tunnel; those that say by which addresses they are
// reached are left to themselves, and lead the data tunnel. moved reports that the engine is to be told.
func (m *Memory) Steer(c tunnel.Class, sites []tunnel.Site, peers, voice []tunnel.PeerStatus) (moved bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range sites {
		i := slices.IndexFunc(peers, func(p tunnel.PeerStatus) bool { return p.PublicKey == s.PublicKey })
		key := peerKey{c, s.PublicKey}
		remotes, _ := m.resolvedLocked(c, s)
		if i < 0 || len(remotes) < 2 || knowsRemotes(peers[i]) {
			delete(m.steered, key)
			continue
		}
		st := m.steered[key]
		if st == nil {
			st = &steering{}
			m.steered[key] = st
		}
		var to netip.AddrPort
		var why string
		if j := slices.IndexFunc(voice, func(p tunnel.PeerStatus) bool { return p.PublicKey == s.PublicKey }); j >= 0 &&
			c != tunnel.Voice && knowsRemotes(voice[j]) {
			to, why = st.followVoice(m.now(), peers[i], remotes, voice[j]), whyVoice
			st.count(m.now(), peers[i])
		} else {
			to, why = st.leaveSilent(m.now(), peers[i], remotes), whyNotHeard
		}
		if !to.IsValid() || to == peers[i].Endpoint {
			continue
		}
		m.log.Info("a site is sent to at another address", "site", s.Name, "class", c, "from", peers[i].Endpoint, "to", to,
			"reason", why)
		st.move(m.now(), peers[i].Endpoint, to, why)
		m.told[key] = m.reviseLocked(key, to, remotes)
		moved = true
	}
	return moved
}

// Paths are those that Steer knows of a peer, as its status says them; none where the peer has one address, or its
// engine knows better.
func (m *Memory) Paths(
	c tunnel.Class, s tunnel.Site, at netip.AddrPort,
) (all []tunnel.PathStatus, moves []tunnel.PathMove) {
	m.mu.Lock()
	defer m.mu.Unlock()
	st := m.steered[peerKey{c, s.PublicKey}]
	if st == nil {
		return nil, nil
	}
	remotes, _ := m.resolvedLocked(c, s)
	for _, r := range remotes {
		path := tunnel.PathStatus{Remote: r, Used: r == at, State: tunnel.PathUnknown}
		switch {
		case !path.Used || st.at != at:
		case !st.pending.IsZero() && m.now().Sub(st.pending) >= silentFor:
			path.State = tunnel.PathSilent
		case !st.heard.IsZero() && m.now().Sub(st.heard) < silentAfter:
			path.State = tunnel.PathUp
		}
		all = append(all, path)
	}
	return all, slices.Clone(st.moves)
}

// knowsRemotes reports whether a peer's engine says by which of its addresses it is reached.
func knowsRemotes(p tunnel.PeerStatus) bool {
	return slices.ContainsFunc(p.Paths, func(s tunnel.PathStatus) bool { return s.Source.IsValid() && s.Remote.IsValid() })
}

// count notes what was sent and received since the last look.
func (st *steering) count(now time.Time, p tunnel.PeerStatus) {
	if p.Endpoint != st.at { // it was told another one, or has moved by itself
		st.at, st.heard, st.pending = p.Endpoint, time.Time{}, time.Time{}
	}
	received, sent := p.RxBytes > st.rx, p.TxBytes > st.tx+keepalives
	if p.RxBytes < st.rx || p.TxBytes < st.tx { // another engine counts from zero
		received, sent = false, false
		st.pending = time.Time{}
	}
	st.rx, st.tx = p.RxBytes, p.TxBytes
	switch {
	case received:
		st.heard, st.pending, st.futile = now, time.Time{}, 0
	case sent && st.pending.IsZero():
		st.pending = now
	}
}

// leaveSilent is the next address of a peer that does not answer; zero: it stays.
func (st *steering) leaveSilent(now time.Time, p tunnel.PeerStatus, remotes []netip.AddrPort) (to netip.AddrPort) {
	st.count(now, p)
	if st.pending.IsZero() || now.Sub(st.pending) < min(silentFor<<max(0, st.futile-len(remotes)+1), longestSilent) {
		return to
	}
	return remotes[(slices.Index(remotes, p.Endpoint)+1)%len(remotes)]
}

// followVoice is the address that the voice tunnel finds to be heard, while the peer's is not; zero: it stays. One that
// is not configured is the peer's own choice.
func (st *steering) followVoice(
	now time.Time, p tunnel.PeerStatus, remotes []netip.AddrPort, voice tunnel.PeerStatus,
) (to netip.AddrPort) {
	here := map[tunnel.PathState]bool{}
	for _, path := range voice.Paths {
		if path.Remote.Addr() == p.Endpoint.Addr() {
			here[path.State] = true
		}
		i := slices.IndexFunc(remotes, func(r netip.AddrPort) bool { return r.Addr() == path.Remote.Addr() })
		if path.Used && path.State == tunnel.PathUp && i >= 0 {
			to = remotes[i]
		}
	}
	if !to.IsValid() || to == p.Endpoint || !slices.Contains(remotes, p.Endpoint) {
		st.silent, st.voice = 0, time.Time{}
		return netip.AddrPort{}
	}
	if st.voice.IsZero() {
		st.voice = now
	}
	st.silent++
	if here[tunnel.PathUp] || !here[tunnel.PathSilent] {
		st.silent = 0
	}
	if st.silent < steerLooks && now.Sub(st.voice) < backAfter {
		return netip.AddrPort{}
	}
	return to
}

func (st *steering) move(now time.Time, from, to netip.AddrPort, why string) {
	st.moves = append(st.moves, tunnel.PathMove{At: now, FromRemote: from, ToRemote: to, Why: why})
	st.moves = st.moves[max(0, len(st.moves)-maxMoves):]
	if why == whyNotHeard {
		st.futile = min(st.futile+1, 8)
	}
	st.silent, st.voice = 0, time.Time{}
	st.at, st.heard, st.pending = to, time.Time{}, now
	if why == whyVoice {
		st.pending = time.Time{}
	}
}
