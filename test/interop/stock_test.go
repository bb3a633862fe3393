package interop

import (
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/lab"
	"ringway/test/polltest"
	"ringway/tunnel"
)

// Whichever of Ringway's tunnels the stock far end belongs to, everything goes through that one, whoever starts.
func TestStockFarEndInOneTunnel(t *testing.T) {
	t.Parallel()
	for _, class := range []string{"data", "voice"} {
		t.Run(class, func(t *testing.T) {
			t.Parallel()
			l := stock(t, class, nil)
			for _, p := range []struct{ from, to string }{
				{lab.PhoneA, "10.2.10.10"}, {lab.PCA, "10.2.20.10"}, {lab.PhoneB, "10.1.10.10"}, {lab.PCB, "10.1.20.10"},
				{lab.PhoneA, "2001:db8:2:10::10"}, {lab.PCB, "2001:db8:1:20::10"},
			} {
				reaches(t, l.Host(p.from), p.to)
			}
			s, err := l.Edge("a").Status(t.Context())
			require.NoError(t, err)
			for _, c := range tunnel.Classes {
				d, _ := s.Tunnel(c)
				if string(c) != class {
					assert.Empty(t, d.Peers, "the far end has no %s tunnel", c)
					continue
				}
				require.Len(t, d.Peers, 1)
				assert.Greater(t, d.Peers[0].RxBytes, uint64(6*84))
			}
			assert.Equal(t, "25", field(t, l.Host(lab.EdgeA), device(class), "persistent-keepalive"))
		})
	}
}

// The stock side starts: Ringway does not know its endpoint, so it has to dial in.
func TestStockFarEndDialsIn(t *testing.T) {
	t.Parallel()
	l := stock(t, "data", nil)
	began, wan := time.Now(), watchWAN(t, l)
	stockInitiates(t, l, "data")
	reaches(t, l.Host(lab.PCB), "10.1.20.10")
	assert.Equal(t, addressB+":51820", field(t, l.Host(lab.EdgeA), "rw-data", "endpoints"))
	reaches(t, l.Host(lab.PCA), "10.2.20.10")
	frames, err := wan.Stop()
	require.NoError(t, err)
	by := initiations(frames, began)
	assert.Zero(t, by[addressA], "Ringway called somebody it does not know")
	assert.Positive(t, by[addressB])
}

// stockInitiates makes the far end the one that dials: Ringway forgets where it is, altogether.
func stockInitiates(t *testing.T, l *lab.Lab, class string) {
	t.Helper()
	a, b := l.Edge("a"), l.Host(lab.EdgeB)
	sh(t, a.Host, ringway, "stop")
	sh(t, a.Host, "rm", "-f", "/var/lib/ringway/endpoints.json")
	b0 := redial(t, l, class)
	text, err := a.Config()
	require.NoError(t, err)
	lines := regexp.MustCompile(`(?m)^\s*endpoint:.*\n`).ReplaceAll(text, nil)
	require.NotEqual(t, string(text), string(lines))
	require.NoError(t, a.WriteConfig(lines))
	require.NoError(t, a.Start(t.Context()))
	polltest.Require(t, func() bool {
		s, err := a.Status(t.Context())
		return err == nil && s.Ready
	}, 20*time.Second, 50*time.Millisecond)
	assert.Equal(t, "(none)", field(t, a.Host, device(class), "endpoints"))
	// A side that has to send before the other's session is confirmed makes one of its own, which then stands.
	for range 5 {
		wan := watchWAN(t, l)
		b0()
		reaches(t, b, "10.1.20.1")
		frames, err := wan.Stop()
		require.NoError(t, err)
		if lastInitiation(frames) == addressB {
			return
		}
		b0 = redial(t, l, class)
	}
	require.Fail(t, "the session that stands is never the stock side's")
}

// redial takes Ringway's peer from the stock side, which thereby forgets its session; what it returns gives it back.
func redial(t *testing.T, l *lab.Lab, class string) func() {
	t.Helper()
	b := l.Host(lab.EdgeB)
	peer := sh(t, b, "wg", "show", stockDevice, "peers")
	sh(t, b, "wg", "set", stockDevice, "peer", peer, "remove")
	port := map[string]string{"voice": "51820", "data": "51821"}[class]
	return func() {
		sh(t, b, "wg", "set", stockDevice, "peer", peer, "endpoint", addressA+":"+port,
			"allowed-ips", "10.1.10.0/24,10.1.20.0/24,2001:db8:1:10::/64,2001:db8:1:20::/64")
	}
}

