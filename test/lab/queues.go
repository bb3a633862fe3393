package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"sync"
	"time"

	"ringway/appliance"
	"ringway/appliance/config"
	"ringway/appliance/control"
	"ringway/qos"
	"ringway/qos/tc"
	"ringway/quality/figures"
	"ringway/test/lab/host"
	"ringway/test/lab/provider"
	"ringway/test/lab/report"
)

// queueEvery is the sampling interval: short enough to see queues fill, and cheap on a machine whose latency
// is being measured.
const queueEvery = 200 * time.Millisecond

// readTime bounds one sample of one host.
const readTime = 5 * time.Second

// QueueWatch samples the queues on the paths of all pairs a few times a second. A Ringway edge is asked over
// its control socket for its queues only, which its voice plane does not notice; the queues of other edges
// and of the provider come from the kernel, or from the relay where that is the wire.
type QueueWatch struct {
	cancel context.CancelFunc
	done   chan struct{}
	begin  time.Time // of the sampling

	mu   sync.Mutex
	zero time.Time
	ways []*queuePath
}

// queuePath is the state of one pair.
type queuePath struct {
	readers []*queueReader
	phases  []mark
	samples []queueSample
	took    time.Duration // by all samples
	missed  int
	why     error
}

type mark struct {
	name string
	at   time.Time
}

type queueSample struct {
	at     time.Time
	queues []queueValue
}

// queueKey identifies a queue.
type queueKey struct{ direction, place, class, site string }

type queueValue struct {
	queueKey
	qos.QueueFlow
	limit   qos.ByteCount
	dropped float64
}

// queueReader reads the queues of one host.
type queueReader struct {
	direction, place string
	read             func(context.Context) (queueReading, error)
	close            func()
	last             queueReading
	at               time.Time
}

type queueReading struct {
	stats     []qos.QueueStats
	flows     *qos.ByteCount // what waits in the flow queues of class data
	flowDrops uint64
}

// WatchQueues starts to sample the queues of the pairs; figures are in the order of the pairs. Stop ends it.
func WatchQueues(ctx context.Context, pairs ...*Pair) *QueueWatch {
	w := newQueueWatch(pairs)
	ctx, w.cancel = context.WithCancel(ctx)
	go func() {
		defer close(w.done)
		t := time.NewTicker(queueEvery)
		defer t.Stop()
		for {
			w.look(ctx)
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
		}
	}()
	return w
}

func newQueueWatch(pairs []*Pair) *QueueWatch {
	w := &QueueWatch{done: make(chan struct{}), begin: time.Now()}
	w.zero = w.begin
	for _, p := range pairs {
		w.ways = append(w.ways, &queuePath{readers: p.queueReaders()})
	}
	return w
}

// Zero sets the origin of the time axis.
func (w *QueueWatch) Zero(at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.zero = at
}

// Phase records the load of a pair from now on.
func (w *QueueWatch) Phase(pair int, name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ways[pair].phases = append(w.ways[pair].phases, mark{name, time.Now()})
}

// Stop ends the sampling and returns the series, in the order of the pairs; nil for a pair without queues. It
// may be called again.
func (w *QueueWatch) Stop() []*report.Queues {
	w.cancel()
	<-w.done
	return w.found()
}

func (w *QueueWatch) found() []*report.Queues {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []*report.Queues
	for _, way := range w.ways {
		for _, r := range way.readers {
			if r.close != nil {
				r.close()
			}
		}
		out = append(out, way.report(w.zero))
	}
	return out
}

// look takes one sample of all pairs.
func (w *QueueWatch) look(ctx context.Context) {
	for _, way := range w.ways {
		begin := time.Now()
		s, err := way.read(ctx)
		w.mu.Lock()
		switch {
		case ctx.Err() != nil: // the sampling ended meanwhile
		case err != nil:
			way.missed, way.why = way.missed+1, err
		case s != nil:
			s.at = begin
			way.samples = append(way.samples, *s)
			way.took += time.Since(begin)
		}
		w.mu.Unlock()
	}
}

