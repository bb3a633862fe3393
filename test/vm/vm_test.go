// Package vm holds the tests that run inside the virtual machine that run.sh boots, as root, on a
// Debian kernel: the kernel engine, VLANs, a clock that starts in the past. Elsewhere they have
// nothing to run on and say so; `make test-kernel` (also in CI) is what runs them.
package vm

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/test/netnstest"
	"ringway/test/polltest"
	"ringway/test/streamtest"
	"ringway/tunnel"
	"ringway/tunnel/kernel"
)

func inGuest(t *testing.T) {
	t.Helper()
	if os.Getenv("TEST_VM") == "" {
		t.Skip("runs inside the virtual machine of `make test-kernel`")
	}
}

func TestTheKernelHasWireGuard(t *testing.T) {
	inGuest(t)
	ok, err := kernel.Supported()
	require.NoError(t, err)
	assert.True(t, ok)
}

// lossless does something and holds that no stream lost a packet.
func lossless(t *testing.T, what string, s streamtest.Streams, f func()) {
	t.Helper()
	sent := 0
	for name, x := range s.During(f) {
		assert.Zero(t, x.Lost, "%s: %s lost %d of %d packets (%d in a row)", what, name, x.Lost, x.Sent, x.Longest)
		sent += x.Sent
	}
	if !t.Failed() {
		t.Logf("%s: 0 of %d packets lost in %d streams", what, sent, len(s))
	}
}

// state is what a box could leave behind.
func (e *edge) state() string {
	e.T.Helper()
	return e.run("sh", "-c", `ip -o link show | sed 's/@[^:]*//; s/qdisc .*//' ; ip -o addr show | grep -v fe80 | sed 's/ *valid_lft.*//'; ip rule show; ip -6 rule show;
		ip route show table all | grep -v fe80; ip -6 route show table all | grep -v fe80; nft list ruleset; tc qdisc show | sed 's/ [0-9a-f]*: / /'; ls /run/ringway /run/wireguard 2>/dev/null;
		sysctl -a 2>/dev/null | grep -E '^net\.ipv[46]\.(ip_forward|conf)' | grep -v -E 'mtu|\.rw-'; pgrep -f 'plane' || true`)
}

