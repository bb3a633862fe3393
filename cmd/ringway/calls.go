package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"ringway/appliance/control"
	"ringway/cmd/cli"
	"ringway/cmd/ringway/settings"
	"ringway/sip/call"
	"ringway/sip/record"
	"ringway/sip/registrar"
	"ringway/sip/relay"
	mediaplane "ringway/srtp/plane"
)

func callsCommand(a *app) *cobra.Command {
	var watch, ended bool
	var phone, at string
	c := &cobra.Command{
		Use: "calls", Short: "Show the calls whose signalling is read", Args: cobra.NoArgs,
		Long: `Asks the running daemon for the calls that it follows (sip.mode: observe or enforce). Root only: the list names
the parties of each call.

Each line is one leg: what two hops exchange, for example a phone and its PBX. FLOWS is how many directions of media
and RTCP the leg needs now. Where this box re-keys media, SRTP says how it is secured towards the caller, and towards the
callee: RTP, SRTP by SDES, DTLS-SRTP, or SRTP between boxes.

SENT and RECEIVED are what its media went through between this branch and a site, as far as this box knows: MOS (ITU-T
G.107), loss, mean jitter (RFC 3550), one-way delay between the boxes where both measure it, and in which segment the lost
packets were lost; beside losses on the line, how many packets the queues of this box's WANs dropped meanwhile. "-" is media
that does not pass the voice tunnel, or an engine that does not see packets.`,
		Example: `  ringway calls
  ringway calls --watch
  ringway calls show 5f2a91c3
  ringway calls --at 2026-11-28T09:15:00Z
  ringway calls --ended --phone 10.1.10.21
  ringway calls --json | jq '.[] | {from, to, state}'`,
		RunE: func(c *cobra.Command, _ []string) error {
			client := a.client()
			if at != "" {
				return showRecords(c, a, at, phone)
			}
			show := func(w io.Writer) error {
				all, err := client.Calls(c.Context())
				if err != nil {
					return err
				}
				all = slices.DeleteFunc(all, func(x call.Call) bool {
					return x.Live() == ended || phone != "" && !x.Involves(phone)
				})
				if !a.PrintJSON {
					return call.Print(w, time.Now(), all)
				}
				enc := json.NewEncoder(w)
				if !watch { // one array a line when a script follows
					enc.SetIndent("", "  ")
				}
				return enc.Encode(slices.Concat([]call.Call{}, all)) // an empty list, not null
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
	flags.BoolVar(&ended, "ended", false, "show the latest calls that have ended instead, at most 512")
	flags.StringVar(&phone, "phone", "", "show only calls with this address, of a phone or a PBX")
	flags.StringVar(&at, "at", "", "show the calls that were under way at this `TIME`, from the records of calls")
	flags.Duration("interval", 2*time.Second, "time between two updates of --watch")
	settings.Bind(flags, "interval", "interval")
	c.AddCommand(a.configured(callsShowCommand(a)), a.configured(callsForgetCommand(a)),
		a.configured(callsPcapCommand(a)))
	return c
}

// timeForms are how a time may be given; without a zone it is local.
var timeForms = []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02 15:04"}

func parseTime(s string) (t time.Time, err error) {
	for _, form := range timeForms {
		if t, err = time.ParseInLocation(form, s, time.Local); err == nil {
			return t, nil
		}
	}
	return t, cli.UsageError{Err: fmt.Errorf("%q is not a time (example: 2026-11-28T09:15:00Z)", s)}
}

// showRecords prints the calls that were under way at a time.
func showRecords(c *cobra.Command, a *app, at, phone string) (err error) {
	var q control.RecordQuery
	if q.From, err = parseTime(at); err != nil {
		return err
	}
	q.To = q.From.Add(time.Second)
	if phone != "" {
		if q.Phone, err = netip.ParseAddr(phone); err != nil {
			return cli.UsageError{Err: fmt.Errorf("--phone: %q is not an address", phone)}
		}
	}
	all, err := a.client().Records(c.Context(), q)
	if err != nil {
		return err
	}
	if a.PrintJSON {
		return printJSON(c.OutOrStdout(), slices.Concat([]record.Record{}, all))
	}
	if len(all) == 0 {
		_, err = fmt.Fprintln(c.OutOrStdout(), "no record of a call at that time")
		return err
	}
	w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tFROM\tTO\tSITE\tDIRECTION\tBEGAN\tTALKED\tCODEC\tENDED BY\tSENT\tRECEIVED")
	for _, r := range all {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%.0fs\t%s\t%s\t%s\t%s\n", r.ID, cmp.Or(r.Caller.Number, "-"),
			cmp.Or(r.Callee.Number, "-"), cmp.Or(r.Site, "-"), r.Direction, r.Began.Local().Format(time.DateTime),
			r.Duration, cmp.Or(r.Codec, "-"), r.Why, r.Sent, r.Received)
	}
	return w.Flush()
}

func callsShowCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "show ID", Short: "Draw the messages of one call", Args: cobra.ExactArgs(1),
		Long: `Draws the latest messages of a call, a column for each hop, with their time in milliseconds, and says what its media went
through, as long as ringway calls lists it. ID is that of ringway calls, or a Call-ID. The messages are kept in memory,
without credentials, keys and bodies other than session descriptions; those of old calls make room for new ones. Root
only.`,
		Example: `  ringway calls show 5f2a91c3
  ringway calls show 5f2a91c3 --json | jq -r '.messages[].text'`,
		RunE: func(c *cobra.Command, args []string) error {
			v, err := a.client().Ladder(c.Context(), args[0])
			if err != nil {
				return err
			}
			if a.PrintJSON {
				return printJSON(c.OutOrStdout(), v)
			}
			_, err = fmt.Fprint(c.OutOrStdout(), v.Draw())
			return err
		},
	}
	jsonFlag(c, "print JSON")
	return c
}