// read returns nothing the first time: a rate needs two samples.
func (w *queuePath) read(ctx context.Context) (*queueSample, error) {
	now, at := make([]queueReading, len(w.readers)), make([]time.Time, len(w.readers))
	for i, r := range w.readers {
		ctx, cancel := context.WithTimeout(ctx, readTime)
		var err error
		now[i], err = r.read(ctx)
		cancel()
		if err != nil { // an incomplete sample is dropped: the next rates count from the last complete one
			return nil, err
		}
		at[i] = time.Now()
	}
	var s queueSample
	for i, r := range w.readers {
		if !r.at.IsZero() {
			s.queues = append(s.queues, r.values(now[i], at[i].Sub(r.at))...)
		}
		r.last, r.at = now[i], at[i]
	}
	if len(s.queues) == 0 {
		return nil, nil
	}
	return &s, nil
}

func (r *queueReader) values(now queueReading, passed time.Duration) (out []queueValue) {
	var data qos.QueueFlow // of the site, for the flow queues before it
	for i, f := range qos.Flows(r.last.stats, now.stats, passed) {
		out = append(
			out,
			queueValue{
				queueKey{r.direction, r.place, string(f.Class), f.Site},
				f,
				now.stats[i].Limit,
				math.Round(f.DropsASecond * passed.Seconds()),
			},
		)
		if f.Class == qos.Data && f.Site != qos.Local {
			data = f
		}
	}
	if now.flows != nil {
		// Their bound is a time of the line, and they have no rate of their own.
		f := qos.QueueFlow{
			Class:   qos.Data,
			Ceiling: data.Ceiling,
			Backlog: *now.flows,
			Wait:    data.Ceiling.Serialization(*now.flows),
		}
		out = append(
			out,
			queueValue{
				queueKey{r.direction, report.AtFlows, string(f.Class), data.Site},
				f,
				0,
				float64(now.flowDrops - min(r.last.flowDrops, now.flowDrops)),
			},
		)
	}
	return out
}

func (w *queuePath) report(zero time.Time) *report.Queues {
	if len(w.samples) == 0 && w.missed == 0 {
		return nil
	}
	out := &report.Queues{
		Interval: queueEvery.Seconds(),
		Missed:   w.missed,
		Phases:   []report.Phase{},
		Seconds:  []float64{},
		Series:   []report.QueueSeries{},
	}
	if w.why != nil {
		out.Why = w.why.Error()
	}
	seconds := func(t time.Time) float64 { return rounded(t.Sub(zero).Seconds(), 1000) }
	for _, m := range w.phases {
		out.Phases = append(out.Phases, report.Phase{Name: m.name, From: seconds(m.at)})
	}
	var order []queueKey
	series := map[queueKey]*report.QueueSeries{}
	for i, s := range w.samples {
		out.Seconds = append(out.Seconds, seconds(s.at))
		for _, q := range s.queues {
			one := series[q.queueKey]
			if one == nil {
				one = &report.QueueSeries{Direction: q.direction, Place: q.place, Class: q.class, Site: q.site}
				for _, v := range []*[]float64{&one.Bits, &one.Backlog, &one.Wait, &one.Drops} {
					*v = make([]float64, len(w.samples))
				}
				series[q.queueKey], order = one, append(order, q.queueKey)
			}
			one.Rate, one.Ceil, one.Limit = uint64(q.Guaranteed), uint64(q.Ceiling), uint64(q.limit)
			one.Bits[i], one.Backlog[i] = float64(q.Now), float64(q.Backlog)
			one.Wait[i], one.Drops[i] = rounded(q.Wait.Seconds()*1000, 1000), q.dropped
		}
	}
	for _, k := range order {
		s := series[k]
		if s.Place == report.AtFlows {
			s.Bits = nil
		}
		if !s.Idle() {
			out.Series = append(out.Series, *s)
		}
	}
	if n := len(w.samples); n > 0 {
		out.Took = rounded(float64(w.took)/float64(n)/float64(time.Microsecond), 1)
	}
	return out
}

