package stamp

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
)

func addr(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }

// reflector answers on loopback, on a port that the kernel chose.
func reflector(t *testing.T) (*Reflector, netip.AddrPort, netip.AddrPort) {
	t.Helper()
	t.Cleanup(func() { goleak.VerifyNone(t) })
	r := &Reflector{}
	l, err := r.Listen(Listen{Device: "lo"})
	require.NoError(t, err)
	t.Cleanup(func() { l.Close(); require.NoError(t, l.Err()) })
	a := l.Addrs()
	require.Len(t, a, 2)
	return r, netip.AddrPortFrom(
		netip.MustParseAddr("127.0.0.1"), a[0].Port(),
	), netip.AddrPortFrom(netip.IPv6Loopback(), a[1].Port())
}

func TestMeasureOverLoopback(t *testing.T) {
	r, four, six := reflector(t)
	for _, to := range []netip.AddrPort{four, six} {
		for _, f := range []Format{NTP, PTP} {
			t.Run(fmt.Sprint(to, f), func(t *testing.T) {
				res, err := Measure(
					t.Context(),
					Probe{
						To: to, Streams: 4, Interval: 2 * time.Millisecond, Count: 50, Size: 172, DSCP: 46,
						Format: f,
					},
				)
				require.NoError(t, err)
				assert.Zero(t, res.Strange)
				assert.Zero(t, res.SendErrors)
				g := res.Figures()
				assert.Equal(t, Lost{Sent: 200, Stateful: true}, g.Lost)
				assert.Equal(t, map[uint8]int{46: 200}, g.DSCPThere, "the question's code point, seen there")
				assert.Equal(t, map[uint8]int{46: 200}, g.DSCPHere, "the answer has that of the question")
				assert.Equal(t, uint8(255), g.TTLThere)
				assert.Greater(t, g.RoundTrip.Delay.Min(), time.Duration(0))
				assert.Less(t, g.RoundTrip.Delay.Min(), 10*time.Millisecond)
				assert.Equal(t, 200, g.Forward.Received)
				assert.Greater(t, g.Forward.Voice.MOS, 4.0)
				assert.NotEmpty(t, g.Clocks.Statement)
				low, high := time.Duration(math.MaxInt64), time.Duration(math.MinInt64)
				for _, s := range res.Streams {
					for _, p := range s.Packets {
						low, high = min(
							low, time.Duration(p.ThereIn-p.Sent),
						), max(high, time.Duration(p.ThereIn-p.Sent))
					}
				}
				assert.Equal(
					t, high-low, g.Forward.Delay.Max()-g.Forward.Delay.Min(), "one clock: the truth is known",
				)
				for _, s := range res.Streams {
					for n, p := range s.Packets {
						assert.Equal(t, uint32(n), p.FarSeq)
						assert.Equal(t, uint32(n+1), p.Far.RxCount)
						assert.Less(
							t, (time.Duration(p.ThereIn - p.Sent)).Abs(), time.Second,
							"one clock: no era, no leap second between",
						)
					}
				}
			})
		}
	}
	s := r.Stats()
	assert.Equal(t, uint64(800), s.Answered)
	assert.Equal(t, 16, s.Sessions)
	assert.Empty(t, s.Drops)
}

