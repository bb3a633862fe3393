package main

import (
	"fmt"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"ringway/test/bench"
	"ringway/test/bench/tester"
)

// engineAliases are names that people try, by what they mean here.
var engineAliases = map[string]bench.Engine{"realtime": bench.Engines[0], "stock": bench.Stock}

func benchThroughputCommand() *cobra.Command {
	o := bench.DefaultThroughput()
	var engines, sizes []string
	var nebula string
	var printJSON bool
	percent, loss := 100*o.Resolution, 0.0
	for _, e := range o.Engines {
		engines = append(engines, string(e))
	}
	for _, s := range o.Sizes {
		sizes = append(sizes, sizeWord(s))
	}
	c := &cobra.Command{
		Use: "throughput", Short: "The highest rate without loss, for each engine in turn (RFC 2544)", Args: cobra.NoArgs,
		Long: `throughput searches the highest rate at which every packet arrives (RFC 2544, section 26.1), for each engine in turn, so that
nothing else runs beside it, and says what a packet costs at each end.

  ringway               Ringway's voice plane with the engine realtime (also: realtime)
  ringway-wireguard-go  the same plane with the engine wireguard-go, as data has it
  wireguard-go          the stock program, without tuning (also: stock)
  nebula, openvpn       as in bench jitter
  kernel                no tunnel: what forwarding alone allows

Sizes are those of IP packets inside the tunnel; 200 is G.711's 172 bytes of RTP in UDP. imix is the simple IMIX: of every twelve
packets seven have 46 bytes, four 552, one the tunnel's MTU. A trial that lost is made once more before its rate is called too
high: RFC 2544 knows no machine that others share. Every trial is in the JSON. Where the machine itself stalls for a millisecond, a rate
without loss says how long the device's queue is, and not how fast the engine: --loss 0.5 lets half a percent be lost.

--one-core gives the sending edge's engine one core for itself, the tester the others, and has the far end's kernel drop what was
sealed for it, so that the engine on its core is what is measured. What counts is then what the engine says that it sent. Rivals
written in Go are told that they have one core (GOMAXPROCS), since with two threads on one they are slower.

It needs root, and ip, ss, ping, iperf3, wg, the stock program wireguard-go, and nft for --one-core.`,
		Example: `  ringway bench throughput                              all sizes, beside stock wireguard-go and the kernel
  ringway bench throughput --sizes 200 --one-core --engines ringway,wireguard-go --rounds 5 --loss 0.5
  ringway bench throughput --json > run.json            for machines`,
		RunE: func(c *cobra.Command, _ []string) error {
			o.Engines, o.Sizes = nil, nil
			for _, e := range engines {
				name := bench.Engine(e)
				if alias, ok := engineAliases[e]; ok {
					name = alias
				}
				o.Engines = append(o.Engines, name)
			}
			for _, s := range sizes {
				n, err := parseSize(s)
				if err != nil {
					return usageError{err}
				}
				o.Sizes = append(o.Sizes, n)
			}
			o.Resolution, o.Loss = percent/100, loss/100
			if nebula != "" {
				if err := o.Programs.UseNebula(nebula); err != nil {
					return usageError{fmt.Errorf("--nebula: %w", err)}
				}
			}
			o.Build, o.Progress = version, c.ErrOrStderr()
			r, err := bench.MeasureThroughput(c.Context(), o)
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
	flags.StringSliceVar(&engines, "engines", engines, "what to measure, in this order")
	flags.StringSliceVar(&sizes, "sizes", sizes, "bytes of an IP packet, and imix")
	flags.DurationVar(&o.Trial, "trial", o.Trial, "length of a trial")
	flags.Float64Var(&percent, "resolution", percent, "of the rate, in percent")
	flags.Float64Var(&loss, "loss", loss, "share of packets that may be lost, in percent")
	flags.BoolVar(&o.OneCore, "one-core", false, "the sending edge's engine alone, on one core")
	flags.IntVar(&o.Rounds, "rounds", o.Rounds, "repeat all so often, in turn")
	flags.BoolVar(&printJSON, "json", false, "print JSON to standard output, everything else to standard error")
	flags.StringVar(&o.Programs.WireGuardGo, "wireguard-go", "", "the stock `PROGRAM` (default: beside ringway, else in PATH)")
	flags.StringVar(&nebula, "nebula", "", "a Nebula `PROGRAM` to take in place of building one; nebula-cert beside it")
	return c
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
