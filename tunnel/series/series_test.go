package series

import (
	"encoding/binary"
	"math"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

const (
	sec = int64(time.Second)
	gap = 20 * int64(time.Millisecond)
)

var seed = Seed{0x1234567890abcdef, 0xfedcba0987654321}

// rtp is a packet of 20 ms of G.711.
func rtp(v6 bool, flow uint32, source uint32, sequence uint16, payload uint8, time uint32) []byte {
	at := headerIPv4
	p := make([]byte, headerIPv4+headerUDP+headerRTP+160)
	if v6 {
		at = headerIPv6
		p = make([]byte, headerIPv6+headerUDP+headerRTP+160)
		p[0], p[6] = 0x60, protocolUDP
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-headerIPv6))
		p[8], p[24] = 0xfd, 0xfd
		binary.BigEndian.PutUint32(p[20:], flow)
		p[39] = 9
	} else {
		p[0], p[8], p[9] = 0x45, 64, protocolUDP
		binary.BigEndian.PutUint16(p[2:], uint16(len(p)))
		copy(p[12:], []byte{10, byte(flow >> 16), byte(flow >> 8), byte(flow), 10, 2, 10, 9})
	}
	binary.BigEndian.PutUint16(p[at:], 16384)
	binary.BigEndian.PutUint16(p[at+2:], 16386)
	binary.BigEndian.PutUint16(p[at+4:], uint16(len(p)-at))
	r := p[at+headerUDP:]
	r[0], r[1] = 0x80, payload
	binary.BigEndian.PutUint16(r[2:], sequence)
	binary.BigEndian.PutUint32(r[4:], time)
	binary.BigEndian.PutUint32(r[8:], source)
	return p
}

func all(t *Table) (records []Record) {
	page := make([]Record, 100)
	for next := 0; ; {
		n := 0
		n, next = t.Copy(page, next, math.MinInt64)
		records = append(records, page[:n]...)
		if next == 0 {
			return records
		}
	}
}

func one(t require.TestingT, table *Table) Record {
	records := all(table)
	require.Len(t, records, 1)
	return records[0]
}

// model counts like a series, of numbers that never wrap and in maps that never forget.
type model struct {
	first           uint32 // sequence number of packet 0, extended
	arrived, passed map[uint32]bool
	lowest, highest uint32

	expected, arrivedOut, passedOut, copies, late int
}

func newModel(first uint16, n uint32) *model {
	m := &model{first: firstCycle + uint32(first), arrived: map[uint32]bool{}, passed: map[uint32]bool{}}
	m.lowest, m.highest = m.first+n, m.first+n
	return m
}

func (m *model) arrive(n uint32) (mark uint32, ok bool) {
	x := m.first + n
	switch {
	case x/64+words <= m.highest/64:
		m.late++
		return 0, false
	case m.arrived[x]:
		m.copies++
		return 0, false
	}
	m.arrived[x] = true
	m.lowest, m.highest = min(m.lowest, x), max(m.highest, x)
	return x, true
}

func (m *model) pass(x uint32) {
	if x/64+words > m.highest/64 {
		m.passed[x] = true
	}
}

func (m *model) check(t require.TestingT, r Record) {
	assert.EqualValues(t, m.expected+int(m.highest-m.lowest)+1, r.Expected(), "expected")
	assert.EqualValues(t, m.arrivedOut+len(m.arrived), r.Arrived(), "arrived")
	assert.EqualValues(t, m.passedOut+len(m.passed), r.Passed(), "passed")
	assert.EqualValues(t, m.copies, r.Copies(), "copies")
	assert.EqualValues(t, m.late, r.Late(), "late")
}

