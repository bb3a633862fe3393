package realtime

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"ringway/tunnel"
	"ringway/tunnel/datagram"
	"ringway/tunnel/ledger"
	"ringway/tunnel/series"
	"ringway/tunnel/turn"
)

// The outbound path, all on one thread, to its end for each packet or batch (rw-fwd-out; which one has the
// turn: package turn):
//
//  1. loop, batch: read a packet from the tunnel device, to where it will be sealed
//  2. prepare: find its peer by the destination, and the peer's session. A packet of media is counted (measure.go),
//     and goes on only if its flow has a place in the peer's voice budget (package ledger). Without a session a
//     packet waits a little (stage, sendStaged)
//  3. seal: pad, seal in place; outer TOS by the inner DSCP, ECN copied (RFC 6040, section 4.1)
//  4. send: sendmmsg. Neighbours of one size to one peer are one UDP GSO message where that is allowed (group)
//
// A single packet leaves at once. Only when the last look found another packet waiting already is more than
// one read before they are sent: twice as many each time, up to outBatch.

const (
	outBatch   = 64
	vnetHeader = 10 // struct virtio_net_hdr
	maxPacket  = 65000
	outBuffer  = headerSize + maxPacket + 512 + tagSize
)

type outPacket struct {
	peer *peer
	to   *endpoint
	wire []byte // sealed
	tos  uint8
	data bool
	mark series.Mark

	again  *copyTo // it is sent once more; nil: it is not
	copied copied  // it is what is sent once more
}

// outbound belongs to the thread that has the turn, except for what is atomic.
type outbound struct {
	*turn.Direction
	e   *Engine
	tun int

	mem     []byte // for a batch
	packets [outBatch]outPacket
	n       int // packets in the batch
	copies  int // of them that are sent once more
	limit   int // packets that the next batch may have
	nonce   [12]byte
	errs    int // of the tunnel device, in a row

	// Memory for sendmmsg.
	msgs    [outBatch]datagram.Message
	iovs    [outBatch]unix.Iovec
	first   [outBatch + 1]int // index of each message's first packet
	control [outBatch][datagram.ControlSize]byte
	poll    unix.PollFd
	timeout unix.Timespec
	noGSO   bool

	measure *measuring // nil: media is not counted
	ledger  *ledger.Ledger
	request atomic.Pointer[request] // of the control side, to the ledger (reserve.go)

	staged    []staged
	hasStaged atomic.Bool
	later     atomic.Pointer[laterRing] // nil: no copies are sent later
}

// staged is a packet that waits for a session.
type staged struct {
	peer *peer
	at   int64
	mark series.Mark
	n    int
	b    [2048]byte
}

func newOutbound(e *Engine, cpus []int) (*outbound, error) {
	d, err := turn.NewDirection(e.threadOptions(threadOut), cpus, e.tun)
	if err != nil {
		return nil, err
	}
	return &outbound{
		Direction: d,
		e:         e,
		tun:       e.tun,
		mem:       make([]byte, outBatch*outBuffer),
		limit:     1,
		staged:    make([]staged, 0, maxStaged),
		ledger:    ledger.New(e.flowSeed),
	}, nil
}

func (o *outbound) buffer(i int) []byte {
	return o.mem[i*outBuffer : (i+1)*outBuffer : (i+1)*outBuffer]
}

func (o *outbound) loop() {
	sleep := true
	for o.Next(sleep) {
		now := o.e.now()
		if o.Woken || !sleep {
			o.serveRequest(now)
			if len(o.staged) > 0 {
				o.sendStaged(now)
			}
			if o.later.Load().waiting() {
				o.sendLater(now)
			}
		}
		sleep = o.batch(now)
	}
}

