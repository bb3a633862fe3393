package transparent

import (
	"fmt"
	"io"
	"net"
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

func TestConnectionsGoOnAsTheyCame(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	for f, family := range families {
		t.Run(family, func(t *testing.T) {
			l := r.listen(r.pbx, at(pbx[f], 5060))
			a := r.dial(r.phone, at(phone[f], 58750), at(pbx[f], 5060))
			b := r.accept(l)
			assert.Equal(t, at(phone[f], 58750).String(), b.RemoteAddr().String(), "the PBX sees the phone")
			exchange(t, r, a, b, true)

			// The PBX calls the phone at its other port (RFC 3261: Contact), from a port of its choice.
			l = r.listen(r.phone, at(phone[f], 5070))
			b = r.dial(r.pbx, at(pbx[f], 40000), at(phone[f], 5070))
			a = r.accept(l)
			assert.Equal(t, at(pbx[f], 40000).String(), a.RemoteAddr().String())
			exchange(t, r, b, a, false)
		})
	}
	assert.Equal(t, uint64(4), r.count("tcp_dialed"))
}

// exchange sends messages both ways: as they come from phones, in one segment and with keep-alives around them.
func exchange(t *testing.T, r *rig, a, b net.Conn, fromNear bool) {
	t.Helper()
	one, two, three := request("OPTIONS", "a", 0), request("INVITE", "b", 5000), request("BYE", "c", 0)
	for _, c := range []struct{ src, dst net.Conn }{{a, b}, {b, a}, {a, b}} {
		puts(t, c.src, one+two+three+"\r\n\r\n"+one)
		gets(t, c.dst, one+two+three+"\r\n\r\n"+one)
		from := c.src.LocalAddr().(*net.TCPAddr).AddrPort()
		to := c.src.RemoteAddr().(*net.TCPAddr).AddrPort()
		for _, want := range []*seen{
			{callID: "a", raw: one}, {callID: "b", raw: two}, {callID: "c", raw: three},
			{reason: message.KeepAlive, raw: "\r\n\r\n"}, {callID: "a", raw: one},
		} {
			want.from, want.to, want.near = from, to, fromNear == (c.src == a)
			assert.Equal(t, want, r.next())
		}
	}
}

// One source port goes to several servers at once, and a server calls from the port that it is called at, where the
// accepted connection has the same address in the box.
func TestConnectionsShareAPort(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	for f := range families {
		a, b := r.connect(at(phone[f], 5062), at(pbx[f], 5060))
		c, d := r.connect(at(phone[f], 5062), at(inside[f], 5060))
		l := r.listen(r.phone, at(phone[f], 5070))
		e := r.dial(r.pbx, at(pbx[f], 5060), at(phone[f], 5070))
		g := r.accept(l)
		for i, ends := range [][2]net.Conn{{a, b}, {c, d}, {e, g}} {
			one := request("OPTIONS", fmt.Sprint(i), 0)
			puts(t, ends[0], one)
			gets(t, ends[1], one)
			puts(t, ends[1], one)
			gets(t, ends[0], one)
		}
	}
	assert.Zero(t, r.count("bind_failed"))
}

func TestPingsSplitOverReads(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	a, b := r.connect(at(phone[0], 5062), at(pbx[0], 5060))
	for _, part := range []string{"\r", "\n\r", "\n", "\r\n\r\n", "\r\n"} {
		puts(t, a, part)
		gets(t, b, part)
		assert.Equal(t, part, r.next().raw)
	}
	one := request("OPTIONS", "a", 0)
	for i, part := range []string{one[:len(one)-1], "\n"} { // the last line end of a head is no ping
		puts(t, a, part)
		if i == 0 {
			continue
		}
		gets(t, b, one)
		assert.Equal(t, one, r.next().raw)
	}
}

func TestManyConnections(t *testing.T) {
	const count = 200
	r := newRig(t)
	r.start(func(c *Config) {
		for i := range c.Listeners {
			c.Listeners[i].PerSource = count
		}
	})
	l := r.listen(r.pbx, at(pbx[0], 5060))
	var all sync.WaitGroup
	all.Go(func() { // the PBX answers each with what it sent
		for range count {
			c, err := l.AcceptTCP()
			if !assert.NoError(t, err) {
				return
			}
			all.Go(func() {
				defer c.Close()
				_, err := io.Copy(c, c)
				assert.NoError(t, err)
			})
		}
	})
	conns := make([]net.Conn, count)
	var phones sync.WaitGroup
	for i := range conns {
		phones.Go(func() {
			c, err := r.tryDial(r.phone, at(phone[0], uint16(20000+i)), at(pbx[0], 5060))
			if !assert.NoError(t, err) {
				return
			}
			conns[i] = c
			for n := range 5 {
				want := request("OPTIONS", fmt.Sprint(i, "-", n), 500+100*n)
				_, err := c.Write([]byte(want))
				assert.NoError(t, err)
				b := make([]byte, len(want))
				_, err = io.ReadFull(c, b)
				if !assert.NoError(t, err) {
					return
				}
				assert.Equal(t, want, string(b))
			}
		})
	}
	phones.Wait()
	assert.Equal(t, uint64(5*2*count), r.count("tcp_passed"))
	assert.Equal(t, count, r.relay.Stats().Connections)
	polltest.Require(t, func() bool { return r.relay.Stats().Memory == 0 }, patience, time.Millisecond,
		"idle connections hold no buffers")
	for _, c := range conns {
		c.Close()
	}
	all.Wait()
	polltest.Require(t, func() bool { return r.relay.Stats().Connections == 0 }, patience, time.Millisecond)
	assert.Empty(t, r.relay.sources)
}

// A phone whose server refuses has to see that, and the owner is told, so that the next attempt passes unread
// (sip.md, T9).
func TestDestinationsThatDoNotAccept(t *testing.T) {
	r := newRig(t)
	r.start(func(c *Config) { c.Limits.Dial = 500 * time.Millisecond })
	for f, family := range families {
		for _, c := range []struct {
			name, counter string
			to            netip.AddrPort
		}{
			{"refuses", "tcp_dial_refused", at(pbx[f], 5099)},
			{"is silent", "tcp_dial_timed_out", at(dead[f], 5060)},
			{"has no route", "tcp_dial_unreachable", []netip.AddrPort{
				netip.MustParseAddrPort("203.0.113.1:5060"), netip.MustParseAddrPort("[2001:db8:9::1]:5060")}[f]},
		} {
			t.Run(family+" "+c.name, func(t *testing.T) {
				before := r.count(c.counter)
				a, err := r.tryDial(r.phone, at(phone[f], 5062), c.to)
				if err == nil { // else it was reset before Dial had looked
					_, err = a.Write([]byte(request("OPTIONS", "a", 0)))
				}
				if err == nil {
					_, err = a.Read(make([]byte, 1))
				}
				assert.ErrorIs(t, err, unix.ECONNRESET)
				select {
				case to := <-r.unreachable:
					assert.Equal(t, c.to, to)
				case <-time.After(patience):
					assert.Fail(t, "nobody was told")
				}
				assert.Equal(t, before+1, r.count(c.counter))
			})
		}
	}
	assert.Empty(t, r.seen, "nothing is read before the far end has accepted")
	assert.Zero(t, r.relay.Stats().Connections)
}

func TestEachSideEndsOnItsOwn(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	one := request("OPTIONS", "a", 0)
	for i := range 2 {
		a, b := r.connect(at(phone[0], uint16(5062+i)), at(pbx[0], 5060))
		if i == 1 {
			a, b = b, a
		}
		puts(t, a, one)
		require.NoError(t, a.CloseWrite())
		gets(t, b, one)
		ends(t, b, io.EOF)
		puts(t, b, one+one)
		gets(t, a, one+one)
		require.NoError(t, b.CloseWrite())
		ends(t, a, io.EOF)
		polltest.Require(t, func() bool { return r.relay.Stats().Connections == 0 }, patience, time.Millisecond)
	}
	assert.Zero(t, r.count("tcp_peer_reset"))
}

func TestResetsArePassedOn(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	for i := range 2 {
		a, b := r.connect(at(phone[0], uint16(5062+i)), at(pbx[0], 5060))
		if i == 1 {
			a, b = b, a
		}
		reset(a)
		ends(t, b, unix.ECONNRESET)
	}
	assert.Equal(t, uint64(2), r.count("tcp_peer_reset"))
}

func TestFramingFaultsResetBothSides(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	one := request("OPTIONS", "a", 0)
	for i, c := range []struct {
		name, raw string
		reason    message.Reason
	}{
		{"two lengths", strings.Replace(one, "Content-Length: 0", "Content-Length: 0\r\nl: 4", 1),
			message.RepeatedContentLength},
		{"no length", strings.Replace(one, "Content-Length: 0\r\n", "", 1), message.MissingContentLength},
		{"not SIP after SIP", "GET / HTTP/1.1\r\n\r\n", message.BadStartLine},
		{"TLS after SIP", "\x16\x03\x01\n", message.BadStartLine},
		{"too long", request("INVITE", "a", 1<<16+100), message.TooLong},
	} {
		for _, fromPhone := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, phone %t", c.name, fromPhone), func(t *testing.T) {
				before := r.count("tcp_fault_" + c.reason.Name())
				port := uint16(6000 + 2*i)
				if fromPhone {
					port++
				}
				a, b := r.connect(at(phone[0], port), at(pbx[0], 5060))
				if !fromPhone {
					a, b = b, a
				}
				puts(t, a, one)
				gets(t, b, one)
				assert.Equal(t, message.None, r.next().reason)
				puts(t, a, c.raw)
				assert.Equal(t, c.reason, r.next().reason, "the handler learns who sent it")
				ends(t, b, unix.ECONNRESET)
				_, err := io.Copy(io.Discard, a)
				assert.ErrorIs(t, err, unix.ECONNRESET)
				assert.Equal(t, before+1, r.count("tcp_fault_"+c.reason.Name()))
			})
		}
	}
	assert.Equal(t, uint64(10), r.count("tcp_framing_fault"))
}

