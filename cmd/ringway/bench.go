package main

import (
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"ringway/test/bench"
)

func benchCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "bench", Short: "Measure Ringway: beside what people know on this machine, or between live boxes", Args: cobra.NoArgs,
		Long: `Benchmarks that a network engineer can repeat. But for live, which asks another box, they run on one machine: they need
root, make their own network namespaces, send traffic nowhere else, and leave nothing behind.`,
		Example: `  ringway bench jitter --vs wireguard-go-shared,wireguard-go,nebula,openvpn,kernel --plot bench-out
  ringway bench throughput --sizes 200 --one-core --engines ringway,wireguard-go --rounds 5
  ringway bench link --rates 2mbit --duration 10s
  ringway bench rekey --far wireguard-go
  ringway bench live munich`,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(benchJitterCommand(), benchProbeCommand(), benchWakeCommand(), benchEdgeCommand(), benchLiveCommand(), benchThroughputCommand(), benchLinkCommand(), benchTesterCommand(), benchRekeyCommand())
	return c
}

// benchError tells wrong usage from a benchmark that failed, and both from an interruption.
func benchError(c *cobra.Command, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, bench.ErrUsage):
		return usageError{err}
	case c.Context().Err() != nil:
		return errors.New("interrupted; nothing of the benchmark is left")
	}
	return err
}

// measured is what a benchmark with plots brings back.
type measured interface {
	Table(io.Writer) error
	JSON(io.Writer) error
	Save(dir string) (page string, err error)
}

// show prints what was measured, and draws it into the folder plot where that is named.
func show(c *cobra.Command, r measured, asJSON bool, plot string) error {
	write := r.Table
	if asJSON {
		write = r.JSON
	}
	if err := write(c.OutOrStdout()); err != nil {
		return fmt.Errorf("write what was measured: %w", err)
	}
	if plot == "" {
		return nil
	}
	page, err := r.Save(plot)
	if err != nil {
		return fmt.Errorf("draw what was measured: %w", err)
	}
	fmt.Fprintf(c.ErrOrStderr(), "\nThe whole report, with plots: %s\n", page)
	return nil
}
