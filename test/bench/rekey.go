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
	"ringway/quality/figures"
	"ringway/test/bench/probe"
	"ringway/test/bench/report"
	"ringway/test/bench/rival"
	"ringway/test/lab"
	"ringway/test/lab/host"
	"ringway/test/lab/program"
)

// RekeyOptions are the options of `ringway bench rekey`.
type RekeyOptions struct {
	Programs rival.Programs
	Family   lab.Family // of the WAN and of voice
	Far      string     // one of FarEnds
	Rekeys   int        // begun by each end
	Restarts int        // of each end
	Roams    int        // of each end, while its old address still receives
	Moves    int        // of each end; its old address is gone at once
	Natural  bool       // re-keys come of themselves, every two minutes
	Streams  int
	Interval time.Duration
	Size     int
	Progress io.Writer // nil: silent
}

// FarEnds are the far ends to choose from: Ringway's plane as at the near end, the same with the engine
// wireguard-go, and the stock program.
var FarEnds = []string{"ringway", "ringway-wireguard-go", "wireguard-go"}

// DefaultRekey is what a tunnel goes through in a morning.
func DefaultRekey() RekeyOptions {
	return RekeyOptions{
		Family:   lab.IPv4,
		Far:      FarEnds[0],
		Rekeys:   20,
		Restarts: 1,
		Roams:    3,
		Moves:    1,
		Streams:  10,
		Interval: 20 * time.Millisecond,
		Size:     172,
	}
}

// Times of a run.
const (
	around = time.Second // before and after an event: packets that it may have affected
	// of one end: the protocol allows one in 5 s (WireGuard paper, section 6.1: Rekey-Timeout)
	rekeyEvery   = 5200 * time.Millisecond
	betweenOther = 3 * time.Second
	naturalEvery = 121 * time.Second // Rekey-After-Time, and the timers' slack
	naturalLate  = time.Minute
	maxSlack     = 10 * time.Minute // events may take longer than planned; voice continues until they are over
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
		return fmt.Errorf("%w: no event is requested (--rekeys, --restarts, --roams, --moves)", ErrUsage)
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
	length := o.planned() + time.Minute + min(2*o.planned(), maxSlack)
	return probe.Shape{Streams: o.Streams, Interval: o.Interval, Size: o.Size, Lead: lead, Length: length, Seed: 1}
}

// command is the command line that repeats the run.
func (o *RekeyOptions) command() string {
	c := fmt.Sprintf(
		"ringway bench rekey%s --far %s --rekeys %d --restarts %d --roams %d --moves %d --streams %d --interval %s --size %d",
		familyFlag(o.Family),
		o.Far,
		o.Rekeys,
		o.Restarts,
		o.Roams,
		o.Moves,
		o.Streams,
		o.Interval,
		o.Size,
	)
	if o.Natural {
		c += " --natural"
	}
	return c
}

// Rekey is a finished run.
type Rekey struct{ Report report.Rekey }

// JSON writes the report as JSON; its fields are stable.
func (r Rekey) JSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(r.Report)
}

// Table prints the report as text.
func (r Rekey) Table(w io.Writer) error { return report.RekeyTable(w, r.Report) }

// event is something that happened to the tunnel while it carried voice.
type event struct {
	kind        string
	end         int // whose doing it was: 0 is edge-a
	begin, over time.Time
}

// rekeyRun is a run in progress.
type rekeyRun struct {
	o      RekeyOptions
	say    func(format string, args ...any)
	stand  *stand
	link   *rival.Link
	events []event
}

