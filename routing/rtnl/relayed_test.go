package rtnl_test

import (
	"context"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/routing"
	"ringway/test/netnstest"
)

// relayed is the branch whose firewall marks packets for a relay.
func relayed() routing.Input {
	in := branch()
	in.Marks.Relayed, in.Marks.RelayedMask = 0x8000, 0x8000
	return in
}

func TestRelayComesAndGoes(t *testing.T) {
	box := newBox(t)
	plain, with := routing.Want(branch()), routing.Want(relayed())
	apply(t, box, routing.Diff(plain, observe(t, box, plain)))
	before := look(t, box)

	apply(t, box, routing.Diff(with, observe(t, box, with)))
	assert.Empty(t, texts(routing.Diff(with, observe(t, box, with))))
	assert.Empty(t, routing.Conflicts(with, observe(t, box, with)))
	for _, family := range []string{"-4", "-6"} {
		assert.Contains(t, box.Run("ip", family, "route", "show", "table", "5275"), "local default dev lo")
		assert.Contains(t, box.Run("ip", family, "rule"), "from all fwmark 0x8000/0x8000 iif voice0 lookup 5275 proto 82")
	}

	// A daemon that does not know that there was a relay.
	apply(t, box, routing.Diff(plain, observe(t, box, plain)))
	sameLines(t, before, look(t, box))
}

// The strict reverse path check with packets that the firewall marks for a relay, from a LAN, a tunnel and a WAN.
//
//	phone 10.1.10.5 --- voice0 box wan0 --- provider 198.51.100.1
//	                            |
//	                         rw-voice   the test holds its other end: site 10.2.0.0/16
func TestMarkedPacketsReachTheRelay(t *testing.T) {
	box, phone, provider := netnstest.New(t), netnstest.New(t), netnstest.New(t)
	netnstest.Veth(t, provider, "up0", box, "wan0")
	netnstest.Veth(t, phone, "eth0", box, "voice0")
	netnstest.Veth(t, phone, "eth1", box, "data0")
	phone.Run("sh", "-ec", "ip addr add 10.1.10.5/24 dev eth0; ip route add default via 10.1.10.1")
	provider.Run("sh", "-ec", "ip addr add 198.51.100.1/24 dev up0; ip route add 10.1.0.0/16 via 198.51.100.2")
	voice := openTUN(t, box, "rw-voice")
	openTUN(t, box, "rw-data")

	in := relayed()
	in.Sites = []routing.SiteRoute{
		{Name: "munich", Prefixes: pfx("10.2.0.0/16"), VoiceDevice: "rw-voice", DataDevice: "rw-data"},
	}
	want := routing.Want(in)
	apply(t, box, routing.Diff(want, observe(t, box, want)))
	box.Run("nft", `table inet test { chain classify { type filter hook prerouting priority -90;
		iifname "voice0" meta l4proto udp tproxy to :5271 meta mark set 0x9400
		iifname "rw-voice" meta l4proto udp tproxy to :5271 meta mark set 0x9400
		iifname "wan0" meta l4proto udp tproxy to :5271 meta mark set 0x8400
	}; }`)
	relay := listenTransparent(t, box)

	received := func() string {
		b := make([]byte, 1500)
		require.NoError(t, relay.SetReadDeadline(time.Now().Add(time.Second)))
		n, _, err := relay.ReadFromUDPAddrPort(b)
		if err != nil {
			return ""
		}
		return string(b[:n])
	}
	sendAll := func() (got []string) {
		send(t, phone, "10.1.10.5", "10.2.20.1", "from a LAN to a site")
		got = append(got, received())
		send(t, phone, "10.1.10.5", "192.0.2.77", "from a LAN to a provider")
		got = append(got, received())
		voice.send("10.2.10.9", "10.1.10.5", "from a site")
		got = append(got, received())
		send(t, provider, "198.51.100.1", "10.1.10.5", "from a provider")
		return append(got, received())
	}
	all := []string{"from a LAN to a site", "from a LAN to a provider", "from a site", "from a provider"}
	assert.Equal(t, all, sendAll())

	// What the rules would do without the devices in them: the reverse path look-up finds the table too.
	for _, device := range []string{"voice0", "data0", "rw-voice", "rw-data", "wan0"} {
		box.Run("ip", "rule", "del", "iif", device, "fwmark", "0x8000/0x8000", "lookup", "5275")
	}
	box.Run("ip", "rule", "add", "pref", "5190", "fwmark", "0x8000/0x8000", "lookup", "5275")
	assert.Equal(t, make([]string, len(all)), sendAll(), "martians")
	apply(t, box, routing.Diff(want, observe(t, box, want)))
	box.Run("ip", "rule", "del", "pref", "5190", "fwmark", "0x8000/0x8000", "lookup", "5275")
	assert.Equal(t, all, sendAll(), "repaired")
}

// listenTransparent is a relay's socket: it receives what TPROXY gives it, whatever address that has.
func listenTransparent(t *testing.T, ns *netnstest.NS) *net.UDPConn {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
		_ = c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1) })
		return err
	}}
	var c net.PacketConn
	require.NoError(t, ns.Do(func() (err error) {
		c, err = lc.ListenPacket(context.Background(), "udp4", netip.MustParseAddrPort("0.0.0.0:5271").String())
		return err
	}))
	t.Cleanup(func() { c.Close() })
	return c.(*net.UDPConn)
}
