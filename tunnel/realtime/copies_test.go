package realtime

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/tunnel"
	"ringway/tunnel/datagram"
	"ringway/tunnel/path"
	"ringway/units"
)

// The rig's second line is another address of loopback.
var lineOne, lineTwo = netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")

// always has an engine send media to another twice.
func (b *bare) always(far *bare, rate units.BitRate) {
	b.t.Helper()
	require.NoError(b.t, b.SetCopies(tunnel.Copies{
		Media: 1 << 46,
		Lines: []tunnel.CopyLine{{AdmissionLine: tunnel.AdmissionLine{Overhead: 14}}},
		Sites: []tunnel.CopySite{{Key: far.key.Public(), When: tunnel.CopiesAlways, Rates: []units.BitRate{rate}}},
	}))
}

// media has both ends send a packet of media every 20 ms.
func (r *rig) media(d time.Duration) {
	for end := r.now + int64(d); r.now < end; {
		r.now += int64(10 * time.Millisecond)
		if r.now/int64(10*time.Millisecond)%2 == 0 {
			r.a.send(packet(1, 2, 46<<2, 200))
			r.b.send(packet(2, 1, 46<<2, 200))
		}
		for _, x := range []*bare{r.a, r.b} {
			x.mu.Lock()
			for _, p := range x.peers {
				x.followPathsLocked(p, r.now)
			}
			x.mu.Unlock()
			x.lookAtCalls()
			if x.out.later.Load().waiting() {
				x.out.sendLater(r.now)
			}
		}
		r.settle()
	}
}

// Media goes twice, the same ciphertext, from two addresses. The far end removes the copy, counts it apart from
// replays, and stays where it is; signalling goes once.
func TestMediaIsSentTwice(t *testing.T) {
	r := newRig(t)
	r.talk()
	require.NoError(t, r.a.SetSources([]netip.Addr{lineOne, lineTwo}))
	r.a.always(r.b, 0)
	r.media(3 * time.Second)
	to := r.a.peerOf(r.b).copies.to.Load()
	require.NotNil(t, to)
	require.NotNil(t, to.to)
	r.b.got()

	where := r.b.peerOf(r.a).endpoint.Load()
	before, removed := r.a.peerOf(r.b).copies.sent.Load(), r.b.peerOf(r.a).copies.removed.Load()
	r.media(time.Second)
	assert.Len(t, r.b.got(), 50, "each once")
	assert.EqualValues(t, 50, r.a.peerOf(r.b).copies.sent.Load()-before)
	assert.EqualValues(t, 50, r.b.peerOf(r.a).copies.removed.Load()-removed)
	assert.Zero(t, r.b.drops.all()["replayed"])
	assert.Same(t, where, r.b.peerOf(r.a).endpoint.Load())

	r.a.send(packet(1, 2, 46<<2, 200))
	r.a.out.batch(r.now)
	from := map[string][]byte{}
	buf := make([]byte, 1<<16)
	for {
		n, sa, err := unix.Recvfrom(r.b.udp[0], buf, unix.MSG_DONTWAIT)
		if err != nil {
			break
		}
		from[netip.AddrFrom4(sa.(*unix.SockaddrInet4).Addr).String()] = append([]byte(nil), buf[:n]...)
	}
	require.Len(t, from, 2)
	assert.Equal(t, from["127.0.0.1"], from["127.0.0.2"], "any WireGuard can receive it")
	r.a.send(packet(1, 2, 24<<2, 200))
	r.a.out.batch(r.now)
	assert.Len(t, r.b.wire(), 1, "signalling goes once")

	require.NoError(t, r.a.SetCopies(tunnel.Copies{}))
	r.a.send(packet(1, 2, 46<<2, 200))
	r.a.out.batch(r.now)
	assert.Len(t, r.b.wire(), 1)
}

// Whatever copy comes first: the far end neither moves nor takes the path that is used for a silent one. A third
// message is a replay, from wherever it comes, and makes no path.
func TestACopyThatComesFirstMovesNobody(t *testing.T) {
	r := newRig(t)
	r.talk()
	require.NoError(t, r.a.SetSources([]netip.Addr{lineOne, lineTwo}))
	r.a.always(r.b, 0)
	r.media(3 * time.Second)
	r.b.got()
	p := r.b.peerOf(r.a)
	where := p.endpoint.Load()
	elsewhere := netip.AddrPortFrom(lineTwo, r.a.at.Port())
	stranger := netip.MustParseAddrPort("127.0.0.9:9")
	put := func(m []byte, from netip.AddrPort) {
		s := datagram.RawSockaddr(from)
		r.b.in.datagram(append(make([]byte, 0, len(m)+64), m...), &s, &datagram.Arrival{Source: where.src}, r.now)
	}
	for range 50 {
		r.now += int64(20 * time.Millisecond)
		r.a.send(packet(1, 2, 46<<2, 200))
		r.a.out.batch(r.now)
		m := r.b.wire()
		require.Len(t, m, 2)
		replays, removed := r.b.drops.all()["replayed"], p.copies.removed.Load()
		forged := append([]byte(nil), m[0]...)
		forged[len(forged)-1]++
		put(m[0], elsewhere)
		put(forged, r.a.at) // shows nothing
		assert.NotEqual(t, r.now, p.heardAt.Load())
		put(m[1], r.a.at)
		assert.Equal(t, r.now, p.heardAt.Load(), "the path that is used delivers")
		put(m[0], stranger)
		put(m[0], stranger)
		put(m[1], r.a.at)
		assert.EqualValues(t, 2, p.copies.removed.Load()-removed)
		assert.EqualValues(t, 2, r.b.drops.all()["replayed"]-replays)
		assert.Same(t, where, p.endpoint.Load())
	}
	assert.Len(t, r.b.got(), 50)
	assert.EqualValues(t, 50, r.b.drops.all()["forged"])

	// Nothing comes by the path that is used any more: the far end follows.
	for range 8 {
		r.now += int64(20 * time.Millisecond)
		r.a.send(packet(1, 2, 46<<2, 200))
		r.a.out.batch(r.now)
		put(r.b.wire()[0], elsewhere)
	}
	assert.Equal(t, elsewhere, p.endpoint.Load().raw.AddrPort())
}

