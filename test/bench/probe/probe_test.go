package probe

import (
	"bytes"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"ringway/quality"
)

// Every stream of every path has one packet an interval, no two packets leave together, and no path has a
// fixed place.
func TestScheduleIsEvenAndFair(t *testing.T) {
	s := Shape{
		Streams:  10,
		Interval: 20 * time.Millisecond,
		Size:     172,
		Lead:     100 * time.Millisecond,
		Length:   time.Second,
		Seed:     7,
		Paths:    6,
	}
	slots := s.slots()
	require.Len(t, slots, s.Total())
	assert.Equal(t, 55*10*6, s.Total())
	gap := 20 * time.Millisecond / 60
	places := make([][6]int, 6)
	byStream := map[Key][]slot{}
	for i, sl := range slots {
		if i > 0 {
			assert.GreaterOrEqual(t, sl.at-slots[i-1].at, gap-time.Nanosecond*10, "slot %d", i)
		}
		places[sl.path][i%6]++
		k := Key{sl.path, sl.stream}
		byStream[k] = append(byStream[k], sl)
	}
	assert.Len(t, byStream, 60)
	for k, of := range byStream {
		require.Len(t, of, 55)
		for i, sl := range of {
			require.Equal(t, uint32(i), sl.seq, "%v", k)
			turn := time.Duration(i)*s.Interval + time.Duration(k.Stream)*2*time.Millisecond
			require.GreaterOrEqual(t, sl.at, turn)
			require.Less(t, sl.at, turn+2*time.Millisecond)
		}
	}
	for path, at := range places {
		for place, n := range at {
			assert.InDelta(t, 550.0/6, n, 45, "path %d at place %d", path, place)
		}
	}
	assert.Equal(t, slots, s.slots(), "the same seed, the same order")
}

func TestShapesAreHeldToTheirRange(t *testing.T) {
	good := Shape{Streams: 10, Interval: 20 * time.Millisecond, Size: 172, Length: time.Second}
	require.NoError(t, good.Check(6))
	for want, change := range map[string]func(*Shape){
		"0 streams (allowed: 1-1000)":            func(s *Shape) { s.Streams = 0 },
		"packets of 20 bytes (allowed: 36-1200)": func(s *Shape) { s.Size = 20 },
		"a packet every 10µs (allowed: 1ms-1s)":  func(s *Shape) { s.Interval = 10 * time.Microsecond },
		"a run of 0s":                            func(s *Shape) { s.Length = 0 },
		"1000 streams on 6 paths every 20ms leave 3.333µs between two packets " +
			"(allowed: 20µs and more; use fewer streams)": func(s *Shape) { s.Streams = 1000 },
	} {
		s := good
		change(&s)
		assert.EqualError(t, s.Check(6), want)
	}
}

func TestPayloadComesBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := make([]byte, rapid.IntRange(MinSize, MaxSize).Draw(t, "size"))
		sl := slot{
			path:   rapid.Byte().Draw(t, "path"),
			stream: rapid.Uint16().Draw(t, "stream"),
			seq:    rapid.Uint32().Draw(t, "seq"),
		}
		run, sent := rapid.Uint32().Draw(t, "run"), rapid.Int64().Draw(t, "sent")
		template(b, run)
		put(b, &sl, sent)
		h, ok := parse(b)
		if !ok || h != (header{run: run, seq: sl.seq, sent: sent, stream: sl.stream, path: sl.path}) {
			t.Fatalf("%+v %t", h, ok)
		}
	})
}

func FuzzParse(f *testing.F) {
	b := make([]byte, 172)
	template(b, 1)
	f.Add(b)
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) { parse(b) })
}

// Two probes on one address of loopback: everything that is sent arrives, is told apart by run, and nothing
// is allocated for it.
func TestProbeSendsAndReceives(t *testing.T) {
	for _, at := range []string{"127.0.0.1", "::1"} {
		t.Run(at, func(t *testing.T) { sendsAndReceives(t, at) })
	}
}