func TestStreamsThatAreNotSIPPassUnread(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	hello := "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" // TLS, without a line end
	big := strings.Repeat("\x17\x03\x03 any bytes \r\n", 20000)
	for i, c := range []struct{ name, first, answer string }{
		{"TLS", hello, "\x16\x03\x03\x00\x7a"},
		{"HTTP", "GET / HTTP/1.1\r\nHost: a\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"},
		{"the far end begins", "", "220 mail ESMTP\r\n"},
		{"half a line waits", "OPTIONS sip", "\x00\x01"}, // held back until the answer shows what this is
		{"pings, then TLS", "\r\n\r\n" + hello, "\x16"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := r.connect(at(phone[0], uint16(5062+i)), at(pbx[0], 5060))
			puts(t, a, c.first)
			if c.name == "half a line waits" {
				polltest.Require(t, func() bool { return r.relay.Stats().Memory > 0 }, patience, time.Millisecond)
				puts(t, b, c.answer)
				gets(t, b, c.first)
			} else {
				gets(t, b, c.first)
				puts(t, b, c.answer)
			}
			gets(t, a, c.answer)
			go func() { _, _ = a.Write([]byte(big)) }()
			gets(t, b, big)
			require.NoError(t, a.CloseWrite())
			ends(t, b, io.EOF)
			assert.Equal(t, uint64(i+1), r.count("tcp_passed_raw"))
		})
	}
	assert.Equal(t, "\r\n\r\n", r.next().raw)
	assert.Empty(t, r.seen, "nothing else was shown to the handler")
}

