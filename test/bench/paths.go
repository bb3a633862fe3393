package bench

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"ringway/qos"
	"ringway/quality/figures"
	"ringway/test/bench/report"
	"ringway/test/lab"
	"ringway/test/lab/program"
	labreport "ringway/test/lab/report"
)

// PathsOptions are the options of `ringway bench paths`.
type PathsOptions struct {
	Ringway     string      // to be measured; empty: the program that belongs to this one
	Helper      string      // whose helpers run on the hosts; empty: this program
	Version     string      // required of a Ringway that is not given; empty: any
	WireGuardGo string      // the stock program; empty: beside ringway, else in PATH
	Against     []string    // beside ringway: PathsRivals
	Events      []string    // PathsEvents
	Family      lab.Family  // of the lines, phones and PCs
	Rate        qos.BitRate // of each line
	Delay       time.Duration
	Bulk        lab.Bulk
	Calls       int
	Rounds      int
	Progress    io.Writer // nil: silent
}

// PathsRivals may run beside Ringway, each over two lines of its own.
var PathsRivals = []string{"metric", string(lab.Single), string(lab.Duplicate)}

// PathsEvents are the events, in the order in which they are measured by default; failback, which takes a minute a
// round, only if asked for.
var PathsEvents = []string{"cut", "blackhole", "loss", "swing", "failback"}

// DefaultPaths is ten calls over two lines with a round trip of 50 ms.
func DefaultPaths() PathsOptions {
	return PathsOptions{Against: PathsRivals, Events: PathsEvents[:4], Family: lab.IPv4, Rate: 20 * qos.Mbit,
		Delay: 25 * time.Millisecond, Bulk: lab.BulkNone, Calls: 10, Rounds: 10}
}

// pathsEvent is an event as it is measured.
type pathsEvent struct {
	what     string
	event    lab.Event
	duration time.Duration // of the calls
	counts   int           // which of what happens is measured: 0 the event itself, 1 that the line is well again
}

// pathsAt is when an event begins: all calls are up then, and each end has learned what the other one can.
const pathsAt = 5 * time.Second

// event is an event of PathsEvents.
func (o *PathsOptions) event(name string) pathsEvent {
	e := lab.Event{Line: "wan0", At: pathsAt}
	switch name {
	case "cut":
		e.Kind = lab.Cut
		return pathsEvent{"the cable of the first line is pulled", e, 9 * time.Second, 0}
	case "blackhole":
		e.Kind = lab.Blackhole
		return pathsEvent{"the first line delivers nothing, with its carrier", e, 9 * time.Second, 0}
	case "loss":
		e.Kind, e.Loss = lab.Loss, 0.05
		return pathsEvent{"the first line loses 5 % in each direction", e, 20 * time.Second, 0}
	case "swing":
		e.Kind, e.Low, e.High = lab.Swing, 5*qos.Mbit, 50*qos.Mbit
		return pathsEvent{"the first line swings between 5 and 50 Mbit/s, every 10 s", e, 20 * time.Second, 0}
	}
	e.Kind, e.Until = lab.Cut, pathsAt+2*time.Second
	return pathsEvent{"the first line, which was cut for 2 s, is well again for 40 s", e, 47 * time.Second, 1}
}

func (o *PathsOptions) check() error {
	for _, list := range []struct {
		flag           string
		given, allowed []string
	}{{"--vs", o.Against, PathsRivals}, {"--events", o.Events, PathsEvents}} {
		for i, s := range list.given {
			if !slices.Contains(list.allowed, s) || slices.Contains(list.given[:i], s) {
				return fmt.Errorf("%w: %s: %q (allowed: %s, each once)", ErrUsage, list.flag, s,
					strings.Join(list.allowed, ", "))
			}
		}
	}
	if len(o.Events) == 0 {
		return fmt.Errorf("%w: --events: none is given (allowed: %s)", ErrUsage, strings.Join(PathsEvents, ", "))
	}
	if err := checkFamily(o.Family); err != nil {
		return err
	}
	switch {
	case o.Rounds < 1 || o.Rounds > 100:
		return fmt.Errorf("%w: --rounds: %d (allowed: 1-100)", ErrUsage, o.Rounds)
	case o.Calls < 1 || o.Calls > 100:
		return fmt.Errorf("%w: --calls: %d (allowed: 1-100)", ErrUsage, o.Calls)
	case o.Rate < minLink || o.Rate > maxLink:
		return fmt.Errorf("%w: --wan: %s (allowed: %s-%s)", ErrUsage, o.Rate, minLink, maxLink)
	case o.Delay < 0 || o.Delay > time.Second:
		return fmt.Errorf("%w: --delay: %s (allowed: 0-1s)", ErrUsage, o.Delay)
	case o.Bulk != lab.BulkNone && o.Bulk != lab.BulkTCP && o.Bulk != lab.BulkUDP:
		return fmt.Errorf("%w: --bulk: %q (allowed: none, tcp, udp)", ErrUsage, o.Bulk)
	}
	return nil
}

