// Command ringway-lab is the lab and the benchmarks: it builds branches out of network namespaces, has them
// run the program ringway that belongs to it, and measures them. `ringway lab` and `ringway bench` run it.
package main

import (
	"context"
	"os"
	"os/signal"
	"path/filepath"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"ringway/cmd/cli"
)

// version is set by the build: -ldflags "-X main.version=1.2.3".
var version = "dev"

func main() {
	os.Exit(run(filepath.Base(os.Args[0]), os.Args[1:]))
}

// run runs one command line. Started by ringway, this program has that name: its help and errors then speak
// of the command that was typed.
func run(name string, args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()

	root := rootCommand(name)
	root.SetArgs(args)
	return cli.Report(os.Stderr, name, root.ExecuteContext(ctx))
}

func rootCommand(name string) *cobra.Command {
	root := &cobra.Command{
		Use:   name,
		Short: "The lab and the benchmarks of Ringway",
		Long: `Builds branches out of network namespaces on this machine, joins them by Ringway and by other tunnels, and measures
what voice gets. It runs the program ringway beside it, or /usr/bin/ringway where both were installed as packages, so that
what ships is what is measured. It needs root, sends traffic nowhere else and leaves nothing behind.`,
		Example: `  ringway-lab lab --baseline
  ringway-lab bench jitter`,
	}
	cli.SetVersion(root, version)
	root.AddCommand(labCommand(), benchCommand(), versionCommand())
	cli.ExplainUsage(root)
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print version and Go release", Args: cobra.NoArgs,
		Example: `  ringway-lab version`,
		RunE: func(c *cobra.Command, _ []string) error {
			cli.PrintVersion(c.OutOrStdout(), "ringway-lab", version)
			return nil
		},
	}
}
