package flowqueue

import (
	"encoding/binary"
	"fmt"
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

const ms = time.Millisecond

var roomy = Config{Packets: 1 << 20, Bytes: 1 << 30, Quantum: 1500,
	CoDel: CoDel{Target: time.Hour, Interval: time.Hour, Packet: 1500}}

// udp is an IPv4 packet of n bytes from a host's port, with a number in it.
func udp(host byte, port uint16, n int, number uint32, ecn byte) []byte {
	p := make([]byte, max(n, 32))
	p[0], p[1], p[8], p[9] = 0x45, ecn, 64, 17
	binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
	copy(p[12:], []byte{10, 1, 20, host, 10, 2, 20, 10})
	binary.BigEndian.PutUint16(p[10:], ^checksum(p[:20]))
	binary.BigEndian.PutUint16(p[20:], port)
	binary.BigEndian.PutUint32(p[28:], number)
	return p
}

// checksum is the sum of the words, folded.
func checksum(p []byte) uint16 {
	var s uint32
	for i := 0; i < len(p); i += 2 {
		s += uint32(p[i])<<8 | uint32(p[i+1])
	}
	for s > 0xffff {
		s = s&0xffff + s>>16
	}
	return uint16(s)
}

// flowOf says whose packet it is.
func flowOf(p []byte) (host byte, port uint16, number uint32) {
	return p[15], binary.BigEndian.Uint16(p[20:]), binary.BigEndian.Uint32(p[28:])
}

// jain is Jain's index of fairness: 1 where all have the same.
func jain(v []float64) float64 {
	var sum, squares float64
	for _, x := range v {
		sum += x
		squares += x * x
	}
	return sum * sum / (float64(len(v)) * squares)
}

// apart are n ports of a host whose flows share no queue.
func apart(q *Queue, host byte, n int, taken map[uint16]bool) (ports []uint16) {
	for port := uint16(1); len(ports) < n; port++ {
		if k := classify(udp(host, port, 0, 0, 0), 1, q.seed).flow; !taken[k] {
			taken[k] = true
			ports = append(ports, port)
		}
	}
	return ports
}

func TestFlowsShareEquallyWhateverTheirPackets(t *testing.T) {
	q := New(roomy, 7)
	ports := apart(q, 10, 8, map[uint16]bool{})
	for i, port := range ports { // 150 to 1200 bytes, ever more of them
		for n := range 4000 {
			q.Push(0, udp(10, port, 150*(i+1), uint32(n), 0), 1)
		}
	}
	got := make([]float64, len(ports))
	at := map[uint16]int{}
	for i, p := range ports {
		at[p] = i
	}
	var b [2048]byte
	for range 4000 {
		n := q.Pop(ms, b[:])
		require.Positive(t, n)
		_, port, _ := flowOf(b[:n])
		got[at[port]] += float64(n)
	}
	assert.Greater(t, jain(got), 0.999, "%v", got)
}

// Opening more connections brings a host nothing.
func TestHostsShareEquallyWhateverTheirFlows(t *testing.T) {
	q := New(roomy, 7)
	taken := map[uint16]bool{}
	flows := map[byte][]uint16{10: apart(q, 10, 1, taken), 11: apart(q, 11, 4, taken), 12: apart(q, 12, 16, taken)}
	for host, ports := range flows {
		for _, port := range ports {
			for n := range 3000 {
				q.Push(0, udp(host, port, 1000, uint32(n), 0), 1)
			}
		}
	}
	got := map[byte]float64{}
	var b [2048]byte
	for range 6000 {
		n := q.Pop(ms, b[:])
		host, _, _ := flowOf(b[:n])
		got[host] += float64(n)
	}
	assert.Greater(t, jain([]float64{got[10], got[11], got[12]}), 0.99, "%v", got)
}

func TestSitesShareEquallyWhateverTheirHosts(t *testing.T) {
	q := New(roomy, 7)
	for n := range 6000 {
		q.Push(0, udp(10, 1, 1000, uint32(n), 0), 1)
		q.Push(0, udp(11, 2, 1000, uint32(n), 0), 2)
		q.Push(0, udp(12, 3, 1000, uint32(n), 0), 2)
		q.Push(0, udp(13, 4, 1000, uint32(n), 0), 2)
	}
	one, all := 0.0, 6000
	var b [2048]byte
	for range all {
		n := q.Pop(ms, b[:])
		if host, _, _ := flowOf(b[:n]); host == 10 {
			one++
		}
	}
	assert.InDelta(t, 0.5, one/float64(all), 0.02)
}

// A flow that sends less than its share is served ahead of bulk, however much of that waits; one that sends more
// waits for its turn.
func TestASparseFlowPassesBulk(t *testing.T) {
	q := New(roomy, 7)
	taken := map[uint16]bool{}
	ports := apart(q, 10, 9, taken)
	for n := range 400 {
		for _, port := range ports[:8] {
			q.Push(0, udp(10, port, 1400, uint32(n), 0), 1)
		}
	}
	var b [2048]byte
	for range 64 { // bulk is not new any more
		q.Pop(ms, b[:])
	}
	for i := range uint32(20) {
		q.Push(ms, udp(10, ports[8], 100, i, 0), 1)
		n := q.Pop(ms, b[:])
		_, port, number := flowOf(b[:n])
		assert.Equal(t, ports[8], port, "packet %d", i)
		assert.Equal(t, i, number)
		for range 9 * 9 { // a round of all: nine flows of a host, each with a ninth of a packet's bytes in a turn
			q.Pop(ms, b[:])
		}
	}
	mine := 0
	for i := range uint32(100) {
		q.Push(ms, udp(10, ports[8], 1400, i, 0), 1)
		q.Push(ms, udp(10, ports[8], 1400, i, 0), 1)
		if _, port, _ := flowOf(b[:q.Pop(ms, b[:])]); port == ports[8] {
			mine++
		}
	}
	assert.InDelta(t, 100/9, mine, 3)
}

// What was pushed comes out once, unchanged, each flow's in order, as long as the bounds hold.
func TestNothingIsLostDoubledOrReordered(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := New(roomy, rapid.Uint64().Draw(t, "seed"))
		type who struct {
			host byte
			port uint16
		}
		sent, got := map[who]uint32{}, map[who]uint32{}
		bytes := 0
		var b [4096]byte
		pop := func() bool {
			n := q.Pop(0, b[:])
			if n == 0 {
				return false
			}
			host, port, number := flowOf(b[:n])
			w := who{host, port}
			require.Equal(t, got[w], number)
			require.Equal(t, udp(host, port, n, number, 0), b[:n])
			got[w]++
			bytes -= n
			return true
		}
		for range rapid.IntRange(1, 400).Draw(t, "steps") {
			if rapid.IntRange(0, 2).Draw(t, "pop") == 0 {
				require.Equal(t, q.Len() > 0, pop())
			} else {
				w := who{byte(rapid.IntRange(1, 5).Draw(t, "host")), uint16(rapid.IntRange(1, 10).Draw(t, "port"))}
				p := udp(w.host, w.port, rapid.IntRange(32, 3000).Draw(t, "size"), sent[w], 0)
				q.Push(0, p, uint32(w.host)%3)
				sent[w]++
				bytes += len(p)
			}
			require.Equal(t, bytes, q.Bytes())
		}
		for pop() {
		}
		require.Equal(t, sent, got)
		require.Zero(t, q.Len())
		require.Zero(t, q.Bytes())
		require.Zero(t, q.memory)
		require.Zero(t, q.Active())
		require.Zero(t, q.sites)
		require.Equal(t, [hostCount]uint16{}, q.hostFlows)
		require.Equal(t, [siteCount]uint16{}, q.siteHosts)
		require.Equal(t, Counters{}, q.Counters)
	})
}

