package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"ringway/cmd/cli"
	"ringway/test/bench"
	"ringway/test/lab/program"
)

func benchCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "bench",
		Short:   "Measure Ringway beside other tunnels on this machine, or between live boxes",
		Args:    cobra.NoArgs,
		Long:    benchHelp,
		Example: benchExamples,
		RunE:    func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(
		benchJitterCommand(),
		benchProbeCommand(),
		benchWakeCommand(),
		benchEdgeCommand(),
		liveCommand(),
		benchThroughputCommand(),
		benchLinkCommand(),
		benchTesterCommand(),
		benchRekeyCommand(),
		benchPathsCommand(),
		benchMemoryCommand(),
		benchSIPCommand(),
		benchMediaCommand(),
		benchMediaEdgeCommand(),
	)
	return c
}

// benchError separates wrong usage, an interruption and a benchmark that failed.
func benchError(c *cobra.Command, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, bench.ErrUsage):
		return cli.UsageError{Err: err}
	case c.Context().Err() != nil:
		return errors.New("interrupted; the benchmark left nothing behind")
	}
	return err
}

// printed is a report.
type printed interface {
	Table(io.Writer) error
	JSON(io.Writer) error
}

// plotted is a report with plots.
type plotted interface {
	printed
	Save(dir string) (page string, err error)
}

// show prints a report, and draws it into the directory plot, where one is named.
func show(c *cobra.Command, r plotted, asJSON bool, plot string) error {
	if err := showReport(c, r, asJSON); err != nil {
		return err
	}
	if plot == "" {
		return nil
	}
	page, err := r.Save(plot)
	if err != nil {
		return fmt.Errorf("draw the report: %w", err)
	}
	fmt.Fprintf(c.ErrOrStderr(), "\nThe whole report, with plots: %s\n", page)
	return nil
}

// liveCommand hands over to ringway, which has this benchmark because it asks boxes in service.
func liveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "live SITE|ADDRESS", Short: "Measure the path to a live appliance: delay, variation, loss in each direction",
		Args: cobra.ArbitraryArgs, DisableFlagParsing: true,
		RunE: func(_ *cobra.Command, args []string) error {
			path, err := program.Find(version)
			if err != nil {
				return err
			}
			if err := unix.Exec(path, append([]string{"ringway", "bench", "live"}, args...), os.Environ()); err != nil {
				return fmt.Errorf("run %s: %w", path, err)
			}
			return nil
		},
	}
}
