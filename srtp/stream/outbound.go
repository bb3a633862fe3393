package stream

import (
	"cmp"
	"encoding/binary"
	"slices"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
)

const (
	// sentSkip is how far the next process begins beyond the index that it was told: more than was sent meanwhile.
	sentSkip = 1 << 13
	// beginSkip is how far beyond that a source begins that it was not told of.
	beginSkip = 1 << 10
	// maxBegin is the greatest number that a source begins at: below 2^15, also with what it sends first.
	maxBegin = 1<<15 - 1<<10
	// firstNumbers bounds where a source begins, until one was forgotten.
	firstNumbers = 1 << 10
	// maxStep is how far the begin of further sources moves until there is an account of it. With what a source sends
	// meanwhile it is less than sentSkip and beginSkip.
	maxStep = firstNumbers + youngFor*youngDropout
	// restartRun is how many packets in order, all of them sent before, show that a source counts again from a smaller
	// number. Copies of packets that come late have new ones between them.
	restartRun = 3
	// maxDropout is how many packets may be missing (RFC 3550 appendix A.1). What is counted from further on is numbered
	// as if nothing was: it bounds how far one packet moves the index.
	maxDropout = 3000
	// youngFor is for how many packets a source is young. Then its dropout is bounded by youngDropout, so that it cannot
	// be beyond maxStep soon, and a source that was made up can be forgotten.
	youngFor, youngDropout = 1 << 7, 1 << 4
	// accountEvery is after how many indices of a source an account is due. With maxDropout it is less than sentSkip.
	accountEvery = 1 << 12
	// maxLate is how old a packet may be to be one that was overtaken, and not the first after a restart.
	maxLate = windowSize
)

// Sender protects what one end is sent: RTP and RTCP of all its sources (SSRC).
//
// An index encrypts one packet, ever (RFC 3711 section 9.1): the same key stream for two shows both. The index is in
// the sequence number, which comes from a phone or from somebody who claims to be one. So a packet gets another number
// where it has to: the first of a source is below 2^15, so that a receiver that misses it does not begin beyond a
// wrap, and a source that starts to count elsewhere goes on behind its highest index. What the far end says of such
// numbers is translated back (Translate).
//
// The sources are bounded, and one more makes another one be forgotten: one of those that are not in use, with the
// smallest index. As it could come again, further sources begin beyond that index. Where this is not possible any more
// the sender is crowded, and takes no further source until it has another key.
type Sender struct {
	key     *Key
	active  []sent // at most maxActive
	parking parking
	begin   uint32 // least index of a source that is not known
	due     bool   // an account
	crowded bool
	unknown allowance
	shifts  [maxActive]shift // of active, for other threads

	header     rtp.Header
	rtcpHeader rtcp.Header
}

// sent is a source of which something was protected, or is about to be.
type sent struct {
	ssrc  uint32
	place int   // in active
	last  int64 // when something of it was sent

	rtp   window
	least uint64 // the least index that it may have
	back  uint32 // what has to be added to an index to have the number that the source gave (modulo 2^32)
	young int    // packets until it is not young
	used  bool   // under the key in use
	// oldNext would be the next packet of a run of packets that were all sent before.
	oldNext uint16
	oldRun  int

	rtcp uint32 // the last index of SRTCP

	kept     uint64 // the indices of the last account
	keptRTCP uint32
}

// delta is what is added to sequence numbers.
func (s *sent) delta() uint16 { return -uint16(s.back) }

// NewSender protects with that key.
func NewSender(k *Key) *Sender {
	return &Sender{key: k, active: make([]sent, 0, usualSources), unknown: allowance{rate: newSources}}
}

// Key returns the key in use.
func (s *Sender) Key() *Key { return s.key }

// Use has all further packets protected with another key, and returns the one before, which is not wiped. Indices go on
// (RFC 3711 section 3.3.1: a new key does not reset the roll-over counter).
func (s *Sender) Use(k *Key) (before *Key) {
	before, s.key = s.key, k
	if k.used {
		s.begin = maxBegin + 1 // nobody knows where a source may begin
		return before
	}
	s.begin, s.crowded = 0, false
	for i := range s.active {
		src := &s.active[i]
		src.used = false
		if !src.rtp.any {
			src.least = 0
		}
	}
	for i := range s.parking.places {
		p := &s.parking.places[i]
		p.used = false
		if !p.hasRTP {
			p.least = 0
		}
	}
	return before
}

// Begin is Use for a key that a new offer has brought: all indices begin again, unless it has protected something.
func (s *Sender) Begin(k *Key) (before *Key) {
	if k.used {
		return s.Use(k)
	}
	s.active, s.parking.places = s.active[:0], s.parking.places[:0]
	for i := range s.shifts {
		s.shifts[i].clear()
	}
	return s.Use(k)
}

// Crowded says whether a source was refused because the key has no room for another one. Another key has.
func (s *Sender) Crowded() bool { return s.crowded }

// Wipe wipes the key, and nothing is protected any more.
func (s *Sender) Wipe() { s.key.Wipe() }