func callsForgetCommand(a *app) *cobra.Command {
	var masked bool
	c := &cobra.Command{
		Use: "forget NUMBER", Short: "Remove what is kept of a number", Args: cobra.ExactArgs(1),
		Long: `Removes the records of a number, and its messages in memory. With calls.privacy: mask the last three digits are not
kept, so that a masked record may be of the number or of a neighbour: those stay, and are counted, unless --masked removes
them, too.`,
		Example: `  ringway calls forget +49301234567
  ringway calls forget +49301234567 --masked`,
		RunE: func(c *cobra.Command, args []string) error {
			f, err := a.client().Forget(c.Context(), args[0], masked)
			if err != nil {
				return err
			}
			text := fmt.Sprintf("%d records removed", f.Removed)
			if f.Unsure > 0 {
				text += fmt.Sprintf("; %d masked ones may be of this number and stay (--masked removes them)", f.Unsure)
			}
			_, err = fmt.Fprintln(c.OutOrStdout(), text)
			return err
		},
	}
	c.Flags().BoolVar(&masked, "masked", false, "remove masked records that may be of the number")
	return c
}

func bansCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "bans", Short: "Show which addresses are banned or slowed down", Args: cobra.NoArgs,
		Long: `Shows the sources of signalling that are banned, or of which only some messages pass, since they scanned, guessed
passwords, flooded or sent malformed messages (sip.abuse). Root only.`,
		Example: `  ringway bans
  ringway bans --json | jq -r '.[].source'`,
		RunE: func(c *cobra.Command, _ []string) error {
			all, err := a.client().Bans(c.Context())
			if err != nil {
				return err
			}
			if a.PrintJSON {
				return printJSON(c.OutOrStdout(), slices.Concat([]relay.Standing{}, all))
			}
			if len(all) == 0 {
				_, err = fmt.Fprintln(c.OutOrStdout(), "nobody is banned")
				return err
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "SOURCE\tFOR\tWHAT\tUNTIL")
			for _, b := range all {
				kind := cmp.Or(strings.ReplaceAll(b.Kind, "_", " "), "(by an earlier daemon)")
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", b.Source, kind, b.Action,
					b.Until.Local().Format(time.DateTime))
			}
			return w.Flush()
		},
	}
	jsonFlag(c, "print JSON")
	return c
}

func unbanCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "unban ADDRESS", Short: "Lift the ban of an address", Args: cobra.ExactArgs(1),
		Long:    `Lifts the ban or throttle of an address and forgets what it was for. Root only.`,
		Example: `  ringway unban 10.1.10.66`,
		RunE: func(c *cobra.Command, args []string) error {
			address, err := netip.ParseAddr(args[0])
			if err != nil {
				return cli.UsageError{Err: fmt.Errorf("%q is not an address", args[0])}
			}
			return a.client().Unban(c.Context(), address)
		},
	}
}

func phonesCommand(a *app) *cobra.Command {
	c := &cobra.Command{
		Use: "phones", Short: "Show the registrations of phones that were seen", Args: cobra.NoArgs,
		Long: `Asks the running daemon for the registrations that crossed the box and were accepted (sip.mode: observe or enforce).
Root only.`,
		Example: `  ringway phones
  ringway phones --json | jq '.[] | select(.aor == "21@pbx.example.com")'`,
		RunE: func(c *cobra.Command, _ []string) error {
			all, err := a.client().Phones(c.Context())
			if err != nil {
				return err
			}
			if a.PrintJSON {
				return printJSON(c.OutOrStdout(), slices.Concat([]registrar.Binding{}, all))
			}
			if len(all) == 0 {
				_, err = fmt.Fprintln(c.OutOrStdout(), "no registrations")
				return err
			}
			w := tabwriter.NewWriter(c.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "ADDRESS OF RECORD\tPHONE\tSERVER\tOVER\tLINE\tSINCE\tEXPIRES IN")
			for _, b := range all {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", b.AOR, b.Phone, b.PBX, b.Transport, b.Path(),
					b.Since.Local().Format(time.DateTime), time.Until(b.Expires).Round(time.Second))
			}
			return w.Flush()
		},
	}
	jsonFlag(c, "print JSON")
	return c
}

func callsRelayCommand() *cobra.Command {
	return &cobra.Command{
		Use: "calls-relay", Short: "Read and pass on signalling (only the daemon starts it)", Hidden: true,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return relay.Main(version) },
	}
}

func mediaPlaneCommand() *cobra.Command {
	return &cobra.Command{
		Use: "media-plane", Short: "Forward the media of calls (only the daemon starts it)", Hidden: true,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return mediaplane.Main(version) },
	}
}
