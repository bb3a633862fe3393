package transparent

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"ringway/sip/message"
	"ringway/tunnel/datagram"
)

const (
	slots       = 8       // datagrams for one recvmmsg
	slotSize    = 1 << 16 // no datagram is longer; only the pages that were written to take memory
	controlSize = 128     // of a slot; struct sockaddr_in6 with its header takes 48
)

// reader is the loop of a UDP listener. Nothing in it allocates once the egress sockets are there.
type reader struct {
	r *Relay
	source
	conn net.PacketConn
	raw  syscall.RawConn
	beat beat

	slots slotMemory
	fill  func(fd uintptr) bool
	n     int // datagrams that the latest recvmmsg gave
	errno unix.Errno

	message Message
	sip     message.Message
	judged  [slots]judged
	out     outbound
}

// judged is a datagram of which the Handler has said what becomes of it.
type judged struct {
	Action
	from, to netip.AddrPort
	raw      []byte
	refused  bool // the Handler has not seen it
}

// newReader makes a reader of a duplicate of f.
func newReader(r *Relay, s source, f *os.File) (*reader, error) {
	conn, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("read it: %w", err)
	}
	udp, ok := conn.(*net.UDPConn)
	if !ok {
		conn.Close()
		return nil, fmt.Errorf("it is not a UDP socket")
	}
	raw, err := udp.SyscallConn()
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("read it: %w", err)
	}

	rd := &reader{r: r, source: s, conn: conn, raw: raw}
	rd.slots.init()
	rd.fill = func(fd uintptr) bool {
		rd.n, rd.errno = rd.slots.receive(fd)
		return rd.errno != unix.EAGAIN
	}
	return rd, nil
}

// run relays until the listener is closed. No error of the socket ends it: they tell of single datagrams, or of a
// lack that passes.
func (rd *reader) run() error {
	for {
		if err := rd.round(); over(err) {
			return nil
		} else if err != nil {
			return fmt.Errorf("receive SIP over UDP on %s: %w", rd.at, err)
		}
	}
}

// round waits for datagrams, and relays a batch.
func (rd *reader) round() error {
	rd.beat.wait()
	if err := rd.raw.Read(rd.fill); err != nil {
		return err
	}
	if rd.errno != 0 {
		if rd.errno != unix.EINTR {
			rd.r.counts.add(receiveFailed)
			rd.r.pause()
		}
		return nil
	}
	for i := range rd.n {
		rd.beat.work(rd.r.now())
		rd.judged[i] = rd.judge(i)
	}
	for i := range rd.n {
		j := &rd.judged[i]
		if j.Wait != nil {
			j.Wait()
		}
		rd.beat.work(rd.r.now())
		rd.relay(j)
		*j = judged{}
	}
	return nil
}

// judge shows one datagram to the Handler.
func (rd *reader) judge(i int) (j judged) {
	var why event
	if j.raw, j.from, j.to, why = rd.slots.datagram(i); why == none {
		why = rd.refuses(j.from, j.to)
	}
	if why != none {
		rd.r.counts.add(why)
		return judged{refused: true}
	}

	m := &rd.message
	*m = Message{From: j.from, To: j.to, Transport: UDP, FromNear: rd.near, Raw: j.raw, SIP: &rd.sip}
	m.Reason = rd.sip.Scan(j.raw)
	j.Action = rd.r.config.Handle(m)
	return j
}

// relay does with one datagram what was said of it.
func (rd *reader) relay(j *judged) {
	if j.refused {
		return
	}
	if len(j.Reply) > 0 {
		rd.r.counts.add(replies)
		rd.r.egress.send(&rd.out, j.to, j.from, j.Reply)
	}
	if j.Drop {
		rd.r.counts.add(datagramsDropped)
		return
	}
	raw := j.raw
	if j.Raw != nil {
		raw = j.Raw
	}
	if rd.r.egress.send(&rd.out, j.from, j.to, raw) {
		rd.r.counts.add(datagramsPassed)
	}
	j.overwrite()
}

// overflow is how many datagrams the kernel dropped because the listener's buffer was full.
func (rd *reader) overflow() (n uint64) {
	_ = rd.raw.Control(func(fd uintptr) { n = datagram.Overflow(int(fd)) })
	return n
}

// slotMemory is what recvmmsg fills.
type slotMemory struct {
	headers [slots]datagram.Message
	vectors [slots]unix.Iovec
	names   [slots]datagram.Sockaddr
	control [slots][controlSize]byte
	memory  []byte
}

func (s *slotMemory) init() {
	s.memory = make([]byte, slots*slotSize)
	for i := range s.headers {
		s.vectors[i].Base = &s.memory[i*slotSize]
		s.vectors[i].SetLen(slotSize)

		h := &s.headers[i].Header
		h.Name, h.Iov, h.Control = &s.names[i].B[0], &s.vectors[i], &s.control[i][0]
		h.SetIovlen(1)
	}
}

// receive takes what there is, without waiting.
func (s *slotMemory) receive(fd uintptr) (n int, errno unix.Errno) {
	for i := range s.headers { // the kernel overwrites these lengths
		s.headers[i].Header.Namelen = uint32(len(s.names[i].B))
		s.headers[i].Header.SetControllen(controlSize)
	}
	got, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&s.headers[0])), slots,
		unix.MSG_DONTWAIT, 0, 0)
	return int(got), errno
}

// datagram gives what slot i holds, until the next receive. why is none if nothing is wrong with it.
func (s *slotMemory) datagram(i int) (raw []byte, from, to netip.AddrPort, why event) {
	h := &s.headers[i]
	if h.Header.Flags&unix.MSG_TRUNC != 0 || h.N > slotSize {
		return nil, from, to, datagramTruncated
	}
	from, ok := addressIn(s.names[i].B[:min(int(h.Header.Namelen), len(s.names[i].B))])
	if !ok {
		return nil, from, to, unusableAddress
	}
	to, ok = originalDestination(s.control[i][:min(int(h.Header.Controllen), controlSize)])
	if !ok || to.Addr().Is4() != from.Addr().Is4() {
		return nil, from, to, noOriginalDestination
	}
	return s.memory[i*slotSize:][:h.N:h.N], from, to, none
}

// originalDestination finds, among control messages, where a datagram was sent to. It accepts any bytes.
func originalDestination(b []byte) (to netip.AddrPort, ok bool) {
	const align = int(unsafe.Sizeof(uintptr(0)))
	for len(b) >= unix.SizeofCmsghdr {
		h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
		size := int(h.Len)
		if size < unix.SizeofCmsghdr || size > len(b) {
			break
		}
		if h.Level == unix.IPPROTO_IP && h.Type == unix.IP_ORIGDSTADDR ||
			h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_ORIGDSTADDR {
			return addressIn(b[unix.SizeofCmsghdr:size])
		}
		b = b[min((size+align-1)&^(align-1), len(b)):]
	}
	return to, false
}

// addressIn reads a struct sockaddr of IPv4 or IPv6, without its scope: nothing is relayed that needs one.
func addressIn(b []byte) (a netip.AddrPort, ok bool) {
	if len(b) < unix.SizeofSockaddrInet4 {
		return a, false
	}
	port := binary.BigEndian.Uint16(b[2:])
	switch binary.NativeEndian.Uint16(b) {
	case unix.AF_INET:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), port), true
	case unix.AF_INET6:
		if len(b) >= unix.SizeofSockaddrInet6 {
			return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b[8:24])), port), true
		}
	}
	return a, false
}