// A message that is cut off does not go on: a lenient server would take it, and nobody has read it.
func TestAMessageThatIsCutOff(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	whole := request("INVITE", "a", 1000)
	a, b := r.connect(at(phone[0], 5062), at(pbx[0], 5060))
	puts(t, a, whole[:len(whole)-1])
	require.NoError(t, a.CloseWrite())
	ends(t, b, io.EOF)
	assert.Equal(t, uint64(1), r.count("tcp_message_cut_off"))

	a, b = r.connect(at(phone[0], 5063), at(pbx[0], 5060))
	puts(t, a, "no line")
	require.NoError(t, a.CloseWrite())
	gets(t, b, "no line")
	ends(t, b, io.EOF)
}

func TestTimesAreBounded(t *testing.T) {
	const short = 200 * time.Millisecond
	r := newRig(t)
	for i, c := range []struct {
		name, counter string
		limit         func(*Limits)
		does          func(a io.Writer) error
	}{
		{"a message that does not end", "tcp_message_timed_out", func(l *Limits) { l.Message = short },
			func(a io.Writer) error {
				tick := time.NewTicker(short / 20)
				defer tick.Stop()
				for _, c := range []byte(request("INVITE", "a", 0)) { // byte by byte
					<-tick.C
					if _, err := a.Write([]byte{c}); err != nil {
						return err
					}
				}
				return nil
			}},
		{"no traffic", "tcp_idle", func(l *Limits) { l.Idle = short }, func(io.Writer) error { return nil }},
		{"a peer that does not read", "tcp_stalled", func(l *Limits) { l.Stall = short },
			func(a io.Writer) error {
				for {
					if _, err := a.Write([]byte(request("INVITE", "a", 60000))); err != nil {
						return err
					}
				}
			}},
	} {
		relay := r.start(func(cfg *Config) { c.limit(&cfg.Limits) })
		a, _ := r.connect(at(phone[0], uint16(5062+i)), at(pbx[0], 5060))
		err := c.does(a)
		if err == nil {
			_, err = io.Copy(io.Discard, a)
		}
		assert.ErrorIs(t, err, unix.ECONNRESET, c.name)
		assert.Equal(t, uint64(1), r.count(c.counter))
		relay.Close()
	}
}

