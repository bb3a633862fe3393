package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"ringway/qos"
	"ringway/quality"
	"ringway/quality/figures"
	"ringway/test/bench/probe"
	"ringway/test/bench/report"
	"ringway/test/bench/rival"
	"ringway/test/lab"
	"ringway/test/lab/bulk"
	"ringway/test/lab/program"
	labreport "ringway/test/lab/report"
	"ringway/tunnel"
)

// JitterOptions are the options of `ringway bench jitter`.
type JitterOptions struct {
	Programs rival.Programs
	Family   lab.Family   // of the WAN and inside the tunnels
	Engine   string       // of Ringway's planes
	Against  []rival.Kind // beside ringway, which is always there
	Loads    []int        // percent of the capacity
	Streams  int          // each way on each path
	Interval time.Duration
	Size     int           // bytes of UDP payload
	Duration time.Duration // of a load
	Rounds   int
	Progress io.Writer // nil: silent
}

// DefaultJitter is voice as most phones send it.
func DefaultJitter() JitterOptions {
	return JitterOptions{
		Family:  lab.IPv4,
		Engine:  string(tunnel.EngineRealtime),
		Against: []rival.Kind{rival.WireGuardGoShared, rival.WireGuardGo, rival.Kernel},
		Loads:   []int{0, 10, 50, 90, 100},
		Streams: 10, Interval: 20 * time.Millisecond, Size: 172, // a packet of G.711: 12 bytes of RTP, 160 samples
		Duration: 20 * time.Second, Rounds: 1,
	}
}

// Times of a run.
const (
	lead        = 500 * time.Millisecond // voice before the measurement: caches, ARP, page faults
	startIn     = 50 * time.Millisecond  // for both probes to hear of it
	stragglers  = 2 * time.Second        // a packet that arrives later after the last one was sent is lost
	wakeFor     = 2 * time.Second
	capacityFor = bulk.WarmUp
	voicePort   = 20000
	expedited   = 0xb8 // EF, as phones mark voice
	minTime     = time.Second
)

// engines are those that run in a plane.
var engines = []string{string(tunnel.EngineRealtime), string(tunnel.EngineWireGuardGo)}

func (o *JitterOptions) check() error {
	switch {
	case o.Duration < minTime || o.Duration > time.Hour:
		return fmt.Errorf("%w: --duration: a load of %s (allowed: %s-1h)", ErrUsage, o.Duration, minTime)
	case o.Rounds < 1 || o.Rounds > 100:
		return fmt.Errorf("%w: --rounds: %d (allowed: 1-100)", ErrUsage, o.Rounds)
	case len(o.Loads) == 0:
		return fmt.Errorf("%w: --loads: none is given (allowed: percents of the capacity, 0-100)", ErrUsage)
	}
	for i, l := range o.Loads {
		if l < 0 || l > 100 || slices.Contains(o.Loads[:i], l) {
			return fmt.Errorf("%w: --loads: %d (allowed: percents of the capacity, 0-100, each once)", ErrUsage, l)
		}
	}
	if err := checkFamily(o.Family); err != nil {
		return err
	}
	if !slices.Contains(engines, o.Engine) {
		return fmt.Errorf("%w: --engine: %q (allowed: %s)", ErrUsage, o.Engine, strings.Join(engines, ", "))
	}
	for i, k := range o.Against {
		if !slices.Contains(rival.Kinds, k) || slices.Contains(o.Against[:i], k) {
			return fmt.Errorf("%w: --vs: %q (allowed: %s, each once)", ErrUsage, k, kindNames(rival.Kinds[1:]))
		}
		if o.Family == lab.IPv6 && (k == rival.Nebula || k == rival.OpenVPN) {
			return fmt.Errorf(
				"%w: --vs: %s runs here over IPv4 only (allowed with --family ipv6: wireguard-go-shared, wireguard-go, kernel)",
				ErrUsage,
				k,
			)
		}
	}
	if err := o.shape().Check(len(o.measured())); err != nil {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	return nil
}

func kindNames(kinds []rival.Kind) string {
	var names []string
	for _, k := range kinds {
		names = append(names, string(k))
	}
	return strings.Join(names, ", ")
}

// measured are the paths that carry voice, in the order of the report.
func (o *JitterOptions) measured() []rival.Kind {
	return slices.DeleteFunc(
		slices.Clone(rival.Kinds),
		func(k rival.Kind) bool { return k != rival.Ringway && !slices.Contains(o.Against, k) },
	)
}

func (o *JitterOptions) shape() probe.Shape {
	return probe.Shape{Streams: o.Streams, Interval: o.Interval, Size: o.Size, Lead: lead, Length: o.Duration}
}

// command is the command line that repeats the run.
func (o *JitterOptions) command() string {
	var loads []string
	for _, l := range o.Loads {
		loads = append(loads, strconv.Itoa(l))
	}
	against := strings.ReplaceAll(kindNames(o.Against), ", ", ",")
	if against == "" {
		against = `""`
	}
	return fmt.Sprintf(
		"ringway bench jitter%s --engine %s --vs %s --loads %s --streams %d --interval %s --size %d --duration "+
			"%s --rounds %d",
		familyFlag(o.Family),
		o.Engine,
		against,
		strings.Join(loads, ","),
		o.Streams,
		o.Interval,
		o.Size,
		o.Duration,
		o.Rounds,
	)
}

// Jitter is a finished run: the report, and every delay for the plots.
type Jitter struct {
	Report report.Jitter
	Delays []report.Delays
}

// JSON writes the report as JSON; its fields are stable.
func (j Jitter) JSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(j.Report)
}

