package realtime

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"

	"ringway/tunnel"
	"ringway/tunnel/datagram"
)

// Every shape of packet passes without memory: what an engine of voice allocates, its collector has to stop
// calls for.
func TestNoPacketAllocates(t *testing.T) {
	r := newRig(t)
	r.talk()
	stranger := netip.MustParseAddrPort("127.0.0.1:9")
	sealed := func(size int) []byte {
		b := make([]byte, headerSize+size+tagSize)
		copy(b[headerSize:], packet(1, 2, 0xb8, size))
		var nonce [12]byte
		r.a.sealMessage(r.a.peerOf(r.b).current.Load(), &nonce, b, size)
		return b
	}
	garbage := func(n int, typ uint32) []byte {
		b := make([]byte, n)
		binary.LittleEndian.PutUint32(b, typ)
		return b
	}
	withMAC := garbage(initiationSize, typeInitiation)
	var macs device.CookieGenerator
	macs.Init(device.NoisePublicKey(r.b.key.Public()))
	macs.AddMacs(withMAC)

	var buf [1 << 16]byte
	drain := func(fd int) {
		for {
			if _, err := unix.Read(fd, buf[:]); err != nil {
				return
			}
		}
	}
	v6 := make([]byte, 100)
	v6[0], v6[5] = 0x60, 60
	copy(v6[8:], []byte{0xfd, 0, 0, 1})
	copy(v6[24:], []byte{0xfd, 0, 0, 2})
	for name, p := range map[string][]byte{
		"voice": packet(1, 2, 0xb8, 200), "full": packet(1, 2, 0, 1420), "IPv6": v6, "congested": packet(1, 2, 3, 100),
		"no site": packet(1, 9, 0, 100), "no IP": make([]byte, 50), "short": {0x45},
	} {
		p := append(make([]byte, vnetHeader), p...)
		n := testing.AllocsPerRun(200, func() {
			_, _ = unix.Write(r.a.host, p)
			r.a.out.batch(r.now)
			drain(r.b.udp[0])
		})
		assert.Zero(t, n, "out: %s", name)
	}
	// Media that is admitted, that is refused, of flows that come once, of flows that end.
	require.NoError(t, r.a.SetAdmission(tunnel.Admission{Media: 1 << 46, Lines: []tunnel.AdmissionLine{{}},
		Sites: []tunnel.AdmissionSite{{Key: r.b.key.Public(), Rate: 600_000}}}))
	port := uint16(0)
	for name, next := range map[string]func() []byte{
		"admitted": func() []byte { return mediaPacket(7, 200, false) }, "RTCP": func() []byte {
			return mediaPacket(8,
				100, true)
		},
		"more than fit": func() []byte {
			port++
			return mediaPacket(port%20, 200,
				false)
		}, "flood": func() []byte { port++; return mediaPacket(port, 200, false) },
		"IPv6": func() []byte { v6[0], v6[1] = 0x6b, 0x80; return v6 },
	} {
		p := make([]byte, 0, 300)
		n := testing.AllocsPerRun(2000, func() {
			p = append(append(p[:0], make([]byte, vnetHeader)...), next()...)
			_, _ = unix.Write(r.a.host, p)
		})
		make1 := n // what the test itself takes
		n = testing.AllocsPerRun(2000, func() {
			p = append(append(p[:0], make([]byte, vnetHeader)...), next()...)
			_, _ = unix.Write(r.a.host, p)
			r.a.out.batch(r.now)
			drain(r.b.udp[0])
			r.now += int64(5 * time.Millisecond)
		})
		assert.Equal(t, make1, n, "out: %s", name)
	}
	assert.NotZero(t, r.a.drops.all()["over_budget"])
	for name, next := range map[string]func() []byte{
		"voice": func() []byte { return sealed(208) }, "forged": func() []byte { b := sealed(208); b[40] ^= 1; return b },
		"unknown session": func() []byte {
			return garbage(100,
				typeTransport)
		}, "garbage": func() []byte { return garbage(100, 99) },
		"initiation without MAC": func() []byte { return garbage(initiationSize, typeInitiation) },
		"initiation with MAC":    func() []byte { return withMAC }, "truncated": func() []byte { return garbage(4, 0)[:3] },
	} {
		messages := make([][]byte, 402)
		for i := range messages {
			messages[i] = slices.Clone(next())
		}
		if name == "voice" { // of a replayed message as well
			messages = append(messages, sealed(208))
			messages = append(messages, slices.Clone(messages[0]))
		}
		name4, arrived := datagram.RawSockaddr(stranger), datagram.Arrival{}
		if name == "voice" || name == "forged" {
			name4 = datagram.RawSockaddr(r.a.at)
		}
		i := 0
		n := testing.AllocsPerRun(200, func() {
			r.b.in.datagram(messages[i], &name4, &arrived, r.now)
			r.b.in.datagram(messages[i+1], &name4, &arrived, r.now)
			i += 2
			drain(r.b.host)
			for _, waits := range []*messageRing{&r.b.fromPeers, &r.b.fromOthers} {
				waits.head.Store(waits.tail.Load())
			}
		})
		assert.Zero(t, n, "in: %s", name)
	}
}

