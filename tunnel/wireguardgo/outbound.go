package wireguardgo

import (
	"net"
	"os"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"ringway/tunnel/datagram"
)

// The way out: the TUN's reader (tun.go) passes the outbound gate and hands packets to the
// device, which encrypts them in parallel and calls Send here, one call at a time for a peer:
//  1. group: neighbours of one size become one GSO message of at most superPacket bytes
//  2. sendmmsg, waiting while the socket's buffer is full (the gate fills, the TUN's queue drops)
//  3. count, clear the tags, and let that many packets through the gate again

// segmentsMax is the kernel's limit of datagrams in one message (UDP_MAX_SEGMENTS of 2018).
const segmentsMax = 64

// payloadMax is what fits into one message, with room for the headers of either family.
const payloadMax = 65535 - 48

// sendState is the memory of one Send. It is reused, and on the heap because the kernel gets
// pointers into it.
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
	const most = conn.IdealBatchSize
	st := &sendState{
		msgs:    make([]datagram.Message, most),
		iovs:    make([]unix.Iovec, most),
		first:   make([]int, most+1),
		control: make([][datagram.ControlSize]byte, most),
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

// group fills messages from bufs and returns how many. max below two packets means no GSO.
func (st *sendState) group(bufs [][]byte, ep *endpoint, max int) (n int) {
	src, pinned := ep.source()
	for i := 0; i < len(bufs); n++ {
		size := len(bufs[i])
		st.first[n] = i
		st.iovs[i].Base = &bufs[i][0]
		st.iovs[i].SetLen(size)
		j := i + 1
		for total := size; j < len(bufs) && j-i < segmentsMax; j++ {
			l := len(bufs[j])
			if l > size || total+l > max || len(bufs[j-1]) < size { // only the last may be shorter
				break
			}
			total += l
			st.iovs[j].Base = &bufs[j][0]
			st.iovs[j].SetLen(l)
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
			c = datagram.PutSegment(st.control[n][:], c, size)
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
	which := 0
	if !ep.dst.Addr().Is4() {
		which = 1
	}
	s := b.socks[which].Load()
	if s == nil {
		b.hub.drops.add(dropUnreachable, len(bufs))
		if b.base[which] == nil {
			return unix.EAFNOSUPPORT
		}
		return net.ErrClosed
	}
	st := b.states.Get().(*sendState)
	defer func() { st.forget(); b.states.Put(st) }()
	st.s, st.bind = s, b
	if m.peer != nil {
		st.mark = &st.marked
		st.marked = m
	}

	max := int(b.superPacket.Load())
	if s.noGSO.Load() {
		max = 0
	}
	var failed error
	for len(bufs) > 0 {
		chunk := bufs[:min(len(bufs), len(st.msgs))]
		done, errno, err := st.send(chunk, ep, max)
		if err != nil {
			return err
		}
		bufs = bufs[done:]
		if errno == 0 {
			continue
		}
		// The message that starts at bufs[0] failed; errno says why.
		several := len(bufs) > 1 && max >= 2*len(bufs[0])
		_, pinned := ep.source()
		switch {
		case pinned && staleSource(errno):
			ep.ClearSrc() // the address went, or has no way there any more: the kernel chooses now
		case several && errno == unix.EIO:
			s.noGSO.Store(true) // the network card computes no checksums (udp(7))
			b.hub.log.Info("UDP segmentation offload is off: the network card does not support it")
			max = 0
		case several && (errno == unix.EINVAL || errno == unix.EMSGSIZE):
			max = 0 // a segment is larger than the path's MTU now: one by one the kernel fragments
		default:
			b.hub.drops.add(sendReason(errno), 1)
			if failed == nil {
				failed = os.NewSyscallError("sendmmsg", errno)
			}
			n := 1
			for several && n < len(bufs) && n < segmentsMax && len(bufs[n]) == len(bufs[0]) && (n+1)*len(bufs[0]) <= max {
				n++
			}
			b.hub.drops.add(sendReason(errno), n-1)
			bufs = bufs[n:]
		}
	}
	return failed
}

// send sends as much as goes and returns how many packets went.
func (st *sendState) send(bufs [][]byte, ep *endpoint, max int) (done int, errno unix.Errno, err error) {
	n := st.group(bufs, ep, min(max, payloadMax))
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

// staleSource says whether an error may come from a source address that is not ours any more.
func staleSource(e unix.Errno) bool {
	switch e {
	case unix.EINVAL, unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EADDRNOTAVAIL, unix.ENODEV:
		return true
	}
	return false
}

func sendReason(e unix.Errno) reason {
	switch e {
	case unix.EPERM, unix.EACCES:
		return dropSendRefused
	case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENETDOWN, unix.EADDRNOTAVAIL, unix.EAFNOSUPPORT:
		return dropUnreachable
	case unix.ENOBUFS, unix.ENOMEM:
		return dropNoBuffers
	}
	return dropSend
}
