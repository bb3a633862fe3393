package status

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"ringway/appliance/problem"
	"ringway/qos"
	"ringway/tunnel"
)

// maxSites bounds how many sites the text lists for one class, WAN or table: a hub has hundreds, and `--json` has all.
const maxSites = 10

// Print writes the status as text. now is the time that ages are counted from.
func (s Status) Print(w io.Writer, now time.Time) error {
	state := "starting"
	if s.Ready {
		state = "up"
	}
	fmt.Fprintf(w, "site %s: %s for %s (ringway %s, pid %d, %s)\n",
		s.Site, state, age(now, s.Since), s.Build, s.PID, s.Config)
	if s.Confirmation != nil {
		fmt.Fprintln(w, s.Confirmation)
	}
	printProblems(w, s.Problems, now)

	if err := s.printTunnels(w, now); err != nil {
		return err
	}
	if err := s.printQueues(w); err != nil {
		return err
	}
	if line := packets(s.Drops); line != "" {
		fmt.Fprintf(w, "\nDropped by policy: %s\n", line)
	}
	for _, c := range s.Closed {
		fmt.Fprintf(w, "\nClosed: %s left the config and is reached again in %s\n", c.Network, age(c.Until, now))
	}
	if line := reasons(s.Unread); line != "0" {
		fmt.Fprintf(w, "\nSignalling of phones that is not read, by new connections: %s\n", line)
	}
	s.printComponents(w)

	for i, m := range s.Missing {
		if i == 0 {
			fmt.Fprintf(w, "\nThis machine lacks:\n")
		}
		fmt.Fprintf(w, "  %s: %s\n", m.Name, m.Cost)
	}
	return nil
}

func printProblems(w io.Writer, problems []problem.Problem, now time.Time) {
	for _, p := range problems {
		text := p.Text
		if name := p.Name(); name != "" {
			text = name + ": " + text
		}
		fmt.Fprintf(w, "PROBLEM: %s\n", text)

		note := string(p.Severity)
		if !p.Since.IsZero() {
			note += " for " + age(now, p.Since)
		}
		if p.Action != "" {
			note += "; what to do: " + p.Action
		}
		fmt.Fprintf(w, "         (%s)\n", note)
	}
}

func (s Status) printTunnels(w io.Writer, now time.Time) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "\nTUNNEL\tSITE\tENDPOINT\tHANDSHAKE\tRECEIVED (PACKETS)\tSENT (PACKETS)\tDROPS\n")
	for _, t := range s.Tunnels {
		name := fmt.Sprintf("%s (%s, %s)", t.Class, t.Interface, t.Engine)
		drops := reasons(t.Drops)
		if len(t.Peers) == 0 {
			fmt.Fprintf(tw, "%s\t-\t\t\t\t\t%s\n", name, drops)
		}

		for _, p := range t.Peers {
			endpoint, handshake := "none yet", "never"
			if p.Endpoint.IsValid() {
				endpoint = p.Endpoint.String()
			}
			if !p.LastHandshake.IsZero() {
				handshake = age(now, p.LastHandshake) + " ago"
			}
			fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", name, siteName(p), endpoint, handshake,
				traffic(p.RxBytes, p.RxPackets), traffic(p.TxBytes, p.TxPackets), drops)
			name, drops = "", "" // they are the tunnel's: on its first line only
		}
	}
	if err := tw.Flush(); err != nil {
		return err
	}

	for _, line := range mtus(s.Tunnels) {
		fmt.Fprintln(w, line)
	}
	for _, t := range s.Tunnels {
		if t.Queue != nil {
			fmt.Fprintln(w, flowQueues(t.Class, *t.Queue))
		}
	}
	for _, line := range calls(s.Tunnels, s.readsSignalling()) {
		fmt.Fprintln(w, line)
	}
	return nil
}

