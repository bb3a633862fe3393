package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"ringway/cmd/cli"
	"ringway/srtp/suite"
	"ringway/test/bench/media"
)

// mediaFlags are the flags of `ringway bench media`.
type mediaFlags struct {
	o                      media.Options
	against, cases, suites []string
	json                   bool
}

func benchMediaCommand() *cobra.Command {
	f := &mediaFlags{o: media.Default()}
	for _, p := range f.o.Against {
		f.against = append(f.against, string(p))
	}
	for _, x := range f.o.Cases {
		f.cases = append(f.cases, string(x))
	}
	for _, s := range f.o.Suites {
		f.suites = append(f.suites, s.String())
	}
	c := &cobra.Command{
		Use:     "media",
		Short:   "What it costs to re-key media: CPU a packet, delay, highest rate, memory, beside rtpengine and the kernel",
		Args:    cobra.NoArgs,
		Long:    mediaHelp,
		Example: mediaExamples,
		RunE:    func(c *cobra.Command, _ []string) error { return f.run(c) },
	}
	flags, o := c.Flags(), &f.o
	flags.StringSliceVar(&f.against, "vs", f.against, "rivals beside ringway and the kernel: rtpengine, or nothing")
	flags.StringSliceVar(&f.cases, "cases", f.cases, "what the legs of the caller and the callee are")
	flags.StringSliceVar(&f.suites, "suites", f.suites, "suites of the callee's leg")
	flags.IntSliceVar(&o.Rates, "rates", o.Rates, "rates, in packets a second of all calls in both directions")
	flags.IntVar(&o.Calls, "calls", o.Calls, "calls that are up")
	flags.DurationVar(&o.Duration, "duration", o.Duration, "how long to send, on each path in each round")
	flags.IntVar(&o.Rounds, "rounds", o.Rounds, "how often to repeat all rates on all paths, in turn")
	flags.BoolVar(&o.Best, "best", o.Best, "search the highest rate without loss and with p99 of the delay below 5 ms")
	flags.StringSliceVar(&o.Builds, "ringway", nil, "measure two builds of ringway in turn: `OLD,NEW`, or another one")
	flags.BoolVar(&f.json, "json", false, jsonUsage)
	return c
}

func (f *mediaFlags) run(c *cobra.Command) error {
	o := f.o
	o.Against, o.Cases, o.Suites, o.Version, o.Progress = nil, nil, nil, version, c.ErrOrStderr()
	for _, p := range f.against {
		o.Against = append(o.Against, media.Path(p))
	}
	for _, x := range f.cases {
		o.Cases = append(o.Cases, media.Case(x))
	}
	for _, name := range f.suites {
		s, err := suite.Parse(name)
		if err != nil {
			return cli.UsageError{Err: fmt.Errorf("--suites: %w", err)}
		}
		o.Suites = append(o.Suites, s)
	}
	r, err := media.Measure(c.Context(), o)
	if errors.Is(err, media.ErrUsage) {
		return cli.UsageError{Err: err}
	}
	if err != nil {
		return benchError(c, err)
	}
	return showReport(c, r, f.json)
}

func benchMediaEdgeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "media-edge FILE", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return media.EdgeMain(c.Context(), args[0], os.Stdout)
		},
	}
}
