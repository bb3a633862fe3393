package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ringway/test/lab"
)

// labFlags is the command line of `ringway lab` as it was typed.
type labFlags struct {
	wan, family, loss, bulk, only, plot, down, wireguardGo string
	delay, duration                                        time.Duration
	buffer                                                 uint64
	calls                                                  int
	seed                                                   uint64
	baseline, json, keep                                   bool
}

func labCommand() *cobra.Command {
	var f labFlags
	c := &cobra.Command{
		Use:   "lab",
		Short: "Build two branches on this machine, place calls under load, measure the voice",
		Long: `lab builds two whole branches on this machine and shows how good the voice between them is.

` + lab.Topology + `

The edges run this program with configs/branch-berlin.yaml and branch-munich.yaml. The provider holds the WAN to its
rate, with a FIFO buffer. SIPp places real SIP calls from phone-a to phone-b while iperf3 fills the WAN from pc-a to
pc-b. With --baseline a second such pair stands beside the first at the same time, joined by one stock wireguard-go
tunnel without queues: what people use today. With --family ipv6 the WAN and the branches have addresses of IPv6 alone.

Every packet of voice is seen at both phones with the kernel's timestamps. The table gives each path's worse direction:
one-way delay, its variation (PDV: p99.9 less the minimum, RFC 8219), jitter (RFC 3550), loss, and what a listener would
say (MOS and R, ITU-T G.107). Meanwhile the queues on the way are read five times a second: what each class at the edge and the
provider's FIFO sent, held and dropped. --plot draws both, the queues into FILE-queues; --json has both.

The lab needs root, and the programs sipp, iperf3, nft, ip, tc and, for the baseline, wg and wireguard-go. It never touches
the machine's own network, and nothing is left of it when it ends, even if it is killed. The kernel's idle loop
is held to polling meanwhile: a virtual machine that falls asleep between packets would be measured as delay.`,
		Example: `  ringway lab                                     ten calls while TCP fills 20 Mbit/s
  ringway lab --baseline --bulk udp               the same beside stock WireGuard, under a flood
  ringway lab --baseline --wan none               no bottleneck: what the processor makes of it
  ringway lab --family ipv6                       without IPv4: the WAN, phones and PCs
  ringway lab --delay 40ms --loss 1% --bulk none  a long and lossy way
  ringway lab --json --plot calls.svg > run.json  for machines, and a picture
  ringway lab --keep                              leave it up and look around`,
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return runLab(c, f) },
	}
	flags := c.Flags()
	flags.StringVar(&f.wan, "wan", "20mbit", "rate of the provider's bottleneck, or none")
	flags.StringVar(&f.family, "family", string(lab.IPv4), "of the WAN and of what phones and PCs speak: ipv4 or ipv6")
	flags.DurationVar(&f.delay, "delay", 0, "the provider adds, one way")
	flags.StringVar(&f.loss, "loss", "0%", "the provider loses, each way: 0.5% or 0.005")
	flags.Uint64Var(&f.buffer, "buffer", uint64(lab.DefaultBuffer), "bytes in the provider's FIFO")
	flags.Uint64Var(&f.seed, "seed", 1, "of the loss: the same packets are lost again")
	flags.StringVar(&f.bulk, "bulk", "tcp", "fill the WAN with none, tcp or udp (a flood of twice its rate)")
	flags.IntVar(&f.calls, "calls", 10, "calls at the same time")
	flags.DurationVar(&f.duration, "duration", 20*time.Second, "of each call")
	flags.BoolVar(&f.baseline, "baseline", false, "stand a second pair beside it: one stock wireguard-go tunnel, no queues")
	flags.StringVar(&f.only, "only", "", "build one pair alone: ringway or baseline")
	flags.StringVar(&f.wireguardGo, "wireguard-go", "", "the stock `PROGRAM` of the baseline (default: beside ringway, else in PATH)")
	flags.BoolVar(&f.json, "json", false, "print JSON to standard output, everything else to standard error")
	flags.StringVar(&f.plot, "plot", "lab-out/ringway-lab.png", "draw every packet's delay into `FILE` (.png or .svg), and the queues beside it, or none")
	flags.BoolVar(&f.keep, "keep", false, "leave the lab up, say how to enter it")
	flags.StringVar(&f.down, "down", "", "end the lab `ID` that was kept")
	_ = c.RegisterFlagCompletionFunc("family", completeFamily)
	c.AddCommand(&cobra.Command{
		Use: "holder", Hidden: true, Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error { return lab.Holder(args, os.Stdin, os.Stdout) },
	})
	return c
}

