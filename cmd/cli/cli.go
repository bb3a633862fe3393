// Package cli is what the command lines of both programs share: exit codes, errors of usage, suggestions for
// what was misspelt, and the version command.
package cli

import (
	"errors"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// Exit codes, stable for scripts.
const (
	ExitOK    = 0
	ExitFail  = 1 // the command failed
	ExitUsage = 2 // the command line or the config is wrong; nothing was done
)

// UsageError is a mistake on the command line.
type UsageError struct{ Err error }

func (e UsageError) Error() string { return e.Err.Error() }
func (e UsageError) Unwrap() error { return e.Err }

// Report prints err after the program's name and returns the exit code that belongs to it.
func Report(w io.Writer, program string, err error) int {
	if err == nil {
		return ExitOK
	}
	fmt.Fprintf(w, "%s: %v\n", program, err)
	var usage UsageError
	if errors.As(err, &usage) {
		return ExitUsage
	}
	return ExitFail
}

// PrintVersion prints the program's version, and what it was built with.
func PrintVersion(w io.Writer, program, version string) {
	fmt.Fprintf(w, "%s %s\n", program, version)
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return
	}
	fmt.Fprintf(w, "go %s\n", info.GoVersion)
	for _, d := range info.Deps {
		if d.Path == "golang.zx2c4.com/wireguard" {
			fmt.Fprintf(w, "wireguard-go %s\n", d.Version)
		}
	}
}

// SetVersion makes --version print the version alone, for scripts.
func SetVersion(root *cobra.Command, version string) {
	root.Version = version
	root.SetVersionTemplate("{{.Version}}\n")
}
