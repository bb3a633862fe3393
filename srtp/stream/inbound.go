package stream

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	pion "github.com/pion/srtp/v3"
)

// Bounds on what packets that are not authenticated, or authenticated and strange, can make a receiver do.
const (
	recoveries = 20 // attempts a second to find the roll-over counter again
	// scratchUses is how often a context is used for such attempts: the library keeps 100 bytes for each source.
	scratchUses = 256
	// maxWraps is how many wraps of the sequence number a gap may hide: 87 minutes at 50 packets a second.
	maxWraps = 4
)

// A receiver says what it has heard before it has accepted heardAhead further indices of a source, and the next process
// begins as if all of these had come: a packet that was accepted is not accepted again. Where the process before was
// killed that loses at most 1.3 s of voice after its last packet, most of which are over until the next one runs.
const (
	heardEvery, heardAhead         = 48, 64
	heardRTCPEvery, heardRTCPAhead = 3, 4
)

// Lengths of headers, and of what is behind an SRTCP packet (RFC 3550 sections 5.1 and 6.4, RFC 3711 section 3.4).
const (
	rtpHeader  = 12
	rtcpHeader = 8
	rtcpIndex  = 4
	rtcpTag    = 10
)

// Receiver opens what one end sends: SRTP and SRTCP of all its sources (SSRC).
//
// The roll-over counter (ROC) is not in the packets. A receiver guesses it from the highest index that it has opened
// (RFC 3711 section 3.3.1), which fails after a gap of 2^15 packets, and where a sender begins just before a wrap and
// its first packets are lost. Then the next counters are tried, in a context of its own, and one that authenticates the
// packet is adopted. An index that the window has seen, or is too old for it, is never accepted, whatever its counter:
// or anyone could replay an old part of the call.
type Receiver struct {
	// AllowUnencryptedRTCP accepts SRTCP that is authenticated only (UNENCRYPTED_SRTCP, RFC 4568 section 6.3.2).
	AllowUnencryptedRTCP bool
	// Expected says that the packet to be opened next comes from where the far end is known to be. Attempts with such
	// packets are counted apart from those with all others.
	Expected bool

	keys    []*Key // the newest first
	active  []received
	parking parking
	waking  received // a source that is parked, while a packet of it is looked at
	due     bool     // what was heard

	unknown, recovery [2]allowance  // of packets from elsewhere, and of expected ones
	scratch           *pion.Context // of scratchKey
	scratchKey        *Key
	scratchLeft       int

	header     rtp.Header // of the packet at hand: the library allocates one otherwise
	rtcpHeader rtcp.Header

	recovered uint64
}

// received is a source that has sent something authentic.
type received struct {
	ssrc           uint32
	heard          int64
	rtp, rtcp      window
	kept, keptRTCP uint64 // the indices that were said last
}

// NewReceiver opens with one key, until more are added.
func NewReceiver(k *Key) *Receiver {
	r := &Receiver{keys: []*Key{k}, active: make([]received, 0, usualSources)}
	for i := range r.unknown {
		r.unknown[i].rate, r.recovery[i].rate = newSources, recoveries
	}
	return r
}

// may takes one of the attempts that the packet at hand may have.
func (r *Receiver) may(a *[2]allowance, now int64) bool {
	if r.Expected {
		return a[1].take(now)
	}
	return a[0].take(now)
}

// Recovered returns how often the roll-over counter was found again since it was last asked.
func (r *Receiver) Recovered() uint64 {
	n := r.recovered
	r.recovered = 0
	return n
}

// Add has the receiver open with another key, too. All keys have MKIs of one length, or there is one key only.
func (r *Receiver) Add(k *Key) error {
	first := r.keys[0]
	if len(k.mki) == 0 || len(k.mki) != len(first.mki) || k.suite != first.suite {
		return fmt.Errorf("a further key needs an MKI of %d bytes and %s", len(first.mki), first.suite)
	}
	if r.key(k.mki) != nil {
		return errors.New("a key with this MKI is there already")
	}
	r.keys = append([]*Key{k}, r.keys...)
	return nil
}

// Drop removes and wipes the key with that MKI. The last one stays.
func (r *Receiver) Drop(mki []byte) {
	if len(r.keys) == 1 {
		return
	}
	for i, k := range r.keys {
		if bytes.Equal(k.mki, mki) {
			r.keys = append(r.keys[:i:i], r.keys[i+1:]...)
			if r.scratchKey == k {
				r.scratchKey, r.scratch = nil, nil
			}
			k.Wipe()
			return
		}
	}
}

