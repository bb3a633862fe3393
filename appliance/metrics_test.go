package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/firewall"
	"ringway/qos"
	"ringway/stamp"
	"ringway/tunnel"
	"ringway/tunnel/kernel"
	"ringway/tunnel/realtime"
	"ringway/tunnel/wireguardgo"
)

var engineReasons = map[tunnel.EngineName][]string{tunnel.EngineRealtime: realtime.Reasons(), tunnel.EngineWireGuardGo: wireguardgo.Reasons()}

// exposition is what Prometheus gets of st, parsed as Prometheus does.
func exposition(t *testing.T, c *collector) (string, map[string]*dto.MetricFamily) {
	t.Helper()
	if c.now == nil {
		c.now = time.Now
	}
	if c.reasons == nil {
		c.reasons = engineReasons
	}
	w := httptest.NewRecorder()
	metricsHandler(slog.New(slog.DiscardHandler), c).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	require.Equal(t, http.StatusOK, w.Code, "%s", w.Body)
	assert.Contains(t, w.Header().Get("Content-Type"), "text/plain; version=0.0.4")
	text := w.Body.String()
	p := expfmt.NewTextParser(model.LegacyValidation)
	got, err := p.TextToMetricFamilies(strings.NewReader(text))
	require.NoError(t, err, "%s", text)
	return text, got
}

func always(st Status) *collector {
	return &collector{build: st.Build, status: func(context.Context) (Status, error) { return st, nil }}
}

