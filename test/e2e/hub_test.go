package e2e

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
	"ringway/test/lab"
	"ringway/test/polltest"
	"ringway/tunnel"
)

// hubSites is how many sites a hub has, munich among them.
const hubSites = 500

// hub makes edge-a a hub: munich, and 499 sites that dial in and never do. Each has a queue of its own. It
// gives the config, and how long the daemon took from nothing to ready.
func hub(tb testing.TB, l *lab.Lab) (text string, took time.Duration) {
	tb.Helper()
	e := l.Edge("a")
	small, err := e.Config()
	require.NoError(tb, err)
	var b strings.Builder
	b.WriteString("sites:\n")
	for i := range hubSites - 1 {
		key, err := tunnel.NewPrivateKey()
		require.NoError(tb, err)
		fmt.Fprintf(
			&b, "  - {name: branch-%d, public_key: %s, downlink: 20mbit, voice_networks: 10.%d.%d.0/24, "+
				"data_networks: 10.%d.%d.0/24}\n",
			i, key.Public(), 100+i/250, i%250, 110+i/250, i%250)
	}
	text = strings.Replace(string(small), "sites:\n", b.String(), 1)
	require.NotEqual(tb, string(small), text)
	_, err = e.Ringway(tb.Context(), "stop")
	require.NoError(tb, err)
	require.NoError(tb, e.WriteConfig([]byte(text)))
	began := time.Now()
	require.NoError(tb, e.Start(tb.Context()))
	polltest.Require(tb, func() bool { s, err := e.Status(tb.Context()); return err == nil && s.Ready },
		30*time.Second, 20*time.Millisecond)
	return text, time.Since(began)
}

// resident is how much memory a process of the lab holds, in bytes, by the kernel's count (VmRSS, proc(5)).
func resident(tb testing.TB, e *lab.Edge, pid int) qos.ByteCount {
	tb.Helper()
	out, err := e.Run(tb.Context(), "cat", fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(tb, err)
	m := regexp.MustCompile(`(?m)^VmRSS:\s+(\d+) kB$`).FindStringSubmatch(out)
	require.NotNil(tb, m, out)
	n, err := strconv.Atoi(m[1])
	require.NoError(tb, err)
	return qos.ByteCount(n) * 1024
}

var classLine = regexp.MustCompile(`^class htb (1:[0-9a-f]+) (?:root|parent (1:[0-9a-f]+))`)

// classes are a device's HTB classes as tc prints them, by handle, and each one's parent.
func classes(t *testing.T, e *lab.Edge) (lines, parents map[string]string) {
	t.Helper()
	out, err := e.Run(t.Context(), "tc", "class", "show", "dev", "wan0")
	require.NoError(t, err)
	lines, parents = map[string]string{}, map[string]string{}
	for line := range strings.Lines(out) {
		if m := classLine.FindStringSubmatch(line); m != nil {
			lines[m[1]], parents[m[1]] = line, m[2]
		}
	}
	return lines, parents
}

// mediaTo is how many packets of calls the queue of a site sent.
func mediaTo(t *testing.T, e *lab.Edge, site string) (packets int) {
	t.Helper()
	out, err := e.StatusJSON(t.Context())
	require.NoError(t, err)
	var s struct {
		Queues []struct {
			Site, Class string
			Sent        int `json:"sent_packets"`
		}
	}
	require.NoError(t, json.Unmarshal(out, &s))
	for _, q := range s.Queues {
		if q.Site == site && q.Class == string(qos.Media) {
			return q.Sent
		}
	}
	t.Fatalf("no queue of %s", site)
	return 0
}

// One site of 500 gets another rate while another one's calls are up: its classes change, in place, and
// nothing else does. Applied twice, nothing is written.
func TestLongOneSiteOfAHubChanges(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: qos.Gbit})
	e := l.Edge("a")
	text, _ := hub(t, l)
	require.NoError(t, l.Host(lab.PhoneA).WaitReach(within(t, 30*time.Second), "10.2.10.10", "0xb8"))
	out, err := e.Ringway(within(t, 20*time.Second), "reload")
	require.NoError(t, err)
	assert.Equal(t, "nothing to change\n", out)

	calls := talking(t, l, 4, 10*time.Second)
	was, parents := classes(t, e)
	require.Len(t, was, 2+4+5*hubSites, "the root, local internet and the sites")
	sent := mediaTo(t, e, "munich")
	other := regexp.MustCompile(`(branch-7, .*downlink: )20mbit`).ReplaceAllString(text, "${1}30mbit")
	require.NotEqual(t, text, other)
	require.NoError(t, e.WriteConfig([]byte(other)))
	out, err = e.Ringway(within(t, 20*time.Second), "reload")
	require.NoError(t, err)
	for line := range strings.Lines(out) {
		assert.Regexp(t, `^(tc (class|qdisc) change |# rw-voice: calls are admitted up to )`, line,
			"the queues alone, in place, and the budget of calls")
	}
	is, now := classes(t, e)
	assert.Equal(t, parents, now)
	changed := map[string]bool{}
	for handle, line := range is {
		if was[handle] != line {
			changed[handle] = true
		}
	}
	sites := map[string]bool{}
	for handle := range changed {
		if changed[parents[handle]] {
			handle = parents[handle]
		}
		sites[handle] = true
	}
	assert.Len(t, sites, 1, "one site's class, and what hangs from it")
	assert.NotContains(t, sites, "1:1")
	t.Logf("%d of %d classes changed", len(changed), len(is))
	out, err = e.Ringway(within(t, 20*time.Second), "reload")
	require.NoError(t, err)
	assert.Equal(t, "nothing to change\n", out)
	calls.unharmed()
	assert.Greater(t, mediaTo(t, e, "munich"), sent, "its counters go on")
}

// What a hub of 500 sites takes: the start from nothing (target 3 s), one site's rate by `ringway reload`,
// memory of the daemon and its planes. The kernel's part alone is qos/tc's BenchmarkHub.
func BenchmarkHub(b *testing.B) {
	l, err := lab.New(b.Context(), lab.Options{Binary: ringway, Helper: helper, WireGuardGo: wireguardGo, WAN: qos.Gbit})
	require.NoError(b, err)
	defer l.Close()
	e := l.Edge("a")
	text, took := hub(b, l)
	other := regexp.MustCompile(`(branch-7, .*downlink: )20mbit`).ReplaceAllString(text, "${1}30mbit")
	i := 0
	for b.Loop() {
		i++
		require.NoError(b, e.WriteConfig([]byte([]string{text, other}[i%2])))
		_, err := e.Ringway(b.Context(), "reload")
		require.NoError(b, err)
	}
	s, err := e.Status(b.Context())
	require.NoError(b, err)
	b.ReportMetric(took.Seconds(), "s/start")
	b.ReportMetric(float64(resident(b, e, s.PID))/(1<<20), "MiB/daemon")
	for _, c := range tunnel.Classes {
		d, ok := s.Tunnel(c)
		require.True(b, ok)
		b.ReportMetric(float64(resident(b, e, d.PlanePID))/(1<<20), fmt.Sprintf("MiB/%s-plane", c))
	}
}
