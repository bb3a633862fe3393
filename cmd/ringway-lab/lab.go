package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ringway/cmd/cli"
	"ringway/test/lab"
)

// labFlags are the flags of `ringway lab`.
type labFlags struct {
	wan, family, bulk, only, plot, down, wireguardGo string
	sip                                              string
	wans                                             int
	loss, cut, blackhole, swing                      []string
	delay, duration                                  time.Duration
	buffer                                           uint64
	calls                                            int
	seed                                             uint64
	baseline, json, keep                             bool
}

func labCommand() *cobra.Command {
	var f labFlags
	c := &cobra.Command{
		Use:     "lab",
		Short:   "Build two branches on this machine, place calls under load, measure the voice",
		Long:    labHelp,
		Example: labExamples,
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return runLab(c, f) },
	}
	flags := c.Flags()
	flags.StringVar(&f.wan, "wan", "20mbit", "rate of the provider's bottleneck, or none")
	flags.StringVar(&f.family, "family", string(lab.IPv4), "address family of the WAN, phones and PCs: ipv4 or ipv6")
	flags.DurationVar(&f.delay, "delay", 0, "one-way delay that the provider adds")
	flags.StringArrayVar(&f.loss, "loss", []string{"0%"},
		"loss by the provider in each direction, 0.5% or 0.005, or of a line: `LINE=SHARE[@FROM[-UNTIL]]`")
	flags.IntVar(&f.wans, "wans", 1, "lines of berlin, each of the rate --wan; with 2: --delay 25ms and --bulk none, "+
		"if not given")
	flags.StringArrayVar(&f.cut, "cut", nil, "pull a line's cable: `LINE@FROM[-UNTIL]`, as wan0@10s-20s")
	flags.StringArrayVar(&f.blackhole, "blackhole", nil,
		"have a line deliver nothing, with its carrier: `LINE@FROM[-UNTIL]`")
	flags.StringArrayVar(&f.swing, "swing", nil,
		"have a line's rate swing: `LINE=LOW-HIGH[@FROM[-UNTIL]]`, as wan1=5-50mbit")
	flags.Uint64Var(&f.buffer, "buffer", uint64(lab.DefaultBuffer), "bytes in the provider's FIFO")
	flags.Uint64Var(&f.seed, "seed", 1, "seed of the loss: the same seed loses the same packets")
	flags.StringVar(&f.bulk, "bulk", "tcp", "fill the WAN with none, tcp or udp (a flood of twice its rate)")
	flags.StringVar(&f.sip, "sip", "enforce", "what the edges do with signalling: off, observe or enforce (docs/calls.md)")
	flags.IntVar(&f.calls, "calls", 10, "calls at the same time")
	flags.DurationVar(&f.duration, "duration", 20*time.Second, "duration of each call")
	flags.BoolVar(
		&f.baseline,
		"baseline",
		false,
		"run a second pair beside it: one stock wireguard-go tunnel, no queues",
	)
	flags.StringVar(&f.only, "only", "",
		"build one pair alone: ringway or baseline; with lines also single or duplicate-all")
	flags.StringVar(
		&f.wireguardGo,
		"wireguard-go",
		"",
		"the stock `PROGRAM` of the baseline (default: beside ringway, else in PATH)",
	)
	flags.BoolVar(&f.json, "json", false, "print JSON to standard output, everything else to standard error")
	flags.StringVar(
		&f.plot,
		"plot",
		"lab-out/ringway-lab.png",
		"draw every packet's delay into `FILE` (.png or .svg), and the queues beside it, or none",
	)
	flags.BoolVar(&f.keep, "keep", false, "leave the lab running and print how to enter it")
	flags.StringVar(&f.down, "down", "", "end the lab `ID` that --keep left running")
	_ = c.RegisterFlagCompletionFunc("family", completeFamily)
	c.AddCommand(&cobra.Command{
		Use: "holder", Hidden: true, Args: cobra.ArbitraryArgs,
		RunE: func(c *cobra.Command, args []string) error { return lab.Holder(args, os.Stdin, os.Stdout) },
	})
	return c
}

var completeFamily = cobra.FixedCompletions(
	[]string{string(lab.IPv4), string(lab.IPv6)},
	cobra.ShellCompDirectiveNoFileComp,
)

