package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"ringway/quality"
	"ringway/quality/figures"
	"ringway/test/lab/bulk"
	"ringway/test/lab/capture"
	"ringway/test/lab/host"
	"ringway/test/lab/program"
	"ringway/test/lab/report"
)

// settle is how long a packet may still be in flight after the last call.
const settle = 1500 * time.Millisecond

// Listening is a running capture of the calls' RTP at both phones of a pair.
type Listening struct {
	pair *Pair
	a, b *capture.Capture
}

// Heard is what was captured at both phones, by direction.
type Heard struct {
	AToB, BToA   capture.Direction
	CaptureDrops uint32
}

// Listen starts to capture RTP at both phones.
func (p *Pair) Listen() (*Listening, error) {
	ports := capture.Ports{Low: mediaPort, High: lastMedia}
	a, err := capture.Start(p.Host(PhoneA).NetPath(), "eth0", ports)
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", p.Name, PhoneA, err)
	}
	b, err := capture.Start(p.Host(PhoneB).NetPath(), "eth0", ports)
	if err != nil {
		_, _ = a.Stop()
		return nil, fmt.Errorf("%s: %s: %w", p.Name, PhoneB, err)
	}
	return &Listening{pair: p, a: a, b: b}, nil
}

// Stop ends the capture and matches sent packets with received ones.
func (l *Listening) Stop() (Heard, error) {
	a, errA := l.a.Stop()
	b, errB := l.b.Stop()
	var h Heard
	h.CaptureDrops = max(a.Drops, b.Drops)
	if err := errors.Join(errA, errB); err != nil && !errors.Is(err, capture.ErrDropped) {
		return h, fmt.Errorf("%s: %w", l.pair.Name, err)
	}
	h.AToB, h.BToA = capture.Match(a, b, quality.MatchOptions{})
	return h, nil
}

func (h Heard) voice() report.Voice {
	direction := func(name string, d capture.Direction) figures.Direction {
		wrong := 0
		for dscp, n := range d.DSCP {
			if dscp != expedited {
				wrong += n
			}
		}
		return figures.NewDirection(
			name,
			d.Summary(),
			figures.Found{Unmatched: d.Unmatched, CaptureLost: h.CaptureDrops, WrongDSCP: wrong},
		)
	}
	return report.NewVoice(direction(figures.AToB, h.AToB), direction(figures.BToA, h.BToA))
}

// expedited is the DSCP of Expedited Forwarding (RFC 3246), which phones set on RTP.
const expedited = 46

// Result is the report, and every packet's delay for the plot.
type Result struct {
	Report report.Report
	Begin  time.Time // when the first call was placed: the zero of all times in it
	Series []report.Series
}

// JSON writes the report as JSON; its fields are stable.
func (r Result) JSON(w io.Writer) error {
	return report.WriteJSON(w, r.Report)
}

// Table prints the report as text.
func (r Result) Table(w io.Writer) error { return report.Table(w, r.Report) }

// Plot draws every packet's delay into a file whose name ends in .png or .svg.
func (r Result) Plot(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return report.Plot(path, r.Report, r.Series)
}

// PlotQueues draws what the queues held into a file beside the one that Plot draws, lab-queues.png beside
// lab.png, and returns its path. It is empty if there was no queue.
func (r Result) PlotQueues(beside string) (path string, err error) {
	picture, ok := report.NewQueuePicture(r.Report)
	if !ok {
		return "", nil
	}
	if err := os.MkdirAll(filepath.Dir(beside), 0o755); err != nil {
		return "", err
	}
	ext := filepath.Ext(beside)
	path = strings.TrimSuffix(beside, ext) + "-queues" + ext
	return path, picture.Save(path)
}

// wantAwake reports whether the cores would sleep between packets. The time that a guest's core takes to wake
// up is the hypervisor's, but would be measured as the network's. With bulk traffic and no bottleneck the
// cores are busy anyway.
func (l *Lab) wantAwake() bool { return l.Options.Bulk == BulkNone || l.Options.WAN > 0 }

