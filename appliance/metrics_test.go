package appliance

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/netip"
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

	"ringway/appliance/calls"
	"ringway/appliance/dial"
	"ringway/appliance/exposition"
	"ringway/appliance/keychannel"
	"ringway/appliance/lease"
	"ringway/appliance/line"
	rekey "ringway/appliance/media"
	"ringway/appliance/metered"
	"ringway/appliance/metrics"
	"ringway/appliance/problem"
	"ringway/appliance/reflector"
	"ringway/appliance/status"
	"ringway/appliance/unmarked"
	"ringway/firewall"
	"ringway/process/priority"
	"ringway/qos"
	"ringway/sip/admission"
	"ringway/sip/relay"
	"ringway/srtp/dtls"
	"ringway/srtp/media"
	"ringway/srtp/plane"
	"ringway/stamp"
	"ringway/tunnel"
	"ringway/tunnel/kernel"
	"ringway/tunnel/realtime"
	"ringway/tunnel/wireguardgo"
	"ringway/units"
)

var engineReasons = map[tunnel.EngineName][]string{
	tunnel.EngineRealtime:    realtime.Reasons(),
	tunnel.EngineWireGuardGo: wireguardgo.Reasons(),
}

// lineAddress is that of the WAN in the status.
var lineAddress = netip.MustParseAddr("198.51.100.7")

// exposed is what Prometheus gets of st from a daemon, parsed as Prometheus does.
func exposed(t *testing.T, st status.Status) (string, map[string]*dto.MetricFamily) {
	t.Helper()
	w := httptest.NewRecorder()
	handler := exposition.Handler(slog.New(slog.DiscardHandler), collectorOf(st))
	handler.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	require.Equal(t, http.StatusOK, w.Code, "%s", w.Body)
	assert.Contains(t, w.Header().Get("Content-Type"), "text/plain; version=0.0.4")
	text := w.Body.String()
	p := expfmt.NewTextParser(model.LegacyValidation)
	got, err := p.TextToMetricFamilies(strings.NewReader(text))
	require.NoError(t, err, "%s", text)
	return text, got
}

