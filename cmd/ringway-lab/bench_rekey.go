package main

import (
	"strings"

	"github.com/spf13/cobra"

	"ringway/test/bench"
)

func benchRekeyCommand() *cobra.Command {
	o := bench.DefaultRekey()
	var printJSON bool
	c := &cobra.Command{
		Use:     "rekey",
		Short:   "What voice loses during re-keys, restarts and address changes",
		Args:    cobra.NoArgs,
		Long:    rekeyHelp,
		Example: rekeyExamples,
		RunE: func(c *cobra.Command, _ []string) error {
			o.Programs.Version, o.Progress = version, c.ErrOrStderr()
			r, err := bench.MeasureRekey(c.Context(), o)
			if err != nil {
				return benchError(c, err)
			}
			return showReport(c, r, printJSON)
		},
	}
	flags := c.Flags()
	flags.StringVar(&o.Far, "far", o.Far, "the far end: "+strings.Join(bench.FarEnds, ", "))
	flags.StringVar(
		(*string)(&o.Family),
		"family",
		string(o.Family),
		"address family of the WAN and of voice: ipv4 or ipv6",
	)
	flags.IntVar(&o.Rekeys, "rekeys", o.Rekeys, "new sessions started by each end")
	flags.IntVar(&o.Roams, "roams", o.Roams, "address changes of each end; its old address still receives")
	flags.IntVar(&o.Moves, "moves", o.Moves, "address changes of each end; its old address is gone at once")
	flags.IntVar(&o.Restarts, "restarts", o.Restarts, "restarts of each end's forwarding process")
	flags.BoolVar(&o.Natural, "natural", false, "wait for the protocol's own re-keys, two minutes each")
	flags.IntVar(&o.Streams, "streams", o.Streams, "voice streams in each direction")
	flags.DurationVar(&o.Interval, "interval", o.Interval, "time between two packets of a stream")
	flags.IntVar(&o.Size, "size", o.Size, "UDP payload of a voice packet in bytes")
	flags.BoolVar(&printJSON, "json", false, jsonUsage)
	flags.StringVar(
		&o.Programs.WireGuardGo,
		"wireguard-go",
		"",
		stockUsage,
	)
	_ = c.RegisterFlagCompletionFunc("family", completeFamily)
	_ = c.RegisterFlagCompletionFunc("far", cobra.FixedCompletions(bench.FarEnds, cobra.ShellCompDirectiveNoFileComp))
	return c
}
