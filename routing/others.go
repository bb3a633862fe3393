package routing

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/gaissmai/bart"
)

// Numbers of the kernel that other programs' routes and rules have (rtnetlink(7), ip-rule(8)).
const (
	TableLocal   = 255
	priorityMain = 32766 // of the rule that leads to table main
	metricLinkV6 = 256   // of the kernel's IPv6 route to a network of a device
)

// Others is what other programs have beside Ringway's routes and rules, as far as it may take packets from them. It is
// observed only.
type Others struct {
	Routes   []Route // in table main
	Rules    []OtherRule
	Missing  []Rule // of those that every kernel starts with: Family, Priority and Table
	Observed bool
}

// OtherRule is a rule of another program that is looked at before Ringway's.
type OtherRule struct {
	Family        int
	Priority      int
	Table         uint32 // 0: it does something else than to look up
	Mark, Mask    uint32
	Input, Output string
	From, To      netip.Prefix
	More          bool // it has selectors or actions that these fields cannot hold
}

func (r OtherRule) text(v Verb) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s rule %s pref %d", ipCommand(r.Family == 6), v, r.Priority)
	if r.From.IsValid() {
		fmt.Fprintf(&b, " from %s", r.From)
	}
	if r.To.IsValid() {
		fmt.Fprintf(&b, " to %s", r.To)
	}
	if r.Input != "" {
		b.WriteString(" iif " + r.Input)
	}
	if r.Output != "" {
		b.WriteString(" oif " + r.Output)
	}
	if r.Mask != 0 {
		fmt.Fprintf(&b, " fwmark 0x%x/0x%x", r.Mark, r.Mask)
	}
	if r.Table != 0 {
		fmt.Fprintf(&b, " lookup %d", r.Table)
	}
	if r.More {
		b.WriteString(" (and more)")
	}
	return b.String()
}

// Bare reports whether the rule takes every packet.
func (r OtherRule) Bare() bool {
	return !r.More && r.Mask == 0 && r.Input == "" && r.Output == "" && !r.From.IsValid() && !r.To.IsValid()
}

// Interests are the networks and addresses to which another program's route in table main would take packets.
type Interests struct{ table bart.Lite }

// InterestsOf reads them from a wanted state.
func InterestsOf(want State) *Interests {
	var i Interests
	for _, r := range want.Routes {
		if r.Table == TableGuard || r.Type == Throw {
			i.table.Insert(r.Prefix.Masked())
		}
	}
	for _, e := range want.Endpoints {
		i.table.Insert(netip.PrefixFrom(e, e.BitLen()))
	}
	return &i
}

// Concerned reports whether a route to p may matter. A machine may have a great many that do not.
func (i *Interests) Concerned(p netip.Prefix) bool {
	return wide(p) || i.table.OverlapsPrefix(p.Masked())
}

// wide reports whether p is a default route, or one of the few that together are one: 0.0.0.0/1 and 128.0.0.0/1, or
// 2000::/3.
func wide(p netip.Prefix) bool {
	if p.Addr().Is4() {
		return p.Bits() < 8 && !p.Addr().IsMulticast()
	}
	local := p.Addr().IsPrivate() || p.Addr().IsLinkLocalUnicast() || p.Addr().IsMulticast()
	return p.Bits() < 16 && !local
}

// Intrusion is a route or rule of another program that takes packets which are Ringway's to route, or a rule that is
// gone and that everybody needs.
type Intrusion struct {
	Subject string // short: where it is
	Text    string // names it
	Action  string
	Severe  bool // calls or local networks do not work; otherwise some packets take another way
}

// Intrusions finds them. Diff leaves what is others' as it is.
func Intrusions(want, have State) (out []Intrusion) {
	if !have.Others.Observed {
		return nil
	}
	for _, h := range have.Others.Routes {
		if i, found := want.intrudes(h); found {
			out = append(out, i)
		}
	}
	for _, h := range have.Others.Rules {
		if i, found := want.precedes(h); found {
			out = append(out, i)
		}
	}
	for _, r := range have.Others.Missing {
		name := map[uint32]string{TableMain: "main", TableLocal: "local"}[r.Table]
		out = append(out, Intrusion{
			Subject: fmt.Sprintf("%s rule %d", familyOf(r.Family), r.Priority),
			Text: fmt.Sprintf("the rule that leads to table %s is gone: local networks and the internet have no %s routes",
				name, familyOf(r.Family)),
			Action: fmt.Sprintf("add it with `%s rule add pref %d lookup %s`", ipCommand(r.Family == 6), r.Priority, name),
			Severe: true,
		})
	}
	return out
}

// intrudes judges a route in table main.
func (s State) intrudes(h Route) (Intrusion, bool) {
	i := Intrusion{
		Subject: strings.TrimSpace(h.destination() + " " + h.Device),
		Action:  fmt.Sprintf("remove it with `%s`", h.text(Delete)),
	}
	ours, sameWay := s.defaults(h)
	switch p, where := s.ownNetwork(h); {
	case p.IsValid():
		i.Severe = true
		i.Text = fmt.Sprintf("another program's route takes packets for the local network %s away from %s: %q", p, where,
			h.text(Add))
	case len(ours) == 0 || sameWay:
		return i, false
	case h.Prefix.Bits() == 0 && h.Metric < ours[0].Metric:
		i.Severe = true
		i.Text = fmt.Sprintf("another program's default route takes precedence over the WAN's: %q", h.text(Add))
		i.Action += fmt.Sprintf(", or give it a metric above %d", ours[len(ours)-1].Metric)
	case h.Prefix.Bits() == 0:
		return i, false
	case wide(h.Prefix):
		i.Severe = true
		i.Text = fmt.Sprintf("another program's route takes what is for the WAN's default route: %q", h.text(Add))
	default:
		e, found := s.endpointIn(h.Prefix)
		if !found {
			return s.siteNetwork(i, h)
		}
		i.Text = fmt.Sprintf("another program's route takes the tunnels' packets to %s: %q", e, h.text(Add))
	}
	return i, true
}

