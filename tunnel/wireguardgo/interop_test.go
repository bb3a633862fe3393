package wireguardgo

import (
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/tunnel"
)

func TestStockFarEnd(t *testing.T) {
	for _, c := range []struct{ name, ours, theirs string }{
		{"IPv4", "192.0.2.1:51820", "192.0.2.2:51820"},
		{"IPv6", "[2001:db8::1]:51820", "[2001:db8::2]:51820"},
	} {
		for _, initiator := range []string{"ours", "theirs"} {
			t.Run(c.name+" "+initiator+" initiates", func(t *testing.T) {
				a, b := wire(t)
				a.open(0, 0, wide)
				a.start(wide)
				ours, theirs := "", ""
				if initiator == "ours" {
					theirs = c.theirs
				} else {
					ours = c.ours
				}
				a.set(a.peer(b, theirs))
				wg := b.stock(b.wgConf(a, ours))
				if initiator == "ours" {
					require.NoError(t, a.ping("10.66.0.2"))
				}
				require.NoError(t, b.ping("10.66.0.1"))
				require.NoError(t, a.ping("fd66::2", "-s", "1372", "-M", "do"))
				require.Greater(t, a.iperf(b, 1), 10.0)
				require.Greater(t, a.iperf(b, 1, "-R"), 10.0)
				require.Greater(t, a.iperf(b, 1, "-u", "-b", "20M", "-l", "200"), 5.0)
				out, err := wg("wg", "show", "rw0", "latest-handshakes")
				require.NoError(t, err)
				assert.Contains(t, out, a.key.Public().String())
				assert.NotContains(t, out, "\t0\n")
			})
		}
	}
}

