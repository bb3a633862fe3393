package realtime

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/chacha20poly1305"

	"ringway/tunnel"
)

func TestWipedKeyIsGone(t *testing.T) {
	key := make([]byte, chacha20poly1305.KeySize)
	key[5] = 77
	a, err := chacha20poly1305.New(key)
	require.NoError(t, err)
	typ := reflect.TypeOf(a).Elem()
	require.Equal(t, uintptr(chacha20poly1305.KeySize), typ.Size(),
		"the AEAD holds more than its key: wipe has to be looked at")
	require.Equal(t, 1, typ.NumField())
	wipe(a)
	zero, err := chacha20poly1305.New(make([]byte, chacha20poly1305.KeySize))
	require.NoError(t, err)
	assert.Equal(t, zero.Seal(nil, zeroNonce[:], []byte("x"), nil), a.Seal(nil, zeroNonce[:], []byte("x"), nil))
}

func TestFirstPacketWaitsForItsSession(t *testing.T) {
	r := newRig(t)
	want := packet(1, 2, 0, 100)
	r.a.send(want)
	r.settle()
	assert.Equal(t, [][]byte{want}, r.b.got())
	assert.Empty(t, r.a.drops.all())
	assert.Empty(t, r.b.drops.all())
}

func TestPresharedKeys(t *testing.T) {
	psk := "preshared_key=" + strings.Repeat("5a", 32) + "\n"
	r := newRig(t)
	r.a.meet(r.b, r.b.at, psk)
	r.a.send(packet(1, 2, 0, 100))
	r.settle()
	assert.Empty(t, r.b.got(), "one end alone has the key")
	assert.NotZero(t, r.a.drops.all()["bad_handshake"])
	r.b.meet(r.a, r.a.at, psk)
	r.pass(6 * time.Second)
	r.a.got()
	r.b.got()
	r.talk()
}

func TestSessionIsRenewed(t *testing.T) {
	for _, initiator := range []string{"a", "b"} {
		t.Run(initiator+" initiates", func(t *testing.T) {
			r := newRig(t)
			one, other := r.a, r.b
			if initiator == "b" {
				one, other = other, one
			}
			one.send(packet(one.net, other.net, 0, 100))
			r.settle()
			require.Len(t, other.got(), 1)
			sessions := map[uint32]bool{}
			sent, got := 0, 0
			for range 20 * 130 { // 20 re-keys, a packet a second each way
				for _, x := range [][2]*bare{{one, other}, {other, one}} {
					x[0].send(packet(x[0].net, x[1].net, 0, 100))
					sent++
				}
				r.pass(time.Second)
				got += len(one.got()) + len(other.got())
				sessions[one.peerOf(other).current.Load().local] = true
			}
			assert.Equal(t, sent, got, "no packet is lost over a new session")
			assert.GreaterOrEqual(t, len(sessions), 20)
			assert.Empty(t, one.drops.all())
			assert.Empty(t, other.drops.all())
			assert.LessOrEqual(t, one.indices.n, 4, "old sessions are let go")
			assert.Empty(t, one.retired)
		})
	}
}

func TestWhoAnsweredDoesNotRenew(t *testing.T) {
	r := newRig(t)
	r.talk()
	s := r.b.peerOf(r.a).current.Load()
	require.False(t, s.initiator)
	r.now += int64(150 * time.Second)
	r.b.send(packet(2, 1, 0, 100))
	r.b.take()
	r.b.peerOf(r.a).unanswered.Store(0) // silence is another reason
	r.b.mu.Lock()
	r.b.checkTimersLocked(r.b.peerOf(r.a), r.now)
	r.b.mu.Unlock()
	assert.Same(t, s, r.b.peerOf(r.a).current.Load())
	assert.Nil(t, r.b.peerOf(r.a).pending)
}

