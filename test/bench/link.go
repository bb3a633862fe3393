package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"ringway/appliance/plan"
	"ringway/qos"
	"ringway/qos/tc"
	"ringway/quality/figures"
	"ringway/test/bench/probe"
	"ringway/test/bench/report"
	"ringway/test/lab"
	"ringway/test/lab/host"
	"ringway/test/lab/program"
	labreport "ringway/test/lab/report"
)

// Link is a finished run: the report, and every delay for the plots.
type Link struct {
	Report report.Link
	Delays []report.LinkDelays
}

// JSON writes the report as JSON; its fields are stable.
func (l Link) JSON(w io.Writer) error {
	return labreport.WriteJSON(w, l.Report)
}

// Table prints the report as text.
func (l Link) Table(w io.Writer) error { return report.LinkTable(w, l.Report) }

// Save writes plots and page into a folder and returns the page's path.
func (l Link) Save(dir string) (string, error) { return report.SaveLink(dir, l.Report, l.Delays) }

// linkRun is a run in progress.
type linkRun struct {
	o   LinkOptions
	say func(format string, args ...any)
	out Link
	run uint32
	// beyond is how much longer than voice a flood lasts: probes take some time to start, on a busy machine
	// seconds.
	beyond time.Duration
}

// linkLab are the branches of one rate, on links of their own.
type linkLab struct {
	rate  qos.BitRate
	lab   *lab.Lab
	paths []linkPath
}

// linkPath is one connection between two branches.
type linkPath struct {
	name     string
	pair     *lab.Pair
	program  string
	margin   float64
	voice    qos.ByteCount // a packet of a call on the wire
	echo     qos.ByteCount // and of a round trip
	second   [2]string     // addresses of the second hosts of the data network
	flooding int           // IP bytes of a flood's packets
}

// MeasureLink builds whole branches at each rate in turn, loads all their links at the same time, and
// measures voice, what data gets, and the round trips of others on the link. It leaves nothing behind. It
// needs root.
func MeasureLink(ctx context.Context, o LinkOptions) (Link, error) {
	if err := o.check(); err != nil {
		return Link{}, err
	}
	begin := time.Now()
	r := &linkRun{o: o, say: progress(o.Progress), beyond: floodBeyond}
	if r.o.Ringway == "" {
		path, err := program.Find(r.o.Version)
		if err != nil {
			return Link{}, err
		}
		r.o.Ringway = path
	}
	identity, err := program.Identify(ctx, r.o.Ringway)
	if err != nil {
		return Link{}, err
	}
	r.out.Report = report.Link{
		Ringway: identity,
		Machine: figures.ThisMachine(),
		Denied:  []string{},
		LeftOut: []string{},
		Settings: report.LinkSettings{
			Build:      identity.Version,
			Calls:      o.Calls,
			Size:       linkSize,
			IntervalUS: micros(linkInterval),
			Seconds:    o.Duration.Seconds(),
			Rounds:     o.Rounds,
			Flows:      linkFlows,
			Flood:      linkFlood,
			EchoUS:     micros(echoEvery),
			EchoBytes:  echoPacket(o.Family),
			Family:     string(o.Family),
			Started:    begin.UTC().Format(time.RFC3339),
			Command:    o.command(),
		},
	}
	if err := r.choose(); err != nil {
		return Link{}, err
	}
	for _, rate := range o.Rates {
		if err := r.rate(ctx, rate); err != nil {
			return Link{}, fmt.Errorf("%s: %w", rate, err)
		}
	}
	r.out.Report.Judge()
	return r.out, nil
}

// choose leaves out what this kernel lacks.
func (r *linkRun) choose() error {
	has, err := tc.Probe()
	if err != nil {
		return fmt.Errorf("probe the kernel's queueing disciplines: %w (try: sudo ringway bench link)", err)
	}
	for _, q := range []struct {
		name lab.PathName
		has  bool
	}{{lab.FQCoDel, has.FQCoDel}, {lab.Cake, has.Cake}} {
		if i := slices.Index(r.o.Against, string(q.name)); i >= 0 && !q.has {
			r.o.Against = slices.Delete(slices.Clone(r.o.Against), i, i+1)
			r.out.Report.LeftOut = append(r.out.Report.LeftOut, fmt.Sprintf("%s: this kernel has none", q.name))
		}
	}
	return nil
}

