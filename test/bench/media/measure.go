package media

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"ringway/quality/figures"
	"ringway/srtp/suite"
	"ringway/test/bench/cost"
	"ringway/test/lab/host"
	"ringway/test/lab/program"
)

// run is a run in progress.
type run struct {
	o     Options
	say   func(format string, args ...any)
	cores cost.Cores
	out   Report
}

// Measure runs the benchmark. Nothing is left when it returns. It needs root.
func Measure(ctx context.Context, o Options) (Report, error) {
	if err := o.check(); err != nil {
		return Report{}, err
	}
	begin := time.Now()
	r := &run{o: o, say: func(format string, args ...any) {
		if o.Progress != nil {
			fmt.Fprintf(o.Progress, "%6.1fs  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
		}
	}}
	if err := r.find(ctx); err != nil {
		return Report{}, err
	}
	for _, c := range r.o.Cases {
		for _, s := range r.o.Suites {
			if err := r.measure(ctx, c, s); err != nil {
				return Report{}, fmt.Errorf("%s, %s: %w", c, s, err)
			}
		}
	}
	r.out.summarize()
	return r.out, nil
}

// find finds the programs and the cores, and notes them in the report.
func (r *run) find(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("the benchmark creates network namespaces and needs root (try: sudo ringway bench media)")
	}
	for _, p := range [][2]string{{"ip", "iproute2"}, {"taskset", "util-linux"}, {"nft", "nftables"},
		{"rtpengine", "rtpengine-daemon"}} {
		if p[0] == "rtpengine" && len(r.o.Against) == 0 {
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
	if r.cores.Box == r.cores.Ends {
		return errors.New("the benchmark needs two processors: one for the ends, one for the box")
	}
	r.out = Report{
		Machine: figures.ThisMachine(), Cases: []CaseReport{},
		Settings: Settings{
			Calls: r.o.Calls, DurationS: r.o.Duration.Seconds(), Rounds: r.o.Rounds,
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

// measure measures all paths in one case with one suite, in rounds.
func (r *run) measure(ctx context.Context, c Case, s suite.Suite) error {
	w, err := host.NewWorld(r.o.Helper)
	if err != nil {
		return err
	}
	defer w.Close()
	out := CaseReport{Case: c, Suite: s.String(), Other: "RTP"}
	if c == ReKey {
		out.Other = callersSuite(s).String()
	}
	paths := r.o.paths()
	stands := map[Path]*stand{}
	for _, p := range paths {
		r.say("%s, %s: bringing up %s", c, s, p)
		st, err := newStand(ctx, w, r, p, c, s)
		if err != nil {
			return fmt.Errorf("path %s: %w", p, err)
		}
		defer st.close()
		stands[p] = st
		row := PathReport{Name: p}
		for _, rate := range r.o.Rates {
			row.Rates = append(row.Rates, RateReport{PPS: rate})
		}
		out.Paths = append(out.Paths, row)
	}
	if st := stands[RTPEngine]; st != nil && r.out.RTPEngine == "" {
		r.out.RTPEngine = rtpengineVersion(ctx, st.box)
	}
	for round := range r.o.Rounds {
		for n, rate := range r.o.Rates {
			for i := range paths {
				k := (i + round) % len(paths) // none is always the first
				t, err := stands[paths[k]].trial(ctx, rate, r.o.Duration)
				if err != nil {
					return fmt.Errorf("%s at %d packets/s: %w", paths[k], rate, err)
				}
				out.Paths[k].Rates[n].Rounds = append(out.Paths[k].Rates[n].Rounds, t)
				r.say("round %d of %d, %d packets/s, %s: lost %d, %.0f ns a packet, delay p50 %.0f us, p99.9 %.0f us",
					round+1, r.o.Rounds, rate, paths[k], t.Lost, t.CoreNS, t.Delay.P50, t.Delay.P999)
			}
		}
	}
	for k, p := range paths {
		if p == Kernel {
			continue
		}
		st, row := stands[p], &out.Paths[k]
		full, err := st.memory()
		if err != nil {
			return err
		}
		row.MemoryMiB = float64(full) / (1 << 20)
		row.MemoryPerCall = float64(full-st.bare) / float64(r.o.Calls)
	}
	if r.o.Best {
		for k, p := range paths {
			if p == Kernel {
				continue
			}
			if err := r.best(ctx, stands[p], &out.Paths[k]); err != nil {
				return err
			}
		}
	}
	r.out.Cases = append(r.out.Cases, out)
	return nil
}

// trial is run with a rate that is noted.
func (s *stand) trial(ctx context.Context, rate int, d time.Duration) (Trial, error) {
	t, err := s.run(ctx, rate, d, false)
	t.PPS = rate
	return t, err
}

// A search: from the highest rate up in steps until packets are lost or late, or down; then bisected. A rate counts
// if it passes twice.
const (
	searchStep     = 1.3
	searchCloser   = 1.06 // resolution
	searchDuration = time.Second
	searchFrom     = 5000
)

// best searches the highest rate of a path.
func (r *run) best(ctx context.Context, s *stand, out *PathReport) error {
	good, bad, rate := 0.0, 0.0, float64(r.o.Rates[len(r.o.Rates)-1])
	for (good == 0 || bad == 0 || bad/good > searchCloser) && rate >= searchFrom && rate <= maxRate {
		passed := false
		for range 2 {
			t, err := s.trial(ctx, int(rate), searchDuration)
			if err != nil {
				return fmt.Errorf("%s at %.0f packets/s: %w", s.path, rate, err)
			}
			out.Search = append(out.Search, t)
			r.say("search, %s at %.0f packets/s: lost %d, p99 %.0f us, sender late %.0f us", s.path, rate, t.Lost,
				t.Delay.P99, t.SenderLateUS)
			if passed = t.passable(); !passed {
				break
			}
		}
		if passed {
			good = rate
		} else {
			bad = rate
		}
		rate = between(good, bad)
	}
	out.BestRatePPS = good
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

// rtpengineVersion is what it says of itself, on standard error.
func rtpengineVersion(ctx context.Context, h *host.Host) string {
	out, err := h.Run(ctx, "sh", "-c", "rtpengine --version 2>&1")
	_, version, found := strings.Cut(strings.TrimSpace(out), "Version: ")
	if err != nil || !found {
		version = "of unknown version"
	}
	return "rtpengine " + version + ", in user space, one thread"
}
