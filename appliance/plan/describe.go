package plan

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"ringway/appliance/config"
	"ringway/appliance/wanted"
	"ringway/routing"
)

// Whole describes the whole wanted state, whatever the machine holds.
func Whole(cfg *config.Config, f wanted.Facts, w wanted.State, o Options) Plan {
	var devices []string
	for _, d := range w.Devices {
		devices = append(devices, Device(d)...)
	}
	lines := map[string]described{
		"nft": {lines: w.Firewall.Text()},
		"ip":  {lines: w.Routing.Text()},
		"wg":  {lines: devices},
		"tc":  {lines: w.Queues.Text()},
	}
	return describe(cfg, f, w, o, routing.State{}, lines)
}

// Describe describes a difference. A part that this user may not see is described as if the machine had
// nothing of it; every other failure to observe is an error.
func Describe(
	cfg *config.Config,
	f wanted.Facts,
	w wanted.State,
	have Observed,
	d Difference,
	o Options,
) (Plan, error) {
	var devices, notes []string
	for _, t := range d.Tunnels {
		devices = append(devices, t.Lines...)
		if t.Note != "" && !slices.Contains(notes, t.Note) {
			notes = append(notes, t.Note)
		}
	}
	parts := map[string]described{
		"nft": {Words(d.Firewall), "", have.Firewall.Err},
		"ip":  {Words(d.Routing), "", have.Routing.Err},
		"wg":  {devices, strings.Join(notes, "; "), nil},
		"tc":  {Words(d.Queues), "", have.Queues.Err},
	}

	whole := map[string]func() []string{"nft": w.Firewall.Text, "ip": w.Routing.Text, "tc": w.Queues.Text}
	for name, p := range parts {
		switch {
		case p.err == nil || o.Only != "" && o.Only != name:
		case errors.Is(p.err, fs.ErrPermission):
			parts[name] = described{lines: whole[name](), note: "the kernel shows this only to root; taken as absent"}
		default:
			return Plan{}, p.err
		}
	}
	return describe(cfg, f, w, o, have.Routing.State, parts), nil
}

type described struct {
	lines []string
	note  string
	err   error
}

// titles are those of the parts.
var titles = map[string]string{
	"nft":   "firewall and classes (nft -f)",
	"ip":    "interfaces, addresses, routes, rules",
	"wg":    "tunnels",
	"tc":    "queues",
	"calls": "calls at once by codec, and how long one packet keeps a WAN busy",
}

func describe(
	cfg *config.Config,
	f wanted.Facts,
	w wanted.State,
	o Options,
	have routing.State,
	parts map[string]described,
) (p Plan) {
	for _, name := range PartNames {
		if o.Only != "" && o.Only != name {
			continue
		}
		if name == "calls" {
			p.Calls = Calls(cfg.OnWANs(f.WireMTU))
			p.Parts = append(p.Parts, Part{Part: name, Title: titles[name], Lines: CallLines(p.Calls)})
			continue
		}

		lines := slices.Clone(parts[name].lines)
		if len(lines) == 0 {
			lines = []string{"# nothing to change"}
		}
		switch name {
		case "ip":
			lines = append(lines, RouteRemarks(w.Routing, have)...)
		case "nft":
			lines = slices.Concat(lines, SignallingRemarks(cfg), SRTPRemarks(cfg), ChainRemarks(f.OtherChains))
		case "wg":
			lines = append(append(lines, TunnelRemarks(w.Devices)...), MTURemarks(w.MTUs)...)
		case "tc":
			lines = append(lines, QueueRemarks(cfg, f, w.QueueInput, lines)...)
		}
		p.Parts = append(p.Parts, Part{Part: name, Title: titles[name], Note: parts[name].note, Lines: lines})
	}
	return p
}

// Check says whether the options name a part.
func (o Options) Check() error {
	if o.Only != "" && !slices.Contains(PartNames, o.Only) {
		return fmt.Errorf("the plan has no part %q (allowed: %s)", o.Only, strings.Join(PartNames, ", "))
	}
	return nil
}
