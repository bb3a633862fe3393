package e2e

import (
	"encoding/json"
	"fmt"
	"io"
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

// Metrics of a live box: a packet that an engine drops shows up with its reason, on the socket and over HTTP,
// and HTTP answers the box and data networks, here and at the site, and nobody else.
func TestMetrics(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty})
	a := l.Edge("a")
	config, err := a.Config()
	require.NoError(t, err)
	require.NoError(t, a.WriteConfig(append(config, "\ncontrol: {metrics: [127.0.0.1:9586, 10.1.20.1:9586]}\n"...)))
	_, err = a.Ringway(t.Context(), "reload")
	require.NoError(t, err)
	polltest.Require(t, func() bool {
		out, err := a.Ringway(t.Context(), "status")
		return err == nil && strings.Contains(out, "Metrics for Prometheus: http://127.0.0.1:9586/metrics, http://10.1.20.1:9586/metrics\n")
	}, 10*time.Second, 50*time.Millisecond)

	scrape := func() string {
		t.Helper()
		out, err := a.Ringway(t.Context(), "status", "--metrics")
		require.NoError(t, err)
		return out
	}
	sample := func(text, name string) float64 {
		t.Helper()
		m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(name) + ` (\S+)$`).FindStringSubmatch(text)
		require.NotNil(t, m, "no %s in\n%s", name, text)
		v, err := strconv.ParseFloat(m[1], 64)
		require.NoError(t, err)
		return v
	}
	drops := func(class, reason string) string {
		return fmt.Sprintf(`ringway_tunnel_dropped_packets_total{reason=%q,tunnel=%q}`, reason, class)
	}
	before := scrape()
	assert.Zero(t, sample(before, drops("voice", "garbage")), "the counter is there before the first drop")
	for _, class := range []string{"voice", "data"} {
		assert.EqualValues(t, 1, sample(before, fmt.Sprintf(`ringway_tunnel_up{tunnel=%q}`, class)))
		assert.InDelta(t, time.Now().Unix(), sample(before, fmt.Sprintf(
			`ringway_peer_last_handshake_timestamp_seconds{site="munich",tunnel=%q}`, class)), 180)
	}
	st := status(t, a)
	voice, _ := st.Tunnel(tunnel.Voice)
	require.GreaterOrEqual(t, len(voice.Threads), 2)
	names := map[string]bool{}
	for _, th := range voice.Threads {
		if now := sample(before, fmt.Sprintf(`ringway_tunnel_thread_realtime{thread=%q,tunnel="voice"}`,
			th.Name)); !th.Realtime {
			assert.Zero(t, now, "one of %s is not", th.Name)
		}
		names[th.Name] = true
		policy, err := a.Run(t.Context(), "chrt", "-p", strconv.Itoa(th.TID))
		require.NoError(t, err)
		assert.Equal(t, th.Realtime, strings.Contains(policy, "SCHED_FIFO"), policy)
	}
	assert.Len(t, names, 2, "in and out")

	// What a stranger sends to the voice tunnel's port is garbage, forty times; to the data tunnel's, five.
	_, err = l.Host(lab.Provider).Run(t.Context(), "perl", "-MSocket", "-e",
		`socket(S,PF_INET,SOCK_DGRAM,0); for $p ([51820,40],[51821,5]) { send(S,"\xff"x64,0,sockaddr_in($$p[0],inet_aton("`+edgeA+`"))) for 1..$$p[1] }`)
	require.NoError(t, err)
	polltest.Require(t, func() bool {
		now := scrape()
		return sample(now, drops("voice", "garbage")) == 40 && sample(now, drops("data", "garbage")) == 5
	}, 10*time.Second, 100*time.Millisecond)
	table, err := a.Ringway(t.Context(), "status")
	require.NoError(t, err)
	assert.Contains(t, table, "garbage 40", "the same number")

	get := func(host *lab.Host, url string) error {
		_, err := host.Run(t.Context(), "curl", "-sSf", "--max-time", "3", "--noproxy", "*", "-o", "/dev/null", url)
		return err
	}
	const inside = "http://10.1.20.1:9586/metrics"
	for _, from := range []string{lab.PCA, lab.PCB} {
		assert.NoError(t, get(l.Host(from), inside), from)
	}
	assert.NoError(t, get(a.Host, inside))
	assert.NoError(t, get(a.Host, "http://127.0.0.1:9586/metrics"))
	for _, from := range []string{lab.PhoneA, lab.PhoneB, lab.Provider} {
		for _, to := range []string{inside, "http://10.1.10.1:9586/metrics", "http://" + edgeA + ":9586/metrics"} {
			assert.Error(t, get(l.Host(from), to), "%s to %s", from, to)
		}
	}
}

