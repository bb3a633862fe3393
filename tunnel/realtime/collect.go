package realtime

import (
	"runtime"
	"runtime/metrics"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// The garbage collector, in a process whose forwarding threads are pinned. Forwarding allocates nothing;
// handshakes, status and configuration do. When there is enough garbage, the threads are asked to release
// their Ps: they go on forwarding as ordinary goroutines, the collector runs, and they are pinned again. It
// runs at a quiet moment if there is one.

const (
	wantCollection = 3 << 20 // bytes of heap above what the last collection left: collect when no packet flows
	mustCollect    = 8 << 20 // collect at once
	quietFor       = 300 * time.Millisecond
	releasePoll    = time.Millisecond // how often to check whether the threads have released them
)

func (e *Engine) collect() {
	heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
	read := func() uint64 {
		metrics.Read(heap) // does not stop the world
		return heap[0].Value.Uint64()
	}

	e.collectNow() // what starting up left
	left := read()
	t := time.NewTicker(tick)
	defer t.Stop()
	var rounds, at []uint64
	quietSince := time.Now()
	for {
		select {
		case <-e.closed:
			return
		case <-t.C:
		}
		if at = e.rounds(at[:0]); !slices.Equal(at, rounds) {
			rounds, quietSince = append(rounds[:0], at...), time.Now()
		}
		now := read()
		garbage := now - min(left, now)
		if garbage > mustCollect || garbage > wantCollection && time.Since(quietSince) > quietFor {
			e.collectNow()
			left = read()
		}
	}
}

// collectNow has the threads release their Ps, collects, and has them pinned again.
func (e *Engine) collectNow() {
	threads := e.threads()
	var limit unix.Rlimit
	mayRaise := unix.Getrlimit(unix.RLIMIT_RTPRIO, &limit) == nil && limit.Cur > 0
	for _, t := range threads {
		t.mayRaise.Store(mayRaise)
		t.releaseP.Store(true)
	}
	e.wakeAll()
	defer func() {
		for _, t := range threads {
			t.releaseP.Store(false)
		}
		e.wakeAll()
	}()

	for _, t := range threads {
		for t.holdsP.Load() {
			select {
			case <-e.closed: // they end, and release them so
				return
			case <-time.After(releasePoll):
			}
		}
	}
	runtime.GC()
	e.collected.Add(1)
}