// Whoever sends what, it stays within the bounds, and each packet is counted in or out.
func TestBoundsHold(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := Config{Packets: rapid.IntRange(1, 50).Draw(t, "packets"), Bytes: 1 << 16, Quantum: 1500,
			CoDel: CoDelFor(2e6, 1500)}
		q := New(c, 1)
		var now time.Duration
		var b [1 << 16]byte
		pushed, popped := 0, 0
		for i := range rapid.IntRange(1, 500).Draw(t, "steps") {
			now += time.Duration(rapid.IntRange(0, 20).Draw(t, "ms")) * ms
			if rapid.IntRange(0, 3).Draw(t, "pop") == 0 {
				if q.Pop(now, b[:]) > 0 {
					popped++
				}
			} else {
				q.Push(now, udp(byte(rapid.IntRange(1, 3).Draw(t, "host")), uint16(rapid.IntRange(1, 30).Draw(t, "port")),
					rapid.SampledFrom([]int{40, 1400, 9000, 60000}).Draw(t, "size"), uint32(i), byte(rapid.IntRange(0,
						3).Draw(t, "ecn"))), 1)
				pushed++
			}
			require.LessOrEqual(t, q.Len(), c.Packets)
			require.LessOrEqual(t, q.memory, c.Bytes)
			require.LessOrEqual(t, q.kept, max(maxFree, c.Packets))
			require.Equal(t, pushed, popped+q.Len()+int(q.Delayed+q.Overflowed))
		}
	})
}

