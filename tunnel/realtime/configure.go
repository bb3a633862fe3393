package realtime

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.zx2c4.com/wireguard/device"

	"ringway/tunnel"
	"ringway/tunnel/datagram"
	"ringway/tunnel/path"
	"ringway/tunnel/uapi"
)

// maxPeers is how many peers a device may have.
const maxPeers = device.MaxPeers

// Set carries out the body of a UAPI set operation. A body with an invalid line changes nothing. The error
// has ErrorCode, like that of the device package.
func (e *Engine) Set(r io.Reader) error {
	body, err := uapi.ReadSet(r)
	if err != nil {
		return fmt.Errorf("set the WireGuard device: %w", err)
	}
	return e.set(body)
}

var errEnded = errors.New("the engine has ended")

// setting is a set operation in progress.
type setting struct {
	e       *Engine
	peer    *peer // that the lines are about; nil: the device, or a peer that is not to be made
	only    bool  // update_only: no peer is made
	key     tunnel.PublicKey
	device  bool
	routes  bool // allowed IPs changed
	touched []*peer
}

// set carries out a body that uapi.ReadSet has checked line by line.
func (e *Engine) set(body []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.hasEnded() {
		return fmt.Errorf("set the WireGuard device: %w", errEnded)
	}
	st := &setting{e: e, device: true}
	var err error
	for line := range bytes.Lines(body) {
		key, value, _ := strings.Cut(strings.TrimSuffix(string(line), "\n"), "=")
		if err = st.line(key, value); err != nil {
			err = fmt.Errorf("set the WireGuard device: %w", err)
			break
		}
	}
	st.finish()
	if st.routes {
		e.routes.Store(e.table)
		e.table = e.table.Clone()
	}
	e.publishEndpointsLocked()
	for _, p := range st.touched {
		if p.keepalive > 0 && !p.current.Load().usable(e.now()) {
			e.initiateLocked(p)
		}
	}
	return err
}

func (st *setting) line(key, value string) error {
	if key == "public_key" {
		st.finish()
		st.device, st.only = false, false
		if err := decode(st.key[:], value); err != nil {
			return err
		}
		st.peer = st.e.peers[st.key]
		return nil
	}
	if st.device {
		return st.deviceLine(key, value)
	}

	switch key {
	case "update_only":
		st.only = true
		return nil
	case "remove":
		if st.peer != nil {
			st.e.removePeerLocked(st.peer)
			st.routes = true
		}
		st.peer, st.only = nil, true // ignore further lines
		return nil
	}
	if st.peer == nil {
		if st.only {
			return nil
		}
		if err := st.make(); err != nil || st.peer == nil {
			return err
		}
	}
	return st.peerLine(st.peer, key, value)
}

func (st *setting) deviceLine(key, value string) error {
	switch key {
	case "private_key":
		var k tunnel.PrivateKey
		if err := decode(k[:], value); err != nil {
			return err
		}
		return st.e.setPrivateLocked(k, st)
	case "replace_peers":
		for _, p := range st.e.peers {
			st.e.removePeerLocked(p)
		}
		st.routes = true
		return nil
	}
	return uapi.Invalid("unknown key of a device")
}

func (st *setting) peerLine(p *peer, key, value string) error {
	switch key {
	case "preshared_key":
		return decode(p.psk[:], value)
	case "endpoint":
		a, err := netip.ParseAddrPort(value)
		if err != nil || a.Addr().IsUnspecified() || a.Port() == 0 {
			return uapi.Invalid("endpoint is not an address and port that can be sent to")
		}
		if raw, to := datagram.RawSockaddr(a), p.endpoint.Load(); to == nil || to.raw != raw {
			p.endpoint.Store(newEndpoint(raw, netip.Addr{}))
		}
	case "persistent_keepalive_interval":
		n, err := strconv.ParseUint(value, 10, 16)
		if err != nil {
			return uapi.Invalid("persistent_keepalive_interval is not a number of 0-65535")
		}
		p.keepalive = time.Duration(n) * time.Second
	case "replace_allowed_ips":
		for _, prefix := range p.allowed {
			st.e.table.Delete(prefix)
		}
		p.allowed, st.routes = nil, true
	case "allowed_ip":
		prefix, err := netip.ParsePrefix(strings.TrimPrefix(value, "-"))
		if err != nil {
			return uapi.Invalid("allowed_ip is not a prefix")
		}
		st.e.allowLocked(p, prefix.Masked(), !strings.HasPrefix(value, "-"))
		st.routes = true
	case "protocol_version":
	default:
		return uapi.Invalid("unknown key of a peer")
	}
	return nil
}

