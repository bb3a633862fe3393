package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"ringway/appliance"
	"ringway/appliance/config"
	"ringway/tunnel"
)

func checkCommand() *cobra.Command {
	var printJSON bool
	c := &cobra.Command{
		Use: "check FILE", Short: "Read a config and report every problem with its line; needs no root", Args: oneConfig,
		Example: `  ringway check configs/minimal.yaml
  ringway check --json /etc/ringway/ringway.yaml | jq .problems`,
		RunE: func(c *cobra.Command, args []string) error {
			cfg, err := config.Load(args[0])
			var problems config.Problems
			if err != nil && !errors.As(err, &problems) {
				return usageError{err}
			}
			var warnings []config.Problem
			if cfg != nil {
				warnings = cfg.Warnings
			}
			if printJSON {
				enc := json.NewEncoder(c.OutOrStdout())
				enc.SetIndent("", "  ")
				if jerr := enc.Encode(problemsJSON{asJSON(problems), asJSON(warnings)}); jerr != nil {
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
			fmt.Fprintf(c.OutOrStdout(), "%s: good (site %s, %d other sites)\n", args[0], cfg.Site, len(cfg.Sites))
			return nil
		},
	}
	c.Flags().BoolVar(&printJSON, "json", false, "print problems and warnings as JSON")
	return c
}

func planCommand(paths *appliance.Paths) *cobra.Command {
	var opts appliance.PlanOptions
	var printJSON bool
	c := &cobra.Command{
		Use: "plan FILE", Short: "Print what `run` would change, in ip, tc, nft and wg words; changes nothing", Args: oneConfig,
		Long: `Compares what the config wants with what the kernel holds and prints the difference as commands of
ip, sysctl, tc, nft and wg. Needs no root; what the kernel shows only to root is then taken as absent,
and the output says so. Then says how many calls of each codec every WAN carries to every site, with the arithmetic,
and how long one packet keeps it busy. Prints no keys.`,
		Example: `  ringway plan /etc/ringway/ringway.yaml
  ringway plan --all configs/branch-berlin.yaml     the whole wanted state, whatever the kernel holds
  ringway plan --all --only nft FILE | nft -c -f -  let nft check the ruleset
  ringway plan --only calls FILE                    how many calls fit, and why
  ringway plan --json FILE | jq .calls              the same for scripts`,
		RunE: func(c *cobra.Command, args []string) error {
			if opts.Only != "" && !slices.Contains(appliance.PlanParts, opts.Only) {
				return seeHelp(c, fmt.Errorf("--only: the plan has no part %q (allowed: %s)", opts.Only, strings.Join(appliance.PlanParts, ", ")))
			}
			cfg, err := config.Load(args[0], config.WithoutKeyFiles()) // a plan needs no secret
			if err != nil {
				return err
			}
			out, err := appliance.Plan(c.Context(), cfg, *paths, opts)
			if err != nil {
				return err
			}
			if printJSON {
				enc := json.NewEncoder(c.OutOrStdout())
				enc.SetIndent("", "  ")
				return enc.Encode(out)
			}
			_, err = fmt.Fprint(c.OutOrStdout(), out)
			return err
		},
	}
	c.Flags().BoolVar(&opts.All, "all", false, "print the whole wanted state instead of the difference")
	c.Flags().StringVar(&opts.Only, "only", "", "print one `PART`: nft, ip, wg, tc or calls")
	c.Flags().BoolVar(&printJSON, "json", false, "print JSON: the same lines by part, and calls by WAN and site with every step")
	_ = c.RegisterFlagCompletionFunc("only", cobra.FixedCompletions(appliance.PlanParts, cobra.ShellCompDirectiveNoFileComp))
	return c
}

func keygenCommand() *cobra.Command {
	var psk bool
	c := &cobra.Command{
		Use: "keygen [FILE]", Short: "Make a private key (0600, never overwritten) and print its public key", Args: cobra.MaximumNArgs(1),
		Example: `  ringway keygen                                     /etc/ringway/private.key
  ringway keygen --preshared /etc/ringway/munich.psk a preshared key for one pair of sites; copy the file to both`,
		RunE: func(c *cobra.Command, args []string) error {
			path := "/etc/ringway/private.key"
			if len(args) == 1 {
				path = args[0]
			} else if psk {
				return usageError{errors.New("keygen --preshared needs a FILE (one per pair of sites)")}
			}
			key, err := tunnel.NewPrivateKey()
			if err != nil {
				return err
			}
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				return fmt.Errorf("make the key's folder: %w", err)
			}
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
			if errors.Is(err, fs.ErrExist) {
				return fmt.Errorf("%s exists and is left as it is (a new key would cut off every site that knows the old one; move the file away first if that is what you want)", path)
			}
			if err != nil {
				return fmt.Errorf("make key file: %w", err)
			}
			_, err = fmt.Fprintln(f, key.Base64())
			if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
				return fmt.Errorf("write key file %s: %w", path, err)
			}
			if psk {
				fmt.Fprintf(c.ErrOrStderr(), "preshared key written to %s; copy it to the other site over a safe way and name it in preshared_key_file on both\n", path)
				return nil
			}
			fmt.Fprintf(c.ErrOrStderr(), "private key written to %s; the other sites want this public key:\n", path)
			fmt.Fprintln(c.OutOrStdout(), key.Public())
			return nil
		},
	}
	c.Flags().BoolVar(&psk, "preshared", false, "make a preshared key instead")
	return c
}