// relay stands between sender and reflector and loses what it is told to.
func relay(t *testing.T, to netip.AddrPort, there, back func(n int) bool) netip.AddrPort {
	t.Helper()
	front, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	rear, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
	require.NoError(t, err)
	var done sync.WaitGroup
	var mu sync.Mutex
	var client netip.AddrPort
	done.Go(func() {
		buf := make([]byte, 2048)
		for n := 0; ; n++ {
			k, from, err := front.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			mu.Lock()
			client = from
			mu.Unlock()
			if !there(n) {
				_, _ = rear.Write(buf[:k])
			}
		}
	})
	done.Go(func() {
		buf := make([]byte, 2048)
		for n := 0; ; n++ {
			k, err := rear.Read(buf)
			if err != nil {
				return
			}
			mu.Lock()
			to := client
			mu.Unlock()
			if !back(n) {
				_, _ = front.WriteToUDPAddrPort(buf[:k], to)
			}
		}
	})
	t.Cleanup(func() { front.Close(); rear.Close(); done.Wait() })
	return front.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestLossIsToldApart(t *testing.T) {
	_, four, _ := reflector(t)
	// Every tenth is lost there, every ninth of what arrives is lost back.
	to := relay(t, four, func(n int) bool { return n%10 == 3 }, func(n int) bool { return n%9 == 5 })
	res, err := Measure(
		t.Context(),
		Probe{To: to, Streams: 1, Interval: time.Millisecond, Count: 100, Size: 100, Timeout: time.Second},
	)
	require.NoError(t, err)
	g := res.Figures()
	assert.Equal(t, Lost{Sent: 100, Total: 20, Forward: 10, Backward: 10, Stateful: true}, g.Lost)
	assert.InDelta(t, 0.10, g.Forward.Loss, 1e-9)
	assert.InDelta(t, 10.0/90, g.Backward.Loss, 1e-9)
	assert.Less(t, g.Forward.Voice.MOS, 4.0)
}

func TestNobodyAnswers(t *testing.T) {
	defer goleak.VerifyNone(t)
	c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	to := c.LocalAddr().(*net.UDPAddr).AddrPort()
	c.Close() // a port that is free
	res, err := Measure(
		t.Context(),
		Probe{
			To: to, Streams: 1, Interval: time.Millisecond, Count: 3, Size: 44, Timeout: 50 * time.Millisecond,
		},
	)
	require.NoError(t, err)
	g := res.Figures()
	assert.Equal(t, g.Lost.Sent, g.Lost.Total)
	assert.Equal(t, g.Lost.Sent, g.Lost.Unknown)
	assert.Greater(t, res.Refused, 0, "the kernel says that nobody is there")
}

// firstAnswer asks by hand, then asks what will be answered, and gives the first answer that comes.
func firstAnswer(t *testing.T, to netip.AddrPort, b []byte) []byte {
	t.Helper()
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
	require.NoError(t, err)
	defer c.Close()
	for _, q := range [][]byte{b, Question{Seq: 99, SSID: 9}.Append(nil)} {
		_, err = c.Write(q)
		require.NoError(t, err)
	}
	buf := make([]byte, 4096)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
	n, err := c.Read(buf)
	require.NoError(t, err)
	return buf[:n]
}

func TestReflectorNeverAnswersMoreThanItIsAsked(t *testing.T) {
	r, to, _ := reflector(t)
	q := Question{Seq: 1, SSID: 1}.Append(nil)
	for _, b := range [][]byte{q[:43], nil, make([]byte, 2049)} {
		a, err := ParseAnswer(firstAnswer(t, to, b))
		require.NoError(t, err)
		assert.Equal(t, uint32(99), a.SenderSeq, "%d bytes were answered", len(b))
	}
	for _, n := range []int{44, 45, 172, 1372, 2048} {
		b := make([]byte, n)
		copy(b, q)
		assert.Len(t, firstAnswer(t, to, b), n)
	}
	assert.Equal(t, map[Reason]uint64{DropShort: 2, DropOversized: 1}, r.Stats().Drops)

	// Ports of servers, and those of reflectors: two of them would never stop.
	for _, from := range []string{"10.0.0.1:862", "10.0.0.1:53", "10.0.0.1:20000"} {
		_, _, why := r.admit(q, addr(from), 20000, 1)
		assert.Equal(t, DropSourcePort, why, from)
	}
}

func TestBoundsOfMemoryAndRate(t *testing.T) {
	s := newSessions()
	key := func(host, port, ssid int) sessionKey {
		return sessionKey{
			netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(host >> 8), byte(host)}), uint16(port)),
			uint16(ssid),
		}
	}
	count := func(n int, k func(i int) sessionKey, at func(i int) time.Duration) map[Reason]int {
		got := map[Reason]int{}
		for i := range n {
			_, why := s.find(k(i), at(i))
			got[why]++
		}
		return got
	}
	ms := func(i int) time.Duration { return time.Second + time.Duration(i)*time.Millisecond }
	assert.Equal(
		t, map[Reason]int{"": 256, DropSessions: 44},
		count(300, func(i int) sessionKey { return key(1, 5000+i, 1) }, ms), "sessions of one host",
	)
	second := func(i int) time.Duration { return 2*time.Second + time.Duration(i)*time.Millisecond }
	assert.Equal(
		t, map[Reason]int{"": 255, DropSourcesFull: 45},
		count(300, func(i int) sessionKey { return key(2+i, 5000, 1) }, second), "hosts",
	)

	s = newSessions()
	same := func(int) time.Duration { return time.Second }
	assert.Equal(
		t, map[Reason]int{"": 500, DropRateSource: 500},
		count(1000, func(int) sessionKey { return key(1, 5000, 1) }, same),
		"a tenth of a second's worth at once",
	)
	assert.Equal(
		t, map[Reason]int{"": 500, DropRateSource: 500},
		count(1000, func(int) sessionKey { return key(2, 5000, 1) }, same), "another host has its own share",
	)
	assert.Equal(
		t, map[Reason]int{DropRate: 500, DropRateSource: 500},
		count(1000, func(int) sessionKey { return key(3, 5000, 1) }, same), "all together",
	)

	s = newSessions()
	ses, why := s.find(key(1, 5000, 1), time.Second)
	require.Empty(t, why)
	ses.sent = 7
	ses, _ = s.find(key(1, 5000, 1), time.Second+sessionIdle)
	assert.Equal(t, uint32(2), ses.received, "it goes on")
	ses, _ = s.find(key(1, 5000, 1), time.Second+2*sessionIdle+1)
	assert.Equal(t, uint32(1), ses.received, "it was idle for too long: a new one")
	assert.Equal(t, uint32(0), ses.sent)
	for h := range maxSources - 1 {
		_, why := s.find(key(100+h, 5000, 1), 200*time.Second)
		require.Empty(t, why)
	}
	assert.Len(t, s.sources, maxSources)
	_, why = s.find(key(99, 5000, 1), 201*time.Second)
	assert.Empty(t, why, "the silent source was removed")
	assert.Len(t, s.sources, maxSources)
	assert.Equal(t, maxSources, s.active(201*time.Second))
}

