package flowqueue

import (
	"testing"
	"time"

	"ringway/units"

	"github.com/stretchr/testify/assert"
)

// line is what Pace is made for: a shaper that lets a packet go when the one before is through, and has a
// burst of half a millisecond. lag is how long a packet takes from its choice to the shaper. It returns how
// long packets stood behind the queues on the average, and how much of the time nothing was sent.
func line(p *Pace, rate units.BitRate, size, packets int, lag func(i int) time.Duration) (stood time.Duration,
	idle float64) {
	const burst = 500 * time.Microsecond
	wire := time.Duration(uint64(size) * 8 * uint64(time.Second) / uint64(rate))
	var now, free, first, sum, lost time.Duration
	for i := range packets {
		now += max(p.Early(now), 0)
		p.Give(now, size, i > 0)
		leaves := max(now+lag(i), free)
		if i == 0 {
			first = leaves
		} else if late := leaves - free - burst; late > 0 {
			lost += late
		}
		sum += leaves - now
		free = max(free, leaves-burst) + wire
		queued := now + lag(i)
		now = leaves
		p.Left(now, queued)
	}
	return sum / time.Duration(packets), float64(lost) / float64(free-first)
}

func prompt(int) time.Duration { return 150 * time.Microsecond }

// late is prompt but for every n-th.
func late(n int, by time.Duration) func(i int) time.Duration {
	return func(i int) time.Duration {
		if i%n == 0 {
			return by
		}
		return prompt(i)
	}
}

func TestAPacketStandsBehindTheQueuesNoLongerThanItHasTo(t *testing.T) {
	for _, c := range []struct {
		rate units.BitRate
		size int
	}{{1e6, 1350}, {2e6, 1500}} {
		p := &Pace{}
		p.Set(c.rate)
		stood, idle := line(p, c.rate, c.size, 2000, prompt)
		assert.Less(t, stood, 2100*time.Microsecond, "%d bit/s", c.rate)
		assert.Zero(t, idle, "%d bit/s", c.rate)
	}
}

// Where packets are slow to come, they are chosen sooner; and later again when it is over.
func TestASlowMachineChoosesSooner(t *testing.T) {
	p := &Pace{}
	p.Set(2e6)
	stood, idle := line(p, 2e6, 1500, 2000, late(10, 5*ms))
	assert.Greater(t, stood, 4*time.Millisecond)
	assert.Less(t, idle, 0.01)
	line(p, 2e6, 1500, 1000, prompt)
	stood, _ = line(p, 2e6, 1500, 1000, prompt)
	assert.Less(t, stood, 2100*time.Microsecond)
}

// One packet in a hundred that is late, for whatever reason, costs the others nothing.
func TestAStrayIsForgotten(t *testing.T) {
	p := &Pace{}
	p.Set(2e6)
	stood, _ := line(p, 2e6, 1500, 5000, late(100, 10*ms))
	assert.Less(t, stood, 2500*time.Microsecond)
}

func TestOnAFastLineNothingWaits(t *testing.T) {
	for _, rate := range []units.BitRate{0, 10e6, 1e9} {
		p := &Pace{}
		p.Set(rate)
		for now := time.Duration(0); now < time.Second; now += ms {
			p.Give(now, 1500, false)
			p.Left(now, now)
			assert.LessOrEqual(t, p.Early(now), time.Duration(0), "%d bit/s", rate)
		}
	}
}

// A short packet after a long one: what counts is the one that left last.
func TestNothingWaitsForAShortPacket(t *testing.T) {
	p := &Pace{}
	p.Set(2e6)
	p.Give(0, 1500, false)
	p.Left(ms, 0)
	assert.Equal(t, 5*ms, p.Early(0), "6 ms on the line since 1 ms, less 2 ms")
	p.Left(2*ms, 0) // nothing was given since
	assert.Equal(t, 3*ms, p.Early(2*ms))
	p.Give(5*ms, 150, false)
	p.Left(7*ms, 5*ms)
	assert.Negative(t, p.Early(7*ms))
}