func TestSessionEnds(t *testing.T) {
	r := newRig(t)
	r.talk()
	pa := r.a.peerOf(r.b)
	s := pa.current.Load()
	r.now += int64(rejectAfterTime)
	require.False(t, s.usable(r.now))
	r.b.send(packet(2, 1, 0, 100)) // sealed with nothing that is too old: it waits for a new session
	r.settle()
	assert.Len(t, r.a.got(), 1)
	assert.NotSame(t, s, pa.current.Load())

	old := pa.current.Load()
	r.pass(zeroAfter + time.Second)
	assert.Nil(t, pa.current.Load(), "keys are wiped")
	assert.Zero(t, r.a.indices.n)
	assert.True(t, old.retired.Load())
	zero, _ := chacha20poly1305.New(make([]byte, 32))
	assert.Equal(t, zero, old.send)
	r.talk()
}

func TestKeepalives(t *testing.T) {
	r := newRig(t)
	r.talk()
	r.pass(keepaliveTimeout + time.Second) // what the talk owed
	pa, pb := r.a.peerOf(r.b), r.b.peerOf(r.a)

	tx := pb.txBytes.Load()
	r.a.send(packet(1, 2, 0, 100))
	r.pass(keepaliveTimeout - time.Second)
	assert.Equal(t, tx, pb.txBytes.Load(), "not too early")
	r.pass(2 * time.Second)
	assert.Equal(t, tx+keepaliveSize, pb.txBytes.Load(), "passive keepalive")
	assert.Zero(t, pa.unanswered.Load())
	r.pass(time.Minute)
	assert.Equal(t, tx+keepaliveSize, pb.txBytes.Load(), "a keepalive is not answered")

	r.a.meet(r.b, r.b.at, "persistent_keepalive_interval=25\n")
	rx := pb.rxBytes.Load()
	r.pass(101 * time.Second)
	assert.GreaterOrEqual(t, pb.rxBytes.Load()-rx, uint64(4*keepaliveSize))
}

func TestPersistentKeepaliveBegins(t *testing.T) {
	r := newRig(t)
	r.a.meet(r.b, r.b.at, "persistent_keepalive_interval=25\n")
	r.settle()
	assert.NotNil(t, r.a.peerOf(r.b).current.Load(), "a session before there is anything to say")
	assert.NotNil(t, r.b.peerOf(r.a).current.Load())
}

func TestSilenceBeginsAHandshake(t *testing.T) {
	r := newRig(t)
	r.talk()
	r.pass(30 * time.Second)
	r.b.drop = func() { r.b.wire() } // the far end hears nothing
	pa := r.a.peerOf(r.b)
	r.a.send(packet(1, 2, 0, 100))
	r.pass(keepaliveTimeout + rekeyTimeout - time.Second)
	assert.Nil(t, pa.pending)
	r.pass(2 * time.Second)
	assert.NotNil(t, pa.pending)
}

func TestHandshakeIsRetriedAndGivenUp(t *testing.T) {
	r := newRig(t)
	var at []int64
	r.b.drop = func() {
		for _, m := range r.b.wire() {
			if binary.LittleEndian.Uint32(m) == typeInitiation {
				at = append(at, r.now)
			}
		}
	}
	r.a.send(packet(1, 2, 0, 100))
	r.pass(3 * time.Minute)
	assert.InDelta(t, maxAttempts, len(at), 1)
	for i := 1; i < len(at); i++ {
		d := time.Duration(at[i] - at[i-1])
		assert.GreaterOrEqual(t, d, rekeyTimeout)
		assert.LessOrEqual(t, d, rekeyTimeout+maxJitter+2*tick)
	}
	assert.Equal(t, uint64(1), r.a.drops.all()["no_session"], "nobody wants to hear it any more")
	r.b.drop = nil
	r.talk()
}

