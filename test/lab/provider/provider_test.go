package provider

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"runtime"
	"runtime/debug"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"ringway/quality"
	"ringway/test/lab/capture"
	"ringway/test/netnstest"
	"ringway/test/polltest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// network is
//
//	a (198.51.100.2, 2001:db8:a::2) --- wan-a [provider] wan-b --- (203.0.113.2, 2001:db8:b::2) b
type network struct {
	a, b, middle *netnstest.NS
}

func path(n *netnstest.NS) string { return fmt.Sprintf("/proc/self/fd/%d", n.FD()) }

func build(t *testing.T, c Config) (network, *Provider) {
	t.Helper()
	n := network{a: netnstest.New(t), b: netnstest.New(t), middle: netnstest.New(t)}
	for _, s := range []struct {
		ns      *netnstest.NS
		device  string
		v4, gw4 string
		v6, gw6 string
	}{
		{n.a, "wan-a", "198.51.100.2", "198.51.100.1", "2001:db8:a::2", "2001:db8:a::1"},
		{n.b, "wan-b", "203.0.113.2", "203.0.113.1", "2001:db8:b::2", "2001:db8:b::1"},
	} {
		for _, ns := range []*netnstest.NS{s.ns, n.middle} { // else IPv6 is silent for its first second
			ns.Run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0")
		}
		netnstest.Veth(t, s.ns, "wan0", n.middle, s.device)
		s.ns.Run("ip", "addr", "add", s.v4+"/24", "dev", "wan0")
		s.ns.Run("ip", "addr", "add", s.v6+"/64", "dev", "wan0", "nodad")
		n.middle.Run("ip", "addr", "add", s.gw4+"/24", "dev", s.device)
		n.middle.Run("ip", "addr", "add", s.gw6+"/64", "dev", s.device, "nodad")
		s.ns.Run("ip", "route", "add", "default", "via", s.gw4)
		s.ns.Run("ip", "-6", "route", "add", "default", "via", s.gw6)
	}
	p, err := Build(path(n.middle), "wan-a", "wan-b", c)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		assert.NoError(t, <-done)
		assert.NoError(t, p.Close())
		assert.NotContains(t, n.middle.Run("ip", "rule"), "iif", "Close leaves no rule behind")
		assert.NotContains(t, n.middle.Run("tc", "qdisc"), "tbf", "Close leaves no queue behind")
		assert.NotContains(t, n.middle.Run("ip", "link"), "relay-", "Close leaves no device behind")
	})
	// Neighbours are known before anything is measured.
	n.a.Run("ping", "-c", "1", "-w", "5", "203.0.113.2")
	n.a.Run("ping", "-c", "1", "-w", "5", "2001:db8:b::2")
	return n, p
}

func dial(t *testing.T, from *netnstest.NS, local, remote string) *net.UDPConn {
	t.Helper()
	var conn *net.UDPConn
	require.NoError(t, from.Do(func() error {
		l, err := net.ResolveUDPAddr("udp", local)
		if err != nil {
			return err
		}
		r, err := net.ResolveUDPAddr("udp", remote)
		if err != nil {
			return err
		}
		conn, err = net.DialUDP("udp", l, r)
		return err
	}))
	t.Cleanup(func() { conn.Close() })
	return conn
}

// speak sends n RTP packets of G.711's size, one per interval.
func speak(t *testing.T, conn *net.UDPConn, ssrc uint32, n int, interval time.Duration) {
	t.Helper()
	packet := make([]byte, 172)
	packet[0] = 0x80
	binary.BigEndian.PutUint32(packet[8:], ssrc)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for i := range n {
		binary.BigEndian.PutUint16(packet[2:], uint16(65000+i)) // the number wraps under way
		binary.BigEndian.PutUint32(packet[4:], uint32(i*160))
		_, err := conn.Write(packet)
		require.NoError(t, err)
		<-tick.C
	}
}

// listen takes packets so that nobody answers them with ICMP.
func listen(t *testing.T, at *netnstest.NS, local string) {
	t.Helper()
	require.NoError(t, at.Do(func() error {
		conn, err := net.ListenPacket("udp", local)
		if err == nil {
			t.Cleanup(func() { conn.Close() })
		}
		return err
	}))
}