// batch forwards what has arrived, up to the limit. It reports whether there was less.
func (o *outbound) batch(now int64) (drained bool) {
	o.n = 0
	o.followMeasuring()
	looks := 0
	for o.n < o.limit && looks < outBatch {
		b := o.buffer(o.n)
		n, errno := o.Call(unix.SYS_READ, uintptr(o.tun), uintptr(unsafe.Pointer(&b[headerSize-vnetHeader])),
			vnetHeader+maxPacket, 0, 0)
		looks++
		if errno == unix.EAGAIN {
			drained = true
			break
		}
		if errno != 0 {
			if errno != unix.EINTR && !o.retryRead(errno) {
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

// retryRead handles an error of the tunnel device. It returns false if the device is lost.
func (o *outbound) retryRead(errno unix.Errno) bool {
	if o.errs++; o.errs < 100 && errno != unix.EBADFD && errno != unix.EBADF {
		return true
	}
	o.e.tunnelDeviceLost(errno)
	o.End()
	return false
}

// prepare takes the packet of n bytes behind b's header into the batch, stages it, or drops it.
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
	mark := o.arrive(p, packet, now)
	if b := p.voice.Budget(); b != nil && !o.admit(p, b, packet, now) {
		o.drop(dropOverBudget, mark)
		return
	}

	s := p.current.Load()
	if !s.usable(now) {
		o.stage(p, packet, mark, now)
		return
	}
	o.seal(p, s, b, n, mark)
}

// admit decides whether a packet may leave: media only if its flow has a place in the peer's voice budget.
func (o *outbound) admit(p *peer, b *ledger.Budget, packet []byte, now int64) bool {
	budgets := o.e.budgets.Load()
	if !budgets.IsMedia(trafficClass(packet)) {
		return true
	}
	size := padded(len(packet), o.e.outer.Load().padTo, int(o.e.mtu.Load())) + tunnel.OverheadIPv4
	if to := p.endpoint.Load(); to != nil && to.raw.V6() {
		size += tunnel.OverheadIPv6 - tunnel.OverheadIPv4
	}
	return o.ledger.Admit(budgets, &p.voice, b, packet, size, now)
}

// seal makes the packet in b a message of the batch.
func (o *outbound) seal(p *peer, s *session, b []byte, n int, mark series.Mark) {
	to := p.endpoint.Load()
	if to == nil {
		o.drop(dropUnreachable, mark)
		return
	}
	outer := o.e.outer.Load()
	class := trafficClass(b[headerSize:])
	size := padded(n, outer.padTo, int(o.e.mtu.Load()))
	clear(b[headerSize+n : headerSize+size])
	o.e.sealMessage(s, &o.nonce, b, size)

	o.packets[o.n] = outPacket{
		peer: p,
		to:   to,
		wire: b[:headerSize+size+tagSize],
		tos:  outer.tos[class>>2] | class&ecnMask,
		data: true,
		mark: mark,
	}
	if c := p.copies.to.Load(); c != nil && c.media>>(class>>2)&1 != 0 {
		o.packets[o.n].again = c
		o.copies++
	}
	o.n++
}

// stage has a packet wait for a session, and requests one. Where too many wait, the oldest of that peer is
// dropped.
func (o *outbound) stage(p *peer, packet []byte, mark series.Mark, now int64) {
	o.putStaged(p, packet, mark, now)
	o.hasStaged.Store(true)
	if !p.wanted.Swap(true) {
		o.e.notify()
	}
}

func (o *outbound) putStaged(p *peer, packet []byte, mark series.Mark, now int64) {
	if len(packet) > len(staged{}.b) {
		o.drop(dropNoSession, mark)
		return
	}
	if p.staged >= maxStagedPerPeer || len(o.staged) == maxStaged {
		o.dropOldestStaged(p)
	}
	if len(o.staged) == maxStaged {
		o.drop(dropNoSession, mark)
		return
	}
	o.staged = o.staged[:len(o.staged)+1]
	w := &o.staged[len(o.staged)-1]
	w.peer, w.at, w.mark, w.n = p, now, mark, copy(w.b[:], packet)
	p.staged++
}

// dropOldestStaged drops the oldest packet of p, or of any peer when p has none.
func (o *outbound) dropOldestStaged(p *peer) {
	at := 0
	for i := range o.staged {
		if o.staged[i].peer == p {
			at = i
			break
		}
	}
	o.staged[at].peer.staged--
	o.drop(dropNoSession, o.staged[at].mark)
	copy(o.staged[at:], o.staged[at+1:])
	o.staged = o.staged[:len(o.staged)-1]
}

// sendStaged sends what has a session by now, and drops what has waited for too long.
func (o *outbound) sendStaged(now int64) {
	keep := 0
	o.n = 0
	for i := range o.staged {
		w := &o.staged[i]
		s := w.peer.current.Load()
		switch {
		case w.peer.gone.Load() || now-w.at > int64(stagedFor):
			o.drop(dropNoSession, w.mark)
		case s.usable(now):
			b := o.buffer(o.n)
			copy(b[headerSize:], w.b[:w.n])
			o.seal(w.peer, s, b, w.n, w.mark)
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
	o.hasStaged.Store(keep > 0)
	if o.n > 0 {
		o.send(now)
	}
}

// group makes messages of the packets from at on, all of one address family, and returns how many.
func (o *outbound) group(at int, single bool) (n int) {
	maxPayload := int(o.e.superPacket.Load())
	if single {
		maxPayload = 0
	}
	socketTOS := o.e.outer.Load().socket
	v6 := o.packets[at].to.raw.V6()
	for i := at; i < o.n && o.packets[i].to.raw.V6() == v6; n++ {
		p := &o.packets[i]
		o.first[n] = i
		o.iovs[i].Base = &p.wire[0]
		o.iovs[i].SetLen(len(p.wire))
		segments := datagram.StartSegments(len(p.wire))
		j := i + 1
		for ; j < o.n; j++ {
			q := &o.packets[j]
			// All have one header, and so one TOS octet.
			if q.to != p.to || q.tos != p.tos || !segments.Add(len(q.wire), maxPayload) {
				break
			}
			o.iovs[j].Base = &q.wire[0]
			o.iovs[j].SetLen(len(q.wire))
		}
		o.header(n, p, j-i, segments.Size, socketTOS)
		i = j
	}
	o.first[n] = o.familyEnd(at)
	return n
}

// header writes the header of message n: a packet like p, or that many segments of size bytes, the last of
// which may be shorter.
func (o *outbound) header(n int, p *outPacket, segments, size int, socketTOS uint8) {
	control := o.control[n][:]
	c := p.to.controls
	if c > 0 {
		copy(control[:c], p.to.control[:c])
	}
	if p.tos != socketTOS {
		c = datagram.PutTOS(control, c, p.to.raw.V6(), p.tos)
	}
	if segments > 1 {
		c = datagram.PutSegment(control, c, size)
	}

	h := &o.msgs[n].Header
	h.Name, h.Namelen = &p.to.raw.B[0], p.to.raw.N
	h.Iov = &o.iovs[o.first[n]]
	h.SetIovlen(segments)
	h.Control = nil
	if c > 0 {
		h.Control = &control[0]
	}
	h.SetControllen(c)
}

// send sends the batch, and then its copies: no packet waits for one.
func (o *outbound) send(now int64) {
	o.sendBatch(now)
	if o.copies > 0 {
		o.sendCopies(now)
	}
	o.n = 0
}

// sendBatch sends what is in the batch. A message that the kernel refuses is dropped alone.
func (o *outbound) sendBatch(now int64) {
	waited, single := 0, o.noGSO
	for at := 0; at < o.n; {
		count := o.group(at, single)
		fd := o.e.udp[0]
		if o.packets[at].to.raw.V6() {
			fd = o.e.udp[1]
		}
		if fd < 0 {
			o.dropPacket(at, dropUnreachable)
			at++
			continue
		}

		sent, errno := o.Call(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&o.msgs[0])), uintptr(count),
			unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0)
		if errno == 0 && sent > 0 {
			o.countSent(at, o.first[sent], now)
			at = o.first[sent]
			continue
		}

		if errno == unix.EINTR {
			continue
		}
		// The socket's buffer is full: what comes next waits in the tunnel device, where it is bounded. It does
		// not wait long.
		if errno == unix.EAGAIN && waited < 10 && o.packets[at].copied == original {
			waited++
			o.WaitWritable(&o.poll, &o.timeout, fd, 10)
			continue
		}
		if retry, disable := datagram.SegmentationFailure(errno); retry && o.first[1]-at > 1 {
			o.noGSO = o.noGSO || disable
			single = true
			continue
		}
		if to := o.packets[at].to; to.controls > 0 && o.packets[at].copied == original && datagram.IsStaleSource(errno) {
			o.dropSource(at, to)
			continue
		}
		for why := sendErrors[datagram.ClassifySend(errno)]; at < o.first[1]; at++ {
			o.dropPacket(at, why)
		}
	}
}

// countSent counts packets of the batch that were sent.
func (o *outbound) countSent(from, end int, now int64) {
	for i := from; i < end; i++ {
		p := &o.packets[i]
		if p.copied != original {
			p.peer.copies.noteSent(p.copied)
			p.peer.txBytes.Add(uint64(len(p.wire)))
			continue
		}
		p.peer.txPackets.Add(1)
		p.peer.txBytes.Add(uint64(len(p.wire)))
		p.peer.noteSent(now, p.data, true)
		o.pass(p.mark)
	}
}

// dropSource has the kernel choose the source address again for the packets from at on that go to an endpoint.
func (o *outbound) dropSource(at int, to *endpoint) {
	bare := to.withoutSource()
	o.packets[at].peer.endpoint.CompareAndSwap(to, bare)
	for i := at; i < o.n; i++ {
		if o.packets[i].to == to {
			o.packets[i].to = bare
		}
	}
}

// familyEnd is the end of the packets from at on that go to addresses of one family.
func (o *outbound) familyEnd(at int) int {
	v6 := o.packets[at].to.raw.V6()
	for i := at; i < o.n; i++ {
		if o.packets[i].to.raw.V6() != v6 {
			return i
		}
	}
	return o.n
}
