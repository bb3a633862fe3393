package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"ringway/appliance"
	"ringway/qos"
	"ringway/stamp"
	"ringway/test/lab/report"
	"ringway/tunnel"
)

// liveFlags is the command line of `ringway bench live` as it was typed.
type liveFlags struct {
	class              string
	streams, size      int
	interval, duration time.Duration
	json               bool
}

// dscpOf is what makes a probe a packet of a class: the firewall gives it the tunnel by that (chain own), and the far end
// answers alike.
var dscpOf = map[string]uint8{string(tunnel.Voice): 46, string(tunnel.Data): 0}

func benchLiveCommand() *cobra.Command {
	var f liveFlags
	c := &cobra.Command{
		Use: "live SITE|ADDRESS", Short: "Measure the way to a live appliance: delay, variation, loss by direction", Args: func(c *cobra.Command, args []string) error { return seeHelp(c, cobra.ExactArgs(1)(c, args)) },
		Long: `Asks the reflector in the far end's daemon, which needs no tool there: STAMP probes (RFC 8762) of the size and pace of
voice, through the tunnel of the class, past the queues that calls stand in. Any other reflector of STAMP may be
asked by its address.

SITE is looked up in the running daemon: the hosts that usually are the far box's own (first and last of its networks)
are asked, and the first that answers is taken. Give ADDRESS where the box has another one.

The round trip is exact to the kernels' timestamps, whatever the clocks are; what the far end holds a packet for is not
in it. One-way delay is shown only where both clocks say that they are synchronized, with how far they may be off. Its
variation, jitter and loss are shown for each direction always: they need no common clock. Counts of the far end's own
tell loss on the way there from loss on the way back. A packet that is not back within 4 s is lost.

Probes of class voice share the voice budget with the calls that are up: ten streams take what ten calls take.`,
		Example: `  ringway bench live munich
  ringway bench live munich --class data --streams 1 --size 1372
  ringway bench live 10.2.10.1 --streams 50 --duration 5m --json`,
		RunE: func(c *cobra.Command, args []string) error {
			paths, err := pathsOf(c)
			if err != nil {
				return err
			}
			return f.run(c, paths, args[0])
		},
	}
	flags := c.Flags()
	flags.StringVar(&f.class, "class", string(tunnel.Voice), "tunnel to go through: voice (probes marked EF, as media) or data")
	flags.IntVar(&f.streams, "streams", 10, "at the same time, each as one call's direction")
	flags.DurationVar(&f.interval, "interval", 20*time.Millisecond, "between two packets of a stream")
	flags.IntVar(&f.size, "size", 172, "bytes of UDP payload, there and back; 172 is RTP with 20 ms of G.711")
	flags.DurationVar(&f.duration, "duration", 20*time.Second, "of the probing")
	flags.BoolVar(&f.json, "json", false, "print JSON")
	_ = c.RegisterFlagCompletionFunc("class", cobra.FixedCompletions([]string{"voice", "data"}, cobra.ShellCompDirectiveNoFileComp))
	return c
}

// pathsOf reads where the daemon's sockets are, from the flags that all commands share.
func pathsOf(c *cobra.Command) (appliance.Paths, error) {
	paths := appliance.DefaultPaths()
	var err error
	if paths.Run, err = c.Flags().GetString("run-dir"); err == nil {
		paths.State, err = c.Flags().GetString("state-dir")
	}
	return paths, err
}

// probe turns what was typed into what stamp takes.
func (f liveFlags) probe() (stamp.Probe, error) {
	dscp, known := dscpOf[f.class]
	switch {
	case !known:
		return stamp.Probe{}, fmt.Errorf("--class: %q is no class of tunnel (allowed: voice, data)", f.class)
	case f.interval <= 0:
		return stamp.Probe{}, fmt.Errorf("--interval: %s is out of range (allowed: 1ms to 10s)", f.interval)
	case f.duration < f.interval || f.duration > 24*time.Hour:
		return stamp.Probe{}, fmt.Errorf("--duration: %s is out of range (allowed: one interval to 24h)", f.duration)
	}
	p := stamp.Probe{Streams: f.streams, Interval: f.interval, Count: int(f.duration / f.interval), Size: f.size, DSCP: dscp}
	return p, p.Validate()
}