func TestDelayAndLossAreWhatWasAskedFor(t *testing.T) {
	for _, family := range []struct{ name, a, b string }{
		{"IPv4", "198.51.100.2:16384", "203.0.113.2:16384"},
		{"IPv6", "[2001:db8:a::2]:16384", "[2001:db8:b::2]:16384"},
	} {
		t.Run(family.name, func(t *testing.T) {
			const packets = 2000
			n, p := build(t, Config{Delay: 10 * time.Millisecond, Loss: 0.01, Seed: 7})
			listen(t, n.a, family.a[:len(family.a)-1]+"6")
			listen(t, n.b, family.b)
			ports := capture.Ports{Low: 16384, High: 32767}
			atA, err := capture.Start(path(n.a), "wan0", ports)
			require.NoError(t, err)
			atB, err := capture.Start(path(n.b), "wan0", ports)
			require.NoError(t, err)
			warm, err := p.Stats()
			require.NoError(t, err)
			before := warm.AToB.Relayed + warm.AToB.Lost

			speak(t, dial(t, n.a, family.a, family.b), 0xcafe, packets, time.Millisecond)
			polltest.Require(t, func() bool {
				s, err := p.Stats()
				return err == nil && s.AToB.Relayed+s.AToB.Lost >= before+packets
			}, 5*time.Second, 10*time.Millisecond)

			a, err := atA.Stop()
			require.NoError(t, err)
			b, err := atB.Stop()
			require.NoError(t, err)
			aToB, bToA := capture.Match(a, b, quality.MatchOptions{})
			assert.Empty(t, bToA.Streams)
			assert.Zero(t, aToB.Unmatched)
			s := aToB.Summary()
			stats, err := p.Stats()
			require.NoError(t, err)
			t.Logf(
				"delay min %v p50 %v p99 %v p99.9 %v max %v, PDV %v, jitter %v, loss %.4f, MOS %.2f; relay late p50 "+
					"%v p99 %v p99.9 %v max %v",
				s.Delay.Min(),
				s.Delay.Percentile(50),
				s.Delay.Percentile(99),
				s.Delay.Percentile(99.9),
				s.Delay.Max(),
				s.PDV,
				s.Jitter,
				s.Loss,
				s.Voice.MOS,
				stats.AToB.LateP50,
				stats.AToB.LateP99,
				stats.AToB.LateP999,
				stats.AToB.LateMax,
			)
			assert.Equal(t, 1, s.Streams)
			assert.Equal(t, packets, s.Sent)
			assert.GreaterOrEqual(t, s.Delay.Min(), 10*time.Millisecond)
			assert.Less(t, s.Delay.Percentile(50), 11*time.Millisecond)
			assert.Equal(
				t,
				uint64(s.Sent-s.Received),
				stats.AToB.Lost-warm.AToB.Lost,
				"the relay caused all of the loss",
			)
			assert.InDelta(t, 0.01, s.Loss, 0.006)
			assert.Zero(t, stats.AToB.Overflow)
			assert.Zero(t, s.Reordered)
			assert.Zero(t, s.Duplicates)
		})
	}
}

// Busy goroutines of the same process, the lab's own, must not look like a network with jitter.
func TestRelayKeepsTimeInABusyProcess(t *testing.T) {
	n, p := build(t, Config{Delay: 5 * time.Millisecond})
	listen(t, n.b, "203.0.113.2:16384")
	ctx, stop := context.WithCancel(context.Background())
	var busy sync.WaitGroup
	for range runtime.NumCPU() {
		busy.Go(func() {
			for ctx.Err() == nil {
			}
		})
	}
	speak(t, dial(t, n.a, "198.51.100.2:16384", "203.0.113.2:16384"), 1, 1000, time.Millisecond)
	polltest.Require(t, func() bool {
		s, err := p.Stats()
		return err == nil && s.AToB.Relayed >= 1000
	}, 5*time.Second, 10*time.Millisecond)
	stop()
	busy.Wait()
	s, err := p.Stats()
	require.NoError(t, err)
	t.Logf("late p50 %v p99 %v p99.9 %v max %v", s.AToB.LateP50, s.AToB.LateP99, s.AToB.LateP999, s.AToB.LateMax)
	assert.Less(t, s.AToB.LateP50, 500*time.Microsecond)
}

func TestTheRuntimeIsGivenBack(t *testing.T) {
	processors, limit := runtime.GOMAXPROCS(0), debug.SetMemoryLimit(-1)
	percent := debug.SetGCPercent(70)
	defer func() { debug.SetGCPercent(percent) }()
	first, second := quietRuntime(), quietRuntime()
	first()
	assert.Greater(t, runtime.GOMAXPROCS(0), processors)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range 64 {
		garbage = make([]byte, 1<<20)
	}
	runtime.ReadMemStats(&after)
	assert.Equal(t, before.NumGC, after.NumGC, "no collection meanwhile")
	second()
	assert.Equal(t, processors, runtime.GOMAXPROCS(0))
	assert.Equal(t, limit, debug.SetMemoryLimit(-1))
	assert.Equal(t, 70, debug.SetGCPercent(70))
}

