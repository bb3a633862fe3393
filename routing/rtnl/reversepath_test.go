package rtnl_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/routing"
	"ringway/test/netnstest"
)

// The strict reverse path check, with packets. What the firewall marks is marked here by hand.
//
//	phone 10.1.10.5 --- voice0 box wan0 --- provider 198.51.100.1 (203.0.113.2 behind it)
//	                        |  |
//	                 rw-voice  rw-data      the test holds their other ends: site 10.2.0.0/16 is behind both,
//	                                        site 10.3.0.0/16 behind rw-data only
func TestStrictReversePath(t *testing.T) {
	box, phone, provider := netnstest.New(t), netnstest.New(t), netnstest.New(t)
	netnstest.Veth(t, provider, "up0", box, "wan0")
	netnstest.Veth(t, phone, "eth0", box, "voice0")
	netnstest.Veth(t, phone, "eth1", box, "data0")
	for _, c := range []string{
		"ip addr add 10.1.10.5/24 dev eth0", "ip route add default via 10.1.10.1", "ip addr add 10.2.10.77/32 dev lo",
	} {
		phone.Run("sh", "-c", c)
	}
	for _, c := range []string{
		"ip addr add 198.51.100.1/24 dev up0", "ip addr add 203.0.113.2/32 dev lo",
		"ip addr add 10.2.10.9/32 dev lo", "ip addr add 10.1.10.5/32 dev lo",
	} {
		provider.Run("sh", "-c", c)
	}
	voice, data := openTUN(t, box, "rw-voice"), openTUN(t, box, "rw-data")

	in := branch()
	in.Sites = []routing.SiteRoute{
		{Name: "munich", Prefixes: pfx("10.2.0.0/16"), VoiceDevice: "rw-voice", DataDevice: "rw-data"},
		{Name: "plain", Prefixes: pfx("10.3.0.0/16"), VoiceDevice: "rw-data", DataDevice: "rw-data"},
	}
	want := routing.Want(in)
	apply(t, box, routing.Diff(want, observe(t, box, want)))
	box.Run("nft", `table inet test { chain classify { type filter hook prerouting priority mangle;
		iifname "voice0" ip daddr { 10.2.0.0/16, 10.3.0.0/16 } meta mark set 0x1200
		iifname "rw-voice" meta mark set 0x1200
		iifname "rw-data" meta mark set 0x1600
	}; }`)

	toPhone := listen(t, phone, "10.1.10.5:4000")
	toBox := listen(t, box, "198.51.100.2:51820")
	expect := func(t *testing.T, c *net.UDPConn, payload string) {
		t.Helper()
		b := make([]byte, 1500)
		require.NoError(t, c.SetReadDeadline(time.Now().Add(5*time.Second)))
		n, _, err := c.ReadFromUDP(b)
		require.NoError(t, err, payload)
		assert.Equal(t, payload, string(b[:n]))
	}

	t.Run("from a tunnel to the LAN", func(t *testing.T) {
		// The queue of a device keeps its order: a bad packet that got through would be read first.
		voice.send("10.1.20.7", "10.1.10.5", "source is an own LAN")
		voice.send("192.0.2.66", "10.1.10.5", "source is the internet")
		voice.send("10.3.0.5", "10.1.10.5", "source is behind the other tunnel")
		voice.send("10.2.10.9", "10.1.10.5", "call")
		expect(t, toPhone, "call")
		data.send("10.1.20.7", "10.1.10.5", "source is an own LAN")
		data.send("10.3.0.5", "10.1.10.5", "file")
		expect(t, toPhone, "file")
	})
	t.Run("from the LAN into a tunnel", func(t *testing.T) {
		send(t, phone, "10.2.10.77", "10.2.20.1", "spoofed")
		send(t, phone, "10.1.10.5", "10.2.20.1", "call")
		assert.Equal(t, "call", voice.read(t, "10.2.20.1"))
		send(t, phone, "10.1.10.5", "10.3.0.1", "call to the site with one tunnel")
		assert.Equal(t, "call to the site with one tunnel", data.read(t, "10.3.0.1"))
	})
	t.Run("ciphertext on the WAN", func(t *testing.T) {
		for _, source := range []string{"10.2.10.9", "10.1.10.5"} {
			send(t, provider, source, "198.51.100.2:51820", "spoofed")
		}
		send(t, provider, "203.0.113.2", "198.51.100.2:51820", "ciphertext")
		expect(t, toBox, "ciphertext")
	})
	t.Run("from the box itself", func(t *testing.T) {
		send(t, box, "", "10.2.20.1", "no mark yet")
		assert.Equal(t, "no mark yet", data.read(t, "10.2.20.1"))
	})
	t.Run("without marks nothing leaves in clear", func(t *testing.T) {
		box.Run("nft", "flush", "ruleset")
		out, _ := phone.Try("ping", "-c1", "-W5", "10.2.20.1")
		assert.Contains(t, out, "From 10.1.10.1 icmp_seq=1 Destination Host Unreachable")
	})
}

func listen(t *testing.T, ns *netnstest.NS, address string) (c *net.UDPConn) {
	require.NoError(t, ns.Do(func() (err error) {
		c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(address)))
		return err
	}))
	t.Cleanup(func() { c.Close() })
	return c
}

// send sends one datagram from source; a destination without a port means 4000.
func send(t *testing.T, ns *netnstest.NS, source, to, payload string) {
	t.Helper()
	dst, err := netip.ParseAddrPort(to)
	if err != nil {
		dst = netip.AddrPortFrom(netip.MustParseAddr(to), 4000)
	}
	require.NoError(t, ns.Do(func() error {
		var local *net.UDPAddr
		if source != "" {
			local = &net.UDPAddr{IP: net.ParseIP(source)}
		}
		c, err := net.DialUDP("udp4", local, net.UDPAddrFromAddrPort(dst))
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte(payload))
		return err
	}))
}

// tun is the other end of a tunnel device: where an engine would be.
type tun struct{ *os.File }

func openTUN(t *testing.T, ns *netnstest.NS, name string) tun {
	var f *os.File
	require.NoError(t, ns.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		req, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
			return fmt.Errorf("make %s: %w", name, err)
		}
		f = os.NewFile(uintptr(fd), name)
		return nil
	}))
	t.Cleanup(func() { f.Close() })
	return tun{f}
}

// send puts a UDP datagram to port 4000 into the box.
func (d tun) send(source, to, payload string) {
	b := make([]byte, 28, 28+len(payload))
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(b[2:], uint16(28+len(payload)))
	copy(b[12:], netip.MustParseAddr(source).AsSlice())
	copy(b[16:], netip.MustParseAddr(to).AsSlice())
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	sum = sum>>16 + sum&0xffff
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum+sum>>16))
	binary.BigEndian.PutUint16(b[20:], 4000)
	binary.BigEndian.PutUint16(b[22:], 4000)
	binary.BigEndian.PutUint16(b[24:], uint16(8+len(payload)))
	if _, err := d.Write(append(b, payload...)); err != nil {
		panic(err)
	}
}

// read is the payload of the next datagram to the address.
func (d tun) read(t *testing.T, to string) string {
	t.Helper()
	b := make([]byte, 2000)
	require.NoError(t, d.SetReadDeadline(time.Now().Add(5*time.Second)))
	for {
		n, err := d.Read(b)
		require.NoError(t, err)
		if n > 28 && b[0]>>4 == 4 && b[9] == unix.IPPROTO_UDP && netip.AddrFrom4([4]byte(b[16:20])).String() == to {
			return string(b[28:n])
		}
	}
}
