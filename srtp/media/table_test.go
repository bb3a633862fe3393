package media

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/stream"
	"ringway/srtp/suite"
)

func placeOf(text string) netip.AddrPort { return netip.MustParseAddrPort(text) }

// TestTableIsChangedInPlace: what one pair has another one takes over, what it has no more is gone, and an address
// without ports is forgotten.
func TestTableIsChangedInPlace(t *testing.T) {
	leg := func(id uint64, side Side, rtp, rtcp string) *end {
		l := Leg{ID: id, Side: side, Local: placeOf(rtp)}
		if rtcp != "" {
			l.LocalRTCP = placeOf(rtcp)
		}
		return newEnd(l, nil)
	}
	of := func(a, b *end) *pair { return &pair{flows: [2]*flow{{from: a, to: b}, {from: b, to: a}}} }
	first := of(leg(1, LAN, "10.1.0.1:4000", "10.1.0.1:4001"), leg(2, Tunnel, "[2001:db8::1]:65535", ""))
	var tab table
	at := func(side Side, text string) string {
		p := tab.find(side, placeOf(text))
		if p == nil {
			return "nothing"
		}
		return fmt.Sprint(p.from.ID, " ", p.rtcp)
	}
	assert.Equal(t, "nothing", at(LAN, "10.1.0.1:4000"))
	tab.replace(nil, first)
	assert.Equal(t, "1 false", at(LAN, "10.1.0.1:4000"))
	assert.Equal(t, "1 true", at(LAN, "10.1.0.1:4001"))
	assert.Equal(t, "2 false", at(Tunnel, "[2001:db8::1]:65535"))
	for _, no := range []string{"10.1.0.1:4002", "10.1.0.1:4256", "10.1.0.2:4000", "10.1.0.1:0"} {
		assert.Equal(t, "nothing", at(LAN, no), no)
	}
	assert.Equal(t, "nothing", at(Tunnel, "10.1.0.1:4000"), "of the other side")

	// Another pair has RTP's port of leg 1, and RTCP with it.
	second := of(leg(1, LAN, "10.1.0.1:4000", ""), leg(3, Tunnel, "10.2.0.1:6000", ""))
	tab.replace(map[uint64]*pair{1: first, 2: first}, second)
	assert.Equal(t, "1 false", at(LAN, "10.1.0.1:4000"))
	assert.Equal(t, "nothing", at(LAN, "10.1.0.1:4001"))
	assert.Equal(t, "nothing", at(Tunnel, "[2001:db8::1]:65535"))
	assert.Equal(t, "3 false", at(Tunnel, "10.2.0.1:6000"))
	assert.Len(t, tab.all(Tunnel), 1, "addresses without a port are forgotten")

	tab.replace(map[uint64]*pair{1: second, 3: second}, nil)
	assert.Empty(t, tab.all(LAN))
	assert.Empty(t, tab.all(Tunnel))
	tab.replace(map[uint64]*pair{1: second, 3: second}, nil)
	assert.Empty(t, tab.all(LAN), "twice")
}

// BenchmarkPair is what a call takes of memory, and what it costs to set up beside a thousand others: it must not
// depend on how many there are.
func BenchmarkPair(b *testing.B) {
	r, err := New(Options{})
	require.NoError(b, err)
	b.Cleanup(r.Close)
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	set := func(i int) {
		key := func() *stream.Key {
			const s = suite.AEADAES128GCM
			k, err := stream.NewKey(s, make([]byte, s.KeyLen()), make([]byte, s.SaltLen()), []byte{1, 2, 3, 4}, 0)
			require.NoError(b, err)
			return k
		}
		l := Leg{
			ID: uint64(2*i + 1), Side: LAN, Protection: Clear,
			Local:  netip.AddrPortFrom(netip.MustParseAddr("10.1.0.1"), uint16(20000+2*i)),
			Remote: placeOf("10.1.0.2:4000"), Quota: Quota{Packets: 200, Bytes: 40_000, Burst: time.Second},
		}
		m := l
		m.ID, m.Side, m.Protection = l.ID+1, Tunnel, Secure
		m.Local = netip.AddrPortFrom(netip.MustParseAddr("10.2.0.1"), l.Local.Port())
		m.Receiver, m.Sender = stream.NewReceiver(key()), stream.NewSender(key())
		require.NoError(b, r.Set(l, m))
	}
	const others = 1000
	before := heap()
	for i := range others {
		set(i)
	}
	each := float64(heap()-before) / others
	b.ReportAllocs()
	b.ResetTimer()
	b.ReportMetric(each, "heap-B/call")
	for i := range b.N {
		set(others + i%100)
		b.StopTimer()
		require.NoError(b, r.Remove(uint64(2*(others+i%100)+1)))
		b.StartTimer()
	}
}
