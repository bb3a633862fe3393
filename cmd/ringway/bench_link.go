package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"ringway/qos"
	"ringway/test/bench"
)

func benchLinkCommand() *cobra.Command {
	o := bench.DefaultLink()
	var rates []string
	var plot string
	var printJSON, check bool
	for _, r := range o.Rates {
		rates = append(rates, r.String())
	}
	c := &cobra.Command{
		Use: "link", Short: "What a full link of each rate does to calls, against the physical limit", Args: cobra.NoArgs,
		Long: `link builds two whole branches at each rate in turn, as ringway lab does, and holds the provider between them to that rate
in both directions, with a FIFO of 120 ms (32 full packets at least) in front of it. Ringway is told the rate and nothing
else. Three loads follow each other: voice alone; TCP, eight flows in each direction at once; UDP, twice the link in each
direction at once. Rivals stand beside it, each between branches and on a link of its own, under the same load:

  none       one stock wireguard-go tunnel for everything; nothing queues but the provider
  fq_codel   the same behind the rate less Ringway's default margin, with fq_codel  (where the kernel has it)
  cake       the same with cake, diffserv4, told the overhead; the tunnel's packets
             all carry DSCP 0, so it cannot tell voice from data                       (where the kernel has it)
  kernel     no tunnel: the floor; above 10 Mbit/s, where the processor is part of the figures

While one packet of data is on the wire, voice has to wait; what is more is the queues' fault. So the goal of voice's added
PDV (p99.9 less the minimum, less the same round's without load) is one packet of data on the wire, 1 ms, and
one packet of voice for each further call. Data's goal is 95 % of the bytes at the provider's bottleneck that voice and the stated
margin leave, signalling's a round trip under 50 ms, a second data flow's a ping under 30 ms (p99, from 2 Mbit/s up). A
goal that is not met is said, and is no error unless --check is given. What stood in which queue meanwhile is in --json and in the plots.

It needs root, and ip, tc, nft, ss, ping, iperf3, wg and the stock program wireguard-go. A full run takes some half hour.`,
		Example: `  ringway bench link                                        all rates, three rounds of 20 s a load
  ringway bench link --rates 2mbit --duration 10s --check   one link, and an error where a goal is not met
  ringway bench link --rates 10mbit --calls 10 --plot bench-out
  ringway bench link --rates 2mbit --family ipv6            the same without IPv4; packets are 20 bytes longer, twice
  ringway bench link --json > run.json                      for machines`,
		RunE: func(c *cobra.Command, _ []string) error {
			o.Rates = nil
			for _, s := range rates {
				rate, err := qos.ParseBitRate(s)
				if err != nil {
					return usageError{fmt.Errorf("--rates: %w", err)}
				}
				o.Rates = append(o.Rates, rate)
			}
			o.Build, o.Progress = version, c.ErrOrStderr()
			r, err := bench.MeasureLink(c.Context(), o)
			if err != nil {
				return benchError(c, err)
			}
			if err := show(c, r, printJSON, plot); err != nil {
				return err
			}
			if n := r.Report.Unmet(); check && n > 0 {
				return fmt.Errorf("%d of %d goals are not met", n, len(r.Report.Verdicts))
			}
			return nil
		},
	}
	flags := c.Flags()
	flags.StringSliceVar(&rates, "rates", rates, "of the links, the same both ways")
	flags.StringSliceVar(&o.Against, "vs", o.Against, "rivals beside ringway")
	flags.StringVar((*string)(&o.Family), "family", string(o.Family), "of the links and of what phones and PCs speak: ipv4 or ipv6")
	flags.IntVar(&o.Calls, "calls", o.Calls, "at the same time, both ways on each path")
	flags.DurationVar(&o.Duration, "duration", o.Duration, "of voice, each load and round")
	flags.IntVar(&o.Rounds, "rounds", o.Rounds, "repeat the loads of a rate so often, in turn")
	flags.BoolVar(&o.InTurn, "in-turn", false, "one path after the other, not all at the same time: on a machine whose processor they would fill before the links")
	flags.BoolVar(&check, "check", false, "fail where a goal is not met")
	flags.BoolVar(&printJSON, "json", false, "print JSON to standard output, everything else to standard error")
	flags.StringVar(&plot, "plot", "", "write plots (PNG, SVG) and a page that holds everything into `DIR`")
	flags.StringVar(&o.WireGuardGo, "wireguard-go", "", "the stock `PROGRAM` (default: beside ringway, else in PATH)")
	_ = c.RegisterFlagCompletionFunc("family", completeFamily)
	_ = c.RegisterFlagCompletionFunc("vs", cobra.FixedCompletions(bench.LinkRivals, cobra.ShellCompDirectiveNoFileComp))
	return c
}
