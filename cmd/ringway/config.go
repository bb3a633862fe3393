package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"ringway/appliance/compare"
	"ringway/appliance/config"
	"ringway/appliance/plan"
	"ringway/cmd/cli"
)

func checkCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use:   "check [FILE]",
		Short: "Read a config and report every problem with its line; needs no root",
		Args:  oneConfig,
		Example: `  ringway check configs/minimal.yaml
  ringway check --json /etc/ringway/ringway.yaml | jq .problems`,
		RunE: func(c *cobra.Command, args []string) error {
			cfg, err := config.Load(a.config(args))
			var problems config.Problems
			if err != nil && !errors.As(err, &problems) {
				return cli.UsageError{Err: err}
			}
			var warnings []config.Problem
			if cfg != nil {
				warnings = append(slices.Clone(cfg.Warnings), machineWarnings(cfg, a.config(args))...)
			}
			if a.PrintJSON {
				if jerr := printJSON(c.OutOrStdout(), problemsJSON{asJSON(problems), asJSON(warnings)}); jerr != nil {
					return jerr
				}
				return err
			}
			for _, w := range warnings {
				fmt.Fprintf(c.OutOrStdout(), "warning: %s\n", w)
			}
			if err != nil {
				return err
			}
			fmt.Fprintf(
				c.OutOrStdout(),
				"%s: good (site %s, %d other sites)\n",
				a.config(args),
				cfg.Site,
				len(cfg.Sites),
			)
			return nil
		},
	}
	jsonFlag(c, "print problems and warnings as JSON")
	return c
}

// machineWarnings say what is in the way on this machine, where it is the box that the config is for.
func machineWarnings(cfg *config.Config, file string) (out []config.Problem) {
	for _, c := range compare.OtherChains(cfg) {
		out = append(out, config.Problem{File: file, Message: "this machine: " + c.String()})
	}
	return out
}

func planCommand(a *app) *cobra.Command {
	var opts plan.Options
	c := &cobra.Command{
		Use:   "plan [FILE]",
		Short: "Print what `run` would change, as commands of ip, tc, nft and wg; changes nothing",
		Args:  oneConfig,
		Long: `Prints the difference between what the config wants and what the machine has, as commands of ip, sysctl, tc, nft
and wg. A running daemon computes it (for root and for members of control.group): it is what ` + "`reload`" + ` or ` + "`apply`" + `
would change, with leases, endpoints and all else that the daemon has learned. Key files are not opened. Without a daemon
the same comparison is made from what the kernel shows; it needs no root, what the kernel shows only to root is taken as
absent, and the output says so.

It also prints how many calls of each codec every WAN carries to every site, with the arithmetic, and how long one packet
occupies the WAN. Keys are never printed.`,
		Example: `  ringway plan /etc/ringway/ringway.yaml
  ringway plan --all configs/branch-berlin.yaml     the whole wanted state, whatever the kernel holds
  ringway plan --all --only nft FILE | nft -c -f -  let nft check the ruleset
  ringway plan --only calls FILE                    how many calls fit, and why
  ringway plan --json FILE | jq .calls              the same for scripts`,
		RunE: func(c *cobra.Command, args []string) error {
			if opts.Only != "" && !slices.Contains(plan.PartNames, opts.Only) {
				return cli.SeeHelp(c, fmt.Errorf("--only: the plan has no part %q (allowed: %s)",
					opts.Only, strings.Join(plan.PartNames, ", ")))
			}
			path := a.config(args)
			text, err := config.Read(path)
			if err != nil {
				return err
			}
			out, err := compare.Plan(c.Context(), compare.Request{
				Path: path, Name: path, Text: text, Options: opts, Files: a.paths().PlanFiles(), Build: version,
			})
			if err != nil {
				return err
			}
			if a.PrintJSON {
				return printJSON(c.OutOrStdout(), out)
			}
			_, err = fmt.Fprint(c.OutOrStdout(), out)
			return err
		},
	}
	c.Flags().BoolVar(&opts.All, "all", false, "print the whole wanted state instead of the difference")
	c.Flags().StringVar(&opts.Only, "only", "", "print one `PART`: nft, ip, wg, tc or calls")
	jsonFlag(c, "print JSON: the same lines by part, and calls by WAN and site with every step")
	_ = c.RegisterFlagCompletionFunc(
		"only",
		cobra.FixedCompletions(plan.PartNames, cobra.ShellCompDirectiveNoFileComp),
	)
	return c
}

// problemsJSON is what `check --json` prints. Fields are added, never renamed.
type problemsJSON struct {
	Problems []problemJSON `json:"problems"`
	Warnings []problemJSON `json:"warnings"`
}

type problemJSON struct {
	File    string `json:"file"`
	Line    int    `json:"line"` // 0: the whole file
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
