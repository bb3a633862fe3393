package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"ringway/quality"
	"ringway/test/bench/probe"
	"ringway/test/bench/report"
	"ringway/test/bench/rival"
	"ringway/test/lab"
	"ringway/test/lab/host"
	labreport "ringway/test/lab/report"
)

// RekeyOptions say what `ringway bench rekey` measures.
type RekeyOptions struct {
	Programs rival.Programs
	Family   lab.Family // of the WAN and of voice
	Far      string     // what the far end is: FarEnds
	Rekeys   int        // begun by each end
	Restarts int        // of each end
	Roams    int        // of each end, while its old address still receives
	Moves    int        // of each end, its old address gone at once
	Natural  bool       // re-keys come of themselves, every two minutes
	Streams  int
	Interval time.Duration
	Size     int
	Build    string    // of this program, for the report
	Progress io.Writer // nil: silent
}

// FarEnds are the far ends that there are: Ringway's plane as the near end has it, the same with the engine wireguard-go, and the stock
// program.
var FarEnds = []string{"ringway", "ringway-wireguard-go", "wireguard-go"}

// DefaultRekey is what a tunnel goes through in a morning.
func DefaultRekey() RekeyOptions {
	return RekeyOptions{Family: lab.IPv4, Far: FarEnds[0], Rekeys: 20, Restarts: 1, Roams: 3, Moves: 1, Streams: 10, Interval: 20 * time.Millisecond, Size: 172}
}

// Times of a run.
const (
	around       = time.Second             // what an event may have to do with, before it and after
	rekeyEvery   = 5200 * time.Millisecond // of one end: the protocol allows one in 5 s (WireGuard paper, section 6.1: Rekey-Timeout)
	betweenOther = 3 * time.Second
	naturalEvery = 121 * time.Second // Rekey-After-Time, and the timers' slack
	naturalLate  = time.Minute
	mostSlack    = 10 * time.Minute // events may take longer than they should; voice goes on until they are over
)

func (o *RekeyOptions) check() error {
	for _, n := range []struct {
		flag string
		v    int
	}{{"rekeys", o.Rekeys}, {"restarts", o.Restarts}, {"roams", o.Roams}, {"moves", o.Moves}} {
		if n.v < 0 || n.v > 40 {
			return fmt.Errorf("%w: --%s: %d (allowed: 0-40, of each end)", ErrUsage, n.flag, n.v)
		}
	}
	if o.Rekeys+o.Restarts+o.Roams+o.Moves == 0 {
		return fmt.Errorf("%w: no event is asked for (--rekeys, --restarts, --roams, --moves)", ErrUsage)
	}
	if !slices.Contains(FarEnds, o.Far) {
		return fmt.Errorf("%w: --far: %q (allowed: %s)", ErrUsage, o.Far, strings.Join(FarEnds, ", "))
	}
	if err := checkFamily(o.Family); err != nil {
		return err
	}
	s := o.shape()
	s.Paths = 1
	if err := s.Check(1); err != nil {
		return fmt.Errorf("%w: %w", ErrUsage, err)
	}
	return nil
}

// planned is how long the events take.
func (o *RekeyOptions) planned() time.Duration {
	others := time.Duration(2*(o.Restarts+o.Roams+o.Moves)) * betweenOther
	every := rekeyEvery
	if o.Natural {
		every = 2 * naturalEvery // one end after the other
	}
	return time.Duration(o.Rekeys+1)*every + others
}

func (o *RekeyOptions) shape() probe.Shape {
	length := o.planned() + time.Minute + min(2*o.planned(), mostSlack)
	return probe.Shape{Streams: o.Streams, Interval: o.Interval, Size: o.Size, Lead: lead, Length: length, Seed: 1}
}

// command is the command line that repeats the run.
func (o *RekeyOptions) command() string {
	c := fmt.Sprintf("ringway bench rekey%s --far %s --rekeys %d --restarts %d --roams %d --moves %d --streams %d --interval %s --size %d",
		familyFlag(o.Family), o.Far, o.Rekeys, o.Restarts, o.Roams, o.Moves, o.Streams, o.Interval, o.Size)
	if o.Natural {
		c += " --natural"
	}
	return c
}

