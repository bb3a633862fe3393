package e2e

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
	"ringway/test/lab"
	"ringway/test/lab/capture"
	"ringway/test/polltest"
	"ringway/tunnel"
)

// Code points of the outer packets (RFC 3246, RFC 2474), and the ports of the two tunnels.
const (
	expedited  = 46
	signalling = 24 // CS3
	byDefault  = 0

	edgeA, edgeB = "198.51.100.2", "203.0.113.2"

	voicePort = 51820
	dataPort  = 51821
)

// seen is what passed both of the provider's devices.
type seen struct{ frames []*capture.Frames }

func watchWAN(t *testing.T, l *lab.Lab) *seen {
	t.Helper()
	var s seen
	ns := fmt.Sprintf("/proc/%d/ns/net", l.Host(lab.Provider).PID)
	for _, device := range []string{"wan-a", "wan-b"} {
		f, err := capture.StartFrames(ns, device)
		require.NoError(t, err)
		s.frames = append(s.frames, f)
	}
	return &s
}

func (s *seen) stop(t *testing.T) []capture.Frame {
	t.Helper()
	var all []capture.Frame
	for _, f := range s.frames {
		got, err := f.Stop()
		require.NoError(t, err)
		all = append(all, got...)
	}
	return all
}

// onlyTunnels demands that the frames are WireGuard's, or what links need for themselves.
func onlyTunnels(t *testing.T, frames []capture.Frame) {
	t.Helper()
	kinds := map[capture.Kind]int{}
	for _, f := range frames {
		kinds[f.Kind]++
		switch f.Kind {
		case capture.WireGuard, capture.ARP, capture.ND:
		default:
			if kinds[f.Kind] == 1 {
				t.Errorf("in clear on the WAN: %s, protocol %d, %s > %s, DSCP %d", f.Kind, f.Protocol, f.Source,
					f.Destination, f.DSCP)
			}
		}
	}
	t.Logf("on the WAN: %v", kinds)
}

// between says whether a frame is between the edges themselves.
func between(f capture.Frame) bool {
	a, b := f.Source.Addr().String(), f.Destination.Addr().String()
	return a == edgeA && b == edgeB || a == edgeB && b == edgeA
}

// Calls, bulk, a name looked up and a ping: whoever taps the WAN sees WireGuard alone, marked by class.
func TestWANSeesOnlyWireGuard(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty})
	provider := l.Host(lab.Provider)
	// tshark reads what is recorded from before the first INVITE on.
	const record = lab.MachineDir + "/wan.pcap"
	recorded := make(chan error, 1)
	go func() {
		_, err := provider.Run(t.Context(), "timeout", "--preserve-status", "-s", "INT", "9", "tcpdump", "-n", "-s",
			"256", "-i", "wan-a", "-w", record)
		recorded <- err
	}()
	polltest.Require(t, func() bool { _, err := os.Stat(provider.Path(record)); return err == nil },
		5*time.Second, 10*time.Millisecond)
	wan := watchWAN(t, l)
	calls := talking(t, l, 4, 8*time.Second)
	bulk, err := l.Pair(lab.Ringway).StartBulk(t.Context(), lab.BulkTCP)
	require.NoError(t, err)
	for from, to := range map[string]string{lab.PhoneA: "10.2.10.10", lab.PCA: "10.2.20.10"} {
		_, err := l.Host(from).Run(t.Context(), "ping", "-n", "-c", "2", "-i", "0.1", to)
		require.NoError(t, err)
		// Nobody answers; the question is on its way all the same.
		_, err = l.Host(from).Run(t.Context(), "bash", "-c", "echo question > /dev/udp/"+to+"/53")
		require.NoError(t, err)
	}
	require.NoError(t, <-recorded)
	tshark, err := provider.Run(t.Context(), "tshark", "-n", "-Q", "-r", record, "-T", "fields", "-E",
		"separator=,", "-e", "_ws.col.Protocol", "-e", "udp.srcport", "-e", "ip.dsfield.dscp")
	require.NoError(t, err)
	_, err = bulk.Stop(t.Context(), bulk.Started, time.Now())
	require.NoError(t, err)
	calls.unharmed()
	frames := wan.stop(t)
	onlyTunnels(t, frames)

	marks := map[uint16]map[uint8]int{}
	for _, f := range frames {
		if f.Kind == capture.WireGuard {
			if marks[f.Source.Port()] == nil {
				marks[f.Source.Port()] = map[uint8]int{}
			}
			marks[f.Source.Port()][f.DSCP]++
		}
	}
	assert.ElementsMatch(t, []uint16{voicePort, dataPort}, slices.Collect(maps.Keys(marks)))
	assert.ElementsMatch(t, []uint8{signalling, expedited}, slices.Collect(maps.Keys(marks[voicePort])),
		"outer DSCP of voice")
	assert.Equal(t, []uint8{byDefault}, slices.Collect(maps.Keys(marks[dataPort])), "outer DSCP of data")

	// The watch sees what is in clear: what pc-a sends to the world goes there without a tunnel.
	wan = watchWAN(t, l)
	_, err = l.Host(lab.PCA).Run(t.Context(), "ping", "-n", "-c", "1", "-W", "2", "203.0.113.1")
	require.NoError(t, err)
	assert.True(t, slices.ContainsFunc(wan.stop(t), func(f capture.Frame) bool { return f.Kind == capture.ICMP }))

	// The same in another's eyes.
	lines := strings.Fields(tshark)
	require.Greater(t, len(lines), 100)
	slices.Sort(lines)
	for _, line := range slices.Compact(lines) {
		switch line {
		case "WireGuard,51820,46", "WireGuard,51820,24", "WireGuard,51821,0", "ARP,,", "ICMPv6,,":
		default:
			t.Errorf("tshark sees %q", line)
		}
	}
}

