package calls

import (
	"context"
	"slices"
	"sync"
	"time"

	"ringway/qos"
	"ringway/tunnel"
)

const (
	// queuesEvery is how often the counters of the WANs' queues are read while there are calls.
	queuesEvery = time.Second
	// queuesRest is how many times as long as a reading the time to the next one is at least: those of 500 sites take
	// some 40 ms of CPU, and media needs it, too.
	queuesRest = 50
	// maxQueueGap is how far apart two readings are at most whose difference says what was dropped when.
	maxQueueGap = 5 * queuesEvery
	// queueSecondsKept is for how long it is known: the engine tells of losses some seconds later, and is asked every
	// measureEvery.
	queueSecondsKept = 120
	// maxLossSeconds bounds of how many seconds a series remembers what queues dropped: then it is at least that much.
	maxLossSeconds = 1024
)

// queueDrops is what the queues of the WANs dropped lately, second by second.
type queueDrops struct {
	read func() ([]qos.QueueStats, error) // nil: nothing is known

	mu      sync.Mutex // guards what follows
	last    map[queueKey]uint64
	at      time.Time // of last; zero: none
	seconds []queueSecond
	number  uint64 // of the latest second
}

// queueKey is one queue.
type queueKey struct {
	wan, site string
	class     qos.ClassName
}

// queueSecond is what was dropped between two readings, by class. It does not change once it is there.
type queueSecond struct {
	number   uint64
	from, to time.Time
	drops    map[string]uint64
}

// run reads the counters while there are calls, until ctx ends.
func (q *queueDrops) run(ctx context.Context, busy func() bool) {
	next := time.NewTimer(queuesEvery)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-next.C:
			began := time.Now()
			q.sample(began, busy())
			took := time.Since(began)
			next.Reset(max(queuesEvery-took, queuesRest*took))
		}
	}
}

// sample reads the counters, or, if there are no calls, forgets the latest reading.
func (q *queueDrops) sample(now time.Time, busy bool) {
	if q.read == nil {
		return
	}
	var stats []qos.QueueStats
	if busy {
		var err error
		if stats, err = q.read(); err != nil {
			stats = nil // these seconds are not known
		}
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	was, since := q.last, q.at
	q.last, q.at = nil, time.Time{}
	if len(stats) == 0 {
		return
	}
	q.last, q.at = make(map[queueKey]uint64, len(stats)), now
	drops := map[string]uint64{}
	for _, s := range stats {
		k := queueKey{s.WAN, s.Site, s.Class}
		before := was[k]
		if s.Drops < before { // it was made again
			before = 0
		}
		q.last[k] = s.Drops
		drops[string(s.Class)] += s.Drops - before
	}
	if passed := now.Sub(since); was == nil || passed <= 0 || passed > maxQueueGap {
		return
	}
	q.number++
	q.seconds = append(q.seconds, queueSecond{q.number, since, now, drops})
	if n := len(q.seconds) - queueSecondsKept; n > 0 {
		q.seconds = slices.Delete(q.seconds, 0, n)
	}
}

// between are the seconds that have a part in a time.
func (q *queueDrops) between(from, to time.Time) (found []queueSecond) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, s := range q.seconds {
		if s.from.Before(to) && s.to.After(from) {
			found = append(found, s)
		}
	}
	return found
}

// lineLosses is what queues dropped while a series lost packets on the line.
type lineLosses struct {
	until   time.Time // the latest loss that was looked at
	seconds map[uint64]queueSecond
}

// take looks at losses that are new. Their times are the engine's clock read by another one: they differ a little each
// time, far less than the second that two of them are apart.
func (l *lineLosses) take(at []time.Time, q *queueDrops) {
	for _, t := range at {
		if !t.After(l.until.Add(queuesEvery / 2)) {
			continue
		}
		l.until = t
		for _, s := range q.between(t.Add(-tunnel.LineSpan), t) {
			if l.seconds == nil {
				l.seconds = map[uint64]queueSecond{}
			}
			if len(l.seconds) < maxLossSeconds {
				l.seconds[s.number] = s
			}
		}
	}
}

// wanDrops is what queues dropped while one of the series lost packets on the line, by class; nil: it is not known.
func wanDrops(list []*measured) map[string]uint64 {
	seen := map[uint64]bool{} // a second of several series counts once
	var drops map[string]uint64
	for _, x := range list {
		for number, s := range x.losses.seconds {
			if seen[number] {
				continue
			}
			seen[number] = true
			if drops == nil {
				drops = map[string]uint64{}
			}
			for class, n := range s.drops {
				drops[class] += n
			}
		}
	}
	return drops
}