// value finds the sample with just these labels ("tunnel=voice site=munich").
func value(t *testing.T, got map[string]*dto.MetricFamily, name, labels string) float64 {
	t.Helper()
	f := got[name]
	require.NotNil(t, f, "no %s", name)
	for _, m := range f.Metric {
		var have []string
		for _, l := range m.Label {
			if l.GetValue() != "" {
				have = append(have, l.GetName()+"="+l.GetValue())
			}
		}
		if strings.Join(have, " ") == labels {
			return m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	require.Fail(t, "no sample", "%s{%s}", name, labels)
	return 0
}

// busy is a status in which every number is there and none is as another.
func busy() Status {
	next := uint64(1000)
	n := func() uint64 { next++; return next }
	at := func() time.Time { return time.Unix(int64(1_700_000_000+n()), 0).UTC() }
	counts := func(names ...string) map[string]Count {
		out := map[string]Count{}
		for _, name := range names {
			out[name] = Count{Packets: n(), Bytes: n()}
		}
		return out
	}
	drops := func(reasons []string) map[string]uint64 {
		out := map[string]uint64{}
		for _, r := range reasons {
			out[r] = n()
		}
		return out
	}
	peer := func(site string, packets bool) tunnel.PeerStatus {
		p := tunnel.PeerStatus{Site: site, LastHandshake: at(), RxBytes: n(), TxBytes: n(), Keepalive: time.Duration(n())}
		if packets {
			p.RxPackets, p.TxPackets = n(), n()
			p.Media = &tunnel.MediaStatus{Budget: n(), LineBudget: n(), Taken: n(), Flows: int(n()), Refused: n(), Refusing: true, LineFull: true}
		}
		return p
	}
	st := Status{Site: "berlin", Build: "1.2.3", PID: int(n()), Since: at(), Ready: true, Problems: []string{"one", "two"},
		Leaves:    qos.Features{HTB: true, TBF: true, BFIFO: true, FQCoDel: true, Cake: true, FQ: true, Prio: true, IFB: true, Ingress: true},
		Features:  []FeatureStatus{{"fq_codel", "costs"}, {"real-time for the voice plane", "costs"}},
		Reconcile: Rounds{Runs: n(), Failed: n(), Changes: n(), Last: at()},
		Drops:     counts(firewall.DropCounters()...), Classes: map[string]Count{},
		Reflector: ReflectorStatus{Devices: []string{"rw-voice"}, Port: 862, Stats: stamp.Stats{Answered: n(), Sessions: int(n()), Drops: map[stamp.Reason]uint64{}}}}
	for _, r := range stamp.Reasons {
		st.Reflector.Drops[r] = n()
	}
	for _, c := range qos.ClassNames {
		st.Classes[string(c)] = Count{Packets: n(), Bytes: n()}
		marks := n()
		st.Queues = append(st.Queues, qos.QueueStats{WAN: "wan0", Site: "munich", Class: c, Marks: &marks, Rate: qos.BitRate(n()), Ceil: qos.BitRate(n()), Limit: qos.ByteCount(n()), Backlog: qos.ByteCount(n()),
			BacklogPackets: n(), Sent: qos.ByteCount(n()), SentPackets: n(), Drops: n(), Overlimits: n(), Borrowed: n()})
	}
	st.Queues = append(st.Queues, qos.QueueStats{WAN: "data0", Site: "wan0", Class: qos.ClassDownlink, Rate: qos.BitRate(n()), Ceil: qos.BitRate(n()), Limit: qos.ByteCount(n()), Backlog: qos.ByteCount(n()),
		BacklogPackets: n(), Sent: qos.ByteCount(n()), SentPackets: n(), Drops: n(), Overlimits: n(), Borrowed: n()})
	st.Tunnels = []tunnel.DeviceStatus{
		{Class: tunnel.Voice, Interface: "rw-voice", Engine: tunnel.EngineRealtime, ListenPort: 51820, PlanePID: int(n()), PlaneBuild: "1.2.2", Since: at(), Restarts: int(n()), Adopted: true,
			Drops: drops(realtime.Reasons()), Collections: n(), Threads: []tunnel.ThreadStatus{{Name: "rw-fwd-in", TID: int(n()), Realtime: true}, {Name: "rw-fwd-out", TID: int(n())}, {Name: "rw-fwd-out", TID: int(n()), Realtime: true}},
			Peers: []tunnel.PeerStatus{peer("munich", true), peer("hamburg", true)}},
		{Class: tunnel.Data, Interface: "rw-data", Engine: tunnel.EngineWireGuardGo, ListenPort: 51821, PlanePID: int(n()), Since: at(), Restarts: int(n()),
			Drops: drops(wireguardgo.Reasons()), Queue: &tunnel.FlowStatus{Packets: n(), Bytes: n(), Flows: int(n()), Marked: n(), Limit: n(), SlowSites: int(n()), Note: "blind"}, Peers: []tunnel.PeerStatus{peer("munich", true)}},
	}
	return st
}

// Names, types, units and help are as Prometheus' own linter wants them.
func TestMetricsPassTheLinter(t *testing.T) {
	text, got := exposition(t, always(busy()))
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	require.NoError(t, err)
	assert.Empty(t, problems)
	for _, f := range metricFamilies {
		assert.Contains(t, got, f.name)
	}
	assert.Len(t, got, len(metricFamilies))
	r := prometheus.NewPedanticRegistry()
	c := always(busy())
	c.now, c.reasons = time.Now, engineReasons
	r.MustRegister(c)
	_, err = r.Gather()
	assert.NoError(t, err, "every metric is described, and none comes twice")
}

// Whatever number the status has, the metrics have: a field that is added there and not here fails.
func TestEveryNumberOfTheStatusIsAMetric(t *testing.T) {
	leftOut := regexp.MustCompile(`^(pid|tunnels/\d+/(plane_pid|listen_port)|tunnels/\d+/threads/\d+/tid|tunnels/\d+/peers/\d+/keepalive_ns|reflector/port)$`)
	st := busy()
	assertNoZero(t, reflect.ValueOf(st), "")
	assertNoZero(t, reflect.ValueOf(st.Tunnels[1].Queue), "tunnels/1/queue") // the first has none
	_, got := exposition(t, always(st))
	have := map[float64]bool{}
	for name, f := range got {
		for _, m := range f.Metric {
			v := m.GetCounter().GetValue() + m.GetGauge().GetValue()
			if strings.HasSuffix(name, "_bytes_per_second") {
				v *= 8
			}
			have[v] = true
		}
	}
	b, err := json.Marshal(st)
	require.NoError(t, err)
	var tree any
	require.NoError(t, json.Unmarshal(b, &tree))
	numbers := 0
	var walk func(v any, path string)
	walk = func(v any, path string) {
		path = strings.TrimPrefix(path, "/")
		number := 0.0
		switch v := v.(type) {
		case map[string]any:
			for k, e := range v {
				walk(e, path+"/"+k)
			}
			return
		case []any:
			for i, e := range v {
				walk(e, fmt.Sprintf("%s/%d", path, i))
			}
			return
		case float64:
			number = v
		case string:
			at, err := time.Parse(time.RFC3339, v)
			if err != nil {
				return
			}
			number = float64(at.Unix())
		default:
			return
		}
		numbers++
		assert.Equal(t, !leftOut.MatchString(path), have[number], "%s = %g", path, number)
	}
	walk(tree, "")
	assert.Greater(t, numbers, 130)
}

// assertNoZero holds busy to what it says: a number that is added to the status is set there, or would not be looked for.
func assertNoZero(t *testing.T, v reflect.Value, path string) {
	t.Helper()
	if _, is := v.Interface().(time.Time); is {
		assert.False(t, v.IsZero(), path)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for f, e := range v.Fields() {
			if f.IsExported() {
				assertNoZero(t, e, path+"/"+f.Name)
			}
		}
	case reflect.Pointer:
		if !v.IsNil() {
			assertNoZero(t, v.Elem(), path)
		}
	case reflect.Slice:
		if v.Len() > 0 { // of several tunnels, queues, peers, the first has everything
			assertNoZero(t, v.Index(0), path)
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			assertNoZero(t, v.MapIndex(k), fmt.Sprintf("%s/%v", path, k))
		}
	default:
		if v.CanInt() || v.CanUint() || v.CanFloat() {
			if v.Type() != reflect.TypeFor[byte]() && !strings.Contains(path, "Endpoint") {
				assert.False(t, v.IsZero(), path)
			}
		}
	}
}

// Every reason of every engine has its counter before the first packet is dropped, so that an alert on its increase sees the first.
func TestEveryDropReasonHasACounter(t *testing.T) {
	for engine, reasons := range map[tunnel.EngineName][]string{tunnel.EngineRealtime: realtime.Reasons(), tunnel.EngineWireGuardGo: wireguardgo.Reasons(), tunnel.EngineKernel: kernel.Reasons()} {
		require.NotEmpty(t, reasons)
		_, got := exposition(t, always(Status{Tunnels: []tunnel.DeviceStatus{{Class: tunnel.Voice, Engine: engine}}}))
		for _, r := range reasons {
			assert.Zero(t, value(t, got, "ringway_tunnel_dropped_packets_total", "reason="+r+" tunnel=voice"))
		}
		assert.Len(t, got["ringway_tunnel_dropped_packets_total"].Metric, len(reasons)+1)
		for i, r := range reasons {
			drops := map[string]uint64{r: uint64(i + 1)}
			_, got := exposition(t, always(Status{Tunnels: []tunnel.DeviceStatus{{Class: tunnel.Voice, Engine: engine, Drops: drops}}}))
			assert.EqualValues(t, i+1, value(t, got, "ringway_tunnel_dropped_packets_total", "reason="+r+" tunnel=voice"))
		}
	}
	_, got := exposition(t, always(busy()))
	for _, r := range stamp.Reasons {
		assert.Positive(t, value(t, got, "ringway_reflector_dropped_packets_total", "reason="+string(r)))
	}
	for _, r := range firewall.DropCounters() {
		assert.Positive(t, value(t, got, "ringway_policy_dropped_packets_total", "reason="+r))
	}
}

// A plane that somebody took over says what it wants, and adds no series with it.
func TestAPlaneAddsNoSeries(t *testing.T) {
	st := busy()
	count := func(got map[string]*dto.MetricFamily) (n int) {
		for _, f := range got {
			n += len(f.Metric)
		}
		return n
	}
	_, honest := exposition(t, always(st))
	for i := range 1000 {
		st.Tunnels[0].Drops[fmt.Sprintf("reason-%d", i)] = 2
		st.Tunnels[0].Peers = append(st.Tunnels[0].Peers, tunnel.PeerStatus{RxBytes: 1}, tunnel.PeerStatus{Site: "munich", RxBytes: 1})
	}
	st.Tunnels[0].Drops["\xff\n\""] = 1
	st.Tunnels[0].PlaneBuild = strings.Repeat("\xff\n", 1000)
	st.Features = append(st.Features, st.Features[0])
	_, got := exposition(t, always(st))
	assert.Equal(t, count(honest), count(got))
	assert.EqualValues(t, 2001, value(t, got, "ringway_tunnel_dropped_packets_total", "reason=other tunnel=voice"))
	assert.Equal(t, value(t, honest, "ringway_peer_receive_bytes_total", "site=munich tunnel=voice"), value(t, got, "ringway_peer_receive_bytes_total", "site=munich tunnel=voice"))
}

// A status that cannot be read is a number, too; a tunnel that cannot be read has no counters that went back to zero.
func TestWhatCannotBeReadIsNoEndOfTheExposition(t *testing.T) {
	for _, read := range []func(context.Context) (Status, error){
		func(context.Context) (Status, error) { return Status{}, errors.New("no") },
		func(context.Context) (Status, error) { panic("a mistake of ours") },
	} {
		_, got := exposition(t, &collector{build: "1.2.3", status: read})
		assert.Zero(t, value(t, got, "ringway_scrape_success", ""))
		assert.Contains(t, got, "ringway_build_info")
		assert.Len(t, got, 2)
	}
	st := busy()
	st.Tunnels[0] = tunnel.DeviceStatus{Class: tunnel.Voice, Error: "plane voice does not run", Restarts: 3}
	_, got := exposition(t, always(st))
	assert.Zero(t, value(t, got, "ringway_tunnel_up", "tunnel=voice"))
	assert.EqualValues(t, 1, value(t, got, "ringway_tunnel_up", "tunnel=data"))
	assert.EqualValues(t, 3, value(t, got, "ringway_tunnel_plane_restarts_total", "tunnel=voice"))
	for _, m := range got["ringway_tunnel_dropped_packets_total"].Metric {
		assert.NotEqual(t, "voice", m.Label[1].GetValue())
	}
}

// Who asks all the time makes no garbage in a plane beyond one reading a second.
func TestScrapesShareAReading(t *testing.T) {
	reads, now := 0, time.Now()
	c := &collector{now: func() time.Time { return now }, status: func(context.Context) (Status, error) { reads++; return Status{}, nil }}
	for range 5 {
		exposition(t, c)
	}
	assert.Equal(t, 1, reads)
	now = now.Add(scrapesApart - 1)
	exposition(t, c)
	assert.Equal(t, 1, reads)
	now = now.Add(1)
	exposition(t, c)
	assert.Equal(t, 2, reads)
}

// The most that a config can name.
func TestAThousandSites(t *testing.T) {
	st := busy()
	for i := range st.Tunnels {
		st.Tunnels[i].Peers = nil
		for n := range 1024 {
			st.Tunnels[i].Peers = append(st.Tunnels[i].Peers, tunnel.PeerStatus{Site: fmt.Sprintf("site-%d", n), RxBytes: 1})
		}
	}
	text, got := exposition(t, always(st))
	assert.Len(t, got["ringway_peer_receive_bytes_total"].Metric, 2048)
	assert.Less(t, len(text), 2<<20)
}

var documented = regexp.MustCompile("(?m)^\\| `(ringway_[a-z_]+)` \\| (counter|gauge) \\| ([a-z_, ]*)\\|")

// docs/metrics.md has every metric with its type and labels, every reason, and nothing that is not there.
func TestEveryMetricIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/metrics.md")
	require.NoError(t, err)
	have := map[string]string{}
	for _, m := range documented.FindAllStringSubmatch(string(page), -1) {
		have[m[1]] = m[2] + " " + strings.TrimSpace(m[3])
	}
	want := map[string]string{}
	for _, f := range metricFamilies {
		kind := "gauge"
		if f.kind == prometheus.CounterValue {
			kind = "counter"
		}
		want[f.name] = kind + " " + strings.Join(f.labels, ", ")
	}
	assert.Equal(t, want, have)
	reasons := slices.Concat(realtime.Reasons(), wireguardgo.Reasons(), kernel.Reasons(), firewall.DropCounters(), []string{otherReason})
	for _, r := range stamp.Reasons {
		reasons = append(reasons, string(r))
	}
	for _, r := range reasons {
		assert.Contains(t, string(page), "`"+r+"`")
	}
}