func rounded(v, to float64) float64 { return math.Round(v*to) / to }

// queueReaders are those of a pair, in the order in which a packet passes from a to b, then back.
func (p *Pair) queueReaders() (out []*queueReader) {
	o := p.lab.Options
	if len(p.lines) > 0 {
		return nil // a series has no name for a line
	}
	for i, s := range sides {
		e, towards := p.edges[s.edge], []string{figures.AToB, figures.BToA}[i]
		edge := &queueReader{direction: towards, place: report.AtEdge}
		switch {
		case !e.stock:
			paths := appliance.Paths{Run: e.Path(appliance.DefaultPaths().Run)}
			c := control.NewClient(paths.Socket())
			edge.read, edge.close = func(ctx context.Context) (queueReading, error) { return e.queues(ctx, c) }, c.Close
			out = append(out, edge)
		case len(stockQueue(p.Name, o.WAN)) > 0:
			edge.read = rootQueue(e.Host, "wan0", o.WAN.Percent(100-config.DefaultMargin), 0)
			out = append(out, edge)
		}
		if o.WAN == 0 {
			continue
		}
		far := &queueReader{
			direction: towards,
			place:     report.AtProvider,
			read:      rootQueue(p.Host(Provider), sides[1-i].provider, o.WAN, o.Buffer),
		}
		if o.Wire {
			far.read = func(ctx context.Context) (queueReading, error) { return p.wireQueue(ctx, i) }
		}
		out = append(out, far)
	}
	return out
}

// queues asks an edge's daemon for the queues of its WAN.
func (e *Edge) queues(ctx context.Context, c *control.Client) (queueReading, error) {
	now, err := c.Queues(ctx)
	if err != nil {
		return queueReading{}, fmt.Errorf("%s: ask for the queues: %w", e.Name, err)
	}
	var r queueReading
	for _, q := range now.Queues {
		if slices.Contains(qos.ClassNames, q.Class) { // not the ones towards the LANs
			r.stats = append(r.stats, q)
		}
	}
	if now.Flows != nil {
		n := qos.ByteCount(now.Flows.Bytes)
		r.flows, r.flowDrops = &n, now.FlowDrops
	}
	return r, nil
}

// rootQueue reads the only queue of a device that is limited to a rate.
func rootQueue(
	h *host.Host,
	device string,
	rate qos.BitRate,
	limit qos.ByteCount,
) func(context.Context) (queueReading, error) {
	return func(context.Context) (r queueReading, err error) {
		err = h.Do(func() error {
			s, found, err := tc.RootStats(device)
			if err == nil && !found {
				err = errors.New("there is no queue")
			}
			s.Rate, s.Ceil, s.Limit = rate, rate, limit
			r.stats = []qos.QueueStats{s}
			return err
		})
		if err != nil {
			err = fmt.Errorf("%s: read the queue of %s: %w", h.Name, device, err)
		}
		return r, err
	}
}

// wireQueue asks the provider's relay for the FIFO before its wire, of the direction that starts at side i.
func (p *Pair) wireQueue(ctx context.Context, i int) (queueReading, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", p.Host(Provider).Path(providerSocket))
	if err != nil {
		return queueReading{}, fmt.Errorf("%s: ask for the queues: %w", Provider, err)
	}
	defer c.Close()
	if until, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(until)
	}
	var q []provider.Queue
	if err := json.NewDecoder(c).Decode(&q); err != nil {
		return queueReading{}, fmt.Errorf("%s: read what it says of its queues: %w", Provider, err)
	}
	if len(q) != len(sides) {
		return queueReading{}, fmt.Errorf("%s: it speaks of %d queues", Provider, len(q))
	}
	o := p.lab.Options
	return queueReading{
		stats: []qos.QueueStats{{Rate: o.WAN, Ceil: o.WAN, Limit: o.Buffer, Sent: qos.ByteCount(q[i].Sent),
			Backlog: qos.ByteCount(q[i].Backlog), Drops: q[i].Drops}},
	}, nil
}