// Measure fills the WAN as the options say, places the calls on every pair at the same time and captures
// them. Bulk traffic starts before the first call and ends after the last.
func (l *Lab) Measure(ctx context.Context) (Result, error) {
	o := l.Options
	r := Result{Report: report.Report{Machine: figures.ThisMachine(), Scenario: l.scenario(time.Now())}}
	if slices.Contains(o.Paths, Ringway) {
		identity, err := program.Identify(ctx, o.Binary)
		if err != nil {
			return Result{}, err
		}
		r.Report.Ringway = &identity
	}
	if l.wantAwake() {
		stop, err := l.pairs[0].Host(Provider).KeepAwake()
		if err != nil {
			return r, err
		}
		defer stop()
	}

	m := &measurement{
		lab:    l,
		watch:  WatchQueues(ctx, l.pairs...),
		bulk:   make([]*RunningBulk, len(l.pairs)),
		counts: make([]CallResult, len(l.pairs)),
		rates:  make([]float64, len(l.pairs)),
		heard:  make([]Heard, len(l.pairs)),
	}
	defer m.watch.Stop()
	defer m.killBulk()
	if err := m.startBulk(ctx); err != nil {
		return r, err
	}
	if err := m.placeCalls(ctx); err != nil {
		return r, err
	}
	if err := m.stopBulk(ctx); err != nil {
		return r, err
	}

	for i, p := range l.pairs {
		if c := m.counts[i]; c.Refused > 0 {
			l.show.note("%s: %d of %d calls were refused for want of room", p.Name, c.Refused, c.Placed)
		}
		if c := m.counts[i]; c.Completed+c.Refused < c.Placed {
			l.show.note("%s: %d of %d calls did not complete: %s", p.Name, c.Placed-c.Completed, c.Placed, c.Why)
		}
	}
	r.Begin = m.begin
	m.fill(&r)
	l.show.end()
	return r, nil
}

// measurement is one Measure in progress; slices are in the order of the pairs.
type measurement struct {
	lab        *Lab
	watch      *QueueWatch
	begin, end time.Time // of the calls

	events []report.Event
	bytes  [][]report.LineBytes // by pair

	bulk   []*RunningBulk
	counts []CallResult
	rates  []float64 // of bulk traffic, Mbit/s
	heard  []Heard
	queues []*report.Queues
}

func (m *measurement) startBulk(ctx context.Context) error {
	o := m.lab.Options
	if o.Bulk == BulkNone {
		return nil
	}
	m.lab.show.timed(bulk.WarmUp, "filling the WAN with %s", o.Bulk)
	return m.lab.each(ctx, func(ctx context.Context, i int, p *Pair) (err error) {
		m.watch.Phase(i, strings.ToUpper(string(o.Bulk))+" bulk")
		m.bulk[i], err = p.StartBulk(ctx, o.Bulk)
		return err
	})
}

// stopBulk ends the bulk traffic and reads what arrived during the calls.
func (m *measurement) stopBulk(ctx context.Context) error {
	if m.lab.Options.Bulk == BulkNone {
		return nil
	}
	m.lab.show.step("ending the bulk traffic")
	return m.lab.each(ctx, func(ctx context.Context, i int, _ *Pair) error {
		rate, err := m.bulk[i].Stop(ctx, m.begin, m.end)
		m.rates[i] = float64(rate) / 1e6
		return err
	})
}

func (m *measurement) killBulk() {
	for _, b := range m.bulk {
		if b != nil {
			b.Kill()
		}
	}
}

// placeCalls captures the calls on all pairs until the last one is over.
func (m *measurement) placeCalls(ctx context.Context) error {
	o := m.lab.Options
	captures := make([]*Listening, len(m.lab.pairs))
	for i, p := range m.lab.pairs {
		var err error
		if captures[i], err = p.Listen(); err != nil {
			return err
		}
	}

	m.begin = time.Now()
	m.watch.Zero(m.begin)
	m.lab.show.timed(rampTime+o.Duration+hangUp, "%d calls of %s on each path", o.Calls, o.Duration)
	before, err := m.lineBytes()
	if err != nil {
		return err
	}
	stopEvents := m.startEvents(ctx)
	err = m.lab.each(ctx, func(ctx context.Context, i int, p *Pair) error {
		m.watch.Phase(i, "calls")
		calls, err := p.StartCalls(ctx, o.Calls, o.Duration)
		if err != nil {
			return err
		}
		if m.counts[i], err = calls.Wait(ctx); err != nil {
			return err
		}
		m.watch.Phase(i, "calls over")
		return host.Pause(ctx, settle)
	})
	m.end = time.Now()
	err = errors.Join(err, stopEvents())
	m.queues = m.watch.Stop()
	if err == nil {
		err = m.countBytes(before)
	}

	for i, c := range captures { // also after an error: a capture owns a goroutine and a socket
		var stopErr error
		m.heard[i], stopErr = c.Stop()
		err = errors.Join(err, stopErr)
	}
	return err
}

