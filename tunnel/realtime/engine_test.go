package realtime

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"

	"ringway/test/enginetest"
	"ringway/test/polltest"
	"ringway/tunnel"
)

var wide = enginetest.Wide

func makeEngine(s enginetest.Start) (enginetest.Engine, error) {
	threads, _ := strconv.Atoi(os.Getenv(envThreads))
	return New(Options{Threads: threads, TUN: s.TUN, UDP4: s.UDP4, UDP6: s.UDP6, Class: tunnel.Voice,
		Bounds: s.Bounds, MTU: s.MTU, Log: s.Log, Alone: s.Alone && os.Getenv(envUnpinned) == ""})
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
	t.Parallel()
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
	t.Parallel()
	enginetest.Suite(t, makeEngine, enginetest.Options{CopiesECN: true})
}

// Both engines are processes of their own, whose forwarding threads are pinned.
func TestPinnedPairTalks(t *testing.T) {
	t.Parallel()
	a, b := wire(t)
	a.Open(0, 0, wide)
	b.Open(0, 0, wide)
	pa := a.Spawn(wide, a.Peer(b, "192.0.2.2:51820"))
	b.Spawn(wide, b.Peer(a, "192.0.2.1:51820"))
	require.NoError(t, a.Ping("10.66.0.2"))
	a.Transfer(b, "8M")
	a.Transfer(b, "500K", "-u", "-b", "20M", "-l", "200")
	for range 2000 { // garbage, so that the collector has to run, and the threads to let go
		pa.Set(a.Peer(b, "192.0.2.2:51820"))
	}
	assert.Equal(t, 200, a.Pings("10.66.0.2", 200))
	assert.False(t, pa.Status().Peers[0].LastHandshake.IsZero())
}

// A call goes on while strangers who know our public key send 50,000 handshake initiations a second: nothing
// of it is lost, and its PDV stays under 5 ms.
//
//	box b: call, flood of one thread === box a: the engine in a process of its own, its threads real-time
func TestTimedCallInAFloodOfHandshakes(t *testing.T) {
	const (
		rate    = 50_000
		packets = 2500 // 5 s
		limit   = 5 * time.Millisecond
		looks   = 3 // a busy machine adds to the delay and takes from the flood: the first look that is clear decides
	)
	for name, from := range map[string]enginetest.From{"one source": enginetest.OneSource,
		"one flow, joined": enginetest.OneFlow, "many sources": enginetest.ManySources} {
		t.Run(name, func(t *testing.T) {
			a, b := wire(t)
			a.Open(0, 0, wide)
			b.Open(0, 0, wide)
			pa := a.Spawn(wide, a.Peer(b, "192.0.2.2:51820"))
			pb := b.Spawn(wide, b.Peer(a, "192.0.2.1:51820"))
			pa.RealTime(threadIn, threadOut)
			pb.RealTime(threadIn, threadOut)
			a.NS.Run("ip", "route", "add", "10.0.0.0/8", "via", "192.0.2.2") // cookies go to whoever asked
			require.NoError(t, a.Ping("10.66.0.2"))
			for look := 1; ; look++ {
				before := pa.Status().Drops
				stop := b.Volley(netip.MustParseAddrPort("192.0.2.1:51820"), strangers(a.Key.Public(), 1<<15), rate*26/25, from)
				ran := pa.Ran(threadIn)
				var sides sync.WaitGroup
				var got [2]int
				var delays [2][]time.Duration
				for i, x := range [][2]*enginetest.Box{{b, a}, {a, b}} {
					sides.Go(func() { got[i], delays[i] = x[0].Call(x[1], packets, 2*time.Millisecond) })
				}
				sides.Wait()
				ran = pa.Ran(threadIn) - ran
				flood := stop()
				// Each is accounted for: by the engine, which says why it did no more for it, or by the kernel, whose
				// buffer may have been full as long as that cost the call nothing.
				d := map[string]uint64{}
				accounted := func() bool {
					after, n := pa.Status().Drops, uint64(0)
					for _, r := range []reason{dropHandshakeRate, dropCookie, dropHandshake, dropSocketOverflow} {
						d[r.String()] = after[r.String()] - before[r.String()]
						n += d[r.String()]
					}
					return n == uint64(flood.Sent)
				}
				for since := time.Now(); !accounted(); { // the last may wait for the control side
					require.Less(t, time.Since(since), 5*time.Second, "%v; dropped are %v", flood, d)
				}
				t.Logf("%v; the inbound thread worked for %.0f %%; drops %v", flood, 100*ran.Seconds()/flood.Took.Seconds(), d)
				pdv := time.Duration(0)
				for i, way := range []string{"in", "out"} {
					require.Equal(t, packets, got[i], "no packet of the call is lost on its way %s", way)
					c := delays[i]
					p999 := c[len(c)*999/1000]
					pdv = max(pdv, p999-c[0])
					t.Logf("voice %s: min %v p50 %v p99.9 %v max %v, PDV %v", way, c[0], c[len(c)/2], p999, c[len(c)-1], p999-c[0])
				}
				require.Positive(t, d[dropHandshakeRate.String()])
				// A sender that was given no processor for a part of the time cannot be asked for that part; below half
				// there is no flood to speak of.
				asked := rate * max(0.5, 1-flood.Waited.Seconds()/flood.Took.Seconds())
				if pdv < limit && (flood.Rate() >= rate || look == looks && flood.Rate() >= asked) {
					return
				}
				require.Less(t, look, looks, "PDV %v (wanted: under %v) at %.0f initiations a second (wanted: %d)", pdv,
					limit, flood.Rate(), rate)
			}
		})
	}
}

// strangers are initiations that know a public key and nothing else, each unlike the others.
func strangers(to tunnel.PublicKey, n int) [][]byte {
	var macs device.CookieGenerator
	macs.Init(device.NoisePublicKey(to))
	all := make([][]byte, n)
	noise := rand.NewChaCha8([32]byte{})
	for i := range all {
		m := make([]byte, initiationSize)
		_, _ = noise.Read(m)
		binary.LittleEndian.PutUint32(m, typeInitiation)
		macs.AddMacs(m)
		all[i] = m
	}
	return all
}

// A flood of packets that only the inbound thread's work can refuse takes a core: the thread gives way, so
// that the machine lives, and comes back.
func TestTimedForwardingThreadGivesWay(t *testing.T) {
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
			// Of b's session, with a counter that has not arrived yet, so that each has to be opened.
			forged = make([]byte, 1400)
			copy(forged, f.Payload[:8])
			binary.LittleEndian.PutUint64(forged[8:], 1<<20)
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
	require.True(t, gaveWay, "it takes its core forever")
	polltest.Require(t, func() bool { return pb.Policies(threadIn, unix.SCHED_NORMAL) == 0 }, 20*time.Second,
		5*time.Millisecond, "it does not come back")
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
			fmt.Fprintf(&s, "public_key=%s\nendpoint=198.51.100.%d:%d\n", k.Public().Hex(), 1+i%250, 20000+i)
			fmt.Fprintf(&s, "allowed_ip=10.%d.%d.0/24\nallowed_ip=fd00:%x::/48\n", 100+i/250, i%250, i)
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

// Steady voice leaves nothing to collect: 60 s with TEST_REKEY (make test-rekey), else a part of that.
func TestSteadyVoiceCollectsNothing(t *testing.T) {
	packets := 3000
	if os.Getenv("TEST_REKEY") != "" {
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
