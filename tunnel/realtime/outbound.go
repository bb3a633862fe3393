package realtime

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"ringway/tunnel/datagram"
)

// The way out, all on one thread (one named rw-fwd-out: whose turn it is, way.go), to its end for each packet or batch:
//  1. read a packet from the tunnel device, into the place where it will be sealed
//  2. its peer by the destination, that peer's session; a packet without a session waits a little (staged)
//     a packet of media goes on only if its flow was admitted (admission.go)
//  3. pad, seal in place, outer TOS from the inner DSCP, ECN copied (RFC 6040, section 4.1)
//  4. sendmmsg; neighbours of one size to one peer are one UDP GSO message where that is allowed
//
// A single packet leaves at once. Only when the last look found another packet waiting already is more than one read before
// they are sent: twice as many each time, up to outBatch.

const (
	outBatch   = 64
	vnetHeader = 10 // struct virtio_net_hdr
	maxPacket  = 65000
	outBuffer  = headerSize + maxPacket + 512 + tagSize

	segmentsMax = 64         // UDP_MAX_SEGMENTS of 2018
	payloadMax  = 65535 - 48 // with room for the headers of either family
)

type outPacket struct {
	peer *peer
	to   *endpoint
	wire []byte // sealed
	tos  uint8
	data bool
}

type outbound struct {
	*way
	e   *Engine
	tun int

	mem     []byte
	packets [outBatch]outPacket
	n       int
	limit   int
	nonce   [12]byte
	errs    int

	msgs    [outBatch]datagram.Message
	iovs    [outBatch]unix.Iovec
	first   [outBatch + 1]int
	control [outBatch][datagram.ControlSize]byte
	poll    unix.PollFd
	timeout unix.Timespec
	noGSO   bool

	flows   *flows // what of guard's table is in use
	staged  []staged
	waiting atomic.Bool // some are staged
}

// staged is a packet that waits for a session.
type staged struct {
	peer *peer
	at   int64
	n    int
	b    [2048]byte
}

func newOutbound(e *Engine, cpus []int) (*outbound, error) {
	w, err := newWay(threadOut, e, cpus, e.tun)
	if err != nil {
		return nil, err
	}
	return &outbound{way: w, e: e, tun: e.tun, mem: make([]byte, outBatch*outBuffer), limit: 1, staged: make([]staged, 0, stagedMax)}, nil
}

func (o *outbound) buffer(i int) []byte {
	return o.mem[i*outBuffer : (i+1)*outBuffer : (i+1)*outBuffer]
}

func (o *outbound) loop() {
	sleep := true
	for o.next(sleep) {
		now := o.e.now()
		if len(o.staged) > 0 && (o.called || !sleep) {
			o.unstage(now)
		}
		sleep = o.batch(now)
	}
}

// batch forwards what is there, up to the limit. It says whether there was less.
func (o *outbound) batch(now int64) (drained bool) {
	o.n = 0
	looks := 0
	for o.n < o.limit && looks < outBatch {
		b := o.buffer(o.n)
		n, errno := o.call(unix.SYS_READ, uintptr(o.tun), uintptr(unsafe.Pointer(&b[headerSize-vnetHeader])), vnetHeader+maxPacket, 0, 0)
		looks++
		if errno == unix.EAGAIN {
			drained = true
			break
		}
		if errno != 0 {
			if errno != unix.EINTR && !o.failed(errno) {
				break
			}
			continue
		}
		o.errs = 0
		if n > vnetHeader {
			o.prepare(b, n-vnetHeader, now)
		}
	}
	if o.n > 0 {
		o.send(now)
	}
	if drained {
		o.limit = 1
	} else {
		o.limit = min(2*o.limit, outBatch)
	}
	return drained
}

// failed handles an error of the tunnel device; false: it is gone.
func (o *outbound) failed(errno unix.Errno) bool {
	if o.errs++; o.errs < 100 && errno != unix.EBADFD && errno != unix.EBADF {
		return true
	}
	o.e.tunGone(errno)
	o.stop.Store(true)
	return false
}

