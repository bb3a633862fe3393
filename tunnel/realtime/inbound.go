package realtime

import (
	"crypto/rand"
	"encoding/binary"
	"hash"
	"net/netip"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/sys/unix"

	"ringway/tunnel/datagram"
	"ringway/tunnel/path"
	"ringway/tunnel/series"
	"ringway/tunnel/turn"
)

// The inbound path, all on one thread (rw-fwd-in; which one has the turn: package turn):
//
//  1. loop, receive: recvmmsg from the socket that has something; the kernel may have joined datagrams of
//     one flow (UDP GRO)
//  2. transport, a data message: find its session by the receiver index, check the replay window, open it in
//     place. Only then is anything of the peer's touched: the session is confirmed, the endpoint follows,
//     counters
//  3. the inner source must be the peer's; media is counted (measure.go); ECN is copied to the inner packet (RFC
//     6040, section 4.2)
//  4. write: to the tunnel device
//
// handshake: messages that know our public key, and are not too many, go to the control side through a ring
// (messagering.go). That is all this thread shares with it, except atomic pointers.

// Names of the forwarding threads, the same for all of a direction: by them the daemon knows which threads it
// makes real-time.
const (
	threadOut = "rw-fwd-out"
	threadIn  = "rw-fwd-in"
)

const (
	inBatch  = 16
	inBuffer = 65536 // a joined message
)

type inbound struct {
	*turn.Direction
	e   *Engine
	tun int

	messages *datagram.Batch
	nonce    [12]byte
	recent   endpointCache

	mac1    atomic.Pointer[mac1]
	sum     [blake2s.Size128]byte
	sources sources
	errs    int

	copying atomic.Pointer[seriesCopy] // of the control side
}

// mac1 computes the first MAC of messages to us (section 5.4.4). It belongs to the inbound thread once published.
type mac1 struct{ hash.Hash }

func newInbound(e *Engine, cpus []int) (*inbound, error) {
	var fds []int
	for _, fd := range e.udp {
		if fd >= 0 {
			fds = append(fds, fd)
		}
	}
	w, err := turn.NewDirection(e.threadOptions(threadIn), cpus, fds...)
	if err != nil {
		return nil, err
	}
	in := &inbound{Direction: w, e: e, tun: e.tun, messages: datagram.NewBatch(inBatch, inBuffer)}
	in.sources.seed()
	return in, nil
}

func (in *inbound) loop() {
	sleep := true
	for in.Next(sleep) {
		now := in.e.now()
		if in.Woken || !sleep {
			in.serveCopy()
		}
		full := false
		for i := 1; i < len(in.Polls); i++ { // the first is the thread's own call
			if in.Polls[i].Revents != 0 || !sleep {
				full = in.receive(int(in.Polls[i].Fd), now) || full
			}
		}
		sleep = !full
	}
}

// receive takes one batch from a socket. It reports whether there may be more.
func (in *inbound) receive(fd int, now int64) (full bool) {
	in.messages.Reset()
	n, errno := in.Call(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&in.messages.Messages[0])),
		inBatch, unix.MSG_DONTWAIT, 0)
	if errno != 0 {
		if errno == unix.EBADF || errno == unix.ENOTSOCK {
			in.End()
		}
		return errno == unix.EINTR // any other: nothing there, or an error that the network reported on an earlier packet
	}
	for i := range n {
		m, ok := in.messages.Received(i)
		for ok && len(m.Rest) > 0 {
			in.datagram(m.Next(), m.From, &m.Arrival, now)
		}
	}
	return n == inBatch
}

func (in *inbound) datagram(p []byte, name *datagram.Sockaddr, a *datagram.Arrival, now int64) {
	if len(p) >= keepaliveSize && binary.LittleEndian.Uint32(p) == typeTransport {
		in.transport(p, name, a, now)
		return
	}
	in.handshake(p, name, a, now)
}

