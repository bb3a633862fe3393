package plane

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/netnstest"
	"ringway/test/polltest"
	"ringway/tunnel"
)

// Two branches with a real engine in a real plane each:
//
//	berlin  10.1.0.1 rw-voice -- plane -- 192.0.2.1 wan0 ===== wan0 192.0.2.2 -- plane -- rw-voice 10.2.0.1  munich
//
// munich dials in: berlin's configuration has no endpoint for it.
type branches struct {
	berlin, munich         *bench
	berlinPlane, munichBox *Supervisor
	berlinCfg              Config
	releaseBerlin          func()
	berlinDevice           tunnel.Device
	munichDevice           tunnel.Device
}

const voicePort = 51820

func newBranches(t *testing.T) *branches {
	t.Helper()
	b := connectBranches(t)
	b.berlinCfg = b.engineConfig(b.berlin)
	b.berlinPlane, b.releaseBerlin = b.berlin.supervise(b.berlinCfg)
	require.NoError(t, b.berlinPlane.Configure(context.Background(), b.berlinDevice))
	b.join(t)
	return b
}

// connectBranches makes the two, without a tunnel yet.
func connectBranches(t *testing.T) *branches {
	t.Helper()
	b := &branches{berlin: newBench(t), munich: newBench(t)}
	netnstest.Veth(t, b.berlin.ns, "wan0", b.munich.ns, "wan0")
	b.berlin.ns.Run("ip", "addr", "add", "192.0.2.1/24", "dev", "wan0")
	b.munich.ns.Run("ip", "addr", "add", "192.0.2.2/24", "dev", "wan0")
	d := tunnel.Device{
		Class: tunnel.Voice, FwMark: 1 << 13, Outer: tunnel.Outer{TOS: 0xb8},
		Settings: tunnel.Settings{Interface: "rw-voice", ListenPort: voicePort, MTU: 1420},
		Bounds:   tunnel.Bounds{TxQueueLen: 200, InFlight: 256, SendBuffer: 1 << 18, ReceiveBuffer: 1 << 20},
	}
	b.berlinDevice, b.munichDevice = d, d
	b.berlinDevice.PrivateKey, b.munichDevice.PrivateKey = key(1), key(2)
	b.berlinDevice.Peers = []tunnel.Peer{{
		Site: "munich", PublicKey: key(2).Public(), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")},
	}}
	b.munichDevice.Peers = []tunnel.Peer{{
		Site: "berlin", PublicKey: key(1).Public(), AllowedIPs: []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
		Endpoint: netip.MustParseAddrPort("192.0.2.1:51820"), Keepalive: 25 * time.Second,
	}}
	return b
}

// engineConfig is for planes that encrypt.
func (b *branches) engineConfig(x *bench) Config {
	cfg := x.config(tunnel.Voice)
	cfg.Engine = tunnel.EngineWireGuardGo
	remember(&cfg)
	return cfg
}

// join brings munich's tunnel up, and the addresses and routes of both, and waits until they reach each
// other.
func (b *branches) join(t *testing.T) {
	t.Helper()
	b.munichBox, _ = b.munich.supervise(b.engineConfig(b.munich))
	require.NoError(t, b.munichBox.Configure(context.Background(), b.munichDevice))
	for _, x := range []struct {
		bench      *bench
		inner, far string
	}{{b.berlin, "10.1.0.1/32", "10.2.0.0/16"}, {b.munich, "10.2.0.1/32", "10.1.0.0/16"}} {
		x.bench.ns.Run("ip", "addr", "add", x.inner, "dev", "rw-voice")
		x.bench.ns.Run("ip", "link", "set", "rw-voice", "up")
		x.bench.ns.Run("ip", "route", "add", x.far, "dev", "rw-voice")
	}
	polltest.Require(t, func() bool {
		_, err := b.munich.ns.Try("ping", "-c1", "-W1", "10.1.0.1")
		return err == nil
	}, patience, 10*time.Millisecond)
}

// call is a stream of voice-like packets, 172 bytes at 250 a second, each way, counted.
type call struct {
	sent, received [2]atomic.Uint64
	gap            [2]atomic.Int64 // longest time without a packet, ns
	stop           chan struct{}
	done           chan error
	conns          []*net.UDPConn
}

func (b *branches) call(t *testing.T) *call {
	t.Helper()
	c := &call{stop: make(chan struct{}), done: make(chan error, 4)}
	at := []string{"10.1.0.1:5004", "10.2.0.1:5004"}
	for i, x := range []*bench{b.berlin, b.munich} {
		var conn *net.UDPConn
		require.NoError(t, x.ns.Do(func() (err error) {
			conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(at[i])))
			return err
		}))
		c.conns = append(c.conns, conn)
	}
	for i, conn := range c.conns { // both are there before one sends
		to := netip.MustParseAddrPort(at[1-i])
		go func() {
			tick := time.NewTicker(4 * time.Millisecond)
			defer tick.Stop()
			p := make([]byte, 172)
			for {
				select {
				case <-c.stop:
					c.done <- nil
					return
				case <-tick.C:
					binary.BigEndian.PutUint64(p, c.sent[i].Add(1))
					_, _ = conn.WriteToUDPAddrPort(p, to)
				}
			}
		}()
		go func() {
			p := make([]byte, 2000)
			last := time.Now()
			for {
				if _, _, err := conn.ReadFromUDPAddrPort(p); err != nil {
					c.done <- nil
					return
				}
				now := time.Now()
				c.gap[i].Store(max(c.gap[i].Load(), int64(now.Sub(last))))
				last = now
				c.received[i].Add(1)
			}
		}()
	}
	return c
}

