package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// labDir is where the Debian package ringway-lab installs its program. A variable for the tests.
var labDir = "/usr/lib/ringway"

// handOver makes a command that hands `ringway lab` or `ringway bench` over to the program ringway-lab, with
// all that was typed.
func handOver(use, short, long, example string) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Long: long, Example: example,
		Args:               cobra.ArbitraryArgs,
		DisableFlagParsing: true, // ringway-lab parses them
		RunE: func(c *cobra.Command, args []string) error {
			return execLab(append([]string{c.Name()}, args...))
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			_ = execLab(os.Args[1:]) // it answers in place of this process, where it is installed
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
	}
	// `ringway help lab` shows the real help where it is installed, and otherwise how to install it.
	own := c.HelpFunc()
	c.SetHelpFunc(func(c *cobra.Command, args []string) {
		if c.Name() != use {
			own(c, args)
			return
		}
		err := execLab([]string{"help", c.Name()})
		own(c, args)
		fmt.Fprintf(c.OutOrStdout(), "\nNot available here: %v\n", err)
	})
	return c
}

func labCommand() *cobra.Command {
	return handOver(
		"lab",
		"Build two branches on this machine, place calls under load, measure the voice",
		"Runs `ringway-lab lab`: two branches on this machine, with calls under load. It needs the package ringway-lab.",
		"  ringway lab --baseline     two branches, measured beside stock WireGuard",
	)
}

func benchCommand(a *app) *cobra.Command {
	c := handOver(
		"bench",
		"Measure Ringway beside other tunnels on this machine, or between live boxes",
		"Runs `ringway-lab bench`: benchmarks on this machine. They need the package ringway-lab, except "+
			"`ringway bench live`.",
		"  ringway bench live munich\n  ringway bench jitter",
	)
	c.AddCommand(a.configured(benchLiveCommand(a)))
	return c
}

// execLab replaces this process by ringway-lab, so that its exit code and its signals are this command's.
func execLab(args []string) error {
	path, err := findLab()
	if err != nil {
		return err
	}
	if err := sameVersion(path); err != nil {
		return err
	}
	// Under the name ringway its help and errors speak of the command that was typed.
	if err := unix.Exec(path, append([]string{"ringway"}, args...), os.Environ()); err != nil {
		return fmt.Errorf("run %s: %w", path, err)
	}
	return nil
}

// findLab looks beside this program and where the package installs it. Never in PATH: it runs as root.
func findLab() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find ringway-lab: %w", err)
	}
	places := []string{filepath.Join(filepath.Dir(self), "ringway-lab"), filepath.Join(labDir, "ringway-lab")}
	for _, p := range places {
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return p, nil
		}
	}
	return "", fmt.Errorf(
		"ringway-lab is not installed: neither %s nor %s exists (install the package ringway-lab %s, or run `make build`)",
		places[0],
		places[1],
		version,
	)
}

// sameVersion refuses a ringway-lab of another version: it may not know this one's config and status.
func sameVersion(path string) error {
	out, err := exec.Command(path, "--version").Output()
	if err != nil {
		var failed *exec.ExitError
		if errors.As(err, &failed) {
			err = fmt.Errorf("%w: %s", err, strings.TrimSpace(string(failed.Stderr)))
		}
		return fmt.Errorf("ask %s for its version: %w", path, err)
	}
	if other := strings.TrimSpace(string(out)); other != version {
		return fmt.Errorf(
			"%s is version %s, but this ringway is %s (install ringway and ringway-lab of the same version)",
			path,
			other,
			version,
		)
	}
	return nil
}
