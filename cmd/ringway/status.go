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
	var asJSON, watch bool
	var interval time.Duration
	c := &cobra.Command{
		Use: "status", Short: "Show tunnels, queues, drops and what the kernel lacks", Args: cobra.NoArgs,
		Example: `  ringway status
  ringway status --watch
  ringway status --json | jq '.tunnels[].peers[] | {site, last_handshake}'`,
		RunE: func(c *cobra.Command, _ []string) error {
			if interval < 100*time.Millisecond {
				return usageError{fmt.Errorf("--interval %s is too short (allowed: 100ms and more)", interval)}
			}
			client := appliance.NewClient(*paths)
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
	c.Flags().DurationVar(&interval, "interval", 2*time.Second, "time between two looks with --watch")
	return c
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