func TestAutoTakesTheKernelForDataAndAProcessForVoice(t *testing.T) {
	inGuest(t)
	b := newBranches(t, map[string]string{"wan[wan0].take_over": "true"}, nil)
	// What a distribution or an operator may have put there: an AQM on the WAN, which the stop has to put back, and a
	// delay and cake on what is not Ringway's business.
	b.berlin.run("tc", "qdisc", "replace", "dev", "wan0", "root", "fq_codel")
	b.phone.Run("tc", "qdisc", "replace", "dev", "eth0", "root", "netem", "delay", "3ms")
	b.berlin.run("tc", "qdisc", "replace", "dev", "voice0", "root", "cake")
	before := b.berlin.state()
	b.munich.start()
	b.berlin.start()
	voice, data := b.berlin.tunnel(tunnel.Voice), b.berlin.tunnel(tunnel.Data)
	assert.Equal(t, tunnel.EngineRealtime, voice.Engine)
	assert.NotZero(t, voice.PlanePID)
	assert.Equal(t, tunnel.EngineKernel, data.Engine)
	assert.Zero(t, data.PlanePID)
	assert.Contains(t, b.berlin.run("ip", "-d", "link", "show", "rw-data"), "wireguard")
	st := b.berlin.status()
	assert.Empty(t, st.Problems)
	for _, f := range st.Missing {
		t.Logf("lacks %s: %s", f.Name, f.Cost)
		assert.NotContains(t, f.Name, "WireGuard")
		assert.NotContains(t, f.Name, "fq_codel", "this kernel has it")
	}
	t.Logf("queues:\n%s", b.berlin.run("tc", "qdisc", "show", "dev", "wan0"))

	streams := b.streams()
	show := b.berlin.run("wg", "show")
	for _, dev := range []string{"rw-voice", "rw-data"} {
		assert.Contains(t, show, dev)
	}
	assert.Equal(t, 2, strings.Count(show, "latest handshake"), show)
	b.phone.Run("ping", "-c1", "-W5", "10.2.10.9")
	b.pc.Run("ping", "-c1", "-W5", "10.2.20.9")

	t.Run("what leaves has its class's code point", func(t *testing.T) {
		got := capture(t, b.munich.NS, "wan0", 100)
		for port, want := range map[uint16]uint8{51820: ef, 51821: 0} {
			assert.NotZero(t, got[port][want], "port %d", port)
			assert.Len(t, got[port], 1, "all of port %d is marked alike: %v", port, got[port])
		}
		assert.Len(t, got, 2, "nothing else is on the wire: %v", got)
	})
	t.Run("kill -9 of the daemon", func(t *testing.T) {
		index := b.berlin.run("sh", "-c", "cat /sys/class/net/rw-data/ifindex /sys/class/net/rw-voice/ifindex")
		shake := b.berlin.tunnel(tunnel.Data).Peers[0].LastHandshake
		lossless(t, "kill -9 and start of the daemon", streams, func() {
			b.berlin.kill()
			require.True(t, streams[2].Arrives(5*time.Second), "data flows without a daemon")
			b.berlin.start()
		})
		assert.Equal(t, index, b.berlin.run("sh", "-c",
			"cat /sys/class/net/rw-data/ifindex /sys/class/net/rw-voice/ifindex"))
		after := b.berlin.tunnel(tunnel.Voice)
		assert.Equal(t, voice.PlanePID, after.PlanePID)
		assert.True(t, after.Adopted)
		data := b.berlin.tunnel(tunnel.Data)
		assert.True(t, data.Adopted)
		assert.Equal(t, shake, data.Peers[0].LastHandshake, "the kernel's session is untouched")
	})
	t.Run("the plan is empty", func(t *testing.T) {
		out := b.berlin.run("ringway", "plan", "/etc/ringway/ringway.yaml")
		for line := range strings.Lines(out) {
			assert.True(t, strings.HasPrefix(line, "#") || strings.TrimSpace(line) == "" ||
				strings.Contains(line, "nothing"), "plan: %s", line)
		}
		assert.Equal(t, "nothing to change\n", b.berlin.run("ringway", "reload"))
	})
	t.Run("the kernel's peers are put back, and its routes are locked", func(t *testing.T) {
		assert.Contains(t, b.berlin.run("ip", "route", "show", "default"), "mtu lock 1500")
		key := b.berlin.tunnel(tunnel.Data).Peers[0].PublicKey.String()
		b.berlin.run("wg", "set", "rw-data", "peer", key, "remove")
		polltest.Assert(t, func() bool { return strings.Contains(b.berlin.run("wg", "show", "rw-data", "peers"), key) },
			5*time.Second, 100*time.Millisecond)
		b.pc.Run("ping", "-c1", "-W5", "10.2.20.9")
	})
	t.Run("a reload changes just what the file does", func(t *testing.T) {
		text, err := os.ReadFile(b.berlin.dir + "/etc/ringway.yaml")
		require.NoError(t, err)
		require.Contains(t, string(text), "data_networks: [10.2.20.0/24,")
		b.berlin.write("ringway.yaml", []byte(strings.Replace(
			string(text), "data_networks: [10.2.20.0/24,", "data_networks: [10.2.20.0/24, 10.2.30.0/24,", 1)))
		var out string
		lossless(t, "reload with one more network", streams, func() { out = b.berlin.run("ringway", "reload") })
		for line := range strings.Lines(out) {
			assert.True(t, strings.Contains(line, "10.2.30.0/24") || strings.Contains(line, "10.2.20.0/24") ||
				!strings.HasPrefix(line, "ip "), "it changes: %s", line)
		}
		assert.Contains(t, b.berlin.run("wg", "show", "rw-data", "allowed-ips"), "10.2.30.0/24")
		assert.Equal(t, "nothing to change\n", b.berlin.run("ringway", "reload"))
	})
	t.Run("stop takes all away", func(t *testing.T) {
		b.berlin.stop()
		b.munich.stop()
		assert.Equal(t, before, b.berlin.state())
	})
}

