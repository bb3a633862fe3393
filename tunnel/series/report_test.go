package series

import (
	"encoding/binary"
	"slices"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// end is one box: a table of what it sends or receives, and what it hears of the other end.
type end struct {
	table *Table
	*Comparer
	sends bool
}

func newEnd(sends bool) *end { return &end{table: New(seed, 0), Comparer: NewComparer(), sends: sends} }

// tell looks at all series, and returns the report.
func (e *end) tell() []byte { return e.tellAt(int64(e.look+1) * sec) }

func (e *end) tellAt(now int64) []byte {
	report := NewReport(nil)
	e.Begin(now)
	records := all(e.table)
	for i := range records {
		e.Look(&records[i], e.sends, func(uint32, int) *[]byte { return &report })
	}
	e.End()
	return report
}

// Every packet that is lost is lost in one place, by a rule that the test knows. Both ends find the same places,
// with packets that others overtake and copies, whichever end looks first, also where single reports are lost.
func TestBothEndsFindTheSegment(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		v6 := rapid.Bool().Draw(t, "IPv6")
		first := rapid.Uint16().Draw(t, "first")
		lossOf := rapid.IntRange(0, 9)
		percents := []int{lossOf.Draw(t, "LAN"), lossOf.Draw(t, "box"), lossOf.Draw(t, "line"), lossOf.Draw(t, "far box")}
		reportsLost := rapid.SampledFrom([]int{0, 0, 30}).Draw(t, "reports lost")
		lostA, lostB := false, false // the last report
		random := rapid.IntRange(0, 99)

		a, b := newEnd(true), newEnd(false)
		lost := make([]string, 0, 3000)
		now := sec
		var held []byte
		receive := func(p []byte, alive bool) {
			if mark := b.table.Arrive(p, 5, now); alive {
				b.table.Pass(mark)
			}
		}
		const packets = 3000
		for i := range packets {
			now += gap
			where := ""
			if i > 0 && i < packets-1 {
				for k, name := range []string{"LAN", "box", "line", "far box"} {
					if where == "" && random.Draw(t, "lost?") < percents[k] {
						where = name
					}
				}
			}
			lost = append(lost, where)
			p := rtp(v6, 1, 7, first+uint16(i), 0, uint32(160*i))
			if where != "LAN" {
				mark := a.table.Arrive(p, 4, now)
				a.table.Arrive(p, 4, now) // a copy
				if where != "box" {
					a.table.Pass(mark)
					switch {
					case where == "line":
					case where == "" && i%9 == 4 && held == nil && i < packets-3: // overtaken
						held = p
					default:
						receive(p, where != "far box")
						if held != nil {
							receive(held, true)
							held = nil
						}
					}
				}
			}
			// A second, at different moments.
			if i%50 == 20 {
				r := a.tell()
				if lostA = !lostA && random.Draw(t, "report lost?") < reportsLost; !lostA {
					require.True(t, b.Hear(5, r, 0))
				}
			}
			if i%50 == 45 {
				r := b.tell()
				if lostB = !lostB && random.Draw(t, "report lost?") < reportsLost; !lostB {
					require.True(t, a.Hear(4, append(r, 0, 0, 0), 0))
				}
			}
		}

		ra, rb := one(t, a.table), one(t, b.table)
		atA, atB := a.Fate(&ra, true), b.Fate(&rb, false)
		// What is compared begins with the first packet, and ends with the last word that both ends have told: all of
		// it when the call is over.
		if rapid.Bool().Draw(t, "over") {
			for range looks + 1 {
				r, s := a.tell(), b.tell()
				a.Hear(4, s, 0)
				b.Hear(5, r, 0)
			}
			atA, atB = a.Fate(&ra, true), b.Fate(&rb, false)
			require.EqualValues(t, packets, atA.Compared)
		}
		require.Greater(t, atA.Compared, uint32(packets-500))
		if reportsLost > 0 && atA.Compared != atB.Compared { // the last words have reached one end
			return
		}
		require.Equal(t, atA.Compared, atB.Compared)
		var want Fate
		for _, where := range lost[:atA.Compared] {
			want.Compared++
			switch where {
			case "LAN":
				want.FarLAN++
			case "far box", "box":
				want.FarBox++
			case "line":
				want.Line++
			}
		}
		// A knows what it lost itself, B what it did not pass on.
		var boxA, boxB uint32
		for _, where := range lost[:atA.Compared] {
			if where == "box" {
				boxA++
			} else if where == "far box" {
				boxB++
			}
		}
		assert.Equal(t, Fate{Compared: want.Compared, Line: want.Line, FarBox: boxB}, atA)
		assert.Equal(t, Fate{Compared: want.Compared, Line: want.Line, FarBox: boxA, FarLAN: want.FarLAN}, atB)
	})
}

