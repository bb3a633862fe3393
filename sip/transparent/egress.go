package transparent

import (
	"container/list"
	"encoding/binary"
	"net/netip"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"ringway/tunnel/datagram"
)

// Datagrams leave by unconnected sockets on the wildcard address, one for each source port, family and side of the
// tunnel. A connected one would take the answers, which have to come to a listener: TPROXY gives a packet to a
// connected socket that fits before it looks for a listener. The source address goes with each message, so that one
// socket serves all phones that use the same port.

// egressKey says which socket a datagram leaves by.
type egressKey struct {
	port   uint16 // of the sender
	v6     bool
	inside bool
}

func (k egressKey) kind() SocketKind { return SocketKind{UDP, k.v6, k.inside} }

// egressSocket is bound to its key's port. It is closed when it has left the table and its last user is done.
type egressSocket struct {
	key   egressKey
	fd    int
	users int
	place *list.Element // in the table; nil: it has left
}

// egressTable holds the bound sockets. When it is full, the one unused longest makes room.
type egressTable struct {
	r *Relay

	mu     sync.Mutex // guards what follows, and the sockets' fields
	byKey  map[egressKey]*egressSocket
	recent list.List // of *egressSocket, the one used last first
}

func newEgressTable(r *Relay) *egressTable {
	return &egressTable{r: r, byKey: map[egressKey]*egressSocket{}}
}

func (t *egressTable) size() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.byKey)
}

// send sends a datagram in the name of from. It reports whether it left; if not, it is counted.
func (t *egressTable) send(o *outbound, from, to netip.AddrPort, b []byte) bool {
	key := egressKey{from.Port(), from.Addr().Is6(), t.r.config.Inside(to.Addr())}
	s, why := t.acquire(key)
	if s == nil {
		t.r.counts.add(why)
		return false
	}
	errno := o.send(s.fd, from.Addr(), to, b)
	t.done(s)
	if errno != 0 {
		t.r.counts.unsent[datagram.ClassifySend(errno)].Add(1)
		return false
	}
	return true
}

// acquire gives the socket of a key, made if need be, or says why there is none.
func (t *egressTable) acquire(key egressKey) (s *egressSocket, why event) {
	if s := t.find(key); s != nil {
		return s, none
	}
	if t.r.config.Reserved(key.port) {
		return nil, reservedPort
	}
	fd, ok := t.r.fresh.take(key.kind(), t.r.config.Limits.Fetch, t.r.quit)
	if !ok {
		return nil, noFreshSocket
	}
	return t.add(key, fd)
}

func (t *egressTable) find(key egressKey) *egressSocket {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.byKey[key]
	if s != nil {
		s.users++
		t.recent.MoveToFront(s.place)
	}
	return s
}

// add binds a fresh socket to its port.
func (t *egressTable) add(key egressKey, fd int) (s *egressSocket, why event) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s := t.byKey[key]; s != nil { // another loop was faster
		t.r.fresh.giveBack(key.kind(), fd)
		s.users++
		return s, none
	}
	wildcard := netip.IPv4Unspecified()
	if key.v6 {
		wildcard = netip.IPv6Unspecified()
	}
	if unix.Bind(fd, sockaddr(netip.AddrPortFrom(wildcard, key.port))) != nil {
		t.r.fresh.giveBack(key.kind(), fd)
		return nil, bindFailed // a program of this machine has the port, or it is below 1024
	}

	if len(t.byKey) >= t.r.config.Limits.Egress {
		t.removeLocked(t.recent.Back().Value.(*egressSocket))
		t.r.counts.add(egressEvicted)
	}
	s = &egressSocket{key: key, fd: fd, users: 1}
	s.place = t.recent.PushFront(s)
	t.byKey[key] = s
	return s, none
}

func (t *egressTable) removeLocked(s *egressSocket) {
	delete(t.byKey, s.key)
	t.recent.Remove(s.place)
	s.place = nil
	if s.users == 0 {
		unix.Close(s.fd)
	}
}

// done ends a use that acquire began.
func (t *egressTable) done(s *egressSocket) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if s.users--; s.users == 0 && s.place == nil {
		unix.Close(s.fd)
	}
}

func (t *egressTable) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, s := range t.byKey {
		t.removeLocked(s)
	}
}

// outbound is what one sendmsg takes. It belongs to a loop.
type outbound struct {
	header  unix.Msghdr
	vector  unix.Iovec
	name    datagram.Sockaddr
	control [datagram.ControlSize]byte
}

// send sends b from an address that need not be this machine's, to a destination. It does not wait: where a queue
// is full, SIP sends again (RFC 3261, section 17.1.1.2), and other senders are not held up.
func (o *outbound) send(fd int, from netip.Addr, to netip.AddrPort, b []byte) unix.Errno {
	putAddress(&o.name, to)
	o.vector = unix.Iovec{}
	if len(b) > 0 {
		o.vector.Base = &b[0]
		o.vector.SetLen(len(b))
	}
	o.header = unix.Msghdr{Name: &o.name.B[0], Namelen: o.name.N, Iov: &o.vector, Control: &o.control[0]}
	o.header.SetIovlen(1)
	o.header.SetControllen(datagram.PutSource(o.control[:], 0, from))

	errno := o.sendmsg(fd)
	if tellsOfAnother(errno) {
		errno = o.sendmsg(fd)
	}
	o.vector = unix.Iovec{} // b belongs to somebody else again
	return errno
}

// sendmsg does not wait, so Go's scheduler need not look for other work meanwhile.
func (o *outbound) sendmsg(fd int) unix.Errno {
	_, _, errno := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(fd), uintptr(unsafe.Pointer(&o.header)),
		unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	return errno
}

// tellsOfAnother reports whether an error may be about an earlier datagram (an ICMP error that waited in the
// socket), or about none, so that the same again may leave.
func tellsOfAnother(errno unix.Errno) bool {
	return errno == unix.ECONNREFUSED || errno == unix.EPROTO || errno == unix.EINTR
}

// putAddress writes an address in the form of the kernel. datagram.RawSockaddr allocates for IPv6.
func putAddress(s *datagram.Sockaddr, a netip.AddrPort) {
	clear(s.B[:])
	binary.BigEndian.PutUint16(s.B[2:], a.Port())
	if a.Addr().Is4() {
		binary.NativeEndian.PutUint16(s.B[:], unix.AF_INET)
		ip := a.Addr().As4()
		copy(s.B[4:], ip[:])
		s.N = unix.SizeofSockaddrInet4
		return
	}
	binary.NativeEndian.PutUint16(s.B[:], unix.AF_INET6)
	ip := a.Addr().As16()
	copy(s.B[8:], ip[:])
	s.N = unix.SizeofSockaddrInet6
}
