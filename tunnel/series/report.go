package series

import (
	"encoding/binary"
	"math/bits"
	"slices"
	"time"
)

// What both ends tell each other: the words of their series, so that each can say in which segment packets were lost.
// A report is the whole content of a message in the tunnel, authentic and of a known peer. Its first four bits are no
// version of IP, so that an end that does not know reports drops it. It counts only for series with that peer, and
// makes no state but the peer's times (trip.go).
//
//	magic (4 bytes), then entries:
//	  flags (1)  bit 0: IPv6; bit 1: these are packets that the sender of the report sent, else that it received
//	  addresses (8 or 32), ports (4), SSRC (4)
//	  words (1)  how many follow, 1 to 8
//	  first (2)  number of the first word: its sequence numbers divided by 64
//	  skip (1)   sequence numbers of the first word of which nothing is known
//	  ends (1)   sequence numbers up to the end of what is known of the last word, 1 to 64
//	  words (16 each): a bit for each packet that came, one for each that went on
//
// Flags of zero, or the end, end the entries: messages are padded. Times may follow (trip.go).
const (
	// MaxReport bounds a report, so that it passes any path that a voice tunnel does.
	MaxReport = 1104

	magic    = 0x01_72_77_71
	hasEntry = 0x80
	isV6     = 1
	isSent   = 2

	// wordNumbers is how many words sequence numbers of 16 bits have.
	wordNumbers = 1 << 16 / 64
	// kept is how many words wait for those of the far end.
	kept = 8
	// looks is for how long a word has been closed when it is told, in calls of Look: packets that others overtook have
	// come by then.
	looks = 2
	// forgetLooks is how long a series is remembered of which Look has seen nothing.
	forgetLooks = 60
	// lineKept is of how many looks it is known that packets were lost on the line in their time.
	lineKept = 32
)

// IsReport reports whether the content of a message begins like one.
func IsReport(p []byte) bool { return len(p) >= 4 && binary.BigEndian.Uint32(p) == magic }

// NewReport begins a report in b.
func NewReport(b []byte) []byte { return binary.BigEndian.AppendUint32(b[:0], magic) }

// Fate is what both ends together know of the packets of a series.
type Fate struct {
	Compared uint32 // packets of which both ends have told
	FarLAN   uint32 // lost before they came to the far box, or after they left it for who reports by RTCP
	FarBox   uint32 // lost in it
	Line     uint32 // lost between the boxes
	// Delay is the one-way delay between the boxes, the mean of its life: half of the round trip; 0: not known.
	Delay time.Duration
}

// Comparer compares the words of an engine's series with those that the far ends tell. It is not for several
// goroutines at once.
type Comparer struct {
	series  map[subject]*watched
	origins map[origin]*watched // of those that are sent
	trips   map[uint32]*trip    // by peer
	look    uint32
	looked  [looks + 1]int64 // when the last looks began
}

// subject is a series as both ends know it.
type subject struct {
	name name
	sent bool
}

// watched is one series.
type watched struct {
	peer, born, restarts uint32
	seen                 uint32        // the last look
	highest              [looks]uint32 // word, at the last looks
	latest               [looks]uint32 // sequence number, likewise
	again, told          uint32        // words before these were told twice, and once
	ends                 uint8         // sequence numbers that were told of the last one
	own, far             [kept]fates
	fate                 Fate
	delays               delays
	lineAt               [lineKept]int64 // looks by whose time packets were lost on the line; 0: none
	lineAts              int             // in all

	receiver *receiver // of what is sent: it reports by RTCP; nil: it does not (rtcp.go)
}

// fates is what one end knows of a word. skip is of its low bits.
type fates struct {
	word
	number uint32 // from 1 on; of far words, as they are told
	sent   int64  // of own words: by when its packets were
	known  uint64 // bits of which this end knows
}

// NewComparer makes a Comparer without series.
func NewComparer() *Comparer {
	return &Comparer{series: map[subject]*watched{}, origins: map[origin]*watched{}, trips: map[uint32]*trip{}}
}