// tool runs wg(8) against the engine's own socket.
func (b *box) tool(args ...string) (string, error) {
	dir := b.t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "rw0.sock"))
	require.NoError(b.t, err)
	served := make(chan error, 1)
	go func() { served <- b.e.ServeUAPI(l) }()
	defer func() { l.Close(); require.NoError(b.t, <-served) }()
	cmd := exec.Command("unshare", append([]string{"-m", "sh", "-c",
		`mkdir -p /tmp && mount --bind "$0" /tmp && mount -t tmpfs tmpfs /run && mkdir /run/wireguard && mount --bind /tmp /run/wireguard && exec wg "$@"`, dir}, args...)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func TestWgTool(t *testing.T) {
	a, b := wire(t)
	a.open(0x12340000, 0, wide)
	a.start(wide)
	b.open(0, 0, wide)
	b.start(wide)
	b.set(b.peer(a, "192.0.2.1:51820"))
	a.set("private_key=" + a.key.Hex() + "\n")

	out, err := a.tool("set", "rw0", "peer", b.key.Public().String(), "allowed-ips", "10.66.0.2/32,fd66::2/128", "endpoint", "192.0.2.2:51820", "persistent-keepalive", "25")
	require.NoError(t, err, out)
	require.NoError(t, a.ping("10.66.0.2"))
	out, err = a.tool("show", "rw0")
	require.NoError(t, err, out)
	for _, want := range []string{
		"public key: " + a.key.Public().String(), "listening port: 51820", "fwmark: 0x12340000",
		"peer: " + b.key.Public().String(), "endpoint: 192.0.2.2:51820", "10.66.0.2/32", "latest handshake: ", "persistent keepalive: every 25 seconds",
	} {
		assert.Contains(t, out, want)
	}

	for _, args := range [][]string{{"fwmark", "1"}, {"listen-port", "51999"}} {
		out, err = a.tool(append([]string{"set", "rw0"}, args...)...)
		assert.Error(t, err)
		assert.Contains(t, out, "Operation not permitted")
	}
	require.NoError(t, a.ping("10.66.0.2"), "a refused change changes nothing")

	out, err = a.tool("set", "rw0", "peer", b.key.Public().String(), "remove")
	require.NoError(t, err, out)
	assert.Empty(t, a.e.Status().Peers)
}

func TestSetRefuses(t *testing.T) {
	a, _ := wire(t)
	a.open(0, 0, wide)
	a.start(wide)
	for _, c := range []struct {
		set  string
		code unix.Errno
		why  string
	}{
		{"fwmark=1", unix.EPERM, "set the WireGuard device: fwmark is set by the daemon when it opens the sockets; a plane has no privilege to change it (see the config)"},
		{"listen_port=1", unix.EPERM, "set the WireGuard device: listen_port is set by the daemon when it opens the sockets; change it in the config"},
		{"private_key=12", unix.EINVAL, "set the WireGuard device: private_key is not 64 hex digits"},
		{"secret", unix.EINVAL, "set the WireGuard device: a line of a set operation is not key=value"},
		{"endpoint=1.2.3.4:5", unix.EINVAL, "set the WireGuard device: unknown key of a device"},
		{"public_key=" + a.key.Hex() + "\nfwmark=1", unix.EINVAL, "set the WireGuard device: unknown key of a peer"},
	} {
		err := a.e.Set(strings.NewReader("private_key=" + a.key.Hex() + "\n" + c.set + "\n\n"))
		require.EqualError(t, err, c.why)
		var code interface{ ErrorCode() int64 }
		require.ErrorAs(t, err, &code)
		assert.Equal(t, -int64(c.code), code.ErrorCode())
	}
	assert.NotEqual(t, a.key.Public().String(), a.e.Status().PublicKey, "a refused operation changes nothing")
}

func TestNextEngineOnTheSameFiles(t *testing.T) {
	a, b := wire(t)
	a.open(0, 0, wide)
	b.open(0, 0, wide)
	b.start(wide)
	b.set(b.peer(a, "192.0.2.1:51820"))
	plane := a.spawn(wide, a.peer(b, "192.0.2.2:51820"))
	require.NoError(t, a.ping("10.66.0.2"))
	require.NoError(t, plane.Process.Kill())
	_ = plane.Wait()

	a.start(wide)
	a.set(a.peer(b, "192.0.2.2:51820"))
	a.e.Handshake(b.key.Public())
	require.Eventually(t, func() bool { return !a.e.Status().Peers[0].LastHandshake.IsZero() }, 15*time.Second, 5*time.Millisecond)
	require.NoError(t, b.ping("10.66.0.1"))

	// In the same process, and without an engine's going down.
	require.NoError(t, a.e.Close())
	require.NoError(t, a.e.Close(), "closing twice")
	a.start(wide)
	a.set(a.peer(b, "192.0.2.2:51820"))
	a.e.Handshake()
	require.Eventually(t, func() bool { return !a.e.Status().Peers[0].LastHandshake.IsZero() }, 15*time.Second, 5*time.Millisecond)
	require.NoError(t, a.e.dev.Down())
	require.NoError(t, a.e.dev.Up())
	// The far end takes no initiation within 20 ms of the last, and the next follows after 5 s.
	require.Eventually(t, func() bool { return a.ping("10.66.0.2") == nil }, 15*time.Second, 10*time.Millisecond)
}

func TestEngineEndsWithItsDevice(t *testing.T) {
	a, _ := wire(t)
	a.open(0, 0, wide)
	a.start(wide)
	a.ns.Run("ip", "link", "delete", "rw0")
	select {
	case <-a.e.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("the engine runs on without its tunnel device")
	}
}

func TestEndpointsArePushed(t *testing.T) {
	a, b := wire(t)
	a.open(0, 0, wide)
	a.start(wide)
	b.open(0, 0, wide)
	b.start(wide)
	a.set(a.peer(b, "")) // b dials in
	b.set(b.peer(a, "192.0.2.1:51820"))
	require.NoError(t, b.ping("10.66.0.1"))
	require.Equal(t, map[tunnel.PublicKey]netip.AddrPort{b.key.Public(): netip.MustParseAddrPort("192.0.2.2:51820")}, <-a.e.Endpoints())
	b.ns.Run("ip", "address", "add", "192.0.2.22/24", "dev", "wire0")
	b.ns.Run("ip", "address", "del", "192.0.2.2/24", "dev", "wire0")
	b.ns.Run("ip", "address", "replace", "192.0.2.22/24", "dev", "wire0")
	require.NoError(t, b.ping("10.66.0.1"), "a source address that went is forgotten")
	require.Equal(t, netip.MustParseAddrPort("192.0.2.22:51820"), (<-a.e.Endpoints())[b.key.Public()])
}

func TestReplyComesFromTheAddressThatWasAsked(t *testing.T) {
	for _, c := range []struct{ name, address, network string }{
		{"IPv4", "192.0.2.20", "24"}, {"IPv6", "2001:db8::20", "64"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, b := wire(t)
			for _, x := range []*box{a, b} {
				x.open(0, 0, wide)
				x.start(wide)
			}
			b.ns.Run("ip", "address", "add", c.address+"/"+c.network, "dev", "wire0", "nodad")
			if c.name == "IPv6" {
				b.ns.Run("ip", "address", "change", c.address+"/"+c.network, "dev", "wire0", "preferred_lft", "0")
			}
			at := netip.AddrPortFrom(netip.MustParseAddr(c.address), 51820)
			a.set(a.peer(b, at.String()))
			b.set(b.peer(a, ""))
			require.NoError(t, a.ping("10.66.0.2"))
			assert.Equal(t, at, a.e.Status().Peers[0].Endpoint, "it did not roam")

			b.ns.Run("ip", "address", "del", c.address+"/"+c.network, "dev", "wire0")
			require.NoError(t, b.ping("10.66.0.1"))
			assert.NotEqual(t, at, a.e.Status().Peers[0].Endpoint, "it followed")
		})
	}
}

