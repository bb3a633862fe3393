package reflector

import (
	"cmp"
	"fmt"
	"strings"

	"ringway/appliance/exposition"
	"ringway/appliance/status"
	"ringway/stamp"
)

// Status is the reflector's section of the status. Fields are added, never renamed.
type Status struct {
	Devices []string `json:"devices"` // where probes are answered; empty: it is off, or the devices do not exist
	Port    uint16   `json:"port"`
	stamp.Stats
}

// String is one line of the status.
func (s Status) String() string {
	if len(s.Devices) == 0 {
		return "Probes from sites: not answered"
	}

	var drops []string
	for _, reason := range stamp.Reasons {
		if n := s.Drops[reason]; n > 0 {
			drops = append(drops, fmt.Sprintf("%s %d", reason, n))
		}
	}
	return fmt.Sprintf("Probes from sites: answered on %s, UDP port %d; %d answers, %d active sessions; drops %s",
		strings.Join(s.Devices, ", "), s.Port, s.Answered, s.Sessions, cmp.Or(strings.Join(drops, ", "), "0"))
}

var (
	families exposition.Families

	devices  = families.Gauge("ringway_reflector_interfaces", "Tunnel devices on which probes are answered.")
	sessions = families.Gauge("ringway_reflector_sessions", "Probe sessions seen in the last 30 s.")
	answers  = families.Counter("ringway_reflector_answers_total", "Probes answered.")
	drops    = families.Counter("ringway_reflector_dropped_packets_total", "Probes not answered, by reason.", "reason")
)

// Families are the reflector's metrics.
func (r *Reflector) Families() exposition.Families { return families }

// Collect shows the reflector's section of the status.
func (r *Reflector) Collect(st status.Status, to exposition.Sink) {
	s, ok := status.Section[Status](st, Name)
	if !ok {
		return
	}

	to.Put(devices, float64(len(s.Devices)))
	to.Put(sessions, float64(s.Sessions))
	to.Put(answers, float64(s.Answered))
	for _, reason := range stamp.Reasons {
		to.Put(drops, float64(s.Drops[reason]), string(reason))
	}
}
