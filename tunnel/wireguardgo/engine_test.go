package wireguardgo

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"ringway/test/netnstest"
	"ringway/tunnel"
	"ringway/tunnel/descriptor"
)

// The topology of these tests: two boxes on one wire, and what is behind the tunnel.
//
//	box a (ours)                                  box b (ours, or stock wireguard-go)
//	  rw0 10.66.0.1, fd66::1 -- wire0 192.0.2.1 === wire0 192.0.2.2 -- rw0 10.66.0.2, fd66::2
//	                              2001:db8::1         2001:db8::2

var wide = tunnel.Bounds{TxQueueLen: 500, InFlight: 256, SendBuffer: 1 << 20, ReceiveBuffer: 1 << 20, SuperPacket: 65000}

// box is one end.
type box struct {
	t     testing.TB
	ns    *netnstest.NS
	n     int // 1 or 2
	key   tunnel.PrivateKey
	files Files
	e     *Engine
}

func wire(t testing.TB) (a, b *box) {
	t.Helper()
	nsA, nsB := netnstest.New(t), netnstest.New(t)
	netnstest.Veth(t, nsA, "wire0", nsB, "wire0")
	for i, ns := range []*netnstest.NS{nsA, nsB} {
		ns.Run("ip", "address", "add", fmt.Sprintf("192.0.2.%d/24", i+1), "dev", "wire0")
		ns.Run("ip", "address", "add", fmt.Sprintf("2001:db8::%d/64", i+1), "dev", "wire0", "nodad")
		k, err := tunnel.NewPrivateKey()
		require.NoError(t, err)
		x := &box{t: t, ns: ns, n: i + 1, key: k}
		if i == 0 {
			a = x
		} else {
			b = x
		}
	}
	return a, b
}

// open makes the descriptors as the daemon does.
func (b *box) open(mark uint32, tos uint8, bounds tunnel.Bounds) {
	b.t.Helper()
	require.NoError(b.t, b.ns.Do(func() (err error) {
		if b.files.TUN, err = descriptor.OpenTUN("rw0", 1420, bounds.TxQueueLen); err != nil {
			return err
		}
		b.files.UDP4, b.files.UDP6, err = descriptor.OpenUDP(51820, mark, tos, bounds)
		return err
	}))
	b.t.Cleanup(func() {
		for _, f := range []*os.File{b.files.TUN, b.files.UDP4, b.files.UDP6} {
			if f != nil {
				f.Close()
			}
		}
	})
	b.address()
}

func (b *box) address() {
	b.ns.Run("ip", "address", "add", fmt.Sprintf("10.66.0.%d/24", b.n), "dev", "rw0")
	b.ns.Run("ip", "address", "add", fmt.Sprintf("fd66::%d/64", b.n), "dev", "rw0", "nodad")
	b.ns.Run("ip", "link", "set", "rw0", "up", "mtu", "1420")
}

// start runs an engine on the box's descriptors.
func (b *box) start(bounds tunnel.Bounds) *Engine {
	b.t.Helper()
	level := slog.LevelWarn
	if testing.Verbose() && os.Getenv("RINGWAY_DEBUG") != "" {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(b.t.Output(), &slog.HandlerOptions{Level: level}))
	e, err := New(b.files, tunnel.Data, bounds, 1420, log)
	require.NoError(b.t, err)
	b.e = e
	b.t.Cleanup(func() { e.Close() })
	return e
}

func (b *box) inner(rest string) string {
	return fmt.Sprintf("allowed_ip=10.66.0.%d/32\nallowed_ip=fd66::%d/128\n%s", b.n, b.n, rest)
}

// peer is a set operation that makes far a peer of b.
func (b *box) peer(far *box, endpoint string) string {
	s := fmt.Sprintf("private_key=%s\npublic_key=%s\nreplace_allowed_ips=true\n%s", b.key.Hex(), far.key.Public().Hex(), far.inner(""))
	if endpoint != "" {
		s += "endpoint=" + endpoint + "\n"
	}
	return s
}

func (b *box) set(s string) {
	b.t.Helper()
	require.NoError(b.t, b.e.Set(strings.NewReader(s)))
}

func pair(t testing.TB, bounds tunnel.Bounds) (a, b *box) {
	t.Helper()
	a, b = wire(t)
	for _, x := range []*box{a, b} {
		x.open(0, 0, bounds)
		x.start(bounds)
	}
	a.set(a.peer(b, "192.0.2.2:51820"))
	b.set(b.peer(a, "192.0.2.1:51820"))
	return a, b
}

func (b *box) ping(to string, extra ...string) error {
	_, err := b.ns.Try("ping", append([]string{"-n", "-c", "3", "-i", "0.2", "-W", "2", to}, extra...)...)
	return err
}

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		child()
		return
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) { removeStock(); os.Exit(code) }))
}

func TestPairTalks(t *testing.T) {
	a, b := pair(t, wide)
	require.NoError(t, a.ping("10.66.0.2"))
	require.NoError(t, b.ping("fd66::1"))
	require.NoError(t, a.ping("10.66.0.2", "-s", "1392", "-M", "do"))

	s := a.e.Status()
	require.Len(t, s.Peers, 1)
	p := s.Peers[0]
	assert.Equal(t, b.key.Public(), p.PublicKey)
	assert.Equal(t, netip.MustParseAddrPort("192.0.2.2:51820"), p.Endpoint)
	assert.Equal(t, a.key.Public().String(), s.PublicKey)
	assert.WithinDuration(t, time.Now(), p.LastHandshake, 10*time.Second)
	assert.EqualValues(t, 9, p.TxPackets)
	assert.EqualValues(t, 9, p.RxPackets)
	assert.Equal(t, uint16(51820), s.ListenPort)
	assert.Equal(t, "rw0", s.Interface)
	assert.Zero(t, a.e.hub.out.inside.Load())
}
