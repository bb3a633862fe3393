package twice

import (
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var loopback = netip.MustParseAddr("127.0.0.1")

func socket(t *testing.T) (*net.UDPConn, netip.AddrPort) {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, 0)))
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	require.NoError(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
	return c, c.LocalAddr().(*net.UDPAddr).AddrPort()
}

func relay(t *testing.T, c Config) *Relay {
	t.Helper()
	r, err := New(c)
	require.NoError(t, err)
	ended := make(chan struct{})
	go func() { r.Run(); close(ended) }()
	t.Cleanup(func() { r.Close(); <-ended })
	return r
}

func heard(t *testing.T, c *net.UDPConn, copies int) (text string) {
	t.Helper()
	b := make([]byte, 100)
	for range copies {
		n, _, err := c.ReadFromUDPAddrPort(b)
		require.NoError(t, err)
		text += string(b[:n]) + " "
	}
	return strings.TrimSpace(text)
}

// Two lines; both ways each datagram arrives once by each.
func TestEveryDatagramGoesByEveryLine(t *testing.T) {
	a, atA := socket(t)
	b, atB := socket(t)
	near := netip.AddrPortFrom(loopback, 0)
	far := relay(t, Config{Near: near, Tunnel: atB, Listen: near})
	here := relay(t, Config{Near: near, Tunnel: atA, Remote: far.Listens(), Lines: []Line{
		{Address: loopback}, {Address: netip.MustParseAddr("127.0.0.2")},
	}})
	for _, text := range []string{"one", "two"} {
		_, err := a.WriteToUDPAddrPort([]byte(text), here.Near())
		require.NoError(t, err)
		assert.Equal(t, text+" "+text, heard(t, b, 2))
		_, err = b.WriteToUDPAddrPort([]byte(text), far.Near())
		require.NoError(t, err)
		assert.Equal(t, text+" "+text, heard(t, a, 2))
	}
	assert.Len(t, far.known(), 2)
}

// Strangers do not fill the table of callers.
func TestCallersAreBounded(t *testing.T) {
	r := &Relay{}
	for port := range uint16(1000) {
		r.hear(netip.AddrPortFrom(loopback, port+1))
	}
	known := r.known()
	assert.Len(t, known, callers)
	assert.Contains(t, known, netip.AddrPortFrom(loopback, 1000), "the last one that called")
}