func (f liveFlags) run(c *cobra.Command, paths appliance.Paths, target string) error {
	p, err := f.probe()
	if err != nil {
		return usageError{err}
	}
	ctx := c.Context()
	t := report.LiveTarget{Class: f.class, DSCP: codePoint(p.DSCP)}
	asked, isAddress := parseTarget(target)
	if isAddress {
		if found := firstAnswer(ctx, p, []netip.AddrPort{asked}); !found.IsValid() {
			return unlessInterrupted(ctx, fmt.Errorf("%s answers no probe (is the tunnel up: `ringway status`? does the far end run Ringway with control.reflector: true, or another reflector of STAMP?)", asked))
		}
		p.To = asked
	} else {
		t.Site = target
		if p.To, err = findSite(ctx, p, paths, target); err != nil {
			return err
		}
	}
	fmt.Fprintf(c.ErrOrStderr(), "asking %s for %s\n", p.To, f.duration)
	res, err := stamp.Measure(ctx, p)
	if err != nil {
		return err
	}
	g := res.Figures()
	if g.Lost.Sent == g.Lost.Total {
		return unlessInterrupted(ctx, fmt.Errorf("none of %d probes came back from %s, which had answered before (`ringway status` says whether the tunnel is up)", g.Lost.Sent, p.To))
	}
	t.Address, t.Source = p.To.Addr().String(), res.Source.String()
	if p.To.Port() != stamp.Port {
		t.Address = p.To.String()
	}
	l := liveReport(t, res, g)
	if f.json {
		enc := json.NewEncoder(c.OutOrStdout())
		enc.SetIndent("", "  ")
		err = enc.Encode(l)
	} else {
		err = report.LiveTable(c.OutOrStdout(), l)
	}
	if err == nil && res.Interrupted {
		return errors.New("interrupted; the figures are of what was sent until then")
	}
	return err
}

// parseTarget reads ADDRESS or ADDRESS:PORT; a site's name is neither.
func parseTarget(s string) (netip.AddrPort, bool) {
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap, ap.Port() != 0
	}
	a, err := netip.ParseAddr(s)
	return netip.AddrPortFrom(a, stamp.Port), err == nil
}

// findSite asks the daemon which networks the site has, and those networks who the box is.
func findSite(ctx context.Context, p stamp.Probe, paths appliance.Paths, site string) (netip.AddrPort, error) {
	st, err := appliance.NewClient(paths).Status(ctx)
	if errors.Is(err, appliance.ErrNotRunning) {
		return netip.AddrPort{}, fmt.Errorf("look up site %s: %w; without it, name the far box by its address: ringway bench live ADDRESS", site, err)
	}
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("look up site %s: %w", site, err)
	}
	var networks []netip.Prefix
	var sites []string
	for _, t := range st.Tunnels {
		for _, peer := range t.Peers {
			if peer.Site == site {
				networks = append(networks, peer.AllowedIPs...)
			}
			sites = append(sites, peer.Site)
		}
	}
	slices.Sort(sites)
	sites = slices.Compact(sites)
	if len(networks) == 0 {
		return netip.AddrPort{}, usageError{fmt.Errorf("%q is no site of this box and no address (allowed: %s, or an address)", site, strings.Join(sites, ", "))}
	}
	if err := fitsBudget(p, st, site); err != nil {
		return netip.AddrPort{}, usageError{err}
	}
	var names []string
	for _, hosts := range likelyBoxes(networks) {
		if to := firstAnswer(ctx, p, hosts); to.IsValid() {
			return to, nil
		}
		for _, h := range hosts {
			names = append(names, h.Addr().String())
		}
	}
	return netip.AddrPort{}, unlessInterrupted(ctx, fmt.Errorf("%s: none of %s answers probes (is the tunnel up: `ringway status`? does the far end run Ringway with control.reflector: true? if its box has another address: ringway bench live ADDRESS)",
		site, strings.Join(names, ", ")))
}