// One side's traffic keeps the other's idle direction.
func TestTrafficOfOneDirectionKeepsAConnection(t *testing.T) {
	r := newRig(t)
	r.start(func(c *Config) { c.Limits.Idle = time.Second })
	a, b := r.connect(at(phone[0], 5062), at(pbx[0], 5060))
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range 75 {
		<-tick.C
		puts(t, a, "\r\n\r\n")
		gets(t, b, "\r\n\r\n")
	}
	assert.Zero(t, r.count("tcp_idle"))
	assert.Equal(t, 1, r.relay.Stats().Connections)
}

func TestConnectionsAreBounded(t *testing.T) {
	r := newRig(t)
	r.start(func(c *Config) { c.Limits.Connections, c.Limits.PerSource = 3, 2 })
	l := r.listen(r.pbx, at(pbx[0], 5060))
	refused := func(from netip.AddrPort) {
		t.Helper()
		c, err := r.tryDial(r.phone, from, at(pbx[0], 5060))
		if err == nil {
			_, err = c.Read(make([]byte, 1))
		}
		require.ErrorIs(t, err, unix.ECONNRESET)
	}
	var first net.Conn
	for i := range 2 {
		first = r.dial(r.phone, at(phone[0], uint16(5062+i)), at(pbx[0], 5060))
		r.accept(l)
	}
	refused(at(phone[0], 5064))
	assert.Equal(t, uint64(1), r.count("tcp_too_many_of_source"))
	r.dial(r.phone, at(second[0], 5062), at(pbx[0], 5060))
	r.accept(l)
	refused(at(second[0], 5063))
	assert.Equal(t, uint64(1), r.count("tcp_too_many_connections"))

	reset(first.(*net.TCPConn))
	polltest.Require(t, func() bool { return r.relay.Stats().Connections == 2 }, patience, time.Millisecond)
	r.dial(r.phone, at(phone[0], 5065), at(pbx[0], 5060))
	r.accept(l)
}

