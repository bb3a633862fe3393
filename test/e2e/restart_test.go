package e2e

import (
	"bufio"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/lab"
	"ringway/test/lab/capture"
	"ringway/tunnel"
)

// The daemon of either edge is killed, restarted and replaced by the next version while calls are up: the planes
// forward on, the next daemon adopts them, and no packet of voice is lost.
func TestLongDaemonGoesAndComesBackInACall(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		end  func(t *testing.T, e *lab.Edge)
		next string // the program that is started afterwards
	}{
		{"killed", func(t *testing.T, e *lab.Edge) { require.NoError(t, e.Kill(within(t, 5*time.Second))) }, ""},
		{"restarted", func(t *testing.T, e *lab.Edge) { require.NoError(t, e.Terminate(within(t, 10*time.Second))) }, ""},
		{"upgraded", func(t *testing.T, e *lab.Edge) { require.NoError(t, e.Terminate(within(t, 10*time.Second))) }, upgraded},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := branches(t, lab.Options{WAN: twenty})
			before := map[string]lab.Status{"a": status(t, l.Edge("a")), "b": status(t, l.Edge("b"))}
			calls := talking(t, l, 4, 10*time.Second)
			for _, side := range []string{"a", "b"} {
				e := l.Edge(side)
				c.end(t, e)
				e.Binary = c.next
				require.NoError(t, e.Start(t.Context()))
				require.NoError(t, e.WaitReady(within(t, 10*time.Second)))
				after := status(t, e)
				assert.NotEqual(t, before[side].PID, after.PID)
				for _, class := range tunnel.Classes {
					was, _ := before[side].Tunnel(class)
					is, _ := after.Tunnel(class)
					assert.Equal(t, was.PlanePID, is.PlanePID, "%s plane of edge-%s", class, side)
					assert.True(t, is.Adopted, "%s plane of edge-%s", class, side)
				}
				if c.next != "" {
					assert.Equal(t, "1.1.0-test", after.Build)
				}
			}
			calls.unharmed()
		})
	}
}

// The planes themselves are replaced by those of the next version, on demand. It costs a moment, which is measured.
func TestPlanesAreUpgradedOnDemand(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty})
	e := l.Edge("a")
	require.NoError(t, e.Terminate(within(t, 10*time.Second)))
	e.Binary = upgraded
	require.NoError(t, e.Start(t.Context()))
	require.NoError(t, e.WaitReady(within(t, 10*time.Second)))
	was, _ := status(t, e).Tunnel(tunnel.Voice)
	assert.Equal(t, "1.0.0-test", was.PlaneBuild)

	calls := talking(t, l, 4, 6*time.Second)
	_, err := e.Ringway(within(t, 10*time.Second), "upgrade-planes", "voice")
	require.NoError(t, err)
	is, _ := status(t, e).Tunnel(tunnel.Voice)
	assert.Equal(t, "1.1.0-test", is.PlaneBuild)
	assert.NotEqual(t, was.PlanePID, is.PlanePID)
	h, result := calls.heard()
	assert.Equal(t, 4, result.Completed, result.Why)
	assert.Less(t, silence(h), time.Second)
	sent, lost := count(h)
	t.Logf("replacing the voice plane: %d of %d voice packets lost, silence of %s", lost, sent, silence(h))
}

// Data dies, calls stay, and data is back by itself.
func TestDataPlaneKilledInACall(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty})
	calls := talking(t, l, 4, 8*time.Second)
	data := pinging(t, l, 5*time.Second)
	plane, _ := status(t, l.Edge("a")).Tunnel(tunnel.Data)
	killProcess(t, l.Host(lab.EdgeA), plane.PlanePID)
	gap := data.longestGap()
	assert.Less(t, gap, 2*time.Second, "data was away")
	t.Logf("data was away for %s", gap)
	calls.unharmed()
	is, _ := status(t, l.Edge("a")).Tunnel(tunnel.Data)
	assert.NotEqual(t, plane.PlanePID, is.PlanePID)
	assert.Equal(t, 1, is.Restarts)
}

