package wanted

import (
	"ringway/appliance/config"
	"ringway/qos"
)

func queueInput(cfg *config.Config, f Facts) qos.Input {
	in := qos.Input{Classes: cfg.Classes, Sites: cfg.QueueSites(), Features: f.Queues}
	for _, w := range cfg.WANs {
		q := w.Egress(f.WANMTU[w.Interface])
		if _, refused := f.Refused[w.Interface]; refused {
			q.Uplink = 0
		}
		in.WANs = append(in.WANs, q)
	}
	for _, card := range cfg.Cards() {
		if _, refused := f.Refused[card]; !refused {
			in.LANs = append(in.LANs, card)
		}
	}
	return in
}
