package realtime

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tai64n"

	"ringway/tunnel"
	"ringway/tunnel/datagram"
)

// The rig is two engines without threads, on loopback sockets, whose time and every step are the test's. A
// datagram socket stands for the tunnel device.

type rig struct {
	t    testing.TB
	now  int64
	a, b *bare
}

// bare is one engine of the rig.
type bare struct {
	*Engine
	t    testing.TB
	key  tunnel.PrivateKey
	at   netip.AddrPort
	host int    // the kernel's side of the tunnel device
	net  uint8  // 10.0.net.0/24 is behind it
	drop func() // what the wire does with what arrives, before it is looked at; nil: nothing
}

func newRig(t testing.TB) *rig {
	r := &rig{t: t, now: int64(time.Hour)}
	r.a, r.b = r.engine(1), r.engine(2)
	r.a.meet(r.b, r.b.at)
	r.b.meet(r.a, r.a.at)
	return r
}

func (r *rig) engine(n uint8) *bare {
	t := r.t
	key, err := tunnel.NewPrivateKey()
	require.NoError(t, err)
	e := newEngine(Options{Class: tunnel.Voice, Log: slog.New(slog.DiscardHandler)})
	e.clock = func() int64 { return r.now }
	e.stamp = func() (s tai64n.Timestamp) { // each later than the last
		r.now++
		binary.BigEndian.PutUint64(s[:], uint64(r.now))
		return s
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, unix.SetsockoptInt(pair[0], unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20))
	require.NoError(t, unix.SetsockoptInt(pair[1], unix.SOL_SOCKET, unix.SO_SNDBUF, 1<<20))
	e.tun = pair[0]
	e.udp[0], err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	require.NoError(t, unix.Bind(e.udp[0], &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}))
	require.NoError(t, unix.SetsockoptInt(e.udp[0], unix.IPPROTO_IP, unix.IP_RECVTOS, 1))
	require.NoError(t, unix.SetsockoptInt(e.udp[0], unix.SOL_SOCKET, unix.SO_RCVBUF, 4<<20))
	sa, err := unix.Getsockname(e.udp[0])
	require.NoError(t, err)
	require.NoError(t, e.SetOuter(tunnel.Outer{}))
	require.NoError(t, e.SetMTU(1420))
	require.NoError(t, e.equip())
	b := &bare{Engine: e, t: t, key: key, host: pair[1], net: n,
		at: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(sa.(*unix.SockaddrInet4).Port))}
	t.Cleanup(func() {
		e.mu.Lock()
		e.wipeAll()
		e.mu.Unlock()
		e.limiter.Close()
		e.release()
		unix.Close(b.host)
	})
	return b
}

// meet makes far a peer; an invalid endpoint: it dials in.
func (b *bare) meet(far *bare, at netip.AddrPort, lines ...string) {
	b.t.Helper()
	s := fmt.Sprintf("private_key=%s\npublic_key=%s\nallowed_ip=10.0.%d.0/24\nallowed_ip=fd00:%d::/32\n",
		b.key.Hex(), far.key.Public().Hex(), far.net, far.net)
	if at.IsValid() {
		s += "endpoint=" + at.String() + "\n"
	}
	require.NoError(b.t, b.Set(strings.NewReader(s+strings.Join(lines, ""))))
}

func (b *bare) peerOf(far *bare) *peer { return b.peers[far.key.Public()] }

// take lets the engine do everything that there is to do now, and reports whether that was anything.
func (b *bare) take() (did bool) {
	if b.drop != nil {
		b.drop()
	}
	for b.in.receive(b.udp[0], b.now()) {
		did = true
	}
	did = did || b.unreadMessages() > 0
	b.out.batch(b.now())
	b.hearReports()
	b.hearPaths()
	b.handlePending()
	b.mu.Lock()
	b.wipeRetiredLocked()
	b.mu.Unlock()
	b.out.sendStaged(b.now())
	return did
}

// settle has both engines take turns until nothing moves: four messages are the longest exchange there is.
func (r *rig) settle() {
	for range 8 {
		r.a.take()
		r.b.take()
	}
}

// pass lets time go by, in steps of the timers' tick.
func (r *rig) pass(d time.Duration) {
	for end := r.now + int64(d); r.now < end; {
		r.now += int64(tick)
		for _, x := range []*bare{r.a, r.b} {
			x.mu.Lock()
			for _, p := range x.peers {
				x.checkTimersLocked(p, r.now)
				x.followPathsLocked(p, r.now)
			}
			x.wipeRetiredLocked()
			x.mu.Unlock()
		}
		r.settle()
	}
}

// packet is an IPv4 UDP packet from behind one engine to behind another.
func packet(from, to uint8, tos uint8, size int) []byte {
	p := make([]byte, size)
	p[0], p[1], p[8], p[9] = 0x45, tos, 64, 17
	binary.BigEndian.PutUint16(p[2:], uint16(size))
	copy(p[12:], []byte{10, 0, from, 10})
	copy(p[16:], []byte{10, 0, to, 10})
	var sum uint32
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(p[i:]))
	}
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	binary.BigEndian.PutUint16(p[10:], ^uint16(sum))
	for i := 28; i < size; i++ {
		p[i] = byte(i)
	}
	return p
}

// send puts a packet into the tunnel device.
func (b *bare) send(p []byte) {
	b.t.Helper()
	_, err := unix.Write(b.host, append(make([]byte, vnetHeader), p...))
	require.NoError(b.t, err)
}

// got is what came out of the tunnel device.
func (b *bare) got() (packets [][]byte) {
	buf := make([]byte, 1<<16)
	for {
		n, err := unix.Read(b.host, buf)
		if err != nil {
			return packets
		}
		require.GreaterOrEqual(b.t, n, vnetHeader)
		packets = append(packets, append([]byte(nil), buf[vnetHeader:n]...))
	}
}

// wire takes what has arrived at the engine's socket, before the engine sees it.
func (b *bare) wire() (messages [][]byte) {
	buf := make([]byte, 1<<16)
	for {
		n, _, err := unix.Recvfrom(b.udp[0], buf, unix.MSG_DONTWAIT)
		if err != nil {
			return messages
		}
		messages = append(messages, append([]byte(nil), buf[:n]...))
	}
}

// inject gives the engine a message as if it had come from far.
func (b *bare) inject(m []byte, from netip.AddrPort) {
	s := datagram.RawSockaddr(from)
	b.in.datagram(append(make([]byte, 0, len(m)+64), m...), &s, &datagram.Arrival{}, b.now())
	b.handlePending()
}

// talk exchanges one packet each way.
func (r *rig) talk() {
	r.t.Helper()
	r.a.send(packet(1, 2, 0, 100))
	r.settle()
	require.Len(r.t, r.b.got(), 1)
	r.b.send(packet(2, 1, 0, 100))
	r.settle()
	require.Len(r.t, r.a.got(), 1)
}
