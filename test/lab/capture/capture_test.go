package capture

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"ringway/quality"
	"ringway/test/netnstest"
	"ringway/test/polltest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair is a (10.0.0.1, fd00::1) eth0 --- eth0 (10.0.0.2, fd00::2) b
func pair(t *testing.T) (a, b *netnstest.NS) {
	t.Helper()
	a, b = netnstest.New(t), netnstest.New(t)
	for _, n := range []*netnstest.NS{a, b} { // else IPv6 is silent for its first second
		n.Run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0")
	}
	netnstest.Veth(t, a, "eth0", b, "eth0")
	for i, n := range []*netnstest.NS{a, b} {
		n.Run("ip", "addr", "add", fmt.Sprintf("10.0.0.%d/24", i+1), "dev", "eth0")
		n.Run("ip", "addr", "add", fmt.Sprintf("fd00::%d/64", i+1), "dev", "eth0", "nodad")
	}
	return a, b
}

func path(n *netnstest.NS) string { return fmt.Sprintf("/proc/self/fd/%d", n.FD()) }

func udp(t *testing.T, n *netnstest.NS, local, remote string, tos int) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	require.NoError(t, n.Do(func() error {
		l, err := net.ResolveUDPAddr("udp", local)
		if err != nil {
			return err
		}
		r, err := net.ResolveUDPAddr("udp", remote)
		if err != nil {
			return err
		}
		if conn, err = net.DialUDP("udp", l, r); err != nil {
			return err
		}
		raw, err := conn.SyscallConn()
		if err != nil {
			return err
		}
		return raw.Control(func(fd uintptr) {
			// Each is refused by a socket of the other family.
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, tos)
			_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_TCLASS, tos)
		})
	}))
	t.Cleanup(func() { conn.Close() })
	return conn
}

func rtp(ssrc uint32, seq uint16) []byte {
	b := make([]byte, 172)
	b[0], b[1] = 0x80, 8
	binary.BigEndian.PutUint16(b[2:], seq)
	binary.BigEndian.PutUint32(b[4:], uint32(seq)*160)
	binary.BigEndian.PutUint32(b[8:], ssrc)
	return b
}

func TestBothDirectionsBothFamilies(t *testing.T) {
	a, b := pair(t)
	ports := Ports{Low: 6000, High: 6099}
	atA, err := Start(path(a), "eth0", ports)
	require.NoError(t, err)
	atB, err := Start(path(b), "eth0", ports)
	require.NoError(t, err)

	const n = 300
	for _, f := range []struct{ a, b string }{{"10.0.0.1:6000", "10.0.0.2:6000"}, {"[fd00::1]:6002", "[fd00::2]:6002"}} {
		fromA, fromB := udp(t, a, f.a, f.b, 46<<2), udp(t, b, f.b, f.a, 0)
		tick := time.NewTicker(time.Millisecond)
		for i := range n {
			<-tick.C
			for _, c := range []*net.UDPConn{fromA, fromB} {
				_, err := c.Write(rtp(7, uint16(65400+i)))
				require.NoError(t, err)
			}
		}
		tick.Stop()
		// RTCP and STUN on the same port are no RTP.
		_, err = fromA.Write([]byte{0x80, 200, 0, 6, 0, 0, 0, 7, 0, 0, 0, 0})
		require.NoError(t, err)
		_, err = fromA.Write([]byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42, 0, 0, 0, 0})
		require.NoError(t, err)
	}
	// A port outside is not even copied to us.
	_, err = udp(t, a, "10.0.0.1:7000", "10.0.0.2:7000", 0).Write(rtp(1, 1))
	require.NoError(t, err)

	polltest.Require(t, func() bool { return atB.Count() >= 4*n }, 5*time.Second, 5*time.Millisecond)
	pa, err := atA.Stop()
	require.NoError(t, err)
	pb, err := atB.Stop()
	require.NoError(t, err)
	_, err = atB.Stop()
	assert.ErrorIs(t, err, ErrStopped)
	assert.Zero(t, pa.Drops)
	assert.Equal(t, 4, pb.Other)

	aToB, bToA := Match(pa, pb, quality.MatchOptions{})
	for name, d := range map[string]Direction{"a to b": aToB, "b to a": bToA} {
		s := d.Summary()
		t.Logf(
			"%s: delay min %v p50 %v p99 %v max %v",
			name,
			s.Delay.Min(),
			s.Delay.Percentile(50),
			s.Delay.Percentile(99),
			s.Delay.Max(),
		)
		assert.Len(t, d.Streams, 2, name)
		assert.Zero(t, d.Unmatched, name)
		assert.Equal(t, 2*n, s.Sent, name)
		assert.Equal(t, 2*n, s.Received, name)
		assert.Zero(t, s.Delay.Negative(), name)
		assert.Positive(t, s.Delay.Min(), name)
		assert.Less(t, s.Delay.Percentile(50), time.Millisecond, name)
	}
	assert.Equal(t, map[int]int{46: 2 * n}, aToB.DSCP)
	assert.Equal(t, map[int]int{0: 2 * n}, bToA.DSCP)
	assert.Equal(t, "10.0.0.1:6000 > 10.0.0.2:6000 00000007", aToB.Streams[0].Key.String())
}

