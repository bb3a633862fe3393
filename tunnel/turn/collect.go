package turn

import (
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// The garbage collector, in a process whose forwarding threads are pinned. Forwarding allocates nothing;
// handshakes, status and configuration do. When there is enough garbage, the threads are asked to release
// their Ps: they go on forwarding as ordinary goroutines, the collector runs, and they are pinned again. It
// runs at a quiet moment if there is one.

const (
	wantCollection = 3 << 20 // bytes of heap above what the last collection left: collect when no packet flows
	mustCollect    = 8 << 20 // collect at once; Collector.Must
	oldCollection  = 1 << 20 // collect when the last collection was collectEvery ago: what nobody adds to would stay
	collectEvery   = 10 * time.Second
	quietFor       = 300 * time.Millisecond
	lookEvery      = 100 * time.Millisecond
	releasePoll    = time.Millisecond // how often to check whether the threads have released them
)

// Collector runs the collector of a process whose directions are pinned.
type Collector struct {
	Directions []*Direction
	Closed     <-chan struct{} // when the directions end
	// Must is how many bytes above what the last collection left have it run at once; 0: 8 MiB. Less memory is held with
	// less, and the threads are not pinned more often.
	Must      uint64
	collected atomic.Uint64
}

// Configure sets what a process with pinned threads needs.
func Configure(threads int) {
	const others = 2 // for handshakes, timers and the control socket
	runtime.GOMAXPROCS(threads + others)
	debug.SetMemoryLimit(math.MaxInt64) // the collector runs when Collector says so, and only then
	debug.SetGCPercent(-1)              // waits for a collection that is running
	runtime.GC()
}

// Collections returns how often it ran.
func (c *Collector) Collections() uint64 { return c.collected.Load() }

// Run collects until the directions end.
func (c *Collector) Run() {
	heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	read := func() uint64 {
		metrics.Read(heap) // does not stop the world
		return heap[0].Value.Uint64()
	}

	must := c.Must
	if must == 0 {
		must = mustCollect
	}
	c.collectNow() // what starting up left
	left, collected := read(), time.Now()
	t := time.NewTicker(lookEvery)
	defer t.Stop()
	var rounds, at []uint64
	quietSince := time.Now()
	for {
		select {
		case <-c.Closed:
			return
		case <-t.C:
		}
		if at = c.rounds(at[:0]); !slices.Equal(at, rounds) {
			rounds, quietSince = append(rounds[:0], at...), time.Now()
		}
		now := read()
		garbage := now - min(left, now)
		if garbage > must || garbage > wantCollection && time.Since(quietSince) > quietFor ||
			garbage > oldCollection && time.Since(collected) > collectEvery {
			c.collectNow()
			left, collected = read(), time.Now()
		}
	}
}

// collectNow has the threads release their Ps, collects, and has them pinned again.
func (c *Collector) collectNow() {
	threads := c.threads()
	var limit unix.Rlimit
	mayRaise := unix.Getrlimit(unix.RLIMIT_RTPRIO, &limit) == nil && limit.Cur > 0
	for _, t := range threads {
		t.mayRaise.Store(mayRaise)
		t.releaseP.Store(true)
	}
	c.wakeAll()
	defer func() {
		for _, t := range threads {
			t.releaseP.Store(false)
		}
		c.wakeAll()
	}()

	for _, t := range threads {
		for t.holdsP.Load() {
			select {
			case <-c.Closed: // they end, and release them so
				return
			case <-time.After(releasePoll):
			}
		}
	}
	// Without a goal for the heap (SetGCPercent) the runtime gives nothing back to the kernel by itself: what a burst of
	// new calls or peers took would stay.
	debug.FreeOSMemory()
	c.collected.Add(1)
}

func (c *Collector) threads() (all []*Thread) {
	for _, d := range c.Directions {
		all = append(all, d.Threads...)
	}
	return all
}

func (c *Collector) rounds(sum []uint64) []uint64 {
	for _, d := range c.Directions {
		sum = d.Rounds(sum)
	}
	return sum
}

func (c *Collector) wakeAll() {
	for _, d := range c.Directions {
		d.WakeAll()
	}
}
