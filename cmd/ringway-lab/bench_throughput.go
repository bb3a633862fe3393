package main

import (
	"fmt"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"ringway/cmd/cli"
	"ringway/test/bench"
	"ringway/test/bench/tester"
)

// engineAliases are other names that people try.
var engineAliases = map[string]bench.Engine{"realtime": bench.Engines[0], "stock": bench.Stock}

// throughputFlags are the flags of `ringway bench throughput`.
type throughputFlags struct {
	o              bench.ThroughputOptions
	engines, sizes []string
	percent, loss  float64 // of resolution and accepted loss
	nebula         string
	json           bool
	builds         buildsFlags
}

func benchThroughputCommand() *cobra.Command {
	f := &throughputFlags{o: bench.DefaultThroughput()}
	f.percent = 100 * f.o.Resolution
	for _, e := range f.o.Engines {
		f.engines = append(f.engines, string(e))
	}
	for _, s := range f.o.Sizes {
		f.sizes = append(f.sizes, sizeWord(s))
	}
	c := &cobra.Command{
		Use:     "throughput",
		Short:   "The highest rate without loss, for each engine in turn (RFC 2544)",
		Args:    cobra.NoArgs,
		Long:    throughputHelp,
		Example: throughputExamples,
		RunE:    func(c *cobra.Command, _ []string) error { return f.run(c) },
	}
	f.add(c)
	return c
}

func (f *throughputFlags) add(c *cobra.Command) {
	f.builds.add(c)
	flags, o := c.Flags(), &f.o
	flags.StringSliceVar(&f.engines, "engines", f.engines, "engines to measure, in this order")
	flags.StringSliceVar(&f.sizes, "sizes", f.sizes, "sizes of IP packets in bytes, and imix")
	flags.DurationVar(&o.Trial, "trial", o.Trial, "length of a trial")
	flags.Float64Var(&f.percent, "resolution", f.percent, "resolution of the rate, in percent")
	flags.Float64Var(&f.loss, "loss", f.loss, "accepted loss, in percent")
	flags.BoolVar(&o.OneCore, "one-core", false, "measure the sending edge's engine alone, on one core")
	flags.IntVar(&o.Rounds, "rounds", o.Rounds, "how often to repeat everything, in turn")
	flags.BoolVar(&f.json, "json", false, jsonUsage)
	flags.StringVar(&o.Programs.WireGuardGo, "wireguard-go", "", stockUsage)
	flags.StringVar(&f.nebula, "nebula", "", nebulaUsage)
}

func (f *throughputFlags) run(c *cobra.Command) error {
	if err := f.builds.check(c); err != nil {
		return err
	}
	f.o.Engines, f.o.Sizes = nil, nil
	for _, e := range f.engines {
		name := bench.Engine(e)
		if alias, ok := engineAliases[e]; ok {
			name = alias
		}
		f.o.Engines = append(f.o.Engines, name)
	}
	for _, s := range f.sizes {
		n, err := parseSize(s)
		if err != nil {
			return cli.UsageError{Err: err}
		}
		f.o.Sizes = append(f.o.Sizes, n)
	}
	f.o.Resolution, f.o.Loss = f.percent/100, f.loss/100
	if err := useNebula(&f.o.Programs, f.nebula); err != nil {
		return err
	}

	f.o.Programs.Version, f.o.Progress = version, c.ErrOrStderr()
	if f.builds.given() {
		r, err := bench.ThroughputOfBuilds(c.Context(), f.builds.options(c), f.o)
		if err != nil {
			return benchError(c, err)
		}
		return showReport(c, r, f.json)
	}
	r, err := bench.MeasureThroughput(c.Context(), f.o)
	if err != nil {
		return benchError(c, err)
	}
	return showReport(c, r, f.json)
}

func sizeWord(size int) string {
	if size == bench.IMIX {
		return "imix"
	}
	return strconv.Itoa(size)
}

func parseSize(s string) (int, error) {
	if s == "imix" {
		return bench.IMIX, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 {
		return 0, fmt.Errorf("--sizes: %q (allowed: bytes of an IP packet, and imix)", s)
	}
	return n, nil
}

func benchTesterCommand() *cobra.Command {
	return &cobra.Command{
		Use: "tester", Hidden: true, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return tester.Main(os.Stdin, os.Stdout) },
	}
}
