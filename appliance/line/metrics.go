package line

import (
	"net/netip"
	"slices"
	"time"

	"ringway/appliance/exposition"
	"ringway/appliance/status"
	"ringway/tunnel"
)

var (
	families exposition.Families

	wanCarrier = families.Gauge("ringway_wan_carrier", "Whether the WAN's interface is up and has a carrier.", "wan")
	wanSilent  = families.Gauge("ringway_wan_silent",
		"Whether the WAN has a carrier and delivers nothing, while another WAN delivers: by its sites, or by its targets.",
		"wan")
	wanMute = families.Gauge("ringway_wan_mute",
		"Whether no target of the WAN answers, and no other WAN is known to deliver.", "wan")
	wanChanged = families.Gauge("ringway_wan_changed_timestamp_seconds",
		"When the WAN last got or lost its carrier, fell silent or delivered again, Unix time.", "wan")

	pathUsed = families.Gauge("ringway_path_used", "Whether the site is sent to by this WAN now.", "tunnel", "site", "wan")
	pathUp   = families.Gauge("ringway_path_up",
		"Whether the path from this WAN to the site delivers. Absent where that is not known.", "tunnel", "site", "wan")
	pathMTU = families.Gauge("ringway_path_mtu_bytes",
		"Largest packet by this WAN to the site that probing found to pass, outer headers included. Absent: not known.",
		"tunnel", "site", "wan")
	pathTrip = families.Gauge("ringway_path_round_trip_seconds",
		"Round trip of the last probe by this WAN to the site. Absent where none was answered.", "tunnel", "site", "wan")

	addressUsed = families.Gauge("ringway_path_address_used",
		"Whether the site, which has several addresses, is sent to by this WAN at this one now.",
		"tunnel", "site", "wan", "address")
	addressUp = families.Gauge("ringway_path_address_up",
		"Whether the path from this WAN to this address of the site delivers. Absent where that is not known.",
		"tunnel", "site", "wan", "address")
)

// Families are the metrics of lines.
func (l *Lines) Families() exposition.Families { return families }

// Collect shows the lines in the status, and the paths to sites. What a plane says of a line that is not there, or of
// one twice, is left out. Where a site has several addresses, a WAN is used, or delivers, if it is so for one of them.
func (l *Lines) Collect(st status.Status, to exposition.Sink) {
	lines, _ := status.Section[Status](st, Name)
	for _, w := range lines {
		to.Put(wanCarrier, exposition.Bool(w.Carrier), w.Interface)
		to.Put(wanSilent, exposition.Bool(w.Silent), w.Interface)
		to.Put(wanMute, exposition.Bool(w.Mute), w.Interface)
		to.Put(wanChanged, exposition.Time(w.Since), w.Interface)
	}
	for _, t := range st.Tunnels {
		for _, p := range t.Peers {
			collectPaths(lines, t.Class, p, to)
		}
	}
}

// collectPaths shows the paths to a site, by WAN and, where it has several addresses, by address.
func collectPaths(lines Status, c tunnel.Class, p tunnel.PeerStatus, to exposition.Sink) {
	type sum struct {
		used, known, up bool
		trip            time.Duration
		mtu             int
	}
	byWAN, byAddress := map[string]*sum{}, map[[2]string]*sum{}
	add := func(s *sum, path tunnel.PathStatus) *sum {
		if s == nil {
			s = &sum{}
		}
		s.used = s.used || path.Used
		s.known = s.known || path.State == tunnel.PathUp || path.State == tunnel.PathSilent
		s.up = s.up || path.State == tunnel.PathUp
		if s.trip == 0 || path.Used {
			s.trip = path.RoundTrip
		}
		if s.mtu == 0 || path.Used {
			s.mtu = path.MTU
		}
		return s
	}
	addresses := map[netip.AddrPort]bool{}
	for _, path := range p.Paths {
		if path.Remote.IsValid() {
			addresses[path.Remote] = true
		}
		wan := lines.Interface(path.Source)
		if p.Site == "" || wan == "" && path.Source.IsValid() {
			continue
		}
		if wan != "" {
			byWAN[wan] = add(byWAN[wan], path)
		}
		if path.Remote.IsValid() {
			key := [2]string{wan, path.Remote.Addr().String()}
			byAddress[key] = add(byAddress[key], path)
		}
	}
	for wan, s := range byWAN {
		labels := []string{string(c), p.Site, wan}
		to.Put(pathUsed, exposition.Bool(s.used), labels...)
		if s.known {
			to.Put(pathUp, exposition.Bool(s.up), labels...)
		}
		if s.mtu > 0 {
			to.Put(pathMTU, float64(s.mtu), labels...)
		}
		if s.trip > 0 {
			to.Put(pathTrip, s.trip.Seconds(), labels...)
		}
	}
	if len(addresses) < 2 {
		return
	}
	for key, s := range byAddress {
		labels := []string{string(c), p.Site, key[0], key[1]}
		to.Put(addressUsed, exposition.Bool(s.used), labels...)
		if s.known {
			to.Put(addressUp, exposition.Bool(s.up), labels...)
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
