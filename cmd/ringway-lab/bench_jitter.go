package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"ringway/cmd/cli"
	"ringway/test/bench"
	"ringway/test/bench/probe"
	"ringway/test/bench/rival"
)

// jitterFlags are the flags of `ringway bench jitter`.
type jitterFlags struct {
	o            bench.JitterOptions
	against      []string
	nebula, plot string
	json         bool
	builds       buildsFlags
}

func benchJitterCommand() *cobra.Command {
	f := &jitterFlags{o: bench.DefaultJitter()}
	for _, k := range f.o.Against {
		f.against = append(f.against, string(k))
	}
	c := &cobra.Command{
		Use:     "jitter",
		Short:   "Delay of voice beside bulk traffic, on Ringway and its rivals at the same time",
		Args:    cobra.NoArgs,
		Long:    jitterHelp,
		Example: jitterExamples,
		RunE:    func(c *cobra.Command, _ []string) error { return f.run(c) },
	}
	f.add(c)
	return c
}

func (f *jitterFlags) add(c *cobra.Command) {
	f.builds.add(c)
	flags, o := c.Flags(), &f.o
	flags.StringSliceVar(&f.against, "vs", f.against, "rivals beside ringway")
	flags.StringVar((*string)(&o.Family), "family", string(o.Family),
		"address family of the WAN and inside the tunnels: ipv4 or ipv6")
	flags.IntSliceVar(&o.Loads, "loads", o.Loads, "loads: TCP's share of the capacity, in percent")
	flags.DurationVar(&o.Duration, "duration", o.Duration, "duration of the voice streams in each load and round")
	flags.IntVar(&o.Rounds, "rounds", o.Rounds, "how often to repeat all loads, in turn")
	flags.IntVar(&o.Streams, "streams", o.Streams, "voice streams in each direction on each path")
	flags.DurationVar(&o.Interval, "interval", o.Interval, "time between two packets of a stream")
	flags.IntVar(&o.Size, "size", o.Size, "UDP payload of a voice packet in bytes")
	flags.StringVar(&o.Engine, "engine", o.Engine, "engine of Ringway's planes: realtime or wireguard-go")
	flags.BoolVar(&f.json, "json", false, jsonUsage)
	flags.StringVar(&f.plot, "plot", "", plotUsage)
	flags.StringVar(&o.Programs.WireGuardGo, "wireguard-go", "", stockUsage)
	flags.StringVar(&f.nebula, "nebula", "", nebulaUsage)
	_ = c.RegisterFlagCompletionFunc("family", completeFamily)
}

func (f *jitterFlags) run(c *cobra.Command) error {
	if err := f.builds.check(c); err != nil {
		return err
	}
	f.o.Against = nil
	for _, k := range f.against {
		f.o.Against = append(f.o.Against, rival.Kind(k))
	}
	if err := useNebula(&f.o.Programs, f.nebula); err != nil {
		return err
	}

	f.o.Programs.Version, f.o.Progress = version, c.ErrOrStderr()
	if f.builds.given() {
		r, err := bench.JitterOfBuilds(c.Context(), f.builds.options(c), f.o)
		if err != nil {
			return benchError(c, err)
		}
		return showReport(c, r, f.json)
	}
	r, err := bench.MeasureJitter(c.Context(), f.o)
	if err != nil {
		return benchError(c, err)
	}
	return show(c, r, f.json, f.plot)
}

func benchProbeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "probe", Hidden: true, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return probe.Main(os.Stdin, os.Stdout) },
	}
}

func benchWakeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "wake DURATION", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			d, err := time.ParseDuration(args[0])
			if err != nil {
				return cli.UsageError{Err: err}
			}
			return probe.WakeMain(d, os.Stdout)
		},
	}
}

func benchEdgeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "edge FILE", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			return rival.EdgeMain(c.Context(), args[0], os.Stdout, os.Stderr)
		},
	}
}

// useNebula takes the program that --nebula names.
func useNebula(p *rival.Programs, path string) error {
	if path == "" {
		return nil
	}
	if err := p.UseNebula(path); err != nil {
		return cli.UsageError{Err: fmt.Errorf("--nebula: %w", err)}
	}
	return nil
}