// A preshared key is used as it is with a far end that has one tunnel: `wg` does not know classes.
func TestPresharedKeyAsItIs(t *testing.T) {
	t.Parallel()
	l := stock(t, "data", nil)
	a, b := l.Edge("a"), l.Host(lab.EdgeB)
	sh(t, a.Host, ringway, "keygen", "--preshared", "/etc/ringway/munich.psk")
	change(t, l, map[string]string{"sites[munich].preshared_key_file": "munich.psk"})
	psk, err := os.ReadFile(a.Path("/etc/ringway/munich.psk"))
	require.NoError(t, err)
	assert.Equal(t, strings.TrimSpace(string(psk)), field(t, a.Host, "rw-data", "preshared-keys"))

	peer := sh(t, b, "wg", "show", stockDevice, "peers")
	sh(t, b, "wg", "set", stockDevice, "peer", peer, "remove") // forgets the session, which was made without the key
	allowed := "10.1.10.0/24,10.1.20.0/24"
	sh(t, b, "wg", "set", stockDevice, "peer", peer, "allowed-ips", allowed, "endpoint", addressA+":51821")
	_, err = b.Run(t.Context(), "ping", "-n", "-q", "-c", "3", "-W", "1", "10.1.20.1")
	require.Error(t, err, "came through without the preshared key")

	_, err = b.RunInput(within(t, 10*time.Second), string(psk), "wg", "set", stockDevice, "peer", peer,
		"preshared-key", "/dev/stdin")
	require.NoError(t, err)
	reaches(t, l.Host(lab.PCB), "10.1.20.10")
	reaches(t, l.Host(lab.PCA), "10.2.20.10")
}

// Either side moves to another port or address, and the other follows what comes from there.
func TestRoaming(t *testing.T) {
	t.Parallel()
	l := stock(t, "data", nil)
	a, b := l.Host(lab.EdgeA), l.Host(lab.EdgeB)
	both := func() {
		t.Helper()
		reaches(t, l.Host(lab.PCA), "10.2.20.10")
		reaches(t, l.Host(lab.PCB), "10.1.20.10")
	}

	sh(t, b, "wg", "set", stockDevice, "listen-port", "40000")
	reaches(t, l.Host(lab.PCB), "10.1.20.10") // the first packet from there tells Ringway
	assert.Equal(t, addressB+":40000", field(t, a, "rw-data", "endpoints"))
	both()

	change(t, l, map[string]string{"tunnels[data].listen_port": "45000"})
	assert.Equal(t, "45000", sh(t, a, "wg", "show", "rw-data", "listen-port"))
	reaches(t, l.Host(lab.PCA), "10.2.20.10")
	assert.Equal(t, addressA+":45000", field(t, b, stockDevice, "endpoints"))
	both()

	change(t, l, map[string]string{"wan[wan0].address": "198.51.100.77/24"})
	reaches(t, l.Host(lab.PCA), "10.2.20.10")
	assert.Equal(t, "198.51.100.77:45000", field(t, b, stockDevice, "endpoints"))
	both()
	assert.Equal(t, addressB+":40000", field(t, a, "rw-data", "endpoints"),
		"a reload does not forget where the far end was heard")
}

// A keepalive keeps a way open that nobody uses: the stock side sees a packet at least that often.
func TestKeepalive(t *testing.T) {
	t.Parallel()
	l := stock(t, "data", map[string]string{"sites[munich].keepalive": "1s"})
	b := l.Host(lab.EdgeB)
	assert.Equal(t, "1", field(t, l.Host(lab.EdgeA), "rw-data", "persistent-keepalive"))
	received := func() int {
		transfer := strings.Fields(field(t, b, stockDevice, "transfer"))
		n, err := strconv.Atoi(transfer[0])
		require.NoError(t, err)
		return n
	}
	before := received()
	polltest.Require(t, func() bool { return received() >= before+3*32 }, 20*time.Second, 100*time.Millisecond,
		"three keepalives of 32 bytes")
}

// wg(8) shows Ringway's devices as any other. What belongs to the daemon it cannot change, and nothing of
// what it asked for together with that is done.
func TestWGShowsAndMayNotTakeOver(t *testing.T) {
	t.Parallel()
	l := stock(t, "data", nil)
	a := l.Host(lab.EdgeA)
	assert.ElementsMatch(t, []string{"rw-voice", "rw-data"}, strings.Fields(sh(t, a, "wg", "show", "interfaces")))
	out := sh(t, a, "wg", "show", "rw-data")
	assert.Contains(t, out, "listening port: 51821\n")
	assert.Contains(t, out, "fwmark: 0x4000\n")
	assert.Contains(t, out, "endpoint: "+addressB+":51820\n")
	assert.Contains(t, out, "latest handshake:")
	assert.NotContains(t, out, "WARNING")

	for _, args := range [][]string{{"fwmark", "0x1"}, {"fwmark", "off"}, {"listen-port", "1234"},
		{"listen-port", "0"}} {
		_, err := a.Run(t.Context(), "wg", append([]string{"set", "rw-data"}, args...)...)
		require.Error(t, err, "wg set rw-data %s", strings.Join(args, " "))
	}
	assert.Equal(t, "0x4000", sh(t, a, "wg", "show", "rw-data", "fwmark"))
	assert.Equal(t, "51821", sh(t, a, "wg", "show", "rw-data", "listen-port"))
	reaches(t, l.Host(lab.PCA), "10.2.20.10")
}