// pairs are the pairs of a rate. At rates that do not load the processor, forwarding alone has nothing to
// show.
func (r *linkRun) pairs(rate qos.BitRate) []lab.PathName {
	out := []lab.PathName{lab.Ringway}
	for _, name := range LinkRivals {
		switch pair := lab.PathName(name); {
		case !slices.Contains(r.o.Against, name), pair == lab.Kernel && rate <= kernelAbove:
		case name == "none":
			out = append(out, lab.Baseline)
		default:
			out = append(out, pair)
		}
	}
	return out
}

// rate measures everything at one rate.
func (r *linkRun) rate(ctx context.Context, rate qos.BitRate) error {
	names := r.pairs(rate)
	r.say("%s: building %d pairs of branches", rate, len(names))
	l, err := lab.New(
		ctx,
		lab.Options{
			Binary:      r.o.Ringway,
			Helper:      r.o.Helper,
			Paths:       names,
			WireGuardGo: r.o.WireGuardGo,
			Underlay:    r.o.Family,
			Overlay:     r.o.Family,
			WAN:         rate,
			Buffer:      buffer(rate),
			Wire:        rate <= kernelAbove,
			NoCalls:     true,
		},
	)
	if err != nil {
		return err
	}
	defer l.Close()
	s := &linkLab{rate: rate, lab: l}
	stop, err := l.Host(lab.Provider).KeepAwake()
	if err != nil {
		return err
	}
	defer stop()
	row, err := r.know(ctx, s, names)
	if err != nil {
		return err
	}
	for round := 1; round <= r.o.Rounds; round++ {
		for i := range row.Loads {
			load := &row.Loads[i]
			r.say("%s, load %s, round %d of %d: %s", rate, load.Scenario.Bulk, round, r.o.Rounds, r.o.Duration)
			one, err := r.loaded(ctx, s, row, load.Scenario.Bulk)
			if err != nil {
				return errors.Join(fmt.Errorf("load %s, round %d: %w", load.Scenario.Bulk, round, err), s.alive())
			}
			one.Round = round
			var alone *report.LinkRound
			if i > 0 {
				alone = &row.Loads[0].Rounds[round-1]
			}
			one.Compare(alone)
			load.Rounds = append(load.Rounds, one)
		}
	}
	for i := range row.Loads {
		row.Loads[i].Summarize()
	}
	r.out.Report.Rates = append(r.out.Report.Rates, *row)
	return nil
}

// loaded measures one load once: on all paths at the same time or, where they would compete for the processor
// before they fill their links, one after the other.
func (r *linkRun) loaded(
	ctx context.Context,
	s *linkLab,
	row *report.LinkRate,
	kind string,
) (out report.LinkRound, err error) {
	turns := [][]linkPath{s.paths}
	if row.InTurn {
		turns = nil
		for p := range slices.Chunk(s.paths, 1) {
			turns = append(turns, p)
		}
	}
	for _, paths := range turns {
		now := *s
		now.paths = paths
		one, err := r.load(ctx, &now, kind)
		for again := 0; errors.Is(err, errFloodOver) && again < floodAgain; again++ {
			r.beyond *= 2
			r.say("  once more, with a flood %s longer: %v", r.beyond/2, err)
			one, err = r.load(ctx, &now, kind)
		}
		if err != nil {
			return out, err
		}
		out.Join(one)
	}
	return out, nil
}

func (s *linkLab) alive() error {
	var errs []error
	for _, p := range s.paths {
		errs = append(errs, p.pair.Alive())
	}
	return errors.Join(errs...)
}