// make makes the peer that the lines are about, unless it has our own key.
func (st *setting) make() error {
	e := st.e
	if e.self.set && st.key == e.self.public {
		st.only = true
		return nil
	}
	if len(e.peers) >= maxPeers {
		return uapi.Invalid("more than %d peers", maxPeers)
	}
	e.peersMade++
	p := &peer{key: st.key, number: e.peersMade}
	p.voice.SetBudget(e.admission.Site(st.key))
	p.cookies.Init(device.NoisePublicKey(st.key))
	e.computeSharedLocked(p)
	e.peers[st.key] = p
	st.peer = p
	return nil
}

// finish ends the lines about one peer.
func (st *setting) finish() {
	if !st.device && st.peer == nil && !st.only {
		_ = st.make() // a bare public_key makes a peer
	}
	if st.peer != nil {
		st.touched = append(st.touched, st.peer)
	}
	st.peer = nil
}

// computeSharedLocked computes the shared secret of the static keys. If there is none (a key of low order),
// the peer cannot shake hands.
func (e *Engine) computeSharedLocked(p *peer) {
	p.static = [32]byte{}
	if e.self.set {
		p.static, _ = shared((*[32]byte)(&e.self.private), p.key[:])
	}
}

// setPrivateLocked changes the device's key. That ends all sessions, which were made with the old one.
func (e *Engine) setPrivateLocked(k tunnel.PrivateKey, st *setting) error {
	if e.self.set && e.self.private == k {
		return nil
	}
	e.self = identity{private: k, set: k != tunnel.PrivateKey{}}
	if e.self.set {
		e.self.public = k.Public()
	}
	m, err := e.self.newMAC1()
	if err != nil {
		return err
	}
	if !e.self.set {
		m = nil
	}
	e.in.mac1.Store(m)
	if e.cookies, err = newCookies(&e.self.public); err != nil {
		return err
	}
	if p := e.peers[e.self.public]; p != nil {
		e.removePeerLocked(p)
		st.routes = true
	}
	for _, p := range e.peers {
		e.endSessionsLocked(p)
		p.initiated = 0
		e.computeSharedLocked(p)
	}
	return nil
}

// allowLocked gives a network to a peer, and takes it from another that has it, or takes it away.
func (e *Engine) allowLocked(p *peer, prefix netip.Prefix, add bool) {
	owner, ok := e.table.Get(prefix)
	if ok && (add || owner == p) {
		owner.allowed = slices.DeleteFunc(owner.allowed, func(q netip.Prefix) bool { return q == prefix })
		e.table.Delete(prefix)
	}
	if add {
		e.table.Insert(prefix, p)
		p.allowed = append(p.allowed, prefix)
	}
}

func (e *Engine) removePeerLocked(p *peer) {
	p.gone.Store(true)
	p.voice.Close()
	for _, prefix := range p.allowed {
		e.table.Delete(prefix)
	}
	p.allowed = nil
	e.endSessionsLocked(p)
	clear(p.psk[:])
	clear(p.static[:])
	delete(e.peers, p.key)
}

func decode(dst []byte, value string) error {
	if n, err := hex.Decode(dst, []byte(value)); err != nil || n != len(dst) {
		return uapi.Invalid("a key is not 64 hex digits")
	}
	return nil
}

// Get writes the body of a UAPI get operation, with keys, as wg(8) needs it.
func (e *Engine) Get(w io.Writer) error {
	var b bytes.Buffer
	e.mu.Lock()
	if e.self.set {
		fmt.Fprintf(&b, "private_key=%s\n", e.self.private.Hex())
	}
	fmt.Fprintf(&b, "listen_port=%d\n", e.port)
	if e.mark != 0 {
		fmt.Fprintf(&b, "fwmark=%d\n", e.mark)
	}
	for _, p := range e.sortedLocked() {
		fmt.Fprintf(&b, "public_key=%s\npreshared_key=%s\nprotocol_version=1\n", p.key.Hex(), p.psk.Hex())
		if to := p.endpoint.Load(); to != nil {
			fmt.Fprintf(&b, "endpoint=%s\n", to.raw.AddrPort())
		}
		sec, nsec := int64(0), int64(0)
		if !p.lastHandshake.IsZero() {
			sec, nsec = p.lastHandshake.Unix(), int64(p.lastHandshake.Nanosecond())
		}
		fmt.Fprintf(&b, "last_handshake_time_sec=%d\nlast_handshake_time_nsec=%d\n", sec, nsec)
		fmt.Fprintf(&b, "tx_bytes=%d\nrx_bytes=%d\n", p.txBytes.Load(), p.rxBytes.Load())
		fmt.Fprintf(&b, "persistent_keepalive_interval=%d\n", p.keepalive/time.Second)
		for _, prefix := range p.allowed {
			fmt.Fprintf(&b, "allowed_ip=%s\n", prefix)
		}
	}
	e.mu.Unlock()
	defer clear(b.Bytes())
	if _, err := w.Write(b.Bytes()); err != nil {
		return fmt.Errorf("get the WireGuard device: %w", err)
	}
	return nil
}

