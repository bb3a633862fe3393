package quality

import (
	"slices"
	"time"
)

// Limits of RFC 3550 appendix A.1: a sequence number further ahead or behind than this is not a gap or a
// late packet, but a source that restarted.
const (
	maxDropout  = 3000
	maxMisorder = 100
)

// Sequence extends RTP's 16-bit sequence numbers: the upper part counts the wraps (RFC 3550 appendix A.1).
type Sequence struct {
	highest int64
	started bool
}

// Extend gives the extended number of the packet that carries seq. restarted says that the source started
// again (a jump that neither loss nor reordering explains): its numbers continue above all earlier ones.
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

// Sighting is one packet captured at one place: its stream, its position there, and the time.
type Sighting[K comparable] struct {
	Key K
	Seq uint16
	// Media is the RTP timestamp. With Seq it distinguishes packets 65,536 packets, or one replay, apart.
	Media uint32
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
	// MaxDelay: a packet not seen after this is lost (RFC 7680 wants the threshold said). Default 4 s:
	// above any buffer in the lab, below the 8 s after which SIPp's recording repeats its numbers.
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
	m := matcher[K]{
		options: o, runs: map[K]*run{}, places: make(map[packetName[K]][]place, len(sent)), highest: map[int]int64{},
	}
	for _, s := range sent {
		m.addSent(s)
	}
	for _, s := range received {
		if !m.addReceived(s) {
			unmatched++
		}
	}
	return m.streams, unmatched
}

// matcher is the state of Match.
type matcher[K comparable] struct {
	options MatchOptions
	streams []Stream[K]
	runs    map[K]*run
	places  map[packetName[K]][]place // where each packet that was sent is
	highest map[int]int64             // of each stream, the highest number that has arrived
}

// packetName is what a packet carries wherever it is captured.
type packetName[K comparable] struct {
	key   K
	seq   uint16
	media uint32
}

// place is a packet's index; stream is -1 for one that is counted nowhere.
type place struct{ stream, packet int }

// run is the current stream of a key; -1: none yet.
type run struct {
	seq    Sequence
	stream int
}

func (m *matcher[K]) addSent(s Sighting[K]) {
	r := m.runs[s.Key]
	if r == nil {
		r = &run{stream: -1}
		m.runs[s.Key] = r
	}
	seq, restarted := r.seq.Extend(s.Seq)
	n := packetName[K]{s.Key, s.Seq, s.Media}

	if s.At < m.options.From || (m.options.Until != 0 && s.At >= m.options.Until) {
		if restarted {
			r.stream = -1
		}
		// Known, so that its arrival is not called unmatched, but counted nowhere.
		m.places[n] = append(m.places[n], place{-1, 0})
		return
	}
	if r.stream < 0 || restarted {
		r.stream = len(m.streams)
		m.streams = append(m.streams, Stream[K]{Key: s.Key})
	}
	st := &m.streams[r.stream]
	m.places[n] = append(m.places[n], place{r.stream, len(st.Packets)})
	st.Packets = append(st.Packets, Packet{Seq: seq, Sent: s.At, Lost: true})
}

// addReceived pairs an arrival with the earliest packet of its name that has no arrival yet and is not too
// old. Otherwise it is a duplicate of the last such packet; false: of none.
func (m *matcher[K]) addReceived(s Sighting[K]) bool {
	duplicateOf, outside := -1, false
	for _, p := range m.places[packetName[K]{s.Key, s.Seq, s.Media}] {
		if p.stream < 0 {
			outside = true
			continue
		}
		st := &m.streams[p.stream]
		pk := &st.Packets[p.packet]
		if d := s.At.Sub(pk.Sent); d > m.options.MaxDelay || d < -time.Second {
			continue
		}
		if !pk.Lost {
			duplicateOf = p.stream
			continue
		}

		pk.Lost, pk.Received = false, s.At
		st.arrivals = append(st.arrivals, p.packet)
		if h, ok := m.highest[p.stream]; ok && pk.Seq < h {
			st.Reordered++
		} else {
			m.highest[p.stream] = pk.Seq
		}
		return true
	}

	if duplicateOf >= 0 && !outside {
		m.streams[duplicateOf].Duplicates++
	}
	return outside || duplicateOf >= 0
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
	// |change of delay from one sent packet to the next| (RFC 5481 section 4.1, RFC 3393)
	IPDV       *Distribution
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

// burstRatio is G.107's BurstR of the packets that never arrived (not of those too late for the jitter
// buffer): the mean length of the bursts seen, over the mean length 1/(1-Ppl) that random loss of the same
// share would give. Below 1 (losses more regular than random) the model has no meaning.
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
