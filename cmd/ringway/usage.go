package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"ringway/appliance/config"
)

// teachUsage makes every mistake on the command line a usageError that names what was probably meant.
// cobra's own commands (help, completion) would print help and call that good.
func teachUsage(root *cobra.Command) {
	root.SuggestionsMinimumDistance = 2
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	root.SetFlagErrorFunc(flagError)
	for _, c := range root.Commands() {
		if check := c.Args; check != nil {
			c.Args = func(c *cobra.Command, args []string) error { return seeHelp(c, check(c, args)) }
		}
		switch c.Name() {
		case "help":
			c.Example = "  ringway help plan"
			c.PreRunE = func(_ *cobra.Command, args []string) error {
				if _, rest, err := root.Find(args); err != nil || len(rest) > 0 {
					return unknownCommand(root, strings.Join(args, " "))
				}
				return nil
			}
		case "completion":
			c.Example = `  source <(ringway completion bash)
  ringway completion zsh > "${fpath[1]}/_ringway"`
			c.Args = cobra.ArbitraryArgs
			c.RunE = func(c *cobra.Command, args []string) error {
				if len(args) == 0 {
					return c.Help()
				}
				return unknownCommand(c, args[0])
			}
		}
	}
	root.Args = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return unknownCommand(c, args[0])
		}
		return nil
	}
}

// seeHelp makes an error wrong usage and says where the right one is described.
func seeHelp(c *cobra.Command, err error) error {
	var usage usageError
	if err == nil || errors.As(err, &usage) {
		return err
	}
	return usageError{fmt.Errorf("%w (see `%s --help`)", err, c.CommandPath())}
}

func unknownCommand(c *cobra.Command, name string) error {
	c.SuggestionsMinimumDistance = 2
	return seeHelp(c, fmt.Errorf("unknown command %q%s", name, didYouMean(c.SuggestionsFor(name))))
}

// flagError adds the nearest flag. cobra knows commands that are near, not flags: they are shown to it as commands.
func flagError(c *cobra.Command, err error) error {
	if name, unknown := strings.CutPrefix(err.Error(), "unknown flag: --"); unknown {
		flags := &cobra.Command{SuggestionsMinimumDistance: 2}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			flags.AddCommand(&cobra.Command{Use: f.Name, Run: func(*cobra.Command, []string) {}})
		})
		near := flags.SuggestionsFor(name)
		for i := range near {
			near[i] = "--" + near[i]
		}
		err = fmt.Errorf("%w%s", err, didYouMean(near))
	}
	return seeHelp(c, err)
}

func didYouMean(near []string) string {
	if len(near) == 0 {
		return ""
	}
	return fmt.Sprintf(": did you mean %s?", near[0])
}

// oneConfig is the argument of the commands that read a config.
func oneConfig(c *cobra.Command, args []string) error {
	if len(args) == 1 {
		return nil
	}
	return fmt.Errorf("%s takes one config FILE, not %d", c.Name(), len(args))
}

// problemsJSON is what `check --json` prints. Fields are added, never renamed.
type problemsJSON struct {
	Problems []problemJSON `json:"problems"`
	Warnings []problemJSON `json:"warnings"`
}

type problemJSON struct {
	File    string `json:"file"`
	Line    int    `json:"line"` // 0: the file as a whole
	Key     string `json:"key"`
	Message string `json:"message"`
}

func asJSON(ps []config.Problem) []problemJSON {
	out := make([]problemJSON, len(ps))
	for i, p := range ps {
		out[i] = problemJSON(p)
	}
	return out
}
