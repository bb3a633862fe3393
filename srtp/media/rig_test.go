package media

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"ringway/srtp/stream"
	"ringway/srtp/suite"
)

// Addresses of tests: a phone and a far box, and ours beside each.
var (
	phone4, ours4 = netip.MustParseAddrPort("192.0.2.7:4000"), netip.MustParseAddrPort("192.0.2.1:40000")
	far4, voice4  = netip.MustParseAddrPort("198.51.100.2:41000"), netip.MustParseAddrPort("198.51.100.1:40000")
	phone6        = netip.MustParseAddrPort("[2001:db8:1::7]:4000")
	ours6         = netip.MustParseAddrPort("[2001:db8:1::1]:40000")
	far6          = netip.MustParseAddrPort("[2001:db8:2::2]:41000")
)

// wideQuota never says no.
var wideQuota = Quota{Packets: maxQuotaPackets, Bytes: maxQuotaBytes, Burst: 10 * time.Second}

// anyPayload allows every type.
var anyPayload = Payloads{^uint64(0), ^uint64(0)}

// masterOf is a key of a test: every number has its own.
func masterOf(s suite.Suite, number byte) (master, salt []byte) {
	b := make([]byte, s.KeyLen()+s.SaltLen())
	for i := range b {
		b[i] = byte(i)*7 + number
	}
	return b[:s.KeyLen()], b[s.KeyLen():]
}

func newKey(t testing.TB, s suite.Suite, number byte, mki []byte) *stream.Key {
	t.Helper()
	master, salt := masterOf(s, number)
	k, err := stream.NewKey(s, master, salt, mki, 0)
	require.NoError(t, err)
	return k
}

// clearLeg is a phone's that speaks RTP, with RTCP on the same port.
func clearLeg(id uint64) Leg {
	return Leg{ID: id, Side: LAN, Local: ours4, Remote: phone4, Protection: Clear, Payloads: anyPayload, Quota: wideQuota}
}

// keyed is the far box's leg: it sends under key in, and is sent under key out.
func keyed(t testing.TB, id uint64, s suite.Suite, in, out byte, mki []byte) Leg {
	return Leg{
		ID: id, Side: Tunnel, Local: voice4, Remote: far4, Protection: Secure,
		Payloads: anyPayload, Quota: wideQuota, DSCP: 46,
		Receiver: stream.NewReceiver(newKey(t, s, in, mki)), Sender: stream.NewSender(newKey(t, s, out, mki)),
	}
}

// rig is a pair with the forwarders of both sides, and no sockets.
type rig struct {
	t     testing.TB
	pair  *pair
	table table
	total drops
	sides [sides]*forwarder
	now   int64
}

func newRig(t testing.TB, a, b Leg) *rig {
	r := &rig{t: t, now: 1}
	for i := range r.sides {
		r.sides[i] = newForwarder(Side(i), &r.table, &r.total)
	}
	r.set(a, b)
	return r
}

// set makes the pair, or another one that goes on from it.
func (r *rig) set(a, b Leg) {
	require.NoError(r.t, a.check())
	require.NoError(r.t, b.check())
	before := map[uint64]*pair{}
	if r.pair != nil {
		for _, f := range r.pair.flows {
			before[f.from.ID] = r.pair
		}
	}
	r.pair = joined(before, a, b, r.now)
	r.table.replace(before, r.pair)
}

// pass has a packet arrive for a leg, 20 ms after the one before, and returns what leaves.
func (r *rig) pass(leg uint64, p []byte) *out {
	r.now += int64(20 * time.Millisecond)
	return r.at(leg, arrival{payload: p}, 0)
}

// at has a packet arrive that waited so long. Addresses that are not set are the leg's.
func (r *rig) at(leg uint64, a arrival, waited time.Duration) *out {
	fl := flowOf(map[uint64]*pair{leg: r.pair}, leg)
	if !a.from.IsValid() {
		a.from = fl.from.Remote
	}
	if !a.to.IsValid() {
		a.to = fl.from.Local
	}
	f := r.sides[fl.from.Side]
	f.n = 0
	f.take(&a, waited, r.now, r.now)
	if f.n == 0 {
		return nil
	}
	return &f.outs[0]
}

// payload is what is behind the headers of IP and UDP.
func (o *out) payload() []byte { return o.wire[len(o.wire)-o.size:] }

// dropped is what was dropped of a leg, and of none.
func (r *rig) dropped(leg uint64) map[string]uint64 {
	m := map[string]uint64{}
	r.total.addTo(m)
	endOf(map[uint64]*pair{leg: r.pair}, leg).drops.addTo(m)
	return m
}

// rtp is a packet of PCMU.
func rtp(ssrc uint32, seq uint16) []byte {
	p := make([]byte, rtpHeader+160)
	p[0] = 0x80
	binary.BigEndian.PutUint16(p[2:], seq)
	binary.BigEndian.PutUint32(p[4:], uint32(seq)*160)
	binary.BigEndian.PutUint32(p[8:], ssrc)
	for i := rtpHeader; i < len(p); i++ {
		p[i] = byte(seq) + byte(i)*3
	}
	return p
}

// report is a receiver report without blocks, and a description (RFC 3550 section 6).
func report(ssrc uint32) []byte {
	p := []byte{0x80, 201, 0, 1, 0, 0, 0, 0, 0x81, 202, 0, 2, 0, 0, 0, 0, 1, 1, 'x', 0}
	binary.BigEndian.PutUint32(p[4:], ssrc)
	binary.BigEndian.PutUint32(p[12:], ssrc)
	return p
}

// peer is the other end of a keyed leg.
type peer struct {
	t        testing.TB
	sender   *stream.Sender
	receiver *stream.Receiver
	now      int64
}

// newPeer sends under key in of the leg, and is sent under key out.
func newPeer(t testing.TB, s suite.Suite, in, out byte, mki []byte) *peer {
	sender, receiver := stream.NewSender(newKey(t, s, in, mki)), stream.NewReceiver(newKey(t, s, out, mki))
	return &peer{t: t, sender: sender, receiver: receiver}
}

func (p *peer) seal(packet []byte) []byte {
	p.now += int64(20 * time.Millisecond)
	b := make([]byte, len(packet), len(packet)+maxTrailer)
	copy(b, packet)
	var err error
	if classify(packet) == kindRTCP {
		b, err = p.sender.SealRTCP(b, b, p.now)
	} else {
		b, err = p.sender.Seal(b, b, p.now)
	}
	require.NoError(p.t, err)
	return b
}

func (p *peer) open(packet []byte) ([]byte, error) {
	p.now += int64(20 * time.Millisecond)
	dst := make([]byte, 0, maxPacket)
	if classify(packet) == kindRTCP {
		return p.receiver.OpenRTCP(dst, packet, p.now)
	}
	return p.receiver.Open(dst, packet, p.now)
}

var suites = []suite.Suite{suite.AES128CMHMACSHA180, suite.AEADAES128GCM}

var testMKI = []byte{0, 0, 0, 1}
