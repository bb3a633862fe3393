package appliance

import (
	"fmt"
	"io"
	"slices"
	"text/tabwriter"
	"time"

	"ringway/qos"
)

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
	sites := slices.ContainsFunc(v.Queues, func(q qos.QueueFlow) bool { return q.Site != "" })
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
	for _, q := range v.Queues {
		marked := "-"
		if q.Marks != nil {
			marked = fmt.Sprint(*q.Marks)
		}
		site := q.Site
		if site == "" {
			site = "-"
		}
		line(q.WAN, string(q.Class), site, q.Now.About(), q.Guaranteed.About(), q.Ceiling.About(), scaled(float64(q.Backlog), "B", 1024, "KiB", "MiB", "GiB"),
			fmt.Sprintf("%.1f ms", q.Wait.Seconds()*1000), fmt.Sprint(q.Drops), fmt.Sprintf("%.0f", q.DropsASecond), marked, fmt.Sprintf("%.0f", q.BorrowedASecond))
	}
	return tw.Flush()
}