// defaults are the wanted default routes of h's family, the preferred first; sameWay reports whether h leads where one
// of them does.
func (s State) defaults(h Route) (ours []Route, sameWay bool) {
	for _, r := range s.Routes {
		if r.Table == TableMain && r.Prefix.Bits() == 0 && r.Prefix.Addr().Is4() == h.Prefix.Addr().Is4() {
			ours = append(ours, r)
			sameWay = sameWay || r.Device == h.Device && r.Gateway == h.Gateway
		}
	}
	slices.SortStableFunc(ours, func(a, b Route) int { return int(a.Metric) - int(b.Metric) })
	return ours, sameWay
}

// ownNetwork is the local network whose packets h takes, and its device.
func (s State) ownNetwork(h Route) (p netip.Prefix, device string) {
	for _, a := range s.Addresses {
		n := a.Prefix.Masked()
		if !s.isOwn(n) || a.Device == h.Device || !n.Overlaps(h.Prefix) || h.Prefix.Bits() < n.Bits() {
			continue
		}
		if h.Prefix.Bits() == n.Bits() && (n.Addr().Is4() || h.Metric >= metricLinkV6) {
			continue // the kernel's own route takes precedence
		}
		return n, a.Device
	}
	return netip.Prefix{}, ""
}

// isOwn reports whether n is a local network: those are left to table main.
func (s State) isOwn(n netip.Prefix) bool {
	return slices.ContainsFunc(s.Routes, func(r Route) bool { return r.Type == Throw && r.Prefix == n })
}

// endpointIn is an endpoint that a route to p leads to, unless a network of this machine does.
func (s State) endpointIn(p netip.Prefix) (netip.Addr, bool) {
	for _, e := range s.Endpoints {
		near := slices.ContainsFunc(s.Addresses, func(a Address) bool {
			return a.Prefix.Bits() > p.Bits() && a.Prefix.Masked().Contains(e)
		})
		if p.Contains(e) && !near {
			return e, true
		}
	}
	return netip.Addr{}, false
}

// siteNetwork judges a route to a part of a site's network. With Ringway's rules no packet comes to it; without them
// one would.
func (s State) siteNetwork(i Intrusion, h Route) (Intrusion, bool) {
	for _, r := range s.Routes {
		if r.Table == TableGuard && r.Prefix.Overlaps(h.Prefix) && h.Prefix.Bits() >= r.Prefix.Bits() {
			i.Text = fmt.Sprintf("another program's route leads to a site's network: %q; Ringway's rules take precedence",
				h.text(Add))
			return i, true
		}
	}
	return i, false
}

// precedes judges a rule that is looked at before Ringway's.
func (s State) precedes(h OtherRule) (Intrusion, bool) {
	if !s.matches(h) {
		return Intrusion{}, false
	}
	return Intrusion{
		Subject: fmt.Sprintf("%s rule %d", familyOf(h.Family), h.Priority),
		Text: fmt.Sprintf("another program's rule takes precedence over Ringway's (priorities %d to %d): %q", PriorityFirst,
			PriorityLast, h.text(Add)),
		Action: fmt.Sprintf("remove it with `%s rule del pref %d`, or give it a priority from %d to %d",
			ipCommand(h.Family == 6), h.Priority, PriorityLast+1, priorityMain-1),
		Severe: h.Bare(),
	}, true
}

// matches reports whether a packet of Ringway's may match h.
func (s State) matches(h OtherRule) bool {
	ours := func(device string) bool { return findLink(s.Links, device) != nil }
	switch {
	case h.Output != "": // of sockets that are bound to a device
		return false
	case h.Table == 0 && !h.More:
		return false
	case h.Input != "" && h.Input != "lo" && !ours(h.Input):
		return false
	case h.From.IsValid() && !s.concerns(h.From, s.Addresses):
		return false
	case h.To.IsValid() && !s.concerns(h.To, nil) && !slices.ContainsFunc(s.Endpoints, h.To.Contains):
		return false
	case h.Mask != 0 && h.Mark&h.Mask&^s.markBits() != 0: // it wants a bit that Ringway does not set
		return false
	}
	return true
}

// concerns reports whether p has addresses of local networks, of sites or of these.
func (s State) concerns(p netip.Prefix, of []Address) bool {
	return slices.ContainsFunc(s.Routes, func(r Route) bool {
		return (r.Type == Throw || r.Table == TableGuard) && r.Prefix.Overlaps(p)
	}) || slices.ContainsFunc(of, func(a Address) bool { return p.Contains(a.Prefix.Addr()) })
}

// markBits are those that Ringway's rules look at.
func (s State) markBits() (bits uint32) {
	for _, r := range s.Rules {
		bits |= r.Mask
	}
	return bits
}

// destination is the prefix as ip(8) shows it.
func (r Route) destination() string {
	if r.Prefix.Bits() > 0 {
		return r.Prefix.String()
	}
	if r.Prefix.Addr().Is6() {
		return "default (IPv6)"
	}
	return "default"
}

func familyOf(family int) string {
	if family == 6 {
		return "IPv6"
	}
	return "IPv4"
}
