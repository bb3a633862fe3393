package flowqueue

import (
	"encoding/binary"
	"math"
	"testing"
	"time"

	"ringway/units"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// standing is a queue of one flow in which every packet has waited for as long as wait says when it is
// popped, once a millisecond.
type standing struct {
	q   *Queue
	now time.Duration
	n   uint32
	ecn byte
}

func newStanding(c CoDel) *standing {
	s := &standing{q: New(Config{Packets: 1 << 20, Bytes: 1 << 30, Quantum: 1500, CoDel: c}, 1), now: time.Second}
	return s
}

// fill has the queue hold many packets that came at a time.
func (s *standing) fill(at time.Duration) {
	for range 2000 {
		s.q.Push(at, udp(10, 1, 1000, s.n, s.ecn), 1)
		s.n++
	}
}

// events pops once a millisecond until then and gives the times at which packets were dropped or marked.
func (s *standing) events(t *testing.T, until time.Duration) (at []time.Duration) {
	t.Helper()
	var b [2048]byte
	for ; s.now < until; s.now += time.Millisecond {
		was := s.q.Delayed + s.q.Marked
		require.Positive(t, s.q.Pop(s.now, b[:]))
		for range s.q.Delayed + s.q.Marked - was {
			at = append(at, s.now)
		}
	}
	return at
}

// RFC 8289, section 3.2 and 5.2: nothing is dropped in the first interval above target; then at times that
// come closer with the root of the count: interval, interval/sqrt 2, interval/sqrt 3 ...
func TestControlLaw(t *testing.T) {
	c := CoDel{Target: 5 * ms, Interval: 100 * ms, Packet: 1500}
	s := newStanding(c)
	s.fill(s.now - 10*ms)
	start := s.now
	got := s.events(t, start+600*ms)
	want := []time.Duration{start + 100*ms}
	for i, due := 1, start+100*ms; ; i++ {
		due += time.Duration(float64(100*ms) / math.Sqrt(float64(i)))
		if due >= start+600*ms {
			break
		}
		want = append(want, due)
	}
	require.Len(t, got, len(want))
	for i := range want {
		assert.InDelta(t, want[i], got[i], float64(time.Millisecond), "drop %d", i)
	}
	assert.Greater(t, len(got), 7)
	assert.EqualValues(t, 100*ms, c.law(0, 1))
	assert.EqualValues(t, 50*ms, c.law(0, 4), "four drops: half the interval")
	assert.EqualValues(t, 10*ms, c.law(0, 100))
}

// A burst that is gone within an interval is a good queue (section 3.1).
func TestABurstIsNotPunished(t *testing.T) {
	s := newStanding(CoDel{Target: 5 * ms, Interval: 100 * ms, Packet: 1500})
	var b [2048]byte
	for round := range 20 {
		for range 90 {
			s.q.Push(s.now, udp(10, 1, 1000, s.n, 0), 1)
			s.n++
		}
		for range 90 { // 90 ms
			s.now += time.Millisecond
			require.Positive(t, s.q.Pop(s.now, b[:]), round)
		}
		s.now += 20 * ms
	}
	assert.Zero(t, s.q.Delayed)
}

// A queue that holds a packet is never too long, however slow the line.
func TestTheLastPacketIsKept(t *testing.T) {
	s := newStanding(CoDel{Target: 5 * ms, Interval: 100 * ms, Packet: 1500})
	var b [2048]byte
	for range 100 {
		s.q.Push(s.now, udp(10, 1, 1400, 0, 0), 1)
		s.now += 50 * ms
		require.Positive(t, s.q.Pop(s.now, b[:]))
	}
	assert.Zero(t, s.q.Delayed)
}

// A queue that drops again soon goes on near its last rate; one that was short for long begins again (section
// 5.5).
func TestDroppingGoesOnWhereItWas(t *testing.T) {
	for _, tt := range []struct {
		well time.Duration
		soon bool
	}{{50 * ms, true}, {3 * time.Second, false}} {
		s := newStanding(CoDel{Target: 5 * ms, Interval: 100 * ms, Packet: 1500})
		s.fill(s.now - 10*ms)
		first := s.events(t, s.now+500*ms)
		require.Greater(t, len(first), 5)
		var b [2048]byte
		for s.q.Len() > 0 { // below target: they have just come
			for m := s.q.old.head.head; m != nil; m = m.next {
				m.at = s.now
			}
			s.q.Pop(s.now, b[:])
		}
		s.now += tt.well
		s.fill(s.now - 10*ms)
		again := s.events(t, s.now+250*ms)
		if tt.soon {
			assert.Greater(t, len(again), 3)
		} else {
			assert.Len(t, again, 2)
		}
	}
}

// Marks in place of drops, and the header checksum stays right.
func TestMarksInPlaceOfDrops(t *testing.T) {
	s := newStanding(CoDel{Target: 5 * ms, Interval: 100 * ms, Packet: 1500})
	s.ecn = 2 // ECT(0)
	s.fill(s.now - 10*ms)
	s.events(t, s.now+600*ms)
	assert.Zero(t, s.q.Delayed)
	assert.Greater(t, s.q.Marked, uint64(7))

	for tos := range 256 {
		p := udp(10, 1, 100, 0, byte(tos))
		was := append([]byte(nil), p...)
		assert.Equal(t, tos&3 != 0, mark(p))
		if tos&3 == 0 {
			assert.Equal(t, was, p)
			continue
		}
		assert.EqualValues(t, tos|3, p[1])
		assert.EqualValues(t, 0xffff, checksum(p[:20]), "TOS %d", tos)
	}
	for tos := range 256 {
		p := make([]byte, 40)
		binary.BigEndian.PutUint32(p, 6<<28|uint32(tos)<<20|0xfffff)
		assert.Equal(t, tos&3 != 0, mark(p))
		want := tos
		if tos&3 != 0 {
			want |= 3
		}
		assert.EqualValues(t, 6<<28|uint32(want)<<20|0xfffff, binary.BigEndian.Uint32(p))
	}
	assert.False(t, mark(nil))
}

// The target holds one and a half packets of the line, and the interval the target twice (RFC 8289, section
// 4.3 for slow links).
func TestTargetFollowsTheRate(t *testing.T) {
	for _, tt := range []struct {
		rate             units.BitRate
		target, interval time.Duration
	}{
		{0, 5 * ms, 100 * ms}, {1e9, 5 * ms, 100 * ms}, {20e6, 5 * ms, 100 * ms}, {2e6, 9 * ms, 104 * ms}, {500e3,
			36 * ms, 131 * ms}, {100e3, 180 * ms, 360 * ms},
	} {
		c := CoDelFor(tt.rate, 1500)
		assert.Equal(t, tt.target, c.Target, tt.rate)
		assert.Equal(t, tt.interval, c.Interval, tt.rate)
	}
}