func TestMemoryIsBounded(t *testing.T) {
	r := newRig(t)
	r.start(func(c *Config) { c.Limits.Memory = 100 << 10 })
	large := request("INVITE", "a", 60000)
	a, _ := r.connect(at(phone[0], 5062), at(pbx[0], 5060))
	puts(t, a, large[:50000])
	polltest.Require(t, func() bool { return r.relay.Stats().Memory == 1<<16 }, patience, time.Millisecond)

	c, d := r.connect(at(second[0], 5062), at(pbx[0], 5060))
	_, _ = c.Write([]byte(large[:50000]))
	r.waitCount("tcp_memory_exhausted", 1)
	ends(t, d, unix.ECONNRESET)

	c, d = r.connect(at(second[0], 5063), at(pbx[0], 5060)) // small messages still pass
	puts(t, c, request("OPTIONS", "b", 0))
	gets(t, d, request("OPTIONS", "b", 0))
	reset(a)
	polltest.Require(t, func() bool { return r.relay.Stats().Memory == 0 }, patience, time.Millisecond)
}

func TestStreamHandler(t *testing.T) {
	r := newRig(t)
	var key []byte // of the direction's goroutine
	secret := make(chan []byte, 1)
	r.handle = func(m *Message) Action {
		switch {
		case m.Reason != message.None:
		case m.SIP.Method == message.INVITE:
			return Action{Drop: true, Reply: []byte("488")}
		case m.SIP.Method == message.BYE:
			return Action{Raw: []byte("changed")}
		case m.SIP.Method == message.UPDATE:
			key = []byte(strings.Repeat("a key", 10_000)) // longer than what came, and than a buffer
			return Action{Raw: key, Secret: true}
		case m.SIP.Method == message.REGISTER:
			secret <- key
			return Action{Drop: true, Reply: []byte("403"), Close: true}
		}
		return Action{}
	}
	r.start(nil)
	a, b := r.connect(at(phone[0], 5062), at(pbx[0], 5060))
	puts(t, a, request("INVITE", "a", 0)+request("BYE", "b", 0)+request("OPTIONS", "c", 0))
	gets(t, b, "changed"+request("OPTIONS", "c", 0))
	gets(t, a, "488")
	puts(t, b, request("INVITE", "d", 0))
	gets(t, b, "488")
	whole := request("UPDATE", "u", 30)
	puts(t, a, whole[:50])
	puts(t, a, whole[50:len(whole)-20])
	puts(t, a, whole[len(whole)-20:]+request("OPTIONS", "v", 0))
	gets(t, b, strings.Repeat("a key", 10_000)+request("OPTIONS", "v", 0))
	puts(t, a, request("REGISTER", "e", 0))
	gets(t, a, "403")
	ends(t, a, io.EOF)
	ends(t, b, io.EOF)
	assert.Equal(t, uint64(1), r.count("tcp_closed_by_handler"))
	assert.Empty(t, strings.Trim(string(<-secret), "\x00"), "overwritten once it has gone on")
}

// A phone that always uses one port comes back soon: what its earlier connection left in TIME_WAIT, here towards the
// PBX, must not keep it out. Linux allows that to a socket which was bound by hand, if the PBX uses TCP timestamps.
func TestReconnectFromTheSamePort(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	for f, family := range families {
		l := r.listen(r.pbx, at(pbx[f], 5060))
		a := r.dial(r.phone, at(phone[f], 5062), at(pbx[f], 5060))
		b := r.accept(l)
		require.NoError(t, a.CloseWrite())
		ends(t, b, io.EOF)
		b.Close()
		ends(t, a, io.EOF)
		a.Close()
		polltest.Require(t, func() bool { return r.relay.Stats().Connections == 0 }, patience, time.Millisecond)

		again := make(chan net.Conn, 1)
		go func() {
			c, err := l.AcceptTCP()
			assert.NoError(t, err)
			again <- c
		}()
		one := request("OPTIONS", "a", 0)
		polltest.Require(t, func() bool {
			a, err := r.tryDial(r.phone, at(phone[f], 5062), at(pbx[f], 5060))
			if err != nil {
				return false
			}
			if _, err := a.Write([]byte(one)); err != nil {
				return false
			}
			select {
			case b := <-again:
				gets(t, b, one)
				reset(a)
				b.Close()
				return true
			case <-time.After(100 * time.Millisecond):
				reset(a)
				return false
			}
		}, patience, 10*time.Millisecond, family)
	}
}

