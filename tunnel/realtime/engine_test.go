package realtime

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"

	"ringway/test/enginetest"
	"ringway/tunnel"
)

var wide = enginetest.Wide

func makeEngine(s enginetest.Start) (enginetest.Engine, error) {
	threads, _ := strconv.Atoi(os.Getenv(envThreads))
	return New(Options{Threads: threads, TUN: s.TUN, UDP4: s.UDP4, UDP6: s.UDP6, Class: tunnel.Voice, Bounds: s.Bounds, MTU: s.MTU, Log: s.Log, Alone: s.Alone && os.Getenv(envUnpinned) == ""})
}

func wire(t testing.TB) (a, b *enginetest.Box) { return enginetest.Wire(t, makeEngine) }

func pair(t testing.TB) (a, b *enginetest.Box) { return enginetest.Pair(t, makeEngine, wide) }

func TestMain(m *testing.M) {
	if ran, err := enginetest.Child(makeEngine); ran {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) { enginetest.RemoveStock(); os.Exit(code) }))
}

func TestPairTalks(t *testing.T) {
	a, b := pair(t)
	require.NoError(t, a.Ping("10.66.0.2"))
	require.NoError(t, b.Ping("fd66::1"))
	require.NoError(t, a.Ping("10.66.0.2", "-s", "1392", "-M", "do"))

	s := a.E.Status()
	require.Len(t, s.Peers, 1)
	p := s.Peers[0]
	assert.Equal(t, b.Key.Public(), p.PublicKey)
	assert.Equal(t, netip.MustParseAddrPort("192.0.2.2:51820"), p.Endpoint)
	assert.Equal(t, a.Key.Public().String(), s.PublicKey)
	assert.WithinDuration(t, time.Now(), p.LastHandshake, 10*time.Second)
	assert.Equal(t, uint16(51820), s.ListenPort)
	assert.Equal(t, "rw0", s.Interface)
	delete(s.Drops, "no_site") // the kernel looks for routers
	assert.Empty(t, s.Drops)
}

func TestSuite(t *testing.T) {
	enginetest.Suite(t, makeEngine, enginetest.Options{CopiesECN: true})
}

// Both engines are processes of their own, whose forwarding threads are pinned.
func TestPinnedPairTalks(t *testing.T) {
	a, b := wire(t)
	a.Open(0, 0, wide)
	b.Open(0, 0, wide)
	pa := a.Spawn(wide, a.Peer(b, "192.0.2.2:51820"))
	b.Spawn(wide, b.Peer(a, "192.0.2.1:51820"))
	require.NoError(t, a.Ping("10.66.0.2"))
	require.Greater(t, a.Iperf(b, 1), 10.0)
	require.Greater(t, a.Iperf(b, 1, "-u", "-b", "20M", "-l", "200"), 5.0)
	for range 2000 { // garbage, so that the collector has to run, and the threads to let go
		pa.Set(a.Peer(b, "192.0.2.2:51820"))
	}
	assert.Equal(t, 200, a.Pings("10.66.0.2", 200))
	assert.False(t, pa.Status().Peers[0].LastHandshake.IsZero())
}

// A call goes on while strangers who know our public key send 50,000 handshake initiations a second.
func TestCallInAFloodOfHandshakes(t *testing.T) {
	for _, many := range []bool{false, true} {
		name := map[bool]string{false: "one source", true: "many sources"}[many]
		t.Run(name, func(t *testing.T) {
			a, b := wire(t)
			a.Open(0, 0, wide)
			b.Open(0, 0, wide)
			pa := a.Spawn(wide, a.Peer(b, "192.0.2.2:51820"))
			pb := b.Spawn(wide, b.Peer(a, "192.0.2.1:51820"))
			pa.RealTime(threadIn, threadOut)
			pb.RealTime(threadIn, threadOut)
			require.NoError(t, a.Ping("10.66.0.2"))
			var macs device.CookieGenerator
			macs.Init(device.NoisePublicKey(a.Key.Public()))
			m := make([]byte, initiationSize)
			binary.LittleEndian.PutUint32(m, typeInitiation)
			next := func() []byte {
				binary.LittleEndian.PutUint64(m[8:], binary.LittleEndian.Uint64(m[8:])+1)
				macs.AddMacs(m)
				return m
			}
			var stop func() int
			if many {
				stop = b.FloodFromAnywhere(netip.MustParseAddrPort("192.0.2.1:51820"), 50, next)
			} else {
				stop = b.Flood("192.0.2.1:51820", 50, next)
			}
			const packets = 1500
			began := time.Now()
			got, delays := b.Call(a, packets, 2*time.Millisecond)
			sent := float64(stop()) / time.Since(began).Seconds()
			d := pa.Status().Drops
			t.Logf("%.0f initiations/s: voice min %v p50 %v p99.9 %v max %v; drops %v", sent, delays[0], delays[len(delays)/2], delays[len(delays)*999/1000], delays[len(delays)-1], d)
			assert.Equal(t, packets, got, "no packet of the call is lost")
			assert.Greater(t, sent, 5000.0, "it was no flood")
			assert.Positive(t, d["handshake_rate"])
			assert.Zero(t, d["socket_overflow"])
		})
	}
}

