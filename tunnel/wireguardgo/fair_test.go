package wireguardgo

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/test/enginetest"
	"ringway/test/polltest"
	"ringway/tunnel"
)

// slow are bounds as qos.PathBounds makes them for 2 Mbit/s.
var slow = tunnel.Bounds{Rate: 2e6, TxQueueLen: 256, InFlight: 4, FlowPackets: 64, SendBuffer: 3456,
	ReceiveBuffer: 1 << 20}

// slowPair is a pair whose a sends at 2 Mbit/s.
func slowPair(t *testing.T) (a, b *enginetest.Box) {
	a, b = pair(t, slow)
	a.NS.Run("tc", "qdisc", "add", "dev", "wire0", "root", "tbf", "rate", "2mbit", "burst", "3000", "limit", "15000")
	require.NoError(t, a.Ping("10.66.0.2"))
	return a, b
}

// A flood waits in its own queue and loses packets there; a flow that sends little gets through. All that is
// counted in is counted out again, and the bounds may change meanwhile.
func TestTimedAFloodDoesNotHoldUpOthers(t *testing.T) {
	a, b := slowPair(t)
	packet := make([]byte, 1300)
	flood := func() (stop func() int) { return a.Flood("10.66.0.2:9", 5, func() []byte { return packet }) }
	stop := flood()
	polltest.Require(t, func() bool { return a.E.Status().Drops[dropQueueFull.String()] > 0 }, 10*time.Second,
		10*time.Millisecond)
	for _, to := range []string{"10.66.0.2", "fd66::2"} {
		assert.NoError(t, a.Ping(to), "behind a flood")
	}
	s := a.E.Status()
	require.NotNil(t, s.Queue)
	assert.Positive(t, s.Queue.Packets)
	assert.LessOrEqual(t, s.Queue.Packets, uint64(slow.FlowPackets))
	assert.Positive(t, s.Queue.Flows)
	assert.Less(t, s.Queue.Limit, uint64(slow.SendBuffer))

	for range 3 { // off and on while they are full
		without := slow
		without.FlowPackets = 0
		require.NoError(t, a.E.SetBounds(without))
		polltest.Require(t,
			func() bool {
				return a.E.Status().Queue == nil &&
					engine(a).hub.fair.seen.packets.Load() == 0
			}, 10*time.Second, 10*time.Millisecond)
		require.NoError(t, a.E.SetBounds(slow))
		polltest.Require(t, func() bool { s := a.E.Status(); return s.Queue != nil && s.Queue.Packets > 0 },
			10*time.Second, 10*time.Millisecond)
	}
	stop()
	h := engine(a).hub
	polltest.Require(t, func() bool {
		return h.out.inside.Load() == 0 && h.out.charged.Load() == 0 && h.fair.underWay() == 0 &&
			h.fair.seen.packets.Load() == 0
	}, 10*time.Second, 10*time.Millisecond)
	require.NoError(t, b.Ping("10.66.0.1"))

	stop = flood() // and it closes while they are full
	polltest.Require(t, func() bool { return a.E.Status().Queue.Packets > 10 }, 10*time.Second, 10*time.Millisecond)
	require.NoError(t, a.E.Close())
	stop()
}

// While the line is busy with one packet, the next stays where others can still overtake it: behind the
// queues nothing waits most of the time, and yet the line is full.
func TestTimedTheNextPacketIsChosenLate(t *testing.T) {
	a, b := slowPair(t)
	packet := make([]byte, 1300)
	defer a.Flood("10.66.0.2:9", 5, func() []byte { return packet })()
	polltest.Require(t, func() bool { return a.E.Status().Drops[dropQueueFull.String()] > 0 }, 10*time.Second,
		10*time.Millisecond)
	received := func() uint64 {
		s := b.E.Status()
		require.Len(t, s.Peers, 1)
		return s.Peers[0].RxBytes
	}
	f := engine(a).hub.fair
	began, was := time.Now(), received()
	empty, looks := 0, 0
	for tick := time.NewTicker(500 * time.Microsecond); time.Since(began) < 1500*time.Millisecond; <-tick.C {
		if looks++; f.underWay() == 0 {
			empty++
		}
	}
	rate := float64(received()-was) * 8 / time.Since(began).Seconds()
	assert.Greater(t, float64(empty)/float64(looks), 0.3,
		"of the time nothing was there; a packet at once after the other leaves none of it")
	assert.Greater(t, rate, 0.9*2e6*1300/1414, "bit/s arrived") // 114 bytes of headers on the wire
	t.Logf("nothing under way %d of %d times, %.2f Mbit/s", empty, looks, rate/1e6)
}

// Packets for a peer that is not there use up nothing that others need.
func TestADeadPeerDoesNotHoldUpOthersInFlowQueues(t *testing.T) {
	a, _ := slowPair(t)
	dead, err := tunnel.NewPrivateKey()
	require.NoError(t, err)
	a.Set("public_key=" + dead.Public().Hex() + "\nallowed_ip=10.67.0.0/16\nendpoint=192.0.2.77:51820\n")
	a.NS.Run("ip", "route", "add", "10.67.0.0/16", "dev", "rw0")
	packet := make([]byte, 1300)
	stop := a.Flood("10.67.0.1:9", 5, func() []byte { return packet })
	defer stop()
	polltest.Require(t, func() bool { return a.E.Status().Drops[dropNoSession.String()] > 0 }, 10*time.Second,
		10*time.Millisecond)
	assert.Greater(t, a.Pings("10.66.0.2", 100), 90)
}

// What the kernel will charge is known before it does: or the limit would mean one thing inside the device
// and another behind it.
func TestAChargeIsTheKernels(t *testing.T) {
	a, _ := wire(t)
	a.NS.Run("tc", "qdisc", "add", "dev", "wire0", "root", "tbf", "rate", "8kbit", "burst", "1600", "limit", "100000")
	// No host is there that would refuse them.
	a.NS.Run("ip", "neigh", "add", "192.0.2.77", "lladdr", "02:00:00:00:00:77", "dev", "wire0")
	for _, size := range []int{40, 100, 200, 500, 700, 1000, 1200, 1452} {
		require.NoError(t, a.NS.Do(func() error {
			c, err := net.Dial("udp", "192.0.2.77:9")
			if err != nil {
				return err
			}
			defer c.Close()
			rc, err := c.(*net.UDPConn).SyscallConn()
			if err != nil {
				return err
			}
			outq := func() (n int) {
				_ = rc.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.SIOCOUTQ) })
				return n
			}
			for range 2 { // the bucket holds one
				if _, err := c.Write(make([]byte, 1452)); err != nil {
					return err
				}
			}
			was := outq()
			if _, err := c.Write(make([]byte, size)); err != nil {
				return err
			}
			charged := outq() - was
			assert.InEpsilon(t, charged, charge(size), 0.5, "%d bytes", size)
			t.Logf("%d bytes: the kernel charges %d, we say %d", size, charged, charge(size))
			return nil
		}))
	}
}