// A far end that has said that it sends less often is waited for accordingly, until what comes elsewhere moves it.
func TestAPacedFarEndStays(t *testing.T) {
	w, now := &path.Watch{}, int64(time.Hour)
	var c peerCopies
	for every, silence := range map[time.Duration]time.Duration{
		0: path.Silence, 120 * time.Millisecond: 610 * time.Millisecond,
	} {
		w.Hear(now, path.Message{Every: every, CopyFlags: 5, Slow: 4}, path.Counts{}, path.Path{}, path.Seen{})
		c.hear(w)
		assert.True(t, c.stays(now, now-int64(silence)+1), every)
		assert.False(t, c.stays(now, now-int64(silence)), every)
		assert.True(t, c.stays(now+int64(7*time.Second), now+int64(7*time.Second)), "it may say so every two seconds")
	}
}

// With one line the copy goes by the same one, 20 ms later at the least; both ends know what the line loses.
func TestACopyIsSentLater(t *testing.T) {
	r := newRig(t)
	r.talk()
	r.a.always(r.b, 0)
	r.media(3 * time.Second)
	require.NotNil(t, r.a.peerOf(r.b).copies.to.Load())
	r.b.got()
	r.b.wire()
	for r.a.out.later.Load().waiting() {
		r.now += int64(path.CopyDelay)
		r.a.out.sendLater(r.now)
		r.b.wire()
	}
	r.a.send(packet(1, 2, 46<<2, 200))
	r.a.out.batch(r.now)
	first := r.b.wire()
	require.Len(t, first, 1)
	r.now += int64(path.CopyDelay) - 1
	r.a.out.sendLater(r.now)
	require.Empty(t, r.b.wire())
	r.now++
	r.a.out.sendLater(r.now)
	assert.Equal(t, first, r.b.wire())
	assert.False(t, r.a.out.later.Load().waiting())

	// More than the ring holds, and what is too old, is not sent, and counted.
	unsent := r.a.peerOf(r.b).copies.unsent.Load()
	for range laterRingSize + 10 {
		r.a.send(packet(1, 2, 46<<2, 200))
		r.a.out.batch(r.now)
		r.b.wire()
	}
	assert.EqualValues(t, 10, r.a.peerOf(r.b).copies.unsent.Load()-unsent)
	r.now += int64(laterAtMost) + 1
	r.a.out.sendLater(r.now)
	assert.EqualValues(t, laterRingSize+10, r.a.peerOf(r.b).copies.unsent.Load()-unsent)
	assert.Empty(t, r.b.wire())
	assert.False(t, r.a.out.later.Load().waiting())
}

// Copies have what calls leave of the budget: one call and its copies fit, not those of two.
func TestCopiesFitTheBudget(t *testing.T) {
	r := newRig(t)
	r.talk()
	require.NoError(t, r.a.SetAdmission(tunnel.Admission{
		Media: 1 << 46, Lines: []tunnel.AdmissionLine{{Overhead: 14}},
		Sites: []tunnel.AdmissionSite{{Key: r.b.key.Public(), Rate: 400_000}},
	}))
	r.a.always(r.b, 400_000)
	second := func() {
		for range 50 {
			p := packet(1, 2, 46<<2, 200)
			binary.BigEndian.PutUint16(p[20:], 5000)
			r.a.send(p)
			r.media(20 * time.Millisecond)
		}
	}
	r.media(4 * time.Second)
	require.NotNil(t, r.a.peerOf(r.b).copies.to.Load(), "one call takes 113 kbit/s")
	second()
	second()
	assert.Nil(t, r.a.peerOf(r.b).copies.to.Load(), "two take twice that")
	st := r.a.Status().Peers[0]
	require.NotNil(t, st.Copies)
	assert.Equal(t, "no_room", st.Copies.State)
	assert.Equal(t, "the voice budget has no room for copies", st.Copies.Why)
	assert.Zero(t, st.Media.Refused, "calls come first")
}