// A stranger makes no state: neither sessions nor indices nor endpoints nor memory.
func TestStrangersLeaveNoTrace(t *testing.T) {
	r := newRig(t)
	r.talk()
	var macs device.CookieGenerator
	macs.Init(device.NoisePublicKey(r.b.key.Public()))
	before := r.b.indices.n
	m := make([]byte, initiationSize)
	for i := range 5000 {
		for j := range m {
			m[j] = byte(rand.Uint32())
		}
		binary.LittleEndian.PutUint32(m, typeInitiation)
		macs.AddMacs(m)
		s := datagram.RawSockaddr(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 1, byte(i >> 8), byte(i)}), 9))
		r.b.in.datagram(m, &s, &datagram.Arrival{}, r.now)
		r.now += int64(20 * time.Microsecond) // 50,000 a second
		r.b.handlePending()
	}
	d := r.b.drops.all()
	assert.Equal(t, before, r.b.indices.n)
	assert.Len(t, r.b.peers, 1)
	assert.Equal(t, r.a.at, r.b.peerOf(r.a).endpoint.Load().raw.AddrPort())
	assert.Equal(t, uint64(5000), d["handshake_rate"]+d["cookie_sent"]+d["bad_handshake"], "%v", d)
	assert.LessOrEqual(t, d["bad_handshake"], uint64(loadRate+25), "few are computed")
	assert.Greater(t, d["handshake_rate"], uint64(2500))
	r.talk()
}

// While strangers flood, a peer whose session ends gets a new one: its address has a share of its own, and a
// cookie its proof.
func TestPeerGetsThroughAFlood(t *testing.T) {
	r := newRig(t)
	r.talk()
	s := r.b.peerOf(r.a).current.Load()
	r.pass(rejectAfterTime + time.Second)
	var macs device.CookieGenerator
	macs.Init(device.NoisePublicKey(r.b.key.Public()))
	m := make([]byte, initiationSize)
	binary.LittleEndian.PutUint32(m, typeInitiation)
	flood := func() {
		for i := range 1000 {
			m[9] = byte(i)
			macs.AddMacs(m)
			from := datagram.RawSockaddr(netip.AddrPortFrom(netip.AddrFrom4([4]byte{byte(11 + i%100),
				byte(rand.Uint32()), byte(rand.Uint32()), byte(i)}), 9))
			r.b.in.datagram(m, &from, &datagram.Arrival{}, r.now)
		}
	}
	r.a.send(packet(1, 2, 0, 100))
	for i := 0; i < 200 && r.b.peerOf(r.a).current.Load() == s; i++ {
		r.now += int64(100 * time.Millisecond)
		flood()
		r.a.mu.Lock()
		r.a.checkTimersLocked(r.a.peerOf(r.b), r.now)
		r.a.mu.Unlock()
		r.settle()
		if i%10 == 0 {
			r.a.send(packet(1, 2, 0, 100))
		}
	}
	assert.NotSame(t, s, r.b.peerOf(r.a).current.Load())
	assert.NotNil(t, r.b.peerOf(r.a).current.Load())
}

// Neither junk with the peer's address forged nor junk from everywhere uses up the peer's way in.
func TestJunkDoesNotShutAPeerOut(t *testing.T) {
	r := newRig(t)
	r.talk()
	r.pass(rejectAfterTime + time.Second)
	s := r.b.peerOf(r.a).current.Load()
	junk := make([]byte, cookieSize)
	junk[0] = typeCookie
	answer := make([]byte, responseSize)
	answer[0] = typeResponse
	for range 5000 {
		from := datagram.RawSockaddr(r.a.at)
		r.b.in.datagram(junk, &from, &datagram.Arrival{}, r.now)
		r.b.in.datagram(answer, &from, &datagram.Arrival{}, r.now)
	}
	assert.Zero(t, r.b.drops.all()["handshake_rate"])
	r.a.send(packet(1, 2, 0, 100))
	r.settle()
	assert.NotSame(t, s, r.b.peerOf(r.a).current.Load())
	assert.Len(t, r.b.got(), 1)
}

