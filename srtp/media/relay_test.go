package media

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"ringway/srtp/stream"
	"ringway/srtp/suite"
	"ringway/test/netnstest"
	"ringway/test/polltest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	patience = 20 * time.Second
	tick     = time.Millisecond
)

// family4 and family6 are which of each list of addresses a call has.
const (
	family4 = iota
	family6
)

// call is one over both branches.
type call struct {
	a, b           *box
	phoneA, phoneB *endpoint
}

// Of box A legs 1 (phone) and 2 (box B), of box B legs 3 (box A) and 4 (phone).
func newCall(t testing.TB, n *branches, family int, s suite.Suite, mki []byte) *call {
	c := &call{
		a:      newBox(t, boxPlan{ns: n.boxA, lan: lanA, tunnel: tunnelA}),
		b:      newBox(t, boxPlan{ns: n.boxB, lan: lanB, tunnel: tunnelB}),
		phoneA: listen(t, n.phoneA, at(phoneA[family], 4000), at(lanA[family], 40000)),
		phoneB: listen(t, n.phoneB, at(phoneB[family], 4002), at(lanB[family], 40002)),
	}
	one, two := clearLeg(1), keyed(t, 2, s, 'b', 'a', mki)
	one.Local, one.Remote = at(lanA[family], 40000), at(phoneA[family], 4000)
	two.Local, two.Remote = at(tunnelA[family], 40010), at(tunnelB[family], 40020)
	require.NoError(t, c.a.relay.Set(one, two))
	three, four := keyed(t, 3, s, 'a', 'b', mki), clearLeg(4)
	three.Local, three.Remote = at(tunnelB[family], 40020), at(tunnelA[family], 40010)
	four.Local, four.Remote = at(lanB[family], 40002), at(phoneB[family], 4002)
	require.NoError(t, c.b.relay.Set(three, four))
	return c
}

// Calls over two boxes, one after the other in the same namespaces.
func TestTwoBoxes(t *testing.T) {
	n := newBranches(t)
	for family, name := range []string{"IPv4", "IPv6"} {
		for _, s := range suites {
			t.Run(name+" "+s.String(), func(t *testing.T) { testTwoBoxes(t, newCall(t, n, family, s, testMKI)) })
		}
	}
	t.Run("rotation", func(t *testing.T) { testRotation(t, n) })
}

// What one phone sends in clear reaches the other as it was, through two boxes; RTCP on the same ports, too.
func testTwoBoxes(t *testing.T, c *call) {
	for seq := range uint16(100) {
		packets := [][]byte{rtp(7, seq)}
		if seq%4 == 0 { // RTCP has a quota
			packets = append(packets, report(7))
		}
		for _, sent := range packets {
			c.phoneA.send(sent)
			c.phoneB.send(sent)
			got, from := c.phoneB.receive()
			assert.Equal(t, sent, got)
			assert.Equal(t, c.phoneB.to, from)
			got, from = c.phoneA.receive()
			assert.Equal(t, sent, got)
			assert.Equal(t, c.phoneA.to, from)
		}
	}
	polltest.Assert(t, func() bool {
		two := c.a.counts(2)
		return two.ReceivedPackets == 125 && two.SentPackets == 125 && two.Sealed == 100
	}, patience, tick)
	assert.Empty(t, c.a.relay.Drops())
	assert.Empty(t, c.b.relay.Drops())
}

