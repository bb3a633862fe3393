package main

import (
	"errors"
	"time"

	"github.com/spf13/cobra"

	"ringway/cmd/cli"
	"ringway/cmd/ringway/live"
	"ringway/tunnel"
)

func benchLiveCommand(a *app) *cobra.Command {
	var o live.Options
	c := &cobra.Command{
		Use:   "live SITE|ADDRESS",
		Short: "Measure the path to a live appliance: delay, variation, loss in each direction",
		Args:  cobra.ExactArgs(1),
		Long: `Sends STAMP probes (RFC 8762) of the size and pace of voice through the tunnel of a class, past the queues that calls
pass. The far end's daemon answers; it needs no other tool. Any other STAMP reflector can be probed by its address.

SITE is looked up in the running daemon: the addresses that a router usually has (first and last host of the site's
networks) are probed, and the first one that answers is taken. Give ADDRESS where the far box has another address.

The round trip is exact to the kernel's timestamps, whatever the clocks say; the time that the far end holds a packet is
subtracted. One-way delay is shown only where both clocks report that they are synchronized, with their error bound.
Variation, jitter and loss need no common clock and are always shown for each direction. The far end's own counts tell
loss on the way there from loss on the way back. A packet that has not returned after 4 s is lost.

Probes of class voice share the voice budget with the calls in progress: ten streams use what ten calls use.`,
		Example: `  ringway bench live munich
  ringway bench live munich --class data --streams 1 --size 1372
  ringway bench live 10.2.10.1 --streams 50 --duration 5m --json`,
		RunE: func(c *cobra.Command, args []string) error {
			o.Progress = c.ErrOrStderr()
			r, err := live.Run(c.Context(), a.paths(), o, args[0])
			var usage live.UsageError
			if errors.As(err, &usage) {
				return cli.UsageError{Err: err}
			}
			if err != nil {
				return err
			}
			return showLive(c, r, a.PrintJSON)
		},
	}
	flags := c.Flags()
	flags.StringVar(
		&o.Class,
		"class",
		string(tunnel.Voice),
		"class of tunnel: voice (probes marked EF, as media) or data",
	)
	flags.IntVar(&o.Streams, "streams", 10, "streams at the same time, each like one direction of a call")
	flags.DurationVar(&o.Interval, "interval", 20*time.Millisecond, "time between two packets of a stream")
	flags.IntVar(&o.Size, "size", 172, "UDP payload in bytes, in both directions; 172 is RTP with 20 ms of G.711")
	flags.DurationVar(&o.Duration, "duration", 20*time.Second, "how long to probe")
	jsonFlag(c, "print JSON")
	_ = c.RegisterFlagCompletionFunc(
		"class",
		cobra.FixedCompletions([]string{"voice", "data"}, cobra.ShellCompDirectiveNoFileComp),
	)
	return c
}

func showLive(c *cobra.Command, r live.Report, asJSON bool) error {
	var err error
	if asJSON {
		err = printJSON(c.OutOrStdout(), r)
	} else {
		err = r.Table(c.OutOrStdout())
	}
	if err == nil && r.Interrupted {
		return errors.New("interrupted; the figures cover what was sent until then")
	}
	return err
}