func runLab(c *cobra.Command, f labFlags) error {
	if f.down != "" {
		return labError(lab.Down(f.down))
	}
	f.linesDefaults(c)
	o, err := f.options()
	if err != nil {
		return cli.UsageError{Err: err}
	}
	o.Version, o.Progress = version, c.ErrOrStderr()
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

// options converts the flags to the lab's options.
func (f labFlags) options() (lab.Options, error) {
	o := lab.Options{
		WireGuardGo: f.wireguardGo, Underlay: lab.Family(f.family), Overlay: lab.Family(f.family),
		Buffer: lab.Bytes(f.buffer), Delay: f.delay, Seed: f.seed,
		Bulk: lab.Bulk(f.bulk), Calls: f.calls, Duration: f.duration, SIP: f.sip,
	}
	if !slices.Contains([]string{"off", "observe", "enforce"}, f.sip) {
		return o, fmt.Errorf("--sip: unknown mode %q (allowed: off, observe, enforce)", f.sip)
	}
	var err error
	if o.WAN, err = lab.ParseWAN(f.wan); err != nil {
		return o, fmt.Errorf("--wan: %w", err)
	}
	if err := f.events(&o); err != nil {
		return o, err
	}
	switch f.only {
	case "":
		o.Paths = []lab.PathName{lab.Ringway}
		if f.baseline {
			o.Paths = append(o.Paths, lab.Baseline)
		}
	case string(lab.Ringway), string(lab.Baseline), string(lab.Single), string(lab.Duplicate):
		o.Paths = []lab.PathName{lab.PathName(f.only)}
	default:
		return o, fmt.Errorf("--only: unknown pair %q (allowed: ringway, baseline; with lines also single, duplicate-all)",
			f.only)
	}
	if f.calls < 1 || f.calls > 500 {
		return o, fmt.Errorf("--calls: %d is out of range (allowed: 1-500)", f.calls)
	}
	switch filepath.Ext(f.plot) {
	case ".png", ".svg":
	default:
		if f.plot != "none" && f.plot != "" {
			return o, fmt.Errorf(
				"--plot: unknown format of %s (allowed: a name that ends in .png or .svg, or none)",
				f.plot,
			)
		}
	}
	return o, nil
}

// linesDefaults are other defaults where there are several lines: a round trip of 50 ms, and nothing beside the calls,
// so that what is lost is lost by the events.
func (f *labFlags) linesDefaults(c *cobra.Command) {
	if f.wans < 2 {
		return
	}
	if !c.Flags().Changed("delay") {
		f.delay = 25 * time.Millisecond
	}
	if !c.Flags().Changed("bulk") {
		f.bulk = string(lab.BulkNone)
	}
}

// events reads what happens to lines, and the loss of the whole provider.
func (f labFlags) events(o *lab.Options) (err error) {
	if f.wans < 1 || f.wans > lab.MaxLines {
		return fmt.Errorf("--wans: %d is out of range (allowed: 1-%d)", f.wans, lab.MaxLines)
	}
	for _, flag := range []struct {
		kind lab.EventKind
		said []string
	}{{lab.Cut, f.cut}, {lab.Blackhole, f.blackhole}, {lab.Loss, f.loss}, {lab.Swing, f.swing}} {
		for _, s := range flag.said {
			if flag.kind == lab.Loss && !strings.Contains(s, "=") {
				if o.Loss, err = lab.ParseShare(s); err != nil {
					return fmt.Errorf("--loss: %w", err)
				}
				continue
			}
			e, err := lab.ParseEvent(flag.kind, s)
			if err != nil {
				return fmt.Errorf("--%s: %w", flag.kind, err)
			}
			o.Events = append(o.Events, e)
		}
	}
	if f.wans > 1 || len(o.Events) > 0 {
		o.Lines = f.wans
	}
	return nil
}

func (f labFlags) show(c *cobra.Command, r lab.Result) error {
	write := r.Table
	if f.json {
		write = r.JSON
	}
	if err := write(c.OutOrStdout()); err != nil {
		return fmt.Errorf("print the report: %w", err)
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
		fmt.Fprintf(c.ErrOrStderr(), "What the queues held: %s\n", queues)
	}
	return nil
}

// labError marks wrong usage.
func labError(err error) error {
	if errors.Is(err, lab.ErrUsage) {
		return cli.UsageError{Err: err}
	}
	return err
}

// interrupted replaces the error that an interruption caused.
func interrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("interrupted; the lab left nothing behind")
	}
	return err
}
