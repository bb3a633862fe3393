package appliance

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ringway/appliance/config"
	"ringway/firewall"
	"ringway/firewall/nft"
	"ringway/qos"
	"ringway/qos/tc"
	"ringway/routing"
	"ringway/routing/rtnl"
	"ringway/tunnel"
)

// PlanOptions choose what Plan gives.
type PlanOptions struct {
	All  bool   // the whole wanted state instead of the difference
	Only string // one of PlanParts; empty: all
}

// PlanParts are the parts of a plan, in their order.
var PlanParts = []string{"nft", "ip", "wg", "tc", "calls"}

// Planned is what the config would change, by part, and what its WANs then carry of calls.
type Planned struct {
	Parts []PlannedPart `json:"parts"`
	Calls []WANCalls    `json:"calls,omitempty"`
}

// PlannedPart is a part of it in the words of a tool, comments among them.
type PlannedPart struct {
	Part  string   `json:"part"`
	Title string   `json:"title"`
	Note  string   `json:"note,omitempty"` // what could not be compared, and why
	Lines []string `json:"lines"`
}

// String is the plan for people, and for the tools: what is not for them stands behind a #.
func (p Planned) String() string {
	var b strings.Builder
	for _, s := range p.Parts {
		b.WriteString("# " + s.Title)
		if s.Note != "" {
			b.WriteString(" (" + s.Note + ")")
		}
		b.WriteByte('\n')
		for _, l := range s.Lines {
			b.WriteString(l + "\n")
		}
	}
	return b.String()
}

// planPatience is how long a plan waits for a daemon that runs, but does not answer.
const planPatience = 3 * time.Second

// errDaemonSilent means that a daemon runs and did not say what its tunnels are like.
var errDaemonSilent = errors.New("the daemon did not tell")

// Plan says what the config would change in ip, wg, nft and tc words, and how many calls it carries. It changes nothing, reads no
// key file and needs no root: what the kernel does not show is taken as absent, and a comment says so.
func Plan(ctx context.Context, cfg *config.Config, paths Paths, o PlanOptions) (p Planned, err error) {
	if o.Only != "" && !slices.Contains(PlanParts, o.Only) {
		return p, fmt.Errorf("--only %q (allowed: %s)", o.Only, strings.Join(PlanParts, ", "))
	}
	endpoints := map[tunnel.Class]string{}
	asking, cancel := context.WithTimeout(ctx, planPatience)
	running, runErr := NewClient(paths).Status(asking)
	cancel()
	for _, t := range running.Tunnels {
		endpoints[t.Class] = string(t.Engine)
	}
	f := facts{queues: qos.AssumedFeatures(), leases: map[string]routing.Lease{}, wanMTU: wanMTU(cfg)}
	for c, e := range endpoints {
		f.kernelWireGuard = f.kernelWireGuard || c == tunnel.Data && e == string(tunnel.EngineKernel)
	}
	switch {
	case runErr == nil && running.Leaves.HTB:
		f.queues = running.Leaves
	case !o.All && os.Geteuid() == 0:
		if probed, err := tc.Probe(); err == nil {
			f.queues = probed
		}
	}
	f.refused = map[string]string{}
	if !o.All && errors.Is(runErr, ErrNotRunning) { // a daemon that runs says in its status what it refused
		if r, err := (&journal{}).refuse(cfg); err == nil {
			f.refused = r
		}
	}
	if o.All || errors.Is(runErr, ErrNotRunning) {
		f.endpoint = configuredEndpoint // what runs may have heard a site elsewhere, and the daemon keeps to that
		f.heard = func(c tunnel.Class, s tunnel.Site) (netip.AddrPort, uint64) {
			at, _ := configuredEndpoint(c, s)
			return at, 0
		}
	} else {
		f.heard = heardBy(running.Tunnels)
	}
	w := want(cfg, f)
	remarks := tunnelRemarks(w.devices)
	section := func(name, title string, wanted []string, diff func() ([]string, error)) error {
		if o.Only != "" && o.Only != name {
			return nil
		}
		lines, note := wanted, ""
		if !o.All {
			d, err := diff()
			switch {
			case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
				note = "the kernel shows this only to root; taken as absent"
			case errors.Is(err, errDaemonSilent):
				note = fmt.Sprintf("%v; taken as absent", err)
			case err != nil:
				return err
			default:
				lines = d
			}
		}
		if len(lines) == 0 {
			lines = []string{"# nothing to change"}
		}
		if name == "wg" {
			lines = append(slices.Clone(lines), remarks...)
		}
		if name == "tc" {
			lines = append(slices.Clone(lines), queueRemarks(cfg, f, w.queueIn, lines)...)
		}
		p.Parts = append(p.Parts, PlannedPart{Part: name, Title: title, Note: note, Lines: lines})
		return nil
	}
	var wg []string
	for _, d := range w.devices {
		words := d.Words()
		if d.Settings.Engine == tunnel.EngineKernel {
			words = append([]string{"ip link add " + d.Settings.Interface + " type wireguard"}, words...)
		}
		wg = append(wg, words...)
	}
	err = section("nft", "firewall and classes (nft -f)", w.firewall.Text(), func() ([]string, error) {
		have, err := nft.Observe()
		return words(firewall.Diff(w.firewall, have)), err
	})
	err = errors.Join(err, section("ip", "interfaces, addresses, routes, rules", w.routing.Text(), func() ([]string, error) {
		have, err := rtnl.Observe(routing.Scope(w.routing))
		return words(routing.Diff(w.routing, have)), err
	}))
	err = errors.Join(err, section("wg", "tunnels", wg, func() ([]string, error) {
		if errors.Is(runErr, ErrNotRunning) {
			return wg, nil
		}
		if runErr != nil {
			return nil, fmt.Errorf("%w: %w", errDaemonSilent, runErr)
		}
		return tunnelDifference(w.devices, running.Tunnels), nil
	}))
	err = errors.Join(err, section("tc", "queues", w.queues.Text(), func() ([]string, error) {
		have, err := tc.Observe(w.queues.Interfaces())
		for _, name := range w.queues.Interfaces() { // a card that is not there yet: what it will get
			if _, ok := have.Link(name); !ok {
				have.Links = append(have.Links, qos.Link{Interface: name})
			}
		}
		return words(qos.Diff(w.queues, have)), err
	}))
	if o.Only == "" || o.Only == "calls" {
		p.Calls = callsOf(cfg)
		p.Parts = append(p.Parts, PlannedPart{Part: "calls", Title: "calls at once by codec, and how long one packet keeps a WAN busy", Lines: callLines(p.Calls)})
	}
	return p, err
}

