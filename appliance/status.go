package appliance

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"ringway/appliance/config"
	"ringway/firewall/nft"
	"ringway/qos"
	"ringway/qos/tc"
	"ringway/tunnel"
)

// Status is what `ringway status --json` prints. Fields are added, never renamed.
type Status struct {
	Site      string                `json:"site"`
	Build     string                `json:"build"`
	Config    string                `json:"config"`
	PID       int                   `json:"pid"`
	Since     time.Time             `json:"since"`
	Ready     bool                  `json:"ready"`
	Tunnels   []tunnel.DeviceStatus `json:"tunnels"`
	Queues    []qos.QueueStats      `json:"queues"`
	Leaves    qos.Features          `json:"queue_features"` // what this kernel has for queues
	Drops     map[string]Count      `json:"drops"`          // packets that policy dropped, by reason (named counters of table inet ringway)
	Classes   map[string]Count      `json:"classes"`        // packets put into each class
	Reflector ReflectorStatus       `json:"reflector"`      // probes from sites
	Reconcile Rounds                `json:"reconcile"`      // how often the kernel was compared with the config
	Metrics   []string              `json:"metrics"`        // addresses on which Prometheus is answered
	Features  []FeatureStatus       `json:"features"`       // what the kernel lacks or denies, and what that costs
	Problems  []string              `json:"problems"`       // what is wrong now

	Confirmation *ConfirmationStatus `json:"confirmation,omitempty"` // a config that waits for `ringway confirm`, or did in vain
}

// Rounds counts comparisons of the kernel with the config, since the daemon started.
type Rounds struct {
	Runs    uint64    `json:"runs"`
	Failed  uint64    `json:"failed"`  // those in which something could not be set
	Changes uint64    `json:"changes"` // what was set, in commands of ip, nft, tc and wg
	Last    time.Time `json:"last"`    // end of the latest
}

// Count is a counter.
type Count struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// FeatureStatus is something that the kernel lacks, or that the machine denies the daemon.
type FeatureStatus struct {
	Name string `json:"name"`
	Cost string `json:"cost"`
}

