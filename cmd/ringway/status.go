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

	"ringway/appliance"
)

func statusCommand(paths *appliance.Paths) *cobra.Command {
	var asJSON, watch, metrics, queues, once bool
	var interval time.Duration
	c := &cobra.Command{
		Use: "status", Short: "Show tunnels, queues, drops and what the kernel lacks", Args: cobra.NoArgs,
		Long: `Asks the running daemon. Root may, and members of the group that control.group in the config names.

With --queues: what each class's queue on each WAN sends now, beside its own rate and its ceiling, what waits there and how long,
what was dropped. On a terminal again every second until interrupted, else one table. With --json one object a line.`,
		Example: `  ringway status
  ringway status --watch
  ringway status --queues
  ringway status --metrics            for Prometheus, through node_exporter's textfile collector
  ringway status --json | jq '.tunnels[].peers[] | {site, last_handshake}'`,
		RunE: func(c *cobra.Command, _ []string) error {
			if interval < 100*time.Millisecond {
				return usageError{fmt.Errorf("--interval %s is too short (allowed: 100ms and more)", interval)}
			}
			if err := statusFlags(c); err != nil {
				return err
			}
			client := appliance.NewClient(*paths)
			switch {
			case metrics:
				text, err := client.Metrics(c.Context())
				if err != nil {
					return err
				}
				_, err = c.OutOrStdout().Write(text)
				return err
			case queues:
				if !c.Flags().Changed("interval") {
					interval = time.Second
				}
				return showQueues(c, client, interval, asJSON, once || !asJSON && !isTerminal(os.Stdout))
			}
			show := func(w io.Writer) error {
				st, err := client.Status(c.Context())
				if err != nil {
					return err
				}
				if asJSON {
					enc := json.NewEncoder(w)
					if !watch { // one object a line when a script follows
						enc.SetIndent("", "  ")
					}
					return enc.Encode(st)
				}
				return st.Print(w, time.Now())
			}
			if !watch {
				return show(c.OutOrStdout())
			}
			return follow(c.Context(), c.OutOrStdout(), interval, !asJSON && isTerminal(os.Stdout), show)
		},
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	c.Flags().BoolVarP(&watch, "watch", "w", false, "show again and again until interrupted")
	c.Flags().BoolVar(&queues, "queues", false, "show what the WANs' queues do now, again and again on a terminal")
	c.Flags().BoolVar(&once, "once", false, "with --queues: once, also on a terminal")
	c.Flags().BoolVar(&metrics, "metrics", false, "print the numbers in Prometheus' text format (docs/metrics.md)")
	c.Flags().DurationVar(&interval, "interval", 2*time.Second, "time between two looks with --watch, and with --queues (there 1s)")
	return c
}

// statusFlags refuses what says nothing together.
func statusFlags(c *cobra.Command) error {
	for _, pair := range [][2]string{{"metrics", "json"}, {"metrics", "watch"}, {"metrics", "queues"}, {"metrics", "once"}, {"queues", "watch"}} {
		if c.Flags().Changed(pair[0]) && c.Flags().Changed(pair[1]) {
			return usageError{fmt.Errorf("--%s and --%s do not go together (allowed: one of them)", pair[0], pair[1])}
		}
	}
	if c.Flags().Changed("once") && !c.Flags().Changed("queues") {
		return usageError{errors.New("--once is of --queues (allowed: ringway status --queues --once)")}
	}
	return nil
}

// showQueues shows what the queues do between two looks: rates want two, so the first table comes after interval.
func showQueues(c *cobra.Command, client *appliance.Client, interval time.Duration, asJSON, once bool) error {
	ctx, w := c.Context(), c.OutOrStdout()
	var rates appliance.QueueWatch
	look := func() (appliance.QueueView, error) {
		st, err := client.Status(ctx)
		return rates.Look(st, time.Now()), err
	}
	if _, err := look(); err != nil && (once || !errors.Is(err, appliance.ErrNotRunning)) {
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
		case err != nil && (once || !errors.Is(err, appliance.ErrNotRunning)):
			return err
		case err != nil && asJSON:
			continue // nobody reads words there; the daemon comes back, or the reader ends this
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
		if once || err != nil && !errors.Is(err, appliance.ErrNotRunning) {
			return err
		}
	}
}

// follow shows until ctx ends. A daemon that is away for a moment (a restart) is waited for.
func follow(ctx context.Context, w io.Writer, interval time.Duration, clear bool, show func(io.Writer) error) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if clear {
			fmt.Fprint(w, "\x1b[H\x1b[2J")
		}
		if err := show(w); err != nil && ctx.Err() == nil {
			if !errors.Is(err, appliance.ErrNotRunning) {
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
