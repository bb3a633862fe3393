package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"ringway/cmd/cli"
	"ringway/test/bench"
	"ringway/units"
)

// linkFlags are the flags of `ringway bench link`.
type linkFlags struct {
	o           bench.LinkOptions
	rates       []string
	plot        string
	json, check bool
	builds      buildsFlags
}

func benchLinkCommand() *cobra.Command {
	f := &linkFlags{o: bench.DefaultLink()}
	for _, r := range f.o.Rates {
		f.rates = append(f.rates, r.String())
	}
	c := &cobra.Command{
		Use:     "link",
		Short:   "What a full link of each rate does to calls, against the physical limit",
		Args:    cobra.NoArgs,
		Long:    linkHelp,
		Example: linkExamples,
		RunE:    func(c *cobra.Command, _ []string) error { return f.run(c) },
	}
	f.add(c)
	return c
}

func (f *linkFlags) add(c *cobra.Command) {
	f.builds.add(c)
	flags, o := c.Flags(), &f.o
	flags.StringSliceVar(&f.rates, "rates", f.rates, "rates of the links, the same in both directions")
	flags.StringSliceVar(&o.Against, "vs", o.Against, "rivals beside ringway")
	flags.StringVar((*string)(&o.Family), "family", string(o.Family),
		"address family of the links, phones and PCs: ipv4 or ipv6")
	flags.IntVar(&o.Calls, "calls", o.Calls, "calls at the same time on each path")
	flags.DurationVar(&o.Duration, "duration", o.Duration, "duration of the calls in each load and round")
	flags.IntVar(&o.Rounds, "rounds", o.Rounds, "how often to repeat the loads of a rate, in turn")
	flags.BoolVar(&o.InTurn, "in-turn", false,
		"measure one path after the other, where the processor is too slow for all at the same time")
	flags.BoolVar(&f.check, "check", false, "fail if a goal is not met")
	flags.BoolVar(&f.json, "json", false, jsonUsage)
	flags.StringVar(&f.plot, "plot", "", plotUsage)
	flags.StringVar(&o.WireGuardGo, "wireguard-go", "", stockUsage)
	_ = c.RegisterFlagCompletionFunc("family", completeFamily)
	_ = c.RegisterFlagCompletionFunc("vs", cobra.FixedCompletions(bench.LinkRivals, cobra.ShellCompDirectiveNoFileComp))
}

func (f *linkFlags) run(c *cobra.Command) error {
	if err := f.builds.check(c); err != nil {
		return err
	}
	f.o.Rates = nil
	for _, s := range f.rates {
		rate, err := units.ParseBitRate(s)
		if err != nil {
			return cli.UsageError{Err: fmt.Errorf("--rates: %w", err)}
		}
		f.o.Rates = append(f.o.Rates, rate)
	}

	f.o.Version, f.o.Progress = version, c.ErrOrStderr()
	if f.builds.given() {
		r, err := bench.LinkOfBuilds(c.Context(), f.builds.options(c), f.o)
		if err != nil {
			return benchError(c, err)
		}
		return showReport(c, r, f.json)
	}
	r, err := bench.MeasureLink(c.Context(), f.o)
	if err != nil {
		return benchError(c, err)
	}
	if err := show(c, r, f.json, f.plot); err != nil {
		return err
	}
	if n := r.Report.Unmet(); f.check && n > 0 {
		return fmt.Errorf("%d of %d goals are not met", n, len(r.Report.Verdicts))
	}
	return nil
}