// Wipe wipes all keys, and nothing is opened any more.
func (r *Receiver) Wipe() {
	for _, k := range r.keys {
		k.Wipe()
	}
	r.scratchKey, r.scratch = nil, nil
}

// key is the key with that MKI.
func (r *Receiver) key(mki []byte) *Key {
	for _, k := range r.keys {
		if bytes.Equal(k.mki, mki) {
			return k
		}
	}
	return nil
}

// Open authenticates and decrypts an SRTP packet into dst, which may not overlap it and has room for it. The packet is
// left as it was. The error is one of this package's.
func (r *Receiver) Open(dst, packet []byte, now int64) ([]byte, error) {
	if len(packet) < rtpHeader || packet[0]>>6 != 2 {
		return nil, ErrMalformed
	}
	first := r.keys[0]
	end := len(packet)
	if !first.suite.AEAD() {
		end -= first.suite.Overhead()
	}
	k, err := r.keyAt(packet, end)
	if err != nil {
		return nil, err
	}
	ssrc, seq := binary.BigEndian.Uint32(packet[8:]), binary.BigEndian.Uint16(packet[2:])

	s := r.source(ssrc)
	if s == nil || !s.rtp.any {
		return r.openFirst(dst, packet, k, ssrc, seq, now)
	}
	index := guess(s.rtp.highest, seq)
	if !s.rtp.fresh(index) {
		// Seen or too old, or so far ahead that it looks so.
		return r.recover(dst, packet, k, s, index, ErrReplayed, now)
	}
	k.context.SetROC(ssrc, uint32(index>>16))
	out, err := k.context.DecryptRTP(dst, packet, &r.header)
	if err != nil {
		return r.recover(dst, packet, k, s, index, ErrForged, now)
	}
	s.rtp.take(index)
	r.opened(s, k, now)
	return out, nil
}

// openFirst opens the first SRTP packet of a source. Nothing is kept of it unless it is authentic.
func (r *Receiver) openFirst(dst, packet []byte, k *Key, ssrc uint32, seq uint16, now int64) ([]byte, error) {
	if !r.may(&r.unknown, now) {
		return nil, ErrSources
	}
	// In a context of its own, since the library keeps a source for each counter that it is told. A sender begins with a
	// counter of 0, and may have wrapped before anything of it arrived.
	for roc := range uint32(2) {
		index := uint64(roc)<<16 | uint64(seq)
		if index < k.least {
			continue
		}
		c, err := r.scratchOf(k)
		if err != nil {
			return nil, ErrForged
		}
		c.SetROC(ssrc, roc)
		out, err := c.DecryptRTP(dst, packet, &r.header)
		if err != nil {
			continue
		}
		s := r.known(ssrc, k)
		s.rtp.take(index)
		r.due = true
		r.opened(s, k, now)
		return out, nil
	}
	return nil, ErrForged
}

// recover tries other counters than the one that the index has, and adopts one that authenticates the packet. Else it
// returns the error given.
func (r *Receiver) recover(
	dst, packet []byte, k *Key, s *received, index uint64, otherwise error, now int64,
) ([]byte, error) {
	if !r.may(&r.recovery, now) {
		return nil, otherwise
	}
	seq, roc := index&0xffff, int64(index>>16)
	for _, step := range [...]int64{1, -1, 2, 3, maxWraps} {
		if roc+step < 0 || roc+step > math.MaxUint32 {
			continue
		}
		candidate := uint64(roc+step)<<16 | seq
		if !s.rtp.fresh(candidate) {
			continue
		}
		c, err := r.scratchOf(k)
		if err != nil {
			return nil, otherwise
		}
		c.SetROC(s.ssrc, uint32(roc+step))
		if out, err := c.DecryptRTP(dst, packet, &r.header); err == nil {
			s.rtp.take(candidate)
			r.opened(s, k, now)
			r.recovered++
			return out, nil
		}
	}
	return nil, otherwise
}

