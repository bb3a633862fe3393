package e2e

import (
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/qos"
	"ringway/test/lab"
	"ringway/test/lab/capture"
)

// carried sends n bytes by TCP between two hosts and gives the longest segment that the sender then knew of.
func carried(t *testing.T, from, to *lab.Host, addr string, n int) (segment int) {
	t.Helper()
	ctx := within(t, 30*time.Second)
	end, _ := ctx.Deadline()
	var l net.Listener
	require.NoError(t, to.Do(func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(addr, "0"))
		return err
	}))
	defer l.Close()
	type end1 struct {
		n   int64
		err error
	}
	heard := make(chan end1, 1)
	go func() {
		_ = l.(*net.TCPListener).SetDeadline(end)
		c, err := l.Accept()
		if err != nil {
			heard <- end1{err: err}
			return
		}
		defer c.Close()
		_ = c.SetDeadline(end)
		got, err := io.Copy(io.Discard, c)
		heard <- end1{got, err}
	}()
	var c net.Conn
	require.NoError(t, from.Do(func() (err error) {
		c, err = (&net.Dialer{}).DialContext(ctx, "tcp", l.Addr().String())
		return err
	}))
	defer c.Close()
	require.NoError(t, c.SetDeadline(end))
	_, err := c.Write(make([]byte, n))
	require.NoError(t, err)
	require.NoError(t, c.(*net.TCPConn).CloseWrite())
	got := <-heard
	require.NoError(t, got.err)
	require.EqualValues(t, n, got.n)
	raw, err := c.(*net.TCPConn).SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			segment = int(info.Snd_mss)
		}
	}))
	require.NoError(t, err)
	return segment
}

// tooBig pings with a packet of that length that must not be fragmented, and demands to be told what fits. Options are
// further ones of ping(8).
func tooBig(t *testing.T, from *lab.Host, to string, length, fits int, options ...string) {
	t.Helper()
	headers := 28
	if net.ParseIP(to).To4() == nil {
		headers = 48
	}
	ping := func(length int) (string, error) {
		return from.Run(within(t, 10*time.Second), "sh", "-c",
			fmt.Sprintf("ping -n -c 1 -W 2 -M do -s %d %s %s 2>&1; true", length-headers, strings.Join(options, " "), to))
	}
	said, err := ping(length)
	require.NoError(t, err)
	// From the router at first; a host that knows already says it itself.
	assert.Regexp(t, fmt.Sprintf(
		`(?i)(frag needed and DF set \(mtu = %d\)|packet too big: mtu=%d|message too long, mtu[=:] ?%d)`, fits,
		fits, fits), said, "%d bytes to %s", length, to)
	said, err = ping(fits)
	require.NoError(t, err)
	assert.Contains(t, said, " 0% packet loss", "%d bytes to %s", fits, to)
}

// longest is the longest frame of a tunnel that an edge sent.
func longest(frames []capture.Frame, port uint16, from string) (bytes int) {
	for _, f := range frames {
		if f.Kind == capture.WireGuard && f.Source.Port() == port && f.Source.Addr().String() == from {
			bytes = max(bytes, f.Bytes)
		}
	}
	return bytes
}

// A line of 1150 kbit/s, less 3 %, is busy for 10 ms with 1394 bytes. So nothing of data's may be longer, TCP
// or not, through the tunnel; hosts that send more are told in time, and local internet's TCP keeps to it
// too.
func TestASlowLineCarriesShortPackets(t *testing.T) {
	t.Parallel()
	const most, inner = 1394, 1394 - 14 - 20 - 8 - 32
	l := branches(t, lab.Options{WAN: 1150 * qos.Kbit})
	pcA, pcB := l.Host(lab.PCA), l.Host(lab.PCB)
	wan := watchWAN(t, l)
	for _, to := range []string{"10.2.20.10", "2001:db8:2:20::10"} {
		tooBig(t, pcA, to, 1500, inner)
		carried(t, pcA, pcB, to, 100_000)
	}
	// Without DF it is the router that makes fragments.
	said, err := pcA.Run(within(t, 10*time.Second), "ping", "-n", "-c", "1", "-W", "5", "-M", "dont", "-s",
		"3000", "10.2.20.10")
	require.NoError(t, err, said)
	// The first segments of a flow are as short as all others, for the far end was told a smaller size by the SYN.
	assert.LessOrEqual(t, carried(t, pcA, pcB, "10.2.20.10", 1000), inner-40)
	assert.LessOrEqual(t, carried(t, pcA, l.Host(lab.Provider), "198.51.100.1", 30_000), most-14-40)
	frames := wan.stop(t)
	onWire := longest(frames, dataPort, edgeA)
	assert.LessOrEqual(t, onWire, most)
	assert.Greater(t, onWire, most-32, "and nothing was cut that fits")
	internet := 0
	for _, f := range frames {
		if f.Protocol == unix.IPPROTO_TCP && f.Source.Addr().String() == edgeA {
			internet = max(internet, f.Bytes)
		}
	}
	assert.LessOrEqual(t, internet, most)
	assert.Greater(t, internet, most-32)
	// Signalling keeps its long packets.
	wan = watchWAN(t, l)
	_, err = l.Host(lab.PhoneA).Run(within(t, 10*time.Second), "ping", "-n", "-c", "1", "-W", "5", "-M", "do",
		"-Q", "0x60", "-s", "1392", "10.2.10.10")
	require.NoError(t, err)
	assert.Equal(t, 1420+14+20+8+32, longest(wan.stop(t), voicePort, edgeA))
}

// A site behind a slow line is sent short packets by a box whose own line is fast, and TCP that nobody clamps
// finds it out.
func TestASlowSiteIsSentShortPackets(t *testing.T) {
	t.Parallel()
	const most, inner = 1394, (1394 - 14 - 20 - 8 - 32) / 16 * 16 // WireGuard pads to 16 below the tunnel's own MTU
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: func(site string, values map[string]string) {
		if site == "berlin" {
			values["sites[munich].downlink"] = "1150kbit"
		}
	}})
	pcA, pcB := l.Host(lab.PCA), l.Host(lab.PCB)
	wan := watchWAN(t, l)
	for _, to := range []string{"10.2.20.10", "2001:db8:2:20::10"} {
		assert.LessOrEqual(t, carried(t, pcA, pcB, to, 500_000), inner-40, "learned on the way: the SYN said 1380")
		tooBig(t, pcA, to, 1500, inner)
	}
	onWire := longest(wan.stop(t), dataPort, edgeA)
	assert.LessOrEqual(t, onWire, most)
	assert.Greater(t, onWire, most-32)
	tooBig(t, pcB, "10.1.20.10", 1500, 1420) // the other way is as long as ever
}