// Keys change while packets are on their way, and every packet arrives once.
func testRotation(t *testing.T, n *branches) {
	const s = suite.AEADAES128GCM
	c := newCall(t, n, family4, s, testMKI)
	var stop atomic.Bool
	sent := make(chan uint16)
	window := make(chan struct{}, 16) // packets on their way
	go func() {
		defer close(sent)
		for seq := uint16(65000); !stop.Load(); seq++ { // past the wrap
			window <- struct{}{}
			if _, err := c.phoneA.WriteToUDPAddrPort(rtp(7, seq), c.phoneA.to); err != nil {
				return
			}
			sent <- seq
		}
	}()
	t.Cleanup(func() { stop.Store(true) })

	const rotations, each = 30, 64
	before := testMKI
	arrived := 0
	for seq := range sent {
		got, _ := c.phoneB.receive()
		require.Equal(t, rtp(7, seq)[rtpHeader:], got[rtpHeader:])
		<-window
		if arrived++; arrived%each != 0 || arrived/each > rotations+1 {
			continue
		}
		// The receiver first, as the boxes agree on it. The old key is dropped when nothing under it can be on its way.
		n := byte(arrived / each)
		if n > 1 {
			require.NoError(t, c.b.relay.DropKey(3, before))
			before = []byte{0, 0, 1, n - 1}
		}
		if n > rotations {
			stop.Store(true)
			continue
		}
		mki := []byte{0, 0, 1, n}
		require.NoError(t, c.b.relay.AddKey(3, newKey(t, s, n, mki)))
		require.NoError(t, c.a.relay.UseKey(2, newKey(t, s, n, mki)))
	}
	assert.Empty(t, c.a.relay.Drops())
	assert.Empty(t, c.b.relay.Drops())
	assert.Equal(t, uint64(rotations), c.a.counts(2).Rotations)
}

// What one box does, one relay after the other in the same namespaces.
func TestBox(t *testing.T) {
	n := newBranch(t)
	for name, test := range map[string]func(t *testing.T, n *branch){
		"packets that are not authentic change a counter": testNotAuthentic,
		"overload drops the oldest":                       testOverload,
		"too long for its link":                           testTooLong,
		"raw sockets cannot forge a source":               testForgedSources,
		"a flood of one port stays outside":               testFlood,
		"the next relay goes on":                          testNextRelay,
		"DTLS both ways":                                  testDTLS,
		"keys are wiped":                                  testKeysAreWiped,
		"legs that cannot be joined":                      testImpossibleLegs,
		"a leg moves to the other side":                   testMove,
		"one key of several branches":                     testBranches,
	} {
		t.Run(name, func(t *testing.T) { test(t, n) })
	}
}

// secureBox is a box with a call between a phone in clear (leg 1) and a far end that is the test's (leg 2).
func secureBox(t testing.TB, n *branch, p boxPlan, s suite.Suite) (b *box, phone, far *endpoint, ends *peer) {
	p.ns, p.lan, p.tunnel = n.box, lanA, tunnelA
	b = newBox(t, p)
	phone = listen(t, n.phone, at(phoneA[0], 4000), at(lanA[0], 40000))
	far = listen(t, n.far, at(tunnelB[0], 41000), at(tunnelA[0], 40010))
	one, two := legsOf(t, s)
	require.NoError(t, b.relay.Set(one, two))
	return b, phone, far, newPeer(t, s, 'i', 'o', nil)
}

func legsOf(t testing.TB, s suite.Suite) (one, two Leg) {
	one, two = clearLeg(1), keyed(t, 2, s, 'i', 'o', nil)
	one.Local, one.Remote = at(lanA[0], 40000), at(phoneA[0], 4000)
	two.Local, two.Remote = at(tunnelA[0], 40010), at(tunnelB[0], 41000)
	return one, two
}

// Packets that are not authentic change a counter and nothing else: none reaches the phone, and the call goes on.
func testNotAuthentic(t *testing.T, n *branch) {
	for _, s := range suites {
		t.Run(s.String(), func(t *testing.T) {
			b, phone, far, ends := secureBox(t, n, boxPlan{}, s)
			first := ends.seal(rtp(7, 1))
			far.send(first)
			got, _ := phone.receive()
			assert.Equal(t, rtp(7, 1), got)

			wrong := newPeer(t, s, 'x', 'y', nil)
			forged := ends.seal(rtp(7, 2))
			forged[30] ^= 1
			cut := ends.seal(rtp(7, 3))
			bad := [][]byte{
				first, forged, cut[:len(cut)-5], cut[:11], wrong.seal(rtp(7, 4)), wrong.seal(rtp(8, 5)), rtp(7, 6), nil,
				wrong.seal(report(7)),
			}
			for _, p := range bad {
				far.send(p)
			}
			polltest.Require(t, func() bool { return sum(b.counts(2).Drops) == uint64(len(bad)) }, patience, tick)
			assert.Equal(t, map[string]uint64{"replayed": 1, "forged": 6, "not_media": 2}, b.counts(2).Drops)
			far.send(ends.seal(rtp(7, 7)))
			got, _ = phone.receive()
			assert.Equal(t, rtp(7, 7), got)
			phone.nothing()
		})
	}
}