// fitsBudget refuses what would push calls out of the site's voice budget by itself. What calls that are up take of it is not known here.
func fitsBudget(p stamp.Probe, st appliance.Status, site string) error {
	if p.DSCP != dscpOf[string(tunnel.Voice)] {
		return nil
	}
	for _, q := range st.Queues {
		rate := float64(p.Streams) / p.Interval.Seconds() * 8 * float64(p.Size+wireOverhead)
		if q.Class == qos.Media && q.Site == site && q.Ceil > 0 && rate > float64(q.Ceil) {
			return fmt.Errorf("%d streams of %d bytes every %s take %.1f Mbit/s, more than the voice budget of %s to %s, %s: calls would be lost (allowed: up to %d streams)",
				p.Streams, p.Size, p.Interval, rate/1e6, q.WAN, site, q.Ceil, int(float64(p.Streams)*float64(q.Ceil)/rate))
		}
	}
	return nil
}

// wireOverhead is what a probe's payload gains until the WAN: IPv4 and UDP inside, WireGuard, UDP, IPv4 and Ethernet outside,
// and padding to 16 bytes at its mean.
const wireOverhead = 28 + 8 + 32 + 28 + 14

// maxBoxes bounds whom a look-up asks at once.
const maxBoxes = 16

// likelyBoxes are the addresses that a network's router usually has: the first host, IPv4 before IPv6; and, to be asked when none of
// them answers, since it may well be a phone, the last.
func likelyBoxes(networks []netip.Prefix) [2][]netip.AddrPort {
	var first4, first6, last4 []netip.AddrPort
	add := func(to *[]netip.AddrPort, a netip.Addr) { *to = append(*to, netip.AddrPortFrom(a, stamp.Port)) }
	for _, n := range networks {
		n = n.Masked()
		host := n.Addr()
		if n.Bits() < n.Addr().BitLen()-1 { // a network of one or two has no address of its own (RFC 3021)
			host = host.Next()
		}
		if n.Addr().Is6() {
			add(&first6, host)
			continue
		}
		add(&first4, host)
		if n.Bits() < 31 {
			a := n.Addr().As4()
			for i := n.Bits(); i < 31; i++ { // all ones but the last: that one is the broadcast's
				a[i/8] |= 0x80 >> (i % 8)
			}
			add(&last4, netip.AddrFrom4(a))
		}
	}
	var out [2][]netip.AddrPort
	for i, hosts := range [][]netip.AddrPort{append(first4, first6...), last4} {
		for _, a := range hosts {
			if !slices.Contains(out[i], a) && len(out[i]) < maxBoxes {
				out[i] = append(out[i], a)
			}
		}
	}
	return out
}

// firstAnswer asks all at once, with probes as those that follow, and takes the first of the list that answers. Zero: none did.
func firstAnswer(ctx context.Context, p stamp.Probe, hosts []netip.AddrPort) netip.AddrPort {
	p.Streams, p.Count, p.Interval, p.Timeout = 1, 5, 100*time.Millisecond, 2*time.Second
	ctx, cancel := context.WithCancel(ctx)
	var asking sync.WaitGroup
	defer asking.Wait()
	defer cancel()
	answered := make([]chan bool, len(hosts))
	for i, h := range hosts {
		answered[i] = make(chan bool, 1)
		asking.Go(func() {
			q := p
			q.To = h
			res, err := stamp.Measure(ctx, q)
			if err != nil {
				answered[i] <- false
				return
			}
			lost := res.Figures().Lost
			answered[i] <- lost.Total < lost.Sent
		})
	}
	var found netip.AddrPort
	for i, h := range hosts {
		if <-answered[i] {
			found = h
			break
		}
	}
	return found
}

// unlessInterrupted: who pressed Ctrl-C is not told to look for a fault.
func unlessInterrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return err
}