// Print writes the status for a person.
func (s Status) Print(w io.Writer, now time.Time) error {
	state := "starting"
	if s.Ready {
		state = "up"
	}
	fmt.Fprintf(w, "site %s: %s for %s (ringway %s, pid %d, %s)\n", s.Site, state, ago(now, s.Since), s.Build, s.PID, s.Config)
	if s.Confirmation != nil {
		fmt.Fprintln(w, s.Confirmation)
	}
	for _, p := range s.Problems {
		fmt.Fprintf(w, "PROBLEM: %s\n", p)
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "\nTUNNEL\tSITE\tENDPOINT\tHANDSHAKE\tRECEIVED\tSENT\tDROPS\n")
	for _, t := range s.Tunnels {
		name := fmt.Sprintf("%s (%s, %s)", t.Class, t.Interface, t.Engine)
		drops := reasons(t.Drops)
		if len(t.Peers) == 0 {
			fmt.Fprintf(tw, "%s\t-\t\t\t\t\t%s\n", name, drops)
		}
		for _, p := range t.Peers {
			endpoint, shake := "dials in", "never"
			if p.Endpoint.IsValid() {
				endpoint = p.Endpoint.String()
			}
			if !p.LastHandshake.IsZero() {
				shake = ago(now, p.LastHandshake) + " ago"
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", name, cmp.Or(p.Site, p.PublicKey.String()), endpoint, shake,
				traffic(p.RxBytes, p.RxPackets), traffic(p.TxBytes, p.TxPackets), drops)
			name, drops = "", ""
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for _, t := range s.Tunnels {
		if q := t.Queue; q != nil {
			line := fmt.Sprintf("Flow queues of %s: %d packets of %d flows wait; %d marked so far", t.Class, q.Packets, q.Flows, q.Marked)
			if q.SlowSites > 0 {
				line += fmt.Sprintf("; sites held to their own lines: %d", q.SlowSites)
			}
			if q.Note != "" {
				line += "; " + q.Note
			}
			fmt.Fprintln(w, line)
		}
	}
	for _, line := range callsNow(s.Tunnels) {
		fmt.Fprintln(w, line)
	}
	if len(s.Queues) > 0 {
		fmt.Fprintf(tw, "\nQUEUE\tCLASS\tRATE\tCEIL\tSENT\tBACKLOG\tDROPS\n")
		for _, q := range queueLines(s.Queues) {
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%d\n", q.WAN, q.name, q.Rate, q.Ceil,
				traffic(uint64(q.Sent), q.SentPackets), traffic(uint64(q.Backlog), q.BacklogPackets), q.Drops)
		}
		if err := tw.Flush(); err != nil {
			return err
		}
		fmt.Fprintf(w, "Leaves: %s\n", s.Leaves.Leaves())
	}
	if line := counts(s.Drops); line != "" {
		fmt.Fprintf(w, "\nDropped by policy: %s\n", line)
	}
	fmt.Fprintf(w, "\n%s\n", s.Reflector)
	if len(s.Metrics) > 0 {
		fmt.Fprintf(w, "Metrics for Prometheus: http://%s/metrics\n", strings.Join(s.Metrics, "/metrics, http://"))
	}
	for i, f := range s.Features {
		if i == 0 {
			fmt.Fprintf(w, "\nThis machine lacks:\n")
		}
		fmt.Fprintf(w, "  %s: %s\n", f.Name, f.Cost)
	}
	return nil
}

// queueLine is a line of the table of queues: all of a class on a WAN, or, beneath, one site's part of it.
type queueLine struct {
	qos.QueueStats
	name string
}

// busiest is how many sites stand beneath a class: who looks at a hub of hundreds wants `--json`, or a monitor.
const busiest = 10

// queueLines sums the queues up by WAN and class, with what goes to each site beneath where there are sites: those that sent
// most.
func queueLines(queues []qos.QueueStats) (out []queueLine) {
	var wans []string
	for _, q := range queues {
		if !slices.Contains(wans, q.WAN) {
			wans = append(wans, q.WAN)
		}
	}
	for _, wan := range wans {
		for _, class := range append(slices.Clone(qos.ClassNames), qos.ClassDownlink) {
			sum := queueLine{QueueStats: qos.QueueStats{WAN: wan, Class: class}, name: string(class)}
			var parts []queueLine
			for _, q := range queues {
				if q.WAN != wan || q.Class != class {
					continue
				}
				sum.Rate, sum.Ceil, sum.Limit = sum.Rate+q.Rate, max(sum.Ceil, q.Ceil), sum.Limit+q.Limit
				sum.Sent, sum.SentPackets = sum.Sent+q.Sent, sum.SentPackets+q.SentPackets
				sum.Backlog, sum.BacklogPackets = sum.Backlog+q.Backlog, sum.BacklogPackets+q.BacklogPackets
				sum.Drops, sum.Overlimits, sum.Borrowed = sum.Drops+q.Drops, sum.Overlimits+q.Overlimits, sum.Borrowed+q.Borrowed
				part := queueLine{q, "  " + q.Site}
				part.WAN = ""
				parts = append(parts, part)
			}
			if len(parts) == 0 {
				continue
			}
			out = append(out, sum)
			if len(parts) == 1 {
				continue
			}
			slices.SortStableFunc(parts, func(a, b queueLine) int { return cmp.Compare(b.Sent, a.Sent) })
			out = append(out, parts[:min(len(parts), busiest)]...)
		}
	}
	return out
}

// String is one line: where probes are answered, how many were, and what was not.
func (r ReflectorStatus) String() string {
	if len(r.Devices) == 0 {
		return "Probes from sites: not answered"
	}
	drops := map[string]uint64{}
	for k, n := range r.Drops {
		drops[string(k)] = n
	}
	return fmt.Sprintf("Probes from sites: answered on %s, UDP port %d; %d answers, %d sessions now; drops %s",
		strings.Join(r.Devices, ", "), r.Port, r.Answered, r.Sessions, reasons(drops))
}

func ago(now, t time.Time) string {
	if t.IsZero() {
		return "?"
	}
	return max(now.Sub(t), 0).Round(time.Second).String()
}

func reasons(drops map[string]uint64) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(drops)) {
		if drops[k] > 0 {
			out = append(out, fmt.Sprintf("%s %d", k, drops[k]))
		}
	}
	return cmp.Or(strings.Join(out, ", "), "0")
}

func counts(c map[string]Count) string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(c)) {
		if c[k].Packets > 0 {
			out = append(out, fmt.Sprintf("%s %d", k, c[k].Packets))
		}
	}
	return strings.Join(out, ", ")
}

func traffic(bytes, packets uint64) string {
	s := scaled(float64(bytes), "B", 1024, "KiB", "MiB", "GiB", "TiB")
	if packets > 0 {
		s += fmt.Sprintf(" (%d)", packets)
	}
	return s
}