func sum(m map[string]uint64) (n uint64) {
	for _, v := range m {
		n += v
	}
	return n
}

// What has waited longer than 20 ms is dropped, the oldest first; what comes then passes.
func testOverload(t *testing.T, n *branch) {
	if os.Getenv(envAlone) != "" {
		t.Skip("a pinned thread must not wait as this test has it do")
	}
	b, phone, far, ends := secureBox(t, n, boxPlan{longest: maxWait}, suite.AES128CMHMACSHA180)
	release := make(chan struct{})
	busy := make(chan struct{})
	go func() {
		b.relay.mu.Lock()
		defer b.relay.mu.Unlock()
		_ = b.relay.askLocked(Tunnel, func() { close(busy); <-release })
	}()
	<-busy
	const old = 50
	for seq := range uint16(old) {
		far.send(ends.seal(rtp(7, seq)))
	}
	sent := time.Now()
	polltest.Require(t, func() bool { return time.Since(sent) > maxWait+5*time.Millisecond }, patience, tick)
	close(release)
	polltest.Require(t, func() bool { return b.counts(2).Drops["late"] == old }, patience, tick)

	seq := uint16(0)
	polltest.Require(t, func() bool { // one that the machine does not keep waiting
		seq++
		far.send(ends.seal(rtp(8, seq)))
		return b.counts(2).ReceivedPackets > 0
	}, patience, tick)
	got, _ := phone.receive()
	assert.EqualValues(t, 8, binary.BigEndian.Uint32(got[8:]), "none of the old ones")
}

// A packet that its link does not take is counted with its reason, and the next one passes.
func testTooLong(t *testing.T, n *branch) {
	b, phone, far, ends := secureBox(t, n, boxPlan{}, suite.AES128CMHMACSHA180)
	phone.send(append(rtp(7, 1), make([]byte, 1500-28-172)...)) // in clear it fits
	polltest.Require(t, func() bool { return b.counts(2).Drops["oversized"] == 1 }, patience, tick, "%v", b.relay.Drops())
	phone.send(rtp(7, 2))
	p, _ := far.receive()
	_, err := ends.open(p)
	assert.NoError(t, err)
	// It is counted when the system call has returned.
	polltest.Assert(t, func() bool { return b.counts(2).SentPackets == 1 }, patience, tick)
}

// The firewall lets nothing leave by a raw socket but from our media addresses and ports of its side.
func testForgedSources(t *testing.T, n *branch) {
	b, _, far, ends := secureBox(t, n, boxPlan{}, suite.AES128CMHMACSHA180)
	send := func(side Side, v6 int, from, to netip.AddrPort) error {
		p := packet(from, to, 0, rtp(7, 1))
		var name unix.Sockaddr = &unix.SockaddrInet4{Addr: [4]byte(to.Addr().AsSlice())}
		if v6 == family6 {
			name = &unix.SockaddrInet6{Addr: to.Addr().As16()}
		}
		raw, err := b.sockets[side].Out[v6].SyscallConn()
		require.NoError(t, err)
		require.NoError(t, raw.Control(func(fd uintptr) { err = unix.Sendto(int(fd), p, 0, name) }))
		return err
	}
	for v6 := range families {
		to := at(phoneA[v6], 4000)
		assert.NoError(t, send(LAN, v6, at(lanA[v6], 40000), to))
		assert.NoError(t, send(Tunnel, v6, at(tunnelA[v6], 40999), at(tunnelB[v6], 4000)))
		for _, from := range []netip.AddrPort{
			at(phoneA[v6], 40000),  // a phone's
			at(tunnelB[v6], 40000), // the far box's
			at(tunnelA[v6], 40000), // ours, of the other side
			at(lanA[v6], 39999),
			at(lanA[v6], 41000),
			at(lanA[v6], 5060),
		} {
			assert.ErrorIs(t, send(LAN, v6, from, to), unix.EPERM, "%s", from)
		}
	}
	assert.Contains(t, b.Run("nft", "list", "counter", "inet", "media", "media_foreign"), "packets 12 ")

	// A leg at such an address is refused there, and counted.
	one, two := legsOf(t, suite.AES128CMHMACSHA180)
	one.Local = at(lanA[0], 39998)
	require.NoError(t, b.relay.Set(one, two))
	far.send(ends.seal(rtp(7, 1)))
	polltest.Require(t, func() bool { return b.counts(1).Drops["send_refused"] == 1 }, patience, tick)
}

