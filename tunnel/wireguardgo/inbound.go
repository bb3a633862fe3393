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

// The inbound path, for each family:
//
//  1. fill: recvmmsg into our own memory, where the kernel may have joined up to 64 datagrams in a message
//  2. admit: what is not a WireGuard message, or a handshake message that does not know our public key, ends
//     here: no buffer of the device is spent on it
//  3. hand: data messages are tagged, counted and copied to the device, which authenticates them, and calls
//     the TUN's Write (tun.go) with those that are good

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

// notPollable is Go's poller's error for a reader while the socket has nothing to report but its error queue
// (the numbers of packets that left, sites.go) and takes no packet either. It has no name that can be
// compared. It passes with the next packet that leaves.
const notPollable = "not pollable"

type receiver struct {
	s    *socket
	hub  *hub
	last int // buffers that the device replaced since the last call, at most

	batch *datagram.Batch
	n     int // messages received
	at    int // the next of them
	now   datagram.Received
	ep    *endpoint
	errno unix.Errno
	try   func(fd uintptr) bool

	recent  endpointCache
	buckets [3]bucket
}

func newReceiver(s *socket, h *hub) *receiver {
	r := &receiver{s: s, hub: h}
	n, size := singleMessages, singleSize
	if s.gro {
		n, size = joinedMessages, joinedSize
	}
	r.batch = datagram.NewBatch(n, size)
	for i := range r.buckets {
		r.buckets[i].tokens = handshakeBurst
	}
	r.try = func(fd uintptr) bool {
		r.n, r.errno = recvmmsg(fd, r.batch.Messages)
		return r.errno != unix.EAGAIN
	}
	return r
}

// receive is the device's conn.ReceiveFunc. It fails only when the socket is closed: the device gives up a
// receiver that fails more often.
func (r *receiver) receive(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	r.hub.reclaim(bufs[:r.last])
	r.last = 0
	for {
		if r.at >= r.n && len(r.now.Rest) == 0 {
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
		r.batch.Reset()
		select {
		case m := <-r.hub.cross.late:
			r.n, r.ep = 0, m.from
			r.now = datagram.Received{Rest: m.message[:], Arrival: datagram.Arrival{Segment: len(m.message)}}
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
			if r.s.rc.Control(func(fd uintptr) { r.n, r.errno = recvmmsg(fd, r.batch.Messages) }) != nil {
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
		if len(r.now.Rest) == 0 {
			if r.at >= r.n {
				break
			}
			r.open()
			continue
		}
		p := r.now.Next()
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
	m, ok := r.batch.Received(r.at)
	r.at++
	if !ok || len(m.Rest) == 0 {
		return
	}
	src := m.Source
	if r.hub.former.Load() != nil && r.hub.hasLeft(src, m.From.AddrPort()) {
		src = netip.Addr{}
	}
	r.ep = r.recent.get(m.From, src)
	r.now = m
}

// admit decides, without any state, whether a packet goes to the device. data says that it is a data message
// that carries a packet.
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
		if r.hub.cross.holdBack(p, r.ep) {
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
