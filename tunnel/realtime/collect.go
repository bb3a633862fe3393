package realtime

import (
	"runtime"
	"runtime/metrics"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// The collector, in a process whose forwarding threads are pinned. Forwarding allocates nothing; handshakes, status and
// configuration do. When there is enough of that, the threads are asked to let go of their Ps: they forward on as ordinary
// goroutines, the collector runs, and they are pinned again. It runs at a quiet moment if there is one.

const (
	garbageWish  = 3 << 20 // bytes of heap above what the last collection left: collect when no packet flows
	garbageLimit = 8 << 20 // collect at once
	quietFor     = 300 * time.Millisecond
	letGo        = time.Millisecond // how often is looked whether the threads have let go
)

func (e *Engine) collect() {
	heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	read := func() uint64 {
		metrics.Read(heap) // stops nothing
		return heap[0].Value.Uint64()
	}
	e.collectNow() // what the start left
	left := read()
	t := time.NewTicker(tick)
	defer t.Stop()
	var rounds, at []uint64
	quiet := time.Now()
	for {
		select {
		case <-e.closed:
			return
		case <-t.C:
		}
		if at = e.rounds(at[:0]); !slices.Equal(at, rounds) {
			rounds, quiet = append(rounds[:0], at...), time.Now()
		}
		now := read()
		garbage := now - min(left, now)
		if garbage > garbageLimit || garbage > garbageWish && time.Since(quiet) > quietFor {
			e.collectNow()
			left = read()
		}
	}
}

// collectNow has the threads let go, collects, and has them pinned again.
func (e *Engine) collectNow() {
	threads := e.threads()
	var limit unix.Rlimit
	mayRaise := unix.Getrlimit(unix.RLIMIT_RTPRIO, &limit) == nil && limit.Cur > 0
	for _, t := range threads {
		t.mayRaise.Store(mayRaise)
		t.free.Store(true)
	}
	e.rouse()
	defer func() {
		for _, t := range threads {
			t.free.Store(false)
		}
		e.rouse()
	}()
	for _, t := range threads {
		for t.held.Load() {
			select {
			case <-e.closed: // they end, and let go so
				return
			case <-time.After(letGo):
			}
		}
	}
	runtime.GC()
	e.collected.Add(1)
}
