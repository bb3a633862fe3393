package media

import (
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"pgregory.net/rapid"
)

// RFC 7983 section 7, and RFC 5761 section 4 for RTCP.
func TestClassify(t *testing.T) {
	long := func(first, second byte) []byte { return append([]byte{first, second}, make([]byte, 30)...) }
	for first := range 256 {
		want := kindOther
		switch {
		case first >= 20 && first <= 63:
			want = kindDTLS
		case first >= 128 && first <= 191:
			want = kindRTP
		}
		assert.Equal(t, want, classify(long(byte(first), 0)), "first byte %d", first)
	}
	for second := range 256 {
		want := kindRTP
		if second >= 192 && second <= 223 {
			want = kindRTCP
		}
		assert.Equal(t, want, classify(long(0x80, byte(second))), "second byte %d", second)
	}
	assert.Equal(t, kindRTCP, classify(report(1)[:8]))
	assert.Equal(t, kindOther, classify(report(1)[:7]))
	assert.Equal(t, kindOther, classify(rtp(1, 1)[:11]))
}

// FuzzClassify sorts any bytes.
func FuzzClassify(f *testing.F) {
	f.Add(rtp(1, 1))
	f.Add(report(1))
	f.Fuzz(func(_ *testing.T, p []byte) {
		switch classify(p) {
		case kindRTP:
			payloadType(p)
			wholeRTP(p)
		case kindRTCP:
			wholeRTCP(p)
		}
	})
}

// What passes is never more than the burst and the rate allow, in any interval.
func TestQuotaBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := Quota{
			Packets: rapid.IntRange(1, 2000).Draw(t, "packets"), Bytes: rapid.IntRange(100, 1_000_000).Draw(t, "bytes"),
			Burst: time.Duration(rapid.Int64Range(int64(time.Millisecond), int64(time.Second)).Draw(t, "burst")),
		}
		type passed struct {
			at int64
			n  int
		}
		now := rapid.Int64Range(1, 1<<40).Draw(t, "now")
		b := newBucket(q, now)
		var all []passed
		for range rapid.IntRange(1, 100).Draw(t, "how many") {
			now += rapid.Int64Range(0, int64(100*time.Millisecond)).Draw(t, "gap")
			if n := rapid.IntRange(12, 1500).Draw(t, "size"); b.take(n, now) {
				all = append(all, passed{now, n})
			}
		}
		for i := range all {
			packets, bytes := 0, 0
			for j := i; j < len(all); j++ {
				packets++
				bytes += all[j].n
				spent := float64(all[j].at-all[i].at)/1e9 + q.Burst.Seconds()
				if float64(packets) > 1+spent*float64(q.Packets)+1e-6 || float64(bytes) > 1<<16+spent*float64(q.Bytes)+1e-6 {
					t.Fatalf("%d packets of %d bytes", packets, bytes)
				}
			}
		}
	})
}

// A codec that sends what it may is never refused, however long the call.
func TestQuotaOfACodec(t *testing.T) {
	b := newBucket(Quota{Packets: 50, Bytes: 50 * 172, Burst: 100 * time.Millisecond}, 1)
	now := int64(1)
	for range 1_000_000 {
		now += int64(20 * time.Millisecond)
		if !b.take(172, now) {
			t.Fatalf("refused after %s", time.Duration(now))
		}
	}
	assert.True(t, b.take(172, now), "the burst")
	assert.False(t, func() bool {
		all := true
		for range 10 {
			all = b.take(172, now) && all
		}
		return all
	}())
	assert.True(t, b.take(172, now+1<<62), "after a day")
}

func TestQuotaLimits(t *testing.T) {
	for _, q := range []Quota{
		{}, {Packets: 1, Bytes: 1}, {Packets: 0, Bytes: 1, Burst: time.Second}, {Packets: 1, Bytes: 0, Burst: time.Second},
		{Packets: maxQuotaPackets + 1, Bytes: 1, Burst: time.Second}, {Packets: 1, Bytes: 1, Burst: time.Hour},
	} {
		assert.Error(t, q.check(), "%+v", q)
	}
	assert.NoError(t, wideQuota.check())
	b := newBucket(wideQuota, 1)
	assert.True(t, b.take(1500, 1<<62), "no overflow")
	assert.Positive(t, b.bytes)
}

// A reader sees an address that was stored, whole.
func TestLatch(t *testing.T) {
	var l latch
	for _, a := range []netip.AddrPort{phone4, phone6, far4, far6} {
		l.store(a)
		assert.Equal(t, a, l.load())
	}
	l.store(phone4)
	var readers sync.WaitGroup
	var reads [2]atomic.Uint64
	var stop atomic.Bool
	for i := range reads {
		readers.Go(func() {
			for !stop.Load() {
				if a := l.load(); a != far6 && a != phone4 {
					t.Errorf("read %s", a)
				}
				reads[i].Add(1)
				runtime.Gosched()
			}
		})
	}
	for range 500 { // in between each reader reads, as it does in learnEvery
		for _, a := range []netip.AddrPort{far6, phone4} {
			l.store(a)
			for i := range reads {
				for was := reads[i].Load(); reads[i].Load() == was; {
					runtime.Gosched()
				}
			}
		}
	}
	stop.Store(true)
	readers.Wait()
}

func TestRing(t *testing.T) {
	r := newRing[int](4)
	assert.Nil(t, r.first())
	for round := range 10 {
		for i := range 4 {
			*r.next() = round*4 + i
			r.put()
		}
		assert.Nil(t, r.next(), "full")
		for i := range 4 {
			assert.Equal(t, round*4+i, *r.first())
			r.drop()
		}
		assert.Nil(t, r.first())
	}
}

func TestEveryReasonHasAName(t *testing.T) {
	seen := map[string]bool{}
	for _, name := range Reasons() {
		assert.NotEmpty(t, name)
		assert.False(t, seen[name], name)
		seen[name] = true
	}
}

func TestWhatALegMayBe(t *testing.T) {
	good := clearLeg(1)
	assert.NoError(t, good.check())
	for why, spoil := range map[string]func(l *Leg){
		"neither clear nor secure":  func(l *Leg) { l.Protection = 0 },
		"local address":             func(l *Leg) { l.Local = netip.AddrPort{} },
		"another address family":    func(l *Leg) { l.Remote = phone6 },
		"not an address and port":   func(l *Leg) { l.Remote = netip.MustParseAddrPort("0.0.0.0:4000") },
		"remote address 224.0.0.1":  func(l *Leg) { l.Remote = netip.MustParseAddrPort("224.0.0.1:4000") },
		"address and port of one":   func(l *Leg) { l.Remote = netip.MustParseAddrPort("[::ffff:192.0.2.7]:4000") },
		"remote address of RTCP":    func(l *Leg) { l.LocalRTCP = next(ours4) },
		"a raw packet has no place": func(l *Leg) { l.Local = netip.MustParseAddrPort("[fe80::1%eth0]:4000") },
		"DSCP 64":                   func(l *Leg) { l.DSCP = 64 },
		"quota of 0 packets":        func(l *Leg) { l.Quota = Quota{} },
		"has no keys":               func(l *Leg) { l.Learn = true },
		"side 2 is not a side":      func(l *Leg) { l.Side = 2 },
	} {
		l := clearLeg(1)
		spoil(&l)
		assert.ErrorContains(t, l.check(), why)
	}
}