// transport handles a data message (section 5.4.6).
func (in *inbound) transport(p []byte, name *datagram.Sockaddr, a *datagram.Arrival, now int64) {
	e := in.e
	found := e.indices.find(binary.LittleEndian.Uint32(p[4:]))
	if found == nil || found.session == nil {
		e.drops.add(dropSession)
		return
	}

	s := found.session
	counter := binary.LittleEndian.Uint64(p[8:])
	if s.age(now) >= rejectAfterTime || counter >= rejectAfterMessages || s.retired.Load() {
		e.drops.add(dropSession)
		return
	}
	if s.replay.has(counter) { // before it is opened: a copy costs little (copies.go)
		in.arrivedAgain(s, p, counter, name, a, now)
		return
	}

	plain, err := in.open(s, p)
	if err != nil {
		e.drops.add(dropForged)
		return
	}
	s.replay.take(counter)

	if path.Is(plain) {
		in.pathMessage(s, p, plain, name, a, now)
		return
	}
	in.noteAuthentic(s, p, len(plain) > 0, true, name, a, now)
	if len(plain) == 0 {
		return // a keepalive
	}
	if series.IsReport(plain) && e.measuring.Load() != nil {
		if !e.reports.put(s.peer.number, plain, now) {
			e.drops.add(dropReport)
		}
		e.notify()
		return
	}

	src, _, size, ok := parse(plain)
	if !ok {
		e.drops.add(dropInner)
		return
	}
	if owner, ok := e.routes.Load().Lookup(src); !ok || owner != s.peer {
		e.drops.add(dropSource)
		return
	}
	table, mark := in.arrive(s.peer, plain[:size], now)
	if !applyECN(plain, a.TOS) {
		e.drops.add(dropCongestion)
		table.Drop(mark, seriesReasons[dropCongestion])
		return
	}
	if !in.write(p[headerSize-vnetHeader : headerSize+size]) {
		e.drops.add(dropTUNWrite)
		table.Drop(mark, seriesReasons[dropTUNWrite])
		return
	}
	table.Pass(mark)
}

// pathsPerSecond bounds the messages about paths that are taken from a peer: those of eight lines, one of them bad, and
// more. Others wait behind the control side.
const pathsPerSecond = 300

// pathMessage hands a message about paths to the control side. A probe leaves it open where the peer is to be sent to,
// and no silence ends by it.
func (in *inbound) pathMessage(s *session, p, plain []byte, name *datagram.Sockaddr, a *datagram.Arrival, now int64) {
	peer := s.peer
	if !path.Stays(plain) {
		in.noteAuthentic(s, p, false, false, name, a, now)
		peer.pathsHeard.Add(1)
	}
	if now-peer.pathSecond > int64(time.Second) {
		peer.pathSecond, peer.pathCount = now, 0
	}
	if peer.pathCount++; peer.pathCount > pathsPerSecond {
		in.e.drops.add(dropPath)
		return
	}
	c := path.Counts{Session: uint64(s.local), Counter: binary.LittleEndian.Uint64(p[8:]), Got: s.got}
	first, ok := in.e.pathMessages.put(peer, name, a.Source, c, plain)
	if !ok {
		in.e.drops.add(dropPath)
	}
	if first {
		in.e.notify()
	}
}

// open opens a message in place.
func (in *inbound) open(s *session, p []byte) (plain []byte, err error) {
	copy(in.nonce[4:], p[8:16])
	return s.receive.Open(p[headerSize:headerSize], in.nonce[:], p[headerSize:], nil)
}

// noteAuthentic takes over what an authentic message says of its peer. copied is that the message may be a copy, which
// does not say where its sender wants to be sent to.
func (in *inbound) noteAuthentic(s *session, p []byte, data, copied bool, name *datagram.Sockaddr, a *datagram.Arrival,
	now int64) {
	peer := s.peer
	s.got++
	peer.rxPackets.Add(1)
	peer.rxBytes.Add(uint64(len(p)))
	peer.noteReceived(now, data)
	if !s.confirmed.Load() {
		// The peer uses the session that we answered with: from now on so do we. The control side does the rest.
		s.confirmed.Store(true)
		peer.current.Store(s)
		peer.fresh.Store(true)
		in.e.notify()
	}
	to := peer.endpoint.Load()
	if to != nil && to.raw == *name && to.src == a.Source {
		peer.heardAt.Store(now)
		return
	}
	if copied && to != nil && peer.copies.stays(now, peer.heardAt.Load()) {
		s.got-- // of the path that is used alone
		return
	}
	src := a.Source
	if h := peer.hold.Load(); h != nil && to != nil {
		used := path.Path{Source: to.src, Remote: to.raw.BareAddrPort()}
		next, heard := h.Follow(now, used, path.Path{Source: src, Remote: name.BareAddrPort()})
		if next == used {
			if heard {
				peer.heardAt.Store(now)
			}
			return
		}
		src = next.Source
	}
	if peer.left.Has(src, now) {
		if to != nil && to.raw == *name {
			return // it has yet to hear that we have left the address
		}
		src = netip.Addr{}
	}
	if src.IsValid() || to == nil {
		peer.heardAt.Store(now)
	}
	peer.endpoint.Store(in.recent.get(name, src))
	in.e.moved.Store(true)
}

// write gives a packet to the tunnel device. b begins with space for the device's header.
func (in *inbound) write(b []byte) (ok bool) {
	clear(b[:vnetHeader])
	for range 3 {
		_, errno := in.Call(unix.SYS_WRITE, uintptr(in.tun), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0, 0)
		switch errno {
		case 0:
			in.errs = 0
			return true
		case unix.EINTR:
			continue
		case unix.EBADFD, unix.EBADF:
			if in.errs++; in.errs > 100 {
				in.e.tunnelDeviceLost(errno)
				in.End()
			}
		}
		break
	}
	return false
}