// Table prints the report as text.
func (j Jitter) Table(w io.Writer) error { return report.Table(w, j.Report) }

// Save writes plots and page into a folder and returns the page's path.
func (j Jitter) Save(dir string) (string, error) { return report.Save(dir, j.Report, j.Delays) }

// jitterRun is a run in progress.
type jitterRun struct {
	o     JitterOptions
	stand *stand
	kinds []rival.Kind // of the stand's paths, in their order
	say   func(format string, args ...any)
	out   Jitter
	run   uint32
}

// MeasureJitter builds the testbed, brings all paths up and measures voice on all of them at the same time,
// under each load in turn, round after round. It leaves nothing behind. It needs root.
func MeasureJitter(ctx context.Context, o JitterOptions) (Jitter, error) {
	if err := o.check(); err != nil {
		return Jitter{}, err
	}
	begin := time.Now()
	say := func(string, ...any) {}
	if o.Progress != nil {
		say = func(format string, args ...any) {
			fmt.Fprintf(o.Progress, "%6.1fs  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
		}
	}
	r := &jitterRun{o: o, say: say, kinds: standing(o.measured())}
	if err := r.o.Programs.Find(ctx, r.kinds, say); err != nil {
		return Jitter{}, err
	}
	identity, err := program.Identify(ctx, r.o.Programs.Ringway)
	if err != nil {
		return Jitter{}, err
	}
	r.out.Report = report.Jitter{
		Ringway: identity, Machine: report.Machine{Machine: figures.ThisMachine(), Denied: []string{},
			NetdevBudget: netdevBudget()},
		Settings: report.Settings{
			Build:    identity.Version,
			Family:   string(o.Family),
			Engine:   o.Engine,
			Streams:  o.Streams,
			Interval: micros(o.Interval),
			Size:     o.Size,
			Seconds:  o.Duration.Seconds(),
			Rounds:   o.Rounds,
			Started:  begin.UTC().Format(time.RFC3339),
			Command:  o.command(),
		},
	}
	say("building two phones, two edges and two PCs")
	if r.stand, err = newStand(ctx, r.o.Programs.Helper, r.o.Family, len(r.kinds)); err != nil {
		return Jitter{}, err
	}
	defer r.stand.close()
	if err := r.stand.join(ctx, r.kinds, r.o.Programs, o.Engine, say); err != nil {
		return Jitter{}, err
	}
	if err := r.measure(ctx); err != nil {
		return Jitter{}, errors.Join(err, r.stand.alive())
	}
	return r.out, nil
}

func (r *jitterRun) measure(ctx context.Context) error {
	stop, err := r.stand.hosts[pcA].KeepAwake()
	if err != nil {
		return err
	}
	defer stop()
	a, b := r.stand.edges()
	r.out.Report.Machine.Denied = append(r.out.Report.Machine.Denied, rival.Denied(a, b)...)
	r.say("measuring the machine itself")
	if err := r.wake(ctx, nil, 0); err != nil {
		return err
	}
	r.say("measuring the capacity of wireguard-go-shared (%s of TCP)", capacityFor)
	capacity, err := r.capacity(ctx)
	if err != nil {
		return err
	}
	r.out.Report.Settings.Capacity = mbits(capacity)
	for _, l := range r.o.Loads {
		r.out.Report.Loads = append(r.out.Report.Loads, report.Load{LoadPercent: l})
	}
	for round := 1; round <= r.o.Rounds; round++ {
		for i := range r.o.Loads {
			if err := r.load(ctx, &r.out.Report.Loads[i], round, capacity); err != nil {
				return fmt.Errorf("load %d %%, round %d: %w", r.o.Loads[i], round, err)
			}
		}
	}
	for i := range r.out.Report.Loads {
		r.out.Report.Loads[i].Summarize()
	}
	return nil
}

func (r *jitterRun) capacity(ctx context.Context) (qos.BitRate, error) {
	flow, err := bulk.Start(ctx, r.stand.hosts[pcA], r.stand.hosts[pcB], bulk.Options{To: r.stand.bulkTo()})
	if err != nil {
		return 0, err
	}
	return flow.Stop(ctx, flow.Started, time.Now())
}

// load measures one load once.
func (r *jitterRun) load(ctx context.Context, l *report.Load, round int, capacity qos.BitRate) error {
	r.say(
		"load %d %%, round %d of %d: %s of voice on %s",
		l.LoadPercent,
		round,
		r.o.Rounds,
		r.o.Duration,
		kindNames(r.o.measured()),
	)
	out := report.Round{Round: round}
	var flow *bulk.Running
	if l.LoadPercent > 0 {
		o := bulk.Options{To: r.stand.bulkTo()}
		if l.LoadPercent < 100 {
			o.Rate = capacity * qos.BitRate(l.LoadPercent) / 100
			out.Bulk.Asked = mbits(o.Rate)
		}
		var err error
		if flow, err = bulk.Start(ctx, r.stand.hosts[pcA], r.stand.hosts[pcB], o); err != nil {
			return err
		}
		defer flow.Kill()
	}
	percent := l.LoadPercent
	if err := r.wake(ctx, &percent, round); err != nil {
		return err
	}
	before, err := readTicks(r.stand.world.Namespace())
	if err != nil {
		return err
	}
	from := time.Now()
	seen, err := r.voiceOn(ctx, r.o.measured())
	until := time.Now()
	if err != nil {
		return err
	}
	after, err := readTicks(r.stand.world.Namespace())
	if err != nil {
		return err
	}
	out.CPU = after.since(before)
	if flow != nil {
		rate, err := flow.Stop(ctx, from, until)
		if err != nil {
			return err
		}
		out.Bulk.MbitPerS = mbits(rate)
	}
	if err := r.stand.alive(); err != nil {
		return err
	}
	for _, s := range seen {
		if s.result.Unsent > 0 {
			out.Unsent, out.UnsentWhy = out.Unsent+s.result.Unsent, s.result.SendError
		}
		for _, d := range s.result.Denied {
			if d = "the probes " + d; !slices.Contains(r.out.Report.Machine.Denied, d) {
				r.out.Report.Machine.Denied = append(r.out.Report.Machine.Denied, d)
			}
		}
	}
	out.Late = lateness(seen)
	out.Paths = r.figures(r.o.measured(), seen, l.LoadPercent, out.Bulk.MbitPerS)
	report.Compare(out.Paths)
	l.Rounds = append(l.Rounds, out)
	return nil
}

// wake measures how late the machine wakes threads, in a process of its own.
func (r *jitterRun) wake(ctx context.Context, percent *int, round int) error {
	length := min(wakeFor, r.o.Duration)
	text, err := r.stand.hosts[phoneA].Run(ctx, r.o.Programs.Helper, "bench", "wake", length.String())
	if err != nil {
		return fmt.Errorf("measure the machine's wake-up latency: %w", err)
	}
	var w []probe.Wake
	if err := json.Unmarshal([]byte(text), &w); err != nil {
		return fmt.Errorf("read the machine's wake-up latency: %w", err)
	}
	for _, one := range w {
		r.out.Report.Machine.Wakeup = append(
			r.out.Report.Machine.Wakeup,
			report.Wakeup{LoadPercent: percent, Round: round, Wake: one},
		)
	}
	return nil
}

// voiceOn sends voice in both directions on these paths and returns what both ends saw.
func (r *jitterRun) voiceOn(ctx context.Context, kinds []rival.Kind) ([]heard, error) {
	r.run++
	shape := r.o.shape()
	shape.Seed = uint64(r.run)
	gap := shape.Interval / time.Duration(shape.Streams*len(kinds))
	var senders []sender
	for i, phone := range []string{phoneA, phoneB} {
		senders = append(senders, sender{r.stand.hosts[phone],
			probe.Config{
				Shape:  shape,
				Run:    r.run,
				Offset: time.Duration(i) * gap / 2,
				Port:   voicePort,
				TOS:    expedited,
				Paths:  r.voicePaths(phone, kinds),
			}})
	}
	results, err := exchange(ctx, r.o.Programs.Helper, senders, nil)
	if err != nil {
		return nil, err
	}
	return bothWays(results[0], results[1]), nil
}

// voicePaths are the ends of the measured paths on a phone.
func (r *jitterRun) voicePaths(phone string, kinds []rival.Kind) []probe.Ends {
	var out []probe.Ends
	for i, e := range r.stand.ends(phone) {
		if slices.Contains(kinds, r.kinds[i]) {
			out = append(out, e)
		}
	}
	return out
}

// figures matches sent packets with received ones, path by path, and keeps the delays for the plots.
func (r *jitterRun) figures(kinds []rival.Kind, seen []heard, percent int, bulkRate float64) []report.Path {
	paths := make([]report.Path, len(kinds))
	directions := make([][]figures.Direction, len(kinds))
	for _, d := range seen {
		for i := range kinds {
			streams, unmatched := d.measured(i, r.o.Interval)
			directions[i] = append(directions[i], d.figures(streams, unmatched))
			r.keep(percent, string(kinds[i]), d.direction, streams)
		}
	}
	for i, k := range kinds {
		paths[i].Name, paths[i].Voice = string(k), labreport.NewVoice(directions[i]...)
		if k == rival.WireGuardGoShared {
			paths[i].Bulk.MbitPerS = bulkRate
		}
		for j, standing := range r.kinds {
			if standing == k {
				paths[i].Program = r.stand.paths[j].tunnel.Program
			}
		}
	}
	return paths
}

func (r *jitterRun) keep(percent int, path, direction string, streams []quality.Stream[probe.Key]) {
	i := slices.IndexFunc(r.out.Delays, func(d report.Delays) bool {
		return d.LoadPercent == percent && d.Path == path && d.Direction == direction
	})
	if i < 0 {
		i = len(r.out.Delays)
		r.out.Delays = append(r.out.Delays, report.Delays{LoadPercent: percent, Path: path, Direction: direction})
	}
	r.out.Delays[i].Delays = append(r.out.Delays[i].Delays, delays(streams)...)
}

func lateness(seen []heard) report.Late {
	d := quality.NewDistribution()
	for _, s := range seen {
		for _, l := range s.result.Late {
			d.Record(l)
		}
	}
	return report.Late{P50: micros(d.Percentile(50)), P999: micros(d.Percentile(99.9)), Max: micros(d.Max())}
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func mbits(r qos.BitRate) float64 { return float64(r) / 1e6 }