// Losses, copies, any order within the window and beyond it, numbers that wrap, packets that this box drops or passes
// late, restarts: the counts are those of the model.
func TestSeriesCountLikeTheModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		first := rapid.Uint16().Draw(t, "first")
		lossPercent := rapid.IntRange(0, 60).Draw(t, "loss")
		spread := rapid.IntRange(0, 700).Draw(t, "spread")
		percent := rapid.IntRange(0, 99)
		table := New(seed, 0)
		now := sec
		send := func(s uint16) Mark {
			now += gap
			return table.Arrive(rtp(false, 1, 7, s, 0, uint32(now)), 3, now)
		}

		var m *model
		for run := range rapid.IntRange(1, 3).Draw(t, "runs") {
			var waiting []Mark // that arrived and have not passed
			before := m
			if run > 0 {
				first = uint16(m.highest) + uint16(rapid.IntRange(5000, 60_000).Draw(t, "jump"))
				send(first - 1) // shows nothing by itself
				m.late++
			}
			if m = newModel(first, 0); before != nil {
				m.expected = before.expected + int(before.highest-before.lowest) + 1
				m.arrivedOut, m.passedOut = before.arrivedOut+len(before.arrived), before.passedOut+len(before.passed)
				m.copies, m.late = before.copies, before.late
			}
			n := uint32(0)
			packets := rapid.IntRange(1, 1500).Draw(t, "packets")
			for i := range packets {
				n++
				if i == 0 {
					n = 0 // nothing is known of a run before its first packet
				} else if percent.Draw(t, "lost?") < lossPercent {
					continue
				}
				x := n
				if i > 0 && percent.Draw(t, "other?") < 20 {
					x -= uint32(min(rapid.IntRange(0, spread).Draw(t, "back"), int(n)))
				}
				lateBefore := m.late
				want, counted := m.arrive(x)
				mark := send(first + uint16(x))
				require.Equal(t, counted, mark != Mark{}, "packet %d", x)
				if m.late > lateBefore { // two that are late and follow each other would be a restart
					send(first + uint16(n) + 40000)
					m.late++
				}
				if !counted {
					continue
				}
				require.Equal(t, want, mark.sequence)
				switch {
				case percent.Draw(t, "dropped?") < 5:
					table.Drop(mark, 2)
				case percent.Draw(t, "waits?") < 5:
					waiting = append(waiting, mark)
				default:
					table.Pass(mark)
					m.pass(want)
				}
			}
			for _, w := range waiting {
				table.Pass(w)
				m.pass(w.sequence)
			}
		}
		m.check(t, one(t, table))
	})
}

func TestNumbersWrap(t *testing.T) {
	table := New(seed, 0)
	lost, n := 0, 200_000 // three times round
	for i := range n {
		if i%97 == 5 {
			lost++
			continue
		}
		table.Pass(table.Arrive(rtp(true, 1, 7, uint16(i-40000), 0, uint32(160*i)), 0, int64(i)*gap))
	}
	r := one(t, table)
	assert.EqualValues(t, n, r.Expected())
	assert.EqualValues(t, n-lost, r.Arrived())
	assert.EqualValues(t, n-lost, r.Passed())
	assert.Zero(t, r.Late()+r.Copies()+r.Restarts())
}

func TestARestartIsNoLoss(t *testing.T) {
	table := New(seed, 0)
	now := int64(0)
	send := func(s uint16) {
		now += gap
		table.Pass(table.Arrive(rtp(false, 1, 7, s, 0, uint32(now/125000)), 0, now))
	}
	for s := range uint16(100) {
		send(1000 + s)
	}
	for s := range uint16(100) {
		send(30_000 + s)
	}
	r := one(t, table)
	assert.EqualValues(t, 1, r.Restarts())
	assert.EqualValues(t, 1, r.Late(), "the first packet could have been a late one")
	assert.EqualValues(t, 199, r.Expected())
	assert.EqualValues(t, 199, r.Arrived())
	assert.EqualValues(t, 199, r.Passed())

	send(50_000) // one stray packet changes nothing
	send(30_100)
	r = one(t, table)
	assert.EqualValues(t, 200, r.Expected())
	assert.EqualValues(t, 1, r.Restarts())
}

// Another source in the same flow is another series.
func TestSourcesAreApart(t *testing.T) {
	table := New(seed, 0)
	for i := range 10 {
		table.Arrive(rtp(false, 1, 7, uint16(i), 0, 0), 4, int64(i)*gap)
		table.Arrive(rtp(false, 1, 8, uint16(40_000+i), 0, 0), 4, int64(i)*gap)
		table.Arrive(rtp(true, 1, 8, uint16(50_000+i), 0, 0), 5, int64(i)*gap)
	}
	records := all(table)
	require.Len(t, records, 3)
	for i, r := range records {
		assert.EqualValues(t, 10, r.Expected(), i)
		assert.EqualValues(t, 10, r.Arrived(), i)
	}
	from, to := records[1].Flow()
	assert.Equal(t, netip.MustParseAddrPort("10.0.0.1:16384"), from)
	assert.Equal(t, netip.MustParseAddrPort("10.2.10.9:16386"), to)
	assert.EqualValues(t, 8, records[1].Source())
	assert.EqualValues(t, 4, records[1].Peer())
	from, to = records[2].Flow()
	assert.Equal(t, netip.MustParseAddrPort("[fd00::1]:16384"), from)
	assert.Equal(t, netip.MustParseAddrPort("[fd00::9]:16386"), to)
	assert.EqualValues(t, 5, records[2].Peer())
}

func TestDropsHaveTheirReason(t *testing.T) {
	table := New(seed, 0)
	for i := range 10 {
		mark := table.Arrive(rtp(false, 1, 7, uint16(i), 0, 0), 0, int64(i)*gap)
		if i%2 == 0 {
			table.Pass(mark)
			continue
		}
		table.Drop(mark, 3)
	}
	r := one(t, table)
	assert.EqualValues(t, 10, r.Arrived())
	assert.EqualValues(t, 5, r.Passed())
	assert.Equal(t, [Reasons]uint32{3: 5}, r.Dropped())
}

