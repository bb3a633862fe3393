package routing

import (
	"net/netip"
	"slices"
	"strings"
)

// Verb is what a change does.
type Verb string

// The verbs. Add fails if the thing is there, Replace does not, Set changes one attribute.
const (
	Add     Verb = "add"
	Replace Verb = "replace"
	Delete  Verb = "del"
	Set     Verb = "set"
)

// Change is one step. Exactly one of the pointers is set. A link's Set carries in Link only
// what changes: Up (with Down for the other way), MTU, TxQueueLen or GSOMax.
type Change struct {
	Verb    Verb     `json:"verb"`
	Link    *Link    `json:"link,omitempty"`
	Down    bool     `json:"down,omitempty"`
	Address *Address `json:"address,omitempty"`
	Route   *Route   `json:"route,omitempty"`
	Rule    *Rule    `json:"rule,omitempty"`
	Sysctl  *Sysctl  `json:"sysctl,omitempty"`
}

// Device is the network device that c is about, empty where it is about none.
func (c Change) Device() string {
	switch {
	case c.Link != nil:
		return c.Link.Name
	case c.Address != nil:
		return c.Address.Device
	case c.Route != nil:
		return c.Route.Device
	case c.Sysctl != nil:
		return sysctlDevice(c.Sysctl.Key)
	}
	return ""
}

// Guards is the family (4 or 6) for which c concerns what keeps packets for sites from leaving in clear, else 0.
func (c Change) Guards() int {
	switch {
	case c.Route != nil && c.Route.Table == TableGuard:
		if c.Route.Prefix.Addr().Is6() {
			return 6
		}
		return 4
	case c.Rule != nil && c.Rule.Table == TableGuard:
		return c.Rule.Family
	}
	return 0
}

// Forwards is the family (4 or 6) for which c switches forwarding on, else 0.
func (c Change) Forwards() int {
	switch {
	case c.Sysctl == nil || c.Sysctl.Value == 0:
		return 0
	case c.Sysctl.Key == keyForward4:
		return 4
	case c.Sysctl.Key == keyForward6:
		return 6
	}
	return 0
}

// Diff is what leads from have to want. At no step may a packet for a site leave in clear, and
// what is the same before and after is not touched:
//
//  1. forwarding off, if it goes
//  2. routes that need no device: guard, unreachable defaults, throws
//  3. rules, guard first
//  4. links made and set up, addresses added
//  5. routes through devices, added or replaced in place
//  6. sysctls, forwarding on last of all
//  7. what is not wanted any more, the other way round: routes through devices, rules (guard
//     last), routes without a device (guard last), addresses, links
//  8. promote_secondaries off, if it goes (while addresses go it has to be on)
//
// A device that is missing is not an error: what needs it is left out, and its sites stay
// unreachable. Missing names it. Nor is a route or rule of somebody else's: it stays, also where it
// takes the place of a wanted one. Conflicts names it.
func Diff(want, have State) []Change { return diff(want, have, false) }

func diff(want, have State, everySysctl bool) []Change {
	d := differ{have: have, usable: usableLinks(want, have)}
	d.want = d.possible(want)
	d.forwardingOff()
	d.addRoutes(func(r Route) bool { return r.Device == "" })
	d.addRules()
	d.addLinks()
	d.setSysctls(everySysctl)
	d.addAddresses()
	d.addRoutes(func(r Route) bool { return r.Device != "" })
	d.removeRoutes(func(r Route) bool { return r.Device != "" })
	d.removeRules()
	d.removeRoutes(func(r Route) bool { return r.Device == "" && r.Table != TableGuard })
	d.removeRoutes(func(r Route) bool { return r.Device == "" && r.Table == TableGuard })
	d.removeAddresses()
	d.removeLinks()
	return append(d.changes, d.last...)
}

type differ struct {
	want, have State
	usable     map[string]bool // devices that are there, or can be made
	changes    []Change
	last       []Change
}

func (d *differ) do(c Change) { d.changes = append(d.changes, c) }

func findLink(links []Link, name string) *Link {
	for i := range links {
		if links[i].Name == name {
			return &links[i]
		}
	}
	return nil
}

// usableLinks are the wanted links that are there, or are VLANs that can be made.
func usableLinks(want, have State) map[string]bool {
	usable := map[string]bool{}
	for _, w := range want.Links {
		h := findLink(have.Links, w.Name)
		switch {
		case h != nil:
			same := w.VLAN == h.VLAN && (w.VLAN == 0 || w.Parent == h.Parent)
			usable[w.Name] = same || w.Own && h.Own && findLink(have.Links, w.Parent) != nil
		case w.Own && w.VLAN != 0:
			usable[w.Name] = findLink(have.Links, w.Parent) != nil
		}
	}
	return usable
}

