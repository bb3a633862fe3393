package realtime

import (
	"encoding/binary"
	"hash"
	"sync/atomic"
	"unsafe"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/sys/unix"

	"ringway/tunnel/datagram"
)

// The way in, all on one thread (one named rw-fwd-in: whose turn it is, way.go):
//  1. recvmmsg from the socket that has something; the kernel may have joined datagrams of one flow (UDP GRO)
//  2. a data message: its session by the receiver index, opened in place, replay window, then, and only then, anything
//     of the peer's is touched: a session is confirmed, the endpoint follows, counters
//  3. the inner source has to be the peer's; ECN is brought over (RFC 6040, section 4.2)
//  4. write to the tunnel device
//
// Handshake messages that know our public key, and are not too many, go to the control side through a ring (ring.go); it is
// the only thing that this thread shares with it, but for atomic pointers.

const (
	inBatch  = 16
	inBuffer = 65536 // a joined message
)

type inbound struct {
	*way
	e   *Engine
	tun int

	mem     []byte
	msgs    [inBatch]datagram.Message
	iovs    [inBatch]unix.Iovec
	names   [inBatch]datagram.Sockaddr
	control [inBatch][datagram.ControlSize]byte
	nonce   [12]byte
	known   endpoints

	mac1    atomic.Pointer[mac1]
	sum     [blake2s.Size128]byte
	sources sources
	errs    int
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
	w, err := newWay(threadIn, e, cpus, fds...)
	if err != nil {
		return nil, err
	}
	in := &inbound{way: w, e: e, tun: e.tun, mem: make([]byte, inBatch*inBuffer)}
	in.sources.seed()
	for i := range in.msgs {
		in.iovs[i].Base = &in.mem[i*inBuffer]
		in.iovs[i].SetLen(inBuffer)
		h := &in.msgs[i].Header
		h.Name, h.Iov, h.Control = &in.names[i].B[0], &in.iovs[i], &in.control[i][0]
		h.SetIovlen(1)
	}
	return in, nil
}

func (in *inbound) loop() {
	sleep := true
	for in.next(sleep) {
		now := in.e.now()
		full := false
		for i := 1; i < len(in.polls); i++ { // the first is the thread's own call
			if in.polls[i].Revents != 0 || !sleep {
				full = in.receive(int(in.polls[i].Fd), now) || full
			}
		}
		sleep = !full
	}
}

// receive takes one batch from a socket. It says whether there may be more.
func (in *inbound) receive(fd int, now int64) (full bool) {
	for i := range in.msgs {
		in.msgs[i].Header.Namelen = uint32(len(in.names[i].B))
		in.msgs[i].Header.SetControllen(datagram.ControlSize)
	}
	n, errno := in.call(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&in.msgs[0])), inBatch, unix.MSG_DONTWAIT, 0)
	if errno != 0 {
		if errno == unix.EBADF || errno == unix.ENOTSOCK {
			in.stop.Store(true)
		}
		return errno == unix.EINTR // any other: nothing there, or an error that the network reported on an earlier packet
	}
	for i := range n {
		in.message(i, now)
	}
	return n == inBatch
}

// message takes the datagrams of one message.
func (in *inbound) message(i int, now int64) {
	m, name := &in.msgs[i], &in.names[i]
	name.N = m.Header.Namelen
	if name.N != unix.SizeofSockaddrInet4 && name.N != unix.SizeofSockaddrInet6 {
		return
	}
	clear(name.B[name.N:]) // of the message before, which may have been of the other family
	a := datagram.ReadControl(in.control[i][:min(int(m.Header.Controllen), datagram.ControlSize)])
	rest := in.mem[i*inBuffer:][:min(int(m.N), inBuffer)]
	step := len(rest)
	if a.Segment > 0 {
		step = a.Segment
	}
	for len(rest) > 0 {
		p := rest[:min(step, len(rest))]
		rest = rest[len(p):]
		in.datagram(p, name, &a, now)
	}
}

func (in *inbound) datagram(p []byte, name *datagram.Sockaddr, a *datagram.Arrival, now int64) {
	if len(p) >= keepaliveSize && binary.LittleEndian.Uint32(p) == typeTransport {
		in.transport(p, name, a, now)
		return
	}
	in.handshake(p, name, a, now)
}

// transport takes a data message (section 5.4.6).
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
	copy(in.nonce[4:], p[8:16])
	plain, err := s.receive.Open(p[headerSize:headerSize], in.nonce[:], p[headerSize:], nil)
	if err != nil {
		e.drops.add(dropForged)
		return
	}
	if !s.replay.ValidateCounter(counter, rejectAfterMessages) {
		e.drops.add(dropReplay)
		return
	}
	peer := s.peer
	peer.rxPackets.Add(1)
	peer.rxBytes.Add(uint64(len(p)))
	peer.heard(now, len(plain) > 0)
	if !s.confirmed.Load() {
		// The peer uses the session that we answered with: from now on so do we. The control side puts the rest in order.
		s.confirmed.Store(true)
		peer.current.Store(s)
		peer.fresh.Store(true)
		e.knock()
	}
	if to := peer.endpoint.Load(); to == nil || to.raw != *name || to.src != a.Source {
		peer.endpoint.Store(in.known.get(name, a.Source))
		e.moved.Store(true)
	}
	if len(plain) == 0 {
		return // a keepalive
	}
	src, _, size, ok := parse(plain)
	if !ok {
		e.drops.add(dropInner)
		return
	}
	if owner, ok := e.routes.Load().Lookup(src); !ok || owner != peer {
		e.drops.add(dropSource)
		return
	}
	if !congest(plain, a.TOS) {
		e.drops.add(dropCongestion)
		return
	}
	in.write(p[headerSize-vnetHeader : headerSize+size])
}

