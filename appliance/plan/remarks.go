package plan

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"

	"ringway/appliance/config"
	"ringway/appliance/wanted"
	"ringway/firewall"
	"ringway/qos"
	"ringway/routing"
	"ringway/tunnel"
)

// QueueRemarks are what tc commands cannot say: which site a class is for, which interfaces are left alone,
// and which kind of queue the leaves are and why.
func QueueRemarks(cfg *config.Config, f wanted.Facts, in qos.Input, lines []string) (out []string) {
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
			out = append(out, "# "+budgetWords(w.Interface, qos.VoiceBudgets(w.Line, in.Sites, in.Classes)))
		}
	}
	for _, d := range qos.Downlinks(in) {
		out = append(out, fmt.Sprintf("# %s on %s: data that arrives from %s in clear, limited to %s of %s; calls go first, "+
			"the rest without a limit",
			qos.Handle(d.ClassID), strings.Join(in.LANs, ", "), d.WAN, d.Rate.About(), d.Line.About()))
	}
	if err := RefusedQueues(cfg, f.Refused); err != nil {
		for line := range strings.Lines(err.Error()) {
			out = append(out, "# "+strings.TrimSpace(line))
		}
	}
	return append(out, "# leaves: "+f.Queues.Leaves())
}

// OuterWords says which DSCP and padding the ciphertext of a device has.
func OuterWords(d tunnel.Device) string {
	var marks []string
	inner := map[uint8][]string{}
	for _, m := range d.Outer.Marks {
		inner[m.Outer] = append(inner[m.Outer], qos.DSCP(m.Inner).String())
	}
	for _, o := range slices.Sorted(maps.Keys(inner)) {
		marks = append(marks, fmt.Sprintf("%s for inner %s", qos.DSCP(o), strings.Join(inner[o], ", ")))
	}
	marks = append(marks, fmt.Sprintf("%s for everything else", qos.DSCP(d.Outer.TOS>>2)))
	if d.Outer.PadTo > 0 {
		marks = append(marks, fmt.Sprintf("padded to %d bytes", d.Outer.PadTo))
	}
	return fmt.Sprintf("# %s: outer DSCP %s", d.Settings.Interface, strings.Join(marks, "; "))
}

// AdmissionWords says up to which rate calls are admitted.
func AdmissionWords(d tunnel.Device) string {
	if len(d.Admission.Sites) == 0 {
		return fmt.Sprintf("# %s: calls are admitted without a bound", d.Settings.Interface)
	}
	low, high := qos.BitRate(math.MaxUint64), qos.BitRate(0)
	for _, s := range d.Admission.Sites {
		low, high = min(low, s.Rate), max(high, s.Rate)
	}
	rate := low.About()
	if low != high {
		rate = fmt.Sprintf("%s to %s", rate, high.About())
	}
	line := fmt.Sprintf("# %s: calls are admitted up to the voice budget, sites: %d, of %s",
		d.Settings.Interface, len(d.Admission.Sites), rate)
	for _, l := range d.Admission.Lines {
		if l.Rate > 0 {
			line += fmt.Sprintf(", together %s", l.Rate.About())
		}
	}
	return line
}

// MeasuredWords says whether media is counted.
func MeasuredWords(d tunnel.Device) string {
	if d.Measured.Media == 0 {
		return fmt.Sprintf("# %s: the quality of calls is not measured", d.Settings.Interface)
	}
	return fmt.Sprintf("# %s: the quality of calls is measured, up to %d flows each way", d.Settings.Interface,
		d.Measured.Series)
}

// SourcesWords says by which lines an engine may send.
func SourcesWords(d tunnel.Device) string {
	if len(d.Sources) == 0 {
		return fmt.Sprintf("# %s: one line, nothing to choose", d.Settings.Interface)
	}
	var all []string
	for _, a := range d.Sources {
		all = append(all, a.String())
	}
	return fmt.Sprintf("# %s: sends by the line that delivers, preferred in this order: %s", d.Settings.Interface,
		strings.Join(all, ", "))
}