// prepare takes a packet of n bytes behind b's header into the batch, has it wait, or drops it.
func (o *outbound) prepare(b []byte, n int, now int64) {
	_, dst, size, ok := parse(b[headerSize : headerSize+n])
	if !ok || size != n {
		o.e.drops.add(dropMalformed)
		return
	}
	p, ok := o.e.routes.Load().Lookup(dst)
	if !ok {
		o.e.drops.add(dropNoSite)
		return
	}
	packet := b[headerSize : headerSize+n]
	if budget := p.budget.Load(); budget != nil {
		g := o.e.guard.Load()
		if g.media>>(trafficClass(packet)>>2)&1 != 0 && !o.admits(g, budget, p, packet, padded(n, o.e.shape.Load().padTo, int(o.e.mtu.Load())), now) {
			o.e.drops.add(dropOverBudget)
			return
		}
	}
	s := p.current.Load()
	if !s.usable(now) {
		o.stage(p, b[headerSize:headerSize+n], now)
		return
	}
	o.seal(p, s, b, n)
}

// seal makes the packet in b a message of the batch.
func (o *outbound) seal(p *peer, s *session, b []byte, n int) {
	to := p.endpoint.Load()
	if to == nil {
		o.e.drops.add(dropUnreachable)
		return
	}
	shape := o.e.shape.Load()
	class := trafficClass(b[headerSize:])
	size := padded(n, shape.padTo, int(o.e.mtu.Load()))
	clear(b[headerSize+n : headerSize+size])
	o.e.sealMessage(s, &o.nonce, b, size)
	o.packets[o.n] = outPacket{peer: p, to: to, wire: b[:headerSize+size+tagSize], tos: shape.tos[class>>2] | class&ecnMask, data: true}
	o.n++
}

// stage has a packet wait for a session, and asks for one. Where there are too many, the oldest of that peer gives way.
func (o *outbound) stage(p *peer, packet []byte, now int64) {
	if len(packet) > len(staged{}.b) {
		o.e.drops.add(dropNoSession)
	} else {
		if p.staged >= stagedPerPeer || len(o.staged) == stagedMax {
			o.unstageOldest(p)
		}
		if len(o.staged) < stagedMax {
			o.staged = o.staged[:len(o.staged)+1]
			w := &o.staged[len(o.staged)-1]
			w.peer, w.at, w.n = p, now, copy(w.b[:], packet)
			p.staged++
		} else {
			o.e.drops.add(dropNoSession)
		}
	}
	o.waiting.Store(true)
	if !p.wanted.Swap(true) {
		o.e.knock()
	}
}

// unstageOldest drops the oldest packet of p, or of any peer when p has none.
func (o *outbound) unstageOldest(p *peer) {
	at := 0
	for i := range o.staged {
		if o.staged[i].peer == p {
			at = i
			break
		}
	}
	o.staged[at].peer.staged--
	o.e.drops.add(dropNoSession)
	copy(o.staged[at:], o.staged[at+1:])
	o.staged = o.staged[:len(o.staged)-1]
}

// unstage sends what has a session by now, and drops what has waited too long.
func (o *outbound) unstage(now int64) {
	keep := 0
	o.n = 0
	for i := range o.staged {
		w := &o.staged[i]
		s := w.peer.current.Load()
		switch {
		case w.peer.gone.Load() || now-w.at > int64(stagedFor):
			o.e.drops.add(dropNoSession)
		case s.usable(now):
			b := o.buffer(o.n)
			copy(b[headerSize:], w.b[:w.n])
			o.seal(w.peer, s, b, w.n)
			if o.n == outBatch {
				o.send(now)
				o.n = 0
			}
		default:
			if keep != i {
				o.staged[keep] = *w
			}
			keep++
			continue
		}
		w.peer.staged--
	}
	o.staged = o.staged[:keep]
	o.waiting.Store(keep > 0)
	if o.n > 0 {
		o.send(now)
	}
}

