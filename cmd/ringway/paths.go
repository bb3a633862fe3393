package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
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
used, whether it delivers, how long the last probe took there and back, and how long packets may be, in bytes with all
headers, as probing has found. A site with several addresses has a row for each pair of a line and an address. Below
are whether calls are sent twice (sites[].copies), and the last changes. With one WAN, and one address, there is one
line, of which nothing is known but that it is used and what it takes.

Lines are probed, and left when they deliver nothing, by the engine realtime (the voice tunnel's default), and only to
far ends that run Ringway: of others a line's state is unknown. The data tunnel leaves the lines that deliver nothing to
any site of the voice tunnel, and goes to the address of a site that the voice tunnel uses. Where that does not know
several addresses, another one is taken after 12 s without an answer.

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

	Copies *tunnel.CopiesStatus `json:"copies,omitempty"` // of voice; absent: neither end sends copies
}

type sitePath struct {
	WAN string `json:"wan,omitempty"` // the interface; "": the kernel chooses
	tunnel.PathStatus
}

// several reports whether the site has several addresses.
func (s sitePaths) several() bool {
	return slices.ContainsFunc(s.Paths, func(p sitePath) bool {
		return p.PathStatus.Remote != s.Paths[0].PathStatus.Remote
	})
}

// pathsOf takes the paths out of a status.
func pathsOf(st status.Status) []sitePaths {
	lines, _ := status.Section[line.Status](st, line.Name)
	all := []sitePaths{}
	for _, t := range st.Tunnels {
		for _, p := range t.Peers {
			s := sitePaths{
				Site: p.Site, Class: t.Class, Remote: p.Endpoint, Paths: []sitePath{}, Moves: p.Moves, Copies: p.Copies,
			}
			for _, path := range p.Paths {
				s.Paths = append(s.Paths, sitePath{WAN: lines.Interface(path.Source), PathStatus: path})
			}
			if len(s.Paths) == 0 { // by whichever the routes lead
				one := sitePath{PathStatus: tunnel.PathStatus{Used: true, State: tunnel.PathUnknown, MTU: p.PathMTU}}
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
	several := slices.ContainsFunc(all, sitePaths.several)
	to := func(text string) string {
		if !several {
			return ""
		}
		return text + "\t"
	}
	fmt.Fprintf(w, "SITE\tTUNNEL\tHEARD AT\tLINE\tFROM\t%sUSED\tSTATE\tROUND TRIP\tMTU\n", to("TO"))
	for _, s := range all {
		for i, p := range s.Paths {
			site, class, at := s.Site, string(s.Class), "nowhere yet"
			if s.Remote.IsValid() {
				at = s.Remote.String()
			}
			if i > 0 {
				site, class, at = "", "", ""
			}
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s%s\t%s\t%s\t%s\n", site, class, at, orDash(p.WAN),
				orDash(addressText(p.Source)), to(orDash(addressText(p.PathStatus.Remote.Addr()))),
				map[bool]string{true: "yes", false: "no"}[p.Used], p.State, tripText(p.RoundTrip),
				mtuText(p.MTU))
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, s := range all {
		if s.Copies != nil {
			fmt.Fprintf(out, "%s %s: %s\n", s.Site, s.Class, copiesText(*s.Copies))
		}
		for _, m := range s.Moves {
			from, to := orDash(addressText(m.From)), orDash(addressText(m.To))
			if m.FromRemote != m.ToRemote {
				from += " - " + m.FromRemote.Addr().String()
				to += " - " + m.ToRemote.Addr().String()
			}
			fmt.Fprintf(out, "%s %s: %s ago from %s to %s: %s\n", s.Site, s.Class, now.Sub(m.At).Round(time.Second),
				from, to, m.Why)
		}
	}
	return nil
}

// copiesText says how voice is sent twice.
func copiesText(c tunnel.CopiesStatus) string {
	how := "sent once (" + c.Why + ")"
	switch {
	case c.Later:
		how = "sent twice, the second time 20 ms later by the same line (" + c.Why + ")"
	case c.By.IsValid():
		how = fmt.Sprintf("sent twice, the second time from %s to %s (%s)", c.By, c.To, c.Why)
	}
	return fmt.Sprintf("voice is %s; copies sent: %d, not sent: %d, received and removed: %d", how, c.Sent, c.Unsent,
		c.Removed)
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

func mtuText(bytes int) string {
	if bytes == 0 {
		return "-"
	}
	return strconv.Itoa(bytes)
}

func tripText(d time.Duration) string {
	if d == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
}
