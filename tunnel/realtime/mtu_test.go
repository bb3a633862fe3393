package realtime

import (
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/test/netnstest"
	"ringway/tunnel"
	"ringway/tunnel/datagram"
	"ringway/tunnel/descriptor"
)

// narrow has only messages of up to a length arrive, IP and UDP headers included.
func (b *bare) narrow(takes *int, long *int) {
	b.drop = func() {
		for {
			buf := make([]byte, 1<<16)
			n, from, err := unix.Recvfrom(b.udp[0], buf, unix.MSG_DONTWAIT)
			if err != nil {
				return
			}
			if n > 1000 {
				*long++
			}
			if n+28 <= *takes {
				a := from.(*unix.SockaddrInet4)
				b.inject(buf[:n], netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)))
			}
		}
	}
}

// Each end finds what it can send to the other, in each direction for itself, and goes on finding it: less while long
// packets are sent, more with time. The socket is as it was before.
func TestWhatAPathTakesIsFoundInTheTunnel(t *testing.T) {
	r := newRig(t)
	mode, err := unix.GetsockoptInt(r.a.udp[0], unix.IPPROTO_IP, unix.IP_MTU_DISCOVER)
	require.NoError(t, err)
	toB, toA, long := 1400, 1500, 0
	r.b.narrow(&toB, &long)
	r.a.narrow(&toA, &long)
	for _, e := range []*bare{r.a, r.b} {
		require.NoError(t, e.SetProbeMTU(1500))
	}
	found := func() [2]int { return [2]int{r.a.Status().Peers[0].PathMTU, r.b.Status().Peers[0].PathMTU} }
	r.pass(10 * time.Second)
	assert.Zero(t, found(), "without a session nothing is sent")

	r.talk()
	r.pass(5 * time.Second)
	require.Equal(t, [2]int{1392, 1500}, found())
	now, err := unix.GetsockoptInt(r.a.udp[0], unix.IPPROTO_IP, unix.IP_MTU_DISCOVER)
	require.NoError(t, err)
	assert.Equal(t, mode, now)

	keep := func(d time.Duration) { // a session lasts as long as there is something to send
		for range d / time.Minute {
			r.talk()
			r.pass(time.Minute)
		}
	}
	keep(time.Minute)
	toA = 1300
	r.talk()
	r.b.ConfirmMTU(r.a.key.Public())
	r.pass(5 * time.Second)
	assert.Equal(t, [2]int{1392, 1296}, found(), "it was told that long packets are sent")

	toA, toB, long = 1500, 1500, 0
	keep(12 * time.Minute)
	assert.Equal(t, [2]int{1500, 1500}, found())
	assert.LessOrEqual(t, long, 10, "long messages in twelve minutes, of both ends")

	require.NoError(t, r.a.SetProbeMTU(0))
	r.pass(time.Second)
	assert.Equal(t, [2]int{0, 1500}, found())
	require.Error(t, r.a.SetProbeMTU(1000))
	require.Error(t, r.a.SetProbeMTU(-1))
}

// An end that does not probe answers, and is found out about; probing moves nobody and keeps no session.
func TestAnEndThatDoesNotProbeAnswers(t *testing.T) {
	r := newRig(t)
	r.talk()
	require.NoError(t, r.a.SetProbeMTU(1500))
	before := r.b.peerOf(r.a).rxPackets.Load()
	r.pass(3 * time.Second)
	assert.Equal(t, 1500, r.a.Status().Peers[0].PathMTU)
	assert.Zero(t, r.b.Status().Peers[0].PathMTU)
	assert.Equal(t, before, r.b.peerOf(r.a).rxPackets.Load())
	assert.Zero(t, r.a.peerOf(r.b).unanswered.Load())
}

// A hint about a peer without a session begins one.
func TestAHintBeginsASession(t *testing.T) {
	r := newRig(t)
	require.NoError(t, r.a.SetProbeMTU(1500))
	r.a.ConfirmMTU(r.b.key.Public(), tunnel.PublicKey{9})
	r.settle()
	r.pass(2 * time.Second)
	assert.Equal(t, 1500, r.a.Status().Peers[0].PathMTU)
}

// A probe is sent in one piece or not at all, in either family; a packet beside it is divided as ever. A socket that an
// engine left behind in the middle of that is put right by the next.
func TestAProbeIsNeverDivided(t *testing.T) {
	netnstest.Root(t)
	ns, far := netnstest.New(t), netnstest.New(t)
	netnstest.Veth(t, ns, "wan0", far, "wan0")
	for n, host := range map[*netnstest.NS]string{ns: "1", far: "2"} {
		n.Run("ip", "addr", "add", "192.0.2."+host+"/24", "dev", "wan0")
		n.Run("ip", "addr", "add", "2001:db8::"+host+"/64", "dev", "wan0", "nodad")
		n.Run("ip", "link", "set", "wan0", "mtu", "1400", "up")
	}
	var udp4, udp6 *os.File
	require.NoError(t, ns.Do(func() (err error) {
		udp4, udp6, err = descriptor.OpenUDP(0, 0, 0, tunnel.Bounds{})
		return err
	}))
	defer udp4.Close()
	defer udp6.Close()
	e := newRig(t).a
	for i, f := range []*os.File{udp4, udp6} {
		fd, err := descriptor.Duplicate(f)
		require.NoError(t, err)
		defer unix.Close(fd)
		was := e.udp[i]
		e.udp[i] = fd
		defer func() { e.udp[i] = was }()
	}
	for _, c := range []struct {
		to       string
		overhead int
	}{{"192.0.2.2:9", 28}, {"[2001:db8::2]:9", 48}} {
		to := newEndpoint(datagram.RawSockaddr(netip.MustParseAddrPort(c.to)), netip.Addr{})
		assert.Zero(t, e.transmitWhole(to, make([]byte, 1400-c.overhead), 0x60), c.to)
		assert.Equal(t, unix.EMSGSIZE, e.transmitWhole(to, make([]byte, 1401-c.overhead), 0x60), c.to)
		assert.Zero(t, e.transmit(to, make([]byte, 1401-c.overhead), 0x60), c.to)
	}
	mode := func() int {
		m, err := unix.GetsockoptInt(e.udp[0], unix.IPPROTO_IP, unix.IP_MTU_DISCOVER)
		require.NoError(t, err)
		return m
	}
	assert.Equal(t, unix.IP_PMTUDISC_OMIT, mode())
	require.NoError(t, unix.SetsockoptInt(e.udp[0], unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE))
	divideAgain(e.udp[0], false)
	assert.Equal(t, unix.IP_PMTUDISC_OMIT, mode())
}
