package series

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// phone receives packets, and reports as RFC 3550, appendix A.3, has it.
type phone struct {
	first, highest uint32
	received       int
}

func (p *phone) receive(extended uint32) {
	if p.received == 0 {
		p.first = extended
	}
	p.highest = max(p.highest, extended)
	p.received++
}

// rtcp is a compound packet with a report on the series of rtp(v6, 1, source …).
func (p *phone) rtcp(v6, sender bool, source uint32) []byte {
	lost := int32(p.highest-p.first) + 1 - int32(p.received)
	r := []byte{0x81, typeRR, 0, 7, 0, 0, 0, 99}
	if sender {
		r = append([]byte{0x81, typeSR, 0, 12, 0, 0, 0, 99}, make([]byte, senderInfo)...)
	}
	r = binary.BigEndian.AppendUint32(r, source)
	r = binary.BigEndian.AppendUint32(r, uint32(lost)&0xffffff)
	r = binary.BigEndian.AppendUint32(r, p.highest)
	r = append(r, make([]byte, 12)...)
	sdes := []byte{0x81, 202, 0, 2, 0, 0, 0, 99, 1, 0, 0, 0}
	media := rtp(v6, 1, source, 0, 0, 0)
	at, size := headerIPv4, 4
	if v6 {
		at, size = headerIPv6, 16
	}
	header := append([]byte{}, media[:at+headerUDP]...)
	copy(header[at-2*size:at-size], media[at-size:at])
	copy(header[at-size:at], media[at-2*size:at-size])
	header[at+1]++
	return append(append(header, r...), sdes...)
}

// What is lost behind the far box is known from the far phone's reports, less what was lost before.
func TestLossesInTheFarLAN(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		a, b := newEnd(true), newEnd(false)
		var far phone
		lostFar, counted := 0, 0
		const first = 40_000 // wraps on the way
		for i := range 20_000 {
			now := int64(i) * gap
			p := rtp(v6, 1, 7, uint16(first+i), 0, uint32(160*i))
			switch mark := a.table.Arrive(p, 4, now); {
			case i%29 == 3: // dropped here
			case i%31 == 4:
				a.table.Pass(mark) // on the line
			default:
				a.table.Pass(mark)
				b.table.Pass(b.table.Arrive(p, 5, now))
				if i%33 == 7 && i > 400 {
					if lostFar++; i < 19_000 {
						counted++
					}
				} else {
					far.receive(uint32(first + i))
				}
			}
			if i%50 == 49 {
				ra, rb := a.tell(), b.tell()
				require.True(t, a.Hear(4, rb, 0))
				require.True(t, b.Hear(5, ra, 0))
			}
			if i%251 == 250 {
				a.HearRTCP(4, far.rtcp(v6, i%2 == 0, 7))
				a.HearRTCP(9, far.rtcp(v6, false, 7)) // of a peer that it does not concern
			}
		}
		ra := one(t, a.table)
		f := a.Fate(&ra, true)
		assert.GreaterOrEqual(t, f.FarLAN, uint32(counted))
		assert.LessOrEqual(t, f.FarLAN, uint32(lostFar))
		assert.Zero(t, f.FarBox)
	}
}

// Without the far box's words nothing is claimed, nor where a phone begins to count again, or tells nonsense.
func TestReportsOfPhonesThatDoNotCount(t *testing.T) {
	a, b := newEnd(true), newEnd(false)
	var far phone
	for i := range 3000 {
		p := rtp(false, 1, 7, uint16(i), 0, uint32(160*i))
		a.table.Pass(a.table.Arrive(p, 4, int64(i)*gap))
		b.table.Pass(b.table.Arrive(p, 4, int64(i)*gap))
		if i%5 > 0 {
			far.receive(uint32(i))
		}
		if i%50 == 49 {
			a.tell()
			if r := b.tell(); i < 1000 || i > 2000 {
				a.Hear(4, r, 0)
			}
		}
		switch {
		case i == 2600:
			far = phone{}
		case i == 2801:
			a.HearRTCP(4, far.rtcp(false, false, 7))
		case i%200 == 199 && i > 1000:
			a.HearRTCP(4, far.rtcp(false, false, 7))
		}
	}
	ra := one(t, a.table)
	lost := a.Fate(&ra, true).FarLAN
	assert.Positive(t, lost, "after the far end told its words again")
	assert.LessOrEqual(t, lost, uint32(200))
}

func TestWhatIsAReceptionReport(t *testing.T) {
	var far phone
	far.receive(1)
	assert.True(t, IsReceptionReport(far.rtcp(false, false, 7)))
	assert.True(t, IsReceptionReport(far.rtcp(true, true, 7)))
	assert.False(t, IsReceptionReport(rtp(false, 1, 7, 1, 0, 0)))
	assert.False(t, IsReceptionReport(rtp(true, 1, 7, 1, 0, 0)))
	assert.False(t, IsReceptionReport(far.rtcp(false, false, 7)[:50]))
}

func FuzzHearRTCP(f *testing.F) {
	var far phone
	far.receive(20)
	f.Add(far.rtcp(false, false, 7))
	f.Add(far.rtcp(true, true, 7))
	f.Fuzz(func(t *testing.T, p []byte) {
		a := newEnd(true)
		for i := range 300 {
			a.table.Pass(a.table.Arrive(rtp(i%2 == 0, 1, 7, uint16(i), 0, 0), 4, int64(i)*gap))
		}
		a.tell()
		if len(p) < headerIPv4 || p[0]>>4 != 4 && (p[0]>>4 != 6 || len(p) < headerIPv6) {
			return
		}
		for range 3 {
			a.HearRTCP(4, p)
		}
	})
}