// ProbingWords says whether it is found out how long packets to sites may be.
func ProbingWords(d tunnel.Device) string {
	if d.ProbeMTU == 0 {
		return fmt.Sprintf("# %s: what paths take is not probed", d.Settings.Interface)
	}
	return fmt.Sprintf("# %s: what paths take is probed, up to %d bytes", d.Settings.Interface, d.ProbeMTU)
}

// CopiesWords says to how many sites voice is sent twice.
func CopiesWords(d tunnel.Device) string {
	if len(d.Copies.Sites) == 0 {
		return fmt.Sprintf("# %s: voice is sent once", d.Settings.Interface)
	}
	always := 0
	for _, s := range d.Copies.Sites {
		if s.When == tunnel.CopiesAlways {
			always++
		}
	}
	how := "a moment later by the same WAN"
	if len(d.Sources) > 0 {
		how = "by the next best WAN"
	}
	return fmt.Sprintf("# %s: voice is sent twice, %s: to %d sites always, to %d while the line loses 0.5 %%; "+
		"of the voice budget copies have what calls leave", d.Settings.Interface, how, always,
		len(d.Copies.Sites)-always)
}

// TunnelRemarks are what wg(8) commands cannot say: marks, padding and admission.
func TunnelRemarks(devs []tunnel.Device) (out []string) {
	for _, d := range devs {
		if d.Settings.Engine.PerPacket() {
			out = append(out, OuterWords(d))
			if len(d.Sources) > 0 {
				out = append(out, SourcesWords(d))
			}
			if d.Class == tunnel.Voice {
				out = append(out, AdmissionWords(d))
			}
			if len(d.Copies.Sites) > 0 {
				out = append(out, CopiesWords(d))
			}
			if d.Measured.Media != 0 {
				out = append(out, MeasuredWords(d))
			}
		}
	}
	return out
}

// ChainRemarks name chains of other programs that may drop packets, and what to do.
func ChainRemarks(chains []firewall.OtherChain) (out []string) {
	for _, c := range chains {
		out = append(out, "# warning: "+c.String())
	}
	return out
}

// RouteRemarks name routes and rules of other programs that take Ringway's packets, and what to do.
func RouteRemarks(want, have routing.State) (out []string) {
	for _, i := range routing.Intrusions(want, have) {
		out = append(out, fmt.Sprintf("# warning: %s; %s", i.Text, i.Action))
	}
	return out
}

// MTURemarks say which sites take shorter packets than the tunnels' devices, and why.
func MTURemarks(mtus []wanted.SiteMTU) (out []string) {
	for _, m := range mtus {
		if m.Short > 0 {
			out = append(out, fmt.Sprintf("# site %s: packets inside have at most %d bytes, as %s", m.Site, m.Short, m.Path))
		}
	}
	return out
}

// RefusedQueues is an error about every interface whose queue is somebody else's: what is not shaped, and
// what to do.
func RefusedQueues(cfg *config.Config, refused map[string]string) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(refused)) {
		isWAN := slices.ContainsFunc(cfg.WANs, func(w config.WAN) bool { return w.Interface == name })
		if isWAN {
			errs = append(errs, fmt.Errorf("%s has a queue that is not Ringway's (%s), so nothing is shaped there: "+
				"remove it with `tc qdisc del dev %s root`, or set wan[%s].take_over: true to have it replaced until "+
				"`ringway stop`", name, refused[name], name, name))
			continue
		}
		errs = append(errs, fmt.Errorf("%s has a queue that is not Ringway's (%s), so traffic from WANs is not shaped "+
			"there: remove it with `tc qdisc del dev %s root`, or set take_over: true for a WAN with a downlink to have it "+
			"replaced until `ringway stop`, or set shape_downlink: false for each to leave it alone",
			name, refused[name], name))
	}
	return errors.Join(errs...)
}
