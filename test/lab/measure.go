package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"ringway/quality"
	"ringway/test/lab/bulk"
	"ringway/test/lab/capture"
	"ringway/test/lab/host"
	"ringway/test/lab/report"
)

// settle is how long after the last call a packet may still be under way.
const settle = 1500 * time.Millisecond

// Listening is a capture of the calls' RTP at both phones of a pair.
type Listening struct {
	pair *Pair
	a, b *capture.Capture
}

// Heard is what a capture at both phones found, by direction.
type Heard struct {
	AToB, BToA   capture.Direction
	CaptureDrops uint32
}

// Listen begins to capture RTP at both phones.
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

// Stop ends the capture and matches what was sent with what came.
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
	direction := func(name string, d capture.Direction) report.Direction {
		wrong := 0
		for dscp, n := range d.DSCP {
			if dscp != expedited {
				wrong += n
			}
		}
		return report.NewDirection(name, d.Summary(), report.Found{Unmatched: d.Unmatched, CaptureLost: h.CaptureDrops, WrongDSCP: wrong})
	}
	return report.NewVoice(direction(report.AToB, h.AToB), direction(report.BToA, h.BToA))
}

// expedited is the DSCP of Expedited Forwarding (RFC 3246), which phones set on RTP.
const expedited = 46

// Result is what Measure found: the report, and every packet's delay for the plot.
type Result struct {
	Report report.Report
	Series []report.Series
}

// JSON writes the report for machines; the shape stays.
func (r Result) JSON(w io.Writer) error {
	return report.WriteJSON(w, r.Report)
}

// Table writes the report for people.
func (r Result) Table(w io.Writer) error { return report.Table(w, r.Report) }

// Plot draws every packet's delay into a file whose name ends in .png or .svg.
func (r Result) Plot(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return report.Plot(path, r.Report, r.Series)
}

// PlotQueues draws what stood in the queues into a file beside the one that Plot draws, lab-queues.png beside lab.png, and says which. It
// is empty where there was no queue.
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

// wantAwake says whether the cores would fall asleep between packets. What a guest's core then takes to
// wake up is the hypervisor's time, and is measured as the network's. With bulk and no bottleneck they
// are busy anyway.
func (l *Lab) wantAwake() bool { return l.Options.Bulk == BulkNone || l.Options.WAN > 0 }

// Measure fills the WAN as the options say, places the calls on every pair at the same time and listens. Bulk begins before the
// first call and ends after the last.
func (l *Lab) Measure(ctx context.Context) (Result, error) {
	o := l.Options
	r := Result{Report: report.Report{Machine: report.ThisMachine(), Scenario: l.scenario(time.Now())}}
	if l.wantAwake() {
		stop, err := l.pairs[0].Host(Provider).KeepAwake()
		if err != nil {
			return r, err
		}
		defer stop()
	}
	watch := WatchQueues(ctx, l.pairs...)
	defer watch.Stop()
	if o.Bulk != BulkNone {
		l.show.timed(bulk.WarmUp, "filling the WAN with %s", o.Bulk)
	}
	running := make([]*RunningBulk, len(l.pairs))
	defer func() {
		for _, b := range running {
			if b != nil {
				b.Kill()
			}
		}
	}()
	if o.Bulk != BulkNone {
		if err := l.each(ctx, func(ctx context.Context, i int, p *Pair) (err error) {
			watch.Phase(i, strings.ToUpper(string(o.Bulk))+" bulk")
			running[i], err = p.StartBulk(ctx, o.Bulk)
			return err
		}); err != nil {
			return r, err
		}
	}
	ears := make([]*Listening, len(l.pairs))
	for i, p := range l.pairs {
		var err error
		if ears[i], err = p.Listen(); err != nil {
			return r, err
		}
	}
	begin := time.Now()
	watch.Zero(begin)
	l.show.timed(rampTime+o.Duration+hangUp, "%d calls of %s on each path", o.Calls, o.Duration)
	counts := make([]CallResult, len(l.pairs))
	rates := make([]float64, len(l.pairs))
	callErr := l.each(ctx, func(ctx context.Context, i int, p *Pair) error {
		watch.Phase(i, "calls")
		calls, err := p.StartCalls(ctx, o.Calls, o.Duration)
		if err != nil {
			return err
		}
		if counts[i], err = calls.Wait(ctx); err != nil {
			return err
		}
		watch.Phase(i, "calls over")
		return host.Pause(ctx, settle)
	})
	end := time.Now()
	queues := watch.Stop()
	heard := make([]Heard, len(l.pairs))
	for i, e := range ears { // also after an error: a capture holds a goroutine and a socket
		var err error
		if heard[i], err = e.Stop(); err != nil {
			callErr = errors.Join(callErr, err)
		}
	}
	if callErr != nil {
		return r, callErr
	}
	if o.Bulk != BulkNone {
		l.show.step("ending the bulk traffic")
		if err := l.each(ctx, func(ctx context.Context, i int, _ *Pair) error {
			rate, err := running[i].Stop(ctx, begin, end)
			rates[i] = float64(rate) / 1e6
			return err
		}); err != nil {
			return r, err
		}
	}
	for i, p := range l.pairs {
		if c := counts[i]; c.Completed < c.Placed {
			l.show.note("%s: %d of %d calls did not complete: %s", p.Name, c.Placed-c.Completed, c.Placed, c.Why)
		}
	}
	r.Report.Scenario.Seconds = end.Sub(begin).Seconds() - settle.Seconds()
	for i, p := range l.pairs {
		r.Report.Paths = append(r.Report.Paths, report.Path{
			Name:  string(p.Name),
			Voice: heard[i].voice(),
			Calls: report.Calls{Placed: counts[i].Placed, Completed: counts[i].Completed},
			Bulk:  report.Bulk{MbitPerS: rates[i]}, Queues: queues[i],
		})
		start := quality.Timestamp(begin.UnixNano())
		r.Series = append(r.Series,
			report.NewSeries(string(p.Name), report.AToB, start, heard[i].AToB.Streams),
			report.NewSeries(string(p.Name), report.BToA, start, heard[i].BToA.Streams))
	}
	l.show.end()
	return r, nil
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
		WAN: "none", WANBits: uint64(o.WAN), Underlay: string(o.Underlay), Overlay: string(o.Overlay), BufferBytes: int(o.Buffer),
		DelayUS: float64(o.Delay) / float64(time.Microsecond), Loss: o.Loss,
		Seed: o.Seed, Bulk: string(o.Bulk), Calls: o.Calls, Codec: "G.711 A-law, 20 ms", Started: begin.UTC().Format(time.RFC3339),
	}
	if o.WAN > 0 {
		s.WAN = o.WAN.String()
	}
	if len(o.Paths) == 1 {
		s.Only = string(o.Paths[0])
	}
	return s
}

// Streams is how many RTP streams, leaving and arriving, had at least so many packets so far at each phone.
func (l *Listening) Streams(packets int) (a, b int) {
	return l.a.Streams(packets), l.b.Streams(packets)
}

// Count is how many RTP packets were seen so far, leaving and arriving, at each phone.
func (l *Listening) Count() (a, b int) { return l.a.Count(), l.b.Count() }