// Answering makes no garbage: the daemon's collector must not become the planes' neighbour.
func TestAnsweringAllocatesNothing(t *testing.T) {
	var r Reflector
	r.start()
	r.clock.read = func() (ClockState, error) { return ClockState{}, nil }
	l, err := layoutOf(172)
	require.NoError(t, err)
	question := l.extensions(Question{Seq: 7, SSID: 1}.Append(nil), 46, 9)
	b, oob := make([]byte, len(question)), make([]byte, 0, controlSpace)
	from, to := addr("10.0.0.1:5000"), netip.MustParseAddr("10.0.0.2")
	now := time.Duration(1)
	assert.Zero(t, testing.AllocsPerRun(100, func() {
		copy(b, question)
		now += time.Millisecond
		q, ses, why := r.admit(b, from, Port, now)
		if why != "" {
			panic(why)
		}
		ses.sent++
		extend(b[BaseSize:], 184, ses.received, ses.sent)
		oob = replyControl(oob[:0], to, 184, 0x1200)
		r.finish(b, q, control{at: 1e18}, ses.sent, 1e18+5)
	}))
}

func BenchmarkAnswer(b *testing.B) {
	var r Reflector
	r.start()
	l, _ := layoutOf(172)
	question := l.extensions(Question{Seq: 7, SSID: 1}.Append(nil), 46, 9)
	buf, oob := make([]byte, len(question)), make([]byte, 0, controlSpace)
	from, to := addr("10.0.0.1:5000"), netip.MustParseAddr("10.0.0.2")
	now := time.Duration(1)
	b.ReportAllocs()
	for b.Loop() {
		copy(buf, question)
		now += time.Millisecond
		q, ses, _ := r.admit(buf, from, Port, now)
		ses.sent++
		extend(buf[BaseSize:], 184, ses.received, ses.sent)
		oob = replyControl(oob[:0], to, 184, 0x1200)
		r.finish(buf, q, control{at: 1e18}, ses.sent, time.Now().UnixNano())
	}
}