// possible leaves out what cannot be with the devices and the kernel that there are.
func (d *differ) possible(want State) State {
	out := State{}
	for _, l := range want.Links {
		if d.usable[l.Name] {
			out.Links = append(out.Links, l)
		}
	}
	sources := map[netip.Addr]bool{}
	for _, a := range d.have.Addresses {
		sources[a.Prefix.Addr()] = true
	}
	for _, a := range want.Addresses {
		if d.usable[a.Device] && !(d.have.NoIPv6 && a.Prefix.Addr().Is6()) {
			out.Addresses = append(out.Addresses, a)
			sources[a.Prefix.Addr()] = true
		}
	}
	for _, r := range want.Routes {
		if r.Device != "" && !d.usable[r.Device] || d.have.NoIPv6 && r.Prefix.Addr().Is6() {
			continue
		}
		if r.Source.IsValid() && !sources[r.Source] {
			r.Source = netip.Addr{} // the kernel refuses a source that is not the box's: better any than no way
		}
		out.Routes = append(out.Routes, r)
	}
	for _, r := range want.Rules {
		if !(d.have.NoIPv6 && r.Family == 6) {
			out.Rules = append(out.Rules, r)
		}
	}
	for _, c := range want.Sysctls {
		if dev := sysctlDevice(c.Key); dev == "" || d.usable[dev] {
			out.Sysctls = append(out.Sysctls, c)
		}
	}
	return out
}

func (d *differ) sysctl(key string) (int, bool) {
	for _, c := range d.have.Sysctls {
		if c.Key == key {
			return c.Value, true
		}
	}
	return 0, false
}

func isForwarding(key string) bool { return key == keyForward4 || key == keyForward6 }

func (d *differ) forwardingOff() {
	for _, c := range d.want.Sysctls {
		if v, ok := d.sysctl(c.Key); ok && isForwarding(c.Key) && c.Value == 0 && v != 0 {
			d.do(Change{Verb: Set, Sysctl: &c})
		}
	}
}

func (d *differ) setSysctls(every bool) {
	var forwarding, after []Change
	redirects4 := d.flipsForward4() // then the kernel is about to write keyAllRedirects4, or has just done so
	for _, c := range d.want.Sysctls {
		v, ok := d.sysctl(c.Key)
		if isForwarding(c.Key) {
			if ok && (c.has(v) || c.Value == 0) || !ok && c.Optional && !every {
				continue
			}
			forwarding = append(forwarding, Change{Verb: Set, Sysctl: &c})
			continue
		}
		if c.Key == keyAllRedirects4 {
			if !ok || !c.has(v) || redirects4 {
				after = append(after, Change{Verb: Set, Sysctl: &c})
			}
			continue
		}
		if ok && c.has(v) || !ok && c.Optional && !every {
			continue
		}
		change := Change{Verb: Set, Sysctl: &c}
		if sysctlDevice(c.Key) != "" && c.Value == 0 && strings.HasSuffix(c.Key, "/"+nameSecondaries) {
			d.last = append(d.last, change)
			continue
		}
		d.do(change)
	}
	d.changes = append(append(d.changes, forwarding...), after...)
}

// flipsForward4 is whether ip_forward changes at all.
func (d *differ) flipsForward4() bool {
	for _, c := range d.want.Sysctls {
		if v, ok := d.sysctl(c.Key); c.Key == keyForward4 && (!ok || !c.has(v)) {
			return true
		}
	}
	return false
}

func (d *differ) addLinks() {
	// Parents before the VLANs on them.
	links := slices.Clone(d.want.Links)
	slices.SortStableFunc(links, func(a, b Link) int { return min(int(a.VLAN), 1) - min(int(b.VLAN), 1) })
	for _, l := range links {
		h := findLink(d.have.Links, l.Name)
		if h != nil && (h.VLAN != l.VLAN || h.Parent != l.Parent) && l.Own {
			d.do(Change{Verb: Delete, Link: h})
			d.forget(l.Name)
			h = nil
		}
		if h == nil {
			d.do(Change{Verb: Add, Link: &l})
			h = &Link{Name: l.Name}
		}
		if l.MTU != 0 && l.MTU != h.MTU {
			d.do(Change{Verb: Set, Link: &Link{Name: l.Name, MTU: l.MTU}})
		}
		if l.TxQueueLen != 0 && l.TxQueueLen != h.TxQueueLen {
			d.do(Change{Verb: Set, Link: &Link{Name: l.Name, TxQueueLen: l.TxQueueLen}})
		}
		if l.GSOMax != 0 && l.GSOMax != h.GSOMax {
			d.do(Change{Verb: Set, Link: &Link{Name: l.Name, GSOMax: l.GSOMax}})
		}
		if l.Up && !h.Up {
			d.do(Change{Verb: Set, Link: &Link{Name: l.Name, Up: true}})
		}
	}
}