// group makes messages of the packets from at on, all of one address family, and returns how many.
func (o *outbound) group(at int, single bool) (n int) {
	most := int(o.e.superPacket.Load())
	if single {
		most = 0
	}
	v6 := o.packets[at].to.raw.V6()
	for i := at; i < o.n && o.packets[i].to.raw.V6() == v6; n++ {
		p := &o.packets[i]
		size := len(p.wire)
		o.first[n] = i
		o.iovs[i].Base = &p.wire[0]
		o.iovs[i].SetLen(size)
		j := i + 1
		for total := size; j < o.n && j-i < segmentsMax; j++ {
			q := &o.packets[j]
			l := len(q.wire)
			// The last alone may be shorter; all have one header, and so one TOS.
			if q.to != p.to || q.tos != p.tos || l > size || total+l > min(most, payloadMax) || len(o.packets[j-1].wire) < size {
				break
			}
			total += l
			o.iovs[j].Base = &q.wire[0]
			o.iovs[j].SetLen(l)
		}
		h := &o.msgs[n].Header
		h.Name, h.Namelen = &p.to.raw.B[0], p.to.raw.N
		h.Iov = &o.iovs[i]
		h.SetIovlen(j - i)
		c := p.to.controls
		if c > 0 {
			copy(o.control[n][:c], p.to.control[:c])
		}
		if p.tos != o.e.shape.Load().socket {
			c = datagram.PutTOS(o.control[n][:], c, v6, p.tos)
		}
		if j-i > 1 {
			c = datagram.PutSegment(o.control[n][:], c, size)
		}
		h.Control = nil
		if c > 0 {
			h.Control = &o.control[n][0]
		}
		h.SetControllen(c)
		i = j
	}
	o.first[n] = o.familyEnd(at)
	return n
}

// send sends the batch. A message that the kernel refuses is dropped alone.
func (o *outbound) send(now int64) {
	waited, single := 0, o.noGSO
	for at := 0; at < o.n; {
		count := o.group(at, single)
		fd := o.e.udp[0]
		if o.packets[at].to.raw.V6() {
			fd = o.e.udp[1]
		}
		if fd < 0 {
			o.e.drops.add(dropUnreachable)
			at++
			continue
		}
		sent, errno := o.call(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&o.msgs[0])), uintptr(count), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0)
		if errno == 0 && sent > 0 {
			for i := at; i < o.first[sent]; i++ {
				p := &o.packets[i]
				p.peer.txPackets.Add(1)
				p.peer.txBytes.Add(uint64(len(p.wire)))
				p.peer.sent(now, p.data, true)
			}
			at = o.first[sent]
			continue
		}
		switch errno {
		case unix.EINTR:
			continue
		case unix.EAGAIN, unix.ENOBUFS:
			// The socket's buffer is full: what comes next waits in the tunnel device, where it is bounded. Not for ever.
			if errno == unix.EAGAIN && waited < 10 {
				waited++
				o.waitWritable(&o.poll, &o.timeout, fd, 10)
				continue
			}
		}
		if o.first[1]-at > 1 && (errno == unix.EIO || errno == unix.EINVAL || errno == unix.EOPNOTSUPP || errno == unix.EMSGSIZE) {
			// The kernel or the network card cannot cut, or not here: one by one, this time, or for good.
			o.noGSO = o.noGSO || errno == unix.EIO || errno == unix.EOPNOTSUPP
			single = true
			continue
		}
		if p := &o.packets[at]; p.to.controls > 0 && staleSource(errno) {
			bare := p.to.unpinned()
			p.peer.endpoint.CompareAndSwap(p.to, bare)
			for i, was := at, p.to; i < o.n; i++ {
				if o.packets[i].to == was {
					o.packets[i].to = bare
				}
			}
			continue
		}
		o.e.drops[sendReason(errno)].Add(uint64(o.first[1] - at))
		at = o.first[1]
	}
	o.n = 0
}

// familyEnd is where the packets from at on stop being of one address family.
func (o *outbound) familyEnd(at int) int {
	v6 := o.packets[at].to.raw.V6()
	for i := at; i < o.n; i++ {
		if o.packets[i].to.raw.V6() != v6 {
			return i
		}
	}
	return o.n
}

// staleSource says whether an error may come from a source address that went.
func staleSource(errno unix.Errno) bool {
	switch errno {
	case unix.EINVAL, unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EADDRNOTAVAIL, unix.ENODEV:
		return true
	}
	return false
}

func sendReason(errno unix.Errno) reason {
	switch errno {
	case unix.EPERM, unix.EACCES:
		return dropSendRefused
	case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EADDRNOTAVAIL, unix.ENETDOWN:
		return dropUnreachable
	case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
		return dropNoBuffers
	case unix.EMSGSIZE:
		return dropOversized
	}
	return dropSend
}