// A flood of one port stays outside, and another call loses nothing by it.
func testFlood(t *testing.T, n *branch) {
	const rate, flood = 400, 5000
	b, phone, far, ends := secureBox(t, n, boxPlan{packetsPerPort: rate}, suite.AES128CMHMACSHA180)
	three, four := legsOf(t, suite.AES128CMHMACSHA180)
	three.ID, four.ID = 3, 4
	three.Local, three.Remote = at(lanA[0], 40100), at(phoneA[0], 4100)
	four.Local, four.Remote = at(tunnelA[0], 40110), at(tunnelB[0], 41100)
	require.NoError(t, b.relay.Set(three, four))

	began := time.Now()
	victim := *phone
	victim.to = three.Local
	for i := range flood {
		victim.send(rtp(9, uint16(i)))
		if i%(flood/50) == 0 {
			far.send(ends.seal(rtp(7, uint16(i))))
			got, _ := phone.receive()
			assert.Equal(t, rtp(7, uint16(i))[rtpHeader:], got[rtpHeader:])
		}
	}
	// Every packet of the flood was either forwarded or counted by the firewall; ours came behind them.
	taken := b.counts(3).ReceivedPackets + sum(b.counts(3).Drops)
	most := rate/4 + uint64(float64(rate)*time.Since(began).Seconds()) + 1
	assert.LessOrEqual(t, taken, most)
	assert.Positive(t, taken)
	assert.NotContains(t, b.Run("nft", "list", "counter", "inet", "media", "media_flood"), "packets 0 ")
	assert.Empty(t, b.counts(2).Drops)
}

// The next process goes on from the updates, with the same sockets.
func testNextRelay(t *testing.T, n *branch) {
	const s = suite.AEADAES128GCM
	var sent atomic.Pointer[stream.Account]
	var heard atomic.Pointer[[]stream.Heard]
	p := boxPlan{changed: func(u Update) {
		if u.Sent != nil {
			sent.Store(u.Sent)
		} else {
			heard.Store(&u.Heard)
		}
	}}
	b, phone, far, ends := secureBox(t, n, p, s)
	old := ends.seal(rtp(9, 1))
	exchange := func(seq uint16) {
		phone.send(rtp(7, seq))
		got, _ := far.receive()
		_, err := ends.open(got)
		require.NoError(t, err, "an index that was used")
		far.send(ends.seal(rtp(9, seq)))
		_, _ = phone.receive()
	}
	far.send(old)
	_, _ = phone.receive()
	for seq := range uint16(50) {
		exchange(100 + seq)
	}
	b.relay.Close()
	require.NotNil(t, sent.Load())
	require.NotNil(t, heard.Load())
	assert.ErrorIs(t, b.relay.Set(legsOf(t, s)), ErrClosed)

	b.start(p)
	one, two := legsOf(t, s)
	two.Sender.Restore(*sent.Load())
	two.Receiver.Restore(*heard.Load(), 1)
	require.NoError(t, b.relay.Set(one, two))
	for seq := range uint16(50) {
		exchange(150 + seq)
	}
	far.send(old)
	polltest.Require(t, func() bool { return b.counts(2).Drops["replayed"] == 1 }, patience, tick)
}