func (e *Engine) sortedLocked() []*peer {
	return slices.SortedFunc(maps.Values(e.peers), func(a, b *peer) int { return bytes.Compare(a.key[:], b.key[:]) })
}

// Handshake initiates handshakes at once with the named peers, or with all if none is named, as far as they
// have an endpoint. There is at most one in five seconds with a peer.
func (e *Engine) Handshake(keys ...tunnel.PublicKey) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for k, p := range e.peers {
		if len(keys) == 0 || slices.Contains(keys, k) {
			p.attempts = 0
			e.initiateLocked(p)
		}
	}
}

// Reroute stops sending from addresses of ours, and sends something at once to each peer that was sent to from one of
// them, or from whichever the kernel chose, so that it knows where we are. One that is about some peers is the daemon's
// wish to use a better line: with a peer whose paths are probed it is they that decide.
func (e *Engine) Reroute(r tunnel.Reroute) {
	e.mu.Lock()
	defer e.mu.Unlock()
	now := e.now()
	for k, p := range e.peers {
		to := p.endpoint.Load()
		if to == nil || !r.About(k) || to.controls > 0 && !slices.Contains(r.From, to.src) {
			continue
		}
		if len(r.Keys) > 0 && p.paths.Knows(now) {
			continue
		}
		if a := leftBy(to, r.From); a.IsValid() {
			p.paths.Left(path.Path{Source: a, Remote: to.raw.AddrPort()})
		}
		p.left.Set(r.From, now+int64(tunnel.TrialTime))
		e.forgetSource(p)
		switch s := p.current.Load(); {
		case s.usable(now):
			e.keepaliveLocked(p, s)
		case p.keepalive > 0 || !p.lastHandshake.IsZero():
			p.attempts = 0
			e.initiateLocked(p)
		}
	}
}

// leftBy is the address that a peer was sent to from: what could not be sent may have made the engine forget it.
func leftBy(to *endpoint, from []netip.Addr) (a netip.Addr) {
	if to.src.IsValid() {
		return to.src
	}
	i := slices.IndexFunc(from, func(a netip.Addr) bool { return a.Is4() != to.raw.V6() })
	if i < 0 {
		return a
	}
	return from[i]
}

// Status describes the device and its peers. It contains no secret.
func (e *Engine) Status() tunnel.DeviceStatus {
	s := tunnel.DeviceStatus{
		Class: e.class, Interface: e.name, Engine: tunnel.EngineRealtime, ListenPort: e.port,
		PlanePID: os.Getpid(), Since: e.since, Drops: e.drops.all(), Collections: e.collector.Collections(),
	}
	if n := e.overflow(); n > 0 {
		s.Drops[dropSocketOverflow.String()] = n
	}
	s.Reservations = e.reservations.status()
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.self.set {
		s.PublicKey = e.self.public.String()
	}
	for _, p := range e.sortedLocked() {
		st := p.statusLocked(e.now())
		st.RoundTrip = e.exchange.roundTrip(p.number)
		e.pathStatusLocked(p, &st, e.now())
		p.mtuStatusLocked(&st)
		s.Peers = append(s.Peers, st)
	}
	return s
}

func (p *peer) statusLocked(now int64) tunnel.PeerStatus {
	s := tunnel.PeerStatus{
		PublicKey:     p.key,
		LastHandshake: p.lastHandshake,
		Keepalive:     p.keepalive,
		RxBytes:       p.rxBytes.Load(),
		TxBytes:       p.txBytes.Load(),
		RxPackets:     p.rxPackets.Load(),
		TxPackets:     p.txPackets.Load(),
		AllowedIPs:    slices.SortedFunc(slices.Values(p.allowed), netip.Prefix.Compare),
		Media:         p.voice.Status(now),
	}
	if to := p.endpoint.Load(); to != nil {
		s.Endpoint = to.raw.AddrPort()
	}
	return s
}

// overflow is how many packets the kernel dropped because a socket's buffer was full.
func (e *Engine) overflow() (n uint64) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, fd := range e.udp {
		if fd >= 0 {
			n += datagram.Overflow(fd)
		}
	}
	return n
}
