package datagram

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"
)

// What the engines ask the kernel for reads back as what it would say.
func TestControlMessages(t *testing.T) {
	for _, c := range []struct {
		src string
		v6  bool
	}{{"192.0.2.1", false}, {"2001:db8::1", true}} {
		b := make([]byte, ControlSize)
		n := PutSource(b, 0, netip.MustParseAddr(c.src))
		n = PutTOS(b, n, c.v6, 0xb8)
		got := ReadControl(b[:n])
		assert.Equal(t, uint8(0xb8), got.TOS)
		assert.Equal(t, netip.MustParseAddr(c.src), got.Source)
	}
}

func TestSockaddrs(t *testing.T) {
	for _, a := range []string{"192.0.2.1:51820", "[2001:db8::1]:51820", "[fe80::1%2]:5"} {
		s := RawSockaddr(netip.MustParseAddrPort(a))
		assert.Equal(t, a, s.AddrPort().String())
	}
	mapped := RawSockaddr(netip.MustParseAddrPort("[::ffff:192.0.2.1]:1"))
	assert.Equal(t, "192.0.2.1:1", mapped.AddrPort().String())
}

// One batch serves sockets of both families: nothing of a longer address may stay behind a shorter one.
func TestReceivedAddressesAreComparable(t *testing.T) {
	b := NewBatch(1, 2048)
	for _, a := range []string{"[2001:db8::1]:51820", "192.0.2.1:51820", "[2001:db8::2]:7"} {
		want := RawSockaddr(netip.MustParseAddrPort(a))
		b.Reset()
		copy(b.from[0].B[:want.N], want.B[:want.N]) // as the kernel writes it
		b.Messages[0].Header.Namelen = want.N
		b.Messages[0].Header.SetControllen(0)
		b.Messages[0].N = 5

		got, ok := b.Received(0)
		assert.True(t, ok)
		assert.Equal(t, want, *got.From)
		assert.Len(t, got.Next(), 5)
		assert.Empty(t, got.Rest)
	}

	b.Reset()
	b.Messages[0].Header.Namelen = 0
	_, ok := b.Received(0)
	assert.False(t, ok, "a message without an address")
}

// What the kernel joined comes apart again.
func TestJoinedDatagrams(t *testing.T) {
	b := NewBatch(1, 2048)
	b.Reset()
	b.Messages[0].Header.Namelen = unix.SizeofSockaddrInet4
	b.Messages[0].Header.SetControllen(putGRO(b.control[0][:], 400))
	b.Messages[0].N = 1000
	r, ok := b.Received(0)
	assert.True(t, ok)
	for _, want := range []int{400, 400, 200} {
		assert.Len(t, r.Next(), want)
	}
	assert.Empty(t, r.Rest)
}

// putGRO writes what the kernel says of joined datagrams.
func putGRO(control []byte, size int) int {
	binary.NativeEndian.PutUint32(putHeader(control, unix.IPPROTO_UDP, unix.UDP_GRO, 4), uint32(size))
	return unix.CmsgSpace(4)
}

func TestSegments(t *testing.T) {
	for _, c := range []struct {
		name       string
		sizes      []int
		maxPayload int
		want       int
	}{
		{"equal", []int{100, 100, 100}, 1000, 3},
		{"the last is shorter", []int{100, 100, 60, 100}, 1000, 3},
		{"the next is longer", []int{100, 120}, 1000, 1},
		{"no segmentation", []int{100, 100}, 0, 1},
		{"bounded payload", []int{100, 100, 100}, 250, 2},
		{"the kernel's limit", make([]int, 100), 1000, MaxSegments},
		{"the largest message", []int{40000, 40000}, 1 << 20, 1},
	} {
		s := StartSegments(c.sizes[0])
		for _, n := range c.sizes[1:] {
			if !s.Add(n, c.maxPayload) {
				break
			}
		}
		assert.Equal(t, c.want, s.Count, c.name)
	}
}

func TestSendErrors(t *testing.T) {
	for errno, want := range map[unix.Errno]string{
		unix.EPERM:         "send_refused",
		unix.EACCES:        "send_refused",
		unix.ENETUNREACH:   "send_unreachable",
		unix.EHOSTUNREACH:  "send_unreachable",
		unix.ENETDOWN:      "send_unreachable",
		unix.EADDRNOTAVAIL: "send_unreachable",
		unix.EAFNOSUPPORT:  "send_unreachable",
		unix.EAGAIN:        "send_no_buffers",
		unix.ENOBUFS:       "send_no_buffers",
		unix.ENOMEM:        "send_no_buffers",
		unix.EMSGSIZE:      "oversized",
		unix.EIO:           "send_failed",
		unix.EINVAL:        "send_failed",
	} {
		assert.Equal(t, want, ClassifySend(errno).String(), errno.Error())
	}
}

// FuzzControl reads any control messages.
func FuzzControl(f *testing.F) {
	b := make([]byte, ControlSize)
	n := PutSource(b, 0, netip.MustParseAddr("192.0.2.1"))
	n = PutTOS(b, n, false, 0xb8)
	n = PutSegment(b, n, 200)
	n = PutTimestamp(b, n)
	f.Add(b[:n])
	f.Fuzz(func(_ *testing.T, b []byte) { ReadControl(b); ReadSent(b) })
}
