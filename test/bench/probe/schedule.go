package probe

import (
	"fmt"
	"math/rand/v2"
	"time"
)

// Shape is the voice that is sent on every path: by default G.711 in packets of 20 ms.
type Shape struct {
	Streams  int           `json:"streams"`
	Interval time.Duration `json:"interval"` // between two packets of a stream
	Size     int           `json:"size"`     // UDP payload in bytes, RTP header included
	Lead     time.Duration `json:"lead"`     // sent before the measured part
	Length   time.Duration `json:"length"`   // of the measured part
	Seed     uint64        `json:"seed"`     // of the order of the paths
	Paths    int           `json:"paths"`
}

// Limits of a shape. Below 100 µs the sender itself would be measured.
const (
	MinSize     = headerSize
	MaxSize     = 1200
	MaxStreams  = 1000
	MinInterval = time.Millisecond
	minGap      = 20 * time.Microsecond
)

func (s Shape) check() error {
	switch {
	case s.Streams < 1 || s.Streams > MaxStreams:
		return fmt.Errorf("%d streams (allowed: 1-%d)", s.Streams, MaxStreams)
	case s.Size < MinSize || s.Size > MaxSize:
		return fmt.Errorf("packets of %d bytes (allowed: %d-%d)", s.Size, MinSize, MaxSize)
	case s.Interval < MinInterval || s.Interval > time.Second:
		return fmt.Errorf("a packet every %s (allowed: %s-1s)", s.Interval, MinInterval)
	case s.Length <= 0:
		return fmt.Errorf("a run of %s", s.Length)
	}
	return nil
}

// Check returns what is wrong with a shape on so many paths.
func (s Shape) Check(paths int) error {
	if err := s.check(); err != nil {
		return err
	}
	if gap := s.Interval / time.Duration(s.Streams*paths); gap < minGap {
		return fmt.Errorf(
			"%d streams on %d paths every %s leave %s between two packets (allowed: %s and more; use fewer streams)",
			s.Streams,
			paths,
			s.Interval,
			gap,
			minGap,
		)
	}
	return nil
}

// slot is the time of one packet.
type slot struct {
	at     time.Duration // since the start
	path   uint8
	stream uint16
	seq    uint32
}

// PerStream is the number of packets of a stream, including the lead.
func (s Shape) PerStream() int { return int((s.Lead + s.Length + s.Interval - 1) / s.Interval) }

// Total is the number of packets in one direction, on all paths.
func (s Shape) Total() int { return s.PerStream() * s.Streams * s.Paths }

// slots is the whole schedule. Streams are spread evenly over the interval, and the paths evenly over the
// turn of a stream, so that no two packets leave together; the order of the paths changes every turn, so that
// none always finds the caches warm.
func (s Shape) slots() []slot {
	order := rand.New(rand.NewPCG(s.Seed, 0))
	out := make([]slot, 0, s.Total())
	gap := s.Interval / time.Duration(s.Streams*s.Paths)
	for seq := range s.PerStream() {
		for stream := range s.Streams {
			turn := time.Duration(seq)*s.Interval + time.Duration(stream)*s.Interval/time.Duration(s.Streams)
			for place, path := range order.Perm(s.Paths) {
				out = append(
					out,
					slot{
						at:     turn + time.Duration(place)*gap,
						path:   uint8(path),
						stream: uint16(stream),
						seq:    uint32(seq),
					},
				)
			}
		}
	}
	return out
}