// know reads the numbers of Ringway's own plan, and computes the same ones for every other path.
func (r *linkRun) know(ctx context.Context, s *linkLab, names []lab.PathName) (*report.LinkRate, error) {
	plan, err := s.lab.Pair(lab.Ringway).Edge("a").Calls(ctx)
	if err != nil {
		return nil, err
	}
	row := &report.LinkRate{
		Rate:        s.rate.String(),
		Bits:        uint64(s.rate),
		BufferBytes: int(buffer(s.rate)),
		Wire:        s.rate <= kernelAbove,
		InTurn:      (r.o.InTurn || s.rate > togetherUpTo) && len(names) > 1,
	}
	if err := r.packets(plan, s.rate, row); err != nil {
		return nil, err
	}
	row.BudgetUS = row.DataPacket.TimeUS + report.AddedBeyondWire + float64(r.o.Calls-1)*row.VoicePacket.TimeUS

	for _, bulk := range []string{report.Alone, report.TCP, report.UDP} {
		row.Loads = append(row.Loads, report.LinkLoad{Scenario: labreport.Scenario{
			WAN:         row.Rate,
			WANBits:     row.Bits,
			BufferBytes: row.BufferBytes,
			Bulk:        bulk,
			Calls:       r.o.Calls,
			Underlay:    string(r.o.Family),
			Overlay:     string(r.o.Family),
			Codec:       "G.711 A-law, 20 ms",
			Seconds:     r.o.Duration.Seconds(),
			Started:     time.Now().UTC().Format(time.RFC3339),
		}})
	}

	for _, name := range names {
		p := r.path(s, row, name, float64(plan.Margin)/100)
		for i, pc := range []string{lab.PCA, lab.PCB} {
			if p.second[i], err = p.pair.SecondPC(ctx, pc); err != nil {
				return nil, err
			}
		}
		s.paths = append(s.paths, p)
	}
	return row, nil
}

// packets reads the lengths of data and voice packets from the plan, and checks that the calls fit.
func (r *linkRun) packets(plan plan.WANCalls, rate qos.BitRate, row *report.LinkRate) error {
	packet := func(ip int, wire qos.ByteCount) report.LinkPacket {
		return report.LinkPacket{IPBytes: ip, WireBytes: int(wire), TimeUS: micros(rate.Serialization(wire))}
	}
	for _, p := range plan.Longest {
		if p.What == "data" {
			row.DataPacket = packet(p.IP, p.Wire)
		}
	}
	for _, site := range plan.Sites {
		if site.Inner != familyNames[r.o.Family] {
			continue
		}
		for _, c := range site.Codecs {
			if c.Codec != qos.G711.Name || c.SRTP {
				continue
			}
			row.VoicePacket = packet(int(c.Steps[3].Total), c.Packet)
			if r.o.Calls > c.Calls {
				return fmt.Errorf("%w: --calls: the voice budget carries %d calls of G.711 (allowed: 1-%d)",
					ErrUsage, c.Calls, c.Calls)
			}
		}
	}
	if row.DataPacket.WireBytes == 0 || row.VoicePacket.WireBytes == 0 {
		return errors.New("`ringway plan` does not list the packet lengths of data and voice")
	}
	return nil
}

// path describes one path of a rate; margin is Ringway's.
func (r *linkRun) path(s *linkLab, row *report.LinkRate, name lab.PathName, margin float64) linkPath {
	inner := qos.ByteCount(row.VoicePacket.IPBytes)
	echo := qos.ByteCount(echoPacket(r.o.Family))
	// The lab's meter counts Ethernet frames without checksum.
	tunnel := qos.Envelope{IPv6: r.o.Family == lab.IPv6, Wire: ethernet}

	p := linkPath{
		name:     string(name),
		pair:     s.lab.Pair(name),
		program:  "stock wireguard-go, one tunnel",
		flooding: row.DataPacket.IPBytes,
		voice:    tunnel.OnWire(inner),
		echo:     tunnel.OnWire(echo),
	}
	switch name {
	case lab.Ringway:
		p.program, p.margin = "ringway run", margin
		p.voice = qos.ByteCount(row.VoicePacket.WireBytes)
	case lab.Baseline:
		p.name, p.program = "none", p.program+", only the provider queues"
	case lab.Kernel:
		p.program = "Linux forwarding, no tunnel, only the provider queues"
		p.voice, p.echo = ethernet(inner), ethernet(echo)
	default:
		p.margin, p.program = margin, p.program+" behind "+p.name
	}
	return p
}

// familyNames are the families in the output of `ringway plan`.
var familyNames = map[lab.Family]string{lab.IPv4: "IPv4", lab.IPv6: "IPv6"}

func ethernet(packet qos.ByteCount) qos.ByteCount { return packet + 14 }

