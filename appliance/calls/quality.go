package calls

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"ringway/quality"
	"ringway/sip/call"
	"ringway/tunnel"
)

const (
	// measureEvery is how often the engine is asked what it counted: it shows a series for 50 s after its last packet.
	measureEvery = 15 * time.Second
	// measuredLately is how old an answer may be when calls are shown.
	measuredLately = time.Second
	// measureLimit bounds how long the engine may take.
	measureLimit = time.Second
	// seriesKept and maxSeriesKept bound what is remembered of media that has ended: a call may be on hold for long.
	seriesKept    = time.Hour
	maxSeriesKept = 32768
	// beforeCall is how long before a call the media may have begun that is taken for its own: clocks are read apart.
	beforeCall = 2 * time.Second
	// toldBy is when the far end has told all that it knows of a series, after its last packet.
	toldBy = 10 * time.Second
)

// meter knows what the media of calls went through: it asks the engine, and remembers what the engine forgets.
type meter struct {
	engine Engine
	queues queueDrops
	now    func() time.Time

	asking sync.Mutex // held while the engine is asked; before mu

	mu     sync.Mutex // guards what follows
	at     time.Time  // of the last answer, or failure
	err    error      // of the last question
	series map[seriesKey]*measured
	byTo   map[netip.AddrPort][]*measured
	totals map[totalKey]*total
	beyond uint64 // of engines that are gone
	latest uint64 // of the engine that was asked last
	keeper int
}

// seriesKey is a series of one plane: another one counts from the start.
type seriesKey struct {
	keeper int
	out    bool
	number uint32
}

// measured is a series with how much of it is in the totals.
type measured struct {
	tunnel.SeriesStatus
	counted total
	losses  lineLosses
}

// totalKey is whose media is summed up.
type totalKey struct {
	site string
	out  bool
}

// total is how many packets came as far as is known, and how many were lost in each segment.
type total struct {
	packets uint64
	lost    losses
}

// losses are lost packets by segment, in the order of call.Segments.
type losses [len(call.Segments)]uint64

const (
	inPhoneLAN = iota
	inThisBox
	onLine
	inFarBox
	inFarLAN
	inUnknown
)

// totalOf is what is known of a series.
func totalOf(s *tunnel.SeriesStatus) (t total) {
	before := uint64(s.Expected - min(s.Arrived, s.Expected))
	t.lost[inThisBox] = uint64(s.Arrived - min(s.Passed, s.Arrived))
	if s.Out {
		t.lost[inPhoneLAN] = before
		t.lost[onLine], t.lost[inFarBox], t.lost[inFarLAN] = uint64(s.Line), uint64(s.FarBox), uint64(s.FarLAN)
	} else {
		// A packet that came after its word was told was not lost after all: less than what both ends know is left.
		told := losses{onLine: uint64(s.Line), inFarBox: uint64(s.FarBox), inFarLAN: uint64(s.FarLAN)}
		for i, n := range told {
			n = min(n, before)
			t.lost[i] += n
			before -= n
		}
		t.lost[inUnknown] = before
	}
	t.packets = uint64(s.Expected)
	for _, n := range t.lost {
		t.packets -= min(n, t.packets)
	}
	return t
}

func newMeter(e Engine) *meter {
	return &meter{
		engine: e, now: time.Now, series: map[seriesKey]*measured{}, byTo: map[netip.AddrPort][]*measured{},
		totals: map[totalKey]*total{},
	}
}

// refresh asks the engine unless that was done lately.
func (m *meter) refresh(ctx context.Context) {
	m.asking.Lock()
	defer m.asking.Unlock()
	m.mu.Lock()
	fresh := !m.at.IsZero() && m.now().Sub(m.at) < measuredLately
	m.mu.Unlock()
	if !fresh {
		m.look(ctx)
	}
}

// look asks the engine. It is called with asking held.
func (m *meter) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, measureLimit)
	defer cancel()
	keeper := m.engine.Keeper()
	all, beyond, err := m.engine.Series(ctx)
	m.mu.Lock()
	defer m.mu.Unlock()
	now := m.now()
	m.at, m.err = now, err
	if err != nil {
		return
	}
	if keeper != m.keeper {
		m.beyond, m.keeper = m.beyond+m.latest, keeper
	}
	m.latest = beyond
	for _, s := range all {
		m.takeLocked(seriesKey{keeper, s.Out, s.Number}, s)
	}
	m.forgetLocked(now)
	clear(m.byTo)
	for _, x := range m.series {
		m.byTo[x.Flow.Destination] = append(m.byTo[x.Flow.Destination], x)
	}
}

// takeLocked remembers a series, and adds to the totals what is new of it.
func (m *meter) takeLocked(k seriesKey, s tunnel.SeriesStatus) {
	x := m.series[k]
	if x == nil {
		x = &measured{}
		m.series[k] = x
	} else if x.Last.After(s.Last) {
		s.Last = x.Last
	}
	x.SeriesStatus = s
	x.losses.take(s.LineAt, &m.queues)
	sum := m.totals[totalKey{s.SiteName, s.Out}]
	if sum == nil {
		sum = &total{}
		m.totals[totalKey{s.SiteName, s.Out}] = sum
	}
	now := totalOf(&s)
	if m.now().Sub(s.Last) < toldBy { // what the far end will tell yet may make it known
		now.lost[inUnknown] = 0
	}
	add := func(sum, counted *uint64, now uint64) {
		if now > *counted { // a packet that overtook another one made that look lost for a moment
			*sum += now - *counted
			*counted = now
		}
	}
	add(&sum.packets, &x.counted.packets, now.packets)
	for i := range now.lost {
		add(&sum.lost[i], &x.counted.lost[i], now.lost[i])
	}
}

