package report

import (
	"fmt"
	"io"
	"strings"

	"ringway/quality/figures"
)

// Rekey is one run of `ringway bench rekey`. Field names are a promise to readers of the JSON: fields may be
// added, none renamed or removed. Durations are microseconds. Packets are those of both directions.
type Rekey struct {
	Machine   figures.Machine `json:"machine"`
	Ringway   figures.Program `json:"ringway"` // that was measured
	Settings  RekeySettings   `json:"settings"`
	Denied    []string        `json:"denied"`
	Packets   int             `json:"packets"`
	Lost      int             `json:"lost"`
	Unmatched int             `json:"unmatched"` // arrived and were never sent: the books are wrong if there are any
	Overflow  int             `json:"overflow"`  // arrived and found the benchmark's own buffer full; they count as lost
	Unsent    int             `json:"unsent"`    // the phones' own kernel refused them; they are in no other count
	Quiet     Quiet           `json:"quiet"`     // away from every event
	Summary   []RekeySummary  `json:"summary"`
	Events    []RekeyEvent    `json:"events"`
}

// RekeySettings are the options of the run.
type RekeySettings struct {
	Build         string  `json:"build"`
	Family        string  `json:"family"` // ipv4 or ipv6: of the WAN and of voice
	Near          string  `json:"near"`   // what runs on edge-a
	Far           string  `json:"far"`    // on edge-b
	Natural       bool    `json:"natural"`
	Streams       int     `json:"streams"`
	Interval      float64 `json:"interval_us"`
	Size          int     `json:"payload_bytes"`
	AroundSeconds float64 `json:"around_seconds"` // before and after an event: what is said to be its
	Started       string  `json:"started"`        // RFC 3339
	Command       string  `json:"command"`        // that repeats the run
}

// Quiet is voice that no event touched.
type Quiet struct {
	Packets int     `json:"packets"`
	Lost    int     `json:"lost"`
	P50     float64 `json:"p50_us"`
	P999    float64 `json:"p99_9_us"`
	Max     float64 `json:"max_us"`
}

// RekeyEvent is one event and the packets sent around it.
type RekeyEvent struct {
	Kind    string  `json:"kind"`
	End     string  `json:"end"` // whose doing it was
	At      string  `json:"at"`  // RFC 3339
	Took    float64 `json:"took_us"`
	Packets int     `json:"packets"`
	Lost    int     `json:"lost"`
	Worst   float64 `json:"worst_delay_us"`
	Span    float64 `json:"lost_span_us"` // from the first lost packet to the last
}

// RekeySummary is all events of a kind at one end.
type RekeySummary struct {
	Kind    string  `json:"kind"`
	End     string  `json:"end"`
	Events  int     `json:"events"`
	Packets int     `json:"packets"`
	Lost    int     `json:"lost"`
	Worst   float64 `json:"worst_delay_us"`
	Median  float64 `json:"median_worst_delay_us"`
	Span    float64 `json:"longest_lost_span_us"`
}

// Kinds of events.
const (
	Rekeyed = "re-key"
	Roam    = "roam"    // another address, the old one still receives for a while
	Move    = "move"    // another address, the old one is gone at once
	Restart = "restart" // the process that forwards is killed
)

// Summarize adds up events by kind and end, in the order in which they first happened.
func (r *Rekey) Summarize() {
	r.Summary = []RekeySummary{}
	worst := map[int][]float64{}
	for _, e := range r.Events {
		i := 0
		for i < len(r.Summary) && (r.Summary[i].Kind != e.Kind || r.Summary[i].End != e.End) {
			i++
		}
		if i == len(r.Summary) {
			r.Summary = append(r.Summary, RekeySummary{Kind: e.Kind, End: e.End})
		}
		s := &r.Summary[i]
		s.Events, s.Packets, s.Lost = s.Events+1, s.Packets+e.Packets, s.Lost+e.Lost
		s.Worst, s.Span = max(s.Worst, e.Worst), max(s.Span, e.Span)
		worst[i] = append(worst[i], e.Worst)
		s.Median = median(worst[i])
	}
}

// RekeyTable prints the run as text.
func RekeyTable(w io.Writer, r Rekey) error {
	var b strings.Builder
	s := r.Settings
	fmt.Fprintf(
		&b,
		"%d voice streams each way, %d bytes every %s, edge-a: %s, edge-b: %s\n%s\n%s\n\n",
		s.Streams,
		s.Size,
		figures.Duration(s.Interval),
		s.Near,
		s.Far,
		figures.MachineLine(r.Machine),
		r.Ringway.Line(),
	)
	rows := [][]string{{"", "by", "events", "packets", "lost", "worst", "median of worst", "silence"}}
	for _, e := range r.Summary {
		silence := "-"
		if e.Lost > 0 {
			silence = figures.Duration(e.Span)
		}
		rows = append(
			rows,
			[]string{
				e.Kind,
				e.End,
				fmt.Sprint(e.Events),
				fmt.Sprint(e.Packets),
				fmt.Sprint(e.Lost),
				figures.Duration(e.Worst),
				figures.Duration(e.Median),
				silence,
			},
		)
	}
	rows = append(
		rows,
		[]string{
			"no event",
			"",
			"",
			fmt.Sprint(r.Quiet.Packets),
			fmt.Sprint(r.Quiet.Lost),
			figures.Duration(r.Quiet.Max),
			"p99.9 " + figures.Duration(r.Quiet.P999),
			"",
		},
	)
	grid(&b, rows)
	fmt.Fprintf(
		&b,
		"\nPackets sent within %g s of an event, both directions; worst: the highest one-way delay among them; "+
			"silence: from the first lost\n"+
			"packet to the last. roam: packets come from another address and the old one still receives, as behind "+
			"a NAT. move: the old address\n"+
			"is gone at once: what is sent to it until the far end has heard from the new one is lost in any "+
			"tunnel. restart: the process is killed.\n",
		s.AroundSeconds,
	)
	for _, warning := range RekeyWarnings(r) {
		fmt.Fprintf(&b, "Warning: %s\n", warning)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// RekeyWarnings name what makes the figures less reliable than they look.
func RekeyWarnings(r Rekey) (out []string) {
	for _, d := range r.Denied {
		out = append(out, "this machine denies "+d)
	}
	if r.Quiet.Lost > 0 {
		out = append(
			out,
			fmt.Sprintf(
				"%d packets were lost away from every event: the machine or the tunnel loses by itself.",
				r.Quiet.Lost,
			),
		)
	}
	if r.Overflow > 0 {
		out = append(
			out,
			fmt.Sprintf(
				"%d packets arrived and found the benchmark's own buffer full: they count as lost and are not the tunnel's loss.",
				r.Overflow,
			),
		)
	}
	if r.Unmatched > 0 {
		out = append(out, fmt.Sprintf("%d packets arrived that were never sent.", r.Unmatched))
	}
	if r.Unsent > 0 {
		out = append(
			out,
			fmt.Sprintf("%d packets were refused by the phones' own kernel: they are in no count.", r.Unsent),
		)
	}
	if r.Machine.Load1 > float64(r.Machine.Cores)/2 {
		out = append(
			out,
			fmt.Sprintf(
				"the machine's load was %.1f when the run began: other programs ran beside it.",
				r.Machine.Load1,
			),
		)
	}
	return out
}