// Whatever is taken away from under a call, nothing of it appears on the WAN in clear: not while the tunnels'
// devices, the planes and the daemon are gone, nor when the rules or one of the routes' tables are flushed
// beside that.
func TestLongNothingLeavesInClear(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		take func(t *testing.T, e *lab.Edge)
	}{
		{"planes and daemon killed", func(*testing.T, *lab.Edge) {}},
		{"and the tunnels' devices deleted", func(t *testing.T, e *lab.Edge) {
			for _, device := range []string{"rw-voice", "rw-data"} {
				_, _ = e.Run(t.Context(), "ip", "link", "del", device) // it may have gone with its plane
			}
		}},
		{"and the firewall flushed", func(t *testing.T, e *lab.Edge) {
			_, err := e.Run(t.Context(), "nft", "flush", "ruleset")
			require.NoError(t, err)
		}},
		{"and firewall and rules gone at once", func(t *testing.T, e *lab.Edge) {
			_, err := e.Run(t.Context(), "sh", "-ec",
				"nft flush ruleset; for f in 4 6; do ip -$f rule flush; ip -$f rule add pref 32766 lookup main; done")
			require.NoError(t, err)
		}},
		{"and the routes of the classes flushed", func(t *testing.T, e *lab.Edge) {
			for _, table := range []string{"5271", "5272"} {
				// Routes go with the plane's device meanwhile, which ip takes for an error.
				require.True(t, polled(5*time.Second, func() bool {
					_, _ = e.Run(t.Context(), "ip", "route", "flush", "table", table)
					left, _ := e.Run(t.Context(), "ip", "route", "show", "table", table)
					return left == ""
				}))
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := branches(t, lab.Options{WAN: twenty})
			calls := talking(t, l, 2, 30*time.Second)
			e := l.Edge("a")
			s := status(t, e)
			wan := watchWAN(t, l)
			require.NoError(t, e.Kill(within(t, 5*time.Second)))
			for _, class := range tunnel.Classes {
				plane, ok := s.Tunnel(class)
				require.True(t, ok)
				killProcess(t, e.Host, plane.PlanePID)
			}
			c.take(t, e)
			// Phones and PCs keep sending into what is left, in both families.
			spoken, _ := calls.ears.Count()
			for _, to := range []string{"10.2.20.10", "2001:db8:2:20::10"} {
				_, err := l.Host(lab.PCA).Run(t.Context(), "sh", "-c",
					"for i in $(seq 20); do ping -n -c 1 -W 0.1 "+to+"; sleep 0.05; done; true")
				require.NoError(t, err)
			}
			heard, _ := calls.ears.Count()
			assert.Greater(t, heard, spoken+100, "the phone did not talk on")
			onlyTunnels(t, slices.DeleteFunc(wan.stop(t), func(f capture.Frame) bool {
				// An edge says that nothing listens on the tunnel's port: what it quotes of the packet is ciphertext.
				return f.Kind == capture.ICMP && between(f)
			}))
			// It heals: the next daemon makes whole what was taken.
			require.NoError(t, e.Start(t.Context()))
			require.NoError(t, l.Pair(lab.Ringway).WaitUp(within(t, 20*time.Second)))
		})
	}
}

// With bulk in class data, what else is in class data waits no longer than all its queues together may hold.
func TestTimedPingBesideBulkStaysBounded(t *testing.T) {
	l := branches(t, lab.Options{WAN: twenty})
	bulk, err := l.Pair(lab.Ringway).StartBulk(t.Context(), lab.BulkTCP)
	require.NoError(t, err)
	shaped := twenty * 97 / 100 // 3 percent stay free
	bound := qos.PathBounds(shaped, qos.Class{Name: qos.Data, Share: 50, Limit: 50 * time.Millisecond}, 1500).Alone
	// What the queues hold, they hold whenever bulk fills them; a machine that is busy with other things only adds to
	// it. So the first of a few looks that is under the bound decides.
	var p99 time.Duration
	for range 3 {
		_, rtt := pinging(t, l, 6*time.Second).answers()
		slices.Sort(rtt)
		p99 = rtt[len(rtt)*99/100]
		t.Logf("%d pings beside bulk: p50 %s, p99 %s; the bound is %s", len(rtt), rtt[len(rtt)/2], p99, bound)
		if p99 < bound+30*time.Millisecond {
			break
		}
	}
	rate, err := bulk.Stop(t.Context(), bulk.Started, time.Now())
	require.NoError(t, err)
	// The answer comes back on a WAN that carries acknowledgements alone.
	assert.Less(t, p99, bound+30*time.Millisecond)
	assert.Greater(t, rate, 15*qos.Mbit)
}
