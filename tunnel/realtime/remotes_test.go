package realtime

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/tunnel"
	"ringway/tunnel/datagram"
	"ringway/tunnel/path"
)

var (
	hubFirst  = netip.MustParseAddr("127.0.0.1")
	hubSecond = netip.MustParseAddr("127.0.0.2")
)

// newHubRig is a rig in which b is heard at two addresses, which are two lines, and a knows both. dead are b's
// addresses that deliver nothing.
func newHubRig(t *testing.T) (r *rig, dead map[netip.Addr]bool) {
	r = &rig{t: t, now: int64(time.Hour)}
	r.a, r.b = r.engine(1), r.engine(2)
	r.b.hearEverywhere()
	port := r.b.at.Port()

	dead = map[netip.Addr]bool{}
	for _, x := range []*bare{r.a, r.b} {
		require.NoError(t, unix.SetsockoptInt(x.udp[0], unix.IPPROTO_IP, unix.IP_PKTINFO, 1))
		x.drop = func() {
			x.through(func(from, to netip.Addr) bool {
				if x == r.b {
					return !dead[to]
				}
				return !dead[from]
			})
		}
	}
	r.a.meet(r.b, r.b.at)
	r.b.meet(r.a, netip.AddrPort{})
	require.NoError(t, r.a.SetSources([]netip.Addr{hubFirst}))
	require.NoError(t, r.b.SetSources([]netip.Addr{hubFirst, hubSecond}))
	require.NoError(t, r.a.SetPaths(tunnel.Paths{Peers: []tunnel.PeerPaths{{
		Key: r.b.key.Public(), Remotes: []netip.AddrPort{r.b.at, netip.AddrPortFrom(hubSecond, port)},
	}}}))
	return r, dead
}

// hearEverywhere gives the engine a socket with all addresses of ours in the place of the one with one.
func (b *bare) hearEverywhere() {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	require.NoError(b.t, err)
	require.NoError(b.t, unix.Bind(fd, &unix.SockaddrInet4{}))
	sa, err := unix.Getsockname(fd)
	require.NoError(b.t, err)
	require.NoError(b.t, unix.Dup3(fd, b.udp[0], unix.O_CLOEXEC))
	require.NoError(b.t, unix.Close(fd))
	b.at = netip.AddrPortFrom(hubFirst, uint16(sa.(*unix.SockaddrInet4).Port))
}

// through gives the engine what has arrived at its socket and passes.
func (b *bare) through(passes func(from, to netip.Addr) bool) {
	buf, oob := make([]byte, 1<<16), make([]byte, 128)
	for {
		n, on, _, from, err := unix.Recvmsg(b.udp[0], buf, oob, unix.MSG_DONTWAIT)
		if err != nil {
			return
		}
		messages, err := unix.ParseSocketControlMessage(oob[:on])
		require.NoError(b.t, err)
		var a datagram.Arrival
		for _, m := range messages {
			if m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_PKTINFO {
				a.Source = netip.AddrFrom4([4]byte(m.Data[8:12])) // ipi_addr: where it was sent to
			}
		}
		sa := from.(*unix.SockaddrInet4)
		at := netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
		if !passes(at.Addr(), a.Source) {
			continue
		}
		s := datagram.RawSockaddr(at)
		b.in.datagram(append(make([]byte, 0, n+64), buf[:n]...), &s, &a, b.now())
	}
}

// call has media flow both ways for a time, and reports the longest silence at either end.
func (r *rig) call(d time.Duration) (silence time.Duration) {
	heard := map[*bare]int64{r.a: r.now, r.b: r.now}
	for step := range int(d / path.LookEvery) {
		r.now += int64(path.LookEvery)
		if step%2 == 0 {
			r.a.send(packet(1, 2, 0, 100))
			r.b.send(packet(2, 1, 0, 100))
		}
		for _, x := range []*bare{r.a, r.b} {
			if step%10 == 0 {
				x.mu.Lock()
				for _, p := range x.peers {
					x.checkTimersLocked(p, r.now)
					x.followPathsLocked(p, r.now)
				}
				x.setPacesLocked(r.now)
				x.mu.Unlock()
			}
			x.lookAtCalls()
		}
		r.settle()
		for x := range heard {
			if len(x.got()) > 0 {
				silence = max(silence, time.Duration(r.now-heard[x]))
				heard[x] = r.now
			}
		}
	}
	for _, at := range heard {
		silence = max(silence, time.Duration(r.now-at))
	}
	return silence
}

// An address of the far end delivers nothing any more: the call is heard by the other one within 300 ms. It is well
// again: after half a minute it is taken, and the call does not notice.
func TestTheOtherAddressOfAFarEndIsTaken(t *testing.T) {
	r, dead := newHubRig(t)
	at := func() netip.Addr { return r.a.peerOf(r.b).endpoint.Load().raw.Bare() }
	r.call(3 * time.Second)
	require.Equal(t, hubFirst, at())
	dead[hubFirst] = true
	assert.Less(t, r.call(5*time.Second), 300*time.Millisecond)
	assert.Equal(t, hubSecond, at())
	assert.Equal(t, hubSecond, r.b.peerOf(r.a).endpoint.Load().src, "and is answered from there")

	st := r.a.Status().Peers[0]
	require.Len(t, st.Paths, 2)
	assert.True(t, st.Paths[1].Used)
	assert.Equal(t, tunnel.PathUp, st.Paths[1].State)
	assert.Equal(t, tunnel.PathSilent, st.Paths[0].State)
	require.NotEmpty(t, st.Moves)
	assert.Equal(t, hubSecond, st.Moves[0].ToRemote.Addr())

	clear(dead)
	assert.LessOrEqual(t, r.call(40*time.Second), 50*time.Millisecond)
	assert.Equal(t, hubFirst, at())
	assert.Equal(t, hubFirst, r.b.peerOf(r.a).endpoint.Load().src)
}