// write gives a packet to the tunnel device; its header's place is in front of it.
func (in *inbound) write(b []byte) {
	clear(b[:vnetHeader])
	for range 3 {
		_, errno := in.call(unix.SYS_WRITE, uintptr(in.tun), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), 0, 0)
		switch errno {
		case 0:
			in.errs = 0
			return
		case unix.EINTR:
			continue
		case unix.EBADFD, unix.EBADF:
			if in.errs++; in.errs > 100 {
				in.e.tunGone(errno)
				in.stop.Store(true)
			}
		}
		break
	}
	in.e.drops.add(dropTUNWrite)
}

// handshake decides without any state of a peer's whether the control side shall see a message.
func (in *inbound) handshake(p []byte, name *datagram.Sockaddr, a *datagram.Arrival, now int64) {
	e := in.e
	size := 0
	if len(p) >= 4 {
		switch binary.LittleEndian.Uint32(p) {
		case typeInitiation:
			size = initiationSize
		case typeResponse:
			size = responseSize
		case typeCookie:
			size = cookieSize
		}
	}
	if size == 0 || len(p) != size {
		e.drops.add(dropGarbage)
		return
	}
	if size != cookieSize { // a cookie is tied to a message that we sent
		m := in.mac1.Load()
		if m == nil {
			e.drops.add(dropMAC1)
			return
		}
		m.Reset()
		m.Write(p[:size-2*blake2s.Size128])
		if !sameMAC(m.Sum(in.sum[:0]), p[size-2*blake2s.Size128:size-blake2s.Size128]) {
			e.drops.add(dropMAC1)
			return
		}
	}
	if size != initiationSize { // an answer: to a message of ours that is known still, or it is none
		if found := e.indices.find(binary.LittleEndian.Uint32(p[size-answerAt(size):])); found == nil {
			e.drops.add(dropHandshake)
			return
		}
	}
	ok, known := in.admit(p, name, now)
	to := &e.crowd
	if known {
		to = &e.ring
	}
	if !ok || !to.put(p, name, a.Source) {
		e.drops.add(dropHandshakeRate)
		return
	}
	e.knock()
}

// answerAt is how far from its end a response or a cookie has the index of the message that it answers.
func answerAt(size int) int {
	if size == responseSize {
		return responseSize - 8
	}
	return cookieSize - 4
}

// admit decides whether a handshake message is one of those that are looked at. One that proves that its sender is where a peer is
// known to be always is. known says that it comes from a peer's address, or says so.
func (in *inbound) admit(p []byte, name *datagram.Sockaddr, now int64) (ok, known bool) {
	at := homeOf(name)
	if h := in.e.homes.Load(); h != nil {
		if m := h.proofs[at]; m != nil && len(p) != cookieSize && proves(m, p) {
			return true, true
		}
		_, known = h.addrs[at.addr]
	}
	return in.sources.admit(at.addr, known, now), known
}

// sources bounds how many handshake messages are looked at. Each source address has a share (many have one place, so that the memory
// is fixed; of IPv6 a /64 is one source), within that of all peers' addresses or that of all others. What is above has a third: so
// neither one source that floods nor a flood of sources, nor one with a peer's address forged, shuts a peer out. None of these
// shares is a proof; what costs Curve25519 comes only after one (handshakeLocked).
type sources struct {
	key   uint64
	one   [sourcePlaces]bucket
	known bucket
	rest  bucket
	above bucket
}

const (
	sourcePlaces = 4096
	sourceRate   = 50 // a second, of one place
	sourceBurst  = 50
	knownRate    = 2000 // all peers' addresses
	restRate     = 1000 // all others
	restBurst    = 200
	aboveRate    = 8000
	aboveBurst   = 200
)

func (s *sources) admit(a [16]byte, known bool, now int64) bool {
	h := binary.LittleEndian.Uint64(a[:8])
	if h == 0 { // IPv4, mapped
		h = binary.LittleEndian.Uint64(a[8:])
	}
	h = (h*0x9e3779b97f4a7c15 ^ s.key) * 0xff51afd7ed558ccd
	if s.one[h>>52].take(now, sourceRate, sourceBurst) {
		if known && s.known.take(now, knownRate, knownRate) || !known && s.rest.take(now, restRate, restBurst) {
			return true
		}
	}
	return s.above.take(now, aboveRate, aboveBurst)
}

// bucket is a token bucket in whole ns: it holds time, and each token costs 1/rate.
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
