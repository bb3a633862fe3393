package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"ringway/appliance/commit"
	"ringway/appliance/compare"
	"ringway/appliance/config"
	"ringway/appliance/control"
	"ringway/cmd/cli"
)

func applyCommand(a *app) *cobra.Command {
	var confirm time.Duration
	c := &cobra.Command{
		Use:   "apply [FILE]",
		Short: "Check a config, show what it changes, and have the running daemon apply it; with --confirm on trial",
		Args:  cobra.MaximumNArgs(1),
		Long: `Checks FILE, prints what it changes (as ` + "`ringway plan`" + `), and has the running daemon apply it: FILE replaces the
daemon's own config file. Without FILE the daemon's file is applied as it was edited. What cannot be applied is rolled
back at once.

With --confirm the config is on trial: unless ` + "`ringway confirm`" + ` follows within that time, the daemon rolls back to the
previous config and restores the file, so that a mistake does not lock you out of a remote box. The time keeps running
while the daemon is down or is upgraded; a daemon that starts after a reboot starts with the previous config. The config
that was rolled back is kept in refused.yaml in the state directory. Key files are not copied: to change a key, name
another file.`,
		Example: `  ringway apply --confirm 2m new.yaml      then check that you can still log in, and: ringway confirm
  ringway apply --confirm 2m               the daemon's config file, after an edit
  ringway apply new.yaml                   without a trial`,
		RunE: func(c *cobra.Command, args []string) error {
			onTrial := c.Flags().Changed("confirm")
			if onTrial && (confirm < commit.MinConfirm || confirm > commit.MaxConfirm) {
				return cli.SeeHelp(c, fmt.Errorf("--confirm: %s is out of range (allowed: %s to %s)",
					confirm, commit.MinConfirm, commit.MaxConfirm))
			}
			if err := a.apply(c, args, confirm); err != nil {
				return err
			}
			if onTrial {
				fmt.Fprintf(
					c.OutOrStdout(),
					"# applied; rolled back in %s unless `ringway confirm` follows\n",
					confirm,
				)
			} else {
				fmt.Fprintln(c.OutOrStdout(), "# applied")
			}
			return nil
		},
	}
	c.Flags().DurationVar(&confirm, "confirm", 0, "roll back after `TIME` (5s to 24h) unless ringway confirm follows")
	times := cobra.FixedCompletions([]string{"1m", "2m", "5m", "10m"}, cobra.ShellCompDirectiveNoFileComp)
	_ = c.RegisterFlagCompletionFunc("confirm", times)
	return c
}

// apply checks a config, prints the plan, and hands the bytes that were checked to the daemon.
func (a *app) apply(c *cobra.Command, args []string, confirm time.Duration) error {
	client := a.client()
	st, err := client.Status(c.Context())
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("apply needs root; `ringway plan` shows without root what would change")
	}

	name := st.Config
	if len(args) == 1 {
		name = args[0]
	}
	text, err := config.Read(name)
	if err != nil {
		return err
	}
	// Checked under the path that it will have: relative key files are resolved against it.
	cfg, err := config.Parse(st.Config, text, config.Named(name))
	if err != nil {
		return err
	}
	for _, w := range cfg.Warnings {
		fmt.Fprintf(c.OutOrStdout(), "warning: %s\n", w)
	}

	changes, err := compare.Plan(c.Context(), compare.Request{
		Path: st.Config, Name: name, Text: text, Files: a.paths().PlanFiles(), Build: version,
	})
	if err != nil {
		return err
	}
	fmt.Fprint(c.OutOrStdout(), changes)

	_, err = client.Apply(c.Context(), text, name, confirm)
	return err
}

func confirmCommand(a *app) *cobra.Command {
	var undo bool
	c := &cobra.Command{
		Use: "confirm", Short: "Keep the config that `apply --confirm` put on trial", Args: cobra.NoArgs,
		Example: `  ringway confirm
  ringway confirm --undo     roll back at once`,
		RunE: func(c *cobra.Command, _ []string) error {
			client, ask, done := a.client(), (*control.Client).Confirm, "the config stays"
			if undo {
				ask, done = (*control.Client).Undo, "the previous config runs again"
			}
			if err := ask(client, c.Context()); err != nil {
				return err
			}
			fmt.Fprintln(c.OutOrStdout(), done)
			return nil
		},
	}
	c.Flags().BoolVar(&undo, "undo", false, "roll back at once instead")
	return c
}
