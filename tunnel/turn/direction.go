package turn

import (
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Direction is one direction of forwarding. It has a thread on each processor, up to maxThreads, and whatever
// arrives wakes all of them. The first that runs takes the turn, works on the direction's state alone until
// nothing is left, and gives the turn back; the others find nothing and sleep again.
//
// That costs them two microseconds a packet, and it buys low jitter. The thread on the processor that the
// packet came in by needs no interrupt from one processor to another, which is the dearest step in a virtual
// machine. And where one processor is busy in the kernel, which a kernel that is not preemptible finishes
// first, the other one forwards.
//
// While the direction is busy, the first thread works alone and may run anywhere.
type Direction struct {
	*Thread // whose turn it is
	Threads []*Thread
	turn    turn
	busy    busyMeter
}

// maxThreads is enough for an edge box: more would be woken for nothing.
const maxThreads = 4

// Options are what all threads of a direction have in common.
type Options struct {
	// Name is that of the threads (comm): by it the daemon knows which ones it makes real-time.
	Name  string
	Clock func() int64 // ns; it never goes back
	// Alone says that the process has nothing else to do: its threads are pinned. It calls Configure first, and runs
	// Collect.
	Alone bool
}

// NewDirection makes a direction's threads, which will poll fds. cpus are the processors that the process may
// use.
func NewDirection(o Options, cpus []int, fds ...int) (*Direction, error) {
	d := &Direction{}
	for i := range cpus {
		t, err := newThread(o.Name, o.Clock, o.Alone, fds...)
		if err != nil {
			d.Close()
			return nil, err
		}
		t.direction, t.first = d, i == 0
		if len(cpus) > 1 {
			t.affinity.own.Set(cpus[i])
			t.affinity.managed = o.Alone && unix.SchedGetaffinity(0, &t.affinity.all) == nil
		}
		d.Threads = append(d.Threads, t)
	}
	d.Thread = d.Threads[0]
	return d, nil
}

// Start runs loop on each thread.
func (d *Direction) Start(loop, ended func()) {
	for _, t := range d.Threads {
		t.Start(loop, ended)
	}
}

// Wake wakes the first thread, from any goroutine.
func (d *Direction) Wake() { d.Threads[0].Wake() }

// WakeAll wakes all threads, also those that wait for their turn, so that they see their flags.
func (d *Direction) WakeAll() {
	for _, t := range d.Threads {
		t.Wake()
	}
	d.turn.wakeWaiters()
}

// Close closes what threads that have ended, or were never started, were woken by.
func (d *Direction) Close() {
	for _, t := range d.Threads {
		t.Close()
	}
}

// Stop has the threads end. The caller waits until each has called what Start was given.
func (d *Direction) Stop() {
	for _, t := range d.Threads {
		t.End()
	}
	d.WakeAll()
}

// Rounds appends the threads' rounds to sum.
func (d *Direction) Rounds(sum []uint64) []uint64 {
	for _, t := range d.Threads {
		sum = append(sum, t.round.Load())
	}
	return sum
}

// Passed reports whether a thread can no longer hold what it could hold in round then: it slept, or it has gone on.
func Passed(then, now uint64) bool { return then%2 == 0 || now != then }

// UsableProcessors returns those that the process may use, at most maxThreads, evenly spread; with wanted
// above 0, at most as many.
func UsableProcessors(wanted int) ([]int, error) {
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
func (t *Thread) tryTurn() bool {
	if !t.direction.turn.word.CompareAndSwap(turnFree, turnTaken) {
		return false
	}
	t.beginRound()
	return true
}

// takeTurn waits for the turn and begins a round. It returns false when the engine ends.
func (t *Thread) takeTurn() bool {
	word := &t.direction.turn.word
	for word.Swap(turnAwaited) != turnFree {
		_, _ = t.Call(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWait, turnAwaited, 0, 0)
		if !t.checkFlags() {
			t.direction.turn.wakeWaiters() // the wake-up that ended this wait may have been meant for another thread
			return false
		}
	}
	t.beginRound()
	return true
}

func (t *Thread) beginRound() {
	t.direction.Thread = t
	t.round.Add(1)
}

// giveTurn ends a round.
func (t *Thread) giveTurn() {
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
func (d *Direction) measureBusy(now int64) {
	m := &d.busy
	m.rounds++
	if len(d.Threads) == 1 || now-m.since < loadPeriod {
		return
	}

	used := int64(0)
	for _, t := range d.Threads {
		id := t.cpuClock.Load()
		if id == 0 {
			continue
		}
		if _, errno := d.Call(unix.SYS_CLOCK_GETTIME, id, uintptr(unsafe.Pointer(&m.spec)), 0, 0, 0); errno == 0 {
			used += m.spec.Nano()
		}
	}

	was := m.on.Load()
	if is := m.update(now, used); is != was {
		m.on.Store(is)
		if !is {
			d.WakeAll()
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
func (t *Thread) setAffinity(anywhere bool) {
	a := &t.affinity
	if !a.managed || a.begun && a.anywhere == anywhere {
		return
	}
	last, next := &a.own, &a.all
	if !anywhere {
		last, next = &a.all, &a.own
	}

	if a.begun {
		n, errno := t.Call(unix.SYS_SCHED_GETAFFINITY, 0, unsafe.Sizeof(a.seen), uintptr(unsafe.Pointer(&a.seen)), 0, 0)
		if errno != 0 || n <= 0 || a.seen != *last {
			a.managed = false
			return
		}
	}
	a.begun, a.anywhere = true, anywhere
	_, errno := t.Call(unix.SYS_SCHED_SETAFFINITY, 0, unsafe.Sizeof(*next), uintptr(unsafe.Pointer(next)), 0, 0)
	if errno != 0 {
		a.managed = false // a cpuset may forbid it
	}
}