// mtus says how long packets in each tunnel may be, a line for sites that have the same.
func mtus(tunnels []tunnel.DeviceStatus) (lines []string) {
	type key struct {
		class tunnel.Class
		mtu   int
		why   string
	}
	sites := map[key][]string{}
	var keys []key
	for _, t := range tunnels {
		for _, p := range t.Peers {
			k := key{t.Class, p.MTU, p.MTUSource}
			if p.MTU == 0 {
				continue
			}
			if sites[k] == nil {
				keys = append(keys, k)
			}
			sites[k] = append(sites[k], siteName(p))
		}
	}
	for _, k := range keys {
		names := sites[k]
		to := strings.Join(names[:min(len(names), maxSites)], ", ")
		if more := len(names) - maxSites; more > 0 {
			to += fmt.Sprintf(" and %d more", more)
		}
		lines = append(lines, fmt.Sprintf("MTU (%s): %d to %s, as %s", k.class, k.mtu, to, k.why))
	}
	return lines
}

func flowQueues(c tunnel.Class, q tunnel.FlowStatus) string {
	line := fmt.Sprintf("Flow queues (%s): queued packets %d, active flows %d, ECN-marked packets since start %d",
		c, q.Packets, q.Flows, q.Marked)
	if q.SlowSites > 0 {
		line += fmt.Sprintf("; %d sites limited by their own downlink", q.SlowSites)
	}
	if q.Note != "" {
		line += "; " + q.Note
	}
	return line
}

// readsSignalling reports whether the signalling of calls is read.
func (s Status) readsSignalling() bool {
	calls, ok := Section[struct {
		Reading bool `json:"reading"`
	}](s, "calls")
	return ok && calls.Reading
}

// calls lists what calls use of the voice budget of each site, the busiest sites only. Where signalling is read, what
// it does not explain is guessed: media whose signalling cannot be read, as TLS without a certificate for it.
func calls(tunnels []tunnel.DeviceStatus, read bool) (lines []string) {
	var busy []tunnel.PeerStatus
	for _, t := range tunnels {
		for _, p := range t.Peers {
			if p.Media != nil && (p.Media.Flows > 0 || p.Media.Refusing) {
				busy = append(busy, p)
			}
		}
	}
	slices.SortStableFunc(busy, func(a, b tunnel.PeerStatus) int { return cmp.Compare(b.Media.Taken, a.Media.Taken) })

	for _, p := range busy[:min(len(busy), maxSites)] {
		m := p.Media
		line := fmt.Sprintf("Calls to %s: %d media flows use %d of %d kbit/s",
			siteName(p), m.Flows, m.Taken/1000, m.Budget/1000)
		if guessed := m.Flows - m.Reserved; read && guessed > 0 {
			line += fmt.Sprintf(", %d of them guessed by their DSCP", guessed)
		}
		if m.Refusing {
			line += "; new calls are refused"
		}
		lines = append(lines, line)
	}
	return lines
}

func (s Status) printQueues(w io.Writer) error {
	if len(s.Queues) == 0 {
		return nil
	}

	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "\nINTERFACE\tCLASS\tGUARANTEED\tCEILING\tSENT (PACKETS)\tBACKLOG (PACKETS)\tDROPS\n")
	for _, r := range queueRows(s.Queues) {
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%d\n", r.WAN, r.name, r.Rate.About(), r.Ceil.About(),
			traffic(uint64(r.Sent), r.SentPackets), traffic(uint64(r.Backlog), r.BacklogPackets), r.Drops)
	}
	if err := tw.Flush(); err != nil {
		return err
	}

	fmt.Fprintf(w, "Queue types: %s\n", s.QueueFeatures.Leaves())
	return nil
}

// queueRow is one row of the table of queues: the sum of a class on a WAN, or, below it, one site's part.
type queueRow struct {
	qos.QueueStats
	name string
}