// The voice plane is killed at a hub whose far site dials in: no configuration knows where that site is, and it
// does not know that it has to call. Once as the daemon started it, once as a later daemon adopted it.
func TestTimedVoicePlaneKilledInACall(t *testing.T) {
	for _, adopted := range []bool{false, true} {
		t.Run(map[bool]string{false: "fresh", true: "adopted"}[adopted], func(t *testing.T) {
			l := branches(t, lab.Options{WAN: twenty, EdgeConfig: farSiteDialsIn})
			hub := l.Edge("a")
			if adopted {
				require.NoError(t, hub.Kill(within(t, 5*time.Second)))
				require.NoError(t, hub.Start(t.Context()))
				require.NoError(t, hub.WaitReady(within(t, 10*time.Second)))
			}
			plane, _ := status(t, hub).Tunnel(tunnel.Voice)
			require.Equal(t, adopted, plane.Adopted)
			calls := talking(t, l, 4, 6*time.Second)
			killProcess(t, hub.Host, plane.PlanePID)
			h, result := calls.heard()
			sent, lost := count(h)
			t.Logf("%d of %d voice packets lost, silence of %s", lost, sent, silence(h))
			assert.Less(t, silence(h), time.Second)
			assert.Equal(t, 4, result.Completed, result.Why)
		})
	}
}

// farSiteDialsIn makes berlin a hub that does not know munich's address.
func farSiteDialsIn(site string, values map[string]string) {
	if site == "berlin" {
		values["sites[munich].endpoint"] = ""
	}
}

// The far end goes altogether, as in a reboot: daemon, planes, tunnels, keys in memory. Voice is back five
// seconds after it is.
func TestLongFarEndRestarted(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, side string
		config     func(string, map[string]string)
	}{
		{"both know each other", "b", nil},
		{"a site that dials in", "b", farSiteDialsIn},
		{"the hub that it dials", "a", farSiteDialsIn},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := branches(t, lab.Options{WAN: twenty, EdgeConfig: c.config})
			calls := talking(t, l, 2, 14*time.Second)
			e := l.Edge(c.side)
			_, err := e.Ringway(within(t, 15*time.Second), "stop")
			require.NoError(t, err)
			back := time.Now()
			require.NoError(t, e.Start(t.Context()))
			h, result := calls.heard()
			assert.Equal(t, 2, result.Completed, result.Why)
			for name, d := range map[string]capture.Direction{"a to b": h.AToB, "b to a": h.BToA} {
				for _, s := range d.Streams {
					took := time.Duration(-1)
					for _, p := range s.Packets {
						if sent := time.Unix(0, int64(p.Sent)); !p.Lost && sent.After(back) {
							took = sent.Sub(back)
							break
						}
					}
					t.Logf("%s: voice again after %s", name, took)
					assert.GreaterOrEqual(t, took, time.Duration(0), "%s: no voice after the restart", name)
					assert.Less(t, took, 5*time.Second, name)
				}
			}
		})
	}
}

// pings is a ping in class data that goes on.
type pings struct {
	t     *testing.T
	until time.Time
	done  chan struct{}
	out   string
	err   error
}

// pinging begins to ping from pc-a to pc-b, fifty times a second.
func pinging(t *testing.T, l *lab.Lab, length time.Duration) *pings {
	p := &pings{t: t, until: time.Now().Add(length), done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.out, p.err = l.Host(lab.PCA).Run(t.Context(), "ping", "-n", "-D", "-i", "0.02", "-w",
			strconv.Itoa(int(length/time.Second)), "10.2.20.10")
	}()
	return p
}

// answers waits for the end and gives each answer's time and the round trip it took.
func (p *pings) answers() (at []time.Duration, rtt []time.Duration) {
	p.t.Helper()
	<-p.done
	require.NoError(p.t, p.err)
	for lines := bufio.NewScanner(strings.NewReader(p.out)); lines.Scan(); {
		// [1795348436.086293] 64 bytes from 10.2.20.10: icmp_seq=1 ttl=62 time=0.409 ms
		stamp, rest, ok := strings.Cut(strings.TrimPrefix(lines.Text(), "["), "]")
		_, ms, found := strings.Cut(rest, "time=")
		if !ok || !found {
			continue
		}
		s, err := strconv.ParseFloat(stamp, 64)
		require.NoError(p.t, err)
		r, err := strconv.ParseFloat(strings.TrimSuffix(ms, " ms"), 64)
		require.NoError(p.t, err)
		at = append(at, time.Duration(s*float64(time.Second)))
		rtt = append(rtt, time.Duration(r*float64(time.Millisecond)))
	}
	require.NotEmpty(p.t, at, "no answer at all:\n%s", p.out)
	return at, rtt
}

