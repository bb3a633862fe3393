package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"ringway/appliance/line"
	"ringway/appliance/status"
	"ringway/cmd/cli"
	"ringway/cmd/ringway/settings"
	"ringway/tunnel"
)

func pathsCommand(a *app) *cobra.Command {
	var watch bool
	c := &cobra.Command{
		Use: "paths [SITE]", Short: "Show by which lines each site is reached", Args: cobra.MaximumNArgs(1),
		Long: `Shows, for each tunnel of each site, where the site is heard, and each of this box's lines to it: whether it is
used, whether it delivers, and how long the last probe took there and back. Below are the last changes. With one WAN there is
one line, of which nothing is known but that it is used.

Lines are probed, and left when they deliver nothing, by the engine realtime (the voice tunnel's default), and only to
far ends that run Ringway: of others a line's state is unknown. The data tunnel leaves the lines that deliver nothing to
any site of the voice tunnel.

Root and members of the group in control.group of the config may ask.`,
		Example: `  ringway paths
  ringway paths munich --watch
  ringway paths --json | jq '.[].paths[] | select(.state == "silent")'`,
		RunE: func(c *cobra.Command, args []string) error {
			client := a.client()
			show := func(w io.Writer) error {
				st, err := client.Status(c.Context())
				if err != nil {
					return err
				}
				all := pathsOf(st)
				if len(args) == 1 {
					all = slices.DeleteFunc(all, func(p sitePaths) bool { return p.Site != args[0] })
					if len(all) == 0 {
						return cli.UsageError{Err: fmt.Errorf("there is no site %s (ringway status lists them)", args[0])}
					}
				}
				if !a.PrintJSON {
					return printPaths(w, all, time.Now())
				}
				enc := json.NewEncoder(w)
				if !watch { // one array a line when a script follows
					enc.SetIndent("", "  ")
				}
				return enc.Encode(all)
			}
			if !watch {
				return show(c.OutOrStdout())
			}
			return follow(c.Context(), c.OutOrStdout(), a.Interval, !a.PrintJSON && isTerminal(os.Stdout), show)
		},
	}
	jsonFlag(c, "print JSON")
	flags := c.Flags()
	flags.BoolVarP(&watch, "watch", "w", false, "update until interrupted")
	flags.Duration("interval", 2*time.Second, "time between two updates of --watch")
	settings.Bind(flags, "interval", "interval")
	return c
}

// sitePaths are the paths of one tunnel to a site. Fields are added, never renamed.
type sitePaths struct {
	Site   string            `json:"site"`
	Class  tunnel.Class      `json:"class"`
	Remote netip.AddrPort    `json:"remote"` // where the site is heard; zero: nowhere yet
	Paths  []sitePath        `json:"paths"`
	Moves  []tunnel.PathMove `json:"moves,omitempty"`
}

type sitePath struct {
	WAN string `json:"wan,omitempty"` // the interface; "": the kernel chooses
	tunnel.PathStatus
}

// pathsOf takes the paths out of a status.
func pathsOf(st status.Status) []sitePaths {
	lines, _ := status.Section[line.Status](st, line.Name)
	all := []sitePaths{}
	for _, t := range st.Tunnels {
		for _, p := range t.Peers {
			s := sitePaths{Site: p.Site, Class: t.Class, Remote: p.Endpoint, Paths: []sitePath{}, Moves: p.Moves}
			for _, path := range p.Paths {
				s.Paths = append(s.Paths, sitePath{WAN: lines.Interface(path.Source), PathStatus: path})
			}
			if len(s.Paths) == 0 { // by whichever the routes lead
				one := sitePath{PathStatus: tunnel.PathStatus{Used: true, State: tunnel.PathUnknown}}
				if len(lines) == 1 {
					one.WAN = lines[0].Interface
				}
				s.Paths = append(s.Paths, one)
			}
			all = append(all, s)
		}
	}
	return all
}

func printPaths(out io.Writer, all []sitePaths, now time.Time) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(out, "no sites")
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SITE\tTUNNEL\tHEARD AT\tLINE\tFROM\tUSED\tSTATE\tROUND TRIP")
	for _, s := range all {
		for i, p := range s.Paths {
			site, class, at := s.Site, string(s.Class), "nowhere yet"
			if s.Remote.IsValid() {
				at = s.Remote.String()
			}
			if i > 0 {
				site, class, at = "", "", ""
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", site, class, at, orDash(p.WAN), orDash(addressText(p.Source)),
				map[bool]string{true: "yes", false: "no"}[p.Used], p.State, tripText(p.RoundTrip))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, s := range all {
		for _, m := range s.Moves {
			fmt.Fprintf(out, "%s %s: %s ago from %s to %s: %s\n", s.Site, s.Class, now.Sub(m.At).Round(time.Second),
				orDash(addressText(m.From)), m.To, m.Why)
		}
	}
	return nil
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func addressText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func tripText(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}
