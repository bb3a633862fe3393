package transparent

import (
	"context"
	"net"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// lane carries one datagram at a time from a phone to the PBX, through a relay whose loop the caller turns.
type lane struct {
	t    testing.TB
	in   *reader
	a, b *net.UDPConn
	raw  []byte
	back []byte
}

func newLane(r *rig, f int, raw string) *lane {
	t := r.t
	c := r.config()
	c.Handle = func(*Message) Action { return Action{} }
	relay, err := New(c)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	relay.fresh.start(ctx)
	t.Cleanup(func() {
		cancel()
		relay.Close()
	})

	l := &lane{t: t, raw: []byte(raw), back: make([]byte, 1<<16), b: r.udp(r.pbx, at(pbx[f], 5060))}
	for _, rd := range relay.readers {
		if rd.near && rd.at.Addr().Is4() == (f == 0) {
			l.in = rd
		}
	}
	require.NoError(t, r.phone.Do(func() (err error) {
		from, to := at(phone[f], 5062), at(pbx[f], 5060)
		l.a, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(from), net.UDPAddrFromAddrPort(to))
		return err
	}))
	t.Cleanup(func() { l.a.Close() })
	require.NoError(t, l.b.SetDeadline(noDeadline))
	return l
}

func (l *lane) send() {
	if _, err := l.a.Write(l.raw); err != nil {
		l.t.Fatal(err)
	}
	if err := l.in.round(); err != nil {
		l.t.Fatal(err)
	}
	if n, err := l.b.Read(l.back); err != nil || n != len(l.raw) {
		l.t.Fatal(n, err)
	}
}

func TestNoAllocationsPerDatagram(t *testing.T) {
	r := newRig(t)
	for f, family := range families {
		large := request("INVITE", "a", 4096)
		for _, raw := range []string{request("INVITE", "a", 1100), "\r\n\r\n", "", "garbage", large} {
			l := newLane(r, f, raw)
			l.send() // makes the egress socket
			assert.Zero(t, testing.AllocsPerRun(200, l.send), "%s, %d bytes", family, len(raw))
			l.a.Close()
			l.b.Close()
		}
	}
}

// BenchmarkDatagram is the whole way of a datagram of 1.1 KB: the phone's write, two veths, the relay's loop and the
// PBX's read, one after the other. What BenchmarkDatagramWithoutRelay takes less is the relay's.
func BenchmarkDatagram(b *testing.B) {
	r := newRig(b)
	for f, family := range families {
		b.Run(family, func(b *testing.B) {
			l := newLane(r, f, request("INVITE", "a", 1100))
			l.send()
			b.ReportAllocs()
			for b.Loop() {
				l.send()
			}
			l.a.Close()
			l.b.Close()
		})
	}
}

// BenchmarkDatagramWithoutRelay is the same path forwarded by the kernel.
func BenchmarkDatagramWithoutRelay(b *testing.B) {
	r := newRig(b)
	r.box.Run("nft", "delete", "table", "inet", "sip")
	l := newLane(r, 0, request("INVITE", "a", 1100))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := l.a.Write(l.raw); err != nil {
			b.Fatal(err)
		}
		if _, err := l.b.Read(l.back); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkStream is a message of 1.1 KB on a TCP connection, there and back as another one of the same size.
func BenchmarkStream(b *testing.B) {
	r := newRig(b)
	c := r.config()
	c.Handle = func(*Message) Action { return Action{} }
	relay, err := New(c)
	require.NoError(b, err)
	r.runRelay(relay)
	phoneEnd, pbxEnd := r.connect(at(phone[0], 5062), at(pbx[0], 5060))
	require.NoError(b, phoneEnd.SetDeadline(noDeadline))
	require.NoError(b, pbxEnd.SetDeadline(noDeadline))
	raw := []byte(request("INVITE", "a", 1100))
	back := make([]byte, len(raw))
	b.ReportAllocs()
	for b.Loop() {
		for _, c := range [][2]net.Conn{{phoneEnd, pbxEnd}, {pbxEnd, phoneEnd}} {
			if _, err := c[0].Write(raw); err != nil {
				b.Fatal(err)
			}
			if _, err := readFull(c[1], back); err != nil {
				b.Fatal(err)
			}
		}
	}
}
