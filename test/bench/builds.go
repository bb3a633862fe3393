package bench

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"ringway/quality/figures"
	"ringway/test/bench/report"
	"ringway/test/lab/program"
)

// BuildsOptions name the builds of ringway that are measured in turn.
type BuildsOptions struct {
	Benchmark string   // as the command line names it
	Builds    []string // files: one, or old and new
	Pairs     int
	Command   string // that runs the benchmark for one of them
	Progress  io.Writer
}

// reported is the report of one run.
type reported interface{ Figures() []report.Figure }

func (o *BuildsOptions) check() error {
	if len(o.Builds) < 1 || len(o.Builds) > 2 {
		return fmt.Errorf("%w: --ringway: %d programs (allowed: one, or OLD,NEW)", ErrUsage, len(o.Builds))
	}
	if o.Pairs < 1 || o.Pairs > 100 {
		return fmt.Errorf("%w: --pairs: %d (allowed: 1-100)", ErrUsage, o.Pairs)
	}
	for i, b := range o.Builds {
		path, err := filepath.Abs(b) // on the hosts the working directory is another
		if err != nil {
			return fmt.Errorf("%w: --ringway: %w", ErrUsage, err)
		}
		if st, err := os.Stat(path); err != nil || !st.Mode().IsRegular() {
			return fmt.Errorf("%w: --ringway: %s is not a file", ErrUsage, path)
		}
		o.Builds[i] = path
	}
	return nil
}

// CompareBuilds runs a benchmark for each build in turn, so that the machine's changes meet both alike. Every
// other pair begins with the new build: what the first run of a pair leaves behind (warm caches, a clock that
// has sped up) favours neither.
func CompareBuilds(
	ctx context.Context,
	o BuildsOptions,
	measure func(ctx context.Context, build string) (reported, error),
) (report.Builds, error) {
	if err := o.check(); err != nil {
		return report.Builds{}, err
	}
	out := report.Builds{
		Machine: figures.ThisMachine(),
		Settings: report.BuildsSettings{
			Benchmark: o.Benchmark, Pairs: o.Pairs, Started: time.Now().UTC().Format(time.RFC3339),
			Command: fmt.Sprintf("%s --ringway %s --pairs %d", o.Command, strings.Join(o.Builds, ","), o.Pairs),
		},
	}
	for _, b := range o.Builds {
		p, err := program.Identify(ctx, b)
		if err != nil {
			return report.Builds{}, err
		}
		out.Programs = append(out.Programs, p)
	}

	say := progress(o.Progress)
	for pair := 1; pair <= o.Pairs; pair++ {
		for i := range o.Builds {
			build := i
			if pair%2 == 0 {
				build = len(o.Builds) - 1 - i
			}
			say("pair %d of %d: ringway %s", pair, o.Pairs, out.Programs[build].Version)
			r, err := measure(ctx, o.Builds[build])
			if err != nil {
				return report.Builds{}, fmt.Errorf("pair %d, %s: %w", pair, o.Builds[build], err)
			}
			out.Add(pair, build, r.Figures(), r)
		}
	}
	out.Compare()
	return out, nil
}

// JitterOfBuilds is MeasureJitter for each build in turn.
func JitterOfBuilds(ctx context.Context, b BuildsOptions, o JitterOptions) (report.Builds, error) {
	b.Benchmark, b.Command, b.Progress = "jitter", o.command(), o.Progress
	return CompareBuilds(ctx, b, func(ctx context.Context, build string) (reported, error) {
		o.Programs.Ringway, o.Programs.OtherBuild = build, true
		j, err := MeasureJitter(ctx, o)
		return j.Report, err
	})
}

// ThroughputOfBuilds is MeasureThroughput for each build in turn.
func ThroughputOfBuilds(ctx context.Context, b BuildsOptions, o ThroughputOptions) (report.Builds, error) {
	b.Benchmark, b.Command, b.Progress = "throughput", o.command(), o.Progress
	return CompareBuilds(ctx, b, func(ctx context.Context, build string) (reported, error) {
		o.Programs.Ringway, o.Programs.OtherBuild = build, true
		t, err := MeasureThroughput(ctx, o)
		return t.Report, err
	})
}

// LinkOfBuilds is MeasureLink for each build in turn.
func LinkOfBuilds(ctx context.Context, b BuildsOptions, o LinkOptions) (report.Builds, error) {
	b.Benchmark, b.Command, b.Progress = "link", o.command(), o.Progress
	return CompareBuilds(ctx, b, func(ctx context.Context, build string) (reported, error) {
		o.Ringway = build
		l, err := MeasureLink(ctx, o)
		return l.Report, err
	})
}