// MeasureRekey sends voice in both directions through one tunnel, triggers events, and reports what each
// cost. It leaves nothing behind. It needs root.
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
			return Rekey{}, errors.New(
				"bench rekey needs nft for --roams (on Debian: apt-get install nftables, or say --roams 0)",
			)
		}
	}
	identity, err := program.Identify(ctx, r.o.Programs.Ringway)
	if err != nil {
		return Rekey{}, err
	}
	if r.stand, err = newStand(ctx, r.o.Programs.Helper, r.o.Family, 1); err != nil {
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
		Ringway: identity, Machine: figures.ThisMachine(),
		Settings: report.RekeySettings{
			Build:         identity.Version,
			Family:        string(o.Family),
			Near:          nearEnd.String(),
			Far:           r.far().String(),
			Natural:       o.Natural,
			Streams:       o.Streams,
			Interval:      micros(o.Interval),
			Size:          o.Size,
			AroundSeconds: around.Seconds(),
			Started:       begin.UTC().Format(time.RFC3339),
			Command:       o.command(),
		},
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
	if r.link, err = rival.Connect(ctx, a, b,
		rival.Networks{A: []string{netA.prefix()}, B: []string{netB.prefix()}}, r.o.Programs,
		[2]rival.LinkEnd{nearEnd, r.far()}); err != nil {
		return err
	}
	if err := r.link.Route(ctx); err != nil {
		return err
	}
	path := standPath{tunnel: r.link.Tunnel, a: netA.at(guest), b: netB.at(guest)}
	r.stand.paths = append(r.stand.paths, path)
	ctx, cancel := context.WithTimeoutCause(ctx, reachTime, fmt.Errorf("no packet got through in %s", reachTime))
	defer cancel()
	if err := r.stand.hosts[phoneA].WaitReach(ctx, path.b, "0xb8"); err != nil {
		return errors.Join(err, r.link.Alive())
	}
	return nil
}

// voice sends voice in both directions during the events. Packets sent between from and until count.
func (r *rekeyRun) voice(ctx context.Context) (seen []heard, from, until time.Time, err error) {
	gap := r.o.Interval / time.Duration(r.o.Streams)
	var clients []*probe.Client
	for i, phone := range []string{phoneA, phoneB} {
		c := probe.Config{
			Shape:  r.o.shape(),
			Run:    1,
			Offset: time.Duration(i) * gap / 2,
			Port:   voicePort,
			TOS:    expedited,
			Paths:  r.stand.ends(phone),
		}
		p, err := startProbe(r.stand.hosts[phone], r.o.Programs.Helper, c)
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
	// Without voice the far end would not learn the new address of an end, and nothing would be counted.
	speaking, cancel := context.WithDeadlineCause(
		ctx,
		from.Add(r.o.shape().Length-around-stragglers),
		errors.New("the events take far too long (is the machine too busy? use fewer)"),
	)
	defer cancel()
	if err := r.triggerEvents(speaking); err != nil {
		return nil, from, until, err
	}
	if err := host.Pause(ctx, around); err != nil {
		return nil, from, until, err
	}
	until = time.Now()
	if err := host.Pause(ctx, stragglers); err != nil { // voice continues, so that earlier packets arrive
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

// triggerEvents triggers the events, one after the other.
func (r *rekeyRun) triggerEvents(ctx context.Context) error {
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

// rekeys has the ends start new sessions in turn.
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

// naturalRekeys waits for the protocol's own re-keys: the end that started a session renews it after two
// minutes.
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
			patient, cancel := context.WithTimeoutCause(
				ctx,
				naturalEvery+naturalLate,
				fmt.Errorf("no re-key in %s", naturalEvery+naturalLate),
			)
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

// figures computes what each event cost, and the delay of voice away from events.
func (r *rekeyRun) figures(out *report.Rekey, seen []heard, from, until time.Time) {
	var packets []quality.Packet
	for _, d := range seen {
		streams, unmatched := quality.Match(
			d.result.Sent,
			d.far.Received,
			quality.MatchOptions{From: stamp(from), Until: stamp(until)},
		)
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
	out.Quiet.P50, out.Quiet.P999, out.Quiet.Max = micros(
		quiet.Percentile(50),
	), micros(
		quiet.Percentile(99.9),
	), micros(
		quiet.Max(),
	)
	out.Events = []report.RekeyEvent{}
	for i, e := range events {
		out.Events = append(
			out.Events,
			report.RekeyEvent{
				Kind:    e.kind,
				End:     edgeOf(e.end),
				At:      e.begin.UTC().Format(time.RFC3339Nano),
				Took:    micros(e.over.Sub(e.begin)),
				Packets: all[i],
				Lost:    lost[i],
				Worst:   micros(worst[i]),
				Span:    micros(last[i].Sub(first[i])),
			},
		)
	}
}
