package wireguardgo

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"regexp"
	"runtime"
	"runtime/metrics"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.zx2c4.com/wireguard/device"

	"ringway/tunnel"
)

// watchHeap samples the heap until stop, which returns the largest live heap in bytes.
func watchHeap() (stop func() uint64) {
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
	return func() uint64 { close(done); return <-most }
}

// flood sends what next makes to address from inside the box until stop, so many a millisecond (0: as many as go).
func (b *box) flood(address string, rate int, next func() []byte) (stop func() int) {
	b.t.Helper()
	var c net.Conn
	require.NoError(b.t, b.ns.Do(func() (err error) { c, err = net.Dial("udp", address); return err }))
	done := make(chan struct{})
	var n atomic.Int64
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for i := 1; ; i++ {
			select {
			case <-done:
				return
			default:
			}
			if rate > 0 && i%rate == 0 {
				<-tick.C
			}
			if _, err := c.Write(next()); err == nil {
				n.Add(1)
			}
		}
	})
	return func() int { close(done); wg.Wait(); c.Close(); return int(n.Load()) }
}

// floodPair is a, in this process, and b, whose engine is a process of its own.
func floodPair(t testing.TB) (a, b *box) {
	wide := wide
	wide.InFlight = 128
	a, b = wire(t)
	a.open(0, 0, wide)
	b.open(0, 0, wide)
	b.spawn(wide, b.peer(a, "192.0.2.1:51820"))
	a.start(wide)
	a.set(a.peer(b, "192.0.2.2:51820"))
	require.NoError(t, a.ping("10.66.0.2"))
	return a, b
}

// pings sends n echo requests, 10 ms apart, and returns how many were answered.
func (b *box) pings(to string, n int) (answers int) {
	b.t.Helper()
	out, _ := b.ns.Try("ping", "-n", "-q", "-c", strconv.Itoa(n), "-i", "0.01", "-W", "2", to) // an error: some were not
	m := regexp.MustCompile(`(\d+) received`).FindStringSubmatch(out)
	require.NotNil(b.t, m, out)
	answers, err := strconv.Atoi(m[1])
	require.NoError(b.t, err)
	return answers
}

const (
	liveHeap = maxBuffers*device.MaxMessageSize + 64<<20 // and what there is beside message buffers
	live     = 5.0                                       // Mbit/s that a live tunnel must still carry beside a flood, on a busy machine
)

func TestDeadPeersAreBounded(t *testing.T) {
	a, b := floodPair(t)
	a.ns.Run("ip", "route", "add", "10.67.0.0/16", "dev", "rw0")
	set := ""
	for i := range 20 { // half of them dial in, half of them do not answer
		k, err := tunnel.NewPrivateKey()
		require.NoError(t, err)
		set += fmt.Sprintf("public_key=%s\nallowed_ip=10.67.%d.0/24\n", k.Public().Hex(), i)
		if i%2 == 0 {
			set += fmt.Sprintf("endpoint=192.0.2.%d:51820\n", 100+i)
		}
	}
	a.set(set)
	runtime.GC()
	stopHeap := watchHeap()
	packet := make([]byte, 1300)
	var stops []func() int
	for i := range 4 {
		to := fmt.Sprintf("10.67.%d.1:9", i)
		stops = append(stops, a.flood(to, 5, func() []byte { return packet }))
	}
	stops = append(stops, a.flood("10.67.200.1:9", 5, func() []byte { return packet }))
	got := a.iperf(b, 4)
	sent := 0
	for _, stop := range stops {
		sent += stop()
	}
	heap := stopHeap()
	d := a.e.Status().Drops
	t.Logf("%d packets to dead peers beside %.0f Mbit/s to a live one: live heap %d MiB, drops %v", sent, got, heap>>20, d)
	assert.Less(t, heap, uint64(liveHeap))
	assert.Greater(t, got, live)
	assert.Positive(t, d["no_session"])
	assert.Positive(t, d["no_site"])
}

func TestForgedPacketsAreBounded(t *testing.T) {
	a, b := floodPair(t)
	stop := b.capture() // what b sends carries a's receiver index
	require.NoError(t, a.ping("10.66.0.2"))
	var index uint32
	for _, f := range stop() {
		if binary.LittleEndian.Uint32(f.payload) == device.MessageTransportType {
			index = binary.LittleEndian.Uint32(f.payload[4:])
		}
	}
	require.NotZero(t, index)
	var own device.CookieGenerator
	own.Init(device.NoisePublicKey(a.key.Public()))

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
	// One who sees our packets makes the device take buffers, up to its bound, and decrypt; a stranger cannot. The
	// socket's buffer loses packets then, which TCP does not bear, but of those that get in none is lost: the tunnel does not stall.
	for _, c := range []struct {
		name string
		next func() []byte
		drop string
		live float64
	}{
		{"noise", func() func() []byte { p := make([]byte, 300); p[0] = 77; return func() []byte { return p } }(), "garbage", live},
		{"unknown session", transport(1300, rand.Uint32), "refused", live},
		{"handshakes of a stranger", initiation(false), "bad_mac1", live},
		{"handshakes by one who knows our public key", initiation(true), "handshake_rate", live},
		{"known session", transport(1300, func() uint32 { return index }), "refused", 0},
		{"short, known session", transport(48, func() uint32 { return index }), "refused", 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			runtime.GC()
			stopHeap := watchHeap()
			stop := b.flood("192.0.2.1:51820", 0, c.next)
			var in, out float64
			answers := -1
			if c.live > 0 {
				in = a.iperf(b, 2, "-R")
				out = a.iperf(b, 1)
			} else {
				answers = a.pings("10.66.0.2", 200)
			}
			sent := stop()
			heap := stopHeap()
			d := a.e.Status().Drops
			t.Logf("%d forged packets beside %.0f Mbit/s in and %.0f out, %d of 200 pings: live heap %d MiB, drops %v", sent, in, out, answers, heap>>20, d)
			assert.Less(t, heap, uint64(liveHeap))
			if c.live > 0 {
				assert.Greater(t, in, c.live)
				assert.Greater(t, out, c.live)
			} else {
				assert.Greater(t, answers, 20)
			}
			assert.Positive(t, d[c.drop])
			require.NoError(t, a.ping("10.66.0.2"))
		})
	}
}

// Without key the peer's packets wait in the device although a handshake was seen: the sessions
// are gone, and only the gate's last resort finds out.
func TestLostSessionsDoNotWedge(t *testing.T) {
	a, b := floodPair(t)
	c, err := tunnel.NewPrivateKey()
	require.NoError(t, err)
	a.set(fmt.Sprintf("public_key=%s\nallowed_ip=10.67.0.0/16\nendpoint=192.0.2.77:51820\n", c.Public().Hex()))
	a.ns.Run("ip", "route", "add", "10.67.0.0/16", "dev", "rw0")
	table := a.e.hub.peers.now.Load()
	dead := table.byKey[c.Public()]
	// As if it had had a session: refresh sets it right within a second, so it is set again and again.
	packet := make([]byte, 1300)
	stop := a.flood("10.67.0.1:9", 5, func() []byte { dead.fresh.Store(true); return packet })
	got := a.iperf(b, 3)
	stop()
	t.Logf("%.0f Mbit/s beside a peer whose session is lost, drops %v", got, a.e.Status().Drops)
	assert.Greater(t, got, 0.0)
	require.Eventually(t, func() bool { return a.ping("10.66.0.2") == nil }, 10*time.Second, 10*time.Millisecond)
}
