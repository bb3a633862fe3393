package wireguardgo

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"ringway/tunnel/datagram"
)

// The outbound path. The TUN's reader (tun.go) passes the outbound gate and hands packets to the device,
// which encrypts them in parallel and calls Send here, one call at a time for a peer:
//
//  1. group: neighbours of one size become one GSO message of at most superPacket bytes
//  2. sendmmsg, waiting while the socket's buffer is full (the gate fills, and the TUN's queue drops)
//  3. count, clear the tags, and let that many packets through the gate again

// sendState is the memory of one Send. It is reused, and on the heap because the kernel gets pointers into it.
type sendState struct {
	msgs    []datagram.Message
	iovs    []unix.Iovec
	first   []int // index of each message's first packet
	control [][datagram.ControlSize]byte

	s     *socket
	bind  *bind
	next  []datagram.Message // not yet sent
	n     int
	errno unix.Errno
	wait  bool
	try   func(fd uintptr) bool

	marked mark
	mark   *mark // &marked: the last packet of the batch is marked so (sites.go)
}

func newSendState() *sendState {
	const n = conn.IdealBatchSize
	st := &sendState{
		msgs:    make([]datagram.Message, n),
		iovs:    make([]unix.Iovec, n),
		first:   make([]int, n+1),
		control: make([][datagram.ControlSize]byte, n),
	}
	st.try = func(fd uintptr) bool {
		for {
			if st.mark != nil {
				st.n, st.errno = st.bind.hub.fair.sites.send(fd, st.s, st.next, st.mark)
			} else {
				st.n, st.errno = sendmmsg(fd, st.next)
			}
			if st.errno != unix.EINTR {
				break
			}
		}
		if st.errno != unix.EAGAIN {
			return true
		}
		if !st.wait {
			st.wait = true
			st.bind.blocked.Add(1)
		}
		return false
	}
	return st
}

// group fills messages from bufs and returns how many. There is no GSO with a maxPayload of less than two
// packets.
func (st *sendState) group(bufs [][]byte, ep *endpoint, maxPayload int) (n int) {
	src, pinned := ep.source()
	if pinned && st.bind.hub.hasLeft(src, ep.dst) {
		ep.ClearSrc()
		pinned = false
	}
	for i := 0; i < len(bufs); n++ {
		st.first[n] = i
		st.iovs[i].Base = &bufs[i][0]
		st.iovs[i].SetLen(len(bufs[i]))
		segments := datagram.StartSegments(len(bufs[i]))
		j := i + 1
		for ; j < len(bufs) && segments.Add(len(bufs[j]), maxPayload); j++ {
			st.iovs[j].Base = &bufs[j][0]
			st.iovs[j].SetLen(len(bufs[j]))
		}
		h := &st.msgs[n].Header
		h.Name, h.Namelen = &ep.raw.B[0], ep.raw.N
		h.Iov = &st.iovs[i]
		h.SetIovlen(j - i)
		c := 0
		if pinned {
			c = datagram.PutSource(st.control[n][:], c, src)
		}
		if j-i > 1 {
			c = datagram.PutSegment(st.control[n][:], c, segments.Size)
		}
		if st.mark != nil && j == len(bufs) {
			c = datagram.PutTimestamp(st.control[n][:], c)
		}
		h.Control = nil
		if c > 0 {
			h.Control = &st.control[n][0]
		}
		h.SetControllen(c)
		i = j
	}
	st.first[n] = len(bufs)
	return n
}

func (st *sendState) forget() {
	clear(st.msgs)
	st.marked = mark{}
	clear(st.iovs)
	st.s, st.bind, st.next, st.mark = nil, nil, nil, nil
}

// Send sends one batch to one peer. An error of one packet does not hold up the others.
func (b *bind) Send(bufs [][]byte, to conn.Endpoint) error {
	ep, ok := to.(*endpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	defer b.hub.sent(bufs)
	m := b.hub.fair.sites.mark(b.hub, bufs)
	if !b.hub.cross.leave(ep.dst, bufs) {
		return nil
	}
	s, err := b.socketTo(ep)
	if err != nil {
		b.hub.drops.add(dropUnreachable, len(bufs))
		return err
	}

	st := b.states.Get().(*sendState)
	defer func() { st.forget(); b.states.Put(st) }()
	st.s, st.bind = s, b
	if m.peer != nil {
		st.mark = &st.marked
		st.marked = m
	}
	return b.sendAll(st, bufs, ep)
}

// socketTo returns the socket of an endpoint's family.
func (b *bind) socketTo(ep *endpoint) (*socket, error) {
	which := 0
	if ep.raw.V6() {
		which = 1
	}
	if s := b.socks[which].Load(); s != nil {
		return s, nil
	}
	if b.base[which] == nil {
		return nil, unix.EAFNOSUPPORT
	}
	return nil, net.ErrClosed
}

// sendAll sends bufs, and drops those that the kernel refuses. It returns the first error.
func (b *bind) sendAll(st *sendState, bufs [][]byte, ep *endpoint) (failed error) {
	maxPayload := int(b.superPacket.Load())
	if st.s.noGSO.Load() {
		maxPayload = 0
	}
	for len(bufs) > 0 {
		chunk := bufs[:min(len(bufs), len(st.msgs))]
		done, errno, err := st.send(chunk, ep, maxPayload)
		if err != nil {
			return err
		}
		bufs = bufs[done:]
		if errno == 0 {
			continue
		}

		// The message that starts at bufs[0] failed; errno says why.
		n := inFirst(chunk[done:], maxPayload)
		several := n > 1
		retry, disable := datagram.SegmentationFailure(errno)
		_, pinned := ep.source()
		switch {
		case pinned && datagram.IsStaleSource(errno):
			ep.ClearSrc() // the address went, or has no route there any more: the kernel chooses now
		case several && retry && disable:
			st.s.noGSO.Store(true)
			b.hub.log.Info("UDP segmentation offload is off: the network card does not support it")
			maxPayload = 0
		case several && retry:
			maxPayload = 0 // one by one the kernel fragments them
		default:
			if failed == nil {
				failed = os.NewSyscallError("sendmmsg", errno)
			}
			b.hub.drops.sendError(errno, n)
			bufs = bufs[n:]
		}
	}
	return failed
}

// inFirst is how many of bufs group puts into the first message.
func inFirst(bufs [][]byte, maxPayload int) int {
	segments := datagram.StartSegments(len(bufs[0]))
	for _, b := range bufs[1:] {
		if !segments.Add(len(b), maxPayload) {
			break
		}
	}
	return segments.Count
}

// send sends as much as the kernel takes, and returns how many packets that was.
func (st *sendState) send(bufs [][]byte, ep *endpoint, maxPayload int) (done int, errno unix.Errno, err error) {
	n := st.group(bufs, ep, maxPayload)
	for at := 0; at < n; {
		st.next = st.msgs[at:n]
		err = st.s.rc.Write(st.try)
		if st.wait {
			st.wait = false
			st.bind.blocked.Add(-1)
		}
		if err != nil {
			return st.first[at], 0, net.ErrClosed
		}
		if st.errno != 0 {
			return st.first[at], st.errno, nil
		}
		at += st.n
	}
	return len(bufs), 0, nil
}