// load measures one load once, on all paths at the same time.
func (r *linkRun) load(ctx context.Context, s *linkLab, kind string) (report.LinkRound, error) {
	out := report.LinkRound{Paths: make([]report.LinkPath, len(s.paths))}
	earlier, err := s.drops(ctx)
	if err != nil {
		return out, err
	}
	load, err := r.fill(ctx, s, kind)
	if err != nil {
		return out, err
	}
	defer load.kill()
	before, err := readTicks(s.lab.Namespace())
	if err != nil {
		return out, err
	}
	results, err := exchange(ctx, s.lab.Options.Helper, r.senders(s), func(ctx context.Context) error {
		return r.watch(ctx, s, load, kind, out.Paths)
	})
	if err != nil {
		return out, err
	}
	after, err := readTicks(s.lab.Namespace())
	if err != nil {
		return out, err
	}
	out.CPU = after.since(before)
	if err := s.alive(); err != nil {
		return out, err
	}
	if err := load.stop(ctx); err != nil {
		return out, err
	}
	later, err := s.drops(ctx)
	if err != nil {
		return out, err
	}
	r.evaluate(s, kind, results, &out)
	for class, n := range later {
		for i, p := range s.paths {
			if p.pair.Name != lab.Ringway {
				continue
			}
			row := &out.Paths[i]
			if row.ClassDrops == nil {
				row.ClassDrops = map[string]uint64{}
			}
			row.ClassDrops[class] = n - earlier[class]
		}
	}
	return out, nil
}

// evaluate turns what the probes saw into figures.
func (r *linkRun) evaluate(s *linkLab, kind string, results []probe.Result, out *report.LinkRound) {
	var all []heard
	for i, p := range s.paths {
		row := &out.Paths[i]
		row.Name, row.Program, row.Margin = p.name, p.program, p.margin
		row.Calls = labreport.Calls{Placed: r.o.Calls, Completed: r.o.Calls}
		seen := bothWays(results[2*i], results[2*i+1])
		all = append(all, seen...)

		var directions []figures.Direction
		for _, d := range seen {
			streams, unmatched := d.measured(0, linkInterval)
			directions = append(directions, d.figures(streams, unmatched))
			r.keep(report.LinkDelays{
				Rate: s.rate.String(), Load: kind, Path: p.name,
				Direction: d.direction, Delays: delays(streams),
			})
		}
		row.Voice = labreport.NewVoice(directions...)
		if kind != report.Alone {
			r.account(s, p, row)
		}
	}

	for _, h := range all {
		if h.result.Unsent > 0 {
			out.Unsent, out.UnsentWhy = out.Unsent+h.result.Unsent, h.result.SendError
		}
		for _, d := range h.result.Denied {
			if d = "the probes " + d; !slices.Contains(r.out.Report.Denied, d) {
				r.out.Report.Denied = append(r.out.Report.Denied, d)
			}
		}
	}
	out.Late = lateness(all)
}

// senders are the probes of all paths' phones, spread over the interval.
func (r *linkRun) senders(s *linkLab) (out []sender) {
	r.run++
	shape := r.o.shape()
	shape.Seed = uint64(r.run)
	gap := shape.Interval / time.Duration(shape.Streams*2*len(s.paths))
	for i, p := range s.paths {
		for j, phone := range []string{lab.PhoneA, lab.PhoneB} {
			ends := probe.Ends{
				Local:  p.pair.Address(phone),
				Remote: p.pair.Address([]string{lab.PhoneB, lab.PhoneA}[j]),
			}
			out = append(
				out,
				sender{p.pair.Host(phone), probe.Config{Shape: shape, Run: r.run, Offset: time.Duration(2*i+j) * gap,
					Port: linkPort, TOS: expedited, Paths: []probe.Ends{ends}}},
			)
		}
	}
	return out
}