var garbage []byte // on the heap

func TestConfigOutOfRangeIsRefused(t *testing.T) {
	for _, c := range []Config{{Loss: 1.1}, {Loss: -1}, {Delay: -1}, {BufferBytes: -1}} {
		_, err := Build("", "a", "b", c)
		assert.ErrorContains(t, err, "out of range")
	}
	_, err := Build(path(netnstest.New(t)), "wan-a", "wan-b", Config{RateBits: 1e6})
	assert.ErrorContains(t, err, "device wan-a")
}

func TestWithoutDelayAndLossTheKernelForwardsAlone(t *testing.T) {
	n, p := build(t, Config{})
	out := n.a.Run("ping", "-c", "2", "-i", "0.01", "-W", "2", "203.0.113.2")
	assert.Contains(t, out, " 0% packet loss")
	out = n.a.Run("ping", "-6", "-c", "2", "-i", "0.01", "-W", "2", "2001:db8:b::2")
	assert.Contains(t, out, " 0% packet loss")
	s, err := p.Stats()
	require.NoError(t, err)
	assert.Zero(t, s)
}

// A flood of super-packets fills the buffer: single frames leave at the rate, and the last one waits for the
// whole buffer.
func TestTimedBottleneckIsAFIFOOfSinglePackets(t *testing.T) {
	const rate, buffer = 20_000_000, 300_000
	n, p := build(t, Config{RateBits: rate, BufferBytes: buffer})
	listen(t, n.b, "203.0.113.2:16384")
	listen(t, n.b, "203.0.113.2:9")

	frames, err := capture.StartFrames(path(n.b), "wan0")
	require.NoError(t, err)
	ports := capture.Ports{Low: 16384, High: 16384}
	atA, err := capture.Start(path(n.a), "wan0", ports)
	require.NoError(t, err)
	atB, err := capture.Start(path(n.b), "wan0", ports)
	require.NoError(t, err)

	// UDP GSO, as wireguard-go sends: 40 packets of 1200 bytes with each call.
	flood := dial(t, n.a, "198.51.100.2:9", "203.0.113.2:9")
	raw, err := flood.SyscallConn()
	require.NoError(t, err)
	var sockErr error
	require.NoError(t, raw.Control(func(fd uintptr) {
		sockErr = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, 1200)
	}))
	require.NoError(t, sockErr)
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		super := make([]byte, 40*1200)
		tick := time.NewTicker(5 * time.Millisecond) // 77 Mbit/s into 20
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				_, _ = flood.Write(super)
			}
		}
	}()
	full := func() bool {
		s, err := p.Stats()
		return err == nil && s.AToB.Dropped > 0
	}
	polltest.Require(t, full, 5*time.Second, 10*time.Millisecond)
	speak(t, dial(t, n.a, "198.51.100.2:16384", "203.0.113.2:16384"), 1, 500, 4*time.Millisecond)
	close(stop)
	<-stopped
	drained := func() bool {
		s, err := p.Stats()
		return err == nil && s.AToB.Backlog == 0
	}
	polltest.Require(t, drained, 5*time.Second, 10*time.Millisecond)

	a, err := atA.Stop()
	require.NoError(t, err)
	b, err := atB.Stop()
	require.NoError(t, err)
	seen, err := frames.Stop()
	require.NoError(t, err)

	aToB, _ := capture.Match(a, b, quality.MatchOptions{})
	s := aToB.Summary()
	var bytes, largest int
	var first, last quality.Timestamp
	for _, f := range seen {
		if f.Outgoing {
			continue
		}
		largest = max(largest, f.Bytes)
		if f.Kind == capture.UDP || f.Kind == capture.RTP {
			if first == 0 {
				first = f.At
			} else {
				bytes += f.Bytes
			}
			last = f.At
		}
	}
	got := float64(bytes) * 8 / last.Sub(first).Seconds()
	t.Logf(
		"delay p50 %v max %v, loss %.3f, BurstR %.2f, MOS %.2f; largest frame %d; rate %.3f Mbit/s",
		s.Delay.Percentile(50),
		s.Delay.Max(),
		s.Loss,
		s.BurstR,
		s.Voice.MOS,
		largest,
		got/1e6,
	)
	assert.LessOrEqual(t, largest, 1514)
	assert.InDelta(t, float64(120*time.Millisecond), float64(s.Delay.Percentile(50)), float64(15*time.Millisecond))
	assert.Less(
		t,
		s.Delay.Percentile(99),
		140*time.Millisecond,
		"nothing waits for more than the buffer and a busy machine's timers",
	)
	assert.LessOrEqual(t, got, 1.02*rate)
	assert.GreaterOrEqual(t, got, 0.9*rate, "less what a busy machine's pauses take")
}

