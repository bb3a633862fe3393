package rawudp_test

import (
	"context"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/routing/rawudp"
	"ringway/test/netnstest"
)

// box wan0 (198.51.100.2) --- up0 provider (198.51.100.1, and 10.2.10.53 behind it)
//
// The box has a route for 10.2.10.0/24 that leads nowhere, as for a site's network, and drops all it receives.
func TestPastRoutesAndFirewall(t *testing.T) {
	box, provider := netnstest.New(t), netnstest.New(t)
	netnstest.Veth(t, provider, "up0", box, "wan0")
	provider.Run("ip", "addr", "add", "198.51.100.1/24", "dev", "up0")
	provider.Run("ip", "addr", "add", "10.2.10.53/32", "dev", "lo")
	box.Run("ip", "addr", "add", "198.51.100.2/24", "dev", "wan0")
	box.Run("ip", "route", "add", "unreachable", "10.2.10.0/24")
	box.Run("nft", "add table ip t; add chain ip t in { type filter hook input priority 0; policy drop; }; "+
		"add chain ip t out { type filter hook output priority 0; policy drop; }")
	echo(t, provider, "10.2.10.53:53")

	o := rawudp.Options{
		Interface: "wan0", Local: netip.MustParseAddrPort("198.51.100.2:0"),
		Network: netip.MustParsePrefix("198.51.100.0/24"), Gateway: netip.MustParseAddr("198.51.100.1"),
	}
	dial := func(o rawudp.Options, to string) (c *rawudp.Conn, err error) {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		doErr := box.Do(func() error { c, err = rawudp.Dial(ctx, o, netip.MustParseAddrPort(to)); return nil })
		require.NoError(t, doErr)
		return c, err
	}
	c, err := dial(o, "10.2.10.53:53")
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(5*time.Second)))
	for _, question := range []string{"odd", "even", ""} {
		_, err = c.Write([]byte(question))
		require.NoError(t, err)
		b := make([]byte, 100)
		n, err := c.Read(b)
		require.NoError(t, err)
		assert.Equal(t, question, string(b[:n]))
	}

	_, err = dial(o, "198.51.100.77:53")
	assert.EqualError(t, err, "look for 198.51.100.77 on wan0: nobody answered ARP")
	o.Gateway = netip.Addr{}
	_, err = dial(o, "10.2.10.53:53")
	assert.ErrorIs(t, err, rawudp.ErrNoGateway)
}

// echo answers every datagram with itself. The provider's kernel has verified the checksums.
func echo(t *testing.T, ns *netnstest.NS, at string) {
	t.Helper()
	var conn net.PacketConn
	require.NoError(t, ns.Do(func() (err error) { conn, err = net.ListenPacket("udp4", at); return err }))
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 2000)
		for {
			n, from, err := conn.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = conn.WriteTo(b[:n], from)
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
}