// The flow that fills the queue loses packets, and no other.
func TestOverflowHitsTheFattest(t *testing.T) {
	c := roomy
	c.Packets = 100
	q := New(c, 7)
	ports := apart(q, 10, 3, map[uint16]bool{})
	for n := range uint32(20) {
		q.Push(0, udp(10, ports[1], 100, n, 0), 1)
		q.Push(0, udp(10, ports[2], 1400, n, 0), 1)
	}
	for n := range uint32(1000) {
		q.Push(0, udp(10, ports[0], 1000, n, 0), 1)
	}
	assert.EqualValues(t, 940, q.Overflowed)
	seen := map[uint16]int{}
	var b [2048]byte
	first := uint32(math.MaxUint32)
	for n := q.Pop(0, b[:]); n > 0; n = q.Pop(0, b[:]) {
		_, port, number := flowOf(b[:n])
		if seen[port]++; port == ports[0] {
			first = min(first, number)
		}
	}
	assert.Equal(t, map[uint16]int{ports[0]: 60, ports[1]: 20, ports[2]: 20}, seen)
	assert.EqualValues(t, 940, first, "the oldest go")
}

func TestNothingIsAllottedPerPacket(t *testing.T) {
	q := New(roomy, 7)
	var ps [][]byte
	for i := range 64 {
		ps = append(ps, udp(10, uint16(i), 1400, 0, 0))
	}
	var b [2048]byte
	turn := func() {
		for _, p := range ps {
			q.Push(0, p, 1)
		}
		for q.Pop(0, b[:]) > 0 {
		}
	}
	turn()
	assert.Zero(t, testing.AllocsPerRun(100, turn))
}

// Fragments have no ports but the first; all of them keep their order. So does what is no IP packet at all.
func TestWhereAPacketIsQueued(t *testing.T) {
	whole := udp(10, 1, 100, 0, 0)
	other := udp(10, 2, 100, 0, 0)
	first, later := udp(10, 1, 100, 0, 0), udp(10, 77, 100, 0, 0)
	first[6], later[7] = 0x20, 100 // more fragments; an offset
	assert.NotEqual(t, classify(whole, 1, 1), classify(other, 1, 1))
	assert.Equal(t, classify(first, 1, 1), classify(later, 1, 1))
	assert.Equal(t, classify(whole, 1, 1).host, classify(other, 1, 1).host)
	assert.NotEqual(t, classify(whole, 1, 1).flow, classify(whole, 2, 1).flow, "the same addresses behind another site")
	six := func(src, dst byte, next byte, port uint16) []byte {
		p := make([]byte, 60)
		p[0], p[6], p[23], p[39] = 0x60, next, src, dst
		binary.BigEndian.PutUint16(p[40:], port)
		return p
	}
	assert.NotEqual(t, classify(six(1, 2, 6, 1), 1, 1).flow, classify(six(1, 2, 6, 2), 1, 1).flow)
	assert.Equal(t, classify(six(1, 2, 44, 1), 1, 1), classify(six(1, 2, 44, 2), 1, 1), "behind an extension header")
	assert.Equal(t, classify(six(1, 2, 6, 1), 1, 1).host, classify(six(1, 3, 17, 1), 1, 1).host)
	assert.NotEqual(t, classify(six(1, 2, 6, 1), 1, 1).host, classify(six(2, 2, 6, 1), 1, 1).host)
	for n := range 60 {
		classify(whole[:min(n, len(whole))], 1, 1)
		classify(six(1, 2, 6, 1)[:n], 1, 1)
	}
}

func BenchmarkQueue(b *testing.B) {
	for _, flows := range []int{1, 8, 100, 1000} {
		b.Run(fmt.Sprintf("flows=%d", flows), func(b *testing.B) {
			q := New(roomy, 7)
			var ps [][]byte
			for i := range flows {
				ps = append(ps, udp(10, uint16(i), 1400, 0, 0))
				q.Push(0, ps[i], 1)
				q.Push(0, ps[i], 1)
			}
			var d [2048]byte
			b.ReportAllocs()
			for i := 0; b.Loop(); i++ {
				q.Push(0, ps[i%flows], 1)
				q.Pop(0, d[:])
			}
		})
	}
}
