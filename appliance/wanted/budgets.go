package wanted

import (
	"cmp"

	"ringway/appliance/config"
	"ringway/qos"
	"ringway/sip/admission"
	"ringway/tunnel"
)

// CallBudgets is what calls may take, as the queues have it: for who admits calls by their signalling. A WAN whose
// uplink is not known bounds nothing.
func CallBudgets(cfg *config.Config, f Facts) (p admission.Plan) {
	cfg = onLANs(cfg, f)
	queues := queueInput(cfg, f)
	budgets, index := map[string]qos.Budgets{}, map[string]int{}
	for _, l := range cfg.Voice {
		p.Own = append(p.Own, l.Networks()...)
	}
	for _, l := range cfg.Data {
		p.Own = append(p.Own, l.Networks()...)
	}
	for i, w := range queues.WANs {
		line := admission.PlanLine{Name: w.Interface, Line: w.Line}
		if w.Shaped() > 0 {
			b := qos.VoiceBudgets(w.Line, queues.Sites, queues.Classes)
			budgets[w.Interface], line.Local = b, b.Local
			if !b.Reserved {
				line.Pool = b.Pool
			}
		}
		index[w.Interface] = i
		p.Lines = append(p.Lines, line)
	}
	for _, s := range cfg.Sites {
		if len(cfg.WANs) == 0 {
			break
		}
		wan := cfg.WANs[0]
		if len(cfg.WANs) > 1 && f.Through != nil {
			name := cmp.Or(f.Through(tunnel.Voice, s.Site), wan.Interface)
			wan = cfg.WANs[index[name]]
		}
		t := cfg.Tunnel(s.Via(tunnel.Voice))
		p.Sites = append(p.Sites, admission.PlanSite{
			Name: s.Name, Key: s.PublicKey, Networks: s.Networks(), Line: index[wan.Interface],
			Ringway: s.Tunnels == tunnel.CarriedBoth, Rate: budgets[wan.Interface].Sites[s.Name],
			IPv6: wan.OuterIPv6(s), PadTo: t.PadTo, MTU: t.MTU,
		})
	}
	return p
}
