package wireguardgo

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"ringway/tunnel/datagram"
)

// The way in, for each family:
//  1. recvmmsg into memory of our own, where the kernel may have joined up to 64 datagrams in a message
//  2. what is no WireGuard message, or a handshake message that does not know our public key,
//     ends here: no buffer of the device is spent on it
//  3. data messages are tagged, counted and copied to the device, which authenticates them, and
//     calls the TUN's Write (tun.go) with those that are good

const (
	joinedMessages = 8                             // messages for one recvmmsg when the kernel joins datagrams
	joinedSize     = 65536                         // room for each
	singleMessages = 64                            // messages for one recvmmsg when it does not
	singleSize     = joinedMessages * joinedSize / // the same memory
		singleMessages
)

// Handshake messages that know our public key, a second: those above are dropped, so that the
// device's queue of 1024 × 64 KiB stays nearly empty. The burst is above the 128 waiting messages
// at which the device starts to ask for cookies. Those that carry a cookie have their own share.
const (
	handshakeRate  = 1000
	handshakeBurst = 144
)

// notPollable is what Go's poller says to a reader while the socket has nothing but its error queue to tell (the numbers of packets
// that left, sites.go) and takes no packet either; it has no name that can be compared. It passes with the next packet that leaves.
const notPollable = "not pollable"

type receiver struct {
	s    *socket
	hub  *hub
	last int // buffers that the device replaced since the last call, at most

	msgs    []datagram.Message
	iovs    []unix.Iovec
	names   []datagram.Sockaddr
	control [][datagram.ControlSize]byte
	mem     []byte
	size    int

	n     int // messages received
	at    int // the one being handed out
	rest  []byte
	seg   int
	ep    *endpoint
	errno unix.Errno
	try   func(fd uintptr) bool

	known   endpoints
	buckets [3]bucket
}

func newReceiver(s *socket, h *hub) *receiver {
	r := &receiver{s: s, hub: h}
	n := singleMessages
	r.size = singleSize
	if s.gro {
		n, r.size = joinedMessages, joinedSize
	}
	r.msgs = make([]datagram.Message, n)
	r.iovs = make([]unix.Iovec, n)
	r.names = make([]datagram.Sockaddr, n)
	r.control = make([][datagram.ControlSize]byte, n)
	r.mem = make([]byte, n*r.size)
	for i := range r.msgs {
		r.iovs[i].Base = &r.mem[i*r.size]
		r.iovs[i].SetLen(r.size)
		h := &r.msgs[i].Header
		h.Name, h.Iov, h.Control = &r.names[i].B[0], &r.iovs[i], &r.control[i][0]
		h.SetIovlen(1)
	}
	for i := range r.buckets {
		r.buckets[i].tokens = handshakeBurst
	}
	r.try = func(fd uintptr) bool {
		r.n, r.errno = recvmmsg(fd, r.msgs)
		return r.errno != unix.EAGAIN
	}
	return r
}

// receive is the device's conn.ReceiveFunc. It fails only when the socket is closed: the device
// gives a receiver up that fails more often.
func (r *receiver) receive(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	r.hub.reclaim(bufs[:r.last])
	r.last = 0
	for {
		if r.at >= r.n && len(r.rest) == 0 {
			if err := r.fill(); err != nil {
				return 0, net.ErrClosed
			}
		}
		if n := r.hand(bufs, sizes, eps); n > 0 {
			r.last = n
			return n, nil
		}
	}
}