func TestOuterDSCP(t *testing.T) {
	for _, end := range []string{"192.0.2.2:51820", "[2001:db8::2]:51820"} {
		a, b := wire(t)
		a.open(0, 0xb8|3, wide) // EF; ECN bits are not for us to set
		b.open(0, 0, wide)
		a.start(wide)
		b.start(wide)
		stop := a.capture()
		a.set(a.peer(b, end))
		b.set(b.peer(a, ""))
		require.NoError(t, a.ping("10.66.0.2", "-Q", "3"))
		frames := stop()
		require.GreaterOrEqual(t, len(frames), 4)
		for _, f := range frames {
			assert.Equal(t, byte(0xb8), f.tos, "%s", end)
		}
	}
}

func TestSuperPacketsHaveABound(t *testing.T) {
	for _, super := range []int{0, 3000, 65000} {
		t.Run(fmt.Sprint(super), func(t *testing.T) {
			bounds := wide
			bounds.SuperPacket = super
			a, b := pair(t, bounds)
			require.NoError(t, a.ping("10.66.0.2"))
			stop := a.capture()
			require.Greater(t, a.iperf(b, 1), 10.0)
			most := 0
			for _, f := range stop() {
				most = max(most, f.size)
			}
			switch super {
			case 0:
				assert.LessOrEqual(t, most, 1480)
			case 3000:
				assert.LessOrEqual(t, most, 3000+28)
				assert.Greater(t, most, 1480)
			default:
				assert.Greater(t, most, 10000)
			}
		})
	}
}

func TestInnerSourceIsHeldToAllowedIPs(t *testing.T) {
	a, b := pair(t, wide)
	require.NoError(t, a.ping("10.66.0.2"))
	for _, forged := range []string{"10.66.0.77", "fd66::77"} {
		a.ns.Run("ip", "address", "add", forged, "dev", "rw0", "nodad")
	}
	require.Error(t, a.ping("10.66.0.2", "-I", "10.66.0.77", "-W", "1"))
	require.Error(t, a.ping("fd66::2", "-I", "fd66::77", "-W", "1"))
	require.NoError(t, a.ping("10.66.0.2"))
	assert.GreaterOrEqual(t, b.e.Status().Drops["inner_source"], uint64(6))
}

func TestErrorsOfTheSocketPass(t *testing.T) {
	a, b := pair(t, wide)
	require.NoError(t, a.ping("10.66.0.2"))
	for _, c := range []struct{ name, reason, breakIt, mendIt string }{
		{"firewall", "send_refused", "nft add table inet t; nft add chain inet t o '{type filter hook output priority 0; policy accept;}'; nft add rule inet t o udp sport 51820 reject with icmpx admin-prohibited", "nft delete table inet t"},
		{"no route", "send_unreachable", "ip link set wire0 down", "ip link set wire0 up"},
	} {
		t.Run(c.name, func(t *testing.T) {
			a.ns.Run("sh", "-c", c.breakIt)
			require.Error(t, a.ping("10.66.0.2", "-W", "1"))
			a.ns.Run("sh", "-c", c.mendIt)
			assert.Positive(t, a.e.Status().Drops[c.reason], "%v", a.e.Status().Drops)
			require.Eventually(t, func() bool { return a.ping("10.66.0.2") == nil }, 10*time.Second, 100*time.Millisecond)
			require.NoError(t, b.ping("10.66.0.1"))
		})
	}
}

func TestMTU(t *testing.T) {
	a, b := pair(t, wide)
	require.NoError(t, a.ping("10.66.0.2"))
	require.Error(t, a.e.SetMTU(100))
	for _, x := range []*box{a, b} {
		x.ns.Run("ip", "link", "set", "rw0", "mtu", "1389")
		require.NoError(t, x.e.SetMTU(1389))
	}
	stop := a.capture()
	require.NoError(t, a.ping("10.66.0.2", "-s", "1361", "-M", "do"))
	require.Error(t, a.ping("10.66.0.2", "-s", "1362", "-M", "do"))
	most := 0
	for _, f := range stop() {
		most = max(most, f.size)
	}
	assert.Equal(t, 1389+tunnel.OverheadIPv4, most, "padding stays below the MTU")
}
