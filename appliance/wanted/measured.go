package wanted

import (
	"ringway/appliance/config"
	"ringway/qos"
	"ringway/tunnel"
)

const (
	// leastCall is what a call takes at the least, in bit/s: G.729 with three frames a packet. A line carries no more
	// of them than its rate has room for.
	leastCall = 24_000
	// minMeasured is how many series are followed at the least, and defaultMeasured where no rate is known.
	minMeasured     = 512
	defaultMeasured = 2048
)

// measured says which media the engine counts: that of calls, where their signalling is read.
func measured(cfg *config.Config) (m tunnel.Measured) {
	if cfg.SIP.Mode == config.SIPOff {
		return m
	}
	m.Media = mediaMarks(cfg)
	uplink := qos.BitRate(0)
	for _, w := range cfg.WANs {
		uplink += w.Uplink
	}
	m.Series = defaultMeasured
	if uplink > 0 {
		m.Series = int(min(max(uplink/leastCall, minMeasured), tunnel.MaxSeries))
	}
	return m
}

// mediaMarks are the inner code points that are media, a bit each.
func mediaMarks(cfg *config.Config) (marks uint64) {
	media := cfg.Class(qos.Media)
	for _, m := range outer(cfg, tunnel.Voice).Marks {
		if m.Outer == uint8(media.Outer) && !signals(cfg, m.Inner) {
			marks |= 1 << m.Inner
		}
	}
	return marks
}
