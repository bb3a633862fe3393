package realtime

import (
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// direction is one direction of forwarding. It has a thread on each processor, up to maxThreads, and whatever
// arrives wakes all of them. The first that runs takes the turn, works on the direction's state alone until
// nothing is left, and gives the turn back; the others find nothing and sleep again.
//
// That costs them two microseconds a packet, and it buys low jitter. The thread on the processor that the
// packet came in by needs no interrupt from one processor to another, which is the dearest step in a virtual
// machine. And where one processor is busy in the kernel, which a kernel that is not preemptible finishes
// first, the other one forwards.
//
// While the direction is busy, the first thread works alone and may run anywhere.
type direction struct {
	*thread // whose turn it is
	threads []*thread
	turn    turn
	busy    busyMeter
}

// maxThreads is enough for an edge box: more would be woken for nothing.
const maxThreads = 4

// newDirection makes a direction's threads, which will poll fds. cpus are the processors that the process may
// use.
func newDirection(name string, e *Engine, cpus []int, fds ...int) (*direction, error) {
	d := &direction{}
	for i := range cpus {
		t, err := newThread(name, e.now, e.alone, fds...)
		if err != nil {
			d.close()
			return nil, err
		}
		t.direction, t.first = d, i == 0
		if len(cpus) > 1 {
			t.affinity.own.Set(cpus[i])
			t.affinity.managed = e.alone && unix.SchedGetaffinity(0, &t.affinity.all) == nil
		}
		d.threads = append(d.threads, t)
	}
	d.thread = d.threads[0]
	return d, nil
}

// start runs loop on each thread.
func (d *direction) start(loop, ended func()) {
	for _, t := range d.threads {
		t.start(loop, ended)
	}
}

// wake wakes the first thread, from any goroutine.
func (d *direction) wake() { d.threads[0].wake() }

// wakeAll wakes all threads, also those that wait for their turn, so that they see their flags.
func (d *direction) wakeAll() {
	for _, t := range d.threads {
		t.wake()
	}
	d.turn.wakeWaiters()
}

func (d *direction) close() {
	for _, t := range d.threads {
		t.close()
	}
}

// rounds appends the threads' rounds to sum.
func (d *direction) rounds(sum []uint64) []uint64 {
	for _, t := range d.threads {
		sum = append(sum, t.round.Load())
	}
	return sum
}

// usableProcessors returns those that the process may use, at most maxThreads, evenly spread; with wanted
// above 0, at most as many.
func usableProcessors(wanted int) ([]int, error) {
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return nil, fmt.Errorf("read the CPU affinity: %w", err)
	}
	var all []int
	for c := range len(allowed) * 64 {
		if allowed.IsSet(c) {
			all = append(all, c)
		}
	}

	n := min(len(all), maxThreads)
	if wanted > 0 {
		n = min(n, wanted)
	}
	out := make([]int, n)
	for i := range out {
		out[i] = all[i*len(all)/n]
	}
	return out, nil
}

// turn is the right to work on a direction's state: a futex(2).
type turn struct{ word atomic.Uint32 }

const (
	turnFree    = 0
	turnTaken   = 1
	turnAwaited = 2 // taken, and a thread waits for it

	turnTries = 16 // wake-ups before a thread waits for the turn

	futexWait = 0 | 128 // FUTEX_WAIT, FUTEX_WAKE; FUTEX_PRIVATE_FLAG
	futexWake = 1 | 128
)

// wakeWaiters has the threads that wait for the turn try again.
func (u *turn) wakeWaiters() {
	const everybody = 1 << 30
	_, _, _ = unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&u.word)), futexWake, everybody, 0, 0, 0)
}

// tryTurn begins a round if the turn is free.
func (t *thread) tryTurn() bool {
	if !t.direction.turn.word.CompareAndSwap(turnFree, turnTaken) {
		return false
	}
	t.beginRound()
	return true
}