// OpenRTCP authenticates and decrypts an SRTCP packet into dst, as Open does.
func (r *Receiver) OpenRTCP(dst, packet []byte, now int64) ([]byte, error) {
	first := r.keys[0]
	if len(packet) < rtcpHeader+first.suite.RTCPOverhead()+len(first.mki) || packet[0]>>6 != 2 {
		return nil, ErrMalformed
	}
	end := len(packet)
	if !first.suite.AEAD() {
		end -= rtcpTag
	}
	k, err := r.keyAt(packet, end)
	if err != nil {
		return nil, err
	}
	word := binary.BigEndian.Uint32(packet[end-len(k.mki)-rtcpIndex:])
	encrypted, index := word>>31 == 1, uint64(word&maxRTCPIndex)
	if !encrypted && !r.AllowUnencryptedRTCP {
		return nil, ErrUnencrypted
	}
	ssrc := binary.BigEndian.Uint32(packet[4:])
	s := r.source(ssrc)
	switch known := s != nil && s.rtcp.any; {
	case known && !s.rtcp.fresh(index), !known && index < k.leastRTCP:
		return nil, ErrReplayed
	case s == nil && !r.may(&r.unknown, now):
		return nil, ErrSources
	}
	out, err := k.context.DecryptRTCP(dst, packet, &r.rtcpHeader)
	if err != nil {
		return nil, ErrForged
	}
	if s == nil {
		s = r.known(ssrc, k)
	}
	r.due = r.due || !s.rtcp.any
	s.rtcp.take(index)
	r.opened(s, k, now)
	return out, nil
}

// keyAt is the key whose MKI stands before end.
func (r *Receiver) keyAt(packet []byte, end int) (*Key, error) {
	n := len(r.keys[0].mki)
	if n == 0 {
		if r.keys[0].wiped {
			return nil, ErrWiped
		}
		return r.keys[0], nil
	}
	if end-n < 0 {
		return nil, ErrMalformed
	}
	switch k := r.key(packet[end-n : end]); {
	case k == nil:
		return nil, ErrUnknownKey
	case k.wiped:
		return nil, ErrWiped
	default:
		return k, nil
	}
}

// source is the source with that SSRC, or nil. One that is parked stays so until opened: what looks like a packet of it
// may be forged.
func (r *Receiver) source(ssrc uint32) *received {
	for i := range r.active {
		if r.active[i].ssrc == ssrc {
			return &r.active[i]
		}
	}
	if i := r.parking.find(ssrc); i >= 0 {
		r.waking = wake(&r.parking.places[i])
		return &r.waking
	}
	return nil
}

func wake(p *parked) received {
	s := received{ssrc: p.ssrc, kept: p.kept, keptRTCP: uint64(p.keptRTCP)}
	if p.hasRTP {
		s.rtp = restored(p.rtp)
	}
	if p.hasRTCP {
		s.rtcp = restored(uint64(p.rtcp))
	}
	return s
}

// known is the source with that SSRC, of which the key has just opened something. If it is not known it is from now on.
func (r *Receiver) known(ssrc uint32, k *Key) *received {
	if s := r.source(ssrc); s != nil {
		return s
	}
	k.newSource()
	r.waking = received{ssrc: ssrc}
	return &r.waking
}

// opened says that the key has opened a packet of the source.
func (r *Receiver) opened(s *received, k *Key, now int64) {
	if s == &r.waking {
		s = r.activate(s)
	}
	s.heard = now
	k.opened++
	r.due = r.due || s.rtp.any && s.rtp.highest-s.kept >= heardEvery ||
		s.rtcp.any && s.rtcp.highest-s.keptRTCP >= heardRTCPEvery
}

// activate has a source be active, in the place of the one that was silent longest.
func (r *Receiver) activate(s *received) *received {
	if i := r.parking.find(s.ssrc); i >= 0 {
		r.parking.remove(i)
	}
	if len(r.active) < maxActive {
		r.active = append(r.active, *s)
		return &r.active[len(r.active)-1]
	}
	place := 0
	for i := range r.active {
		if r.active[i].heard < r.active[place].heard {
			place = i
		}
	}
	if r.parking.full() {
		r.forget()
	}
	r.park(&r.active[place])
	r.active[place] = *s
	return &r.active[place]
}

// park has a source wait for its next packet. There is room.
func (r *Receiver) park(s *received) {
	r.parking.put(parked{
		ssrc: s.ssrc, hasRTP: s.rtp.any, hasRTCP: s.rtcp.any, rtp: s.rtp.highest, rtcp: uint32(s.rtcp.highest),
		kept: s.kept, keptRTCP: uint32(s.keptRTCP),
	})
}

