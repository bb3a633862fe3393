package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// What the library has no name for (linux/netfilter/nf_tables.h).
const (
	// NFT_MSG_DESTROYSETELEM, Linux 6.3: as DELSETELEM, but tolerates a missing element
	msgDestroySetElem = 30
	attrElemKeyEnd    = 10 // NFTA_SET_ELEM_KEY_END
)

// elementSocket sends transactions that change elements of sets and nothing else. google/nftables serves
// for the rest; here it lacks the remaining life of an element and NFT_MSG_DESTROYSETELEM, and it waits on
// Go's poller for answers that are there when sendto returns: nf_tables handles a batch in the sender's
// context.
type elementSocket struct {
	fd  int
	seq uint32
	in  []byte
}

// rawElement is one element in the kernel's bytes.
type rawElement struct {
	rawKey
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
	return s, nil
}

func (s *elementSocket) close() { _ = unix.Close(s.fd) }

// commit sends the messages as one transaction on table. The kernel takes all of them or none; the error is the
// first message's that it refused.
func (s *elementSocket) commit(table string, messages ...elementMessage) error {
	out, last, err := s.marshal(table, messages)
	if err != nil {
		return err
	}
	if err := unix.Sendto(s.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("send to nf_tables: %w", err)
	}
	return s.answers(last)
}

// marshal gives the bytes of a transaction, and the sequence number of its last message.
func (s *elementSocket) marshal(table string, messages []elementMessage) ([]byte, uint32, error) {
	out := make([]byte, 0, 4096)
	out = s.header(out, unix.NFNL_MSG_BATCH_BEGIN, 0, batchHeader)

	for _, m := range messages {
		data, err := m.attributes(table)
		if err != nil {
			return nil, 0, fmt.Errorf("encode elements of set %s: %w", m.set, err)
		}
		flags := uint16(unix.NLM_F_ACK)
		if m.kind == unix.NFT_MSG_NEWSETELEM {
			flags |= unix.NLM_F_CREATE
		}
		out = s.header(out, unix.NFNL_SUBSYS_NFTABLES<<8|m.kind, flags, data)
	}

	last := s.seq
	out = s.header(out, unix.NFNL_MSG_BATCH_END, 0, batchHeader)
	return out, last, nil
}

// batchHeader is struct nfgenmsg of the messages around a transaction: they name the subsystem.
var batchHeader = []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}

func (s *elementSocket) header(out []byte, kind, flags uint16, data []byte) []byte {
	s.seq++
	out = binary.NativeEndian.AppendUint32(out, uint32(unix.NLMSG_HDRLEN+len(data)))
	out = binary.NativeEndian.AppendUint16(out, kind)
	out = binary.NativeEndian.AppendUint16(out, flags|unix.NLM_F_REQUEST)
	out = binary.NativeEndian.AppendUint32(out, s.seq)
	out = binary.NativeEndian.AppendUint32(out, 0) // port: the kernel's
	out = append(out, data...)
	return append(out, make([]byte, -len(data)&3)...)
}

func (m elementMessage) attributes(table string) ([]byte, error) {
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	ae.String(unix.NFTA_SET_ELEM_LIST_TABLE, table)
	ae.String(unix.NFTA_SET_ELEM_LIST_SET, m.set)

	ae.Nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(ae *netlink.AttributeEncoder) error {
		for _, e := range m.elements {
			ae.Nested(unix.NFTA_LIST_ELEM, e.attributes)
		}
		return nil
	})

	attrs, err := ae.Encode()
	return append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, attrs...), err
}

func (e rawElement) attributes(ae *netlink.AttributeEncoder) error {
	value := func(typ uint16, b string) {
		ae.Nested(typ, func(ae *netlink.AttributeEncoder) error {
			ae.Bytes(unix.NFTA_DATA_VALUE, []byte(b))
			return nil
		})
	}
	value(unix.NFTA_SET_ELEM_KEY, e.key)
	if e.end != "" {
		value(attrElemKeyEnd, e.end)
	}
	if e.timeout > 0 {
		ae.Uint64(unix.NFTA_SET_ELEM_TIMEOUT, uint64(e.timeout.Milliseconds()))
	}
	if e.remains > 0 {
		// Without it a kernel that has the element, with this timeout, changes nothing.
		ae.Uint64(unix.NFTA_SET_ELEM_EXPIRATION, uint64(max(e.remains.Milliseconds(), 1)))
	}
	return nil
}

// answers reads what the kernel said to a transaction, up to the answer to message last. All of it is in the
// socket's buffer when sendto has returned, so nothing is waited for.
func (s *elementSocket) answers(last uint32) error {
	var refused error
	for answered := false; !answered; {
		n, _, err := unix.Recvfrom(s.fd, s.in, unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EAGAIN) && refused != nil:
			return refused // of the transaction as a whole
		case err != nil:
			return fmt.Errorf("read the answer of nf_tables: %w", err)
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