var completeFamily = cobra.FixedCompletions([]string{string(lab.IPv4), string(lab.IPv6)}, cobra.ShellCompDirectiveNoFileComp)

func runLab(c *cobra.Command, f labFlags) error {
	if f.down != "" {
		return labError(lab.Down(f.down))
	}
	o, err := f.options()
	if err != nil {
		return usageError{err}
	}
	o.Progress = c.ErrOrStderr()
	ctx := c.Context()
	l, err := lab.New(ctx, o)
	if err != nil {
		return labError(interrupted(ctx, err))
	}
	defer l.Close()
	result, err := l.Measure(ctx)
	if err != nil {
		return interrupted(ctx, err)
	}
	if err := f.show(c, result); err != nil {
		return err
	}
	if f.keep {
		return l.Keep(c.ErrOrStderr())
	}
	return nil
}

// options turns what was typed into what the lab takes.
func (f labFlags) options() (lab.Options, error) {
	o := lab.Options{
		WireGuardGo: f.wireguardGo, Underlay: lab.Family(f.family), Overlay: lab.Family(f.family), Buffer: lab.Bytes(f.buffer), Delay: f.delay, Seed: f.seed,
		Bulk: lab.Bulk(f.bulk), Calls: f.calls, Duration: f.duration,
	}
	var err error
	if o.WAN, err = lab.ParseWAN(f.wan); err != nil {
		return o, fmt.Errorf("--wan: %w", err)
	}
	if o.Loss, err = parseLoss(f.loss); err != nil {
		return o, fmt.Errorf("--loss: %w", err)
	}
	switch f.only {
	case "":
		o.Paths = []lab.PathName{lab.Ringway}
		if f.baseline {
			o.Paths = append(o.Paths, lab.Baseline)
		}
	case string(lab.Ringway), string(lab.Baseline):
		o.Paths = []lab.PathName{lab.PathName(f.only)}
	default:
		return o, fmt.Errorf("--only: no pair is called %q (allowed: ringway, baseline)", f.only)
	}
	if f.calls < 1 || f.calls > 500 {
		return o, fmt.Errorf("--calls: %d is out of range (allowed: 1-500)", f.calls)
	}
	switch filepath.Ext(f.plot) {
	case ".png", ".svg":
	default:
		if f.plot != "none" && f.plot != "" {
			return o, fmt.Errorf("--plot: %s is no picture (allowed: a name that ends in .png or .svg, or none)", f.plot)
		}
	}
	return o, nil
}

// parseLoss reads 1% or 0.01. A bare number of one or more is refused: nobody can tell what it would mean.
func parseLoss(s string) (float64, error) {
	bad := fmt.Errorf("%q is no share (allowed: 0%% to 99%%, or 0 to 0.99)", s)
	number, percent := strings.CutSuffix(s, "%")
	x, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0, bad
	}
	if percent {
		x /= 100
	}
	if !(x >= 0 && x <= 0.99) {
		return 0, bad
	}
	return x, nil
}

func (f labFlags) show(c *cobra.Command, r lab.Result) error {
	write := r.Table
	if f.json {
		write = r.JSON
	}
	if err := write(c.OutOrStdout()); err != nil {
		return fmt.Errorf("write what was measured: %w", err)
	}
	if f.plot == "none" || f.plot == "" {
		return nil
	}
	if err := r.Plot(f.plot); err != nil {
		return fmt.Errorf("draw the plot: %w", err)
	}
	fmt.Fprintf(c.ErrOrStderr(), "\nEvery packet's delay: %s\n", f.plot)
	queues, err := r.PlotQueues(f.plot)
	if err != nil {
		return fmt.Errorf("draw the plot of the queues: %w", err)
	}
	if queues != "" {
		fmt.Fprintf(c.ErrOrStderr(), "What stood in the queues: %s\n", queues)
	}
	return nil
}

// labError tells wrong usage from a lab that failed.
func labError(err error) error {
	if errors.Is(err, lab.ErrUsage) {
		return usageError{err}
	}
	return err
}

// interrupted says so in place of whatever broke because of it.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("interrupted; nothing of the lab is left")
	}
	return err
}