// handshake decides, without any state of a peer, whether a message goes to the control side.
func (in *inbound) handshake(p []byte, name *datagram.Sockaddr, a *datagram.Arrival, now int64) {
	e := in.e
	size := handshakeSize(p)
	if size == 0 || len(p) != size {
		e.drops.add(dropGarbage)
		return
	}
	if size != cookieSize && !in.hasMAC1(p) { // a cookie is tied to a message that we sent
		e.drops.add(dropMAC1)
		return
	}
	if size != initiationSize { // an answer: to a message of ours that is still known, or it is none
		if found := e.indices.find(binary.LittleEndian.Uint32(p[size-answerAt(size):])); found == nil {
			e.drops.add(dropHandshake)
			return
		}
	}

	ok, known := in.admit(p, name, now)
	to := &e.fromOthers
	if known {
		to = &e.fromPeers
	}
	if !ok || !to.put(p, name, a.Source) {
		e.drops.add(dropHandshakeRate)
		return
	}
	e.notify()
}

// handshakeSize is the length of a handshake message by its type; 0: it is none.
func handshakeSize(p []byte) int {
	if len(p) < 4 {
		return 0
	}
	switch binary.LittleEndian.Uint32(p) {
	case typeInitiation:
		return initiationSize
	case typeResponse:
		return responseSize
	case typeCookie:
		return cookieSize
	}
	return 0
}

// hasMAC1 reports whether the sender of a message knows our public key.
func (in *inbound) hasMAC1(p []byte) bool {
	m := in.mac1.Load()
	if m == nil {
		return false
	}
	m.Reset()
	m.Write(p[:len(p)-2*blake2s.Size128])
	return sameMAC(m.Sum(in.sum[:0]), p[len(p)-2*blake2s.Size128:len(p)-blake2s.Size128])
}

// answerAt is the distance from the end of a response or a cookie to the index of the message that it answers.
func answerAt(size int) int {
	if size == responseSize {
		return responseSize - 8
	}
	return cookieSize - 4
}

// admit decides whether a handshake message is processed. One that proves that its sender is where a peer is
// known to be always is. known says that it comes from a peer's address, or claims to.
func (in *inbound) admit(p []byte, name *datagram.Sockaddr, now int64) (ok, known bool) {
	key := endpointKeyOf(name)
	if h := in.e.known.Load(); h != nil {
		if m := h.proofs[key]; m != nil && len(p) != cookieSize && hasMAC2(m, p) {
			return true, true
		}
		_, known = h.addrs[key.addr]
	}
	return in.sources.admit(key.addr, known, now), known
}

// sources bounds how many handshake messages are processed. Each source address has a share (many have one
// bucket, so that the memory is fixed; of IPv6 a /64 is one source), within that of all peers' addresses or
// that of all others. A third share is for what exceeds these. So neither one source that floods, nor a flood
// of sources, nor one with a peer's address forged, shuts a peer out. None of these shares is a proof; what
// costs Curve25519 comes only after one (handshakeLocked).
type sources struct {
	key    uint64
	one    [sourceBuckets]bucket
	known  bucket
	others bucket
	above  bucket
}

// seed keeps strangers from choosing with whom they share a bucket.
func (s *sources) seed() {
	var b [8]byte
	_, _ = rand.Read(b[:])
	s.key = binary.LittleEndian.Uint64(b[:])
}

const (
	sourceBuckets = 4096
	sourceRate    = 50 // a second, of one bucket
	sourceBurst   = 50
	knownRate     = 2000 // all peers' addresses
	othersRate    = 1000 // all others
	othersBurst   = 200
	aboveRate     = 8000
	aboveBurst    = 200
)

func (s *sources) admit(a [16]byte, known bool, now int64) bool {
	h := binary.LittleEndian.Uint64(a[:8])
	if h == 0 { // IPv4, mapped
		h = binary.LittleEndian.Uint64(a[8:])
	}
	h = (h*0x9e3779b97f4a7c15 ^ s.key) * 0xff51afd7ed558ccd
	if s.one[h>>52].take(now, sourceRate, sourceBurst) {
		if known && s.known.take(now, knownRate, knownRate) || !known && s.others.take(now, othersRate, othersBurst) {
			return true
		}
	}
	return s.above.take(now, aboveRate, aboveBurst)
}

// bucket is a token bucket that holds time, in ns: each token costs 1/rate.
type bucket struct{ full int64 } // when it will be full again

func (b *bucket) take(now, rate, burst int64) bool {
	cost := int64(1e9) / rate
	at := max(b.full, now)
	if at-now > cost*(burst-1) {
		return false
	}
	b.full = at + cost
	return true
}
