// Command ringway is the appliance: the daemon, its planes, and the tools to check, plan and watch it. This
// package turns command lines into calls and errors into exit codes.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"ringway/appliance/config"
	"ringway/cmd/cli"
)

// version is set by the build: -ldflags "-X main.version=1.2.3".
var version = "dev"

func main() {
	os.Exit(run(os.Args[1:]))
}

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, unix.SIGTERM)
	defer stop()

	root := rootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)

	// Each line of these names its file: no prefix.
	var problems config.Problems
	if errors.As(err, &problems) || settingsProblems(err) {
		fmt.Fprintln(os.Stderr, err)
		return cli.ExitUsage
	}
	return cli.Report(os.Stderr, "ringway", err)
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "ringway",
		Short: "A voice appliance for branch offices: encrypted tunnels, priority queues, one config file",
		Long: `Ringway joins branch offices for voice: WireGuard tunnels that keep voice apart from data,
priority queues on the WAN, and nothing that leaves unencrypted. One config file.`,
		Example: `  ringway keygen /etc/ringway/private.key        create this box's key, print its public key
  ringway check  /etc/ringway/ringway.yaml       every mistake at once, with its line; needs no root
  ringway plan   /etc/ringway/ringway.yaml       what would change, in ip, nft and tc words
  ringway run    /etc/ringway/ringway.yaml       do it
  ringway status --watch                         tunnels, queues, drops
  ringway lab --baseline                         two branches on this machine, measured beside stock WireGuard`,
	}
	cli.SetVersion(root, version)

	a := &app{}
	a.flags(root)
	root.AddCommand(
		a.configured(runCommand(a)),
		a.configured(checkCommand(a)),
		a.configured(planCommand(a)),
		a.configured(statusCommand(a)),
		a.configured(pathsCommand(a)),
		a.configured(callsCommand(a)),
		a.configured(phonesCommand(a)),
		a.configured(bansCommand(a)),
		a.configured(unbanCommand(a)),
		a.configured(applyCommand(a)),
		a.configured(confirmCommand(a)),
		a.configured(reloadCommand(a)),
		a.configured(stopCommand(a)),
		a.configured(upgradeCommand(a)),
		keygenCommand(),
		labCommand(),
		benchCommand(a),
		versionCommand(a),
		planeCommand(),
		callsRelayCommand(),
		mediaPlaneCommand(),
	)
	cli.ExplainUsage(root)
	return root
}