// takeTurn waits for the turn and begins a round. It returns false when the engine ends.
func (t *thread) takeTurn() bool {
	word := &t.direction.turn.word
	for word.Swap(turnAwaited) != turnFree {
		_, _ = t.call(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWait, turnAwaited, 0, 0)
		if !t.checkFlags() {
			t.direction.turn.wakeWaiters() // the wake-up that ended this wait may have been meant for another thread
			return false
		}
	}
	t.beginRound()
	return true
}

func (t *thread) beginRound() {
	t.direction.thread = t
	t.round.Add(1)
}

// giveTurn ends a round.
func (t *thread) giveTurn() {
	t.round.Add(1)
	if t.direction.turn.word.Swap(turnFree) == turnAwaited {
		t.direction.turn.wakeWaiters()
	}
}

// busyMeter decides when a direction carries so much that it has one thread alone. The others, woken for
// nothing, would take as much of a processor again, and between them more than threadLoad lets one thread
// have.
type busyMeter struct {
	since  int64
	rounds int
	used   int64         // CPU time of the threads, ns
	spec   unix.Timespec // memory for a system call
	on     atomic.Bool
}

// A direction becomes busy above busyRounds rounds a second of its threads, and is no longer busy below
// calmRounds (two threads make two rounds for each packet); or by the shares of a processor at which a thread
// lowers its priority and raises it again.
const (
	busyRounds = 20_000
	calmRounds = 5_000
)

// update reports whether the direction is busy after the period that now ends.
func (m *busyMeter) update(now, used int64) bool {
	elapsed := float64(now - m.since)
	rate, share := float64(m.rounds)*float64(time.Second)/elapsed, float64(used-m.used)/elapsed
	m.since, m.used, m.rounds = now, used, 0
	if m.on.Load() {
		return rate > calmRounds || share > lowLoad
	}
	return rate > busyRounds || share > highLoad
}

// measureBusy counts a round of the thread that has the turn, and wakes the others when the direction is no
// longer busy.
func (d *direction) measureBusy(now int64) {
	m := &d.busy
	m.rounds++
	if len(d.threads) == 1 || now-m.since < loadPeriod {
		return
	}

	used := int64(0)
	for _, t := range d.threads {
		id := t.cpuClock.Load()
		if id == 0 {
			continue
		}
		if _, errno := d.call(unix.SYS_CLOCK_GETTIME, id, uintptr(unsafe.Pointer(&m.spec)), 0, 0, 0); errno == 0 {
			used += m.spec.Nano()
		}
	}

	was := m.on.Load()
	if is := m.update(now, used); is != was {
		m.on.Store(is)
		if !is {
			d.wakeAll()
		}
	}
}

// affinity is where a thread runs: on its own processor, or on all of them while it works alone. What
// somebody else has set in the meantime (taskset) stays.
type affinity struct {
	managed  bool // by the thread itself
	anywhere bool
	own, all unix.CPUSet
	seen     unix.CPUSet // memory for a system call
	begun    bool
}

// setAffinity moves the calling thread to its own processor, or lets it run anywhere.
func (t *thread) setAffinity(anywhere bool) {
	a := &t.affinity
	if !a.managed || a.begun && a.anywhere == anywhere {
		return
	}
	last, next := &a.own, &a.all
	if !anywhere {
		last, next = &a.all, &a.own
	}

	if a.begun {
		n, errno := t.call(unix.SYS_SCHED_GETAFFINITY, 0, unsafe.Sizeof(a.seen), uintptr(unsafe.Pointer(&a.seen)), 0, 0)
		if errno != 0 || n <= 0 || a.seen != *last {
			a.managed = false
			return
		}
	}
	a.begun, a.anywhere = true, anywhere
	_, errno := t.call(unix.SYS_SCHED_SETAFFINITY, 0, unsafe.Sizeof(*next), uintptr(unsafe.Pointer(next)), 0, 0)
	if errno != 0 {
		a.managed = false // a cpuset may forbid it
	}
}