// fill enters the figures into the report.
func (m *measurement) fill(r *Result) {
	r.Report.Scenario.Seconds = m.end.Sub(m.begin).Seconds() - settle.Seconds()
	start := quality.Timestamp(m.begin.UnixNano())
	r.Report.Events = m.events
	for i, p := range m.lab.pairs {
		h := m.heard[i]
		r.Report.Paths = append(r.Report.Paths, report.Path{
			Name:  string(p.Name),
			Voice: h.voice(),
			Calls: report.Calls{
				Placed: m.counts[i].Placed, Completed: m.counts[i].Completed, Refused: m.counts[i].Refused,
			},
			Bulk:   report.Bulk{MbitPerS: m.rates[i]},
			Queues: m.queues[i],
			Gaps:   m.gaps(h),
			Lines:  m.bytes[i],
		})
		if i == 0 {
			r.Report.Gaps = r.Report.Paths[0].Gaps
		}
		r.Series = append(r.Series,
			report.NewSeries(string(p.Name), figures.AToB, start, h.AToB.Streams),
			report.NewSeries(string(p.Name), figures.BToA, start, h.BToA.Streams))
	}
}

// startEvents has the options' events happen until the returned function is called, and returns what went wrong.
func (m *measurement) startEvents(ctx context.Context) (stop func() error) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() {
		var err error
		m.events, err = m.lab.happen(ctx, m.begin)
		ended <- err
	}()
	return func() error {
		cancel()
		return <-ended
	}
}

// gaps is what each event cost the calls of a pair.
func (m *measurement) gaps(h Heard) []report.Gap {
	var at []time.Duration
	for _, e := range m.events {
		at = append(at, time.Duration(e.At*float64(time.Second)))
	}
	return gaps(h, m.begin, at, m.lab.Options.Delay)
}

// lineBytes reads what each pair's berlin sent and received by each of its lines so far.
func (m *measurement) lineBytes() ([][]report.LineBytes, error) {
	out := make([][]report.LineBytes, len(m.lab.pairs))
	for i, p := range m.lab.pairs {
		var err error
		if out[i], err = p.carried(); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (m *measurement) countBytes(before [][]report.LineBytes) (err error) {
	if m.bytes, err = m.lineBytes(); err != nil {
		return err
	}
	for i := range m.bytes {
		m.bytes[i] = since(before[i], m.bytes[i])
	}
	return nil
}

// each runs f for all pairs at the same time.
func (l *Lab) each(ctx context.Context, f func(ctx context.Context, i int, p *Pair) error) error {
	g, gctx := errgroup.WithContext(ctx)
	for i, p := range l.pairs {
		g.Go(func() error { return f(gctx, i, p) })
	}
	return g.Wait()
}

func (l *Lab) scenario(begin time.Time) report.Scenario {
	o := l.Options
	s := report.Scenario{
		WAN: "none", WANBits: uint64(o.WAN), Underlay: string(o.Underlay), Overlay: string(o.Overlay),
		BufferBytes: int(o.Buffer),
		DelayUS:     float64(o.Delay) / float64(time.Microsecond), Loss: o.Loss,
		Seed: o.Seed, Bulk: string(o.Bulk), Calls: o.Calls, Codec: "G.711 A-law, 20 ms",
		Started: begin.UTC().Format(time.RFC3339),
	}
	s.Lines = o.Lines
	if o.WAN > 0 {
		s.WAN = o.WAN.String()
	}
	if len(o.Paths) == 1 {
		s.Only = string(o.Paths[0])
	}
	return s
}

// Streams counts the RTP streams, in both directions, that had at least so many packets so far at each phone.
func (l *Listening) Streams(packets int) (a, b int) {
	return l.a.Streams(packets), l.b.Streams(packets)
}

// Count counts the RTP packets, in both directions, so far at each phone.
func (l *Listening) Count() (a, b int) { return l.a.Count(), l.b.Count() }
