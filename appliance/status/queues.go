package status

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"ringway/qos"
	"ringway/tunnel"
)

// Queues is the part of the status that says what the WANs' queues do. Benchmarks ask for it several times a second
// beside calls that they measure: the whole status asks the voice plane as well, and each answer makes garbage there.
type Queues struct {
	Queues    []qos.QueueStats   `json:"queues"`          // of the WANs, as the status has them
	Flows     *tunnel.FlowStatus `json:"flows,omitempty"` // of the data tunnel's engine; nil where it has none
	FlowDrops uint64             `json:"flow_drops"`      // packets that the flow queues dropped since the plane started
}

// QueueRates makes rates of successive statuses.
type QueueRates struct {
	last Status
	at   time.Time
}

// QueueView is what `ringway status --queues --json` prints, one a line. Fields are added, never renamed.
type QueueView struct {
	Time   time.Time       `json:"time"`
	Site   string          `json:"site"`
	Queues []qos.QueueFlow `json:"queues"`
}

// Next returns what the queues did since the status before; the first view has no rates. now is when st arrived: a busy
// daemon reads its counters last.
func (r *QueueRates) Next(st Status, now time.Time) QueueView {
	passed := time.Duration(0)
	if !r.at.IsZero() {
		passed = now.Sub(r.at)
	}

	v := QueueView{Time: now.Round(0), Site: st.Site, Queues: qos.Flows(r.last.Queues, st.Queues, passed)}
	r.last, r.at = st, now
	return v
}

// Print writes the view as a table.
func (v QueueView) Print(w io.Writer) error {
	if len(v.Queues) == 0 {
		_, err := fmt.Fprintln(w, "no queues: no WAN has an uplink rate in the config, so nothing is shaped")
		return err
	}

	marks := slices.ContainsFunc(v.Queues, func(q qos.QueueFlow) bool { return q.Marks != nil })
	sites := slices.ContainsFunc(v.Queues, func(q qos.QueueFlow) bool { return q.Site != qos.Local })
	header := []string{"WAN", "CLASS", "RATE", "GUARANTEED", "CEILING", "BACKLOG", "WAIT", "DROPS", "DROPS/S"}
	if sites {
		header = slices.Insert(header, 2, "SITE")
	}
	if marks {
		header = append(header, "ECN MARKS")
	}
	header = append(header, "BORROWED/S")

	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	row := func(cells []string) { fmt.Fprintf(tw, "%s\t\n", strings.Join(cells, "\t")) }
	row(header)
	shown := v.busiest()
	for _, q := range shown {
		row(queueCells(q, sites, marks))
	}

	if err := tw.Flush(); err != nil || len(shown) == len(v.Queues) {
		return err
	}
	_, err := fmt.Fprintf(w, "(the %d busiest sites of each WAN; --json shows all)\n", maxSites)
	return err
}

func queueCells(q qos.QueueFlow, sites, marks bool) []string {
	cells := []string{q.WAN, string(q.Class)}
	if sites {
		cells = append(cells, q.Site)
	}

	cells = append(cells, q.Now.About(), q.Guaranteed.About(), q.Ceiling.About(), byteSize(uint64(q.Backlog)),
		fmt.Sprintf("%.1f ms", q.Wait.Seconds()*1000), fmt.Sprint(q.Drops), fmt.Sprintf("%.0f", q.DropsASecond))
	if marks {
		marked := "-"
		if q.Marks != nil {
			marked = fmt.Sprint(*q.Marks)
		}
		cells = append(cells, marked)
	}
	return append(cells, fmt.Sprintf("%.0f", q.BorrowedASecond))
}

// busiest returns the queues of v, on each WAN only those of the sites that send most now.
func (v QueueView) busiest() (shown []qos.QueueFlow) {
	type place struct{ wan, site string }
	rate := map[place]qos.BitRate{}
	places := map[string][]place{} // by WAN, in the order of the queues
	for _, q := range v.Queues {
		p := place{q.WAN, q.Site}
		if _, known := rate[p]; !known {
			places[q.WAN] = append(places[q.WAN], p)
		}
		rate[p] += q.Now
	}

	show := map[place]bool{}
	for _, ofWAN := range places {
		slices.SortStableFunc(ofWAN, func(a, b place) int { return cmp.Compare(rate[b], rate[a]) })
		for _, p := range ofWAN[:min(len(ofWAN), maxSites)] {
			show[p] = true
		}
	}

	for _, q := range v.Queues {
		if show[place{q.WAN, q.Site}] {
			shown = append(shown, q)
		}
	}
	return shown
}
