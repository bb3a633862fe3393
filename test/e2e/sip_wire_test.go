package e2e

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/test/lab"
)

// wire is what passes the interface of a phone, kept by the kernel until stop reads it.
type wire struct {
	t  *testing.T
	fd int
}

// listenTo begins to record a phone's interface.
func listenTo(t *testing.T, h *lab.Host) *wire {
	t.Helper()
	return listenAt(t, h, "eth0")
}

// listenAt begins to record one interface of a host, or all of them for "".
func listenAt(t *testing.T, h *lab.Host, device string) *wire {
	t.Helper()
	w := &wire{t: t}
	protocol := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	require.NoError(t, h.Do(func() (err error) {
		link := &net.Interface{} // index 0 is all
		if device != "" {
			if link, err = net.InterfaceByName(device); err != nil {
				return err
			}
		}
		// Protocol 0: nothing arrives before it is bound to the interface.
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(w.fd) })
		return errors.Join(
			unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20),
			unix.SetsockoptInt(w.fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1),
			unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: link.Index}))
	}))
	return w
}

// stop is the signalling that was sent, and that came: the bytes of each connection, or of a pair's datagrams, by
// source and destination.
func (w *wire) stop() (sent, came map[string]string) {
	w.t.Helper()
	streams := [2]map[string]*stream{{}, {}}
	w.each(func(packet []byte, outgoing bool, _ time.Time) {
		way := 1
		if outgoing {
			way = 0
		}
		take(streams[way], packet)
	})
	texts := [2]map[string]string{{}, {}}
	for way, all := range streams {
		for pair, s := range all {
			if len(s.text) > 0 {
				texts[way][pair] = string(s.text)
			}
		}
	}
	return texts[0], texts[1]
}

// each calls f with what was recorded and not read so far: each packet from its IP header on, borrowed until f
// returns, and the kernel's time.
func (w *wire) each(f func(packet []byte, outgoing bool, at time.Time)) {
	w.t.Helper()
	packet, control := make([]byte, 1<<17), make([]byte, 256)
	for {
		n, m, _, from, err := unix.Recvmsg(w.fd, packet, control, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		require.NoError(w.t, err)
		f(packet[:n], from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING, w.time(control[:m]))
	}
	stats, err := unix.GetsockoptTpacketStats(w.fd, unix.SOL_PACKET, unix.PACKET_STATISTICS)
	require.NoError(w.t, err)
	require.Zero(w.t, stats.Drops, "the recording missed packets")
}

// time reads SCM_TIMESTAMPNS (socket(7)).
func (w *wire) time(control []byte) time.Time {
	w.t.Helper()
	messages, err := unix.ParseSocketControlMessage(control)
	require.NoError(w.t, err)
	for _, m := range messages {
		if m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SCM_TIMESTAMPNS && len(m.Data) >= 16 {
			return time.Unix(int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:])))
		}
	}
	w.t.Fatal("a packet without a time")
	return time.Time{}
}

// stream is one way of a connection.
type stream struct {
	first uint32 // sequence number of its first byte
	text  []byte
}

// take adds a packet to the stream that it belongs to, if it is signalling on port 5060.
func take(streams map[string]*stream, b []byte) {
	if len(b) < 20 {
		return
	}
	var src, dst netip.Addr
	var protocol byte
	switch b[0] >> 4 {
	case 4:
		src, dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		protocol, b = b[9], b[int(b[0]&15)*4:min(len(b), int(binary.BigEndian.Uint16(b[2:])))]
	case 6:
		src, dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		protocol, b = b[6], b[40:min(len(b), 40+int(binary.BigEndian.Uint16(b[4:])))]
	}
	if protocol != unix.IPPROTO_TCP && protocol != unix.IPPROTO_UDP {
		return
	}
	sport, dport := binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	if sport != 5060 && dport != 5060 {
		return
	}
	pair := netip.AddrPortFrom(src, sport).String() + " > " + netip.AddrPortFrom(dst, dport).String()
	if streams[pair] == nil {
		streams[pair] = &stream{}
	}
	if protocol == unix.IPPROTO_UDP {
		streams[pair].text = append(streams[pair].text, b[8:]...)
		return
	}
	streams[pair].segment(b)
}

// segment puts a segment of TCP where it belongs.
func (s *stream) segment(b []byte) {
	const syn = 2
	seq, payload := binary.BigEndian.Uint32(b[4:]), b[int(b[12]>>4)*4:]
	if b[13]&syn != 0 {
		s.first = seq + 1
		return
	}
	at := int(int32(seq - s.first))
	if at < 0 || len(payload) == 0 {
		return // a probe: keep-alive
	}
	if missing := at + len(payload) - len(s.text); missing > 0 {
		s.text = append(s.text, make([]byte, missing)...)
	}
	copy(s.text[at:], payload)
}