// Rekey is a finished run.
type Rekey struct{ Report report.Rekey }

// JSON writes the report for machines; the shape stays.
func (r Rekey) JSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r.Report)
}

// Table writes the report for people.
func (r Rekey) Table(w io.Writer) error { return report.RekeyTable(w, r.Report) }

// event is something that happened to the tunnel while voice went through it.
type event struct {
	kind        string
	end         int // whose doing it was: 0 is edge-a
	begin, over time.Time
}

// rekeyRun is a run under way.
type rekeyRun struct {
	o      RekeyOptions
	say    func(format string, args ...any)
	stand  *stand
	link   *rival.Link
	events []event
}

// MeasureRekey sends voice both ways through one tunnel, has things happen to the tunnel, and says what each cost. Nothing is left
// when it returns. It needs root.
func MeasureRekey(ctx context.Context, o RekeyOptions) (Rekey, error) {
	if err := o.check(); err != nil {
		return Rekey{}, err
	}
	begin := time.Now()
	r := &rekeyRun{o: o, say: progress(o.Progress)}
	if err := r.o.Programs.Find(ctx, []rival.Kind{rival.Ringway}, r.say); err != nil {
		return Rekey{}, err
	}
	if o.Roams > 0 {
		if _, err := host.LookPath("nft"); err != nil {
			return Rekey{}, errors.New("bench rekey needs nft for --roams (on Debian: apt-get install nftables, or say --roams 0)")
		}
	}
	var err error
	if r.stand, err = newStand(ctx, r.o.Programs.Ringway, r.o.Family, 1); err != nil {
		return Rekey{}, err
	}
	defer r.stand.close()
	if err := r.connect(ctx); err != nil {
		return Rekey{}, err
	}
	stop, err := r.stand.hosts[pcA].KeepAwake()
	if err != nil {
		return Rekey{}, err
	}
	defer stop()
	out := report.Rekey{
		Machine: labreport.ThisMachine(),
		Settings: report.RekeySettings{Build: o.Build, Family: string(o.Family), Near: nearEnd.String(), Far: r.far().String(), Natural: o.Natural, Streams: o.Streams, Interval: micros(o.Interval),
			Size: o.Size, AroundSeconds: around.Seconds(), Started: begin.UTC().Format(time.RFC3339), Command: o.command()},
	}
	a, b := r.stand.edges()
	out.Denied = append([]string{}, rival.Denied(a, b)...)
	seen, from, until, err := r.voice(ctx)
	if err != nil {
		return Rekey{}, errors.Join(err, r.stand.alive())
	}
	r.figures(&out, seen, from, until)
	return Rekey{out}, nil
}

var nearEnd = rival.LinkEnd{Kind: rival.Ringway, Engine: "realtime"}

func (r *rekeyRun) far() rival.LinkEnd {
	switch r.o.Far {
	case "wireguard-go":
		return rival.LinkEnd{Kind: rival.WireGuardGo}
	case "ringway-wireguard-go":
		return rival.LinkEnd{Kind: rival.Ringway, Engine: "wireguard-go"}
	}
	return nearEnd
}

func (r *rekeyRun) connect(ctx context.Context) (err error) {
	r.say("bringing up %s – %s", nearEnd, r.far())
	a, b := r.stand.edges()
	netA, netB := r.stand.pathNets(0)
	if r.link, err = rival.Connect(ctx, a, b, rival.Networks{A: []string{netA.prefix()}, B: []string{netB.prefix()}}, r.o.Programs,
		[2]rival.LinkEnd{nearEnd, r.far()}); err != nil {
		return err
	}
	if err := r.link.Route(ctx); err != nil {
		return err
	}
	path := standPath{tunnel: r.link.Tunnel, a: netA.at(guest), b: netB.at(guest)}
	r.stand.paths = append(r.stand.paths, path)
	ctx, cancel := context.WithTimeoutCause(ctx, reachTime, fmt.Errorf("nothing came through in %s", reachTime))
	defer cancel()
	if err := r.stand.hosts[phoneA].WaitReach(ctx, path.b, "0xb8"); err != nil {
		return errors.Join(err, r.link.Alive())
	}
	return nil
}

