package realtime

import (
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"ringway/tunnel"
	"ringway/tunnel/path"
)

// How long packets to each peer may be (package path decides what to try). Probes are messages about paths, padded;
// they count as such, and no silence ends by them. They are sent like signalling: in a full queue for data long packets
// are lost more often than short ones, which looks like a path that takes less.

const (
	// longProbes is how many long probes to all peers together are sent in a second at most, so that a hub that has
	// just started does not fill its own line with them.
	longProbes = 10
	// maxProbe bounds the length of probes in bytes, as that of packets is.
	maxProbe = maxPacket
)

// SetProbeMTU has the engine find out how long packets to each peer may be, up to most bytes with all headers; 0: it
// does not.
func (e *Engine) SetProbeMTU(most int) error {
	if most != 0 && (most < tunnel.LeastProbeMTU || most > maxProbe) {
		return fmt.Errorf("probe for packets of up to %d bytes (allowed 0, %d-%d)", most, tunnel.LeastProbeMTU, maxProbe)
	}
	e.probeMTU.Store(int64(most))
	return nil
}

// ConfirmMTU has the engine find out soon whether long packets to some peers still pass: they are sent such packets,
// which may go by another tunnel. Without a session one is begun.
func (e *Engine) ConfirmMTU(keys ...tunnel.PublicKey) {
	if e.probeMTU.Load() == 0 {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.now()
	for _, k := range keys {
		p := e.peers[k]
		if p == nil {
			continue
		}
		to := p.endpoint.Load()
		if to == nil {
			continue
		}
		if !p.current.Load().usable(now) {
			e.requestSessionLocked(p)
			continue
		}
		p.sizes.Used(now, e.sizesSeenLocked(p, to, now))
	}
}

// sizesSeenLocked is what the engine knows of a peer.
func (e *Engine) sizesSeenLocked(p *peer, to *endpoint, now int64) path.SizesSeen {
	s := e.seenLocked(p, to, now)
	var sources []netip.Addr // of the paths to where the peer is sent to
	for _, by := range s.Paths {
		paid := by.Source != s.Used.Source && slices.Contains(s.Metered, by.Source)
		if by.Remote == s.Used.Remote && !paid && !slices.Contains(sources, by.Source) {
			sources = append(sources, by.Source)
		}
	}
	return path.SizesSeen{
		Sources: sources, Source: s.Used.Source, Remote: to.raw.AddrPort().Addr().Unmap().WithZone(""), Session: s.Session,
		Calls: p.paths.Active(now), Knows: p.paths.Knows(now),
		May: func() bool { return e.longProbes.take(now, longProbes, longProbes) },
	}
}

// probeMTULocked sends the probes that are due to a peer.
func (e *Engine) probeMTULocked(p *peer, now int64) {
	most := int(e.probeMTU.Load())
	p.sizes.Probe(now, most)
	to := p.endpoint.Load()
	if most == 0 || to == nil {
		return
	}
	s := e.sizesSeenLocked(p, to, now)
	for _, probe := range p.sizes.Look(now, s) {
		by := to
		if probe.Source.IsValid() {
			by = newEndpoint(to.raw, probe.Source)
		}
		m := p.paths.Probe(now, e.seenLocked(p, to, now))
		m.Stamp = probe.Stamp
		if e.sendProbeLocked(p, by, m, probe.Size, now) == unix.EMSGSIZE {
			p.sizes.Refused(now, probe.Stamp)
		}
	}
}

// sendProbeLocked sends a probe as an IP packet of size bytes and in one piece; 0: as short as it is.
func (e *Engine) sendProbeLocked(p *peer, to *endpoint, m path.Message, size int, now int64) unix.Errno {
	s := p.current.Load()
	if !s.usable(now) {
		return 0
	}
	overhead := tunnel.OverheadIPv4
	if to.raw.V6() {
		overhead = tunnel.OverheadIPv6
	}
	n := max(path.Size, size-overhead)
	b := make([]byte, headerSize+n+tagSize)
	m.Elsewhere = s.elsewhere
	m.Append(b[headerSize:headerSize])
	var nonce [12]byte
	e.sealMessage(s, &nonce, b, n)
	s.elsewhere++
	errno := e.transmitWhole(to, b, e.outer.Load().tos[dscpOfReports])
	if errno == 0 {
		p.txBytes.Add(uint64(len(b)))
	}
	return errno
}

// transmitWhole sends a message that neither this machine nor a router may divide. IPv6 has a control message for that
// (RFC 3542, section 11.2). IPv4 has none: the socket is set so for this one call. What forwarding threads send in that
// moment is not divided either: a packet that is too long then is lost as such.
func (e *Engine) transmitWhole(to *endpoint, b []byte, tos uint8) unix.Errno {
	if to.raw.V6() {
		return e.transmitWith(to, b, tos, true)
	}
	before, err := unix.GetsockoptInt(e.udp[0], unix.IPPROTO_IP, unix.IP_MTU_DISCOVER)
	if err != nil {
		return unix.EINVAL
	}
	if err := unix.SetsockoptInt(e.udp[0], unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE); err != nil {
		return unix.EINVAL
	}
	errno := e.transmit(to, b, tos)
	_ = unix.SetsockoptInt(e.udp[0], unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, before) // it was accepted before
	return errno
}

// divideAgain undoes what an engine left behind that died in transmitWhole: the socket outlives it.
func divideAgain(fd int, v6 bool) {
	if v6 {
		return
	}
	if mode, err := unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER); err == nil &&
		mode == unix.IP_PMTUDISC_PROBE {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_OMIT)
	}
}

// mtuStatusLocked adds what was found to a peer's status.
func (p *peer) mtuStatusLocked(st *tunnel.PeerStatus) {
	st.PathMTU = p.sizes.Least()
	used := slices.IndexFunc(st.Paths, func(s tunnel.PathStatus) bool { return s.Used })
	if used < 0 {
		return
	}
	for i := range st.Paths { // to another address of the far end nothing long is sent
		if st.Paths[i].Remote == st.Paths[used].Remote {
			st.Paths[i].MTU = p.sizes.Of(st.Paths[i].Source)
		}
	}
	if st.Paths[used].MTU == 0 { // the only line to that address has no name there
		st.Paths[used].MTU = p.sizes.Of(netip.Addr{})
	}
}
