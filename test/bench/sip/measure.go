package sip

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"strings"
	"time"

	"ringway/quality/figures"
	"ringway/test/bench/cost"
	"ringway/test/lab/host"
	"ringway/test/lab/program"
)

// run is a run in progress.
type run struct {
	o      Options
	say    func(format string, args ...any)
	cores  cost.Cores
	stands map[Path]*stand
	trials int
	out    Report
}

// Measure runs the benchmark. Nothing is left when it returns. It needs root.
func Measure(ctx context.Context, o Options) (Report, error) {
	if err := o.check(); err != nil {
		return Report{}, err
	}
	r := &run{o: o, say: progress(&o), stands: map[Path]*stand{}}
	if err := r.find(ctx); err != nil {
		return Report{}, err
	}
	w, err := host.NewWorld(r.o.Helper)
	if err != nil {
		return Report{}, err
	}
	defer w.Close()
	for _, p := range r.o.paths() {
		r.say("bringing up %s", p)
		s, err := newStand(ctx, w, p, r.o.build(p), r.cores)
		if err != nil {
			return Report{}, fmt.Errorf("path %s: %w", p, err)
		}
		defer s.close()
		r.stands[p] = s
	}
	if s := r.stands[Kamailio]; s != nil {
		r.out.Kamailio = kamailioVersion(ctx, s.box)
	}
	if err := r.dialogs(ctx); err != nil {
		return Report{}, err
	}
	if err := r.rates(ctx); err != nil {
		return Report{}, err
	}
	if err := r.best(ctx); err != nil {
		return Report{}, err
	}
	r.out.summarize()
	return r.out, nil
}

// progress prints messages with the time since it was created.
func progress(o *Options) func(format string, args ...any) {
	begin := time.Now()
	return func(format string, args ...any) {
		if o.Progress != nil {
			fmt.Fprintf(o.Progress, "%6.1fs  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
		}
	}
}

// find finds the programs and the cores, and notes them in the report.
func (r *run) find(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("the benchmark creates network namespaces and needs root (try: sudo ringway bench sip)")
	}
	for _, p := range [][2]string{{"ip", "iproute2"}, {"taskset", "util-linux"}, {"nft", "nftables"},
		{"kamailio", "kamailio"}} {
		if p[0] == "kamailio" && len(r.o.Against) == 0 {
			continue
		}
		if _, err := host.LookPath(p[0]); err != nil {
			return fmt.Errorf("the benchmark needs %s (on Debian: apt-get install %s)", p[0], p[1])
		}
	}
	if len(r.o.Builds) == 0 {
		path, err := program.Find(r.o.Version)
		if err != nil {
			return err
		}
		r.o.Builds = []string{path}
	}
	if r.o.Helper == "" {
		if r.o.Helper, err = os.Executable(); err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
	}
	if r.cores, err = cost.Choose(); err != nil {
		return err
	}
	r.out = Report{
		Machine: figures.ThisMachine(), Paths: []Row{}, Memory: []Memory{}, Best: []Best{},
		Settings: Settings{
			DurationS: r.o.Duration.Seconds(), HoldS: r.o.Hold.Seconds(), Rounds: r.o.Rounds,
			Cores:   [2]int{r.cores.Ends, r.cores.Box},
			Started: time.Now().UTC().Format(time.RFC3339), Command: r.o.command(),
		},
	}
	if len(r.o.Builds) == 2 {
		old, err := program.Identify(ctx, r.o.build(Old))
		if err != nil {
			return err
		}
		r.out.Old = &old
	}
	r.out.Ringway, err = program.Identify(ctx, r.o.build(Ringway))
	return err
}

// trial runs calls through a path, and checks that Ringway has read them.
func (r *run) trial(ctx context.Context, p Path, t trial) (Trial, error) {
	s := r.stands[p]
	r.trials++
	t.name = fmt.Sprintf("t%d-", r.trials)
	if t.rest == 0 {
		t.rest = restTime
	}
	if p != Ringway && p != Old {
		out, err := s.run(ctx, t)
		return out, errors.Join(err, s.alive())
	}
	before, err := s.status(ctx)
	if err != nil {
		return Trial{}, err
	}
	out, err := s.run(ctx, t)
	if err != nil {
		return out, errors.Join(err, s.alive())
	}
	after, err := s.status(ctx)
	if err != nil {
		return Trial{}, err
	}
	was, is := before.Calls, after.Calls
	if out.Restarted {
		r.say("%s: one of its processes was replaced while there were calls", p)
		return out, nil
	}
	// A relay that is silent for a while is passed by.
	out.Unread = max(0, int(kinds)*(out.Placed-out.Lost)-int(is.Messages-was.Messages))
	if out.Unread > 0 {
		r.say("%s: %d messages of %d calls passed unread", p, out.Unread, out.Placed)
	}
	out.LateFlows = is.Late - was.Late
	if out.Lost > 0 {
		r.say("%s lost %d of %d calls; counters: refused %v, unread %v, transport %v, holes not opened %v", p,
			out.Lost, out.Placed, is.Refused, is.Unread, counted(is.Transport), is.NotOpen)
	}
	out.HolesLeft = max(0, is.Holes-was.Holes)
	return out, nil
}