// Begin begins a look at all series, now: Look follows for each of them, and End.
func (c *Comparer) Begin(now int64) {
	c.look++
	copy(c.looked[:], c.looked[1:])
	c.looked[looks] = now
}

// End ends a look, and forgets series that have ended.
func (c *Comparer) End() {
	c.forgetTrips()
	for k, w := range c.series {
		if c.look-w.seen > forgetLooks {
			delete(c.series, k)
			if o := originOf(&k.name); c.origins[o] == w {
				delete(c.origins, o)
			}
		}
	}
}

// Look takes a series as it is now, and appends to a report what the far end has not been told: report returns the one
// to append to, with that much space.
func (c *Comparer) Look(r *Record, sent bool, report func(peer uint32, space int) *[]byte) {
	e := &r.e
	w := c.series[subject{e.name, sent}]
	if w == nil || w.born != e.born || w.restarts != e.restarts || w.peer != e.peer {
		before := w
		w = &watched{peer: e.peer, born: e.born, restarts: e.restarts}
		if before != nil && before.born == e.born {
			w.fate, w.delays, w.lineAt, w.lineAts = before.fate, before.delays, before.lineAt, before.lineAts
			if r := before.receiver; r != nil {
				w.receiver = &receiver{lost: r.lost}
			}
		}
		c.series[subject{e.name, sent}] = w
		if sent {
			c.origins[originOf(&e.name)] = w
		}
	}
	w.seen = c.look
	if took := c.RoundTrip(e.peer); took != 0 && e.highest != w.latest[looks-1] { // packets came since the last look
		w.delays.sum += took
		w.delays.n++
	}
	highest := e.highest >> 6
	end, ends := w.highest[0], uint8(64)
	if e.highest == w.latest[0] { // silent since: the call is over, or on hold, and its last word is told as it is
		end, ends = highest+1, uint8(e.highest&63)+1
	}
	copy(w.highest[:], w.highest[1:])
	copy(w.latest[:], w.latest[1:])
	w.highest[looks-1], w.latest[looks-1] = highest, e.highest

	// Each word is told twice: the line that loses packets of calls loses reports as well.
	known := w.told
	first := max(w.again, e.lowest>>6, highest-words+1)
	if end <= known {
		end, ends = known, w.ends
	}
	if w.again, w.told, w.ends = known, end, ends; first >= end {
		return
	}
	entry := report(e.peer, maxEntry)
	skip := uint8(0)
	if first == e.lowest>>6 {
		skip = uint8(e.lowest & 63)
	}
	*entry = appendHeader(*entry, &e.name, sent, first, end-first, skip, ends)
	for n := first; n < end; n++ {
		x := fates{word: e.window[n%words], number: n, sent: c.looked[0], known: ^uint64(0) << skip}
		if skip = 0; n == end-1 {
			x.known &= ^uint64(0) >> (64 - ends)
		}
		*entry = binary.BigEndian.AppendUint64(*entry, x.arrived)
		*entry = binary.BigEndian.AppendUint64(*entry, x.passed)
		if n >= known {
			w.own[n%kept] = x
			w.compare(n%kept, sent)
		}
	}
}

const (
	headerEntry = 1 + 4 + 4 + 1 + 2 + 1 + 1 // and addresses
	maxEntry    = headerEntry + 32 + words*16
)

func appendHeader(b []byte, n *name, sent bool, first, count uint32, skip, ends uint8) []byte {
	flags := uint8(hasEntry)
	if sent {
		flags |= isSent
	}
	if n.v6 {
		b = append(append(b, flags|isV6), n.addresses[:]...)
	} else {
		b = append(append(append(b, flags), n.addresses[:4]...), n.addresses[16:20]...)
	}
	b = binary.BigEndian.AppendUint32(append(b, n.ports[:]...), n.source)
	b = binary.BigEndian.AppendUint16(append(b, uint8(count)), uint16(first%wordNumbers))
	return append(b, skip, ends)
}