// liveReport puts the figures under the lab's names.
func liveReport(t report.LiveTarget, res *stamp.Result, g stamp.Figures) report.Live {
	p := res.Probe
	l := report.Live{
		Machine: report.ThisMachine(), Target: t,
		Probe: report.LiveProbe{Streams: p.Streams, IntervalUS: micros(p.Interval), Size: p.Size, Seconds: (p.Interval * time.Duration(p.Count)).Seconds(),
			TimeoutUS: micros(p.Timeout), LateUS: micros(res.Late), FarTimeUS: micros(g.FarTime), Started: res.Began.Format(time.RFC3339)},
		Clocks: report.LiveClocks{OneWay: g.Clocks.OneWay, ErrorUS: micros(g.Clocks.Error), Statement: g.Clocks.Statement},
		Lost: report.LiveLost{Sent: g.Lost.Sent, Lost: g.Lost.Total, Forward: g.Lost.Forward, Backward: g.Lost.Backward, Unknown: g.Lost.Unknown,
			Stateful: g.Lost.Stateful, Unsent: res.SendErrors, Strangers: res.Strange},
		DSCPThere: codePointCounts(g.DSCPThere), DSCPHere: codePointCounts(g.DSCPHere),
	}
	if g.Clocks.Drift && !g.Clocks.OneWay {
		l.Clocks.DriftPPM = &g.Clocks.DriftPPM
	}
	l.RoundTrip = report.NewLiveMeasure(report.NewDirection("", g.RoundTrip, report.Found{Unmatched: res.Strange}).Measure, true, false)
	for _, d := range []struct {
		name string
		stamp.Direction
		dscp map[uint8]int
	}{{report.AToB, g.Forward, g.DSCPThere}, {report.BToA, g.Backward, g.DSCPHere}} {
		var found report.Found
		for v, n := range d.dscp {
			if v != p.DSCP {
				found.WrongDSCP += n
			}
		}
		m := report.NewDirection(d.name, d.Summary, found).Measure
		m.Sent, m.Received, m.Loss = d.Sent, d.Received, d.Loss
		l.Directions = append(l.Directions, report.LiveDirection{Name: d.name, LiveMeasure: report.NewLiveMeasure(m, g.Clocks.OneWay, true)})
		if found.WrongDSCP > 0 {
			where := map[string]string{report.AToB: "on the way there", report.BToA: "on the way back"}[d.name]
			l.Warnings = append(l.Warnings, fmt.Sprintf("%d packets lost their code point %s: somebody between re-marks, or the box there takes them for another class.", found.WrongDSCP, where))
		}
	}
	warn := func(when bool, format string, args ...any) {
		if when {
			l.Warnings = append(l.Warnings, fmt.Sprintf(format, args...))
		}
	}
	warn(res.Late > p.Interval, "this machine itself was late by up to %s with sending: it is too busy for this pace, and part of the variation is its own.", res.Late.Round(time.Microsecond))
	warn(res.SendErrors > 0, "%d probes could not be sent (%v): they count nowhere.", res.SendErrors, res.SendError)
	warn(res.Strange > 0, "%d packets came that answer nothing that was asked.", res.Strange)
	warn(res.Overflow > 0, "%d answers were not read in time by this machine: they are lost on it, not on the way.", res.Overflow)
	warn(g.BadReply > 0, "%d answers have extensions that are malformed.", g.BadReply)
	warn(g.Lost.Sent < 1000, "with %d packets a direction, p99.9 is the worst packet.", g.Lost.Sent)
	return l
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// codePoint names the two that probes have (RFC 3246, RFC 2474).
func codePoint(d uint8) string {
	switch d {
	case 46:
		return "EF"
	case 0:
		return "DF"
	}
	return fmt.Sprint(d)
}

func codePointCounts(c map[uint8]int) map[string]int {
	out := map[string]int{}
	for d, n := range c {
		out[codePoint(d)] += n
	}
	return out
}