// When the line lost packets is known to a look and a word: each lost packet was sent in the span before one of the
// times, and each time has one.
func TestWhenTheLineLosesPackets(t *testing.T) {
	const span = sec + 64*gap
	rapid.Check(t, func(t *rapid.T) {
		a, b := newEnd(true), newEnd(false)
		var lost []int64
		bad := rapid.SampledFrom([]int{0, 0, 0, 40}) // percent, of a second
		percent, phase := 0, rapid.IntRange(0, 49).Draw(t, "phase")
		const packets = 50 * 25
		for i := range packets {
			now := sec + int64(i)*gap
			if i%50 == 0 {
				percent = bad.Draw(t, "percent")
			}
			p := rtp(false, 1, 7, uint16(i), 0, uint32(160*i))
			a.table.Pass(a.table.Arrive(p, 4, now))
			if i > 0 && i < packets-300 && rapid.IntRange(0, 99).Draw(t, "lost?") < percent {
				lost = append(lost, now)
			} else {
				b.table.Pass(b.table.Arrive(p, 5, now))
			}
			if i%50 == phase {
				a.Hear(4, b.tellAt(now), 0)
				b.Hear(5, a.tellAt(now), 0)
			}
		}
		r := one(t, a.table)
		at := a.LineAt(&r)
		require.EqualValues(t, len(lost), a.Fate(&r, true).Line)
		within := func(l, at int64) bool { return l > at-span && l <= at }
		for _, l := range lost {
			known := slices.ContainsFunc(at, func(x int64) bool { return within(l, x) })
			assert.True(t, known, "%v of %v", l, at)
		}
		for _, x := range at {
			meant := slices.ContainsFunc(lost, func(l int64) bool { return within(l, x) })
			assert.True(t, meant, "%v for %v", x, lost)
		}
		assert.True(t, slices.IsSorted(at))
	})
}

// A plane that is replaced counts from the start, and what was before is not lost on the line.
func TestANewPlaneClaimsNoLosses(t *testing.T) {
	a, b := newEnd(true), newEnd(false)
	for i := range 3000 {
		now := int64(i) * gap
		if i == 1500 {
			b = newEnd(false)
		}
		p := rtp(false, 1, 7, uint16(i), 0, uint32(160*i))
		a.table.Pass(a.table.Arrive(p, 4, now))
		if i < 1450 || i > 1510 { // dead for a second
			b.table.Pass(b.table.Arrive(p, 5, now))
		}
		if i%50 == 49 {
			ra, rb := a.tell(), b.tell()
			a.Hear(4, rb, 0)
			b.Hear(5, ra, 0)
		}
	}
	ra, rb := one(t, a.table), one(t, b.table)
	f := a.Fate(&ra, true)
	assert.Greater(t, f.Compared, uint32(2400))
	assert.LessOrEqual(t, f.Line, uint32(60), "what the dead plane did not take")
	assert.Zero(t, b.Fate(&rb, false).Line)
}