// command is the command line that repeats the run.
func (o *PathsOptions) command() string {
	against := strings.Join(o.Against, ",")
	if against == "" {
		against = `""`
	}
	return fmt.Sprintf("ringway bench paths --vs %s --events %s%s --wan %s --delay %s --bulk %s --calls %d --rounds %d",
		against, strings.Join(o.Events, ","), familyFlag(o.Family), o.Rate, o.Delay, o.Bulk, o.Calls, o.Rounds)
}

// pairs are the lab's pairs, and what this benchmark calls them.
func (o *PathsOptions) pairs() (pairs []lab.PathName, names []string) {
	for _, name := range append([]string{string(lab.Ringway)}, o.Against...) {
		pair := lab.PathName(name)
		if name == "metric" {
			pair = lab.Baseline
		}
		pairs, names = append(pairs, pair), append(names, name)
	}
	return pairs, names
}

// Paths is the report of a run.
type Paths struct{ Report report.Paths }

// Table prints the run as text.
func (p Paths) Table(w io.Writer) error { return report.PathsTable(w, p.Report) }

// JSON prints the run as JSON; its fields are stable.
func (p Paths) JSON(w io.Writer) error { return labreport.WriteJSON(w, p.Report) }

// MeasurePaths has each event happen to calls of Ringway and of its rivals at the same moment, each pair of branches
// over lines of its own. Every round builds new ones, so that no event finds what another one has left.
func MeasurePaths(ctx context.Context, o PathsOptions) (Paths, error) {
	if err := o.check(); err != nil {
		return Paths{}, err
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	if o.Ringway == "" {
		var err error
		if o.Ringway, err = program.Find(o.Version); err != nil {
			return Paths{}, err
		}
	}
	identity, err := program.Identify(ctx, o.Ringway)
	if err != nil {
		return Paths{}, err
	}
	out := report.Paths{
		Machine: figures.ThisMachine(), Ringway: identity,
		Settings: report.PathsSettings{
			WAN: o.Rate.String(), Family: string(o.Family), DelayUS: micros(o.Delay), Calls: o.Calls,
			Bulk: string(o.Bulk), Rounds: o.Rounds, Load: loadAverage(),
			Started: time.Now().UTC().Format(time.RFC3339), Command: o.command(),
		},
	}
	for _, name := range o.Events {
		e := o.event(name)
		_, names := o.pairs()
		rounds := make([][]report.PathsRound, len(names))
		for round := range o.Rounds {
			fmt.Fprintf(o.Progress, "%s, round %d of %d\n", name, round+1, o.Rounds)
			one, err := o.round(ctx, e, uint64(round))
			if err != nil {
				return Paths{}, fmt.Errorf("%s, round %d: %w", name, round+1, err)
			}
			out.Settings.Codec = one.Scenario.Codec
			for i, p := range one.Paths {
				r, err := pathsRound(one, p, e)
				if err != nil {
					return Paths{}, fmt.Errorf("%s, round %d: %s: %w", name, round+1, names[i], err)
				}
				rounds[i] = append(rounds[i], r)
			}
		}
		row := report.PathsEvent{Event: name, What: e.what}
		for i := range names {
			row.Rows = append(row.Rows, report.NewPathsCosts(names[i], rounds[i]))
		}
		out.Events = append(out.Events, row)
	}
	out.Compare()
	return Paths{Report: out}, nil
}

// round builds a lab and has the event happen in it.
func (o *PathsOptions) round(ctx context.Context, e pathsEvent, seed uint64) (labreport.Report, error) {
	pairs, _ := o.pairs()
	l, err := lab.New(ctx, lab.Options{
		Binary: o.Ringway, Helper: o.Helper, WireGuardGo: o.WireGuardGo, Paths: pairs,
		Underlay: o.Family, Overlay: o.Family, WAN: o.Rate, Delay: o.Delay, Lines: 2, Events: []lab.Event{e.event},
		Bulk: o.Bulk, Calls: o.Calls, Duration: e.duration, SIP: "enforce", Seed: seed,
	})
	if err != nil {
		return labreport.Report{}, err
	}
	defer l.Close()
	r, err := l.Measure(ctx)
	return r.Report, err
}

// pathsRound is what an event cost a path.
func pathsRound(r labreport.Report, p labreport.Path, e pathsEvent) (report.PathsRound, error) {
	if len(p.Gaps) <= e.counts {
		return report.PathsRound{}, fmt.Errorf("%d of %d events happened before the calls were over", len(p.Gaps),
			e.counts+1)
	}
	out := report.PathsRound{Gap: p.Gaps[e.counts], Events: r.Events, Lines: p.Lines,
		Failed: p.Calls.Placed - p.Calls.Completed, Missed: int(p.Voice.CaptureLost) + p.Voice.Unmatched}
	for _, d := range p.Voice.Directions {
		out.Packets, out.Lost = out.Packets+d.Sent, out.Lost+d.Sent-d.Received
	}
	return out, nil
}

// loadAverage is how many tasks wanted a processor in the last minute; 0 if the kernel does not say.
func loadAverage() float64 {
	text, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return 0
	}
	first, _, _ := strings.Cut(string(text), " ")
	x, _ := strconv.ParseFloat(first, 64)
	return x
}
