package capture

import (
	"encoding/binary"
	"errors"
	"io"
	"net/netip"
	"time"
)

// ErrFull says that a file has as many bytes as it may.
var ErrFull = errors.New("the file is full")

// Writer writes the classic pcap format, with nanoseconds and without link headers (LINKTYPE_RAW).
type Writer struct {
	to    io.Writer
	left  int64
	buf   []byte
	order map[[2]netip.AddrPort]uint32 // of TCP: the next sequence number each way

	Packets int
}

const (
	magic       = 0xa1b23c4d // with nanoseconds
	linkTypeRaw = 101
	snapLength  = 1 << 16
)

// NewWriter begins a file of limit bytes at most.
func NewWriter(to io.Writer, limit int64) (*Writer, error) {
	w := &Writer{to: to, left: limit, order: map[[2]netip.AddrPort]uint32{}}
	b := binary.LittleEndian.AppendUint32(nil, magic)
	b = binary.LittleEndian.AppendUint16(b, 2)
	b = binary.LittleEndian.AppendUint16(b, 4)
	b = append(b, make([]byte, 8)...) // time zone and accuracy: always zero
	b = binary.LittleEndian.AppendUint32(b, snapLength)
	return w, w.write(binary.LittleEndian.AppendUint32(b, linkTypeRaw))
}

func (w *Writer) write(b []byte) error {
	if int64(len(b)) > w.left {
		return ErrFull
	}
	w.left -= int64(len(b))
	_, err := w.to.Write(b)
	return err
}

// Packet writes a packet that begins with its IP header, of which length bytes were sent.
func (w *Writer) Packet(at time.Time, b []byte, length int) error {
	w.buf = binary.LittleEndian.AppendUint32(w.buf[:0], uint32(at.Unix()))
	w.buf = binary.LittleEndian.AppendUint32(w.buf, uint32(at.Nanosecond()))
	w.buf = binary.LittleEndian.AppendUint32(w.buf, uint32(len(b)))
	w.buf = binary.LittleEndian.AppendUint32(w.buf, uint32(max(length, len(b))))
	w.Packets++
	return w.write(append(w.buf, b...))
}

// Signalling writes a message as the packet that might have brought it. A relay keeps messages, and not packets: what
// is kept of them is another text, and one of TCP may have come in several.
func (w *Writer) Signalling(at time.Time, from, to netip.AddrPort, tcp bool, text []byte) error {
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	if from.Addr().Is4() != to.Addr().Is4() || !from.IsValid() {
		return nil // no packet can
	}
	const room = 1<<16 - 1 - 40 - 20
	text = text[:min(len(text), room)]
	segment := binary.BigEndian.AppendUint16(nil, from.Port())
	segment = binary.BigEndian.AppendUint16(segment, to.Port())
	protocol, sum := byte(protoUDP), 6
	if tcp {
		protocol, sum = protoTCP, 16
		segment = w.segment(segment, from, to, len(text))
	} else {
		segment = binary.BigEndian.AppendUint16(segment, uint16(udpHeader+len(text)))
		segment = append(segment, 0, 0)
	}
	segment = append(segment, text...)
	header, pseudo := ipHeader(from.Addr(), to.Addr(), protocol, len(segment))
	binary.BigEndian.PutUint16(segment[sum:], checksum(append(pseudo, segment...)))
	packet := append(header, segment...)
	return w.Packet(at, packet, len(packet))
}

// segment is the rest of a header of TCP, with numbers that continue those of the message before.
func (w *Writer) segment(b []byte, from, to netip.AddrPort, length int) []byte {
	const headerWords, pushAck = 5 << 4, 0x18
	way, back := [2]netip.AddrPort{from, to}, [2]netip.AddrPort{to, from}
	b = binary.BigEndian.AppendUint32(b, w.order[way]+1)
	b = binary.BigEndian.AppendUint32(b, w.order[back]+1)
	b = append(b, headerWords, pushAck, 0xff, 0xff, 0, 0, 0, 0)
	w.order[way] += uint32(length)
	return b
}

// ipHeader is the header of a packet, and the pseudo-header that the checksum behind it covers.
func ipHeader(from, to netip.Addr, protocol byte, length int) (header, pseudo []byte) {
	addresses := append(from.AsSlice(), to.AsSlice()...)
	if from.Is4() {
		header = []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0}
		binary.BigEndian.PutUint16(header[2:], uint16(20+length))
		header = append(header, addresses...)
		binary.BigEndian.PutUint16(header[10:], checksum(header))
		pseudo = append(addresses, 0, protocol, 0, 0)
		binary.BigEndian.PutUint16(pseudo[10:], uint16(length))
		return header, pseudo
	}
	header = []byte{0x60, 0, 0, 0, 0, 0, protocol, 64}
	binary.BigEndian.PutUint16(header[4:], uint16(length))
	header = append(header, addresses...)
	pseudo = binary.BigEndian.AppendUint32(addresses, uint32(length))
	return header, append(pseudo, 0, 0, 0, protocol)
}

// checksum is that of RFC 1071. UDP's is never 0, which would mean that there is none.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	if len(b)%2 == 1 {
		sum += uint32(b[len(b)-1]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if sum == 0xffff {
		return 0xffff
	}
	return ^uint16(sum)
}