// On a hub's line the calls of all sites come before copies, also of those to which nothing is sent twice. What all
// take is found once for all peers.
func TestCallsOfOtherSitesLeaveLessForCopies(t *testing.T) {
	r := newRig(t)
	r.talk()
	c := r.engine(3)
	r.a.meet(c, c.at)
	c.meet(r.a, r.a.at)
	line := tunnel.AdmissionLine{Overhead: 14, Rate: 300_000} // two calls of 113 kbit/s, not three
	keys := []tunnel.PublicKey{r.b.key.Public(), c.key.Public()}
	slices.SortFunc(keys, func(a, b tunnel.PublicKey) int { return bytes.Compare(a[:], b[:]) })
	admission := tunnel.Admission{Media: 1 << 46, Lines: []tunnel.AdmissionLine{line}}
	copies := tunnel.Copies{Media: 1 << 46, Lines: []tunnel.CopyLine{{AdmissionLine: line}}}
	for _, k := range keys {
		admission.Sites = append(admission.Sites, tunnel.AdmissionSite{Key: k, Rate: 300_000})
		when := tunnel.CopiesAlways
		if k == c.key.Public() {
			when = tunnel.CopiesOff
		}
		copies.Sites = append(copies.Sites, tunnel.CopySite{Key: k, When: when, Rates: []units.BitRate{300_000}})
	}
	require.NoError(t, r.a.SetAdmission(admission))
	require.NoError(t, r.a.SetCopies(copies))
	talk := func(d time.Duration) {
		for range d / (20 * time.Millisecond) {
			r.a.send(packet(1, 3, 46<<2, 200))
			c.send(packet(3, 1, 46<<2, 200))
			r.media(20 * time.Millisecond)
			c.take()
		}
	}
	r.media(4 * time.Second)
	require.NotNil(t, r.a.peerOf(r.b).copies.to.Load(), "one call and its copies")
	talk(2 * time.Second)
	require.NotZero(t, r.a.peerOf(c).voice.Taken(r.now))
	assert.Nil(t, r.a.peerOf(r.b).copies.to.Load(), "two calls, and no room for copies")
	assert.Equal(t, "no_room", r.a.Status().Peers[slices.Index(keys, r.b.key.Public())].Copies.State)

	for i := range copies.Sites { // both want copies, wait for as long, and one of them gets some
		copies.Sites[i].When = tunnel.CopiesAlways
	}
	require.NoError(t, r.a.SetCopies(copies))
	talk(2 * time.Second)
	copies.Lines[0].Rate = 400_000 // nor four
	for i := range copies.Sites {
		copies.Sites[i].Rates = []units.BitRate{0}
	}
	require.NoError(t, r.a.SetCopies(copies))
	copied := func(x *bare) bool { return r.a.peerOf(x).copies.to.Load() != nil }
	for i := range 800 {
		if i%2 == 0 {
			r.a.send(packet(1, 3, 46<<2, 200))
			c.send(packet(3, 1, 46<<2, 200))
		}
		r.media(path.LookEvery)
		c.take()
		require.False(t, copied(r.b) && copied(c), "not for a moment")
	}
	require.True(t, r.a.calling[r.a.peerOf(r.b)] && r.a.calling[r.a.peerOf(c)])
	assert.True(t, copied(r.b) || copied(c))
	r.now++
	walks := r.a.copyLoad.walks
	r.a.lookAtCalls()
	assert.Equal(t, 1, r.a.copyLoad.walks-walks)
	after := slices.Clone(r.a.copyLoad.lines)
	r.now++
	r.a.findCopyLoadLocked(r.now)
	assert.Equal(t, r.a.copyLoad.lines, after, "what was decided counts for who is looked at next")
}

// Nothing is allocated for a copy, neither where it is sent nor where it is removed.
func TestCopiesAllocateNothing(t *testing.T) {
	for _, lines := range [][]netip.Addr{nil, {lineOne, lineTwo}} {
		r := newRig(t)
		r.talk()
		require.NoError(t, r.a.SetSources(lines))
		r.a.always(r.b, 0)
		r.media(3 * time.Second)
		require.NotNil(t, r.a.peerOf(r.b).copies.to.Load())
		p := append(make([]byte, vnetHeader), packet(1, 2, 46<<2, 200)...)
		buf := make([]byte, 2048)
		sent := r.a.peerOf(r.b).copies.sent.Load()
		assert.Zero(t, testing.AllocsPerRun(200, func() {
			r.now += int64(time.Millisecond)
			_, _ = unix.Write(r.a.host, p)
			r.a.out.batch(r.now)
			if r.a.out.later.Load().waiting() {
				r.a.out.sendLater(r.now)
			}
			r.b.in.receive(r.b.udp[0], r.now)
			_, _ = unix.Read(r.b.host, buf)
		}))
		assert.Greater(t, r.a.peerOf(r.b).copies.sent.Load()-sent, uint64(150))
	}
}