func TestHandshakesThatCross(t *testing.T) {
	r := newRig(t)
	r.a.send(packet(1, 2, 0, 100))
	r.b.send(packet(2, 1, 0, 100))
	r.a.out.batch(r.now)
	r.b.out.batch(r.now)
	r.a.handlePending() // both initiate before either hears of it
	r.b.handlePending()
	r.settle()
	assert.Len(t, r.a.got(), 1)
	assert.Len(t, r.b.got(), 1)
	r.talk()

	// And so does what comes after: with equal delays both ends' first packets cross as well.
	for range 400 {
		r.a.send(packet(1, 2, 0, 100))
		r.b.send(packet(2, 1, 0, 100))
		r.a.out.batch(r.now)
		r.b.out.batch(r.now)
		r.pass(time.Second)
		require.True(t, r.a.peerOf(r.b).current.Load().usable(r.now))
		require.True(t, r.b.peerOf(r.a).current.Load().usable(r.now))
	}
	assert.Len(t, r.a.got(), 400)
	assert.Len(t, r.b.got(), 400)
}

func TestPeerRoams(t *testing.T) {
	r := newRig(t)
	r.talk()
	pb := r.b.peerOf(r.a)
	r.a.send(packet(1, 2, 0, 100))
	r.a.out.batch(r.now)
	m := r.b.wire()
	require.Len(t, m, 1)
	there := netip.MustParseAddrPort("127.0.0.1:9")

	forged := append([]byte(nil), m[0]...)
	forged[30] ^= 1
	r.b.inject(forged, there)
	assert.Equal(t, r.a.at, pb.endpoint.Load().raw.AddrPort(), "a forged packet moves nobody")
	r.b.inject(m[0], there)
	assert.Equal(t, there, pb.endpoint.Load().raw.AddrPort())
	r.b.inject(m[0], r.a.at)
	assert.Equal(t, there, pb.endpoint.Load().raw.AddrPort(), "nor does a replayed one")
	assert.Len(t, r.b.got(), 1)
	d := r.b.drops.all()
	assert.Equal(t, uint64(1), d["forged"])
	assert.Equal(t, uint64(1), d["replayed"])
}

func TestReplayWindow(t *testing.T) {
	const window = 8128 // of golang.zx2c4.com/wireguard/replay
	r := newRig(t)
	r.talk()
	s := r.a.peerOf(r.b).current.Load()
	message := func(counter uint64) []byte {
		b := make([]byte, headerSize+112+tagSize)
		copy(b[headerSize:], packet(1, 2, 0, 100))
		s.nonce.Store(counter)
		var nonce [12]byte
		r.a.sealMessage(s, &nonce, b, 112)
		return b
	}
	for _, c := range []struct {
		counter uint64
		taken   bool
	}{
		{20000, true}, {20000, false}, {19999, true}, {20000 - window, true}, {20000 - window,
			false}, {20000 - window - 1, false},
		{20001, true}, {19998, true}, {19999, false}, {30000, true}, {20002, false},
	} {
		r.b.inject(message(c.counter), r.a.at)
		assert.Equal(t, c.taken, len(r.b.got()) == 1, "counter %d", c.counter)
	}
	r.b.inject(message(rejectAfterMessages), r.a.at)
	assert.Empty(t, r.b.got())
	assert.NotZero(t, r.b.drops.all()["no_such_session"])
	assert.False(t, s.usable(r.now), "nor is it sent with")
}

func TestReplayedInitiationIsRefused(t *testing.T) {
	r := newRig(t)
	r.a.send(packet(1, 2, 0, 100))
	r.a.take()
	m := r.b.wire()
	require.Len(t, m, 1)
	r.b.inject(m[0], r.a.at)
	r.settle()
	require.Len(t, r.b.got(), 1)
	s := r.b.peerOf(r.a).current.Load()
	r.now += int64(time.Minute)
	r.b.inject(m[0], netip.MustParseAddrPort("127.0.0.1:9"))
	assert.Equal(t, uint64(1), r.b.drops.all()["bad_handshake"])
	assert.Same(t, s, r.b.peerOf(r.a).current.Load())
	assert.Equal(t, r.a.at, r.b.peerOf(r.a).endpoint.Load().raw.AddrPort())
}