// fill waits for packets.
func (r *receiver) fill() error {
	r.n, r.at = 0, 0
	for {
		for i := range r.msgs {
			r.msgs[i].Header.Namelen = uint32(len(r.names[i].B))
			r.msgs[i].Header.SetControllen(datagram.ControlSize)
		}
		select {
		case m := <-r.hub.cross.late:
			r.n, r.ep, r.rest, r.seg = 0, m.from, m.message[:], len(m.message)
			return nil
		default:
		}
		if err := r.s.rc.Read(r.try); errors.Is(err, os.ErrDeadlineExceeded) { // woken to look again
			if r.s.f.SetReadDeadline(time.Time{}) == nil {
				continue
			}
			return net.ErrClosed
		} else if err != nil && err.Error() == notPollable {
			r.hub.fair.sites.drain(true)
			_ = r.s.rc.Control(func(fd uintptr) {
				p := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
				_, _ = unix.Ppoll(p[:], &unix.Timespec{Nsec: 1e6}, nil)
			})
			if r.s.rc.Control(func(fd uintptr) { r.n, r.errno = recvmmsg(fd, r.msgs) }) != nil {
				return net.ErrClosed
			}
		} else if err != nil {
			return err
		}
		switch r.errno {
		case 0:
			return nil
		case unix.EBADF, unix.ENOTSOCK:
			return net.ErrClosed
		case unix.ENOBUFS, unix.ENOMEM: // the kernel is short of memory: do not spin
			select {
			case <-r.hub.closed:
				return net.ErrClosed
			case <-time.After(10 * time.Millisecond):
			}
		}
		r.n = 0 // an error that the network reported on an earlier packet, or EINTR
	}
}

// hand copies packets to the device's buffers.
func (r *receiver) hand(bufs [][]byte, sizes []int, eps []conn.Endpoint) (n int) {
	for n < len(bufs) {
		if len(r.rest) == 0 {
			if r.at >= r.n {
				break
			}
			r.open()
			continue
		}
		p := r.rest[:min(r.seg, len(r.rest))]
		r.rest = r.rest[len(p):]
		data, ok := r.admit(p)
		if !ok {
			continue
		}
		sizes[n] = copy(bufs[n], p)
		eps[n] = r.ep
		if data {
			r.hub.claim(bufs[n], tagInbound)
		}
		n++
	}
	return n
}

// open takes the next message of the batch.
func (r *receiver) open() {
	m := &r.msgs[r.at]
	name := &r.names[r.at]
	i := r.at
	r.at++
	name.N = m.Header.Namelen
	if name.N != unix.SizeofSockaddrInet4 && name.N != unix.SizeofSockaddrInet6 || m.N == 0 {
		return
	}
	a := datagram.ReadControl(r.control[i][:min(int(m.Header.Controllen), datagram.ControlSize)])
	if a.Source.IsValid() && (a.Source.IsUnspecified() || a.Source.IsMulticast()) {
		a.Source = netip.Addr{}
	}
	r.ep = r.known.get(name, a.Source)
	r.rest = r.mem[i*r.size:][:min(int(m.N), r.size)]
	r.seg = len(r.rest)
	if a.Segment > 0 {
		r.seg = a.Segment
	}
}

// admit decides without any state whether the device shall see a packet; data says that it is a
// data message that carries a packet.
func (r *receiver) admit(p []byte) (data, ok bool) {
	if len(p) < device.MinMessageSize || len(p) > maxPacket {
		r.hub.drops.add(dropGarbage, 1)
		return false, false
	}
	size, share := 0, 0
	switch binary.LittleEndian.Uint32(p) {
	case device.MessageTransportType:
		return len(p) > device.MessageKeepaliveSize, true
	case device.MessageInitiationType:
		size = device.MessageInitiationSize
	case device.MessageResponseType:
		size = device.MessageResponseSize
	case device.MessageCookieReplyType:
		size, share = device.MessageCookieReplySize, 2
	}
	if len(p) != size {
		r.hub.drops.add(dropGarbage, 1)
		return false, false
	}
	if share == 0 {
		if !r.hub.mac1.CheckMAC1(p) {
			r.hub.drops.add(dropMAC1, 1)
			return false, false
		}
		if mac2 := p[len(p)-16:]; [16]byte(mac2) != [16]byte{} {
			share = 1
		}
	}
	if !r.buckets[share].take(time.Now()) {
		r.hub.drops.add(dropHandshakeRate, 1)
		return false, false
	}
	switch size {
	case device.MessageInitiationSize:
		if r.hub.cross.keepBack(p, r.ep) {
			return false, false
		}
	case device.MessageResponseSize:
		r.hub.cross.answered(r.ep.dst)
	}
	return false, true
}

// bucket is a token bucket of handshakeRate and handshakeBurst.
type bucket struct {
	tokens float64
	at     time.Time
}

func (b *bucket) take(now time.Time) bool {
	if !b.at.IsZero() {
		b.tokens = min(b.tokens+now.Sub(b.at).Seconds()*handshakeRate, handshakeBurst)
	}
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
