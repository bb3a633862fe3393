package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"ringway/appliance"
	"ringway/tunnel"
	"ringway/tunnel/plane"
	"ringway/tunnel/realtime"
	"ringway/tunnel/wireguardgo"
)

func runCommand(paths *appliance.Paths) *cobra.Command {
	var logLevel slog.LevelVar
	var asJSON bool
	c := &cobra.Command{
		Use: "run FILE", Short: "Run the appliance in the foreground", Args: oneConfig,
		Long: `Brings up what the config says and keeps it so. Needs root.

  SIGHUP            reads the config again and applies only the difference (as ` + "`ringway reload`" + `)
  SIGTERM           ends the daemon alone: tunnels, queues and rules stay and forward on, and the next
                    daemon takes them over (a restart or an upgrade loses no packet)
  Ctrl-C            stops everything and leaves the machine as it was found (as ` + "`ringway stop`" + `)`,
		Example: `  ringway run /etc/ringway/ringway.yaml
  ringway run --log-level debug /etc/ringway/ringway.yaml`,
		RunE: func(c *cobra.Command, args []string) error {
			opts := &slog.HandlerOptions{Level: &logLevel}
			var h slog.Handler = slog.NewTextHandler(os.Stderr, opts)
			if asJSON {
				h = slog.NewJSONHandler(os.Stderr, opts)
			}
			d, err := appliance.New(appliance.Options{ConfigPath: args[0], Paths: *paths, Build: version, Log: slog.New(h), Reasons: dropReasons()})
			if err != nil {
				return err
			}
			return d.Run(context.WithoutCancel(c.Context())) // the daemon tells signals apart itself
		},
	}
	c.Flags().TextVar(&logLevel, "log-level", &logLevel, "debug, info, warn or error")
	c.Flags().BoolVar(&asJSON, "log-json", false, "log as JSON")
	return c
}

// dropReasons are those of the engines that planes run (planeCommand), for the daemon to show before the first drop.
func dropReasons() map[tunnel.EngineName][]string {
	return map[tunnel.EngineName][]string{tunnel.EngineWireGuardGo: wireguardgo.Reasons(), tunnel.EngineRealtime: realtime.Reasons()}
}

func reloadCommand(paths *appliance.Paths) *cobra.Command {
	return &cobra.Command{
		Use: "reload", Short: "Make the running daemon read its config again and apply only the difference", Args: cobra.NoArgs,
		Long: `A file with a mistake changes nothing: the problems are printed, and what runs runs on. Prints what was
changed, in ip, nft, tc and wg words.`,
		Example: `  ringway check /etc/ringway/ringway.yaml && ringway reload`,
		RunE: func(c *cobra.Command, _ []string) error {
			res, err := appliance.NewClient(*paths).Reload(c.Context())
			if err != nil {
				return err
			}
			if len(res.Changes) == 0 {
				fmt.Fprintln(c.OutOrStdout(), "nothing to change")
			}
			for _, l := range res.Changes {
				fmt.Fprintln(c.OutOrStdout(), l)
			}
			return nil
		},
	}
}

func stopCommand(paths *appliance.Paths) *cobra.Command {
	var unlessRestart bool
	c := &cobra.Command{
		Use: "stop", Short: "Stop everything and leave the machine as the start found it", Args: cobra.NoArgs,
		Long: `Ends the daemon, its planes, tunnels, queues, rules and routes, and puts back what was there before.
Works as well when the daemon is gone and only its planes forward on.`,
		Example: `  ringway stop
  ringway stop --unless-restart      in the unit's ExecStopPost: systemctl restart keeps the planes`,
		RunE: func(c *cobra.Command, _ []string) error {
			if unlessRestart {
				restarting, err := appliance.SystemdRestarts(c.Context())
				if err != nil {
					return err
				}
				if restarting {
					fmt.Fprintln(c.OutOrStdout(), "systemd restarts the service: the planes stay")
					return nil
				}
			}
			level := slog.LevelWarn
			if unlessRestart { // after the daemon, by its unit: that it is gone is nothing to warn of
				level = slog.LevelError
			}
			return appliance.Stop(c.Context(), *paths, slog.New(slog.NewTextHandler(c.ErrOrStderr(), &slog.HandlerOptions{Level: level})))
		},
	}
	c.Flags().BoolVar(&unlessRestart, "unless-restart", false, "do nothing while systemd restarts the service (for the unit's ExecStopPost)")
	return c
}

func upgradeCommand(paths *appliance.Paths) *cobra.Command {
	return &cobra.Command{
		Use: "upgrade-planes [voice|data]", Short: "Replace running planes by ones of the daemon's own build", Args: cobra.MaximumNArgs(1),
		Long: `A package upgrade restarts the daemon and keeps the planes, which forward on with the code they were
started with. This replaces them, at a moment of your choice: the new plane takes over the same tunnel
device and sockets and shakes hands at once. docs/architecture.md states what that costs.`,
		Example: `  ringway upgrade-planes data        first the class that no call goes through
  ringway upgrade-planes voice`,
		ValidArgs: []string{"voice", "data"},
		RunE: func(c *cobra.Command, args []string) error {
			classes := []string{"voice", "data"}
			if len(args) == 1 {
				if args[0] != "voice" && args[0] != "data" {
					return usageError{fmt.Errorf("%q is no class of tunnel (allowed: voice, data)", args[0])}
				}
				classes = args
			}
			var errs []error
			for _, class := range classes {
				if err := appliance.NewClient(*paths).Upgrade(c.Context(), class); errors.Is(err, appliance.ErrNotRunning) {
					return err
				} else if err != nil {
					errs = append(errs, fmt.Errorf("%s: %w", class, err))
					continue
				}
				fmt.Fprintf(c.OutOrStdout(), "%s: replaced\n", class)
			}
			return errors.Join(errs...)
		},
	}
}

func planeCommand() *cobra.Command {
	return &cobra.Command{
		Use: "plane", Short: "Run one tunnel's engine (started by the daemon, never by hand)", Hidden: true, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return plane.Main(plane.Options{Build: version, Engines: engines})
		},
	}
}

// engines are those that a plane can run; dropReasons has each of them.
var engines = map[tunnel.EngineName]plane.NewEngine{
	tunnel.EngineWireGuardGo: func(s plane.Start) (plane.Engine, error) {
		return wireguardgo.New(wireguardgo.Files(s.Files), s.Class, s.Bounds, s.MTU, s.Log)
	},
	tunnel.EngineRealtime: func(s plane.Start) (plane.Engine, error) {
		return realtime.New(realtime.Options{
			TUN: s.Files.TUN, UDP4: s.Files.UDP4, UDP6: s.Files.UDP6, Class: s.Class, Bounds: s.Bounds, MTU: s.MTU, Log: s.Log,
			Alone: true,
		})
	},
}
