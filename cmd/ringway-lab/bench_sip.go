package main

import (
	"errors"

	"github.com/spf13/cobra"

	"ringway/cmd/cli"
	"ringway/test/bench/sip"
)

func benchSIPCommand() *cobra.Command {
	o := sip.Default()
	var against []string
	var printJSON bool
	for _, p := range o.Against {
		against = append(against, string(p))
	}
	c := &cobra.Command{
		Use:     "sip",
		Short:   "What it costs to read signalling: CPU a call, delay, loss, memory, beside a proxy and the kernel",
		Args:    cobra.NoArgs,
		Long:    sipHelp,
		Example: sipExamples,
		RunE: func(c *cobra.Command, _ []string) error {
			o.Against, o.Version, o.Progress = nil, version, c.ErrOrStderr()
			for _, p := range against {
				o.Against = append(o.Against, sip.Path(p))
			}
			r, err := sip.Measure(c.Context(), o)
			if errors.Is(err, sip.ErrUsage) {
				return cli.UsageError{Err: err}
			}
			if err != nil {
				return benchError(c, err)
			}
			return showReport(c, r, printJSON)
		},
	}
	flags := c.Flags()
	flags.StringSliceVar(&against, "vs", against, "rivals beside ringway and the kernel: kamailio, or nothing")
	flags.IntSliceVar(&o.Rates, "rates", o.Rates, "rates, in calls a second")
	flags.DurationVar(&o.Duration, "duration", o.Duration, "how long to place calls, on each path in each round")
	flags.DurationVar(&o.Hold, "hold", o.Hold, "how long a call lasts")
	flags.IntVar(&o.Rounds, "rounds", o.Rounds, "how often to repeat all rates on all paths, in turn")
	flags.IntVar(&o.Calls, "calls", o.Calls, "dialogs that are up at once when memory is read; 0: it is not")
	flags.BoolVar(&o.Best, "best", o.Best, "search the highest rate without loss")
	flags.StringSliceVar(&o.Builds, "ringway", nil, "measure two builds of ringway in turn: `OLD,NEW`, or another one")
	flags.BoolVar(&printJSON, "json", false, jsonUsage)
	return c
}
