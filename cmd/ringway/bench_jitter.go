package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"ringway/test/bench"
	"ringway/test/bench/probe"
	"ringway/test/bench/rival"
)

func benchJitterCommand() *cobra.Command {
	o := bench.DefaultJitter()
	var against []string
	var nebula, plot string
	var printJSON bool
	for _, k := range o.Against {
		against = append(against, string(k))
	}
	c := &cobra.Command{
		Use: "jitter", Short: "How long voice takes beside bulk traffic, on Ringway and its rivals at the same time", Args: cobra.NoArgs,
		Long: `jitter joins two branches on this machine by several tunnels at the same time and sends the same voice through each, while TCP
fills one of them:

` + bench.Topology + `

  ringway              Ringway's voice plane, as the daemon runs it (--engine)
  wireguard-go-shared  stock wireguard-go that carries the bulk, too: one tunnel for everything
  wireguard-go         a stock wireguard-go of its own
  nebula               Nebula of its own, built from the Go module proxy into your cache the first time
  openvpn              OpenVPN of its own, over UDP, in user space (Debian: apt-get install openvpn)
  kernel               no tunnel: what forwarding alone costs, the floor

Bulk always goes through wireguard-go-shared. First the machine itself is measured (how late it wakes a thread that slept to
a point in time), then the capacity: what TCP gets with nothing beside it. A load is a percentage of that; 100 is TCP as fast
as it goes. The delay of a packet is the kernel's timestamp at its arrival less the sender's clock. Figures are the worse
direction's, the terms those of RFC 8219, RFC 3550, RFC 5481 and ITU-T G.107. Rows of one run may be compared, those of two
runs may not: take --rounds for a median, on a quiet machine.

It needs root, and ip, ss, ping, iperf3, wg and the stock program wireguard-go.`,
		Example: `  ringway bench jitter                            five loads of 20 s beside stock wireguard-go and the kernel
  ringway bench jitter --loads 0,100 --rounds 5   idle and saturated, the median of five interleaved rounds
  ringway bench jitter --vs wireguard-go-shared,wireguard-go,nebula,openvpn,kernel --plot bench-out
  ringway bench jitter --json > run.json          for machines`,
		RunE: func(c *cobra.Command, _ []string) error {
			o.Against = nil
			for _, k := range against {
				o.Against = append(o.Against, rival.Kind(k))
			}
			if nebula != "" {
				if err := o.Programs.UseNebula(nebula); err != nil {
					return usageError{fmt.Errorf("--nebula: %w", err)}
				}
			}
			o.Build, o.Progress = version, c.ErrOrStderr()
			r, err := bench.MeasureJitter(c.Context(), o)
			if err != nil {
				return benchError(c, err)
			}
			return show(c, r, printJSON, plot)
		},
	}
	flags := c.Flags()
	flags.StringSliceVar(&against, "vs", against, "rivals beside ringway")
	flags.StringVar((*string)(&o.Family), "family", string(o.Family), "of the WAN and of what goes through the tunnels: ipv4 or ipv6")
	flags.IntSliceVar(&o.Loads, "loads", o.Loads, "percents of the capacity that TCP takes")
	flags.DurationVar(&o.Duration, "duration", o.Duration, "of voice, each load and round")
	flags.IntVar(&o.Rounds, "rounds", o.Rounds, "repeat all loads so often, in turn")
	flags.IntVar(&o.Streams, "streams", o.Streams, "voice streams, each way on each path")
	flags.DurationVar(&o.Interval, "interval", o.Interval, "between the packets of a stream")
	flags.IntVar(&o.Size, "size", o.Size, "UDP payload of a voice packet in bytes")
	flags.StringVar(&o.Engine, "engine", o.Engine, "of Ringway's planes: realtime or wireguard-go")
	flags.BoolVar(&printJSON, "json", false, "print JSON to standard output, everything else to standard error")
	flags.StringVar(&plot, "plot", "", "write plots (PNG, SVG) and a page that holds everything into `DIR`")
	flags.StringVar(&o.Programs.WireGuardGo, "wireguard-go", "", "the stock `PROGRAM` (default: beside ringway, else in PATH)")
	flags.StringVar(&nebula, "nebula", "", "a Nebula `PROGRAM` to take in place of building one; nebula-cert beside it")
	_ = c.RegisterFlagCompletionFunc("family", completeFamily)
	return c
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
				return usageError{err}
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