func scaled(v float64, unit string, step float64, units ...string) string {
	for _, u := range units {
		if v < step {
			break
		}
		v, unit = v/step, u
	}
	if v == float64(int64(v)) {
		return fmt.Sprintf("%d %s", int64(v), unit)
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}

// callsNow says what calls with each site take of their budget, of those that take most.
func callsNow(tunnels []tunnel.DeviceStatus) (out []string) {
	var busy []tunnel.PeerStatus
	for _, t := range tunnels {
		for _, p := range t.Peers {
			if p.Media != nil && (p.Media.Flows > 0 || p.Media.Refusing) {
				busy = append(busy, p)
			}
		}
	}
	slices.SortStableFunc(busy, func(a, b tunnel.PeerStatus) int { return cmp.Compare(b.Media.Taken, a.Media.Taken) })
	for _, p := range busy[:min(len(busy), busiest)] {
		m := p.Media
		line := fmt.Sprintf("Calls to %s: %d flows of media take %d of %d kbit/s", cmp.Or(p.Site, p.PublicKey.String()), m.Flows, m.Taken/1000, m.Budget/1000)
		if m.Refusing {
			line += "; others are refused"
		}
		out = append(out, line)
	}
	return out
}

// unguarded says why calls are not admitted where they are meant to be.
func unguarded(cfg *config.Config) string {
	e := cfg.Tunnels[tunnel.Voice].Engine
	if e == tunnel.EngineAuto || e == "" {
		e = tunnel.Auto(tunnel.Voice, false)
	}
	shaped := slices.ContainsFunc(cfg.WANs, func(w config.WAN) bool { return w.Uplink > 0 })
	if e.PerPacket() || !shaped || !classNamed(cfg.Classes, qos.Media).Admission {
		return ""
	}
	return fmt.Sprintf("the voice tunnel's engine %s does not see single packets: of calls beyond the voice budget all lose their part (tunnels[voice].engine: realtime)", e)
}

// refusedCalls says which sites have no room for another call.
func refusedCalls(t tunnel.DeviceStatus) (out []string) {
	for _, p := range t.Peers {
		m := p.Media
		if m == nil || !m.Refusing {
			continue
		}
		what, rate := "the voice budget", m.Budget
		if m.LineFull {
			what, rate = "the voice budget of all sites together", m.LineBudget
		}
		out = append(out, fmt.Sprintf("calls to site %s are refused: %s, %d kbit/s, is full (%d flows of media are admitted and stay; more room: classes[media].share, or a codec that takes less)",
			cmp.Or(p.Site, p.PublicKey.String()), what, rate/1000, m.Flows))
	}
	return out
}

// addKernel reads the kernel's counters and says what it lacks.
func (s *Status) addKernel(cfg *config.Config, f facts) {
	for _, w := range cfg.WANs {
		if w.Uplink == 0 {
			s.Features = append(s.Features, FeatureStatus{"uplink rate of " + w.Interface, "not configured, so nothing is shaped: voice waits behind data in the provider's queue"})
		}
	}
	s.Leaves = f.queues
	var err error
	if s.Queues, err = wanQueues(cfg); err != nil {
		s.Problems = append(s.Problems, err.Error())
	}
	var wans []string
	for _, w := range cfg.WANs {
		wans = append(wans, w.Interface)
	}
	inwards, err := tc.DownlinkStats(cfg.Cards(), wans)
	if s.Queues = append(s.Queues, inwards...); err != nil {
		s.Problems = append(s.Problems, err.Error())
	}
	counters, err := nft.Counters()
	if err != nil {
		s.Problems = append(s.Problems, err.Error())
	}
	s.Drops, s.Classes = map[string]Count{}, map[string]Count{}
	for name, c := range counters {
		if class, ok := strings.CutPrefix(name, "class_"); ok {
			s.Classes[class] = Count{c.Packets, c.Bytes}
		} else {
			s.Drops[name] = Count{c.Packets, c.Bytes}
		}
	}
	for _, m := range f.queues.Missing() {
		name, cost, _ := strings.Cut(strings.TrimPrefix(m, "the kernel has no "), ": ")
		s.Features = append(s.Features, FeatureStatus{name, cost})
	}
	for _, m := range f.firewallMissing {
		s.Features = append(s.Features, FeatureStatus{"nftables " + string(m), m.Cost()})
	}
	if w := unguarded(cfg); w != "" {
		s.Features = append(s.Features, FeatureStatus{"admission of calls", w})
	}
	if !f.kernelWireGuard {
		s.Features = append(s.Features, FeatureStatus{"WireGuard in the kernel", "the data tunnel is encrypted by wireguard-go: more CPU a packet"})
	}
}