func (p *pings) longestGap() time.Duration {
	at, _ := p.answers()
	gap := p.until.Sub(time.Unix(0, int64(at[len(at)-1])))
	for i := 1; i < len(at); i++ {
		gap = max(gap, at[i]-at[i-1])
	}
	return gap
}

// A reload in a call changes the difference alone; a bad file changes nothing.
func TestReloadInACall(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty})
	e := l.Edge("a")
	was := status(t, e)
	calls := talking(t, l, 4, 6*time.Second)
	good, err := e.Config()
	require.NoError(t, err)

	require.NoError(t, e.WriteConfig([]byte("site: berlin\nnonsense: true\n")))
	_, err = e.Ringway(t.Context(), "reload")
	require.ErrorContains(t, err, "nonsense")

	require.NoError(t, e.WriteConfig([]byte(strings.Replace(string(good), "uplink: 20mbit", "uplink: 18mbit", 1))))
	out, err := e.Ringway(t.Context(), "reload")
	require.NoError(t, err)
	assert.Contains(t, out, "tc class")
	assert.NotRegexp(t, "(?m)^(ip (link|rule|route) (add|del)|tc (qdisc|class) (add|del|replace))", out)
	out, err = e.Ringway(t.Context(), "reload")
	require.NoError(t, err)
	assert.Equal(t, "nothing to change\n", out)
	is := status(t, e)
	for _, class := range tunnel.Classes {
		a, _ := was.Tunnel(class)
		b, _ := is.Tunnel(class)
		assert.Equal(t, a.PlanePID, b.PlanePID)
	}
	calls.unharmed()
}

// What the start found is what the stop leaves, also where media is re-keyed.
func TestStopLeavesWhatStartFound(t *testing.T) {
	t.Parallel()
	for name, o := range map[string]lab.Options{
		"tunnels": {WAN: twenty},
		"SRTP":    {WAN: twenty, Identities: true, EdgeConfig: rekeying("require", nil)},
	} {
		t.Run(name, func(t *testing.T) { stopsAsItFound(t, o) })
	}
}

func stopsAsItFound(t *testing.T, o lab.Options) {
	l := branches(t, o)
	e := l.Edge("a")
	stop := func() string {
		_, err := e.Ringway(within(t, 15*time.Second), "stop")
		require.NoError(t, err)
		var b strings.Builder
		for _, c := range []string{"ip -o -d link", "ip -o addr", "ip rule", "ip -6 rule",
			"ip route show table all", "nft list ruleset", "tc qdisc", "sysctl -a --pattern " +
				"ipv[46].*(forward|rp_filter|redirects|source_route|src_valid)"} {
			out, err := e.Run(t.Context(), strings.Fields(c)[0], strings.Fields(c)[1:]...)
			require.NoError(t, err)
			b.WriteString("# " + c + "\n" + out)
		}
		for _, dir := range []string{"/run/ringway", "/run/wireguard"} {
			entries, err := os.ReadDir(e.Path(dir))
			if err == nil {
				for _, f := range entries {
					b.WriteString(dir + "/" + f.Name() + "\n")
				}
			}
		}
		return b.String()
	}
	first := stop()
	assert.NotContains(t, first, "rw-")
	assert.NotContains(t, first, "ringway")
	assert.NotRegexp(t, `\b52(00|10|20|30|71|72|73)\b`, first, "a rule or a table of ours")
	assert.Contains(t, first, "net.ipv4.ip_forward = 0\n")
	assert.NotContains(t, first, "10.1.10.1/24")
	require.NoError(t, e.Start(t.Context()))
	require.NoError(t, e.WaitReady(within(t, 15*time.Second)))
	assert.Equal(t, first, stop())
}