// The first address is dead from the start: the second initiation goes to the other one.
func TestAFarEndWhoseFirstAddressIsDeadIsCalledAtTheOther(t *testing.T) {
	r, dead := newHubRig(t)
	dead[hubFirst] = true
	r.a.send(packet(1, 2, 0, 100))
	r.pass(rekeyTimeout + time.Second)
	p := r.a.peerOf(r.b)
	assert.Equal(t, hubSecond, p.endpoint.Load().raw.Bare())
	assert.True(t, p.current.Load().usable(r.now))
	clear(dead)
	r.call(45 * time.Second)
	assert.Equal(t, hubFirst, p.endpoint.Load().raw.Bare(), "the preferred one is well")
}

// Two lines and two addresses, and one of the four paths delivers: each has its turn until that one does.
func TestEachPathIsTriedInTurn(t *testing.T) {
	for _, works := range [][2]netip.Addr{
		{hubFirst, hubFirst}, {hubSecond, hubSecond}, {hubFirst, hubSecond}, {hubSecond, hubFirst},
	} {
		r, _ := newHubRig(t)
		r.a.hearEverywhere()
		require.NoError(t, unix.SetsockoptInt(r.a.udp[0], unix.IPPROTO_IP, unix.IP_PKTINFO, 1))
		require.NoError(t, r.a.SetSources([]netip.Addr{hubFirst, hubSecond}))
		var tried [][2]netip.Addr
		r.b.drop = func() {
			r.b.through(func(from, to netip.Addr) bool {
				tried = append(tried, [2]netip.Addr{from, to})
				return works == [2]netip.Addr{from, to}
			})
		}
		r.a.send(packet(1, 2, 0, 100))
		p := r.a.peerOf(r.b)
		// The first is sent by the kernel's choice, and the last of four may be that one's.
		r.pass(5 * (rekeyTimeout + maxJitter + tick))
		require.True(t, p.current.Load().usable(r.now), "%v delivers, and these were tried: %v", works, tried)
		assert.Equal(t, works[1], p.endpoint.Load().raw.Bare())
	}
}

// Nobody answers: every four retries in a row go by four paths, also when a path could not be sent by.
func TestRetriesGoRound(t *testing.T) {
	r, dead := newHubRig(t)
	dead[hubFirst], dead[hubSecond] = true, true
	require.NoError(t, r.a.SetSources([]netip.Addr{hubFirst, hubSecond}))
	p := r.a.peerOf(r.b)
	var tried []path.Path
	for i := range 12 {
		r.a.mu.Lock()
		require.True(t, r.a.tryNextLocked(p))
		r.a.mu.Unlock()
		tried = append(tried, pathOf(p.endpoint.Load()))
		if i%3 == 2 {
			r.a.forgetSource(p) // as when sending fails
		}
	}
	for i := range len(tried) - 3 {
		four := map[path.Path]bool{}
		for _, by := range tried[i : i+4] {
			four[by] = true
		}
		assert.Len(t, four, 4, "%v", tried)
	}
}

// A line without space for the messages of paths sends them less often.
func TestThePaceOfALine(t *testing.T) {
	r, _ := newHubRig(t)
	require.NoError(t, r.b.SetPaths(tunnel.Paths{Lines: []tunnel.PathLine{
		{Source: hubFirst, Rate: 100_000}, {Source: hubSecond, Rate: 100_000, Metered: true},
	}}))
	r.call(5 * time.Second)
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	pace := r.b.paths.paces[hubFirst]
	assert.True(t, pace.Mute || pace.Slow > 1, "%+v", pace)
	assert.Equal(t, []netip.Addr{hubSecond}, r.b.paths.metered)
}

// Settings from a daemon may hold anything.
func TestAddressesThatCannotBeSentToAreIgnored(t *testing.T) {
	r, _ := newHubRig(t)
	key := r.b.key.Public()
	require.NoError(t, r.a.SetPaths(tunnel.Paths{Peers: []tunnel.PeerPaths{{Key: key, Remotes: []netip.AddrPort{
		{}, netip.MustParseAddrPort("0.0.0.0:1"), netip.MustParseAddrPort("127.0.0.1:0"), r.b.at,
	}}}}))
	assert.Empty(t, r.a.paths.remotes)
	assert.Less(t, r.call(time.Second), time.Second)
}

// What arrives while a path is held costs no memory.
func TestAHoldAllocatesNothing(t *testing.T) {
	r, dead := newHubRig(t)
	r.call(3 * time.Second)
	dead[hubFirst] = true
	r.call(200 * time.Millisecond)
	p := r.a.peerOf(r.b)
	require.NotNil(t, p.hold.Load())
	used := path.Path{Source: hubFirst, Remote: netip.AddrPortFrom(hubSecond, 1)}
	other := path.Path{Source: hubFirst, Remote: netip.AddrPortFrom(hubFirst, binary.BigEndian.Uint16([]byte{1, 2}))}
	assert.Zero(t, testing.AllocsPerRun(100, func() { p.hold.Load().Follow(r.now, used, other) }))
}
