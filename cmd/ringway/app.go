package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"ringway/appliance"
	"ringway/appliance/control"
	"ringway/cmd/cli"
	"ringway/cmd/ringway/settings"
)

// settingsFile is a variable for the tests.
var settingsFile = settings.File

// app is what the commands share: the settings of the command line.
type app struct {
	settings.Settings
	defaults bool // read neither the settings file nor the environment
}

// flags adds what overrides the settings in every command.
func (a *app) flags(root *cobra.Command) {
	flags := root.PersistentFlags()
	flags.String("run-dir", settings.Default("run_dir"), "directory of the daemon's sockets and lock")
	flags.String("state-dir", settings.Default("state_dir"), "directory of what the daemon keeps across reboots")
	settings.Bind(flags, "run-dir", "run_dir")
	settings.Bind(flags, "state-dir", "state_dir")
	flags.BoolVar(&a.defaults, "defaults", false, "ignore "+settings.File+" and RINGWAY_ variables (for unit files)")
}

// configured marks a command that reads the settings. The others (plane, help, completion) work whatever is
// in them.
func (a *app) configured(c *cobra.Command) *cobra.Command {
	c.PreRunE = func(c *cobra.Command, _ []string) error { return a.load(c) }
	return c
}

func (a *app) load(c *cobra.Command) (err error) {
	in := settings.Input{Flags: c.Flags(), Environment: true, File: settingsFile, UID: os.Geteuid()}
	if a.defaults {
		in.Environment, in.File = false, ""
	}
	a.Settings, err = settings.Load(in)
	return err
}

func (a *app) paths() appliance.Paths {
	p := appliance.DefaultPaths()
	p.Run, p.State = a.RunDir, a.StateDir
	return p
}

func (a *app) client() *control.Client { return control.NewClient(a.paths().Socket()) }

// config is the config file of a command: its argument, or else the setting.
func (a *app) config(args []string) string {
	if len(args) == 1 {
		return args[0]
	}
	return a.Config
}

// oneConfig checks the arguments of the commands that read a config.
func oneConfig(c *cobra.Command, args []string) error {
	if len(args) <= 1 {
		return nil
	}
	return fmt.Errorf("%s takes one config FILE, not %d", c.Name(), len(args))
}

// jsonFlag adds --json, which overrides the setting output.
func jsonFlag(c *cobra.Command, usage string) {
	c.Flags().Bool("json", false, usage)
	settings.Bind(c.Flags(), "json", "output")
}

// printJSON prints v, indented.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func versionCommand(a *app) *cobra.Command {
	var verbose bool
	c := &cobra.Command{
		Use: "version", Short: "Print version, Go release and the WireGuard code inside", Args: cobra.NoArgs,
		Long: `Prints the version, the Go release and the version of the WireGuard code. With -v also every setting of the command
line, and where its value comes from: a flag, a RINGWAY_ variable, a line of ` + settings.File + `, or the default.`,
		Example: `  ringway version
  ringway version -v`,
		RunE: func(c *cobra.Command, _ []string) error {
			cli.PrintVersion(c.OutOrStdout(), "ringway", version)
			if !verbose {
				return nil
			}
			if err := a.load(c); err != nil {
				return err
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
			for _, s := range a.Sources {
				fmt.Fprintf(w, "%s\t%s\t%s\n", s.Key, s.Value, s.From)
			}
			return w.Flush()
		},
	}
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "also print each setting and where it comes from")
	return c
}

// settingsProblems reports whether err is a mistake in the settings.
func settingsProblems(err error) bool {
	var problems settings.Problems
	return errors.As(err, &problems)
}