func TestWhatIsNoRTPIsNotCounted(t *testing.T) {
	whole := func(change func(p []byte)) []byte {
		p := rtp(false, 1, 7, 1, 0, 0)
		change(p)
		return p
	}
	v6 := rtp(true, 1, 7, 1, 0, 0)
	v6[6] = 44 // a fragment
	cases := map[string][]byte{
		"TCP":              whole(func(p []byte) { p[9] = 6 }),
		"a first fragment": whole(func(p []byte) { p[6] = 0x20 }),
		"a later fragment": whole(func(p []byte) { p[7] = 8 }),
		"a fragment, IPv6": v6,
		"RTCP":             whole(func(p []byte) { p[29] = 200 }),
		"SRTCP":            whole(func(p []byte) { p[29] = 201 }),
		"STUN":             whole(func(p []byte) { p[28] = 0 }),
		"DTLS":             whole(func(p []byte) { p[28] = 22 }),
		"TURN":             whole(func(p []byte) { p[28] = 64 }),
		"cut short":        rtp(false, 1, 7, 1, 0, 0)[:39],
		"options too long": whole(func(p []byte) { p[0] = 0x4f })[:50],
		"a short header":   whole(func(p []byte) { p[0] = 0x41 }),
	}
	for name, p := range cases {
		table := New(seed, 0)
		assert.Equal(t, Mark{}, table.Arrive(p, 0, 0), name)
		assert.Empty(t, all(table), name)
	}
	table := New(seed, 0)
	assert.NotEqual(t, Mark{}, table.Arrive(rtp(false, 1, 7, 1, 0x80|96, 0), 0, 0), "with a marker")
}

// FuzzArrive has any bytes be a packet, as far as the engine passes them on: of version 4 or 6, not shorter than that
// header.
func FuzzArrive(f *testing.F) {
	f.Add(rtp(false, 1, 7, 1, 0, 0), uint16(1))
	f.Add(rtp(true, 1, 7, 1, 0, 0), uint16(40000))
	f.Fuzz(func(t *testing.T, p []byte, n uint16) {
		if len(p) < headerIPv4 || p[0]>>4 != 4 && (p[0]>>4 != 6 || len(p) < headerIPv6) {
			return
		}
		table := New(seed, 0)
		for i := range 3 {
			table.Pass(table.Arrive(p, 0, int64(i)*int64(n)))
		}
		for _, r := range all(table) {
			require.GreaterOrEqual(t, r.Expected(), r.Arrived())
			require.GreaterOrEqual(t, r.Arrived(), r.Passed())
		}
	})
}

// RFC 3550, appendix A.8, with floating point.
func TestJitterIsTheRFCs(t *testing.T) {
	for payload, rate := range map[uint8]float64{0: 8000, 9: 8000, 10: 44100, 14: 90000} {
		table := New(seed, 0)
		var jitter, last, sum, peak float64
		n := 0
		random := uint32(1)
		for i := range 2000 {
			random = random*1664525 + 1013904223
			delay := int64(random >> 8 % 30_000_000)
			stamp := uint32(float64(i)*rate*0.02) + 4_294_900_000 // wraps
			now := int64(i)*gap + delay
			table.Arrive(rtp(false, 1, 7, uint16(i), payload, stamp), 0, now)
			transit := float64(now) - math.Floor(float64(i)*rate*0.02)*1e9/rate
			if i > 0 {
				jitter += (math.Abs(transit-last) - jitter) / 16
				sum += jitter
				peak = max(peak, jitter)
				n++
			}
			last = transit
		}
		r := one(t, table)
		now, mean, highest, known := r.Jitter()
		require.True(t, known)
		assert.InEpsilon(t, jitter, float64(now), 0.001, "payload type %d", payload)
		assert.InEpsilon(t, sum/float64(n), float64(mean), 0.001)
		assert.InEpsilon(t, peak, float64(highest), 0.001)
	}
}

// A dynamic payload type does not tell its clock: that is learned. Opus has 48 kHz.
func TestTheClockOfADynamicTypeIsLearned(t *testing.T) {
	for _, rate := range usualRates {
		table := New(seed, 0)
		for i := range 500 {
			now := int64(i) * gap
			if i%2 == 1 {
				now += 4 * int64(time.Millisecond)
			}
			table.Arrive(rtp(false, 1, 7, uint16(i), 111, uint32(i)*rate/50), 0, now)
			if i == 10 {
				r := one(t, table)
				_, _, _, known := r.Jitter()
				assert.False(t, known)
			}
		}
		r := one(t, table)
		_, mean, _, known := r.Jitter()
		require.True(t, known)
		assert.InDelta(t, 4e6, float64(mean), 2e5, "%d Hz", rate)
	}
}