// A phone that resets its connection and opens the same again at once finds its way free, although the relay's
// connection to the PBX has the same addresses and may not be closed yet. A box on the way to another one does so,
// where a PBX turns out to ask for client certificates.
func TestReconnectRightAfterAReset(t *testing.T) {
	r := newRig(t)
	r.start(nil)
	l := r.listen(r.pbx, at(pbx[0], 5060))
	for range 100 {
		a := r.dial(r.phone, at(phone[0], 5062), at(pbx[0], 5060))
		one := request("OPTIONS", "a", 0)
		puts(t, a, one)
		for { // connections that were reset before a byte came may have been accepted, too
			b := r.accept(l)
			if _, err := io.ReadFull(b, make([]byte, len(one))); err == nil {
				break
			}
		}
		reset(a)
	}
	assert.Zero(t, r.count("tcp_dial_failed")+r.count("tcp_dial_address_taken"))
}

// A handler that hangs shows in Beat, for UDP and TCP; peers that are silent, or do not read, do not.
func TestAHandlerThatHangsIsSeen(t *testing.T) {
	r := newRig(t)
	hang := make(chan struct{})
	r.handle = func(m *Message) Action {
		if m.Reason == message.None {
			<-hang
		}
		return Action{}
	}
	r.start(nil)
	t.Cleanup(func() { close(hang) }) // before the relay is closed
	a, b := r.connect(at(phone[0], 5062), at(pbx[0], 5060))
	puts(t, a, "\r\n\r\n")
	gets(t, b, "\r\n\r\n")
	r.next()
	polltest.Require(t, func() bool { return r.relay.Beat() == 0 }, patience, time.Millisecond)

	u := r.udp(r.phone, at(phone[0], 5062))
	for _, send := range []func(){
		func() { puts(t, a, request("OPTIONS", "a", 0)) },
		func() { sendTo(t, u, at(pbx[0], 5060), request("OPTIONS", "a", 0)) },
	} {
		send()
		r.next()
		polltest.Require(t, func() bool { return r.relay.Beat() > 100*time.Millisecond }, patience, time.Millisecond)
		hang <- struct{}{}
		polltest.Require(t, func() bool { return r.relay.Beat() == 0 }, patience, time.Millisecond)
	}
}

// A direction that waits for the rest of a message must not go on to wait when the other one has found, in between,
// that the connection passes raw.
func TestBytesThatWaitedGoOnWhenTheStreamIsRaw(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	peer, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer peer.Close()
	conn, err := l.Accept()
	require.NoError(t, err)
	defer conn.Close()

	p, err := newPair(bareRelay(nil), netip.AddrPort{}, netip.AddrPort{}, true, conn.(*net.TCPConn))
	require.NoError(t, err)
	d := p.directions[near]
	require.True(t, d.in.load([]byte("OPTIONS")))
	p.decide(carriesRaw)
	done := make(chan error)
	go func() { done <- d.read() }()
	select {
	case err := <-done:
		assert.NoError(t, err)
	case <-time.After(patience):
		conn.Close()
		<-done
		assert.Fail(t, "it waits")
	}
}

func TestRunEndsOnce(t *testing.T) {
	r := newRig(t)
	relay := r.start(nil)
	a, b := r.connect(at(phone[0], 5062), at(pbx[0], 5060))
	relay.Close()
	ends(t, a, unix.ECONNRESET)
	ends(t, b, unix.ECONNRESET)
	relay.Close()
	assert.ErrorIs(t, relay.Run(t.Context()), errTwice)
	assert.Equal(t, uint64(1), relay.Stats().Counts["tcp_relay_closed"])

	unused, err := New(r.config())
	require.NoError(t, err)
	unused.Close()
	assert.NoError(t, unused.Run(t.Context()), "it has ended already")
	_, err = New(Config{})
	assert.Error(t, err)
	c := r.config()
	c.Listeners = append(c.Listeners[:1:1], Listener{FD: 1 << 20})
	_, err = New(c)
	assert.ErrorIs(t, err, unix.EBADF)
}