// TestEnginesInteroperate: one box with both tunnels in the kernel, the other with both in processes.
func TestEnginesInteroperate(t *testing.T) {
	inGuest(t)
	b := newBranches(t, map[string]string{"tunnels": "[{name: voice, engine: kernel}, {name: data, engine: kernel}]"},
		map[string]string{"tunnels": "[{name: voice, engine: realtime}, {name: data, engine: wireguard-go}]"})
	b.munich.start()
	b.berlin.start()
	for _, c := range tunnel.Classes {
		assert.Equal(t, tunnel.EngineKernel, b.berlin.tunnel(c).Engine)
		want := map[tunnel.Class]tunnel.EngineName{tunnel.Voice: tunnel.EngineRealtime,
			tunnel.Data: tunnel.EngineWireGuardGo}[c]
		assert.Equal(t, want, b.munich.tunnel(c).Engine)
	}
	streams := b.streams()
	lossless(t, "kernel, and realtime and wireguard-go", streams, func() {})
	for at, e := range map[string]*edge{"from the kernel": b.berlin, "from the planes": b.munich} {
		far := map[*edge]*edge{b.berlin: b.munich, b.munich: b.berlin}[e]
		got := capture(t, far.NS, "wan0", 60)
		for port, want := range map[uint16]uint8{51820: ef, 51821: 0} {
			assert.NotZero(t, got[port][want], "%s, port %d: %v", at, port, got)
			assert.Len(t, got[port], 1, "%s, port %d: %v", at, port, got[port])
		}
	}
	lossless(t, "kill -9 and start of the daemon, both tunnels in the kernel", streams, func() {
		b.berlin.kill()
		b.berlin.start()
	})
	_, err := b.berlin.try("ringway", "upgrade-planes")
	assert.ErrorContains(t, err, "kernel")
	b.berlin.stop()
	assert.NotContains(t, b.berlin.run("ip", "link", "show"), "rw-")
}

func TestLANsOnVLANs(t *testing.T) {
	inGuest(t)
	lans := map[string]string{}
	b := newBranches(t, lans, nil)
	// Instead of two cables, one trunk to a switch that has the phone on VLAN 20 and the PC on VLAN 30.
	trunk := netnstest.New(t)
	netnstest.Veth(t, b.berlin.NS, "lan0", trunk, "trunk0")
	b.phone, b.pc = netnstest.New(t), netnstest.New(t)
	for _, h := range []struct {
		ns       *netnstest.NS
		id       string
		addr, gw string
	}{{b.phone, "20", "10.1.10.9/24", "10.1.10.1"}, {b.pc, "30", "10.1.20.9/24", "10.1.20.1"}} {
		trunk.Run("ip", "link", "add", "link", "trunk0", "name", "vlan"+h.id, "type", "vlan", "id", h.id)
		moveLink(t, trunk, "vlan"+h.id, h.ns)
		h.ns.Run("ip", "link", "set", "vlan"+h.id, "up")
		h.ns.Run("ip", "addr", "add", h.addr, "dev", "vlan"+h.id)
		h.ns.Run("ip", "route", "add", "default", "via", h.gw)
	}
	text, err := os.ReadFile(b.berlin.dir + "/etc/ringway.yaml")
	require.NoError(t, err)
	vlan := strings.NewReplacer("- interface: voice0", "- interface: lan0\n    vlan: 20", "- interface: data0",
		"- interface: lan0\n    vlan: 30").Replace(string(text))
	require.Equal(t, 2, strings.Count(vlan, "vlan: "), vlan)
	b.berlin.write("ringway.yaml", []byte(vlan))

	before := b.berlin.state()
	b.munich.start()
	b.berlin.start()
	links := b.berlin.run("ip", "-d", "link", "show")
	assert.Contains(t, links, "lan0.20@lan0")
	assert.Contains(t, links, "802.1Q id 20")
	assert.Contains(t, links, "802.1Q id 30")
	assert.Empty(t, b.berlin.status().Problems)
	streams := b.streams()
	lossless(t, "LANs on VLANs", streams, func() {})
	// A VLAN's packets pass the queues of its parent, where calls to the phones have their class.
	assert.Regexp(t, `class htb 2:e0 root [^\n]*\n Sent [1-9]`, b.berlin.run("tc", "-s", "class", "show", "dev", "lan0"))

	// What the PC marks as a call is not believed: its mark comes from the data VLAN.
	data := b.berlin.tunnel(tunnel.Data).Peers[0].TxBytes
	voice := b.berlin.tunnel(tunnel.Voice).Peers[0].TxBytes
	b.pc.Run("ping", "-c30", "-i0.05", "-s1300", "-Q", "0xb8", "-W5", "10.2.20.9")
	grown := func(c tunnel.Class, from uint64) int { return int(b.berlin.tunnel(c).Peers[0].TxBytes - from) }
	t.Logf("while the PC sent 30 packets of 1300 bytes marked EF: voice %d bytes, data %d bytes",
		grown(tunnel.Voice, voice), grown(tunnel.Data, data))
	assert.Greater(t, grown(tunnel.Data, data), grown(tunnel.Voice, voice)+30*1300/2,
		"they went through the data tunnel")
	// Within the site the PC reaches no phone, and the drop is counted.
	_, err = b.pc.Try("ping", "-c1", "-W2", "10.1.10.9")
	assert.Error(t, err)
	assert.NotZero(t, b.berlin.status().Drops["voice_data_apart"].Packets)

	// A restart keeps the devices; a stop removes them.
	index := b.berlin.run("sh", "-c", "cat /sys/class/net/lan0.20/ifindex")
	lossless(t, "kill -9 and start of the daemon on VLANs", streams, func() {
		b.berlin.kill()
		b.berlin.start()
	})
	assert.Equal(t, index, b.berlin.run("sh", "-c", "cat /sys/class/net/lan0.20/ifindex"))
	b.berlin.stop()
	assert.Equal(t, before, b.berlin.state())
}