// forget forgets the parked source with the smallest index. It could come again, and its old packets with it: so no
// other source begins at an index that it may have had. Ours do not either (Sender), and a phone's go on.
func (r *Receiver) forget() {
	p := r.parking.remove(r.parking.first(func(a, b *parked) bool { return a.rtp < b.rtp }))
	for _, k := range r.keys {
		if p.hasRTP {
			k.least = max(k.least, p.rtp+1)
		}
		if p.hasRTCP {
			k.leastRTCP = max(k.leastRTCP, uint64(p.rtcp)+1)
		}
	}
	r.due = true
}

// scratchOf is a context of the key for attempts. It is made again now and then, as the library forgets no source.
func (r *Receiver) scratchOf(k *Key) (*pion.Context, error) {
	if r.scratchKey != k || r.scratchLeft == 0 {
		c, err := k.newContext()
		if err != nil {
			return nil, err
		}
		r.scratch, r.scratchKey, r.scratchLeft = c, k, scratchUses
	}
	r.scratchLeft--
	return r.scratch, nil
}

// guess is the index of a sequence number that is next to the highest index (RFC 3711 section 3.3.1 and appendix A).
func guess(highest uint64, seq uint16) uint64 {
	roc, last := highest>>16, highest&0xffff
	switch {
	case last < 1<<15 && uint64(seq) > last+1<<15 && roc > 0:
		roc--
	case last >= 1<<15 && last-1<<15 > uint64(seq):
		roc++
	}
	return roc<<16 | uint64(seq)
}

// Heard is what is known of a source that is received, for the next process.
type Heard struct {
	SSRC            uint32
	Index           uint64 // the highest, of SRTP
	RTCPIndex       uint32 // the highest, of SRTCP
	HasRTP, HasRTCP bool
	// Exact says that nothing was heard since.
	Exact bool
	// Others says that it is about all sources that were forgotten. SSRC is 0.
	Others bool
}

// MaxHeard is how long a list of Heard may be.
const MaxHeard = MaxSources + 1

// Due says whether the next process has to know what was heard since it was told last. It is to be looked at after each
// packet that was opened.
func (r *Receiver) Due() bool { return r.due }

// Heard returns every source.
func (r *Receiver) Heard() []Heard { return r.AppendHeard(make([]Heard, 0, MaxHeard)) }

// AppendHeard appends every source. With room for MaxHeard it allocates nothing.
func (r *Receiver) AppendHeard(all []Heard) []Heard {
	r.due = false
	for i := range r.active {
		s := &r.active[i]
		s.kept, s.keptRTCP = s.rtp.highest, s.rtcp.highest
		all = append(all, Heard{
			SSRC: s.ssrc, Index: s.rtp.highest, RTCPIndex: uint32(s.rtcp.highest), HasRTP: s.rtp.any, HasRTCP: s.rtcp.any,
		})
	}
	for i := range r.parking.places {
		p := &r.parking.places[i]
		p.kept, p.keptRTCP = p.rtp, p.rtcp
		all = append(all, Heard{SSRC: p.ssrc, Index: p.rtp, RTCPIndex: p.rtcp, HasRTP: p.hasRTP, HasRTCP: p.hasRTCP})
	}
	others := Heard{Others: true}
	for _, k := range r.keys {
		if k.least > others.Index {
			others.Index, others.HasRTP = k.least, true
		}
		if k.leastRTCP > uint64(others.RTCPIndex) {
			others.RTCPIndex, others.HasRTCP = uint32(k.leastRTCP), true
		}
	}
	if others.HasRTP || others.HasRTCP {
		all = append(all, others)
	}
	return all
}

// Restore takes what another receiver of the same keys has heard: nothing of it is accepted again. The receiver has all
// these keys already.
func (r *Receiver) Restore(all []Heard, now int64) {
	r.due = true
	for _, h := range all {
		if !h.Exact {
			h.Index += heardAhead
			h.RTCPIndex = min(h.RTCPIndex+heardRTCPAhead, maxRTCPIndex)
		}
		if h.Others {
			for _, k := range r.keys {
				k.least, k.leastRTCP = max(k.least, h.Index), max(k.leastRTCP, uint64(h.RTCPIndex))
			}
			continue
		}
		s := wake(&parked{ssrc: h.SSRC, hasRTP: h.HasRTP, hasRTCP: h.HasRTCP, rtp: h.Index, rtcp: h.RTCPIndex})
		s.heard = now
		r.activate(&s)
	}
}
