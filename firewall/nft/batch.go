package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// NFT_MSG_DESTROYSETELEM, Linux 6.3: as DELSETELEM, but tolerates a missing element (linux/netfilter/nf_tables.h).
// The library has no name for it.
const msgDestroySetElem = 30

// elementSocket sends transactions that change elements of sets and nothing else. google/nftables serves
// for the rest; here it lacks the remaining life of an element and NFT_MSG_DESTROYSETELEM, and it waits on
// Go's poller for answers that are there when sendto returns: nf_tables handles a batch in the sender's
// context.
type elementSocket struct {
	fd   int
	port uint32 // by which the kernel knows the socket: what it tells of these transactions bears it
	seq  uint32
	in   []byte
	out  []byte // used again
}

// rawElement is one element in the kernel's bytes.
type rawElement struct {
	Key
	timeout time.Duration // 0: the set's default
	remains time.Duration // life that is left; 0: all of timeout
	known   bool          // the kernel has the element already, with another life
}

// elementMessage is one step of a transaction: elements of one set are added or removed.
type elementMessage struct {
	kind     uint16 // NFT_MSG_NEWSETELEM, NFT_MSG_DELSETELEM, msgDestroySetElem
	set      string
	elements []rawElement
}

func openElementSocket() (*elementSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_NETFILTER)
	if err != nil {
		return nil, fmt.Errorf("open nf_tables netlink socket: %w", err)
	}

	s := &elementSocket{fd: fd, in: make([]byte, 64<<10)}
	err = errors.Join(
		unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}),
		// an answer does not repeat the question
		unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1),
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 1<<20),
	)
	if err != nil {
		s.close()
		return nil, fmt.Errorf("set up nf_tables netlink socket: %w", err)
	}
	name, err := unix.Getsockname(fd)
	if own, ok := name.(*unix.SockaddrNetlink); err == nil && ok {
		s.port = own.Pid
	}
	return s, nil
}

func (s *elementSocket) close() { _ = unix.Close(s.fd) }

// commit sends the messages as one transaction on table. The kernel takes all of them or none; the error is the
// first message's that it refused.
func (s *elementSocket) commit(table string, messages ...elementMessage) error {
	last := s.marshal(table, messages)
	if err := s.send(); err != nil {
		return fmt.Errorf("send to nf_tables: %w", err)
	}
	return s.answers(last)
}

// shortTransaction is one of a few calls, in bytes: the kernel is done with it in some 50 us.
const shortTransaction = 8 << 10

// send has the kernel carry out what is in s.out. Go is not told of a short transaction, nor of the answer that is
// there: a system call that it knows of wakes its monitor thread, which then looks some 60 times, every 20 us, whether
// other work waits. That costs more than the transaction.
func (s *elementSocket) send() error {
	if len(s.out) > shortTransaction {
		return unix.Sendto(s.fd, s.out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	}
	to := unix.RawSockaddrNetlink{Family: unix.AF_NETLINK}
	_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(s.fd), uintptr(unsafe.Pointer(unsafe.SliceData(s.out))),
		uintptr(len(s.out)), 0, uintptr(unsafe.Pointer(&to)), unix.SizeofSockaddrNetlink)
	if errno != 0 {
		return errno
	}
	return nil
}

// marshal puts the bytes of a transaction into s.out, and gives the sequence number of its last message, which alone
// asks for an answer: the kernel also answers those that it refuses.
func (s *elementSocket) marshal(table string, messages []elementMessage) (last uint32) {
	s.out = s.out[:0]
	s.message(unix.NFNL_MSG_BATCH_BEGIN, 0, func() { s.out = append(s.out, batchHeader...) })
	for i, m := range messages {
		var flags uint16
		if m.kind == unix.NFT_MSG_NEWSETELEM {
			flags |= unix.NLM_F_CREATE
		}
		if i == len(messages)-1 {
			flags |= unix.NLM_F_ACK
		}
		s.message(unix.NFNL_SUBSYS_NFTABLES<<8|m.kind, flags, func() {
			s.out = append(s.out, unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0)
			s.out = m.attributes(s.out, table)
		})
	}
	last = s.seq
	s.message(unix.NFNL_MSG_BATCH_END, 0, func() { s.out = append(s.out, batchHeader...) })
	return last
}

// batchHeader is struct nfgenmsg of the messages around a transaction: they name the subsystem.
var batchHeader = []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}

