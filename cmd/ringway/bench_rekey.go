package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"ringway/test/bench"
)

func benchRekeyCommand() *cobra.Command {
	o := bench.DefaultRekey()
	var printJSON bool
	c := &cobra.Command{
		Use: "rekey", Short: "What voice loses over re-keys, restarts and new addresses", Args: cobra.NoArgs,
		Long: `rekey sends voice both ways through one tunnel and has happen to it what happens to a tunnel of weeks, by each end in turn: new
sessions (--rekeys), another address while the old one still receives, as behind a provider's NAT (--roams), another address with the
old one gone at once (--moves), the forwarding process killed (--restarts). For each it says how many packets were lost and how late the
worst was within a second of it, against the same run's p99.9 away from all events.

WireGuard makes a new session every two minutes; --natural waits for that. Otherwise each end is told to begin one, as often as the
protocol allows, every five seconds. Stock wireguard-go knows no such command: its key is changed to another and back at once, upon which
it has packets wait for the new session.

Far ends (--far): ringway, ringway-wireguard-go (the same plane with the engine wireguard-go), wireguard-go (the stock program).

It needs root, and ip, ss, ping, iperf3, wg, the stock program wireguard-go, and nft for --roams.`,
		Example: `  ringway bench rekey                          20 re-keys by each end, roams, restarts: some two and a half minutes
  ringway bench rekey --far wireguard-go       the same with stock WireGuard at the far end
  ringway bench rekey --natural --rekeys 1 --restarts 0 --roams 0 --moves 0`,
		RunE: func(c *cobra.Command, _ []string) error {
			o.Build, o.Progress = version, c.ErrOrStderr()
			r, err := bench.MeasureRekey(c.Context(), o)
			if err != nil {
				return benchError(c, err)
			}
			if printJSON {
				err = r.JSON(c.OutOrStdout())
			} else {
				err = r.Table(c.OutOrStdout())
			}
			if err != nil {
				return fmt.Errorf("print what was measured: %w", err)
			}
			return nil
		},
	}
	flags := c.Flags()
	flags.StringVar(&o.Far, "far", o.Far, "what the far end is: "+strings.Join(bench.FarEnds, ", "))
	flags.StringVar((*string)(&o.Family), "family", string(o.Family), "of the WAN and of voice: ipv4 or ipv6")
	flags.IntVar(&o.Rekeys, "rekeys", o.Rekeys, "new sessions begun by each end")
	flags.IntVar(&o.Roams, "roams", o.Roams, "of each end, its old address still receives")
	flags.IntVar(&o.Moves, "moves", o.Moves, "of each end, its old address gone at once")
	flags.IntVar(&o.Restarts, "restarts", o.Restarts, "of each end's forwarding process")
	flags.BoolVar(&o.Natural, "natural", false, "wait for the protocol's own re-keys, two minutes each")
	flags.IntVar(&o.Streams, "streams", o.Streams, "voice streams, each way")
	flags.DurationVar(&o.Interval, "interval", o.Interval, "between the packets of a stream")
	flags.IntVar(&o.Size, "size", o.Size, "UDP payload of a voice packet in bytes")
	flags.BoolVar(&printJSON, "json", false, "print JSON to standard output, everything else to standard error")
	flags.StringVar(&o.Programs.WireGuardGo, "wireguard-go", "", "the stock `PROGRAM` (default: beside ringway, else in PATH)")
	_ = c.RegisterFlagCompletionFunc("family", completeFamily)
	_ = c.RegisterFlagCompletionFunc("far", cobra.FixedCompletions(bench.FarEnds, cobra.ShellCompDirectiveNoFileComp))
	return c
}