// Seal encrypts and authenticates an RTP packet into dst, which is the packet itself or does not overlap it, and has
// room for Suite.Overhead and the MKI more. It may write another sequence number into the packet. The error is one of
// this package's.
func (s *Sender) Seal(dst, packet []byte, now int64) ([]byte, error) {
	if len(packet) < rtpHeader || packet[0]>>6 != 2 {
		return nil, ErrMalformed
	}
	if err := s.key.may(); err != nil {
		return nil, err
	}
	ssrc, seq := binary.BigEndian.Uint32(packet[8:]), binary.BigEndian.Uint16(packet[2:])
	src, err := s.source(ssrc, now)
	if err != nil {
		return nil, err
	}
	index, err := src.index(seq)
	if err != nil {
		return nil, err
	}
	binary.BigEndian.PutUint16(packet[2:], uint16(index))
	// Taken before it is used: an attempt that fails half-way has used it.
	s.due = s.due || !src.rtp.any
	src.rtp.take(index)
	src.used, src.young = true, max(src.young-1, 0)
	s.shifts[src.place].store(ssrc, src.back)
	s.due = s.due || src.rtp.highest-src.kept >= accountEvery
	s.key.used = true
	s.key.context.SetROC(ssrc, uint32(index>>16))
	out, err := s.key.context.EncryptRTP(dst, packet, &s.header)
	if err != nil {
		return nil, ErrMalformed
	}
	s.key.sealed++
	return out, nil
}

// index is where the packet with that sequence number goes, and is not used yet.
func (s *sent) index(seq uint16) (uint64, error) {
	if !s.rtp.any {
		index := s.least
		if index == 0 {
			index = uint64(seq % firstNumbers)
		}
		s.back = uint32(seq) - uint32(index)
		return index, nil
	}
	dropout := int64(maxDropout)
	if s.young > 0 {
		dropout = youngDropout
	}
	distance := int64(int16(seq + s.delta() - uint16(s.rtp.highest)))
	index := int64(s.rtp.highest) + distance
	late := distance <= 0 && distance > -maxLate
	switch {
	case late && index >= int64(s.least) && s.rtp.fresh(uint64(index)):
		s.oldRun = 0
		return uint64(index), nil
	case late:
		if s.oldRun == 0 || seq != s.oldNext {
			s.oldRun = 0
		}
		s.oldRun++
		s.oldNext = seq + 1
		if s.oldRun < restartRun {
			return 0, ErrDuplicate
		}
		index = int64(s.rtp.highest) + 1
	case distance <= 0 || distance > dropout: // counted from elsewhere
		index = int64(s.rtp.highest) + 1
	}
	if index > maxIndex {
		return 0, ErrExhausted
	}
	s.oldRun = 0
	if seq+s.delta() != uint16(index) { // it counts again
		s.back = uint32(seq) - uint32(index)
	}
	return uint64(index), nil
}

// SealRTCP encrypts and authenticates an RTCP packet into dst, as Seal does. It has room for Suite.RTCPOverhead and the
// MKI more.
func (s *Sender) SealRTCP(dst, packet []byte, now int64) ([]byte, error) {
	if len(packet) < rtcpHeader || packet[0]>>6 != 2 {
		return nil, ErrMalformed
	}
	if err := s.key.may(); err != nil {
		return nil, err
	}
	ssrc := binary.BigEndian.Uint32(packet[4:])
	src, err := s.source(ssrc, now)
	if err != nil {
		return nil, err
	}
	if src.rtcp >= maxRTCPIndex {
		return nil, ErrExhausted
	}
	s.key.used = true
	// The library takes the next one.
	s.key.context.SetIndex(ssrc, src.rtcp)
	src.rtcp++
	src.used = true
	s.due = s.due || src.rtcp-src.keptRTCP >= accountEvery
	out, err := s.key.context.EncryptRTCP(dst, packet, &s.rtcpHeader)
	if err != nil {
		return nil, ErrMalformed
	}
	return out, nil
}

// source is the source with that SSRC, which is active then.
func (s *Sender) source(ssrc uint32, now int64) (*sent, error) {
	for i := range s.active {
		if src := &s.active[i]; src.ssrc == ssrc {
			src.last = now
			return src, nil
		}
	}
	if i := s.parking.find(ssrc); i >= 0 {
		was := s.parking.remove(i)
		return s.activate(&was, now), nil
	}
	if s.begin > maxBegin {
		s.crowded = true
		return nil, ErrSources
	}
	if !s.unknown.take(now) {
		return nil, ErrSources
	}
	if len(s.active) == maxActive && s.parking.full() && !s.forget() {
		return nil, ErrSources
	}
	s.key.newSource()
	s.due = true
	return s.activate(&parked{ssrc: ssrc, rtcp: s.begin, least: uint64(s.begin), young: youngFor}, now), nil
}