// ready is a probe that has its sockets, on a port that was free a moment before: another program may have taken it
// since, and then it is another port.
func ready(t *testing.T, at string) (p *Client, address string, ended chan error) {
	t.Helper()
	for {
		l, err := net.ListenPacket("udp", net.JoinHostPort(at, "0"))
		require.NoError(t, err)
		l.Close()
		c := Config{Run: 42, Port: l.LocalAddr().(*net.UDPAddr).Port, TOS: 0xb8, Paths: []Ends{{at, at}, {at, at}},
			Shape: Shape{Streams: 4, Interval: 10 * time.Millisecond, Size: 172, Length: 200 * time.Millisecond}}
		inR, inW := io.Pipe()
		outR, outW := io.Pipe()
		ended = make(chan error, 1)
		go func() {
			err := Main(inR, outW)
			outW.CloseWithError(err)
			ended <- err
		}()
		p, err = NewClient("loopback", inW, outR, c)
		require.NoError(t, err)
		if err = p.Ready(t.Context()); err == nil {
			return p, l.LocalAddr().String(), ended
		}
		p.Close()
		require.ErrorContains(t, err, unix.EADDRINUSE.Error())
	}
}

func sendsAndReceives(t *testing.T, at string) {
	p, address, ended := ready(t, at)
	defer p.Close()
	stranger, err := net.Dial("udp", address)
	require.NoError(t, err)
	defer stranger.Close()
	_, err = stranger.Write([]byte("not of this run"))
	require.NoError(t, err)
	require.NoError(t, p.Start(Monotonic()+10*time.Millisecond))
	require.NoError(t, p.Complete(t.Context()))
	r, err := p.Stop(t.Context())
	require.NoError(t, err)
	require.NoError(t, <-ended)
	assert.Len(t, r.Sent, 2*4*20)
	assert.Len(t, r.Received, 2*4*20)
	assert.Len(t, r.Late, 2*4*20)
	assert.Zero(t, r.Unsent, r.SendError)
	assert.Zero(t, r.Overflow)
	assert.Equal(t, 1, r.Strangers)
	streams, unmatched := quality.Match(r.Sent, r.Received, quality.MatchOptions{})
	assert.Len(t, streams, 8)
	assert.Zero(t, unmatched)
	sum := quality.Summarize(streams, quality.G711)
	assert.Zero(t, sum.Loss)
	assert.Zero(t, sum.Delay.Negative(), "the kernel's clock and the sender's are one")
	assert.Less(t, sum.Delay.Percentile(50), 50*time.Millisecond)
}

// A probe whose parent is gone ends.
func TestProbeEndsWithItsParent(t *testing.T) {
	err := Main(
		bytes.NewReader(
			[]byte(
				`{"shape":{"streams":1,"interval":20000000,"size":172,"length":1000000000},"paths":[{"local":"127.0.0.1","remote":"127.0.0.1"}]}`+"\n",
			),
		),
		io.Discard,
	)
	assert.EqualError(t, err, "the probe was not started: its standard input ended")
	err = Main(
		bytes.NewReader(
			[]byte(
				`{"shape":{"streams":1,"interval":20000000,"size":172,"length":1000000000},"paths":[{"local":"127.0.0.1","remote":"::1"}]}`+"\n",
			),
		),
		io.Discard,
	)
	assert.EqualError(t, err, "path 0: ::1 is not of the family of 127.0.0.1 (allowed: one family for all)")
	err = Main(bytes.NewReader(nil), io.Discard)
	assert.EqualError(t, err, "read the probe's configuration: EOF (only `ringway bench` starts the probe)")
}

func TestWakeMeasuresBothPolicies(t *testing.T) {
	var out bytes.Buffer
	require.NoError(t, WakeMain(50*time.Millisecond, &out))
	assert.Contains(t, out.String(), `"policy":"other","samples":50`)
	assert.Contains(t, out.String(), `"policy":"fifo"`)
}

// Each stream is a flow of its own, as calls are: what looks at flows must not take ten calls for one that
// went mad.
func TestEachStreamIsAFlow(t *testing.T) {
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	c := Config{
		Run:   7,
		Port:  l.LocalAddr().(*net.UDPAddr).Port,
		TOS:   0xb8,
		Paths: []Ends{{"127.0.0.1", "127.0.0.1"}, {"127.0.0.1", "127.0.0.1"}},
		Shape: Shape{Streams: 3, Interval: time.Millisecond, Size: 172, Length: 5 * time.Millisecond, Paths: 2},
	}
	s, err := newSender(c)
	require.NoError(t, err)
	defer s.close()
	require.NoError(t, s.run(0, make(chan struct{}))) // the time is past: every packet is due at once
	streams := map[string]Key{}
	for range s.slots {
		b := make([]byte, 200)
		n, from, err := l.ReadFrom(b)
		require.NoError(t, err)
		h, ok := parse(b[:n])
		require.True(t, ok)
		k := Key{h.path, h.stream}
		if was, known := streams[from.String()]; known {
			assert.Equal(t, was, k)
		}
		streams[from.String()] = k
	}
	assert.Len(t, streams, 6)
}