// Both ends' DTLS passes by way of the callback, and bounded.
func testDTLS(t *testing.T, n *branch) {
	took := make(chan []byte, 1)
	b, _, far, _ := secureBox(t, n, boxPlan{dtls: func(leg uint64, from netip.AddrPort, p []byte) {
		took <- bytes.Clone(p)
	}}, suite.AES128CMHMACSHA180)
	one, two := legsOf(t, suite.AES128CMHMACSHA180)
	two.DTLS, two.Receiver, two.Sender = true, nil, nil
	require.NoError(t, b.relay.Set(one, two))
	hello := []byte{22, 254, 253, 1, 2, 3}
	for range 3 * maxDTLSWaiting { // each is read before the next comes
		far.send(hello)
		assert.Equal(t, hello, <-took)
	}
	require.NoError(t, b.relay.SendDTLS(2, hello))
	got, from := far.receive()
	assert.Equal(t, hello, got)
	assert.Equal(t, two.Local, from)
	assert.Error(t, b.relay.SendDTLS(1, hello))
	assert.Error(t, b.relay.SendDTLS(2, rtp(7, 1)))
	assert.ErrorIs(t, b.relay.SendDTLS(9, hello), ErrUnknownLeg)

	// With the keys of the handshake media passes.
	_, keyed := legsOf(t, suite.AES128CMHMACSHA180)
	two.Receiver, two.Sender = keyed.Receiver, keyed.Sender
	require.NoError(t, b.relay.Set(one, two))
	ends := newPeer(t, suite.AES128CMHMACSHA180, 'i', 'o', nil)
	far.send(ends.seal(rtp(7, 1)))
	polltest.Require(t, func() bool { return b.counts(2).ReceivedPackets == 1 }, patience, tick)
}

// A leg that is removed or gets other keys leaves no key behind, and its packets are nobody's.
func testKeysAreWiped(t *testing.T, n *branch) {
	const s = suite.AES128CMHMACSHA180
	b, _, far, ends := secureBox(t, n, boxPlan{}, s)
	one, two := legsOf(t, s)
	require.NoError(t, b.relay.Set(one, two))
	first := two.Sender.Key()
	require.NoError(t, b.relay.Set(one, two))
	assert.False(t, first.Wiped(), "the same streams go on")
	_, again := legsOf(t, s)
	require.NoError(t, b.relay.Set(one, again))
	assert.True(t, first.Wiped())
	second := again.Sender.Key()
	require.NoError(t, b.relay.UseKey(2, newKey(t, s, 'z', nil)))
	assert.True(t, second.Wiped())
	third := again.Sender.Key()
	assert.ErrorContains(t, b.relay.UseKey(2, third), "in use")
	assert.False(t, third.Wiped())
	require.NoError(t, b.relay.Remove(1))
	assert.True(t, third.Wiped())

	before := b.relay.Drops()["no_leg"]
	far.send(ends.seal(rtp(7, 1)))
	polltest.Require(t, func() bool { return b.relay.Drops()["no_leg"] == before+1 }, patience, tick)
	assert.ErrorIs(t, b.relay.Remove(1), ErrUnknownLeg)
	assert.ErrorIs(t, b.relay.AddKey(2, first), ErrUnknownLeg)
}

// Two legs have neither a port nor a key in common.
func testImpossibleLegs(t *testing.T, n *branch) {
	const s = suite.AES128CMHMACSHA180
	b, _, _, _ := secureBox(t, n, boxPlan{}, s)
	one, two := legsOf(t, s)
	assert.ErrorContains(t, b.relay.Set(one, one), "with itself")
	three, four := legsOf(t, s)
	three.ID, four.ID = 3, 4
	assert.ErrorContains(t, b.relay.Set(three, four), "has 192.0.2.1:40000 already")
	three.Local = at(lanA[0], 40200)
	assert.ErrorContains(t, b.relay.Set(three, four), "has 198.51.100.1:40010 already")
	four.Local = at(tunnelA[0], 40210)
	require.NoError(t, b.relay.Set(one, two))
	four.Receiver = two.Receiver
	assert.ErrorContains(t, b.relay.Set(three, four), "has the same keys")
	three.Protection = 0
	assert.ErrorContains(t, b.relay.Set(three, four), "leg 3: protection 0")
	assert.Len(t, b.relay.Counts(), 2)
}

