package appliance

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"ringway/appliance/config"
	"ringway/qos"
	"ringway/qos/tc"
	"ringway/tunnel"
)

// QueuesNow is what the daemon says of the WANs' queues alone, for who asks a few times a second beside calls whose latency he measures: the
// status asks the voice plane, too, and each answer is garbage there.
type QueuesNow struct {
	Queues    []qos.QueueStats   `json:"queues"`          // of the WANs, as the status has them
	Flows     *tunnel.FlowStatus `json:"flows,omitempty"` // before the data tunnel's engine; nil: none
	FlowDrops uint64             `json:"flow_drops"`      // packets that they dropped, in all
}

// Queues reads the kernel's counters of the WANs' queues, and asks the data plane for its flow queues.
func (d *Daemon) Queues(ctx context.Context) (q QueuesNow, err error) {
	d.mu.Lock()
	cfg := d.cfg
	d.mu.Unlock()
	if q.Queues, err = wanQueues(cfg); err != nil {
		return q, err
	}
	data, err := d.slots[tunnel.Data].status(ctx)
	if err == nil {
		q.Flows, q.FlowDrops = data.Queue, data.Drops["queue_delay"]+data.Drops["queue_full"]
	}
	return q, err
}

// wanQueues reads the kernel's counters of the queues on all WANs that are shaped.
func wanQueues(cfg *config.Config) ([]qos.QueueStats, error) {
	var shaped, sites []string
	for _, w := range cfg.WANs {
		if w.Uplink > 0 {
			shaped = append(shaped, w.Interface)
		}
	}
	for _, site := range cfg.Sites {
		sites = append(sites, site.Name)
	}
	return tc.Stats(shaped, sites)
}

// QueueWatch makes rates of one status after the other.
type QueueWatch struct {
	last Status
	at   time.Time
}

// QueueView is what `ringway status --queues --json` prints, one a line. Fields are added, never renamed.
type QueueView struct {
	Time   time.Time       `json:"time"`
	Site   string          `json:"site"`
	Queues []qos.QueueFlow `json:"queues"`
}

// Look says what the queues did since the last look; the first one has no rates. now is when st came: a daemon that is asked while
// it is busy reads its counters last.
func (w *QueueWatch) Look(st Status, now time.Time) QueueView {
	passed := time.Duration(0)
	if !w.at.IsZero() {
		passed = now.Sub(w.at)
	}
	v := QueueView{Time: now.Round(0), Site: st.Site, Queues: qos.Flows(w.last.Queues, st.Queues, passed)}
	w.last, w.at = st, now
	return v
}

// Print writes the view for a person.
func (v QueueView) Print(w io.Writer) error {
	if len(v.Queues) == 0 {
		_, err := fmt.Fprintln(w, "no queues: no WAN has an uplink rate in the config, so nothing is shaped")
		return err
	}
	marks := slices.ContainsFunc(v.Queues, func(q qos.QueueFlow) bool { return q.Marks != nil })
	sites := slices.ContainsFunc(v.Queues, func(q qos.QueueFlow) bool { return q.Site != qos.Local })
	shown := v.busy()
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	line := func(wan, class, site, now, own, ceil, backlog, wait, drops, dropping, marked, borrowed string) {
		fmt.Fprintf(tw, "%s\t%s\t", wan, class)
		if sites {
			fmt.Fprintf(tw, "%s\t", site)
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t", now, own, ceil, backlog, wait, drops, dropping)
		if marks {
			fmt.Fprintf(tw, "%s\t", marked)
		}
		fmt.Fprintf(tw, "%s\t\n", borrowed)
	}
	line("WAN", "CLASS", "SITE", "NOW", "GUARANTEED", "CEILING", "BACKLOG", "WAIT", "DROPS", "DROPS/S", "MARKS", "BORROWED/S")
	for _, q := range shown {
		marked := "-"
		if q.Marks != nil {
			marked = fmt.Sprint(*q.Marks)
		}
		line(q.WAN, string(q.Class), q.Site, q.Now.About(), q.Guaranteed.About(), q.Ceiling.About(), scaled(float64(q.Backlog), "B", 1024, "KiB", "MiB", "GiB"),
			fmt.Sprintf("%.1f ms", q.Wait.Seconds()*1000), fmt.Sprint(q.Drops), fmt.Sprintf("%.0f", q.DropsASecond), marked, fmt.Sprintf("%.0f", q.BorrowedASecond))
	}
	if err := tw.Flush(); err != nil || len(shown) == len(v.Queues) {
		return err
	}
	_, err := fmt.Fprintf(w, "(the %d places with most traffic now; --json has all)\n", busiest)
	return err
}

// busy is v's queues, on each WAN only those of the places that send most, where there are more than a screen holds.
func (v QueueView) busy() (out []qos.QueueFlow) {
	type place struct{ wan, site string }
	now, order := map[place]qos.BitRate{}, map[string][]place{}
	for _, q := range v.Queues {
		p := place{q.WAN, q.Site}
		if _, known := now[p]; !known {
			order[q.WAN] = append(order[q.WAN], p)
		}
		now[p] += q.Now
	}
	shown := map[place]bool{}
	for _, places := range order {
		slices.SortStableFunc(places, func(a, b place) int { return cmp.Compare(now[b], now[a]) })
		for _, p := range places[:min(len(places), busiest)] {
			shown[p] = true
		}
	}
	for _, q := range v.Queues {
		if shown[place{q.WAN, q.Site}] {
			out = append(out, q)
		}
	}
	return out
}
