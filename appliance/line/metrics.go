package line

import (
	"net/netip"
	"slices"

	"ringway/appliance/exposition"
	"ringway/appliance/status"
	"ringway/tunnel"
)

var (
	families exposition.Families

	wanCarrier = families.Gauge("ringway_wan_carrier", "Whether the WAN's interface is up and has a carrier.", "wan")
	wanSilent  = families.Gauge("ringway_wan_silent",
		"Whether the WAN has a carrier and no site is heard by it, while others are by another WAN.", "wan")
	wanChanged = families.Gauge("ringway_wan_changed_timestamp_seconds",
		"When the WAN last got or lost its carrier, fell silent or delivered again, Unix time.", "wan")

	pathUsed = families.Gauge("ringway_path_used", "Whether the site is sent to by this WAN now.", "tunnel", "site", "wan")
	pathUp   = families.Gauge("ringway_path_up",
		"Whether the path from this WAN to the site delivers. Absent where that is not known.", "tunnel", "site", "wan")
	pathTrip = families.Gauge("ringway_path_round_trip_seconds",
		"Round trip of the last probe by this WAN to the site. Absent where none was answered.", "tunnel", "site", "wan")
)

// Families are the metrics of lines.
func (l *Lines) Families() exposition.Families { return families }

// Collect shows the lines in the status, and the paths to sites. What a plane says of a line that is not there, or of
// one twice, is left out.
func (l *Lines) Collect(st status.Status, to exposition.Sink) {
	lines, _ := status.Section[Status](st, Name)
	for _, w := range lines {
		to.Put(wanCarrier, exposition.Bool(w.Carrier), w.Interface)
		to.Put(wanSilent, exposition.Bool(w.Silent), w.Interface)
		to.Put(wanChanged, exposition.Time(w.Since), w.Interface)
	}
	for _, t := range st.Tunnels {
		for _, p := range t.Peers {
			seen := map[string]bool{}
			for _, path := range p.Paths {
				wan := lines.Interface(path.Source)
				if p.Site == "" || wan == "" || seen[wan] {
					continue
				}
				seen[wan] = true
				labels := []string{string(t.Class), p.Site, wan}
				to.Put(pathUsed, exposition.Bool(path.Used), labels...)
				if path.State == tunnel.PathUp || path.State == tunnel.PathSilent {
					to.Put(pathUp, exposition.Bool(path.State == tunnel.PathUp), labels...)
				}
				if path.RoundTrip > 0 {
					to.Put(pathTrip, path.RoundTrip.Seconds(), labels...)
				}
			}
		}
	}
}

// Interface is that of the WAN with an address; "": there is none.
func (s Status) Interface(a netip.Addr) string {
	i := slices.IndexFunc(s, func(w WAN) bool { return slices.Contains(w.Addresses, a) })
	if i < 0 {
		return ""
	}
	return s[i].Interface
}