func TestForgedResponseLeavesTheHandshake(t *testing.T) {
	r := newRig(t)
	r.a.send(packet(1, 2, 0, 100))
	r.a.take()
	r.b.take()
	m := r.a.wire()
	require.Len(t, m, 1)
	require.Equal(t, uint32(typeResponse), binary.LittleEndian.Uint32(m[0]))
	for _, at := range []int{12, 50} { // ephemeral key, tag
		forged := append([]byte(nil), m[0]...)
		forged[at] ^= 1
		r.b.peerOf(r.a).cookies.AddMacs(forged)
		r.a.inject(forged, r.b.at)
	}
	low := append([]byte(nil), m[0]...)
	clear(low[12:44]) // an ephemeral key of low order
	r.b.peerOf(r.a).cookies.AddMacs(low)
	r.a.inject(low, r.b.at)
	assert.Equal(t, uint64(3), r.a.drops.all()["bad_handshake"])
	r.a.inject(m[0], r.b.at)
	r.settle()
	assert.Len(t, r.b.got(), 1)
}

func TestUnderLoadACookieIsAskedFor(t *testing.T) {
	r := newRig(t)
	r.b.loadUntil = r.now + int64(time.Hour)
	r.a.send(packet(1, 2, 0, 100))
	r.a.take()
	before := r.b.indices.n
	r.b.take()
	assert.Equal(t, uint64(1), r.b.drops.all()["cookie_sent"])
	assert.Equal(t, before, r.b.indices.n, "no state for an address that is not proved")
	r.settle()
	assert.Empty(t, r.b.got())
	r.pass(rekeyTimeout + maxJitter + tick) // a comes back with the cookie
	assert.NotNil(t, r.b.peerOf(r.a).current.Load())
	r.a.send(packet(1, 2, 0, 100))
	r.settle()
	assert.Len(t, r.b.got(), 1)
}

func TestInnerSourceHasToBeThePeers(t *testing.T) {
	r := newRig(t)
	r.talk()
	r.a.send(packet(7, 2, 0, 100))
	r.settle()
	assert.Empty(t, r.b.got())
	assert.Equal(t, uint64(1), r.b.drops.all()["inner_source"])
}

func TestOuterMarksAndPadding(t *testing.T) {
	r := newRig(t)
	r.talk()
	require.NoError(t, r.a.SetOuter(tunnel.Outer{TOS: 46 << 2, Marks: []tunnel.OuterMark{{Inner: 24, Outer: 24}},
		PadTo: 256}))
	for _, c := range []struct {
		dscp, ecn, outer uint8
		size, wire       int
	}{
		{46, 0, 46, 200, 256}, {24, 0, 24, 60, 256}, {0, 0, 46, 256, 256}, {46, 1, 46, 257, 272}, {24, 2, 24, 1000,
			1008}, {46, 3, 46, 1420, 1420},
	} {
		want := packet(1, 2, c.dscp<<2|c.ecn, c.size)
		r.a.send(want)
		r.a.out.batch(r.now)
		p := r.a.out.packets[0] // as it was sent
		assert.Equal(t, c.outer<<2|c.ecn, p.tos, "%+v", c)
		assert.Equal(t, headerSize+c.wire+tagSize, len(p.wire), "%+v", c)
		r.settle()
		assert.Equal(t, [][]byte{want}, r.b.got(), "%+v", c)
	}
	require.Error(t, r.a.SetOuter(tunnel.Outer{PadTo: -1}))
	require.Error(t, r.a.SetOuter(tunnel.Outer{Marks: []tunnel.OuterMark{{Inner: 64}}}))
}

