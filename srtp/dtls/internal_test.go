package dtls

import (
	"bytes"
	"context"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// What passes the sieve is made of whole records that it would pass again, in their order.
func FuzzSift(f *testing.F) {
	f.Add([]byte{21, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 40, 20, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 1})
	f.Add([]byte{22, 0xfe, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 50, 1, 0, 0, 38, 0, 0, 0, 0, 0, 0, 0, 38, 0xfe, 0xfd,
		1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31, 32,
		0, 2, 9, 9})
	f.Fuzz(func(t *testing.T, datagram []byte) {
		before := bytes.Clone(datagram)
		s := sift(make([]byte, len(datagram)), datagram)
		assert.Equal(t, before, datagram)
		assert.LessOrEqual(t, len(s.records), len(datagram))
		again := sift(make([]byte, len(datagram)), s.records)
		assert.Equal(t, s.records, again.records)
		assert.Zero(t, again.dropped)
		assert.Equal(t, -1, again.alert)
		if s.dropped == 0 {
			assert.True(t, bytes.Equal(datagram, s.records))
		}
		if h, ok := clientHello(s.records); ok {
			assert.LessOrEqual(t, len(h.cookie), 255)
			assert.True(t, bytes.Contains(s.records, h.random[:]))
		}
	})
}

func TestClientHello(t *testing.T) {
	random := bytes.Repeat([]byte{7}, 32)
	body := append(append([]byte{0xfe, 0xfd}, random...), 1, 99, 3, 'a', 'b', 'c', 0, 0)
	n := byte(len(body))
	b := append([]byte{22, 0xfe, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 12 + n, 1, 0, 0, n, 0, 1, 0, 0, 0, 0, 0, n}, body...)
	h, ok := clientHello(b)
	assert.True(t, ok)
	assert.Equal(t, hello{message: 1, random: [32]byte(random), cookie: []byte("abc")}, h)
	for cut := 1; cut < len(b); cut++ {
		_, ok := clientHello(b[:len(b)-cut])
		assert.False(t, ok, "cut by %d", cut)
	}
	b[22] = 1 // not the first fragment
	b[24] = n - 1
	_, ok = clientHello(b)
	assert.False(t, ok)
}

// What comes to a leg that waits for a client, to one that is a client, and to one with an offer: nothing crashes,
// and the bounds hold.
func FuzzEndpoint(f *testing.F) {
	f.Add([]byte{21, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 40})
	f.Add(append([]byte{22, 0xfe, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 53, 1, 0, 0, 41, 0, 0, 0, 0, 0, 0, 0, 41, 0xfe, 0xfd},
		make([]byte, 39)...))
	text, err := NewCertificate()
	require.NoError(f, err)
	c, err := ParseCertificate(text)
	require.NoError(f, err)
	e := New(Config{Certificate: c, Notify: func(Event) {}, Send: func(Leg, netip.AddrPort, []byte) {}})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = e.Run(ctx)
	}()
	f.Cleanup(func() {
		cancel()
		<-done
	})
	from := netip.MustParseAddrPort("192.0.2.77:4000")
	for leg, role := range map[Leg]Role{1: Server, 2: Client} {
		_, _, err := e.Start(leg, Agreement{Role: role, Remote: from, Fingerprints: []Fingerprint{c.Fingerprint(nil)}})
		require.NoError(f, err)
	}
	require.NoError(f, e.Offer(3, nil))
	f.Fuzz(func(t *testing.T, packet []byte) {
		for leg := range Leg(4) {
			d := &datagram{leg: leg, from: from}
			d.n = copy(d.b[:], packet)
			e.dispatch(d)
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		assert.Zero(t, e.counters.Established)
		assert.LessOrEqual(t, len(e.legs), 3)
		for _, l := range e.legs {
			assert.LessOrEqual(t, len(l.handshakes), maxOfLeg)
		}
	})
}
