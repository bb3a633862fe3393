package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// ExplainUsage makes every mistake on the command line a UsageError that suggests what was probably meant.
// Without it, cobra's own commands (help, completion) print help for an unknown name and exit with 0.
func ExplainUsage(root *cobra.Command) {
	root.SuggestionsMinimumDistance = 2
	root.SilenceUsage, root.SilenceErrors = true, true
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	root.SetFlagErrorFunc(flagError)

	for _, c := range root.Commands() {
		explainArgs(c)
		switch c.Name() {
		case "help":
			explainHelp(root, c)
		case "completion":
			explainCompletion(root, c)
		}
	}

	root.Args = func(c *cobra.Command, args []string) error {
		if len(args) > 0 {
			return UnknownCommand(c, args[0])
		}
		return nil
	}
	root.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
}

func explainArgs(c *cobra.Command) {
	if check := c.Args; check != nil {
		c.Args = func(c *cobra.Command, args []string) error { return SeeHelp(c, check(c, args)) }
	}
	for _, sub := range c.Commands() {
		explainArgs(sub)
	}
}

func explainHelp(root, c *cobra.Command) {
	c.Example = fmt.Sprintf("  %s help version", root.Name())
	c.PreRunE = func(_ *cobra.Command, args []string) error {
		if _, rest, err := root.Find(args); err != nil || len(rest) > 0 {
			return UnknownCommand(root, strings.Join(args, " "))
		}
		return nil
	}
}

func explainCompletion(root, c *cobra.Command) {
	c.Example = fmt.Sprintf(
		"  source <(%s completion bash)\n  %s completion zsh > \"${fpath[1]}/_%[1]s\"",
		root.Name(),
		root.Name(),
	)
	c.Args = cobra.ArbitraryArgs
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return c.Help()
		}
		return UnknownCommand(c, args[0])
	}
}

// SeeHelp makes err a UsageError that names the command's help.
func SeeHelp(c *cobra.Command, err error) error {
	var usage UsageError
	if err == nil || errors.As(err, &usage) {
		return err
	}
	return UsageError{fmt.Errorf("%w (see `%s --help`)", err, c.CommandPath())}
}

// UnknownCommand is the error for a command that c does not have.
func UnknownCommand(c *cobra.Command, name string) error {
	c.SuggestionsMinimumDistance = 2
	return SeeHelp(c, fmt.Errorf("unknown command %q%s", name, didYouMean(c.SuggestionsFor(name))))
}

// flagError adds the nearest flag. cobra suggests commands only, so the flags are given to it as commands.
func flagError(c *cobra.Command, err error) error {
	name, unknown := strings.CutPrefix(err.Error(), "unknown flag: --")
	if !unknown {
		return SeeHelp(c, err)
	}

	flags := &cobra.Command{SuggestionsMinimumDistance: 2}
	c.Flags().VisitAll(func(f *pflag.Flag) {
		flags.AddCommand(&cobra.Command{Use: f.Name, Run: func(*cobra.Command, []string) {}})
	})
	near := flags.SuggestionsFor(name)
	for i := range near {
		near[i] = "--" + near[i]
	}
	return SeeHelp(c, fmt.Errorf("%w%s", err, didYouMean(near)))
}

func didYouMean(near []string) string {
	if len(near) == 0 {
		return ""
	}
	return fmt.Sprintf(": did you mean %s?", near[0])
}