// Hear takes a report of a peer, which came at a time. It returns false for one that cannot be read to its end.
func (c *Comparer) Hear(peer uint32, p []byte, at int64) bool {
	if !IsReport(p) {
		return false
	}
	p = p[4:]
	for len(p) > 0 && p[0] != 0 {
		flags, addresses := p[0], 8
		if flags&isV6 != 0 {
			addresses = 32
		}
		if flags&^(isV6|isSent) != hasEntry || len(p) < headerEntry+addresses {
			return false
		}
		var n name
		if n.v6 = flags&isV6 != 0; n.v6 {
			copy(n.addresses[:], p[1:33])
		} else {
			copy(n.addresses[:], p[1:5])
			copy(n.addresses[16:], p[5:9])
		}
		p = p[1+addresses:]
		copy(n.ports[:], p)
		n.source = binary.BigEndian.Uint32(p[4:])
		count, first, skip, ends := uint32(p[8]), uint32(binary.BigEndian.Uint16(p[9:])), p[11], p[12]
		p = p[13:]
		if count < 1 || count > words || len(p) < 16*int(count) || first >= wordNumbers ||
			skip > 63 || ends < 1 || ends > 64 {
			return false
		}
		w := c.series[subject{n, flags&isSent == 0}]
		for i := range count {
			x := fates{
				word:   word{binary.BigEndian.Uint64(p), binary.BigEndian.Uint64(p[8:])},
				number: (first + i) % wordNumbers,
				known:  ^uint64(0) << skip,
			}
			if skip, p = 0, p[16:]; i == count-1 {
				x.known &= ^uint64(0) >> (64 - ends)
			}
			if w != nil && w.peer == peer {
				w.far[x.number%kept] = x
				w.compare(x.number%kept, flags&isSent == 0)
			}
		}
	}
	return c.hearTimes(peer, p, at)
}

// compare counts a word of which both ends have told, once.
func (w *watched) compare(at uint32, sent bool) {
	own, far := &w.own[at], &w.far[at]
	known := own.known & far.known
	if known == 0 || own.number%wordNumbers != far.number {
		return
	}
	ones := func(x uint64) uint32 { return uint32(bits.OnesCount64(x & known)) }
	w.fate.Compared += ones(^uint64(0))
	if sent {
		line := ones(own.passed &^ far.arrived)
		if w.fate.Line += line; line > 0 && !slices.Contains(w.lineAt[:], own.sent) {
			w.lineAt[w.lineAts%lineKept] = own.sent
			w.lineAts++
		}
		w.fate.FarBox += ones(own.passed & far.arrived &^ far.passed)
		if w.receiver != nil {
			w.receiver.settle(own.number, known, far.passed)
		}
	} else { // what came here was not lost, whatever is told
		w.fate.FarLAN += ones(^far.arrived &^ own.arrived)
		w.fate.FarBox += ones(far.arrived &^ far.passed &^ own.arrived)
		w.fate.Line += ones(far.passed &^ own.arrived)
	}
	own.known, far.known = 0, 0
}

// Fate is what became of a series' packets.
func (c *Comparer) Fate(r *Record, sent bool) Fate {
	w := c.series[subject{r.e.name, sent}]
	if w == nil || w.born != r.e.born {
		return Fate{}
	}
	f := w.fate
	f.Delay = w.delays.oneWay()
	if w.receiver != nil {
		f.FarLAN = uint32(max(w.receiver.lost, 0))
	}
	return f
}

// LineAt is when packets of a series that is sent were lost on the line, the latest times, in order: each was sent
// before one of them, by a look and the length of a word at most.
func (c *Comparer) LineAt(r *Record) []int64 {
	w := c.series[subject{r.e.name, true}]
	if w == nil || w.born != r.e.born || w.lineAts == 0 {
		return nil
	}
	return slices.Sorted(slices.Values(w.lineAt[:min(w.lineAts, lineKept)]))
}