// activate has a source be active, in the place of the one that was silent longest.
func (s *Sender) activate(was *parked, now int64) *sent {
	place := len(s.active)
	if place < maxActive {
		s.active = append(s.active, sent{})
	} else {
		place = 0
		for i := range s.active {
			if s.active[i].last < s.active[place].last {
				place = i
			}
		}
		s.park(&s.active[place])
	}
	src := &s.active[place]
	*src = sent{
		ssrc: was.ssrc, place: place, last: now, least: was.least, back: was.back, young: was.young, used: was.used,
		rtcp: was.rtcp, kept: was.kept, keptRTCP: was.keptRTCP,
	}
	if was.hasRTP {
		src.rtp = restored(was.rtp)
		s.shifts[place].store(src.ssrc, src.back)
	} else {
		s.shifts[place].clear()
	}
	return src
}

// park has a source wait for its next packet. There is room.
func (s *Sender) park(src *sent) {
	s.parking.put(parked{
		ssrc: src.ssrc, hasRTP: src.rtp.any, rtp: src.rtp.highest, rtcp: src.rtcp, kept: src.kept, keptRTCP: src.keptRTCP,
		least: src.least, back: src.back, young: src.young, used: src.used,
	})
}

// forget forgets the parked source with the smallest index, one that was not sent under the key in use before all
// others. It reports whether that is possible.
func (s *Sender) forget() bool {
	place := s.parking.first(func(a, b *parked) bool {
		if a.used != b.used {
			return b.used
		}
		return a.end() < b.end()
	})
	if p := &s.parking.places[place]; p.used && p.end() > uint64(s.begin) {
		switch {
		case s.due:
			return false // once an account: the next process must know where sources begin
		case p.end() > uint64(s.begin)+maxStep, p.end() > maxBegin:
			s.crowded = true
			return false
		}
		s.begin = uint32(p.end())
	}
	s.parking.remove(place)
	return true
}

// end is the least index, of SRTP and of SRTCP, beyond which nothing of the source was sent.
func (p *parked) end() uint64 {
	end := uint64(p.rtcp) // the next one is taken from there
	if p.hasRTP {
		end = max(end, p.rtp+1)
	}
	return end
}

// Account is what a sender has sent, for the next process.
type Account struct {
	Sources []Sent
	// Begin is the least index of a source that is not among them: it may have been forgotten.
	Begin uint32
}

// Sent is what is known of a source that is sent.
type Sent struct {
	SSRC      uint32
	Index     uint64 // the highest, of SRTP; without HasRTP the least that it may begin with
	HasRTP    bool
	Delta     uint16 // what is added to sequence numbers
	RTCPIndex uint32 // the last, of SRTCP
}

// Due says whether the account that is kept is too old: it lacks a source, or 2^12 indices of one. It is to be looked
// at after each packet, and is true after Restore.
func (s *Sender) Due() bool { return s.due }

// Account returns what is to be kept for the next process, before another packet is sealed. One that is not kept costs
// nothing unless the process ends: then the next one must not go on with this key.
func (s *Sender) Account() Account {
	a := Account{Sources: make([]Sent, 0, MaxSources)}
	s.AccountTo(&a)
	slices.SortFunc(a.Sources, func(a, b Sent) int { return cmp.Compare(a.SSRC, b.SSRC) })
	return a
}

// AccountTo is Account, in no order. With room for MaxSources in a.Sources it allocates nothing.
func (s *Sender) AccountTo(a *Account) {
	s.due = false
	a.Begin, a.Sources = s.begin, a.Sources[:0]
	for i := range s.active {
		src := &s.active[i]
		src.kept, src.keptRTCP = src.rtp.highest, src.rtcp
		one := Sent{SSRC: src.ssrc, Index: src.rtp.highest, HasRTP: src.rtp.any, Delta: src.delta(), RTCPIndex: src.rtcp}
		if !one.HasRTP {
			one.Index = src.least
		}
		a.Sources = append(a.Sources, one)
	}
	for i := range s.parking.places {
		p := &s.parking.places[i]
		p.kept, p.keptRTCP = p.rtp, p.rtcp
		one := Sent{SSRC: p.ssrc, Index: p.rtp, HasRTP: p.hasRTP, Delta: -uint16(p.back), RTCPIndex: p.rtcp}
		if !one.HasRTP {
			one.Index = p.least
		}
		a.Sources = append(a.Sources, one)
	}
}

// Restore takes the account of another sender of the same key and goes on 2^13 indices beyond, which is more than was
// sent since. After three times under one key no further source is taken.
func (s *Sender) Restore(a Account) {
	s.begin = min(a.Begin, maxBegin) + sentSkip + beginSkip
	s.due = true
	for i, before := range a.Sources {
		if i == MaxSources { // no account of ours
			s.begin = maxBegin + 1
			return
		}
		was := parked{ssrc: before.SSRC, rtcp: min(before.RTCPIndex+sentSkip, maxRTCPIndex), used: true}
		if before.HasRTP {
			was.hasRTP, was.rtp = true, before.Index+sentSkip
			// How often the source's own numbers have wrapped is not told: as often as ours, or once less.
			was.back = uint32(-before.Delta) - sentSkip
		} else {
			was.least = before.Index + sentSkip + beginSkip
		}
		s.activate(&was, 0)
	}
}
