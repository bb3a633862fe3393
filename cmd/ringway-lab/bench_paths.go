package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"ringway/cmd/cli"
	"ringway/test/bench"
	"ringway/units"
)

func benchPathsCommand() *cobra.Command {
	o := bench.DefaultPaths()
	var printJSON bool
	wan := o.Rate.String()
	c := &cobra.Command{
		Use:     "paths",
		Short:   "What calls lose when one of two lines fails, beside other ways to use two lines",
		Args:    cobra.NoArgs,
		Long:    pathsHelp,
		Example: pathsExamples,
		RunE: func(c *cobra.Command, _ []string) error {
			var err error
			if o.Rate, err = units.ParseBitRate(wan); err != nil {
				return cli.UsageError{Err: fmt.Errorf("--wan: %w", err)}
			}
			o.Version, o.Progress = version, c.ErrOrStderr()
			r, err := bench.MeasurePaths(c.Context(), o)
			if err != nil {
				return benchError(c, err)
			}
			return showReport(c, r, printJSON)
		},
	}
	flags := c.Flags()
	flags.StringSliceVar(&o.Against, "vs", o.Against, "rivals beside ringway")
	flags.StringSliceVar(&o.Events, "events", o.Events, "what happens to the first line: also failback")
	flags.StringVar((*string)(&o.Family), "family", string(o.Family),
		"address family of the lines, phones and PCs: ipv4 or ipv6")
	flags.StringVar(&wan, "wan", wan, "rate of each line, the same in both directions")
	flags.DurationVar(&o.Delay, "delay", o.Delay, "one-way delay of each line")
	flags.StringVar((*string)(&o.Bulk), "bulk", string(o.Bulk), "what fills the lines beside the calls: none, tcp or udp")
	flags.IntVar(&o.Calls, "calls", o.Calls, "calls at the same time on each path")
	flags.IntVar(&o.Rounds, "rounds", o.Rounds, "how often each event happens, each time to new branches")
	flags.BoolVar(&printJSON, "json", false, jsonUsage)
	flags.StringVar(&o.WireGuardGo, "wireguard-go", "", stockUsage)
	_ = c.RegisterFlagCompletionFunc("family", completeFamily)
	_ = c.RegisterFlagCompletionFunc("vs", cobra.FixedCompletions(bench.PathsRivals, cobra.ShellCompDirectiveNoFileComp))
	_ = c.RegisterFlagCompletionFunc("events",
		cobra.FixedCompletions(bench.PathsEvents, cobra.ShellCompDirectiveNoFileComp))
	return c
}
