package realtime

import (
	"fmt"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// way is one direction of forwarding. It has a thread on each processor, up to threadsMost, and all of them are woken by what
// arrives: the first that runs takes the turn, works on the way's state alone until nothing is left, and gives the turn back; the others find
// nothing and sleep again. That costs them two microseconds a packet, and buys what a call is after. The thread on the processor that the packet
// came in by needs no interrupt from one processor to another, the dearest step there is in a virtual machine. And where one
// processor is busy in the kernel, which a kernel that is not preemptible finishes first, the other one forwards.
//
// Where much flows (crowded) the first thread is alone and may run anywhere.
type way struct {
	*thread // whose turn it is
	threads []*thread
	turn    turn
	crowd   crowd
}

// threadsMost is enough for an edge box; more would be woken for nothing.
const threadsMost = 4

// newWay makes a way's threads, which will poll fds. cpus are the processors that the process may use.
func newWay(name string, e *Engine, cpus []int, fds ...int) (*way, error) {
	w := &way{}
	for i := range cpus {
		t, err := newThread(name, e.now, e.alone, fds...)
		if err != nil {
			w.close()
			return nil, err
		}
		t.way, t.first = w, i == 0
		if len(cpus) > 1 {
			t.affinity.own.Set(cpus[i])
			t.affinity.set = e.alone && unix.SchedGetaffinity(0, &t.affinity.all) == nil
		}
		w.threads = append(w.threads, t)
	}
	w.thread = w.threads[0]
	return w, nil
}

// start runs loop on each thread.
func (w *way) start(loop, ended func()) {
	for _, t := range w.threads {
		t.start(loop, ended)
	}
}

// ring wakes the first thread, from any goroutine.
func (w *way) ring() { w.threads[0].ring() }

// rouse wakes all threads of a way, also those that wait for their turn, so that they see what they are asked.
func (w *way) rouse() {
	for _, t := range w.threads {
		t.ring()
	}
	w.turn.wake()
}

func (w *way) close() {
	for _, t := range w.threads {
		t.close()
	}
}

// rounds adds to sum what the threads' rounds are.
func (w *way) rounds(sum []uint64) []uint64 {
	for _, t := range w.threads {
		sum = append(sum, t.round.Load())
	}
	return sum
}

// processors are those that the process may use, threadsMost of them, evenly spread, or as many as are wanted.
func processors(wanted int) ([]int, error) {
	var may unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		return nil, fmt.Errorf("ask for the processors: %w", err)
	}
	var all []int
	for c := range len(may) * 64 {
		if may.IsSet(c) {
			all = append(all, c)
		}
	}
	n := min(len(all), threadsMost)
	if wanted > 0 {
		n = min(n, wanted)
	}
	out := make([]int, n)
	for i := range out {
		out[i] = all[i*len(all)/n]
	}
	return out, nil
}

// turn is the right to work on a way's state: 0 free, 1 taken, 2 taken and awaited (futex(2)).
type turn struct{ word atomic.Uint32 }

const (
	turnFree    = 0
	turnTaken   = 1
	turnAwaited = 2

	turnTries = 16 // looks before a thread stands in line

	futexWait = 0 | 128 // FUTEX_WAIT, FUTEX_WAKE; FUTEX_PRIVATE_FLAG
	futexWake = 1 | 128
)

// wake has those who wait look again.
func (u *turn) wake() {
	const everybody = 1 << 30
	_, _, _ = unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&u.word)), futexWake, everybody, 0, 0, 0)
}

// tryTurn begins a round if nobody has the turn.
func (t *thread) tryTurn() bool {
	if !t.way.turn.word.CompareAndSwap(turnFree, turnTaken) {
		return false
	}
	t.begin()
	return true
}

// takeTurn waits for the turn and begins a round. False: the engine ends.
func (t *thread) takeTurn() bool {
	word := &t.way.turn.word
	for word.Swap(turnAwaited) != turnFree {
		_, _ = t.call(unix.SYS_FUTEX, uintptr(unsafe.Pointer(word)), futexWait, turnAwaited, 0, 0)
		if !t.heed() {
			t.way.turn.wake() // those who wait, too: this one's word may have been the awakening for another
			return false
		}
	}
	t.begin()
	return true
}

func (t *thread) begin() {
	t.way.thread = t
	t.round.Add(1)
}

// giveTurn ends a round.
func (t *thread) giveTurn() {
	t.round.Add(1)
	if t.way.turn.word.Swap(turnFree) == turnAwaited {
		t.way.turn.wake()
	}
}

// crowd sees to it that a way on which much flows has one thread: the others, woken for nothing, would take as much of a
// processor again, and between them more than load lets one have.
type crowd struct {
	since  int64
	rounds int
	used   int64         // CPU time of the threads, ns
	spec   unix.Timespec // memory for a system call
	on     atomic.Bool
}

// Rounds of a way's threads a second at which it gets crowded, and is no more: two threads go two rounds for each packet. Or the
// shares of a processor at which a thread goes down and comes up again.
const (
	crowdHigh = 20_000
	crowdLow  = 5_000
)

// looksAt says whether the way is crowded after the window that now ends.
func (c *crowd) looksAt(now, used int64) bool {
	d := float64(now - c.since)
	rate, share := float64(c.rounds)*float64(time.Second)/d, float64(used-c.used)/d
	c.since, c.used, c.rounds = now, used, 0
	if c.on.Load() {
		return rate > crowdLow || share > loadLow
	}
	return rate > crowdHigh || share > loadHigh
}

// watchCrowd counts a round of the one that has the turn, and calls the others when the way is crowded no more.
func (w *way) watchCrowd(now int64) {
	c := &w.crowd
	c.rounds++
	if len(w.threads) == 1 || now-c.since < loadWindow {
		return
	}
	used := int64(0)
	for _, t := range w.threads {
		id := t.cpuClock.Load()
		if id == 0 {
			continue
		}
		if _, errno := w.call(unix.SYS_CLOCK_GETTIME, id, uintptr(unsafe.Pointer(&c.spec)), 0, 0, 0); errno == 0 {
			used += c.spec.Nano()
		}
	}
	was := c.on.Load()
	if is := c.looksAt(now, used); is != was {
		c.on.Store(is)
		if !is {
			w.rouse()
		}
	}
}

// affinity is where a thread runs: on its own processor, or on all of them while it works alone. What somebody else has set meanwhile (taskset) stays.
type affinity struct {
	set      bool // it is ours to set
	roams    bool
	own, all unix.CPUSet
	was      unix.CPUSet // memory for a system call
	begun    bool
}

// settle puts the calling thread where it belongs.
func (t *thread) settle(roam bool) {
	a := &t.affinity
	if !a.set || a.begun && a.roams == roam {
		return
	}
	last, next := &a.own, &a.all
	if !roam {
		last, next = &a.all, &a.own
	}
	if a.begun {
		n, errno := t.call(unix.SYS_SCHED_GETAFFINITY, 0, unsafe.Sizeof(a.was), uintptr(unsafe.Pointer(&a.was)), 0, 0)
		if errno != 0 || n <= 0 || a.was != *last {
			a.set = false
			return
		}
	}
	a.begun, a.roams = true, roam
	if _, errno := t.call(unix.SYS_SCHED_SETAFFINITY, 0, unsafe.Sizeof(*next), uintptr(unsafe.Pointer(next)), 0, 0); errno != 0 {
		a.set = false // a cpuset may forbid it
	}
}