// queueRows sums the queues up by WAN and class. Where a class has several sites, those that sent most follow its row.
func queueRows(queues []qos.QueueStats) (rows []queueRow) {
	type key struct {
		wan   string
		class qos.ClassName
	}
	var wans []string
	members := map[key][]qos.QueueStats{}
	for _, q := range queues {
		if !slices.Contains(wans, q.WAN) {
			wans = append(wans, q.WAN)
		}
		k := key{q.WAN, q.Class}
		members[k] = append(members[k], q)
	}

	classes := append(slices.Clone(qos.ClassNames), qos.ClassDownlink)
	for _, wan := range wans {
		for _, class := range classes {
			if m := members[key{wan, class}]; len(m) > 0 {
				rows = append(rows, classRows(m)...)
			}
		}
	}
	return rows
}

// classRows returns the sum of one class's queues on a WAN, then the busiest of them.
func classRows(members []qos.QueueStats) []queueRow {
	sum := queueRow{qos.QueueStats{WAN: members[0].WAN, Class: members[0].Class}, string(members[0].Class)}
	for _, q := range members {
		sum.Rate += q.Rate
		sum.Ceil = max(sum.Ceil, q.Ceil) // sites share one ceiling
		sum.Limit += q.Limit
		sum.Sent += q.Sent
		sum.SentPackets += q.SentPackets
		sum.Backlog += q.Backlog
		sum.BacklogPackets += q.BacklogPackets
		sum.Drops += q.Drops
		sum.Overlimits += q.Overlimits
		sum.Borrowed += q.Borrowed
	}
	rows := []queueRow{sum}
	if len(members) == 1 {
		return rows
	}

	busy := slices.Clone(members)
	slices.SortStableFunc(busy, func(a, b qos.QueueStats) int { return cmp.Compare(b.Sent, a.Sent) })
	for _, q := range busy[:min(len(busy), maxSites)] {
		q.WAN = "" // the row of the sum has it
		rows = append(rows, queueRow{q, "  " + q.Site})
	}
	return rows
}

func (s Status) printComponents(w io.Writer) {
	first := true
	for _, c := range s.Components {
		if c.Text == "" {
			continue
		}
		if first {
			fmt.Fprintln(w)
			first = false
		}
		fmt.Fprintln(w, c.Text)
	}
}

func siteName(p tunnel.PeerStatus) string { return cmp.Or(p.Site, p.PublicKey.String()) }

func age(now, t time.Time) string {
	if t.IsZero() {
		return "?"
	}
	return duration(now.Sub(t))
}

// duration is d to the second, without units that are zero at the end: 3d4h rather than 76h0m12s.
func duration(d time.Duration) string {
	d = max(d, 0).Round(time.Second)
	const day = 24 * time.Hour
	switch {
	case d >= day:
		return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
	case d >= time.Hour:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	case d >= time.Minute:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	}
	return d.String()
}

// reasons lists counters of dropped packets that are not zero, by reason.
func reasons(drops map[string]uint64) string {
	var out []string
	for _, reason := range slices.Sorted(maps.Keys(drops)) {
		if drops[reason] > 0 {
			out = append(out, fmt.Sprintf("%s %d", reason, drops[reason]))
		}
	}
	return cmp.Or(strings.Join(out, ", "), "0")
}

func packets(counts map[string]Count) string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		if counts[name].Packets > 0 {
			out = append(out, fmt.Sprintf("%s %d", name, counts[name].Packets))
		}
	}
	return strings.Join(out, ", ")
}

func traffic(bytes, packets uint64) string {
	s := byteSize(bytes)
	if packets > 0 {
		s += fmt.Sprintf(" (%d)", packets)
	}
	return s
}

func byteSize(bytes uint64) string {
	v, unit := float64(bytes), "B"
	for _, larger := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if v < 1024 {
			break
		}
		v, unit = v/1024, larger
	}
	if v == float64(int64(v)) {
		return fmt.Sprintf("%d %s", int64(v), unit)
	}
	return fmt.Sprintf("%.1f %s", v, unit)
}