// counted are the counters that are not zero.
func counted(all map[string]uint64) map[string]uint64 {
	out := maps.Clone(all)
	maps.DeleteFunc(out, func(_ string, n uint64) bool { return n == 0 })
	return out
}

// rates measures all paths at all rates, in rounds.
func (r *run) rates(ctx context.Context) error {
	for _, rate := range r.o.Rates {
		for _, p := range r.o.paths() {
			r.out.Paths = append(r.out.Paths, Row{Name: p, CallsPerS: float64(rate)})
		}
	}
	paths := r.o.paths()
	for round := range r.o.Rounds {
		for _, rate := range r.o.Rates {
			for i := range paths {
				p := paths[(i+round)%len(paths)] // none is always the first
				t, err := r.trial(ctx, p, trial{rate: rate, count: max(1, int(float64(rate)*r.o.Duration.Seconds())),
					hold: r.o.Hold})
				if err != nil {
					return fmt.Errorf("%s at %d calls/s: %w", p, rate, err)
				}
				w := r.out.row(p, float64(rate))
				w.Rounds = append(w.Rounds, t)
				r.say("round %d of %d, %d calls/s, %s: lost %d, %.0f µs a call, delay p50 %.0f µs, p99 %.0f µs", round+1,
					r.o.Rounds, rate, p, t.Lost, t.CPUPerCallUS, t.Delay.P50, t.Delay.P99)
			}
		}
	}
	return nil
}

// fillRate is how fast dialogs are set up whose memory is read, warmCalls are placed before.
const (
	fillRate  = 500
	warmCalls = 1000
	settle    = time.Second
)

// dialogs reads the memory that many dialogs take.
func (r *run) dialogs(ctx context.Context) error {
	if r.o.Calls == 0 {
		return nil
	}
	for _, p := range r.o.paths() {
		if p == Kernel {
			continue
		}
		s, m := r.stands[p], Memory{Name: p, Dialogs: r.o.Calls}
		warm := trial{rate: fillRate, count: warmCalls, hold: 100 * time.Millisecond}
		if _, err := r.trial(ctx, p, warm); err != nil {
			return fmt.Errorf("memory of %s: %w", p, err)
		}
		before, err := s.memory()
		if err != nil {
			return err
		}
		filling := time.Duration(r.o.Calls) * time.Second / fillRate
		t, err := r.trial(ctx, p, trial{
			rate: fillRate, count: r.o.Calls, hold: filling + 3*settle,
			up: func(int) error {
				if err := host.Pause(ctx, settle); err != nil {
					return err
				}
				after, err := s.memory()
				m.BytesPerDialog = float64(after-before) / float64(r.o.Calls)
				if err == nil && p != Kamailio {
					st, serr := s.status(ctx)
					m.Holes, err = st.Calls.Holes, serr
				}
				return err
			},
		})
		if err != nil {
			return fmt.Errorf("memory of %s: %w", p, err)
		}
		if t.Lost > 0 {
			m.Dialogs -= t.Lost
		}
		r.out.Memory = append(r.out.Memory, m)
		r.say("memory of %s: %d dialogs, %.0f bytes each, %d lost", p, m.Dialogs, m.BytesPerDialog, t.Lost)
	}
	return nil
}

// A search: from the highest rate up in steps until calls are lost, or down; then bisected.
const (
	searchStep     = 1.3
	searchCloser   = 1.06 // resolution
	searchDuration = 2 * time.Second
	searchFrom     = 100
)

// best searches the highest rate without loss of each path that is not the kernel's.
func (r *run) best(ctx context.Context) error {
	if !r.o.Best {
		return nil
	}
	for _, p := range r.o.paths() {
		if p == Kernel {
			continue
		}
		good, bad, rate := 0.0, 0.0, float64(r.o.Rates[len(r.o.Rates)-1])
		for (good == 0 || bad == 0 || bad/good > searchCloser) && rate >= searchFrom && rate <= maxRate {
			t, err := r.trial(ctx, p, trial{rate: int(rate), count: int(rate * searchDuration.Seconds()), hold: r.o.Hold})
			if err != nil {
				return fmt.Errorf("%s at %.0f calls/s: %w", p, rate, err)
			}
			r.say("search, %s at %.0f calls/s: lost %d", p, rate, t.Lost)
			if t.Lost == 0 && t.Unread == 0 {
				good = rate
			} else {
				bad = rate
			}
			rate = between(good, bad)
		}
		r.out.Best = append(r.out.Best, Best{Name: p, CallsPerS: good, Lossy: bad})
	}
	return nil
}

// between is the next rate of a search.
func between(good, bad float64) float64 {
	switch {
	case bad == 0:
		return good * searchStep
	case good == 0:
		return bad / searchStep
	}
	return (good + bad) / 2
}

// kamailioVersion is the first line that it says of itself.
func kamailioVersion(ctx context.Context, h *host.Host) string {
	out, err := h.Run(ctx, "kamailio", "-v")
	if err != nil {
		return "Kamailio of unknown version"
	}
	line, _, _ := strings.Cut(out, "\n")
	return strings.TrimPrefix(line, "version: ")
}
