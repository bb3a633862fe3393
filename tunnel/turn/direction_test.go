package turn

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/polltest"
)

func TestWhenADirectionIsBusy(t *testing.T) {
	type period struct {
		rounds int
		used   time.Duration
		on     bool
	}
	const ms = time.Millisecond
	var c busyMeter
	now := int64(1)
	c.update(now, 0)
	for i, w := range []period{ // of 50 ms each
		{rounds: 500, used: ms, on: false},     // 10,000/s
		{rounds: 1200, used: 5 * ms, on: true}, // 24,000/s
		{rounds: 500, used: 5 * ms, on: true},  // not few enough yet
		{rounds: 200, used: 5 * ms, on: false},
		{rounds: 200, used: 35 * ms, on: true}, // few, but long
		{rounds: 200, used: 22 * ms, on: true},
		{rounds: 200, used: 15 * ms, on: false},
	} {
		now += loadPeriod
		c.rounds = w.rounds
		c.on.Store(c.update(now, c.used+int64(w.used)))
		assert.Equal(t, w.on, c.on.Load(), "period %d", i)
	}
}

// Threads that contend for a turn have it one at a time, all of them get it, and none sleeps for good.
func TestOneThreadHasTheTurn(t *testing.T) {
	const each = 20_000
	w := &Direction{}
	busy, sum := 0, 0
	done := make(chan bool)
	for range 4 {
		go func() {
			th := &Thread{direction: w}
			for range each {
				if !th.tryTurn() && !th.takeTurn() {
					done <- false
					return
				}
				busy++
				if busy != 1 || w.Thread != th {
					busy = 1 << 30
				}
				sum++
				busy--
				th.giveTurn()
			}
			done <- true
		}()
	}
	for range 4 {
		require.True(t, <-done)
	}
	assert.Equal(t, 4*each, sum)
	assert.Zero(t, busy)
	assert.Zero(t, w.turn.word.Load()&turnTaken)
}

// A thread that is called while another has the turn does not forget it: what waits for a session would wait on.
func TestAWakeUpOutlivesAnothersTurn(t *testing.T) {
	w := &Direction{}
	for range 2 {
		th, err := newThread("test", func() int64 { return 1 }, false)
		require.NoError(t, err)
		th.direction, th.first = w, len(w.Threads) == 0
		w.Threads = append(w.Threads, th)
	}
	t.Cleanup(w.Close)
	first, other := w.Threads[0], w.Threads[1]
	require.True(t, first.takeTurn())
	went := make(chan bool)
	go func() { went <- first.Next(true) && first.Woken }()
	polltest.Require(t, other.tryTurn, 10*time.Second, time.Millisecond) // when the first sleeps
	w.Wake()
	polltest.Require(t, func() bool { return w.turn.word.Load() == turnAwaited }, 10*time.Second,
		time.Millisecond, "it has gone back to sleep")
	other.giveTurn()
	require.True(t, <-went)
}