func TestWrongSizesAreGarbage(t *testing.T) {
	r := newRig(t)
	n := uint64(0)
	for _, typ := range []uint32{0, typeInitiation, typeResponse, typeCookie, typeTransport, 5, 1 << 24} {
		for _, size := range []int{0, 1, 3, 4, 8, 31, 63, 65, 91, 93, 147, 149, 1500, 65000} {
			m := make([]byte, max(size, 4))
			binary.LittleEndian.PutUint32(m, typ)
			m = m[:size]
			if typ == typeTransport && size >= keepaliveSize {
				continue
			}
			r.b.inject(m, r.a.at)
			n++
		}
	}
	assert.Equal(t, map[string]uint64{"garbage": n}, r.b.drops.all())
}

func TestAuthenticNonsenseIsDropped(t *testing.T) {
	r := newRig(t)
	r.talk()
	s := r.a.peerOf(r.b).current.Load()
	for _, inner := range [][]byte{
		{0}, {0x45}, make([]byte, 100), append([]byte{0x45, 0, 0xff, 0xff},
			make([]byte, 60)...), append([]byte{0x41, 0, 0, 40}, make([]byte, 60)...),
		append([]byte{0x60, 0, 0, 0, 0xff, 0xff}, make([]byte, 60)...), append([]byte{0x60}, make([]byte, 20)...),
	} {
		b := make([]byte, headerSize+len(inner)+tagSize)
		copy(b[headerSize:], inner)
		var nonce [12]byte
		r.a.sealMessage(s, &nonce, b, len(inner))
		r.b.inject(b, r.a.at)
	}
	assert.Empty(t, r.b.got())
	assert.Equal(t, map[string]uint64{"inner_malformed": 7}, r.b.drops.all())
	r.talk()
}

// FuzzMessage gives an engine with a session any message, of any type, with right MACs if it is long enough
// for them.
func FuzzMessage(f *testing.F) {
	for typ := range byte(6) {
		for _, size := range []int{4, 32, 64, 92, 148, 200} {
			m := make([]byte, size)
			m[0] = typ
			f.Add(m, true)
			f.Add(m, false)
		}
	}
	r := newRig(f)
	r.talk()
	s := r.b.peerOf(r.a).current.Load()
	var macs device.CookieGenerator
	macs.Init(device.NoisePublicKey(r.b.key.Public()))
	from := netip.MustParseAddrPort("127.0.0.1:9")
	f.Fuzz(func(t *testing.T, m []byte, mac bool) {
		r.now += int64(20 * time.Millisecond)
		s.created = r.now
		if mac && len(m) >= 32 {
			macs.AddMacs(m)
		}
		if len(m) >= 8 && m[0] == typeTransport {
			binary.LittleEndian.PutUint32(m[4:], s.local)
		}
		r.b.inject(m, from)
		require.Same(t, s, r.b.peerOf(r.a).current.Load())
		require.Equal(t, r.a.at, r.b.peerOf(r.a).endpoint.Load().raw.AddrPort())
	})
}

// FuzzPacket gives the way out any packet, and the far end what becomes of it.
func FuzzPacket(f *testing.F) {
	f.Add(packet(1, 2, 0, 100), uint8(0))
	f.Add([]byte{0x60}, uint8(3))
	f.Add(append([]byte{0x60, 0, 0, 0, 0, 4}, make([]byte, 38)...), uint8(3))
	r := newRig(f)
	r.talk()
	f.Fuzz(func(t *testing.T, p []byte, outer uint8) {
		if len(p) > maxPacket {
			return
		}
		for _, x := range []*bare{r.a, r.b} {
			x.t = t
			for _, q := range x.peers {
				q.current.Load().created = r.now
			}
		}
		b := make([]byte, outBuffer)
		copy(b[headerSize:], p)
		r.a.out.n = 0
		r.a.out.prepare(b, len(p), r.now)
		if r.a.out.n == 0 {
			return
		}
		from := datagram.RawSockaddr(r.a.at)
		wire := slices.Clone(r.a.out.packets[0].wire)
		r.b.in.datagram(wire, &from, &datagram.Arrival{TOS: outer}, r.now)
		got := r.b.got()
		src, _, size, ok := parse(p)
		owner, _ := r.b.routes.Load().Lookup(src)
		if ok && size == len(p) && owner == r.b.peerOf(r.a) && outer&ecnMask != ecnCE {
			require.Equal(t, [][]byte{p}, got)
		}
	})
}
