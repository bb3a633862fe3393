package wireguardgo

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/device"

	"ringway/test/enginetest"
	"ringway/test/polltest"
	"ringway/tunnel"
)

const manySites = 500

// sites is a set operation that adds so many peers with two networks each.
func sites(t testing.TB, n int) string {
	var s strings.Builder
	for i := range n {
		k, err := tunnel.NewPrivateKey()
		require.NoError(t, err)
		fmt.Fprintf(&s, "public_key=%s\nendpoint=192.0.2.%d:%d\n", k.Public().Hex(), 3+i%200, 51820+i)
		for _, half := range []string{"0/25", "128/25"} {
			fmt.Fprintf(&s, "allowed_ip=10.%d.%d.%s\n", 100+i/256, i%256, half)
		}
	}
	return s.String()
}

// cpu is what this process has used so far.
func cpu(t testing.TB) time.Duration {
	var u unix.Rusage
	require.NoError(t, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// strange sends datagrams to address, each from a port of its own, in the box's namespace.
func strange(b *enginetest.Box, address string, n, rate int, next func() []byte) {
	b.T.Helper()
	tick := time.NewTicker(time.Second / time.Duration(rate))
	defer tick.Stop()
	for range n {
		<-tick.C
		require.NoError(b.T, b.NS.Do(func() error {
			c, err := net.Dial("udp", address)
			if err != nil {
				return err
			}
			defer c.Close()
			_, err = c.Write(next())
			return err
		}))
	}
}

func BenchmarkRefreshOfManySites(b *testing.B) {
	a, _ := wire(b)
	a.Open(0, 0, wide)
	a.Start(wide)
	a.Set(fmt.Sprintf("private_key=%s\n", a.Key.Hex()) + sites(b, manySites))
	for b.Loop() {
		engine(a).refresh()
	}
}

// What nobody has authenticated makes no work that grows with the number of sites, from however many
// addresses it comes.
func TestStrangersDoNotMakeTheHubLook(t *testing.T) {
	a, b := wire(t)
	a.Open(0, 0, wide)
	a.Start(wide)
	a.Set(fmt.Sprintf("private_key=%s\n", a.Key.Hex()) + sites(t, manySites))
	junk := map[string]func() []byte{
		"noise": func() []byte { return []byte(strings.Repeat("x", 100)) },
		"unknown session": func() []byte {
			p := make([]byte, 100)
			binary.LittleEndian.PutUint32(p, device.MessageTransportType)
			binary.LittleEndian.PutUint32(p[4:], rand.Uint32())
			return p
		},
		"handshakes of a stranger": func() []byte {
			p := make([]byte, device.MessageInitiationSize)
			binary.LittleEndian.PutUint32(p, device.MessageInitiationType)
			return p
		},
	}
	share := func(port int) float64 {
		began, used := time.Now(), cpu(t)
		for _, next := range junk {
			strange(b, fmt.Sprintf("192.0.2.1:%d", port), 100, 100, next)
		}
		return float64(cpu(t)-used) / float64(time.Since(began))
	}
	sending := share(9) // where nobody listens
	all := share(51820)
	t.Logf("%d sites, 100 datagrams a second, each from a new address: %.1f %% of a core, "+
		"of which %.1f %% are this test's own; drops %v",
		manySites, 100*all, 100*sending, a.E.Status().Drops)
	assert.Less(t, all-sending, max(0.1, 2*sending)) // what the test itself takes says how slow the machine is

	// While the peers are being looked at already, a request is remembered.
	p := engine(a).hub.peers
	p.refreshing.Lock()
	defer p.refreshing.Unlock()
	select {
	case <-p.kicks:
	default:
	}
	seen := engine(a).hub.drops[dropGarbage].Load() + 5
	for _, kind := range []string{"unknown session", "handshakes of a stranger", "noise"} {
		strange(b, "192.0.2.1:51820", 5, 1000, junk[kind])
	}
	polltest.Require(t, func() bool { return engine(a).hub.drops[dropGarbage].Load() >= seen }, 5*time.Second,
		time.Millisecond)
	assert.Empty(t, p.kicks)
}
