package report

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"ringway/quality/figures"
	lab "ringway/test/lab/report"
)

// Paths is one run of `ringway bench paths`. Field names are a promise to readers of the JSON: fields may be
// added, none renamed or removed. Packets and bytes are those of both directions.
type Paths struct {
	Machine  figures.Machine `json:"machine"`
	Ringway  figures.Program `json:"ringway"` // that was measured
	Settings PathsSettings   `json:"settings"`
	Events   []PathsEvent    `json:"events"`
	Worse    []string        `json:"worse"` // rows in which Ringway is worse than metric, each in words
}

// PathsSettings are the options of the run.
type PathsSettings struct {
	WAN     string  `json:"wan"` // of each line
	Family  string  `json:"family"`
	DelayUS float64 `json:"delay_us"` // each way
	Calls   int     `json:"calls"`
	Codec   string  `json:"codec"`
	Bulk    string  `json:"bulk"`
	Rounds  int     `json:"rounds"`
	Load    float64 `json:"load_average"` // of the machine when the run began: what others do there is in every figure
	Started string  `json:"started"`      // RFC 3339
	Command string  `json:"command"`      // that repeats the run
}

// PathsEvent is an event, and what it cost each path.
type PathsEvent struct {
	Event string       `json:"event"` // cut, blackhole, …
	What  string       `json:"what"`  // in words
	Rows  []PathsCosts `json:"paths"`
}

// PathsCosts are the figures of a path: medians of its rounds, but for sums of packets and a maximum.
type PathsCosts struct {
	Path      string       `json:"path"`
	Packets   int          `json:"packets"`          // of all calls, in all rounds
	Lost      int          `json:"lost"`             // of them, in the whole run
	Loss      float64      `json:"loss"`             // 0 to 1
	Gap       float64      `json:"median_gap_ms"`    // for which a phone of the worst call heard nothing
	GapMax    float64      `json:"longest_gap_ms"`   // of all rounds
	LostUntil float64      `json:"lost_until_ms"`    // from the event until the last packet that was lost
	Bytes     float64      `json:"bytes_per_packet"` // on all lines, Ethernet headers too, for each packet of a phone
	Failed    int          `json:"calls_failed"`     // that did not go on to their end
	Missed    int          `json:"missed"`           // packets that spoil the figures: see PathsRound.Missed
	Rounds    []PathsRound `json:"rounds"`
}

// PathsRound is one round of a path.
type PathsRound struct {
	Packets int             `json:"packets"`
	Lost    int             `json:"lost"`
	Gap     lab.Gap         `json:"gap"` // of the event
	Events  []lab.Event     `json:"events"`
	Lines   []lab.LineBytes `json:"lines"`
	Failed  int             `json:"calls_failed"`
	Missed  int             `json:"missed"` // by the capture, or on their way for longer than 4 s
}

// NewPathsCosts joins the rounds of a path.
func NewPathsCosts(path string, rounds []PathsRound) PathsCosts {
	c := PathsCosts{Path: path, Rounds: rounds}
	var gaps, until, bytes []float64
	for _, r := range rounds {
		c.Packets, c.Lost, c.Failed = c.Packets+r.Packets, c.Lost+r.Lost, c.Failed+r.Failed
		c.Missed += r.Missed
		c.GapMax = max(c.GapMax, r.Gap.Longest)
		gaps, until = append(gaps, r.Gap.Longest), append(until, r.Gap.LostUntil)
		var sum uint64
		for _, l := range r.Lines {
			sum += l.Sent + l.Received
		}
		bytes = append(bytes, float64(sum)/max(float64(r.Packets), 1))
	}
	if c.Packets > 0 {
		c.Loss = float64(c.Lost) / float64(c.Packets)
	}
	c.Gap, c.LostUntil, c.Bytes = median(gaps), median(until), median(bytes)
	return c
}

// Compare notes where Ringway is worse than stock wireguard-go with route metrics: by its lost packets, or by the
// median of the longest gaps. Fewer than two packets, and less than the time between two packets, are no difference.
func (p *Paths) Compare() {
	p.Worse = []string{}
	const frame = 20 // ms
	for _, e := range p.Events {
		find := func(path string) int {
			return slices.IndexFunc(e.Rows, func(c PathsCosts) bool { return c.Path == path })
		}
		own, other := find("ringway"), find("metric")
		if own < 0 || other < 0 {
			continue
		}
		r, m := e.Rows[own], e.Rows[other]
		if r.Lost > m.Lost+1 {
			p.Worse = append(p.Worse, fmt.Sprintf("%s: %d packets lost, metric %d", e.Event, r.Lost, m.Lost))
		}
		if r.Gap > m.Gap+frame {
			p.Worse = append(p.Worse, fmt.Sprintf("%s: a gap of %.0f ms, metric %.0f ms", e.Event, r.Gap, m.Gap))
		}
	}
}

// PathsTable prints the run as text.
func PathsTable(w io.Writer, p Paths) error {
	var b strings.Builder
	s := p.Settings
	fmt.Fprintf(&b, "%d calls (%s), two lines of %s, %s each way, bulk: %s; %d rounds, medians\n", s.Calls,
		s.Codec, s.WAN, figures.Duration(s.DelayUS), s.Bulk, s.Rounds)
	fmt.Fprintf(&b, "%s, load average %.1f\n%s\n\n", figures.MachineLine(p.Machine), s.Load, p.Ringway.Line())
	table := [][]string{{"Event", "Path", "Lost", "Longest gap", "Worst round", "Lost until", "Bytes/packet",
		"Calls failed"}}
	for _, e := range p.Events {
		name := e.Event
		for _, c := range e.Rows {
			table = append(table, []string{name, c.Path,
				fmt.Sprintf("%s of %s (%s)",
					figures.Thousands(c.Lost), figures.Thousands(c.Packets), figures.Percent(c.Loss)),
				fmt.Sprintf("%.0f ms", c.Gap), fmt.Sprintf("%.0f ms", c.GapMax), fmt.Sprintf("%.0f ms", c.LostUntil),
				fmt.Sprintf("%.0f", c.Bytes), fmt.Sprint(c.Failed)})
			name = ""
		}
	}
	writeColumns(&b, table)
	b.WriteByte('\n')
	for _, e := range p.Events {
		fmt.Fprintf(&b, "%s: %s\n", e.Event, e.What)
	}
	for _, e := range p.Events {
		for _, c := range e.Rows {
			if c.Missed > 0 {
				fmt.Fprintf(&b,
					"Warning: %s, %s: %s packets were missed by the capture, or late by 4 s: its figures are invalid.\n",
					e.Event, c.Path, figures.Thousands(c.Missed))
			}
		}
	}
	for _, worse := range p.Worse {
		fmt.Fprintf(&b, "Ringway is worse: %s\n", worse)
	}
	if len(p.Worse) == 0 {
		fmt.Fprintln(&b, "In no row is Ringway worse than metric.")
	}
	fmt.Fprintln(&b, s.Command)
	_, err := io.WriteString(w, b.String())
	return err
}

// writeColumns prints a table, the first two columns to the left.
func writeColumns(w io.Writer, table [][]string) {
	widths := make([]int, len(table[0]))
	for _, cells := range table {
		for i, c := range cells {
			widths[i] = max(widths[i], len([]rune(c)))
		}
	}
	for _, cells := range table {
		line := ""
		for i, c := range cells {
			space := strings.Repeat(" ", widths[i]-len([]rune(c)))
			if i < 2 {
				line += c + space + "  "
			} else {
				line += space + c + "  "
			}
		}
		fmt.Fprintln(w, strings.TrimRight(line, " "))
	}
}
