package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"ringway/appliance"
	"ringway/appliance/config"
)

func applyCommand(paths *appliance.Paths) *cobra.Command {
	var confirm time.Duration
	c := &cobra.Command{
		Use: "apply [FILE]", Short: "Check a config, show what it changes, and make the running daemon run it; with --confirm on trial", Args: cobra.MaximumNArgs(1),
		Long: `Checks FILE, prints what it changes (as ` + "`ringway plan`" + `), and makes the running daemon run it: FILE is copied into
the place of the daemon's own config file. Without FILE that file itself is taken, as it was edited. What cannot be
applied is undone at once.

With --confirm it is on trial: unless ` + "`ringway confirm`" + ` follows within that time, the daemon goes back to what ran before,
with the file as well; so nobody locks himself out of a box that is far away. A daemon that is killed or upgraded meanwhile
counts on; one that starts after a reboot of the machine starts with the config before. What was undone is kept in
refused.yaml in the state directory. Key files are not copied: change a key by naming another file.`,
		Example: `  ringway apply --confirm 2m new.yaml      then look whether you still get in, and: ringway confirm
  ringway apply --confirm 2m               the config file itself, after an edit
  ringway apply new.yaml                   for good`,
		RunE: func(c *cobra.Command, args []string) error {
			onTrial := c.Flags().Changed("confirm")
			if onTrial && (confirm < appliance.MinConfirm || confirm > appliance.MaxConfirm) {
				return seeHelp(c, fmt.Errorf("--confirm: %s is out of range (allowed: %s to %s)", confirm, appliance.MinConfirm, appliance.MaxConfirm))
			}
			client := appliance.NewClient(*paths)
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
			// Checked for the place where it will stand: key files are looked for beside that.
			cfg, err := config.Parse(st.Config, text, config.Named(name))
			if err != nil {
				return err
			}
			for _, w := range cfg.Warnings {
				fmt.Fprintf(c.OutOrStdout(), "warning: %s\n", w)
			}
			plan, err := appliance.Plan(c.Context(), cfg, *paths, appliance.PlanOptions{})
			if err != nil {
				return err
			}
			fmt.Fprint(c.OutOrStdout(), plan)
			// The bytes that were checked, not the file again.
			if _, err := client.Apply(c.Context(), text, name, confirm); err != nil {
				return err
			}
			if onTrial {
				fmt.Fprintf(c.OutOrStdout(), "# applied; the config before comes back in %s unless `ringway confirm` is given\n", confirm)
			} else {
				fmt.Fprintln(c.OutOrStdout(), "# applied")
			}
			return nil
		},
	}
	c.Flags().DurationVar(&confirm, "confirm", 0, "go back after `TIME` (5s to 24h) unless ringway confirm follows")
	_ = c.RegisterFlagCompletionFunc("confirm", cobra.FixedCompletions([]string{"1m", "2m", "5m", "10m"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func confirmCommand(paths *appliance.Paths) *cobra.Command {
	var undo bool
	c := &cobra.Command{
		Use: "confirm", Short: "Keep the config that `apply --confirm` put on trial", Args: cobra.NoArgs,
		Example: `  ringway confirm
  ringway confirm --undo     go back at once`,
		RunE: func(c *cobra.Command, _ []string) error {
			client, ask, done := appliance.NewClient(*paths), (*appliance.Client).Confirm, "the config stays"
			if undo {
				ask, done = (*appliance.Client).Undo, "the config before runs again"
			}
			if err := ask(client, c.Context()); err != nil {
				return err
			}
			fmt.Fprintln(c.OutOrStdout(), done)
			return nil
		},
	}
	c.Flags().BoolVar(&undo, "undo", false, "go back at once instead")
	return c
}