// The queues while a call and a flood go through them: what they send now, what waits, what they drop.
func TestQueuesNow(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty})
	a := l.Edge("a")
	bulk, err := l.Pair(lab.Ringway).StartBulk(t.Context(), lab.BulkUDP)
	require.NoError(t, err)
	defer bulk.Kill()
	var v struct {
		Site   string
		Queues []struct {
			WAN, Class, Site         string
			Now, Guaranteed, Ceiling float64
			Backlog                  float64
			Wait                     float64 `json:"wait_ns"`
			Borrowed                 float64 `json:"borrowed_per_second"`
		}
	}
	polltest.Require(t, func() bool { // the flood needs a moment to begin
		out, err := a.Ringway(t.Context(), "status", "--queues", "--json", "--once", "--interval", "500ms")
		if err != nil || json.Unmarshal([]byte(out), &v) != nil || len(v.Queues) != 10 {
			return false
		}
		data := v.Queues[6]
		return data.Class == "data" && data.Site == "munich" && data.Now > 0.8*data.Ceiling
	}, 20*time.Second, 100*time.Millisecond, "%+v", v)
	assert.Equal(t, "berlin", v.Site)
	assert.Equal(t, "local", v.Queues[2].Site, "what goes to no site stands before the sites")
	data := v.Queues[6]
	assert.Less(t, data.Now, 1.1*data.Ceiling)
	assert.Equal(t, 19_400_000.0, data.Ceiling)
	assert.Greater(t, data.Guaranteed, 2_000_000.0, "what the budgets leave to data")
	assert.InDelta(t, data.Backlog*8/data.Guaranteed*1e9, data.Wait, 1000)
	assert.Positive(t, data.Borrowed, "beyond its own rate, since nobody else sends")

	table, err := a.Ringway(t.Context(), "status", "--queues")
	require.NoError(t, err, "not a terminal: one table, and an end")
	assert.Regexp(
		t, `^ +WAN +CLASS +SITE +RATE +GUARANTEED +CEILING +BACKLOG +WAIT +DROPS +DROPS/S +BORROWED/S\n( +wan0 +(media|signalling|data|background) +(local|munich) .*\n){8}( +(voice0|data0) +downlink +wan0 .*\n){2}$`, table)
	t.Log("\n" + table)

	// Followed: a line of JSON for each look, and a terminal that is drawn again. Ctrl-C ends either with success.
	follow := []string{"status", "--queues", "--interval", "200ms"}
	lines := untilInterrupted(t, a, "\n", false, append(follow, "--json")...)
	for line := range strings.Lines(lines) {
		require.NoError(t, json.Unmarshal([]byte(line), &v), line)
		assert.Len(t, v.Queues, 10)
	}
	screen := untilInterrupted(t, a, "\x1b[H\x1b[2J", true, follow...)
	assert.Greater(t, strings.Count(screen, "BORROWED/S"), 3)
}

// untilInterrupted runs the program on an edge until its output has a mark five times, interrupts it, and returns the
// output. With terminal it runs on one, where the interrupt is a Ctrl-C that is typed.
func untilInterrupted(t *testing.T, e *lab.Edge, mark string, terminal bool, args ...string) string {
	t.Helper()
	cmd := e.Host.Command(ringway, args...)
	if terminal {
		// exec: a shell that stays is ended by the Ctrl-C too, and script returns its 130.
		cmd = e.Host.Command("script", "-qec", "exec "+strings.Join(append([]string{ringway}, args...), " "), "/dev/null")
	}
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, e.Host.Start(cmd))
	hung := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer hung.Stop()

	var text strings.Builder
	buf := make([]byte, 64<<10)
	for strings.Count(text.String(), mark) < 5 {
		n, err := out.Read(buf)
		text.Write(buf[:n])
		require.NoError(t, err, text.String())
	}
	if terminal {
		_, err = in.Write([]byte{3})
	} else {
		err = cmd.Process.Signal(os.Interrupt)
	}
	require.NoError(t, err)
	rest, err := io.ReadAll(out)
	require.NoError(t, err)
	require.NoError(t, cmd.Wait())
	return text.String() + string(rest)
}
