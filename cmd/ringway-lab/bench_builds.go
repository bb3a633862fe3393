package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"ringway/cmd/cli"
	"ringway/test/bench"
)

// buildsFlags are --ringway and --pairs.
type buildsFlags struct {
	builds []string
	pairs  int
}

func (f *buildsFlags) add(c *cobra.Command) {
	c.Flags().StringSliceVar(&f.builds, "ringway", nil,
		"measure these builds of ringway in turn: `OLD,NEW`, or one; each needs its own ringway-lab beside it")
	c.Flags().IntVar(&f.pairs, "pairs", 5, "with --ringway: how often to measure each build")
}

func (f *buildsFlags) given() bool { return len(f.builds) > 0 }

func (f *buildsFlags) options(c *cobra.Command) bench.BuildsOptions {
	return bench.BuildsOptions{Builds: f.builds, Pairs: f.pairs, Progress: c.ErrOrStderr()}
}

// check refuses --plot beside --ringway, before anything is measured.
func (f *buildsFlags) check(c *cobra.Command) error {
	if f.given() && c.Flags().Changed("plot") {
		return cli.UsageError{Err: errors.New("--plot and --ringway cannot be combined (allowed: one of them)")}
	}
	if !f.given() && c.Flags().Changed("pairs") {
		return cli.UsageError{Err: errors.New("--pairs needs --ringway (allowed: --ringway OLD,NEW --pairs N)")}
	}
	return nil
}

func benchMemoryCommand() *cobra.Command {
	o := bench.DefaultMemory()
	var builds buildsFlags
	var printJSON bool
	c := &cobra.Command{
		Use:     "memory",
		Short:   "Memory of the daemon and its planes, with few and with many sites",
		Args:    cobra.NoArgs,
		Long:    memoryHelp,
		Example: memoryExamples,
		RunE: func(c *cobra.Command, _ []string) error {
			o.Version = version
			r, err := bench.MeasureMemory(c.Context(), builds.options(c), o)
			if err != nil {
				return benchError(c, err)
			}
			return showReport(c, r, printJSON)
		},
	}
	builds.add(c)
	c.Flags().IntSliceVar(&o.Sites, "sites", o.Sites, "numbers of other sites")
	c.Flags().BoolVar(&printJSON, "json", false, jsonUsage)
	return c
}

// showReport prints a report that has no plots.
func showReport(c *cobra.Command, r printed, asJSON bool) error {
	write := r.Table
	if asJSON {
		write = r.JSON
	}
	if err := write(c.OutOrStdout()); err != nil {
		return fmt.Errorf("print the report: %w", err)
	}
	return nil
}
