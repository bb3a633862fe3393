package transparent

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/sip/message"
	"ringway/test/polltest"
)

// handOver ends the relay and starts another one with its connections, which pass through JSON as they do between
// processes. It returns them.
func (r *rig) handOver() []Connection {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	defer cancel()
	all, err := r.relay.Export(ctx)
	require.NoError(r.t, err)
	assert.Zero(r.t, r.relay.Stats().Connections)
	assert.Zero(r.t, r.relay.Stats().Memory)

	relay, err := New(r.config())
	require.NoError(r.t, err)
	for _, c := range all {
		text, err := json.Marshal(c)
		require.NoError(r.t, err)
		var back Connection
		require.NoError(r.t, json.Unmarshal(text, &back))
		for i := range back.Streams {
			back.Streams[i].FD = c.Streams[i].FD
		}
		require.NoError(r.t, relay.Import(back))
	}
	r.runRelay(relay)
	return all
}

func TestHandOverInTheMiddleOfMessages(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	there, back := request("INVITE", "there", 3000), request("INVITE", "back", 30000)
	for f, family := range families {
		t.Run(family, func(t *testing.T) {
			a, b := r.connect(at(phone[f], 5062), at(pbx[f], 5060))
			puts(t, a, there+there[:2000])
			puts(t, b, back[:20000])
			gets(t, b, there)
			assert.Equal(t, there, r.next().raw)
			held := func() bool { return r.relay.Stats().Memory == 4<<10+64<<10 } // parts of both messages
			polltest.Require(t, held, patience, time.Millisecond)
			assert.Len(t, r.handOver(), 1)
			polltest.Require(t, held, patience, time.Millisecond)
			assert.Len(t, r.handOver(), 1)

			puts(t, a, there[2000:])
			gets(t, b, there)
			assert.Equal(t, there, r.next().raw)
			puts(t, b, back[20000:])
			gets(t, a, back)
			assert.Equal(t, back, r.next().raw)
			require.NoError(t, a.CloseWrite())
			ends(t, b, io.EOF)
			assert.Len(t, r.handOver(), 1, "half of it has ended")
			puts(t, b, back)
			gets(t, a, back)
			assert.Equal(t, back, r.next().raw)
			b.Close()
			ends(t, a, io.EOF)
			polltest.Require(t, func() bool { return r.relay.Stats().Connections == 0 }, patience, time.Millisecond)
		})
	}
	assert.Empty(t, r.seen, "each message was shown once")
}

func TestHandOverOfStreamsThatPassUnread(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	a, b := r.connect(at(phone[0], 5062), at(pbx[0], 5060))
	puts(t, a, "\x16\x03\x01")
	gets(t, b, "\x16\x03\x01")
	r.handOver()
	puts(t, a, "OPTIONS sip:a SIP/2.0\r\n") // is not held back for the rest of a message
	gets(t, b, "OPTIONS sip:a SIP/2.0\r\n")

	c, d := r.connect(at(phone[0], 5063), at(pbx[0], 5060))
	puts(t, c, "\r\n\r\nOPTI")
	gets(t, d, "\r\n\r\n")
	assert.Equal(t, "\r\n\r\n", r.next().raw)
	r.handOver()
	puts(t, c, request("OPTIONS", "a", 0)[4:])
	gets(t, d, request("OPTIONS", "a", 0))
	assert.Equal(t, "a", r.next().callID)
	r.handOver()
	puts(t, c, "GET / HTTP/1.1\r\n") // it carries SIP: this is a fault
	ends(t, d, unix.ECONNRESET)
}

// A connection whose far end has not answered yet is dialed on by the next relay.
func TestHandOverWhileDialing(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	l := r.listen(r.pbx, at(dead[0], 5060))
	a := r.dial(r.phone, at(phone[0], 5062), at(dead[0], 5060))
	puts(t, a, request("OPTIONS", "a", 0))
	polltest.Require(t, func() bool { return r.relay.Stats().Connections == 1 }, patience, time.Millisecond)
	socket := func() (cookie uint64) {
		for _, p := range r.relay.openPairs() {
			p.mu.Lock()
			raw := p.sides[far].raw
			p.mu.Unlock()
			if raw != nil {
				_ = raw.Control(func(fd uintptr) {
					cookie, _ = unix.GetsockoptUint64(int(fd), unix.SOL_SOCKET, unix.SO_COOKIE)
				})
			}
		}
		return cookie
	}
	polltest.Require(t, func() bool { return socket() != 0 }, patience, time.Millisecond)
	before := socket()
	assert.Len(t, r.handOver(), 1)
	assert.Empty(t, r.seen)
	r.pbx.Run("nft", "delete table inet dead") // the SYN comes again after a second
	b := r.accept(l)
	gets(t, b, request("OPTIONS", "a", 0))
	assert.Equal(t, before, socket(), "the connection that was begun went on")
	assert.Equal(t, at(phone[0], 5062).String(), b.RemoteAddr().String())
	assert.Equal(t, "a", r.next().callID)
}