// A capture that could not keep up must say so: its losses would be called the network's.
func TestACaptureThatDroppedSaysSo(t *testing.T) {
	a, _ := pair(t)
	tap, err := open(path(a), "eth0", unix.SOCK_DGRAM, rtpFilter(Ports{Low: 6000, High: 6000}))
	require.NoError(t, err)
	require.NoError(t, unix.SetsockoptInt(tap.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 4096))
	c := &Capture{tap: tap}
	conn := udp(t, a, "10.0.0.1:6000", "10.0.0.2:6000", 0)
	for i := range 200 {
		_, err := conn.Write(rtp(1, uint16(i)))
		if err != nil { // nobody listens at b: its ICMP answer shows as an error of the next write
			require.ErrorIs(t, err, unix.ECONNREFUSED)
		}
	}
	tap.start(c.handle)
	got, err := c.Stop()
	assert.ErrorIs(t, err, ErrDropped)
	assert.Positive(t, got.Drops)
	assert.Less(t, len(got.Packets), 200)
}

func TestWhatIsNotThereIsNamed(t *testing.T) {
	n := netnstest.New(t)
	_, err := Start(path(n), "eth7", Ports{Low: 1, High: 2})
	assert.ErrorContains(t, err, "capture on eth7")
	_, err = StartFrames("/run/netns/no-such-namespace", "eth0")
	assert.ErrorContains(t, err, "open network namespace")
}

func (f *Frames) sofar() []Frame {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.out)
}

func TestTimedFramesOfTheWAN(t *testing.T) {
	a, b := pair(t)
	frames, err := StartFrames(path(b), "eth0")
	require.NoError(t, err)
	data := make([]byte, 1200)
	data[0] = 4
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	conn := udp(t, a, "10.0.0.1:51820", "10.0.0.2:51820", 46<<2)
	for range 50 {
		<-tick.C
		_, err := conn.Write(data)
		if errors.Is(err, unix.ECONNREFUSED) { // b's answer to the last one: this one was not sent yet
			_, err = conn.Write(data)
		}
		require.NoError(t, err)
	}
	a.Run("ping", "-c", "1", "-W", "2", "fd00::2")
	incoming := func(f Frame) bool { return !f.Outgoing && f.Kind == WireGuard }
	polltest.Require(
		t,
		func() bool { return Kinds(frames.sofar())[WireGuard] >= 50 },
		5*time.Second,
		5*time.Millisecond,
	)
	seen, err := frames.Stop()
	require.NoError(t, err)
	kinds := Kinds(seen)
	assert.Equal(t, 50, kinds[WireGuard])
	assert.Positive(t, kinds[ARP])
	assert.Positive(t, kinds[ND])
	assert.Positive(t, kinds[ICMP])
	assert.Zero(t, kinds[UDP]+kinds[RTP]+kinds[SIP]+kinds[TCP])
	for _, f := range seen {
		if f.Kind == WireGuard {
			assert.EqualValues(t, 46, f.DSCP)
			assert.Equal(t, 14+20+8+1200, f.Bytes, "the whole frame's length, though only its head is read")
			assert.Equal(t, "10.0.0.1:51820", f.Source.String())
		}
	}
	gaps := Spacing(seen, incoming)
	require.Len(t, gaps, 49)
	var sum time.Duration
	for _, g := range gaps {
		sum += g
	}
	assert.InDelta(t, float64(98*time.Millisecond), float64(sum), float64(20*time.Millisecond))
}
