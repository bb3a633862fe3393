package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"

	"github.com/spf13/cobra"

	"ringway/appliance"
	"ringway/appliance/calls"
	"ringway/appliance/control"
	"ringway/appliance/media"
	"ringway/appliance/status"
	"ringway/appliance/systemd"
	"ringway/cmd/cli"
	"ringway/cmd/ringway/settings"
	"ringway/tunnel"
	"ringway/tunnel/plane"
	"ringway/tunnel/realtime"
	"ringway/tunnel/wireguardgo"
)

func runCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "run [FILE]", Short: "Run the appliance in the foreground", Args: oneConfig,
		Long: `Brings up what the config describes and maintains it. Needs root.

  SIGHUP            rereads the config and applies only the difference (as ` + "`ringway reload`" + `)
  SIGTERM           ends the daemon alone: tunnels, queues and rules stay in place and keep forwarding, and the next
                    daemon takes them over (a restart or an upgrade loses no packet)
  Ctrl-C            stops everything and restores the machine to what it was before (as ` + "`ringway stop`" + `)`,
		Example: `  ringway run /etc/ringway/ringway.yaml
  ringway run --log-level debug /etc/ringway/ringway.yaml`,
		RunE: func(c *cobra.Command, args []string) error {
			opts := &slog.HandlerOptions{Level: a.LogLevel}
			var h slog.Handler = slog.NewTextHandler(os.Stderr, opts)
			if a.LogJSON {
				h = slog.NewJSONHandler(os.Stderr, opts)
			}
			d, err := appliance.New(appliance.Options{
				ConfigPath: a.config(args),
				Paths:      a.paths(),
				Build:      version,
				Log:        slog.New(h),
				Reasons:    dropReasons(),
			})
			if err != nil {
				return err
			}
			return d.Run(context.WithoutCancel(c.Context())) // the daemon handles its signals itself
		},
	}
	c.Flags().String("log-level", settings.Default("log_level"), "debug, info, warn or error")
	c.Flags().Bool("log-json", false, "log as JSON")
	settings.Bind(c.Flags(), "log-level", "log_level")
	settings.Bind(c.Flags(), "log-json", "log_format")
	return c
}

// dropReasons lists why each engine drops packets, so that the daemon can export every counter before the
// first drop.
func dropReasons() map[tunnel.EngineName][]string {
	return map[tunnel.EngineName][]string{
		tunnel.EngineWireGuardGo: wireguardgo.Reasons(),
		tunnel.EngineRealtime:    realtime.Reasons(),
	}
}

func reloadCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "reload",
		Short: "Have the running daemon reread its config and apply only the difference",
		Args:  cobra.NoArgs,
		Long: `Prints what was changed, as commands of ip, nft, tc and wg. A file with a mistake changes nothing: its problems are
printed, and the running config stays.`,
		Example: `  ringway check /etc/ringway/ringway.yaml && ringway reload`,
		RunE: func(c *cobra.Command, _ []string) error {
			res, err := a.client().Reload(c.Context())
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

func stopCommand(a *app) *cobra.Command {
	var unlessRestart bool
	c := &cobra.Command{
		Use: "stop", Short: "Stop everything and restore the machine to what it was before the start", Args: cobra.NoArgs,
		Long: `Ends the daemon and its planes, removes tunnels, queues, rules and routes, and restores what was there before.
Also works when the daemon is gone and only its planes are running.`,
		Example: `  ringway stop
  ringway stop --unless-restart      in the unit's ExecStopPost: systemctl restart keeps the planes`,
		RunE: func(c *cobra.Command, _ []string) error {
			if unlessRestart {
				restarting, err := systemd.Restarts(c.Context())
				if err != nil {
					return err
				}
				if restarting {
					fmt.Fprintln(c.OutOrStdout(), "systemd restarts the service: the planes stay")
					return nil
				}
			}
			level := slog.LevelWarn
			if unlessRestart { // the unit calls it after the daemon has ended: its absence is no warning
				level = slog.LevelError
			}
			h := slog.NewTextHandler(c.ErrOrStderr(), &slog.HandlerOptions{Level: level})
			return appliance.Stop(c.Context(), a.paths(), slog.New(h))
		},
	}
	c.Flags().BoolVar(&unlessRestart, "unless-restart", false,
		"do nothing while systemd restarts the service (for the unit's ExecStopPost)")
	return c
}

// upgradable are the processes that can be replaced one by one.
var upgradable = []string{"voice", "data", calls.Name, media.Name}

func upgradeCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "upgrade-planes [voice|data|calls|media]",
		Short: "Replace running planes by planes of the daemon's own build",
		Args:  cobra.MaximumNArgs(1),
		Long: `A package upgrade restarts the daemon but keeps the planes, which go on forwarding with the code they were
started with. This command replaces them when you choose: the new plane takes over the same tunnel device and
sockets and starts a handshake at once. docs/supervision.md says what that costs. The process that reads signalling
(calls) hands its TCP connections over, the one that re-keys media (media) its calls.`,
		Example: `  ringway upgrade-planes data        first the class that carries no calls
  ringway upgrade-planes voice`,
		ValidArgs: upgradable,
		RunE: func(c *cobra.Command, args []string) error {
			classes := []string{"voice", "data"}
			if len(args) == 1 {
				if !slices.Contains(upgradable, args[0]) {
					return cli.UsageError{
						Err: fmt.Errorf("unknown class of tunnel %q (allowed: voice, data, calls, media)", args[0]),
					}
				}
				classes = args
			} else if st, err := a.client().Status(c.Context()); err == nil {
				if s, ok := status.Section[calls.Status](st, calls.Name); ok && s.Reading {
					classes = append(classes, calls.Name)
				}
				if s, ok := status.Section[media.Status](st, media.Name); ok && s.Running {
					classes = append(classes, media.Name)
				}
			}
			var errs []error
			for _, class := range classes {
				if err := a.client().Upgrade(c.Context(), class); errors.Is(err, control.ErrNotRunning) {
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
		Use: "plane", Short: "Run one tunnel's engine (only the daemon starts it)", Hidden: true, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return plane.Main(plane.Options{Build: version, Engines: engines})
		},
	}
}

// engines are the engines that a plane can run. dropReasons must list each of them.
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
