package realtime

import (
	"encoding/base64"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/enginetest"
	"ringway/test/polltest"
)

// The far end is the Linux kernel's WireGuard. `make test-kernel` runs this on a Debian kernel.

func kernelPair(t *testing.T, ours string, theirs string, lines ...string) (a, b *enginetest.Box) {
	t.Helper()
	a, b = wire(t)
	if !b.Kernel(b.Conf(a, theirs, lines...)) {
		t.Skip("this kernel has no WireGuard: make test-kernel")
	}
	a.Open(0, 0, wide)
	a.Start(wide)
	a.Set(a.Peer(b, ours))
	return a, b
}

const (
	kernelEnd  = "192.0.2.2:51820"
	kernelEnd6 = "[2001:db8::2]:51820"
	ourEnd     = "192.0.2.1:51820"
	ourEnd6    = "[2001:db8::1]:51820"
)

func TestKernelFarEnd(t *testing.T) {
	for _, c := range []struct{ name, ours, theirs string }{
		{"we initiate", kernelEnd, ""}, {"we initiate over IPv6", kernelEnd6, ""}, {"it initiates", "",
			ourEnd}, {"it initiates over IPv6", "", ourEnd6},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := kernelPair(t, c.ours, c.theirs)
			if c.theirs == "" {
				require.NoError(t, a.Ping("10.66.0.2"))
			}
			require.NoError(t, b.Ping("10.66.0.1"))
			require.NoError(t, a.Ping("fd66::2", "-s", "1372", "-M", "do"))
			assert.Equal(t, 100, a.Pings("10.66.0.2", 100))
			d := a.E.Status().Drops
			delete(d, "no_site") // the kernel looks for routers
			assert.Empty(t, d)
		})
	}
}

func TestKernelPresharedKeyAndKeepalive(t *testing.T) {
	psk := strings.Repeat("5a", 32)
	raw := []byte(strings.Repeat("\x5a", 32))
	a, b := kernelPair(t, kernelEnd, "", "PresharedKey="+base64.StdEncoding.EncodeToString(raw), "PersistentKeepalive=1")
	require.Error(t, a.Ping("10.66.0.2", "-W", "1"), "the key is missing here")
	a.Set(a.Peer(b, kernelEnd) + "preshared_key=" + psk + "\n")
	polltest.Require(t, func() bool { return a.Ping("10.66.0.2") == nil }, 20*time.Second, 100*time.Millisecond)
	rx := a.E.Status().Peers[0].RxBytes
	polltest.Require(t, func() bool { return a.E.Status().Peers[0].RxBytes >= rx+2*keepaliveSize },
		20*time.Second, 100*time.Millisecond)
	require.NoError(t, b.Ping("10.66.0.1"))
}

func TestKernelRoams(t *testing.T) {
	a, b := kernelPair(t, kernelEnd, "")
	require.NoError(t, a.Ping("10.66.0.2"))
	b.NS.Run("ip", "address", "add", "192.0.2.22/24", "dev", "wire0")
	b.NS.Run("ip", "address", "del", "192.0.2.2/24", "dev", "wire0")
	b.NS.Run("ip", "address", "replace", "192.0.2.22/24", "dev", "wire0")
	require.NoError(t, b.Ping("10.66.0.1"), "we follow it")
	assert.Equal(t, netip.MustParseAddrPort("192.0.2.22:51820"), a.E.Status().Peers[0].Endpoint)
	a.NS.Run("ip", "address", "add", "192.0.2.11/24", "dev", "wire0")
	a.NS.Run("ip", "address", "del", "192.0.2.1/24", "dev", "wire0")
	a.NS.Run("ip", "address", "replace", "192.0.2.11/24", "dev", "wire0")
	require.NoError(t, a.Ping("10.66.0.2"), "it follows us")
	assert.Contains(t, b.NS.Run("wg", "show", "rw0", "endpoints"), "192.0.2.11:51820")
}

func TestKernelBringsACookie(t *testing.T) {
	a, b := kernelPair(t, "", ourEnd)
	e := a.E.(*Engine)
	e.mu.Lock()
	e.loadUntil = e.now() + int64(time.Hour)
	e.mu.Unlock()
	polltest.Require(t, func() bool { return b.Ping("10.66.0.1") == nil }, 30*time.Second, 100*time.Millisecond)
	assert.Positive(t, a.E.Status().Drops["cookie_sent"])
}

// The protocol's own two minutes, in both roles, while pings go both ways.
func TestKernelRekey(t *testing.T) {
	if os.Getenv("TEST_VM") == "" && os.Getenv("TEST_REKEY") == "" {
		t.Skip("waits for WireGuard's real timers, two minutes: make test-kernel")
	}
	for _, c := range []struct{ name, ours, theirs string }{{"ours", kernelEnd, ""}, {"its", "", ourEnd}} {
		t.Run("initiative "+c.name, func(t *testing.T) {
			t.Parallel()
			a, b := kernelPair(t, c.ours, c.theirs)
			if c.ours != "" {
				require.NoError(t, a.Ping("10.66.0.2"))
			}
			require.NoError(t, b.Ping("10.66.0.1"))
			first := a.E.Status().Peers[0].LastHandshake
			out, err := a.NS.Try("ping", "-n", "-q", "-c", "1350", "-i", "0.1", "-W", "2", "10.66.0.2")
			require.NoError(t, err, out)
			assert.Contains(t, out, "1350 received")
			assert.True(t, a.E.Status().Peers[0].LastHandshake.After(first), "no new session was made")
		})
	}
}
