// Command ringway is the whole appliance in one binary: the daemon, its planes, the tools to
// check, plan and watch it, and the lab that shows what it is worth. This room turns command
// lines into calls and errors into exit codes; it is the only one that calls os.Exit.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"ringway/appliance"
	"ringway/appliance/config"
)

// version is set by the build: -ldflags "-X main.version=1.2.3".
var version = "dev"

// Exit codes, stable for scripts.
const (
	exitGood  = 0
	exitFail  = 1 // what was asked for did not work
	exitUsage = 2 // the command line or the config is wrong; nothing was done
)

// usageError is a command line that makes no sense.
type usageError struct{ error }

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()
	root := rootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	var problems config.Problems
	var usage usageError
	switch {
	case err == nil:
		return exitGood
	case errors.As(err, &problems):
		fmt.Fprintln(os.Stderr, problems.Error())
		return exitUsage
	case errors.As(err, &usage):
		fmt.Fprintf(os.Stderr, "ringway: %v\n", err)
		return exitUsage
	}
	fmt.Fprintf(os.Stderr, "ringway: %v\n", err)
	return exitFail
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "ringway",
		Short: "A voice appliance for branch offices: encrypted tunnels, priority queues, one config file",
		Long: `Ringway joins branch offices for voice: WireGuard tunnels that keep voice apart from data,
priority queues on the WAN, and nothing that leaves in clear. One binary, one config file.`,
		Example: `  ringway keygen /etc/ringway/private.key        make this box's key, print its public key
  ringway check  /etc/ringway/ringway.yaml       every mistake at once, with its line; needs no root
  ringway plan   /etc/ringway/ringway.yaml       what would change, in ip, nft and tc words
  ringway run    /etc/ringway/ringway.yaml       do it
  ringway status --watch                         tunnels, queues, drops
  ringway lab --baseline                         two branches on this machine, measured beside stock WireGuard`,
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetVersionTemplate("{{.Version}}\n")
	paths := appliance.DefaultPaths()
	flags := root.PersistentFlags()
	flags.StringVar(&paths.Run, "run-dir", paths.Run, "sockets and lock of the daemon")
	flags.StringVar(&paths.State, "state-dir", paths.State, "what the daemon keeps over reboots")
	root.AddCommand(runCommand(&paths), checkCommand(), planCommand(&paths), statusCommand(&paths),
		applyCommand(&paths), confirmCommand(&paths), reloadCommand(&paths), stopCommand(&paths), upgradeCommand(&paths),
		keygenCommand(), labCommand(), benchCommand(), versionCommand(), planeCommand())
	teachUsage(root)
	root.RunE = func(c *cobra.Command, _ []string) error { return c.Help() }
	return root
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print version, Go release and the WireGuard code inside", Args: cobra.NoArgs,
		Example: `  ringway version`,
		RunE: func(c *cobra.Command, _ []string) error {
			fmt.Fprintf(c.OutOrStdout(), "ringway %s\n", version)
			if bi, ok := debug.ReadBuildInfo(); ok {
				fmt.Fprintf(c.OutOrStdout(), "go %s\n", bi.GoVersion)
				for _, d := range bi.Deps {
					if d.Path == "golang.zx2c4.com/wireguard" {
						fmt.Fprintf(c.OutOrStdout(), "wireguard-go %s\n", d.Version)
					}
				}
			}
			return nil
		},
	}
}