// forget drops what went with a deleted device from the observed state.
func (d *differ) forget(device string) {
	d.have.Addresses = slices.DeleteFunc(slices.Clone(d.have.Addresses), func(a Address) bool { return a.Device == device })
	d.have.Routes = slices.DeleteFunc(slices.Clone(d.have.Routes), func(r Route) bool { return r.Device == device })
	d.have.Sysctls = slices.DeleteFunc(slices.Clone(d.have.Sysctls), func(c Sysctl) bool { return sysctlDevice(c.Key) == device })
}

func (d *differ) removeLinks() {
	for _, h := range d.have.Links {
		w := findLink(d.want.Links, h.Name)
		if w == nil && h.Own {
			d.do(Change{Verb: Delete, Link: &h})
		}
	}
	for _, w := range d.want.Links {
		if h := findLink(d.have.Links, w.Name); h != nil && h.Up && !w.Up {
			d.do(Change{Verb: Set, Link: &Link{Name: w.Name}, Down: true})
		}
	}
}

func sameAddress(a, b Address) bool { return a.Device == b.Device && a.Prefix == b.Prefix }

func (d *differ) addAddresses() {
	for _, a := range d.want.Addresses {
		if a.Protocol == Protocol && !slices.ContainsFunc(d.have.Addresses, func(h Address) bool { return sameAddress(a, h) }) {
			d.do(Change{Verb: Add, Address: &a})
		}
	}
}

func (d *differ) removeAddresses() {
	for _, h := range d.have.Addresses {
		if h.Protocol == Protocol && !slices.ContainsFunc(d.want.Addresses, func(a Address) bool { return sameAddress(a, h) }) {
			d.do(Change{Verb: Delete, Address: &h})
		}
	}
}

// sameRoutePlace is whether the kernel holds only one of the two at a time.
func sameRoutePlace(a, b Route) bool {
	return a.Table == b.Table && a.Prefix == b.Prefix && a.Metric == b.Metric
}

// owned is whether h is Ringway's to change.
func (h Route) owned() bool { return h.Protocol == Protocol || OwnTable(h.Table) }

// foreignIn is somebody else's route in r's place.
func foreignIn(routes []Route, r Route) *Route {
	i := slices.IndexFunc(routes, func(h Route) bool { return sameRoutePlace(r, h) && !h.owned() })
	if i < 0 {
		return nil
	}
	return &routes[i]
}

func (d *differ) addRoutes(which func(Route) bool) {
	for _, r := range d.want.Routes {
		if r.Protocol != Protocol || !which(r) || slices.Contains(d.have.Routes, r) || foreignIn(d.have.Routes, r) != nil {
			continue
		}
		i := slices.IndexFunc(d.have.Routes, func(h Route) bool { return sameRoutePlace(r, h) })
		if i < 0 {
			d.do(Change{Verb: Add, Route: &r})
			continue
		}
		d.do(Change{Verb: Replace, Route: &r})
		d.have.Routes = slices.Delete(slices.Clone(d.have.Routes), i, i+1)
	}
}

func (d *differ) removeRoutes(which func(Route) bool) {
	for _, h := range d.have.Routes {
		if h.owned() && which(h) && !slices.Contains(d.want.Routes, h) {
			d.do(Change{Verb: Delete, Route: &h})
		}
	}
}

func (d *differ) addRules() {
	rules := slices.Clone(d.want.Rules)
	slices.SortStableFunc(rules, func(a, b Rule) int { return b.Priority - a.Priority })
	for _, r := range rules {
		if r.Protocol == Protocol && !slices.ContainsFunc(d.have.Rules, r.does) {
			d.do(Change{Verb: Add, Rule: &r})
		}
	}
}

func (d *differ) removeRules() {
	rules := slices.Clone(d.have.Rules)
	slices.SortStableFunc(rules, func(a, b Rule) int { return a.Priority - b.Priority })
	for _, h := range rules {
		if h.Protocol == Protocol && !slices.Contains(d.want.Rules, h) {
			d.do(Change{Verb: Delete, Rule: &h})
		}
	}
}