// TestClockInThePast: a box without a clock battery starts in 2020, and its far end remembers a later
// handshake. On both boxes voice is realtime and data the kernel, so both engines are tested.
func TestClockInThePast(t *testing.T) {
	inGuest(t)
	// Munich never calls by itself: berlin, which forgets all when it stops, would take munich's word.
	b := newBranches(t, nil, map[string]string{"sites[berlin].keepalive": "0s"})
	// A box's firewall in the way: munich's handshake initiations (message type 1) do not reach berlin.
	b.berlin.run("nft", "add table inet far; add chain inet far in { type filter hook prerouting priority -500; }; "+
		"add rule inet far in udp dport { 51820, 51821 } @th,64,8 1 drop")
	b.munich.start()
	b.berlin.start()
	shaken := func() (n int) {
		for _, c := range tunnel.Classes {
			for _, p := range b.berlin.tunnel(c).Peers {
				if !p.LastHandshake.IsZero() {
					n++
				}
			}
		}
		return n
	}
	ping := func() {
		_, _ = b.phone.Try("ping", "-c1", "-W1", "-Q", "0xb8", "10.2.10.9")
		_, _ = b.pc.Try("ping", "-c1", "-W1", "10.2.20.9")
	}
	polltest.Require(t, func() bool { ping(); return shaken() == 2 }, 30*time.Second, 100*time.Millisecond)
	b.berlin.stop()
	floor := b.berlin.dir + "/state/clock"
	saved, err := os.ReadFile(floor)
	require.NoError(t, err)

	setClock(t, time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC))
	require.NoError(t, os.Remove(floor))
	b.berlin.start()
	deadline := time.After(12 * time.Second) // two tries of each engine
	for refused := false; !refused; {
		select {
		case <-deadline:
			refused = true
		default:
			ping()
		}
	}
	require.Zero(t, shaken(), "without a floor the far end refuses the handshakes")
	require.Less(t, time.Now().Year(), 2021)
	b.berlin.stop()

	require.NoError(t, os.WriteFile(floor, saved, 0o644))
	b.berlin.start()
	require.GreaterOrEqual(t, time.Now().Year(), 2026, "the daemon has set the clock to its floor")
	began := time.Now()
	polltest.Require(t, func() bool { ping(); return shaken() == 2 }, 30*time.Second, 100*time.Millisecond)
	t.Logf("with the floor both tunnels shook hands within %s of the start",
		time.Since(began).Round(100*time.Millisecond))
	b.phone.Run("ping", "-c1", "-W5", "-Q", "0xb8", "10.2.10.9")
	b.pc.Run("ping", "-c1", "-W5", "10.2.20.9")
}

// setClock sets the machine's clock until the test ends.
func setClock(t *testing.T, to time.Time) {
	t.Helper()
	was := time.Now()
	ts := unix.NsecToTimespec(to.UnixNano())
	require.NoError(t, unix.ClockSettime(unix.CLOCK_REALTIME, &ts))
	t.Cleanup(func() {
		ts := unix.NsecToTimespec(was.Add(time.Since(was)).UnixNano()) // by the monotonic clock
		_ = unix.ClockSettime(unix.CLOCK_REALTIME, &ts)
	})
}

func moveLink(t *testing.T, from *netnstest.NS, name string, to *netnstest.NS) {
	t.Helper()
	cmd := from.Command("ip", "link", "set", name, "netns", "/proc/self/fd/4")
	target, err := unix.FcntlInt(uintptr(to.FD()), unix.F_DUPFD_CLOEXEC, 0)
	require.NoError(t, err)
	f := os.NewFile(uintptr(target), "namespace")
	defer f.Close()
	cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
}
