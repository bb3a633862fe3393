package qos

import "time"

// QueueFlow is what one class's queue on one WAN does now, by two readings of its counters.
type QueueFlow struct {
	WAN   string    `json:"wan"`
	Class ClassName `json:"class"`
	Site  string    `json:"site"` // Local for what goes to no site
	// sent between the readings; as the kernel counts, with Ethernet headers and without the config's overhead
	Now            BitRate   `json:"now"`
	Guaranteed     BitRate   `json:"guaranteed"`
	Ceiling        BitRate   `json:"ceiling"`
	Backlog        ByteCount `json:"backlog"` // waiting
	BacklogPackets uint64    `json:"backlog_packets"`
	// how long the backlog takes at the guaranteed rate: the longest that a packet waits there; without one, at
	// what is sent now
	Wait         time.Duration `json:"wait_ns"`
	Drops        uint64        `json:"drops"` // packets, in all
	DropsASecond float64       `json:"drops_per_second"`
	// packets marked (ECN) instead of dropped, in all; absent where the queue does not mark
	Marks           *uint64 `json:"marks,omitempty"`
	Borrowed        uint64  `json:"borrowed"` // packets beyond the guaranteed rate, in all
	BorrowedASecond float64 `json:"borrowed_per_second"`
}

// Flows says what each queue of now did since before, a reading that is passed older. A queue that before
// does not have, or that was made again since, is counted from zero; with no time passed there are no rates.
func Flows(before, now []QueueStats, passed time.Duration) []QueueFlow {
	type key struct {
		wan, site string
		class     ClassName
	}
	of := func(q QueueStats) key { return key{q.WAN, q.Site, q.Class} }
	old := map[key]QueueStats{}
	for _, q := range before {
		old[of(q)] = q
	}
	out := make([]QueueFlow, 0, len(now))
	for _, q := range now {
		was, known := old[of(q)]
		if q.Sent < was.Sent || q.SentPackets < was.SentPackets {
			was = QueueStats{}
		}
		f := QueueFlow{WAN: q.WAN, Class: q.Class, Site: q.Site, Guaranteed: q.Rate, Ceiling: q.Ceil,
			Backlog: q.Backlog, BacklogPackets: q.BacklogPackets, Drops: q.Drops, Marks: q.Marks, Borrowed: q.Borrowed}
		if s := passed.Seconds(); s > 0 && (known || len(before) > 0) {
			f.Now = BitRate(float64(q.Sent-was.Sent)*8/s + 0.5)
			f.DropsASecond, f.BorrowedASecond = since(was.Drops, q.Drops)/s, since(was.Borrowed, q.Borrowed)/s
		}
		// A queue of a tree whose budgets don't fit has a token of a rate for itself, which does not tell how
		// long a packet waits.
		if rate := q.Rate; rate > maxToken {
			f.Wait = rate.Serialization(q.Backlog)
		} else {
			f.Wait = f.Now.Serialization(q.Backlog)
		}
		out = append(out, f)
	}
	return out
}

// since is by how much a counter grew. The kernel's have 32 bits; one that went back started again at zero.
func since(was, is uint64) float64 {
	if is < was {
		return float64(is)
	}
	return float64(is - was)
}
