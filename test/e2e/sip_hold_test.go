package e2e

import (
	"encoding/binary"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
	"ringway/test/lab"
)

// talkers send sound from phone-a to phone-b in the middle of calls, a packet of G.711 every 20 ms.
type talkers struct {
	t       *testing.T
	l       *lab.Lab
	stop    chan struct{}
	sending sync.WaitGroup
	all     []*talker
}

type talker struct {
	from, to media
	sent     int
	came     atomic.Int64
}

func newTalkers(t *testing.T, l *lab.Lab) *talkers {
	k := &talkers{t: t, l: l, stop: make(chan struct{})}
	t.Cleanup(k.end)
	return k
}

// add makes the two ends of a call's sound.
func (k *talkers) add(port int) *talker {
	x := &talker{
		from: newMedia(k.t, k.l.Host(lab.PhoneA), fmt.Sprintf("%s:%d", fieldA, port)),
		to:   newMedia(k.t, k.l.Host(lab.PhoneB), fmt.Sprintf("%s:%d", fieldB, port)),
	}
	go func() {
		for b := make([]byte, 2048); ; x.came.Add(1) {
			if _, _, err := x.to.ReadFromUDP(b); err != nil {
				return // closed by the test
			}
		}
	}()
	k.all = append(k.all, x)
	return x
}

// talk sends until end.
func (k *talkers) talk(x *talker) {
	k.sending.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-k.stop:
				return
			case <-tick.C:
				x.send()
			}
		}
	})
}

func (x *talker) send() {
	p := make([]byte, 12+160)
	p[0], p[1] = 0x80, 8
	binary.BigEndian.PutUint16(p[2:], uint16(x.sent))
	binary.BigEndian.PutUint32(p[4:], uint32(x.sent)*160)
	binary.BigEndian.PutUint32(p[8:], uint32(x.from.at.Port()))
	if _, err := x.from.WriteToUDPAddrPort(p, x.to.at); err == nil {
		x.sent++
	}
}

func (k *talkers) end() {
	select {
	case <-k.stop:
	default:
		close(k.stop)
	}
	k.sending.Wait()
}

// The line is full of calls. One of them is held, and silent for longer than an engine keeps the place of a flow that
// nobody reserved; others are refused meanwhile, by 488 to the phone. When it is resumed its sound is there at once,
// and nobody else's ever missed a packet.
func TestLongAHeldCallKeepsItsPlace(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: 4 * qos.Mbit, EdgeConfig: reading("enforce", nil)})
	ends := map[string]net.PacketConn{
		"a": udpOn(t, l.Host(lab.PhoneA), fieldA+":5060"), "b": udpOn(t, l.Host(lab.PhoneB), fieldB+":5060"),
	}
	call := func(n int) *field { return &field{t: t, l: l, ends: ends, id: fmt.Sprintf("held%d", n)} }
	k := newTalkers(t, l)

	const fit = 9 // of G.711 into a line of 4 Mbit/s: `ringway plan` says so, too
	port := func(n int) int { return 40000 + 10*n }
	for n := range fit {
		f := call(n)
		f.say(said{by: "a", start: "INVITE", body: audio(fieldA, port(n))}, "?")
		f.say(said{by: "b", start: "200 OK", tag: "tb", body: audio(fieldB, port(n))}, "?")
		f.ack(1, "tb", "?")
		x := k.add(port(n))
		if n > 0 {
			k.talk(x)
		}
	}
	held, first := k.all[0], call(0)
	first.say(said{by: "a", start: "INVITE", cseq: 2, tag: "tb", body: audio(fieldA, port(0), "a=inactive")}, "?")
	first.say(said{by: "b", start: "200 OK", cseq: 2, tag: "tb", body: audio(fieldB, port(0), "a=inactive")}, "?")
	first.ack(2, "tb", "?")

	began := time.Now()
	tried := 0
	for ; time.Since(began) < 30*time.Second; tried++ {
		n := fit + tried
		invite := call(n).text(said{by: "a", start: "INVITE", body: audio(fieldA, port(n))})
		sendUDP(t, ends["a"], fieldB+":5060", invite)
		require.NoError(t, ends["a"].SetReadDeadline(time.Now().Add(5*time.Second)))
		got := make([]byte, 4096)
		size, _, err := ends["a"].ReadFrom(got)
		require.NoError(t, err, "nobody answered a call that does not fit")
		require.Regexp(t, `(?s)^SIP/2\.0 488 .*\r\nWarning: 370 `, string(got[:size]))
		another := k.all[fit-1]
		before := another.came.Load()
		require.True(t, polled(5*time.Second, func() bool { return another.came.Load() > before+50 }), "a second of sound")
	}

	first.say(said{by: "a", start: "INVITE", cseq: 3, tag: "tb", body: audio(fieldA, port(0))}, "?")
	first.say(said{by: "b", start: "200 OK", cseq: 3, tag: "tb", body: audio(fieldB, port(0))}, "?")
	first.ack(3, "tb", "?")
	require.True(t, polled(5*time.Second, func() bool { held.send(); return held.sent == 100 }))
	k.end()
	for n, x := range k.all {
		polled(2*time.Second, func() bool { return x.came.Load() == int64(x.sent) })
		assert.EqualValues(t, x.sent, x.came.Load(), "packets of call %d", n)
	}
	refused := callsStatus(t, l.Edge("a")).Refused
	assert.EqualValues(t, tried, refused["site_budget"]+refused["line_budget"], "%v", refused)
}