// queueRemarks is what tc has no words for: which site is meant, what is left alone, and why the leaves are what they are.
func queueRemarks(cfg *config.Config, f facts, in qos.Input, lines []string) (out []string) {
	text := strings.Join(lines, "\n")
	for _, p := range qos.SitePriorities(in) {
		if p.Class != qos.Media {
			continue
		}
		first, last := qos.Handle(p.ClassID-1), qos.Handle(p.ClassID+uint32(len(qos.ClassNames))-1)
		if strings.Contains(text, first.String()+" ") {
			out = append(out, fmt.Sprintf("# %s to %s: site %s", first, last, p.Site))
		}
	}
	for _, w := range in.WANs {
		if w.Shaped() > 0 && len(in.Sites) > 0 {
			out = append(out, "# "+budgetWords(w.Interface, qos.VoiceBudgets(w, in.Sites, in.Classes)))
		}
	}
	for _, d := range qos.Downlinks(in) {
		out = append(out, fmt.Sprintf("# %s on %s: what comes in from %s in clear and is no call, held to %s of %s; calls go first, the rest as it comes",
			qos.Handle(d.ClassID), strings.Join(in.LANs, ", "), d.WAN, d.Rate.About(), d.Line.About()))
	}
	if err := refusedQueues(cfg, f.refused); err != nil {
		for line := range strings.Lines(err.Error()) {
			out = append(out, "# "+strings.TrimSpace(line))
		}
	}
	return append(out, "# leaves: "+f.queues.Leaves())
}