// Bytes flow both ways without a pause, and neither end reads fast, while the relay is replaced again and again.
func TestHandOverUnderLoad(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	var stream strings.Builder
	for n := range 400 {
		stream.WriteString(request("INVITE", fmt.Sprint("m", n), 100+37*n))
		if n%7 == 0 {
			stream.WriteString("\r\n\r\n")
		}
	}
	whole := stream.String()

	var all sync.WaitGroup
	reads := make(chan struct{})
	transfer := func(src, dst io.ReadWriter) {
		all.Go(func() {
			_, err := io.Copy(src, strings.NewReader(whole))
			assert.NoError(t, err)
		})
		all.Go(func() {
			<-reads
			var got strings.Builder
			_, err := io.CopyN(&got, slowly{dst}, int64(len(whole)))
			assert.NoError(t, err)
			assert.True(t, whole == got.String(), "what came differs from what was sent")
		})
	}
	for i := range 4 {
		a, b := r.connect(at(phone[i%2], uint16(5062+i)), at(pbx[i%2], 5060))
		transfer(a, b)
		transfer(b, a)
	}
	unread, unsent := 0, 0
	for n := range 30 {
		if n == 2 { // until now all writers were blocked
			close(reads)
		}
		polltest.Require(t, func() bool { return n > 1 || r.relay.Stats().Memory >= 8*4096 }, patience, time.Millisecond)
		all := r.handOver()
		assert.Len(t, all, 4)
		for _, c := range all {
			for _, stream := range c.Streams {
				unread += len(stream.Unread)
				unsent += len(stream.Unsent)
			}
		}
	}
	all.Wait()
	messages := 0
	for len(r.seen) > 0 {
		if (<-r.seen).reason == message.None {
			messages++
		}
	}
	assert.Equal(t, 8*400, messages, "each message was shown once")
	assert.Positive(t, unread)
	assert.Positive(t, unsent)
}

// Replies go among the messages that come from the other side, never into one, also when the relay is replaced while
// the phone does not read.
func TestHandOverWithReplies(t *testing.T) {
	const count = 300
	r := newRig(t)
	r.handle = func(m *Message) Action {
		if m.Reason == message.None && m.SIP.Method == message.INVITE {
			return Action{Drop: true, Reply: []byte(request("ACK", string(m.SIP.CallID()), 400))}
		}
		return Action{}
	}
	r.start(nil)
	a, b := r.connect(at(phone[0], 5062), at(pbx[0], 5060))
	var all sync.WaitGroup
	for src, method := range map[io.Writer]string{a: "INVITE", b: "OPTIONS"} {
		all.Go(func() {
			for n := range count {
				_, err := src.Write([]byte(request(method, fmt.Sprint(n), 20000)))
				assert.NoError(t, err)
			}
		})
	}
	all.Go(func() {
		next := map[message.Method]int{}
		var framer message.Framer
		var m message.Message
		var held []byte
		part := make([]byte, 3000)
		for next[message.ACK]+next[message.OPTIONS] < 2*count {
			n, err := a.Read(part)
			if !assert.NoError(t, err) {
				return
			}
			held = append(held, part[:n]...)
			for n, why := framer.Next(held, &m); n > 0 || why != message.None; n, why = framer.Next(held, &m) {
				if !assert.Equal(t, message.None, why) || !assert.Equal(t, fmt.Sprint(next[m.Method]), string(m.CallID())) {
					return
				}
				next[m.Method]++
				held = held[n:]
			}
		}
		assert.Equal(t, map[message.Method]int{message.ACK: count, message.OPTIONS: count}, next)
	})
	for range 20 {
		r.handOver()
	}
	all.Wait()
}

// slowly reads a little at a time.
type slowly struct{ io.Reader }

func (s slowly) Read(b []byte) (int, error) { return s.Reader.Read(b[:min(len(b), 1000)]) }

// Datagrams wait in the listener while the relay is replaced, whose successor has no socket to send them by at first.
func TestDatagramsDuringHandOvers(t *testing.T) {
	const count = 500
	r := newRig(t)
	r.start(nil)
	a, b := r.udp(r.phone, at(phone[0], 5062)), r.udp(r.pbx, at(pbx[0], 5060))
	var sending sync.WaitGroup
	sending.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for n := range count {
			<-tick.C
			_, err := a.WriteToUDPAddrPort([]byte(fmt.Sprint(n)), at(pbx[0], 5060))
			assert.NoError(t, err)
		}
	})
	sending.Go(func() {
		for n, raw := 0, make([]byte, 100); n < count; n++ {
			size, from, err := b.ReadFromUDPAddrPort(raw)
			if !assert.NoError(t, err) || !assert.Equal(t, fmt.Sprint(n), string(raw[:size])) {
				return
			}
			assert.Equal(t, at(phone[0], 5062), netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
		}
	})
	for range 20 {
		r.handOver()
	}
	sending.Wait()
}

// A Handler that does not return keeps one connection; all others are handed over.
func TestExportDoesNotWaitForAHandler(t *testing.T) {
	r := newRig(t)
	hang := make(chan struct{})
	r.handle = func(m *Message) Action {
		if strings.HasPrefix(string(m.Raw), "INVITE") {
			<-hang
		}
		return Action{}
	}
	relay := r.start(nil)
	a, _ := r.connect(at(phone[0], 5062), at(pbx[0], 5060))
	b, c := r.connect(at(phone[0], 5063), at(pbx[0], 5060))
	puts(t, a, request("INVITE", "a", 0))
	r.next()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	all, err := relay.Export(ctx)
	assert.ErrorIs(t, err, context.DeadlineExceeded)
	require.Len(t, all, 1)
	close(hang)
	_, err = io.Copy(io.Discard, a)
	assert.Error(t, err)

	next, err := New(r.config())
	require.NoError(t, err)
	require.NoError(t, next.Import(all[0]))
	r.runRelay(next)
	puts(t, b, "\r\n")
	gets(t, c, "\r\n")
	assert.Error(t, next.Import(Connection{From: at(phone[0], 1), To: at(pbx[0], 1),
		Streams: [2]Stream{{FD: -1}, {FD: -1}}}))
}
