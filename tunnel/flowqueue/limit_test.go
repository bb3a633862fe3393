package flowqueue

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// driver sends what it is given at a rate, and is looked at after a latency, with more waiting all the time:
// what the limit is made for.
func driver(l *Limit, start time.Duration, perMs int, latency, length time.Duration,
	size int) (idle time.Duration, most int) {
	now, underWay := start, 0
	for ; now < start+length; now += latency {
		l.Look(now, underWay)
		for underWay <= l.Now() {
			l.Give(size)
			underWay += size
		}
		most = max(most, underWay)
		sends := int(latency/time.Millisecond) * perMs
		if sends > underWay {
			idle += latency * time.Duration(sends-underWay) / time.Duration(sends)
		}
		underWay = max(underWay-sends, 0)
	}
	return idle, most
}

func TestTheLimitFindsWhatKeepsTheLineBusy(t *testing.T) {
	l := NewLimit(1500, 1<<20, time.Second)
	driver(l, 0, 1000, 5*ms, time.Second, 1500) // it learns
	idle, most := driver(l, time.Second, 1000, 5*ms, 20*time.Second, 1500)
	assert.LessOrEqual(t, idle, 200*ms, "1 %% of the time")
	assert.LessOrEqual(t, most, 4*5000, "and no more than a few times what leaves between two looks")
}

// When the line gets faster, or its feeder slower, the limit follows, and after a while it goes back.
func TestTheLimitShrinksAgain(t *testing.T) {
	l := NewLimit(1500, 1<<20, time.Second)
	driver(l, 0, 10000, 10*ms, 5*time.Second, 1500)
	was := l.Now()
	driver(l, 5*time.Second, 1000, ms, 60*time.Second, 1500)
	assert.Less(t, l.Now(), was/10)
}

func TestTheLimitStaysWithinItsBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		least, most := rapid.IntRange(1, 5000).Draw(t, "least"), rapid.IntRange(1, 50000).Draw(t, "most")
		l := NewLimit(least, most, time.Second)
		now, underWay := time.Duration(0), 0
		for range rapid.IntRange(1, 300).Draw(t, "steps") {
			now += time.Duration(rapid.IntRange(0, 400).Draw(t, "ms")) * ms
			if rapid.Bool().Draw(t, "give") {
				n := rapid.IntRange(1, 70000).Draw(t, "n")
				l.Give(n)
				underWay += n
			}
			underWay -= rapid.IntRange(0, underWay).Draw(t, "left")
			l.Look(now, underWay+rapid.IntRange(-3000, 3000).Draw(t, "wrong by")) // truesize is an estimate
			require.GreaterOrEqual(t, l.Now(), min(least, max(least, most)))
			require.LessOrEqual(t, l.Now(), max(least, most))
		}
	})
}

func TestNewBoundsHoldAtOnce(t *testing.T) {
	l := NewLimit(100, 1000, time.Second)
	l.Set(5000, 9000)
	assert.Equal(t, 5000, l.Now())
	l.Set(10, 20)
	assert.Equal(t, 20, l.Now())
}
