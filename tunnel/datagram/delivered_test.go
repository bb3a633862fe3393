package datagram

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"
)

// delivered writes what the kernel says of a datagram that TPROXY delivered.
func delivered(to netip.AddrPort, at int64) []byte {
	raw := RawSockaddr(to)
	level, kind := int32(unix.IPPROTO_IP), int32(unix.IP_RECVORIGDSTADDR)
	if raw.V6() {
		level, kind = unix.IPPROTO_IPV6, unix.IPV6_RECVORIGDSTADDR
	}
	b := make([]byte, ControlSize)
	data := putHeader(b, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 16)
	binary.NativeEndian.PutUint64(data, uint64(at/1e9))
	binary.NativeEndian.PutUint64(data[8:], uint64(at%1e9))
	n := unix.CmsgSpace(16)
	copy(putHeader(b[n:], level, kind, int(raw.N)), raw.B[:raw.N])
	return b[:n+unix.CmsgSpace(int(raw.N))]
}

func TestDelivered(t *testing.T) {
	for _, a := range []string{"192.0.2.1:40000", "[2001:db8::1]:40001"} {
		want := netip.MustParseAddrPort(a)
		to, at := ReadDelivered(delivered(want, 1_234_567_890_123))
		assert.Equal(t, want, to)
		assert.Equal(t, int64(1_234_567_890_123), at)
	}

	b := NewBatch(1, 100)
	b.Reset()
	from := RawSockaddr(netip.MustParseAddrPort("192.0.2.9:7"))
	b.from[0] = from
	b.Messages[0].Header.Namelen, b.Messages[0].N = from.N, 100
	b.Messages[0].Header.Flags = unix.MSG_TRUNC
	b.Messages[0].Header.SetControllen(copy(b.control[0][:], delivered(netip.MustParseAddrPort("192.0.2.1:40000"), 1)))
	d, ok := b.Delivered(0)
	assert.True(t, ok)
	assert.False(t, d.Whole)
	assert.Equal(t, "192.0.2.9:7", d.From.String())

	b.Messages[0].Header.SetControllen(0)
	_, ok = b.Delivered(0)
	assert.False(t, ok, "without the destination it is nobody's")
}

// FuzzDelivered reads any control messages.
func FuzzDelivered(f *testing.F) {
	f.Add(delivered(netip.MustParseAddrPort("192.0.2.1:40000"), 1))
	f.Add(delivered(netip.MustParseAddrPort("[2001:db8::1]:40000"), 1))
	f.Fuzz(func(_ *testing.T, b []byte) { ReadDelivered(b) })
}
