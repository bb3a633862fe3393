package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/spf13/cobra"

	"ringway/appliance/control"
	"ringway/appliance/status"
	"ringway/cmd/cli"
	"ringway/cmd/ringway/settings"
)

func statusCommand(a *app) *cobra.Command {
	var watch, metrics, queues, once bool
	c := &cobra.Command{
		Use: "status", Short: "Show tunnels, queues, drops and missing kernel features", Args: cobra.NoArgs,
		Long: `Asks the running daemon. Root and members of the group in control.group of the config may ask.

--queues shows for each class's queue on each WAN what it sends now, its rate and its ceiling, its backlog and how long that
waits, and its drops. On a terminal it is updated every second until interrupted; otherwise one table is printed, and with
--json one object a line.`,
		Example: `  ringway status
  ringway status --watch
  ringway status --queues
  ringway status --metrics            for Prometheus, through node_exporter's textfile collector
  ringway status --json | jq '.tunnels[].peers[] | {site, last_handshake}'`,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := statusFlags(c); err != nil {
				return err
			}
			client := a.client()
			switch {
			case metrics:
				text, err := client.Metrics(c.Context())
				if err != nil {
					return err
				}
				_, err = c.OutOrStdout().Write(text)
				return err
			case queues:
				interval := a.Interval
				if a.IsDefault("interval") {
					interval = time.Second
				}
				return showQueues(c, client, interval, a.PrintJSON, once || !a.PrintJSON && !isTerminal(os.Stdout))
			}
			return showStatus(c, a, client, watch)
		},
	}
	jsonFlag(c, "print JSON")
	flags := c.Flags()
	flags.BoolVarP(&watch, "watch", "w", false, "update until interrupted")
	flags.BoolVar(&queues, "queues", false,
		"show rates, backlog and drops of the WANs' queues; on a terminal, updated every second")
	flags.BoolVar(&once, "once", false, "with --queues: print one table, also on a terminal")
	flags.BoolVar(&metrics, "metrics", false, "print all metrics in the Prometheus text format (docs/metrics.md)")
	flags.Duration("interval", 2*time.Second, "time between two updates of --watch, and of --queues (there 1s)")
	settings.Bind(flags, "interval", "interval")
	return c
}

// showStatus prints the status, once or until interrupted.
func showStatus(c *cobra.Command, a *app, client *control.Client, watch bool) error {
	show := func(w io.Writer) error {
		st, err := client.Status(c.Context())
		if err != nil {
			return err
		}
		if !a.PrintJSON {
			return st.Print(w, time.Now())
		}
		enc := json.NewEncoder(w)
		if !watch { // one object a line when a script follows
			enc.SetIndent("", "  ")
		}
		return enc.Encode(st)
	}
	if !watch {
		return show(c.OutOrStdout())
	}
	return follow(c.Context(), c.OutOrStdout(), a.Interval, !a.PrintJSON && isTerminal(os.Stdout), show)
}

// statusFlags refuses flags that contradict each other.
func statusFlags(c *cobra.Command) error {
	for _, pair := range [][2]string{{"metrics", "json"}, {"metrics", "watch"}, {"metrics", "queues"},
		{"metrics", "once"}, {"queues", "watch"}} {
		if c.Flags().Changed(pair[0]) && c.Flags().Changed(pair[1]) {
			return cli.UsageError{
				Err: fmt.Errorf("--%s and --%s cannot be combined (allowed: one of them)", pair[0], pair[1]),
			}
		}
	}
	if c.Flags().Changed("once") && !c.Flags().Changed("queues") {
		return cli.UsageError{Err: errors.New("--once needs --queues (allowed: ringway status --queues --once)")}
	}
	return nil
}

// showQueues prints the rates of the queues between two status requests, so the first table comes after one
// interval.
func showQueues(c *cobra.Command, client *control.Client, interval time.Duration, asJSON, once bool) error {
	ctx, w := c.Context(), c.OutOrStdout()
	var rates status.QueueRates
	look := func() (status.QueueView, error) {
		st, err := client.Status(ctx)
		return rates.Next(st, time.Now()), err
	}
	if _, err := look(); err != nil && (once || !errors.Is(err, control.ErrNotRunning)) {
		return err
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		view, err := look()
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil && (once || !errors.Is(err, control.ErrNotRunning)):
			return err
		case err != nil && asJSON:
			continue // a script expects objects only; the daemon may come back
		}
		if !asJSON && !once {
			fmt.Fprint(w, "\x1b[H\x1b[2J")
		}
		switch {
		case err != nil:
			fmt.Fprintln(w, err)
		case asJSON:
			err = json.NewEncoder(w).Encode(view)
		default:
			err = view.Print(w)
		}
		if once || err != nil && !errors.Is(err, control.ErrNotRunning) {
			return err
		}
	}
}

// follow calls show until ctx ends. It waits for a daemon that is not running, for instance during a restart.
func follow(ctx context.Context, w io.Writer, interval time.Duration, clear bool, show func(io.Writer) error) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if clear {
			fmt.Fprint(w, "\x1b[H\x1b[2J")
		}
		if err := show(w); err != nil && ctx.Err() == nil {
			if !errors.Is(err, control.ErrNotRunning) {
				return err
			}
			fmt.Fprintln(w, err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

func isTerminal(f *os.File) bool {
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}