// watch counts what passes each bottleneck while voice is measured, and measures round trips under load.
func (r *linkRun) watch(ctx context.Context, s *linkLab, load *linkLoad, kind string, rows []report.LinkPath) error {
	var pairs []*lab.Pair
	for _, p := range s.paths {
		pairs = append(pairs, p.pair)
	}
	queues := lab.WatchQueues(ctx, pairs...)
	defer queues.Stop()
	var g errgroup.Group
	for i, p := range s.paths {
		queues.Phase(i, kind)
		row := &rows[i]
		g.Go(func() error {
			if err := p.count(ctx, r.o.Duration, row); err != nil {
				return err
			}
			return load.lasted(i)
		})
		if kind == report.Alone {
			continue
		}
		g.Go(func() (err error) {
			row.Signalling, err = echo(
				ctx,
				p.pair.Host(lab.PhoneA),
				p.pair.Address(lab.PhoneA),
				p.pair.Address(lab.PhoneB),
				signalled,
				r.o.Duration,
			)
			return errors.Join(err, load.lasted(i))
		})
		g.Go(func() (err error) {
			row.SecondFlow, err = echo(ctx, p.pair.Host(lab.PCA), p.second[0], p.second[1], plain, r.o.Duration)
			return errors.Join(err, load.lasted(i))
		})
	}
	err := g.Wait()
	for i, q := range queues.Stop() {
		rows[i].Queues = q
	}
	return err
}

// count measures what left the path's bottleneck in the given time, and what reached the PCs.
func (p linkPath) count(ctx context.Context, length time.Duration, row *report.LinkPath) error {
	var at [2]time.Time
	var carried [2][2]uint64
	var arrived [2]uint64
	for i := range at {
		if i > 0 {
			if err := host.Pause(ctx, length-time.Since(at[0])); err != nil {
				return err
			}
		}
		at[i] = time.Now()
		toB, toA, err := p.pair.Carried()
		if err != nil {
			return err
		}
		carried[i] = [2]uint64{toB, toA}
		for _, pc := range []string{lab.PCA, lab.PCB} {
			n, err := p.pair.Host(pc).Counter("eth0", "rx_bytes")
			if err != nil {
				return err
			}
			arrived[i] += n
		}
	}
	seconds := at[1].Sub(at[0]).Seconds()
	row.Bulk.MbitPerS = float64(arrived[1]-arrived[0]) * 8 / seconds / 1e6
	for d, name := range []string{figures.AToB, figures.BToA} {
		row.Wire = append(
			row.Wire,
			report.LinkWire{Direction: name, Total: float64(carried[1][d]-carried[0][d]) * 8 / seconds},
		)
	}
	return nil
}

// account computes how many of the bottleneck's bytes were data, and how many could have been.
func (r *linkRun) account(s *linkLab, p linkPath, row *report.LinkPath) {
	bits := func(packet qos.ByteCount, every time.Duration, arrived float64) float64 {
		return float64(packet) * 8 / every.Seconds() * arrived
	}
	for d := range row.Wire {
		w := &row.Wire[d]
		w.Voice = bits(p.voice, linkInterval, float64(r.o.Calls)*(1-row.Voice.Directions[d].Loss))
		if e := row.Signalling; e.Sent > 0 {
			w.Signals = bits(p.echo, echoEvery, float64(e.Received)/float64(e.Sent))
		}
		w.Left = float64(s.rate)*(1-p.margin) - w.Voice - w.Signals
		w.Data = w.Total - w.Voice - w.Signals
		w.Share = w.Data / w.Left
		if d == 0 || w.Share < row.Share {
			row.Share = w.Share
		}
	}
}

// drops are the drops of Ringway's own queues so far, by class, at both edges.
func (s *linkLab) drops(ctx context.Context) (map[string]uint64, error) {
	out := map[string]uint64{}
	for _, side := range []string{"a", "b"} {
		st, err := s.lab.Pair(lab.Ringway).Edge(side).Status(ctx)
		if err != nil {
			return nil, err
		}
		for _, q := range st.Queues {
			out[string(q.Class)] += q.Drops
		}
	}
	return out, nil
}

func (r *linkRun) keep(d report.LinkDelays) {
	i := slices.IndexFunc(r.out.Delays, func(e report.LinkDelays) bool {
		return e.Rate == d.Rate && e.Load == d.Load && e.Path == d.Path && e.Direction == d.Direction
	})
	if i < 0 {
		r.out.Delays = append(r.out.Delays, d)
		return
	}
	r.out.Delays[i].Delays = append(r.out.Delays[i].Delays, d.Delays...)
}