// A call whose far end moves to the other side goes on with its streams.
func testMove(t *testing.T, n *branch) {
	const s = suite.AES128CMHMACSHA180
	b, phone, far, ends := secureBox(t, n, boxPlan{}, s)
	one, two := legsOf(t, s)
	require.NoError(t, b.relay.Set(one, two))
	far.send(ends.seal(rtp(7, 1)))
	_, _ = phone.receive()

	two.Side, two.Local, two.Remote = LAN, at(lanA[0], 40300), at(phoneA[0], 4300)
	require.NoError(t, b.relay.Set(one, two))
	moved := listen(t, n.phone, two.Remote, two.Local)
	phone.send(rtp(8, 1))
	_, err := ends.open(first(moved.receive()))
	require.NoError(t, err)
	second := ends.seal(rtp(7, 2))
	moved.send(second)
	assert.Equal(t, rtp(7, 2), first(phone.receive()))
	moved.send(second)
	moved.send(ends.seal(rtp(7, 3)))
	assert.Equal(t, rtp(7, 3), first(phone.receive()), "the copy was dropped")
	phone.nothing()
	phone.send(rtp(8, 2))
	_, err = ends.open(first(moved.receive()))
	assert.NoError(t, err, "an index that was used")
	assert.Equal(t, map[string]uint64{"replayed": 1}, b.counts(2).Drops)
	assert.Equal(t, uint64(3), b.counts(2).ReceivedPackets)
}

func first(p []byte, _ netip.AddrPort) []byte { return p }

// A key that was offered to several branches of a call has one Sender, which goes on from one to the next: no index is
// used twice under it, and it is in one pair at a time.
func testBranches(t *testing.T, n *branch) {
	const s = suite.AEADAES128GCM
	sent := make(chan uint64, 100)
	b, phone, far, ends := secureBox(t, n, boxPlan{changed: func(u Update) {
		if u.Sent != nil {
			sent <- u.Leg
		}
	}}, s)
	one, two := legsOf(t, s)
	require.NoError(t, b.relay.Set(one, two))
	hear := func(seq uint16) {
		t.Helper()
		phone.send(rtp(7, seq))
		got, err := ends.open(first(far.receive()))
		require.NoError(t, err, "an index that was used, or another key")
		assert.Equal(t, rtp(7, seq), got)
	}
	hear(1)
	assert.Equal(t, uint64(2), <-sent)

	// Another branch has its own legs, but for the key that was offered.
	three, four := one, keyed(t, 4, s, 'j', 'x', nil)
	three.ID, three.Local = 3, at(lanA[0], 40400)
	four.Local, four.Remote, four.Sender = at(tunnelA[0], 40410), two.Remote, two.Sender
	assert.ErrorContains(t, b.relay.Set(three, four), "leg 4: leg 2 has the same keys")
	hear(2)
	twice := two
	twice.ID, twice.Local, twice.Receiver = 5, at(tunnelA[0], 40500), nil
	assert.ErrorContains(t, b.relay.Set(two, twice), "leg 5: leg 2 has the same keys")
	hear(3)

	key := two.Sender.Key()
	assert.ErrorIs(t, b.relay.Replace(three, four, 9), ErrUnknownLeg)
	require.NoError(t, b.relay.Replace(three, four, 1))
	assert.False(t, key.Wiped())
	phone.to = three.Local
	hear(4)
	assert.Equal(t, uint64(4), <-sent, "the next process has to know whose it is")
	assert.Len(t, b.relay.Counts(), 2)

	// The caller's leg is the same, and the key goes on to a third branch.
	six := keyed(t, 6, s, 'k', 'x', nil)
	six.Local, six.Remote, six.Sender = at(tunnelA[0], 40600), two.Remote, two.Sender
	require.NoError(t, b.relay.Set(three, six))
	hear(5)

	// Between two branches it is in none.
	require.NoError(t, b.relay.Detach(3))
	assert.Empty(t, b.relay.Counts())
	assert.False(t, key.Wiped())
	require.NoError(t, b.relay.Set(one, two))
	phone.to = one.Local
	hear(6)
	require.NoError(t, b.relay.Remove(1))
	assert.True(t, key.Wiped())
	assert.ErrorIs(t, b.relay.Detach(1), ErrUnknownLeg)
}

// Pinned threads (package tunnel/turn) forward as well; they need a process that does nothing else.
func TestLongAlone(t *testing.T) {
	netnstest.Root(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.timeout=60s", "-test.run=^TestBox$", "-test.v")
	cmd.Env = append(os.Environ(), envAlone+"=1", "GOMAXPROCS=")
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	assert.Contains(t, string(out), "--- PASS: TestBox ")
}
