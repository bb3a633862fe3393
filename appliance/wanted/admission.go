package wanted

import (
	"bytes"
	"cmp"
	"slices"

	"ringway/appliance/config"
	"ringway/qos"
	"ringway/tunnel"
)

// engineAdmission says how much media may leave for each site, over the WAN that leads there: the queues' budgets,
// so that what is admitted is what they let through. Where the sites' budgets are more than the WAN's, its
// own bounds them together.
func engineAdmission(cfg *config.Config, f Facts, queues qos.Input) (a tunnel.Admission) {
	media := cfg.Class(qos.Media)
	if !media.Admission {
		return a
	}
	budgets, index := map[string]qos.Budgets{}, map[string]int{}
	for _, w := range queues.WANs {
		if w.Shaped() == 0 || len(queues.Sites) == 0 {
			continue
		}
		b := qos.VoiceBudgets(w.Line, queues.Sites, queues.Classes)
		l := tunnel.AdmissionLine{Overhead: qos.EthernetHeader + w.Overhead, MPU: w.MPU, ATM: w.Cells == qos.ATM}
		if !b.Reserved {
			l.Rate = b.Pool
		}
		budgets[w.Interface], index[w.Interface] = b, len(a.Lines)
		a.Lines = append(a.Lines, l)
	}
	for _, s := range cfg.Sites {
		if s.Via(tunnel.Voice) != tunnel.Voice || len(cfg.WANs) == 0 {
			continue
		}
		wan := cfg.WANs[0].Interface
		if len(cfg.WANs) > 1 && f.Through != nil {
			wan = cmp.Or(f.Through(tunnel.Voice, s.Site), wan)
		}
		if b, known := budgets[wan]; known {
			a.Sites = append(a.Sites, tunnel.AdmissionSite{Key: s.PublicKey, Rate: b.Sites[s.Name], Line: index[wan]})
		}
	}
	if len(a.Sites) == 0 {
		return tunnel.Admission{}
	}
	slices.SortFunc(a.Sites, func(x, y tunnel.AdmissionSite) int { return bytes.Compare(x.Key[:], y.Key[:]) })
	a.Media = mediaMarks(cfg)
	return a
}

// signals says whether an inner code point is signalling's, which may look like media from outside.
func signals(cfg *config.Config, inner uint8) bool {
	c := cfg.Class(qos.Signalling)
	media := cfg.Class(qos.Media)
	return slices.Contains(c.DSCP, qos.DSCP(inner)) ||
		inner == uint8(c.Outer) && !slices.Contains(media.DSCP, qos.DSCP(inner))
}