// On a wire a packet is there when its last bit is, waits behind those before it, and is dropped where the
// FIFO has no room.
func TestWireIsBusyWithOnePacketAtATime(t *testing.T) {
	r := &relay{bits: 1e6, limit: 3000}
	for _, p := range []struct {
		at, there time.Duration
		room      bool
	}{
		{0, 10 * time.Millisecond, true}, // 1250 bytes
		{5 * time.Millisecond, 20 * time.Millisecond, true},
		{5 * time.Millisecond, 0, false}, // 15 ms of what was taken are 1875 bytes: 1250 more do not fit
		{12 * time.Millisecond, 30 * time.Millisecond, true},
		{50 * time.Millisecond, 60 * time.Millisecond, true}, // idle meanwhile: nothing is saved up
	} {
		there, room := r.serialize(p.at, 1250)
		assert.Equal(t, p.room, room, "at %s", p.at)
		assert.Equal(t, p.there, there, "at %s", p.at)
	}
}

//	a --- wan-a [1 Mbit/s, a wire] wan-b --- b
//
// No packet is quicker than its own length, though the wire was idle before; a burst finds the FIFO full.
func TestWireSerializes(t *testing.T) {
	n, p := build(t, Config{RateBits: 1_000_000, BufferBytes: 4000, Wire: true})
	listen(t, n.b, "203.0.113.2:16384")
	ports := capture.Ports{Low: 16384, High: 16384}
	atA, err := capture.Start(path(n.a), "wan0", ports)
	require.NoError(t, err)
	atB, err := capture.Start(path(n.b), "wan0", ports)
	require.NoError(t, err)
	conn := dial(t, n.a, "198.51.100.2:16384", "203.0.113.2:16384")
	speak(t, conn, 1, 20, 20*time.Millisecond)
	a, err := atA.Stop()
	require.NoError(t, err)
	b, err := atB.Stop()
	require.NoError(t, err)
	aToB, _ := capture.Match(a, b, quality.MatchOptions{})
	s := aToB.Summary()
	assert.Zero(t, s.Loss)
	assert.GreaterOrEqual(t, s.Delay.Min(), 1700*time.Microsecond, "214 bytes are 1.712 ms")
	require.NotContains(t, n.middle.Run("tc", "qdisc"), "tbf", "the relay is the bottleneck")
	for range 40 {
		_, err := conn.Write(make([]byte, 1200))
		require.NoError(t, err)
	}
	full := func() bool {
		s, err := p.Stats()
		return err == nil && s.AToB.Dropped > 30
	}
	polltest.Assert(t, full, 5*time.Second, 10*time.Millisecond)
}

// What the wire took is past it or before it, to the byte, and what found no room is counted. Nothing leaves
// so slow a wire meanwhile.
func TestQueuesSayWhatStandsBeforeTheWire(t *testing.T) {
	n, p := build(
		t,
		Config{RateBits: 1000, BufferBytes: 5000, Wire: true},
	) // the pings that build sends take a second each
	listen(t, n.b, "203.0.113.2:9")
	conn := dial(t, n.a, "198.51.100.2:9", "203.0.113.2:9")
	before := p.Queues()[0]
	for range 8 {
		_, err := conn.Write(make([]byte, 1000-28-14))
		require.NoError(t, err)
	}
	var now Queue
	polltest.Require(t, func() bool {
		now = p.Queues()[0]
		return (now.Sent+now.Backlog-before.Sent-before.Backlog)/1000+now.Drops-before.Drops == 8
	}, 5*time.Second, 5*time.Millisecond, "all have come")
	assert.Zero(t, (now.Sent+now.Backlog-before.Sent-before.Backlog)%1000)
	assert.LessOrEqual(t, now.Backlog, uint64(5000))
	assert.Greater(t, now.Backlog, uint64(4000-before.Backlog), "each takes 8 s")
	assert.GreaterOrEqual(t, now.Drops-before.Drops, uint64(3))

	near, far := net.Pipe()
	defer near.Close()
	l := &once{conn: far}
	go p.Serve(l)
	var said []Queue
	require.NoError(t, json.NewDecoder(near).Decode(&said))
	require.Len(t, said, 2)
	assert.Equal(t, now.Sent+now.Backlog, said[0].Sent+said[0].Backlog)
}

// once is a listener to whom one connection comes.
type once struct{ conn net.Conn }

func (o *once) Accept() (c net.Conn, err error) {
	if c, o.conn = o.conn, nil; c == nil {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (*once) Close() error   { return nil }
func (*once) Addr() net.Addr { return nil }
