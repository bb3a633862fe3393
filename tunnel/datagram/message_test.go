package datagram

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
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