// end stops the senders, waits for what is on its way, and gives the packets lost each way.
func (c *call) end(t *testing.T) (lost [2]int64, gap [2]time.Duration) {
	t.Helper()
	close(c.stop)
	<-c.done
	<-c.done
	// All is there, or nothing has come for a second: a busy machine may hold up what is on its way.
	for last, since := [2]uint64{}, time.Now(); time.Since(since) < time.Second; <-time.After(10 * time.Millisecond) {
		now := [2]uint64{c.received[0].Load(), c.received[1].Load()}
		if now[0] == c.sent[1].Load() && now[1] == c.sent[0].Load() {
			break
		}
		if now != last {
			last, since = now, time.Now()
		}
	}
	for _, x := range c.conns {
		x.Close()
	}
	<-c.done
	<-c.done
	for i := range lost {
		lost[i] = int64(c.sent[i].Load()) - int64(c.received[1-i].Load())
		gap[i] = time.Duration(c.gap[1-i].Load())
	}
	return lost, gap
}

// after waits until n more packets have come each way: the call goes on.
func (c *call) after(t *testing.T, n uint64) {
	t.Helper()
	goal := [2]uint64{c.received[0].Load() + n, c.received[1].Load() + n}
	for i, until := range goal {
		polltest.Require(t, func() bool { return c.received[i].Load() >= until }, patience, time.Millisecond)
	}
}

func TestACallOverPlanesThatComeAndGo(t *testing.T) {
	b := newBranches(t)
	ctx := context.Background()
	holds, missing := b.berlinPlane.Sandbox()
	t.Logf("sandbox of a real engine: %q, missing %q", holds, missing)
	assert.Contains(t, holds, "seccomp")
	assert.Contains(t, holds, "landlock")

	measure := func(what string, f func()) (lost [2]int64) {
		t.Helper()
		c := b.call(t)
		c.after(t, 100)
		f()
		c.after(t, 250)
		lost, gap := c.end(t)
		t.Logf("%-48s lost %d to munich, %d to berlin of %d each way; longest gap %v, %v",
			what, lost[0], lost[1], c.sent[0].Load(), gap[0].Round(time.Millisecond), gap[1].Round(time.Millisecond))
		assert.Less(t, max(gap[0], gap[1]), 4*time.Second,
			"well under a second on a quiet machine; five seconds mean that a handshake was sent again")
		return lost
	}
	assert.Zero(t, measure("nothing happens", func() {}))
	assert.Zero(t, measure("the daemon goes, another adopts", func() {
		pid := status(t, b.berlinPlane).PlanePID
		b.releaseBerlin()
		b.berlinPlane, b.releaseBerlin = b.berlin.supervise(b.berlinCfg)
		require.NoError(t, b.berlinPlane.Configure(ctx, b.berlinDevice))
		assert.Equal(t, pid, status(t, b.berlinPlane).PlanePID)
	}))
	assert.Zero(t, measure("configured again, another site comes and goes", func() {
		d := b.berlinDevice
		other := []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")}
		d.Peers = append([]tunnel.Peer{{Site: "x", PublicKey: key(9).Public(), AllowedIPs: other}}, d.Peers...)
		require.NoError(t, b.berlinPlane.Configure(ctx, d))
		require.NoError(t, b.berlinPlane.Configure(ctx, b.berlinDevice))
	}))
	measure("kill -9 of the hub's adopted plane", func() { t.Log("answers after", kill9(t, b.berlinPlane)) })
	measure("kill -9 of the hub's fresh plane", func() { kill9(t, b.berlinPlane) })
	measure("kill -9 of the plane of the site that dials in", func() { kill9(t, b.munichBox) })
	measure("upgrade of the hub's plane", func() { require.NoError(t, b.berlinPlane.Upgrade(ctx)) })
	for range 5 { // each a race of the first answer with the engine's start
		measure("upgrade of the plane of the site that dials in", func() { require.NoError(t, b.munichBox.Upgrade(ctx)) })
	}

	// wg(8) finds it where it looks; the engine refuses what is not its to change.
	wg := func(args string) (string, error) {
		const mount = "mount -t tmpfs none /run && mkdir /run/wireguard && mount --bind %s /run/wireguard && wg %s"
		return b.berlin.ns.Try("unshare", "-m", "sh", "-c", fmt.Sprintf(mount, b.berlin.dir, args))
	}
	out, err := wg("show rw-voice")
	require.NoError(t, err)
	assert.Contains(t, out, "listening port: 51820")
	assert.Contains(t, out, "fwmark: 0x2000")
	assert.Contains(t, out, "peer: "+key(2).Public().String())
	assert.Contains(t, out, "endpoint: 192.0.2.2:51820")
	assert.Contains(t, out, "latest handshake:")
	_, err = wg("set rw-voice listen-port 1")
	assert.Error(t, err)

	for _, s := range []*Supervisor{b.berlinPlane, b.munichBox} {
		f, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", status(t, s).PlanePID))
		require.NoError(t, err)
		for line := range strings.Lines(string(f)) {
			if strings.HasPrefix(line, "VmRSS") || strings.HasPrefix(line, "Threads") {
				t.Log(strings.TrimSpace(line))
			}
		}
	}
}