// outerWords says in an operator's words how a device's packets look from outside, packet by packet.
func outerWords(d tunnel.Device) string {
	var marks []string
	inner := map[uint8][]string{}
	for _, m := range d.Outer.Marks {
		inner[m.Outer] = append(inner[m.Outer], qos.DSCP(m.Inner).String())
	}
	for _, o := range slices.Sorted(maps.Keys(inner)) {
		marks = append(marks, fmt.Sprintf("%s for inner %s", qos.DSCP(o), strings.Join(inner[o], ", ")))
	}
	marks = append(marks, fmt.Sprintf("%s for what else there is", qos.DSCP(d.Outer.TOS>>2)))
	if d.Outer.PadTo > 0 {
		marks = append(marks, fmt.Sprintf("padded to %d bytes", d.Outer.PadTo))
	}
	return fmt.Sprintf("# %s: outer DSCP %s", d.Settings.Interface, strings.Join(marks, "; "))
}

// admissionWords says the same of what calls may take.
func admissionWords(d tunnel.Device) string {
	if len(d.Admission.Sites) == 0 {
		return fmt.Sprintf("# %s: calls are admitted without a bound", d.Settings.Interface)
	}
	least, most := uint64(math.MaxUint64), uint64(0)
	for _, s := range d.Admission.Sites {
		least, most = min(least, s.Rate), max(most, s.Rate)
	}
	rate := qos.BitRate(least).About()
	if least != most {
		rate = fmt.Sprintf("%s to %s", rate, qos.BitRate(most).About())
	}
	line := fmt.Sprintf("# %s: calls are admitted up to the voice budget, sites: %d, of %s", d.Settings.Interface, len(d.Admission.Sites), rate)
	for _, l := range d.Admission.Lines {
		if l.Rate > 0 {
			line += fmt.Sprintf(", together %s", qos.BitRate(l.Rate).About())
		}
	}
	return line
}

// tunnelRemarks is what wg(8) has no words for: marks and padding.
func tunnelRemarks(devs []tunnel.Device) (out []string) {
	for _, d := range devs {
		if d.Settings.Engine.PerPacket() {
			out = append(out, outerWords(d))
			if d.Class == tunnel.Voice {
				out = append(out, admissionWords(d))
			}
		}
	}
	return out
}

// configuredEndpoint is where a site stands by its config. A name is left to the daemon: a plan asks no name server.
func configuredEndpoint(c tunnel.Class, s tunnel.Site) (at netip.AddrPort, news int) {
	a, err := netip.ParseAddr(s.Endpoint)
	if err != nil {
		return netip.AddrPort{}, 0
	}
	return netip.AddrPortFrom(a.Unmap(), s.Port(c)), 0
}

// heardBy is where a running daemon says that sites are.
func heardBy(tunnels []tunnel.DeviceStatus) func(tunnel.Class, tunnel.Site) (netip.AddrPort, uint64) {
	at := map[tunnel.Class]map[tunnel.PublicKey]netip.AddrPort{}
	for _, t := range tunnels {
		at[t.Class] = map[tunnel.PublicKey]netip.AddrPort{}
		for _, p := range t.Peers {
			at[t.Class][p.PublicKey] = p.Endpoint
		}
	}
	return func(c tunnel.Class, s tunnel.Site) (netip.AddrPort, uint64) { return at[c][s.PublicKey], 0 }
}

func words[C fmt.Stringer](changes []C) (out []string) {
	for _, c := range changes {
		out = append(out, c.String())
	}
	return out
}

// withKeysOf is what a status says, with the keys of d, which no status holds.
func withKeysOf(d tunnel.Device, st tunnel.DeviceStatus) tunnel.Observed {
	o := tunnel.Observed{PrivateKey: d.PrivateKey, ListenPort: st.ListenPort}
	psk := map[tunnel.PublicKey]tunnel.PresharedKey{}
	for _, p := range d.Peers {
		psk[p.PublicKey] = p.PresharedKey
	}
	for _, p := range st.Peers {
		o.Peers = append(o.Peers, tunnel.ObservedPeer{PeerStatus: p, PresharedKey: psk[p.PublicKey]})
	}
	return o
}

// tunnelDifference compares devices with what a running daemon reports, which holds no keys: whether a key
// changed is seen by reload alone.
func tunnelDifference(want []tunnel.Device, have []tunnel.DeviceStatus) (out []string) {
	for _, d := range want {
		var seen tunnel.Observed
		for _, h := range have {
			if h.Class != d.Class {
				continue
			}
			seen = withKeysOf(d, h)
		}
		out = append(out, tunnel.Diff(d, seen, nil, time.Now()).Words()...)
	}
	return out
}
