package wireguardgo

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/metrics"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.zx2c4.com/wireguard/device"

	"ringway/test/enginetest"
	"ringway/test/polltest"
	"ringway/tunnel"
)

// watchHeap samples the heap until stop, which returns by how much the live heap was larger than at the
// start, in bytes: an engine that another test has closed may not be collected yet.
func watchHeap() (stop func() uint64) {
	runtime.GC()
	start := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(start)
	before := start[0].Value.Uint64()
	done := make(chan struct{})
	most := make(chan uint64)
	go func() {
		sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
		var top uint64
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-done:
				most <- top
				return
			case <-tick.C:
			}
			metrics.Read(sample)
			top = max(top, sample[0].Value.Uint64())
		}
	}()
	return func() uint64 { close(done); return max(<-most, before) - before }
}

// floodPair is a, in this process, and b, whose engine is a process of its own.
func floodPair(t testing.TB) (a, b *enginetest.Box) {
	wide := wide
	wide.InFlight = 128
	a, b = wire(t)
	a.Open(0, 0, wide)
	b.Open(0, 0, wide)
	b.Spawn(wide, b.Peer(a, "192.0.2.1:51820"))
	a.Start(wide)
	a.Set(a.Peer(b, "192.0.2.2:51820"))
	require.NoError(t, a.Ping("10.66.0.2"))
	return a, b
}

const (
	liveHeap = maxBuffers*device.MaxMessageSize + 64<<20 // and what there is beside message buffers
	// Mbit/s that a live tunnel must still carry beside a flood, on a busy machine.
	live = 5.0
)

func TestDeadPeersAreBounded(t *testing.T) {
	a, b := floodPair(t)
	a.NS.Run("ip", "route", "add", "10.67.0.0/16", "dev", "rw0")
	set := ""
	for i := range 20 { // half of them dial in, half of them do not answer
		k, err := tunnel.NewPrivateKey()
		require.NoError(t, err)
		set += fmt.Sprintf("public_key=%s\nallowed_ip=10.67.%d.0/24\n", k.Public().Hex(), i)
		if i%2 == 0 {
			set += fmt.Sprintf("endpoint=192.0.2.%d:51820\n", 100+i)
		}
	}
	a.Set(set)
	stopHeap := watchHeap()
	packet := make([]byte, 1300)
	var stops []func() int
	for i := range 4 {
		to := fmt.Sprintf("10.67.%d.1:9", i)
		stops = append(stops, a.Flood(to, 5, func() []byte { return packet }))
	}
	stops = append(stops, a.Flood("10.67.200.1:9", 5, func() []byte { return packet }))
	got := a.Iperf(b, 4)
	sent := 0
	for _, stop := range stops {
		sent += stop()
	}
	heap := stopHeap()
	d := a.E.Status().Drops
	t.Logf("%d packets to dead peers beside %.0f Mbit/s to a live one: heap +%d MiB, drops %v", sent, got, heap>>20, d)
	assert.Less(t, heap, uint64(liveHeap))
	assert.Greater(t, got, live)
	assert.Positive(t, d["no_session"])
	assert.Positive(t, d["no_site"])
}

func TestForgedPacketsAreBounded(t *testing.T) {
	a, b := floodPair(t)
	stop := b.Capture() // what b sends carries a's receiver index
	require.NoError(t, a.Ping("10.66.0.2"))
	var index uint32
	for _, f := range stop() {
		if binary.LittleEndian.Uint32(f.Payload) == device.MessageTransportType {
			index = binary.LittleEndian.Uint32(f.Payload[4:])
		}
	}
	require.NotZero(t, index)
	var own device.CookieGenerator
	own.Init(device.NoisePublicKey(a.Key.Public()))

	transport := func(size int, index func() uint32) func() []byte {
		p := make([]byte, size)
		n := uint64(1 << 20)
		return func() []byte {
			n++
			binary.LittleEndian.PutUint32(p, device.MessageTransportType)
			binary.LittleEndian.PutUint32(p[4:], index())
			binary.LittleEndian.PutUint64(p[8:], n)
			return p
		}
	}
	initiation := func(mac bool) func() []byte {
		p := make([]byte, device.MessageInitiationSize)
		return func() []byte {
			binary.LittleEndian.PutUint32(p, device.MessageInitiationType)
			binary.LittleEndian.PutUint64(p[8:], rand.Uint64())
			if mac {
				own.AddMacs(p)
			}
			return p
		}
	}
	// One who sees our packets makes the device take buffers, up to its bound, and decrypt; a stranger cannot.
	// The socket's buffer loses packets then, which TCP does not bear, but of those that get in none is lost:
	// the tunnel does not stall.
	for _, c := range []struct {
		name string
		next func() []byte
		drop string
		live float64
	}{
		{"noise", func() func() []byte { p := make([]byte, 300); p[0] = 77; return func() []byte { return p } }(),
			"garbage", live},
		{"unknown session", transport(1300, rand.Uint32), "refused", live},
		{"handshakes of a stranger", initiation(false), "bad_mac1", live},
		{"handshakes by one who knows our public key", initiation(true), "handshake_rate", live},
		{"known session", transport(1300, func() uint32 { return index }), "refused", 0},
		{"short, known session", transport(48, func() uint32 { return index }), "refused", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			stopHeap := watchHeap()
			stop := b.Flood("192.0.2.1:51820", 0, c.next)
			var in, out float64
			answers := -1
			if c.live > 0 {
				in = a.Iperf(b, 2, "-R")
				out = a.Iperf(b, 1)
			} else {
				answers = a.Pings("10.66.0.2", 200)
			}
			sent := stop()
			heap := stopHeap()
			d := a.E.Status().Drops
			t.Logf("%d forged packets beside %.0f Mbit/s in and %.0f out, %d of 200 pings: heap +%d MiB, drops %v", sent,
				in, out, answers, heap>>20, d)
			assert.Less(t, heap, uint64(liveHeap))
			if c.live > 0 {
				assert.Greater(t, in, c.live)
				assert.Greater(t, out, c.live)
			} else {
				assert.Greater(t, answers, 20)
			}
			assert.Positive(t, d[c.drop])
			require.NoError(t, a.Ping("10.66.0.2"))
		})
	}
}

// Without key the peer's packets wait in the device although a handshake was seen: the sessions
// are gone, and only the gate's last resort finds out.
func TestLostSessionsDoNotWedge(t *testing.T) {
	a, b := floodPair(t)
	c, err := tunnel.NewPrivateKey()
	require.NoError(t, err)
	a.Set(fmt.Sprintf("public_key=%s\nallowed_ip=10.67.0.0/16\nendpoint=192.0.2.77:51820\n", c.Public().Hex()))
	a.NS.Run("ip", "route", "add", "10.67.0.0/16", "dev", "rw0")
	table := engine(a).hub.peers.now.Load()
	dead := table.byKey[c.Public()]
	// As if it had had a session: refresh sets it right within a second, so it is set again and again.
	packet := make([]byte, 1300)
	stop := a.Flood("10.67.0.1:9", 5, func() []byte { dead.fresh.Store(true); return packet })
	got := a.Iperf(b, 3)
	stop()
	t.Logf("%.0f Mbit/s beside a peer whose session is lost, drops %v", got, a.E.Status().Drops)
	assert.Greater(t, got, 0.0)
	polltest.Require(t, func() bool { return a.Ping("10.66.0.2") == nil }, 10*time.Second, 10*time.Millisecond)
}