// A restart of the sequence numbers goes on with what was known.
func TestARestartKeepsTheFate(t *testing.T) {
	a, b := newEnd(true), newEnd(false)
	for i := range 3000 {
		now := int64(i) * gap
		s := uint16(i)
		if i >= 1500 {
			s += 30_000
		}
		p := rtp(false, 1, 7, s, 0, uint32(160*i))
		a.table.Pass(a.table.Arrive(p, 4, now))
		if i%100 != 50 {
			b.table.Pass(b.table.Arrive(p, 5, now))
		}
		if i%50 == 49 {
			ra, rb := a.tell(), b.tell()
			a.Hear(4, rb, 0)
			b.Hear(5, ra, 0)
		}
	}
	ra := one(t, a.table)
	assert.EqualValues(t, 1, ra.Restarts())
	f := a.Fate(&ra, true)
	assert.Greater(t, f.Compared, uint32(2300))
	assert.InDelta(t, float64(f.Compared)/100, float64(f.Line), 2)
}

// What another peer tells, or what is told again, or junk, changes nothing.
func TestReportsThatDoNotCount(t *testing.T) {
	a, b := newEnd(true), newEnd(false)
	var reports [][]byte
	for i := range 600 {
		now := int64(i) * gap
		p := rtp(false, 1, 7, uint16(i), 0, uint32(160*i))
		a.table.Pass(a.table.Arrive(p, 4, now))
		if i%10 != 5 {
			b.table.Pass(b.table.Arrive(p, 5, now))
		}
		if i%50 == 49 {
			a.tell()
			if r := b.tell(); len(r) > 4 {
				reports = append(reports, r)
				a.Hear(9, r, 0) // from a peer whose series it is not
			}
		}
	}
	ra := one(t, a.table)
	assert.Zero(t, a.Fate(&ra, true))
	last := reports[len(reports)-1]
	for range 3 {
		a.Hear(4, last, 0)
	}
	once := a.Fate(&ra, true)
	assert.EqualValues(t, 64, once.Compared)

	for name, p := range map[string][]byte{
		"nothing":           {},
		"another message":   {0x45, 0, 0, 1},
		"no entry":          append(NewReport(nil), 0x40),
		"cut short":         last[:len(last)-1],
		"an entry too many": append(append([]byte{}, last...), 0x80),
	} {
		assert.False(t, a.Hear(4, p, 0), name)
	}
	assert.Equal(t, once, a.Fate(&ra, true))
	assert.True(t, a.Hear(4, NewReport(nil), 0), "nothing to tell")
}

// Series that have ended are forgotten.
func TestEndedSeriesAreForgotten(t *testing.T) {
	a := newEnd(true)
	a.table.Arrive(rtp(false, 1, 7, 1, 0, 0), 4, 0)
	a.tell()
	assert.Len(t, a.series, 1)
	a.table = New(seed, 0)
	for range forgetLooks + 1 {
		a.tell()
	}
	assert.Empty(t, a.series)
}

// FuzzHear has an end hear anything of a peer whose series it has.
func FuzzHear(f *testing.F) {
	a, b := newEnd(true), newEnd(false)
	for i := range 400 {
		p := rtp(i%2 == 0, 1, 7, uint16(i), 0, uint32(160*i))
		a.table.Pass(a.table.Arrive(p, 4, int64(i)*gap))
		b.table.Pass(b.table.Arrive(p, 4, int64(i)*gap))
		if i%50 == 49 {
			a.tell()
			f.Add(b.tell())
		}
	}
	f.Fuzz(func(t *testing.T, p []byte) {
		a.Hear(4, p, 0)
		a.Hear(4, binary.BigEndian.AppendUint64(NewReport(nil), binary.BigEndian.Uint64(append(p, make([]byte, 8)...))), 0)
		records := all(a.table)
		for i := range records {
			fate := a.Fate(&records[i], true)
			require.LessOrEqual(t, fate.Line+fate.FarBox, fate.Compared)
			require.LessOrEqual(t, fate.Compared, records[i].Expected())
		}
		require.Len(t, a.series, 2)
	})
}
