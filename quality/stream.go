package quality

import (
	"slices"
	"time"
)

// Limits of RFC 3550 appendix A.1: a sequence number further ahead or behind than this is no gap and
// no late packet but a source that started again.
const (
	maxDropout  = 3000
	maxMisorder = 100
)

// Sequence extends RTP's 16-bit sequence numbers: the upper part counts the wraps (RFC 3550 appendix A.1).
type Sequence struct {
	highest int64
	started bool
}

// Extend gives the extended number of the packet that carries seq. restarted says that the source began
// anew (a jump that neither loss nor reordering explains): numbers go on above all earlier ones.
func (s *Sequence) Extend(seq uint16) (extended int64, restarted bool) {
	if !s.started {
		s.started, s.highest = true, int64(seq)
		return s.highest, false
	}
	delta := int64(int16(seq - uint16(s.highest)))
	if delta > maxDropout || delta < -maxMisorder {
		// The next cycle's place of seq, so that the lower 16 bits stay what the packet carries.
		s.highest = (s.highest>>16+2)<<16 | int64(seq)
		return s.highest, true
	}
	extended = s.highest + delta
	s.highest = max(s.highest, extended)
	return extended, false
}

// Sighting is one packet seen at one place: which stream it says it belongs to, where in it, and when.
type Sighting[K comparable] struct {
	Key   K
	Seq   uint16
	Media uint32 // RTP timestamp; with Seq it tells a packet from its namesake 65,536 packets or one replay later
	At    Timestamp
}

// Packet is what became of one packet that was sent.
type Packet struct {
	Seq      int64 // extended
	Sent     Timestamp
	Received Timestamp // meaningless when Lost
	Lost     bool
}

// Delay is the one-way delay (RFC 7679) of a packet that arrived.
func (p Packet) Delay() time.Duration { return p.Received.Sub(p.Sent) }

// Stream is one RTP stream from its sender's interface to its receiver's.
type Stream[K comparable] struct {
	Key        K
	Packets    []Packet // in order of sending
	Duplicates int      // arrivals beyond the first of a packet
	Reordered  int      // arrivals after a packet that was sent later (RFC 4737 section 3, Type-P-Reordered)
	arrivals   []int    // indices of Packets in order of arrival
}

// MatchOptions bound the search.
type MatchOptions struct {
	// MaxDelay: a packet not seen after this is lost (RFC 7680 wants the threshold said). Default 4 s: above any
	// buffer in the lab, below the 8 s after which SIPp's recording repeats its numbers.
	MaxDelay time.Duration
	// From and Until keep only packets sent in [From, Until); zero is no bound. Set Until a MaxDelay before the
	// capture's end where senders go on past it, else what is still under way counts as lost.
	From, Until Timestamp
}

// Match pairs what left the sender with what reached the receiver. Both lists are in order of time.
// A stream is a key's run of sequence numbers: where a source starts again (the next call on a port) a
// new stream begins. unmatched counts arrivals whose sending was not seen: not zero means that the sender's
// capture began late or dropped, and that loss figures are wrong.
func Match[K comparable](sent, received []Sighting[K], o MatchOptions) (streams []Stream[K], unmatched int) {
	if o.MaxDelay == 0 {
		o.MaxDelay = 4 * time.Second
	}
	type name struct {
		key   K
		seq   uint16
		media uint32
	}
	type place struct{ stream, packet int }
	type run struct {
		seq    Sequence
		stream int
	}
	runs := map[K]*run{}
	places := make(map[name][]place, len(sent))
	for _, s := range sent {
		r := runs[s.Key]
		if r == nil {
			r = &run{stream: -1}
			runs[s.Key] = r
		}
		seq, restarted := r.seq.Extend(s.Seq)
		if s.At < o.From || (o.Until != 0 && s.At >= o.Until) {
			if restarted {
				r.stream = -1
			}
			// Known, so that its arrival is not called unmatched, but counted nowhere.
			n := name{s.Key, s.Seq, s.Media}
			places[n] = append(places[n], place{-1, 0})
			continue
		}
		if r.stream < 0 || restarted {
			r.stream = len(streams)
			streams = append(streams, Stream[K]{Key: s.Key})
		}
		st := &streams[r.stream]
		n := name{s.Key, s.Seq, s.Media}
		places[n] = append(places[n], place{r.stream, len(st.Packets)})
		st.Packets = append(st.Packets, Packet{Seq: seq, Sent: s.At, Lost: true})
	}

	highest := map[int]int64{}
	for _, s := range received {
		ps := places[name{s.Key, s.Seq, s.Media}]
		if len(ps) == 0 {
			unmatched++
			continue
		}
		// The earliest sending that has no arrival yet and is not too old; else it is a duplicate of the last.
		duplicateOf, outside, matched := -1, false, false
		for _, p := range ps {
			if p.stream < 0 {
				outside = true
				continue
			}
			pk := &streams[p.stream].Packets[p.packet]
			if d := s.At.Sub(pk.Sent); d > o.MaxDelay || d < -time.Second {
				continue
			}
			if !pk.Lost {
				duplicateOf = p.stream
				continue
			}
			pk.Lost, pk.Received = false, s.At
			st := &streams[p.stream]
			st.arrivals = append(st.arrivals, p.packet)
			if h, ok := highest[p.stream]; ok && pk.Seq < h {
				st.Reordered++
			} else {
				highest[p.stream] = pk.Seq
			}
			matched = true
			break
		}
		switch {
		case matched || outside:
		case duplicateOf >= 0:
			streams[duplicateOf].Duplicates++
		default:
			unmatched++
		}
	}
	return streams, unmatched
}