// RFC 6040, section 4.2, figure 4; the inner header checksum stays right.
func TestCongestionMarks(t *testing.T) {
	for _, c := range []struct {
		inner, outer, want uint8
		dropped            bool
	}{
		{0, 0, 0, false}, {0, 1, 0, false}, {0, 2, 0, false}, {0, 3, 0, true},
		{1, 0, 1, false}, {1, 2, 1, false}, {1, 3, 3, false},
		{2, 0, 2, false}, {2, 2, 2, false}, {2, 3, 3, false},
		{3, 0, 3, false}, {3, 3, 3, false},
	} {
		for _, v6 := range []bool{false, true} {
			p := packet(1, 2, 0xb8|c.inner, 60)
			want := packet(1, 2, 0xb8|c.want, 60)
			if v6 {
				p, want = make([]byte, 60), make([]byte, 60)
				p[0], p[1] = 0x60|(0xb8|c.inner)>>4, (0xb8|c.inner)<<4
				want[0], want[1] = 0x60|(0xb8|c.want)>>4, (0xb8|c.want)<<4
			}
			assert.Equal(t, !c.dropped, applyECN(p, c.outer|0x88), "%+v", c)
			assert.Equal(t, want, p, "%+v v6 %v", c, v6)
		}
	}
}

func TestKeyChangeEndsSessions(t *testing.T) {
	r := newRig(t)
	r.talk()
	k, err := tunnel.NewPrivateKey()
	require.NoError(t, err)
	r.a.key = k
	require.NoError(t, r.a.Set(strings.NewReader("private_key="+k.Hex()+"\n")))
	assert.Nil(t, r.a.peerOf(r.b).current.Load())
	require.NoError(t, r.b.Set(strings.NewReader("replace_peers=true\n")))
	r.b.meet(r.a, r.a.at)
	r.talk()
}

func TestPeersComeAndGo(t *testing.T) {
	r := newRig(t)
	r.talk()
	require.NoError(t, r.a.Set(strings.NewReader(fmt.Sprintf("public_key=%s\nremove=true\n", r.b.key.Public().Hex()))))
	assert.Zero(t, r.a.indices.n)
	r.a.send(packet(1, 2, 0, 100))
	r.settle()
	assert.Equal(t, uint64(1), r.a.drops.all()["no_site"])
	update := "public_key=" + r.b.key.Public().Hex() + "\nupdate_only=true\nallowed_ip=10.9.0.0/16\n"
	require.NoError(t, r.a.Set(strings.NewReader(update)))
	assert.Empty(t, r.a.Status().Peers)
	require.NoError(t, r.a.Set(strings.NewReader(fmt.Sprintf("public_key=%s\n", r.a.key.Public().Hex()))))
	assert.Empty(t, r.a.Status().Peers, "nobody is his own peer")
	r.a.meet(r.b, r.b.at)
	r.now += int64(time.Minute)
	r.talk()

	// A network belongs to the peer that it was given to last.
	other, err := tunnel.NewPrivateKey()
	require.NoError(t, err)
	require.NoError(t, r.a.Set(strings.NewReader(fmt.Sprintf("public_key=%s\nallowed_ip=10.0.2.0/24\n",
		other.Public().Hex()))))
	for _, p := range r.a.Status().Peers {
		if p.PublicKey == other.Public() {
			assert.Equal(t, []netip.Prefix{netip.MustParsePrefix("10.0.2.0/24")}, p.AllowedIPs)
		} else {
			assert.Equal(t, []netip.Prefix{netip.MustParsePrefix("fd00:2::/32")}, p.AllowedIPs)
		}
	}
}

func TestIndicesGrow(t *testing.T) {
	x := newIndices()
	var all []*entry
	for range 5000 {
		e := &entry{}
		require.NoError(t, x.add(e))
		all = append(all, e)
	}
	for _, e := range all {
		require.Same(t, e, x.find(e.index))
	}
	for _, e := range all[:2500] {
		x.remove(e.index)
		require.Nil(t, x.find(e.index))
	}
	require.Equal(t, 2500, x.n)
}
