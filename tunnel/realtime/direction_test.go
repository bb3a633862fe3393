package realtime

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

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
	w := &direction{}
	busy, sum := 0, 0
	done := make(chan bool)
	for range 4 {
		go func() {
			th := &thread{direction: w}
			for range each {
				if !th.tryTurn() && !th.takeTurn() {
					done <- false
					return
				}
				busy++
				if busy != 1 || w.thread != th {
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
	w := &direction{}
	for range 2 {
		th, err := newThread("test", func() int64 { return 1 }, false)
		require.NoError(t, err)
		th.direction, th.first = w, len(w.threads) == 0
		w.threads = append(w.threads, th)
	}
	t.Cleanup(w.close)
	first, other := w.threads[0], w.threads[1]
	require.True(t, first.takeTurn())
	went := make(chan bool)
	go func() { went <- first.next(true) && first.woken }()
	polltest.Require(t, other.tryTurn, 10*time.Second, time.Millisecond) // when the first sleeps
	w.wake()
	polltest.Require(t, func() bool { return w.turn.word.Load() == turnAwaited }, 10*time.Second,
		time.Millisecond, "it has gone back to sleep")
	other.giveTurn()
	require.True(t, <-went)
}

// Every processor has a thread of each direction, which stays there while there is little to forward.
func TestAThreadOnEachProcessor(t *testing.T) {
	cpus, err := usableProcessors(0)
	require.NoError(t, err)
	if len(cpus) < 2 {
		t.Skip("one processor")
	}
	a, b := wire(t)
	a.Open(0, 0, wide)
	b.Open(0, 0, wide)
	pa := a.Spawn(wide, a.Peer(b, "192.0.2.2:51820"))
	b.Spawn(wide, b.Peer(a, "192.0.2.1:51820"))
	require.NoError(t, a.Ping("10.66.0.2"))
	for _, name := range []string{threadIn, threadOut} {
		var at []int
		for _, tid := range pa.Threads(name) {
			var set unix.CPUSet
			require.NoError(t, unix.SchedGetaffinity(tid, &set))
			require.Equal(t, 1, set.Count(), name)
			for _, c := range cpus {
				if set.IsSet(c) {
					at = append(at, c)
				}
			}
		}
		assert.ElementsMatch(t, cpus, at, name)
	}
}

// Whoever binds the threads elsewhere has the last word, also when a flood has had them roam.
func TestAffinityThatSomebodySetStays(t *testing.T) {
	cpus, err := usableProcessors(0)
	require.NoError(t, err)
	if len(cpus) < 2 {
		t.Skip("one processor")
	}
	a, b := wire(t)
	a.Open(0, 0, wide)
	b.Open(0, 0, wide)
	a.Spawn(wide, a.Peer(b, "192.0.2.2:51820"))
	pb := b.Spawn(wide, b.Peer(a, "192.0.2.1:51820"))
	require.NoError(t, a.Ping("10.66.0.2"))
	var only unix.CPUSet
	only.Set(cpus[len(cpus)-1])
	for _, tid := range pb.Threads(threadIn) {
		require.NoError(t, unix.SchedSetaffinity(tid, &only))
	}
	junk := make([]byte, 64)
	binary.LittleEndian.PutUint32(junk, typeTransport)
	stop := a.Flood("192.0.2.2:51820", 0, func() []byte { return junk })
	before := pb.Status().Drops["no_such_session"]
	polltest.Require(t, func() bool { return pb.Status().Drops["no_such_session"] > before+100_000 },
		20*time.Second, 10*time.Millisecond)
	stop()
	for _, tid := range pb.Threads(threadIn) {
		var set unix.CPUSet
		require.NoError(t, unix.SchedGetaffinity(tid, &set))
		assert.Equal(t, only, set)
	}
	require.NoError(t, a.Ping("10.66.0.2"))
}