// Summary is a set of streams in figures: one call's direction, or all calls of a direction together.
type Summary struct {
	Streams    int
	Sent       int
	Received   int
	Duplicates int
	Reordered  int
	Loss       float64 // share of Sent that never arrived, 0 to 1 (RFC 7680)
	BurstR     float64 // burst ratio of ITU-T G.107: 1 = losses fall at random, above = they come together
	Delay      *Distribution
	PDV        time.Duration // RFC 8219: p99.9 - min
	IPDV       *Distribution // |change of delay from one sent packet to the next| (RFC 5481 section 4.1, RFC 3393)
	Jitter     time.Duration // RFC 3550, mean over the packets of all streams
	JitterMax  time.Duration // RFC 3550, highest J of any stream
	Voice      Voice         // all packets as one distribution
	WorstVoice Voice         // the stream with the lowest R
}

// Summarize counts streams. codec is what they carry (for the E-model).
func Summarize[K comparable](streams []Stream[K], codec Codec) Summary {
	s := Summary{Delay: NewDistribution(), IPDV: NewDistribution()}
	var jitter float64
	var weight, lost, bursts int
	for i := range streams {
		one := streams[i].count()
		s.Streams++
		s.Sent += one.sent
		s.Received += one.sent - one.lost
		s.Duplicates += streams[i].Duplicates
		s.Reordered += streams[i].Reordered
		s.Delay.Merge(one.delay)
		s.IPDV.Merge(one.ipdv)
		jitter += float64(one.jitter.Mean()) * float64(max(0, one.jitter.n-1))
		weight += max(0, one.jitter.n-1)
		s.JitterMax = max(s.JitterMax, one.jitter.Max())
		lost += one.lost
		bursts += one.bursts
		v := Listen(one.delay, ratio(one.lost, one.sent), burstRatio(one.sent, one.lost, one.bursts), codec)
		if i == 0 || v.R < s.WorstVoice.R {
			s.WorstVoice = v
		}
	}
	if weight > 0 {
		s.Jitter = time.Duration(jitter / float64(weight))
	}
	s.Loss = ratio(lost, s.Sent)
	s.BurstR = burstRatio(s.Sent, lost, bursts)
	s.PDV = s.Delay.PDV()
	s.Voice = Listen(s.Delay, s.Loss, s.BurstR, codec)
	return s
}

type counted struct {
	sent, lost, bursts int
	delay, ipdv        *Distribution
	jitter             Jitter
}

func (s *Stream[K]) count() counted {
	c := counted{sent: len(s.Packets), delay: NewDistribution(), ipdv: NewDistribution()}
	arrivals := s.arrivals
	if arrivals == nil { // built by hand, not by Match
		for i := range s.Packets {
			if !s.Packets[i].Lost {
				arrivals = append(arrivals, i)
			}
		}
		slices.SortStableFunc(arrivals, func(a, b int) int {
			return int(s.Packets[a].Received.Sub(s.Packets[b].Received))
		})
	}
	for i, p := range s.Packets {
		if p.Lost {
			c.lost++
			if i == 0 || !s.Packets[i-1].Lost {
				c.bursts++
			}
			continue
		}
		c.delay.Record(p.Delay())
		if i > 0 && !s.Packets[i-1].Lost {
			c.ipdv.Record((p.Delay() - s.Packets[i-1].Delay()).Abs())
		}
	}
	for _, i := range arrivals {
		c.jitter.Record(s.Packets[i].Sent, s.Packets[i].Received)
	}
	return c
}

// burstRatio is G.107's BurstR of the packets that never arrived (not of those too late for the jitter buffer): the mean length of the bursts seen, over the mean length 1/(1-Ppl) that
// random loss of the same share would give. Below 1 (losses more regular than random) the model has no meaning.
func burstRatio(sent, lost, bursts int) float64 {
	if lost == 0 || lost == sent {
		return 1
	}
	return max(1, float64(lost)/float64(bursts)*(1-ratio(lost, sent)))
}

func ratio(a, b int) float64 {
	if b == 0 {
		return 0
	}
	return float64(a) / float64(b)
}