// forgetLocked forgets what ended long ago, and the oldest of what is too much.
func (m *meter) forgetLocked(now time.Time) {
	for k, x := range m.series {
		if now.Sub(x.Last) > seriesKept {
			delete(m.series, k)
		}
	}
	if len(m.series) <= maxSeriesKept {
		return
	}
	keys := make([]seriesKey, 0, len(m.series))
	for k := range m.series {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b seriesKey) int { return m.series[a].Last.Compare(m.series[b].Last) })
	for _, k := range keys[:len(keys)-maxSeriesKept] {
		delete(m.series, k)
	}
}

// of is what the flows of a call went through; ended is zero while it lives. codec is the name of its first one.
func (m *meter) of(flows []call.Flow, began, ended time.Time, codec string) (sent, received *call.Quality) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out, in []*measured
	for _, f := range flows {
		for _, x := range m.matchLocked(f) {
			list := &in
			if x.Out {
				list = &out
			}
			inTime := !x.Began.Before(began.Add(-beforeCall)) && (ended.IsZero() || !x.Began.After(ended))
			if inTime && !slices.Contains(*list, x) {
				*list = append(*list, x)
			}
		}
	}
	return qualityOf(out, codec), qualityOf(in, codec)
}

// matchLocked are the series of a flow. Where a session description does not say who sends, it is known by where it
// goes.
func (m *meter) matchLocked(f call.Flow) (found []*measured) {
	to, err := netip.ParseAddrPort(f.To)
	if err != nil {
		return nil
	}
	from, _ := netip.ParseAddr(f.From)
	all := m.byTo[to]
	for _, x := range all {
		if x.Flow.Source.Addr() == from {
			found = append(found, x)
		}
	}
	if len(found) == 0 {
		return all
	}
	return found
}

// qualityOf sums up the series of one direction; nil: there is none.
func qualityOf(list []*measured, codec string) *call.Quality {
	if len(list) == 0 {
		return nil
	}
	q := &call.Quality{Where: map[string]uint64{}, Why: map[string]uint64{}}
	most := list[0]
	for _, x := range list {
		t := totalOf(&x.SeriesStatus)
		q.Packets += t.packets
		for i, n := range t.lost {
			if q.Lost += n; n > 0 {
				q.Where[call.Segments[i]] += n
			}
		}
		for why, n := range x.Dropped {
			q.Why[why] += uint64(n)
		}
		if x.Arrived > most.Arrived {
			most = x
		}
		q.JitterMax = max(q.JitterMax, milliseconds(x.JitterPeak))
	}
	q.WANDrops = wanDrops(list)
	q.Jitter = milliseconds(most.JitterMean)
	if most.Delay > 0 {
		q.Delay = max(milliseconds(most.Delay), 0.01) // absent would be unknown
	}
	c, _ := quality.CodecNamed(strings.TrimSpace(codec))
	v := quality.Rate(q.Loss(), most.JitterMean, most.Delay, c)
	q.R, q.MOS = hundredths(v.R), hundredths(v.MOS)
	return q
}

func milliseconds(d time.Duration) float64 { return hundredths(float64(d) / float64(time.Millisecond)) }

// hundredths is as exact as any of these figures is worth.
func hundredths(x float64) float64 { return float64(int64(x*100+0.5)) / 100 }

// fill adds to calls what their media went through.
func (m *meter) fill(calls []call.Call) {
	for i := range calls {
		c := &calls[i]
		codec := ""
		if len(c.Codecs) > 0 {
			codec = c.Codecs[0]
		}
		c.Sent, c.Received = m.of(c.Media, c.Began, c.Ended, codec)
	}
}

// MediaStatus is what the media of calls went through in all.
type MediaStatus struct {
	Measured bool         `json:"measured"`
	Why      string       `json:"why,omitempty"` // it is not
	Series   [2]int       `json:"series"`        // that had packets lately: received, sent
	Beyond   uint64       `json:"beyond"`        // packets that were not counted: too many series
	Sites    []MediaTotal `json:"sites,omitempty"`
}

// MediaTotal is what media with one site went through in one direction.
type MediaTotal struct {
	Site    string            `json:"site"`
	Out     bool              `json:"out,omitempty"`
	Packets uint64            `json:"packets"`
	Lost    map[string]uint64 `json:"lost"` // by segment
}

func (m *meter) status() (s MediaStatus) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.Measured, s.Beyond = m.err == nil && !m.at.IsZero(), m.beyond+m.latest
	if m.err != nil {
		s.Why = m.err.Error()
	}
	for k, x := range m.series {
		if k.keeper == m.keeper && m.at.Sub(x.Last) < measureEvery {
			if x.Out {
				s.Series[1]++
			} else {
				s.Series[0]++
			}
		}
	}
	for k, t := range m.totals {
		x := MediaTotal{Site: k.site, Out: k.out, Packets: t.packets, Lost: map[string]uint64{}}
		for i, n := range t.lost {
			if name := call.Segments[i]; n > 0 || k.out && i == inPhoneLAN || !k.out && i == inFarLAN || i == onLine {
				x.Lost[name] = n
			}
		}
		s.Sites = append(s.Sites, x)
	}
	slices.SortFunc(s.Sites, func(a, b MediaTotal) int {
		if c := strings.Compare(a.Site, b.Site); c != 0 || a.Out == b.Out {
			return c
		}
		if a.Out {
			return -1
		}
		return 1
	})
	return s
}