// collectorOf is a daemon's collector of a status that is always st.
func collectorOf(st status.Status) *exposition.Collector {
	d := &Daemon{opts: Options{Build: st.Build, Reasons: engineReasons}, log: slog.New(slog.DiscardHandler)}
	var err error
	if d.media, err = d.newMedia(); err != nil {
		panic(err)
	}
	d.components = d.newComponents()
	c := d.newExposition()
	c.Status = func(context.Context) (status.Status, error) { return st, nil }
	return c
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
func busy() status.Status {
	next := uint64(1000)
	n := func() uint64 { next++; return next }
	at := func() time.Time { return time.Unix(int64(1_700_000_000+n()), 0).UTC() }
	counts := func(names ...string) map[string]status.Count {
		out := map[string]status.Count{}
		for _, name := range names {
			out[name] = status.Count{Packets: n(), Bytes: n()}
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
	rate := func() units.BitRate { return units.BitRate(n()) }
	peer := func(site string, packets bool) tunnel.PeerStatus {
		p := tunnel.PeerStatus{Site: site, LastHandshake: at(), RxBytes: n(), TxBytes: n(),
			Keepalive: time.Duration(n()), MTU: int(n()), MTUSource: "default"}
		if packets {
			p.RxPackets, p.TxPackets = n(), n()
			p.RoundTrip = time.Duration(n()) * time.Second
			p.PathMTU = int(n())
			p.Paths = []tunnel.PathStatus{
				{
					Source: lineAddress, Used: true, State: tunnel.PathUp, RoundTrip: time.Duration(n()) * time.Second,
					MTU: int(n()),
				},
				{Source: lineAddress, State: tunnel.PathSilent}, // twice, as a plane that was taken over may say
				{Source: netip.MustParseAddr("192.0.2.99"), State: tunnel.PathUp},
			}
			for i := range p.Paths {
				p.Paths[i].Remote = netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 51820)
			}
			p.Copies = &tunnel.CopiesStatus{
				When: tunnel.CopiesAlways, Sent: n(), Unsent: n(), Removed: n(), By: lineAddress,
			}
			p.Media = &tunnel.MediaStatus{
				Budget: rate(), LineBudget: rate(), Taken: rate(),
				Flows: int(n()), Reserved: int(n()), Refused: n(), Refusing: true, LineFull: true,
			}
		}
		return p
	}
	st := status.Status{
		Site: "berlin", Build: "1.2.3", PID: int(n()), Since: at(), Ready: true,
		Problems: []problem.Problem{{Text: "one", Since: at()}, {Text: "two", Since: at()}},
		QueueFeatures: qos.Features{
			HTB: true, TBF: true, BFIFO: true, FQCoDel: true, Cake: true, FQ: true, Prio: true, IFB: true, Ingress: true,
		},
		Missing: []status.Missing{{Name: "fq_codel", Cost: "costs"},
			{Name: "real-time for the voice plane", Cost: "costs"}},
		Reconcile: status.Rounds{Runs: n(), Failed: n(), Changes: n(), Last: at()},
		Drops:     counts(firewall.DropCounters()...),
		Classes:   map[string]status.Count{},
		Unread:    drops(firewall.UnreadSignalling()),
	}
	probes := reflector.Status{Devices: []string{"rw-voice"}, Port: 862,
		Stats: stamp.Stats{Answered: n(), Sessions: int(n()), Drops: map[stamp.Reason]uint64{}}}
	for _, r := range stamp.Reasons {
		probes.Drops[r] = n()
	}
	st.Sections = status.Sections{
		"reflector": probes,
		"calls": calls.Status{
			Mode: "enforce", Reading: true, PID: int(n()), Restarts: int(n()), Flows: int(n()), Holes: int(n()),
			KeyChannels: int(n()),
			NotOpen:     drops([]string{"port", "network"}),
			Abuse:       drops([]string{"scan"}),
			Places:      int(n()), NoPlace: drops([]string{"site_budget"}),
			Media: calls.MediaStatus{
				Measured: true, Series: [2]int{int(n()), int(n())}, Beyond: n(),
				Sites: []calls.MediaTotal{
					{Site: "munich", Out: true, Packets: n(), Lost: drops([]string{"line"})},
					{Site: "munich", Packets: n(), Lost: drops([]string{"unknown"})},
				},
			},
			Certificates: map[string]time.Time{"pbx": at()},
			Stats: relay.Stats{
				Encrypted: int(n()),
				TLS: []relay.TLSServer{{
					Name: "pbx", Read: n(), Failed: drops([]string{relay.TLSUnverified}), At: at(), Why: relay.TLSUnverified,
				}},
				Calls: int(n()), Connections: int(n()), Messages: n(), LateFlows: n(), Beyond: n(),
				Unread: drops([]string{"keep_alive"}), Refused: drops([]string{"foreign_hop"}),
				Mirrored: n(), Unmirrored: n(), Relayed: int(n()), MediaPorts: int(n()), NoMediaPorts: n(), Barred: int(n()),
				NoMedia:   &relay.NoMedia{At: at(), What: "srtp_refused", Reason: "no SRTP"},
				Transport: drops([]string{"udp_passed", "tcp_accepted"}), Phones: int(n()),
				Budgets: []admission.Budget{{
					Where: admission.Where{Site: "munich", Line: "wan0"}, Limit: rate(), Taken: rate(), Other: rate(),
					Places: int(n()),
				}},
			},
		},
		rekey.Name: rekey.Status{
			Wanted: true, Running: true, Refused: n(),
			Status: plane.Status{
				PID: int(n()), Build: "1.2.2", Since: at(), Restarts: int(n()), Adopted: true, Pairs: int(n()),
				Threads: []priority.Thread{{Name: "rw-fwd", TID: int(n()), Realtime: true}},
				Alarm:   plane.Alarm{Lost: int(n()), Silent: int(n()), At: at()}, LogDropped: n(),
				Stats: plane.Stats{
					Drops: drops(media.Reasons()),
					Totals: media.Totals{
						ReceivedPackets: n(), ReceivedBytes: n(), SentPackets: n(), SentBytes: n(), Rotations: n(),
						Recovered: n(), Moved: n(),
					},
					DTLS: dtls.Counters{
						Started: n(), Rejected: n(), Established: n(), Failed: n(), Overflow: n(), UnknownLeg: n(),
						Unauthenticated: n(), Unexpected: n(), WrongCookie: n(), LegLimited: n(), SourceLimited: n(),
						RateLimited: n(), Full: n(), QueueFull: n(), Late: n(),
					},
					Legs: []plane.LegStats{{
						ID: n(), Pair: n(), Keying: plane.SDES, Keyed: true, ReceivedPackets: n(), ReceivedBytes: n(),
						SentPackets: n(), SentBytes: n(), LastReceived: at(), Recovered: n(), Moved: n(), Rotations: n(),
						Drops: drops([]string{"forged"}), Sealed: n(), SendMKI: "0a0b0c0d",
						Opened: drops([]string{"0a0b0c0d"}), Remote: netip.MustParseAddrPort("10.1.10.10:30000"),
					}},
				},
			},
		},
		keychannel.Name: keychannel.Status{Strangers: n(), Sites: []keychannel.SiteStatus{{
			Site: "munich", Up: true, Dials: true, Legs: int(n()), Sending: int(n()), Rotations: n(), KeysOffered: n(),
			KeysTaken: n(), KeysRefused: n(), RefusedThere: n(),
		}}},
		"lines": line.Status{{Interface: "wan0", Carrier: true, Since: at(), Addresses: []netip.Addr{lineAddress}}},
		"pppoe": dial.Status{{Interface: "ppp-wan1", State: "up", Since: at(), Dials: int(n())}},
		unmarked.Name: unmarked.Status{Found: n(), Beyond: n(), Flows: []unmarked.Flow{
			{PerSecond: 50.5, First: at(), Last: at()}, {PerSecond: 50.5, First: at(), Last: at(), Dropped: true},
		}},
		"metered": metered.Status{{Interface: "wan0", Start: at(), Used: 1e9, Budget: 5e9}},
		"leases": lease.Status{{
			Interface: "wan0", Address: netip.MustParsePrefix("198.51.100.7/24"), Expiry: at(), WantsPrefix: true,
		}},
	}
	queue := func(wan, site string, c qos.ClassName) qos.QueueStats {
		return qos.QueueStats{
			WAN: wan, Site: site, Class: c, Rate: rate(), Ceil: rate(), Limit: qos.ByteCount(n()),
			Backlog: qos.ByteCount(n()), BacklogPackets: n(), Sent: qos.ByteCount(n()), SentPackets: n(),
			Drops: n(), Overlimits: n(), Borrowed: n(),
		}
	}
	for _, c := range qos.ClassNames {
		st.Classes[string(c)] = status.Count{Packets: n(), Bytes: n()}
		q, marks := queue("wan0", "munich", c), n()
		q.Marks = &marks
		st.Queues = append(st.Queues, q)
	}
	st.Queues = append(st.Queues, queue("data0", "wan0", qos.ClassDownlink))

	st.Tunnels = []tunnel.DeviceStatus{
		{
			Class: tunnel.Voice, Interface: "rw-voice", Engine: tunnel.EngineRealtime, ListenPort: 51820,
			PlanePID: int(n()), PlaneLogDropped: n(), PlaneBuild: "1.2.2", Since: at(), Restarts: int(n()), Adopted: true,
			Drops: drops(realtime.Reasons()), Collections: n(),
			Threads: []tunnel.ThreadStatus{
				{Name: "rw-fwd-in", TID: int(n()), Realtime: true},
				{Name: "rw-fwd-out", TID: int(n())},
				{Name: "rw-fwd-out", TID: int(n()), Realtime: true},
			},
			Peers: []tunnel.PeerStatus{peer("munich", true), peer("hamburg", true)},
		},
		{
			Class: tunnel.Data, Interface: "rw-data", Engine: tunnel.EngineWireGuardGo, ListenPort: 51821,
			PlanePID: int(n()), PlaneLogDropped: n(), Since: at(), Restarts: int(n()), Drops: drops(wireguardgo.Reasons()),
			Queue: &tunnel.FlowStatus{
				Packets: n(), Bytes: n(), Flows: int(n()), Marked: n(), Limit: n(), SlowSites: int(n()), Note: "blind",
			},
			Peers: []tunnel.PeerStatus{peer("munich", true)},
		},
	}
	return st
}

// Names, types, units and help are as Prometheus' own linter wants them.
func TestMetricsPassTheLinter(t *testing.T) {
	text, got := exposed(t, busy())
	problems, err := promlint.New(strings.NewReader(text)).Lint()
	require.NoError(t, err)
	assert.Empty(t, problems)
	c := collectorOf(busy())
	for _, f := range c.Families() {
		assert.Contains(t, got, f.Name)
	}
	assert.Len(t, got, len(c.Families()))
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(c)
	_, err = r.Gather()
	assert.NoError(t, err, "every metric is described, and none comes twice")
}

// Whatever number the status has, the metrics have: a field that is added there and not here fails.
func TestEveryNumberOfTheStatusIsAMetric(t *testing.T) {
	leftOut := regexp.MustCompile(`^(pid|calls/pid|calls/tls/\d+/at|calls/no_media/at|problems/\d+/since|reflector/port|` +
		`media/(pid|since|alarm/at|threads/\d+/tid|legs/.*)|` + // a label for each leg would be endless
		`unmarked_media/flows/\d+/(first|last|packets_per_second)|` + // a label for each flow would be endless
		`tunnels/\d+/(plane_pid|listen_port|threads/\d+/tid|peers/\d+/keepalive_ns))$`)
	st := busy()
	assertNoZero(t, reflect.ValueOf(st), "")
	assertNoZero(t, reflect.ValueOf(st.Tunnels[1].Queue), "tunnels/1/queue") // the first has none
	_, got := exposed(t, st)
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
			if number = v; strings.HasSuffix(path, "/round_trip_ns") {
				number /= 1e9
			}
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

// assertNoZero checks that busy is what it says: a number that is added to the status must be set there, or this test
// would not look for it.
func assertNoZero(t *testing.T, v reflect.Value, path string) {
	t.Helper()
	if _, is := v.Interface().(time.Time); is {
		assert.False(t, v.IsZero(), path)
		return
	}
	switch v.Kind() {
	case reflect.Interface:
		assertNoZero(t, v.Elem(), path)
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

// Every reason of every engine has its counter before the first packet is dropped, so that an alert on its
// increase sees the first.
func TestEveryDropReasonHasACounter(t *testing.T) {
	all := maps.Clone(engineReasons)
	all[tunnel.EngineKernel] = kernel.Reasons()
	for engine, reasons := range all {
		require.NotEmpty(t, reasons)
		_, got := exposed(t, status.Status{Tunnels: []tunnel.DeviceStatus{{Class: tunnel.Voice, Engine: engine}}})
		for _, r := range reasons {
			assert.Zero(t, value(t, got, "ringway_tunnel_dropped_packets_total", "reason="+r+" tunnel=voice"))
		}
		assert.Len(t, got["ringway_tunnel_dropped_packets_total"].Metric, len(reasons)+1)
		for i, r := range reasons {
			drops := map[string]uint64{r: uint64(i + 1)}
			st := status.Status{Tunnels: []tunnel.DeviceStatus{{Class: tunnel.Voice, Engine: engine, Drops: drops}}}
			_, got := exposed(t, st)
			assert.EqualValues(t, i+1, value(t, got, "ringway_tunnel_dropped_packets_total", "reason="+r+" tunnel=voice"))
		}
	}
	_, got := exposed(t, busy())
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
	_, honest := exposed(t, st)
	for i := range 1000 {
		st.Tunnels[0].Drops[fmt.Sprintf("reason-%d", i)] = 2
		st.Tunnels[0].Peers = append(st.Tunnels[0].Peers,
			tunnel.PeerStatus{RxBytes: 1}, tunnel.PeerStatus{Site: "munich", RxBytes: 1})
	}
	st.Tunnels[0].Drops["\xff\n\""] = 1
	st.Tunnels[0].PlaneBuild = strings.Repeat("\xff\n", 1000)
	st.Missing = append(st.Missing, st.Missing[0])
	_, got := exposed(t, st)
	assert.Equal(t, count(honest), count(got))
	assert.EqualValues(t, 2001, value(t, got, "ringway_tunnel_dropped_packets_total", "reason=other tunnel=voice"))
	const received, munich = "ringway_peer_receive_bytes_total", "site=munich tunnel=voice"
	assert.Equal(t, value(t, honest, received, munich), value(t, got, received, munich))
}

// A tunnel that cannot be read has no counters that went back to zero.
func TestATunnelThatIsDownHasNoCounters(t *testing.T) {
	st := busy()
	st.Tunnels[0] = tunnel.DeviceStatus{Class: tunnel.Voice, Error: "plane voice is not running", Restarts: 3}
	_, got := exposed(t, st)
	assert.Zero(t, value(t, got, "ringway_tunnel_up", "tunnel=voice"))
	assert.EqualValues(t, 1, value(t, got, "ringway_tunnel_up", "tunnel=data"))
	assert.EqualValues(t, 3, value(t, got, "ringway_tunnel_plane_restarts_total", "tunnel=voice"))
	for _, m := range got["ringway_tunnel_dropped_packets_total"].Metric {
		assert.NotEqual(t, "voice", m.Label[1].GetValue())
	}
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
	text, got := exposed(t, st)
	assert.Len(t, got["ringway_peer_receive_bytes_total"].Metric, 2048)
	assert.Less(t, len(text), 2<<20)
}

var documented = regexp.MustCompile("(?m)^\\| `(ringway_[a-z_]+)` \\| (counter|gauge) \\| ([a-z_, ]*)\\| (.*) \\|$")

// docs/metrics.md has every metric with its type, labels and help, every reason, and nothing that does not exist.
func TestEveryMetricIsDocumented(t *testing.T) {
	page, err := os.ReadFile("../docs/metrics.md")
	require.NoError(t, err)
	have, said := map[string]string{}, map[string]string{}
	for _, m := range documented.FindAllStringSubmatch(string(page), -1) {
		have[m[1]] = m[2] + " " + strings.TrimSpace(m[3])
		said[m[1]] = m[4]
	}
	want := map[string]string{}
	for _, f := range collectorOf(busy()).Families() {
		want[f.Name] = string(f.Kind) + " " + strings.Join(f.Labels, ", ")
		assert.True(t, strings.HasPrefix(said[f.Name], f.Help), "%s: %q does not begin with %q", f.Name,
			said[f.Name], f.Help)
	}
	assert.Equal(t, want, have)
	reasons := slices.Concat(realtime.Reasons(), wireguardgo.Reasons(), kernel.Reasons(), firewall.DropCounters())
	reasons = append(append(reasons, firewall.UnreadSignalling()...), metrics.OtherReason)
	for _, r := range stamp.Reasons {
		reasons = append(reasons, string(r))
	}
	for _, r := range reasons {
		assert.Contains(t, string(page), "`"+r+"`")
	}
}