// A flood of packets that only the inbound thread's work can refuse takes a core: the thread gives way, so that the machine lives,
// and comes back.
func TestForwardingThreadGivesWay(t *testing.T) {
	a, b := wire(t)
	a.Open(0, 0, wide)
	b.Open(0, 0, wide)
	pa := a.Spawn(wide, a.Peer(b, "192.0.2.2:51820"))
	pb := b.Spawn(wide, b.Peer(a, "192.0.2.1:51820"))
	pb.RealTime(threadIn, threadOut)
	require.NoError(t, a.Ping("10.66.0.2"))
	stopCapture := a.Capture()
	require.NoError(t, a.Ping("10.66.0.2"))
	var forged []byte
	for _, f := range stopCapture() {
		if binary.LittleEndian.Uint32(f.Payload) == typeTransport {
			forged = make([]byte, 1400) // of b's session, so that each has to be opened
			copy(forged, f.Payload[:8])
		}
	}
	require.NotNil(t, forged)
	var stops []func() int
	for range 4 {
		stops = append(stops, a.Flood("192.0.2.2:51820", 0, func() []byte { return forged }))
	}
	began, gaveWay := time.Now(), false
	for !gaveWay && time.Since(began) < 5*time.Second {
		gaveWay = pb.Policies(threadIn, unix.SCHED_NORMAL) > 0
	}
	for _, stop := range stops {
		stop()
	}
	require.True(t, gaveWay, "it takes its core for ever")
	require.Eventually(t, func() bool { return pb.Policies(threadIn, unix.SCHED_NORMAL) == 0 }, 20*time.Second, 5*time.Millisecond, "it does not come back")
	require.NoError(t, a.Ping("10.66.0.2"))
	assert.Positive(t, pb.Status().Drops["forged"])
	assert.Empty(t, pa.Status().Drops["forged"])
}

// A plane of a hub stays small: 32 MB with 200 sites, and 1 MB more for each 200 beyond.
func TestMemoryOfManySites(t *testing.T) {
	a, _ := wire(t)
	a.Open(0, 0, wide)
	p := a.Spawn(wide, "private_key="+a.Key.Hex()+"\n")
	add := func(from, to int) {
		var s strings.Builder
		for i := from; i < to; i++ {
			k, err := tunnel.NewPrivateKey()
			require.NoError(t, err)
			fmt.Fprintf(&s, "public_key=%s\nendpoint=198.51.100.%d:%d\nallowed_ip=10.%d.%d.0/24\nallowed_ip=fd00:%x::/48\n", k.Public().Hex(), 1+i%250, 20000+i, 100+i/250, i%250, i)
		}
		p.Set(s.String())
	}
	const mb = 1 << 20
	add(0, 200)
	assert.LessOrEqual(t, p.Resident(), 32*mb)
	add(200, 1000)
	assert.LessOrEqual(t, p.Resident(), 36*mb)
	assert.Len(t, p.Status().Peers, 1000)
	t.Logf("with 1000 sites: %d KiB resident", p.Resident()>>10)
}

// Steady voice leaves nothing to collect: 60 s with RINGWAY_REKEY (make test-rekey), else a part of that.
func TestSteadyVoiceCollectsNothing(t *testing.T) {
	packets := 3000
	if os.Getenv("RINGWAY_REKEY") != "" {
		packets = 30000
	}
	a, b := wire(t)
	a.Open(0, 0, wide)
	b.Open(0, 0, wide)
	pa := a.Spawn(wide, a.Peer(b, "192.0.2.2:51820"))
	pb := b.Spawn(wide, b.Peer(a, "192.0.2.1:51820"))
	pa.RealTime(threadIn, threadOut)
	pb.RealTime(threadIn, threadOut)
	require.NoError(t, a.Ping("10.66.0.2"))
	before := [2]uint64{pa.Status().Collections, pb.Status().Collections}
	require.Equal(t, [2]uint64{1, 1}, before, "once, after the start")
	got, _ := a.Call(b, packets, 2*time.Millisecond)
	assert.Equal(t, packets, got)
	assert.Equal(t, before, [2]uint64{pa.Status().Collections, pb.Status().Collections})
}