// voice sends voice both ways while the events happen. What was sent between from and until counts.
func (r *rekeyRun) voice(ctx context.Context) (seen []heard, from, until time.Time, err error) {
	gap := r.o.Interval / time.Duration(r.o.Streams)
	var clients []*probe.Client
	for i, phone := range []string{phoneA, phoneB} {
		c := probe.Config{Shape: r.o.shape(), Run: 1, Offset: time.Duration(i) * gap / 2, Port: voicePort, TOS: expedited, Paths: r.stand.ends(phone)}
		p, err := startProbe(r.stand.hosts[phone], r.o.Programs.Ringway, c)
		if err != nil {
			return nil, from, until, err
		}
		defer p.close()
		clients = append(clients, p.Client)
		if err := p.Ready(ctx); err != nil {
			return nil, from, until, p.explain(err)
		}
	}
	at := probe.Monotonic() + startIn
	for _, p := range clients {
		if err := p.Start(at); err != nil {
			return nil, from, until, err
		}
	}
	r.say("voice flows: about %s", r.o.planned())
	if err := host.Pause(ctx, startIn+lead); err != nil {
		return nil, from, until, err
	}
	from = time.Now()
	// Without voice nobody would tell the far end where an end has moved to, and nothing would be counted.
	speaking, cancel := context.WithDeadlineCause(ctx, from.Add(r.o.shape().Length-around-stragglers), errors.New("the events take far longer than they should (is the machine too busy? take fewer)"))
	defer cancel()
	if err := r.happen(speaking); err != nil {
		return nil, from, until, err
	}
	if err := host.Pause(ctx, around); err != nil {
		return nil, from, until, err
	}
	until = time.Now()
	if err := host.Pause(ctx, stragglers); err != nil { // voice goes on, so that what was sent until then arrives
		return nil, from, until, err
	}
	results := make([]probe.Result, len(clients))
	stopping, cancel := context.WithTimeoutCause(ctx, 20*time.Second, errors.New("the probes do not end"))
	defer cancel()
	var g errgroup.Group
	for i, p := range clients {
		g.Go(func() (err error) {
			results[i], err = p.Stop(stopping)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, from, until, err
	}
	return bothWays(results[0], results[1]), from, until, nil
}

// happen has the events happen, one after the other.
func (r *rekeyRun) happen(ctx context.Context) error {
	if err := host.Pause(ctx, 2*around); err != nil { // quiet
		return err
	}
	rekeys := r.rekeys
	if r.o.Natural {
		rekeys = r.naturalRekeys
	}
	if err := rekeys(ctx); err != nil {
		return err
	}
	for _, other := range []struct {
		kind  string
		times int
		do    func(ctx context.Context, end int, moved func()) error
	}{
		{report.Roam, r.o.Roams, r.link.Roam},
		{report.Move, r.o.Moves, r.link.Readdress},
		{report.Restart, r.o.Restarts, func(ctx context.Context, end int, began func()) error {
			began()
			return r.link.Restart(ctx, end)
		}},
	} {
		for n := range other.times {
			for end := range 2 {
				r.say("%s %d of %d, %s", other.kind, n+1, other.times, edgeOf(end))
				e := event{kind: other.kind, end: end}
				if err := other.do(ctx, end, func() { e.begin = time.Now() }); err != nil {
					return fmt.Errorf("%s of %s: %w", other.kind, edgeOf(end), err)
				}
				e.over = time.Now()
				r.events = append(r.events, e)
				if err := host.Pause(ctx, betweenOther); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func edgeOf(end int) string { return []string{edgeA, edgeB}[end] }

// rekeys has the ends begin new sessions in turn.
func (r *rekeyRun) rekeys(ctx context.Context) error {
	next := time.Now()
	for n := range 2 * r.o.Rekeys {
		if err := host.Pause(ctx, time.Until(next)); err != nil {
			return err
		}
		next = next.Add(rekeyEvery / 2)
		end := n % 2
		asked, err := r.link.Rekey(ctx, end)
		if err != nil {
			return fmt.Errorf("re-key %d by %s: %w", n/2+1, edgeOf(end), err)
		}
		r.events = append(r.events, event{kind: report.Rekeyed, end: end, begin: asked, over: time.Now()})
	}
	r.say("%d re-keys by each end", r.o.Rekeys)
	return host.Pause(ctx, 2*around)
}

// naturalRekeys waits for those that the protocol makes: who began a session renews it after two minutes.
func (r *rekeyRun) naturalRekeys(ctx context.Context) error {
	for end := range 2 {
		if r.o.Rekeys == 0 {
			return nil
		}
		if _, err := r.link.Rekey(ctx, end); err != nil { // from here on this end renews
			return fmt.Errorf("first session by %s: %w", edgeOf(end), err)
		}
		last, err := r.link.Handshaken(end)
		if err != nil {
			return err
		}
		for n := range r.o.Rekeys {
			patient, cancel := context.WithTimeoutCause(ctx, naturalEvery+naturalLate, fmt.Errorf("no re-key in %s", naturalEvery+naturalLate))
			now := last
			for !now.After(last) && err == nil {
				if err = host.Pause(patient, 50*time.Millisecond); err == nil {
					now, err = r.link.Handshaken(end)
				}
			}
			cancel()
			if err != nil {
				return fmt.Errorf("wait for re-key %d by %s: %w", n+1, edgeOf(end), err)
			}
			r.events = append(r.events, event{kind: report.Rekeyed, end: end, begin: now, over: now})
			last = now
			r.say("re-key %d of %d by %s", n+1, r.o.Rekeys, edgeOf(end))
		}
		if err := host.Pause(ctx, 2*rekeyEvery); err != nil { // the other end may not be answered within 5 s
			return err
		}
	}
	return nil
}

// figures says what each event cost, and what voice is like without.
func (r *rekeyRun) figures(out *report.Rekey, seen []heard, from, until time.Time) {
	var packets []quality.Packet
	for _, d := range seen {
		streams, unmatched := quality.Match(d.result.Sent, d.far.Received, quality.MatchOptions{From: stamp(from), Until: stamp(until)})
		for _, s := range streams {
			packets = append(packets, s.Packets...)
		}
		out.Unmatched += unmatched
		out.Overflow += int(d.far.Overflow) + d.far.TooMany
		out.Unsent += d.result.Unsent
		for _, denied := range append(d.result.Denied, d.far.Denied...) {
			if denied = "the probes " + denied; !slices.Contains(out.Denied, denied) {
				out.Denied = append(out.Denied, denied)
			}
		}
	}
	costs(out, packets, r.events)
	out.Summarize()
}

func stamp(t time.Time) quality.Timestamp { return quality.Timestamp(t.UnixNano()) }

// costs counts the packets around each event, and those around none.
func costs(out *report.Rekey, packets []quality.Packet, events []event) {
	quiet := quality.NewDistribution()
	lost := make([]int, len(events))
	all := make([]int, len(events))
	worst := make([]time.Duration, len(events))
	first, last := make([]quality.Timestamp, len(events)), make([]quality.Timestamp, len(events))
	for _, p := range packets {
		out.Packets++
		near := false
		for i, e := range events {
			if p.Sent < stamp(e.begin.Add(-around)) || p.Sent > stamp(e.over.Add(around)) {
				continue
			}
			near = true
			all[i]++
			if p.Lost {
				lost[i]++
				if first[i] == 0 || p.Sent < first[i] {
					first[i] = p.Sent
				}
				last[i] = max(last[i], p.Sent)
			} else {
				worst[i] = max(worst[i], p.Delay())
			}
		}
		if p.Lost {
			out.Lost++
		}
		if near {
			continue
		}
		out.Quiet.Packets++
		if p.Lost {
			out.Quiet.Lost++
		} else {
			quiet.Record(p.Delay())
		}
	}
	out.Quiet.P50, out.Quiet.P999, out.Quiet.Max = micros(quiet.Percentile(50)), micros(quiet.Percentile(99.9)), micros(quiet.Max())
	out.Events = []report.RekeyEvent{}
	for i, e := range events {
		out.Events = append(out.Events, report.RekeyEvent{Kind: e.kind, End: edgeOf(e.end), At: e.begin.UTC().Format(time.RFC3339Nano), Took: micros(e.over.Sub(e.begin)),
			Packets: all[i], Lost: lost[i], Worst: micros(worst[i]), Span: micros(last[i].Sub(first[i]))})
	}
}