// message appends a message whose data body appends.
func (s *elementSocket) message(kind, flags uint16, body func()) {
	s.seq++
	begin := len(s.out)
	s.out = binary.NativeEndian.AppendUint32(s.out, 0) // its length, below
	s.out = binary.NativeEndian.AppendUint16(s.out, kind)
	s.out = binary.NativeEndian.AppendUint16(s.out, flags|unix.NLM_F_REQUEST)
	s.out = binary.NativeEndian.AppendUint32(s.out, s.seq)
	s.out = binary.NativeEndian.AppendUint32(s.out, 0) // port: the kernel's
	body()
	binary.NativeEndian.PutUint32(s.out[begin:], uint32(len(s.out)-begin))
	s.out = pad(s.out)
}

func (m elementMessage) attributes(out []byte, table string) []byte {
	out = attribute(out, unix.NFTA_SET_ELEM_LIST_TABLE, table, "\x00")
	out = attribute(out, unix.NFTA_SET_ELEM_LIST_SET, m.set, "\x00")
	return nested(out, unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(out []byte) []byte {
		for i := range m.elements {
			out = nested(out, unix.NFTA_LIST_ELEM, m.elements[i].attributes)
		}
		return out
	})
}

func (e *rawElement) attributes(out []byte) []byte {
	out = nested(out, unix.NFTA_SET_ELEM_KEY, func(out []byte) []byte {
		return attribute(out, unix.NFTA_DATA_VALUE, string(e.Key), "")
	})
	milliseconds := func(out []byte, kind uint16, d time.Duration) []byte {
		var b [8]byte
		binary.BigEndian.PutUint64(b[:], uint64(max(d.Milliseconds(), 1)))
		return attribute(out, kind, string(b[:]), "")
	}
	if e.timeout > 0 {
		out = milliseconds(out, unix.NFTA_SET_ELEM_TIMEOUT, e.timeout)
	}
	if e.remains > 0 {
		// Without it a kernel that has the element, with this timeout, changes nothing.
		out = milliseconds(out, unix.NFTA_SET_ELEM_EXPIRATION, e.remains)
	}
	return out
}

// attribute appends a netlink attribute.
func attribute(out []byte, kind uint16, value, end string) []byte {
	out = binary.NativeEndian.AppendUint16(out, uint16(unix.NLA_HDRLEN+len(value)+len(end)))
	out = binary.NativeEndian.AppendUint16(out, kind)
	return pad(append(append(out, value...), end...))
}

// nested appends an attribute that consists of those that body appends.
func nested(out []byte, kind uint16, body func([]byte) []byte) []byte {
	begin := len(out)
	out = binary.NativeEndian.AppendUint16(out, 0) // its length, below
	out = binary.NativeEndian.AppendUint16(out, kind|unix.NLA_F_NESTED)
	out = body(out)
	binary.NativeEndian.PutUint16(out[begin:], uint16(len(out)-begin))
	return out
}

// pad fills up to a multiple of four bytes. What out begins with has such a length.
func pad(out []byte) []byte { return append(out, "\x00\x00\x00"[:-len(out)&3]...) }

// answers reads what the kernel said to a transaction, up to the answer to message last. All of it is in the
// socket's buffer when sendto has returned, so nothing is waited for.
func (s *elementSocket) answers(last uint32) error {
	var refused error
	for answered := false; !answered; {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(s.fd),
			uintptr(unsafe.Pointer(unsafe.SliceData(s.in))), uintptr(len(s.in)), unix.MSG_DONTWAIT, 0, 0)
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.EAGAIN && refused != nil:
			return refused // of the transaction as a whole
		case errno != 0:
			return fmt.Errorf("read the answer of nf_tables: %w", errno)
		}

		for rest := s.in[:n]; len(rest) >= unix.NLMSG_HDRLEN+4; {
			size := int(binary.NativeEndian.Uint32(rest))
			if size < unix.NLMSG_HDRLEN+4 || size > len(rest) {
				return fmt.Errorf("nf_tables answered with a message of %d bytes in %d", size, len(rest))
			}
			if kind := binary.NativeEndian.Uint16(rest[4:]); kind == unix.NLMSG_ERROR {
				seq := binary.NativeEndian.Uint32(rest[8:])
				code := int32(binary.NativeEndian.Uint32(rest[unix.NLMSG_HDRLEN:]))
				if code != 0 && refused == nil {
					refused = unix.Errno(-code)
				}
				answered = answered || seq == last
			}
			rest = rest[min((size+3)&^3, len(rest)):]
		}
	}
	return refused
}