// Events (RFC 4733) and comfort noise do not disturb the jitter; another codec takes over.
func TestOtherPayloadTypes(t *testing.T) {
	table := New(seed, 0)
	send := func(i int, payload uint8, stamp uint32) {
		table.Arrive(rtp(false, 1, 7, uint16(i), payload, stamp), 0, int64(i)*gap)
	}
	for i := range 300 {
		if i >= 100 && i < 120 {
			send(i, 101, 16000) // the event began then
			continue
		}
		send(i, 8, uint32(160*i))
	}
	r := one(t, table)
	_, _, peak, known := r.Jitter()
	assert.True(t, known)
	assert.Zero(t, peak)
	assert.EqualValues(t, 300, r.Arrived())

	for i := 300; i < 800; i++ {
		send(i, 18, 5_000_000+uint32(160*i))
	}
	r = one(t, table)
	_, _, peak, _ = r.Jitter()
	assert.Zero(t, peak)
	assert.EqualValues(t, 18, r.Payload())
}

// A flood of packets with changing sources leaves calls alone, and calls that begin find a place after it.
func TestAFullTable(t *testing.T) {
	table := New(seed, 0)
	now := int64(0)
	call := func(source uint32, i int) Mark { return table.Arrive(rtp(false, 1, source, uint16(i), 0, 0), 0, now) }
	for i := range 100 {
		now += gap
		require.NotEqual(t, Mark{}, call(1, i))
		for k := range uint32(100) {
			table.Arrive(rtp(false, 2, uint32(i)*100+k+1000, 5, 0, 0), 0, now)
		}
	}
	assert.Positive(t, table.Beyond())
	assert.LessOrEqual(t, len(all(table)), MinSeries)
	now += 2 * sec
	require.NotEqual(t, Mark{}, call(2, 0))
	for i := 1; i < 100; i++ {
		now += gap
		call(2, i)
	}
	found := 0
	for _, r := range all(table) {
		if _, to := r.Flow(); to.IsValid() && r.Source() <= 2 {
			found++
			assert.EqualValues(t, 100, r.Arrived(), "source %d", r.Source())
		}
	}
	assert.Equal(t, 2, found)

	// A mark of a series that is gone touches nothing of the one in its place.
	old := call(2, 100)
	e := &table.entries[old.entry-1]
	e.born++
	before := *e
	table.Pass(old)
	table.Drop(old, 1)
	assert.Equal(t, before, *e)
}

// Half full, nearly all flows have a place.
func TestEightThousandFlows(t *testing.T) {
	table := New(seed, MaxSeries)
	for i := range 3 {
		for f := range uint32(8000) {
			table.Arrive(rtp(f%2 == 1, f, f, uint16(i), 0, 0), 0, int64(i)*gap)
		}
	}
	assert.GreaterOrEqual(t, len(all(table)), 7990)
}

func TestSilentSeriesAreNotCopied(t *testing.T) {
	table := New(seed, 0)
	table.Arrive(rtp(false, 1, 7, 1, 0, 0), 0, 1*sec)
	table.Arrive(rtp(false, 2, 7, 1, 0, 0), 0, 9*sec)
	page := make([]Record, 1)
	n, next := table.Copy(page, 0, 5*sec)
	assert.Equal(t, []int{0, 1}, []int{n, next})
	n, next = table.Copy(page, next, 5*sec)
	assert.Equal(t, []int{1, 0}, []int{n, next})
	began, last := page[0].Life()
	assert.Equal(t, []int64{9 * sec, 9 * sec}, []int64{began, last})
	n, next = table.Copy(page, 1<<20, 0)
	assert.Equal(t, []int{0, 0}, []int{n, next})
}

func TestNothingIsAllocated(t *testing.T) {
	table := New(seed, 0)
	page := make([]Record, 16)
	p := [][]byte{rtp(false, 1, 7, 1, 0, 0), rtp(true, 1, 7, 1, 111, 0), make([]byte, 40)}
	p[2][0] = 0x60
	now, s := int64(0), uint16(0)
	assert.Zero(t, testing.AllocsPerRun(20_000, func() {
		now += gap
		s += 1 + s%5*s%700 // also restarts
		for i, x := range p {
			if i < 2 {
				at := len(x) - 160 - headerRTP
				binary.BigEndian.PutUint16(x[at+2:], s)
				binary.BigEndian.PutUint32(x[at+8:], uint32(s)) // and new sources
			}
			mark := table.Arrive(x, 0, now)
			table.Pass(mark)
			table.Drop(mark, 1)
		}
		table.Copy(page, 0, 0)
	}))
}
