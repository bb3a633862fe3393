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

// Change is one step. Exactly one of the pointers is set. The Link of a Set has only what changes: Up (or
// Down of the Change itself), MTU, TxQueueLen, GSOMax or EgressMap.
type Change struct {
	Verb    Verb     `json:"verb"`
	Link    *Link    `json:"link,omitempty"`
	Down    bool     `json:"down,omitempty"`
	Address *Address `json:"address,omitempty"`
	Route   *Route   `json:"route,omitempty"`
	Rule    *Rule    `json:"rule,omitempty"`
	Sysctl  *Sysctl  `json:"sysctl,omitempty"`
}

// Device is the network device that c is about; empty: it is not about one.
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

// Guards is the family (4 or 6) in which c is about the routes and rules that keep packets for sites from
// leaving in clear; 0: it is not.
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

// Forwards is the family (4 or 6) in which c switches forwarding on; 0: it does not.
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

// Diff returns the changes that lead from have to want. No step lets a packet for a site leave in clear, and
// what is the same before and after is not touched:
//
//  1. forwarding off, if it is not wanted
//  2. routes without a device: guard, unreachable defaults, throws
//  3. rules, guard first
//  4. links made and set up
//  5. sysctls, forwarding on last: the guard is in place by now
//  6. addresses added
//  7. routes through devices, added or replaced in place, and what ends their tables
//  8. what is not wanted any more, in reverse: routes through devices, rules (guard last), routes without a device
//     (guard and the ends in table main last), addresses, links
//  9. promote_secondaries off, if it is not wanted: it must be on while addresses are removed
//
// A missing device is not an error: what needs it is omitted, and its sites stay unreachable. Missing lists
// it. What was advertised inside a private network goes. A route or rule of another program stays, even in the place
// of a wanted one. Conflicts lists it.
func Diff(want, have State) []Change { return diff(want, have, nil, false) }

// DiffMade is Diff before somebody else, such as a tunnel's engine, makes devices. The changes for them are
// among the others, to be applied when the devices are there (Change.Device).
func DiffMade(want, have State, made []string) []Change { return diff(want, have, made, false) }

func diff(want, have State, made []string, everySysctl bool) []Change {
	d := differ{have: have, made: map[string]bool{}}
	for _, name := range made {
		d.made[name] = true
		d.forget(name)
		d.have.Links = without(d.have.Links, func(l Link) bool { return l.Name == name })
		d.have.Links = append(d.have.Links, Link{Name: name})
	}
	d.usable = usableLinks(want, d.have)
	d.want = d.possible(want)
	d.want.WANs, d.want.Private = want.WANs, want.Private
	d.forwardingOff()
	d.addRoutes(func(r Route) bool { return !r.laterAdded() })
	d.addRules()
	d.addLinks()
	d.setSysctls(everySysctl)
	d.addAddresses()
	d.addRoutes(Route.laterAdded)
	d.removeRoutes(func(r Route) bool { return r.Device != "" })
	d.removeRules()
	d.removeRoutes(func(r Route) bool { return r.Device == "" && !r.fences() })
	d.removeRoutes(func(r Route) bool { return r.Device == "" && r.fences() })
	d.removeAddresses()
	d.removeLinks()
	return append(d.changes, d.last...)
}

type differ struct {
	want, have State
	usable     map[string]bool // devices that exist, or can be made
	made       map[string]bool // devices that are new: their sysctls have the kernel's defaults
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

// usableLinks are the wanted links that exist, or are VLANs that can be made.
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

// possible omits what the devices and the kernel that exist do not allow.
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
			r.Source = netip.Addr{} // the kernel would refuse the route: any source is better than none
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

// setSysctls ends with forwarding, and then keyAllRedirects4: the kernel writes that one itself when
// ip_forward changes.
func (d *differ) setSysctls(every bool) {
	var forwarding, after []Change
	flips := d.flipsForward4()
	for _, c := range d.want.Sysctls {
		change := Change{Verb: Set, Sysctl: &c}
		v, ok := d.sysctl(c.Key)
		omitted := !ok && !every && d.optional(c)
		satisfied := ok && c.accepts(v)
		switch {
		case isForwarding(c.Key):
			if !omitted && !satisfied && !(ok && c.Value == 0) { // forwardingOff has switched it off
				forwarding = append(forwarding, change)
			}
		case c.Key == keyAllRedirects4:
			if !satisfied || flips {
				after = append(after, change)
			}
		case omitted || satisfied:
		case sysctlDevice(c.Key) != "" && c.Value == 0 && strings.HasSuffix(c.Key, "/"+nameSecondaries):
			d.last = append(d.last, change)
		default:
			d.do(change)
		}
	}
	d.changes = slices.Concat(d.changes, forwarding, after)
}

// optional reports whether c is left alone if the kernel does not show it. A device that is about to be made
// shows none yet.
func (d *differ) optional(c Sysctl) bool {
	missingFamily := d.have.NoIPv6 && strings.HasPrefix(c.Key, "net/ipv6/")
	return c.Optional && (missingFamily || !d.made[sysctlDevice(c.Key)])
}

// flipsForward4 reports whether ip_forward changes.
func (d *differ) flipsForward4() bool {
	for _, c := range d.want.Sysctls {
		if v, ok := d.sysctl(c.Key); c.Key == keyForward4 && (!ok || !c.accepts(v)) {
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
			d.made[l.Name] = true
			h = &Link{Name: l.Name}
		}
		d.setLink(l, *h)
	}
}

// setLink sets a link up when it is as it should be.
func (d *differ) setLink(want, have Link) {
	set := func(l Link) {
		l.Name = want.Name
		d.do(Change{Verb: Set, Link: &l})
	}
	if want.MTU != 0 && want.MTU != have.MTU {
		set(Link{MTU: want.MTU})
	}
	if want.TxQueueLen != 0 && want.TxQueueLen != have.TxQueueLen {
		set(Link{TxQueueLen: want.TxQueueLen})
	}
	if want.GSOMax != 0 && want.GSOMax != have.GSOMax {
		set(Link{GSOMax: want.GSOMax})
	}
	if want.VLAN != 0 && want.Own && want.EgressMap != have.EgressMap {
		set(Link{EgressMap: egressChange(want.EgressMap, have.EgressMap)})
	}
	if want.Up && !have.Up && !want.Dialed {
		set(Link{Up: true})
	}
}

// forget removes from the observed state what a deleted device takes along.
func (d *differ) forget(device string) {
	h := &d.have
	h.Addresses = without(h.Addresses, func(a Address) bool { return a.Device == device })
	h.Routes = without(h.Routes, func(r Route) bool { return r.Device == device })
	h.Sysctls = without(h.Sysctls, func(c Sysctl) bool { return sysctlDevice(c.Key) == device })
}

func without[T any](list []T, which func(T) bool) []T {
	return slices.DeleteFunc(slices.Clone(list), which)
}

func (d *differ) removeLinks() {
	for _, h := range d.have.Links {
		w := findLink(d.want.Links, h.Name)
		if w == nil && h.Own {
			d.do(Change{Verb: Delete, Link: &h})
		}
	}
	for _, w := range d.want.Links {
		if h := findLink(d.have.Links, w.Name); h != nil && h.Up && !w.Up && !w.Dialed {
			d.do(Change{Verb: Set, Link: &Link{Name: w.Name}, Down: true})
		}
	}
}

// hasAddress reports whether a is in the list, whoever added it.
func hasAddress(list []Address, a Address) bool {
	return slices.ContainsFunc(list, func(b Address) bool { return a.Device == b.Device && a.Prefix == b.Prefix })
}

func (d *differ) addAddresses() {
	for _, a := range d.want.Addresses {
		if a.Protocol == Protocol && !hasAddress(d.have.Addresses, a) {
			d.do(Change{Verb: Add, Address: &a})
		}
	}
}

func (d *differ) removeAddresses() {
	for _, h := range d.have.Addresses {
		if h.Protocol == Protocol && !hasAddress(d.want.Addresses, h) || d.want.IntrudingAddress(h) {
			d.do(Change{Verb: Delete, Address: &h})
		}
	}
}

// sameRoutePlace reports whether the kernel holds only one of the two at a time.
func sameRoutePlace(a, b Route) bool {
	return a.Table == b.Table && a.Prefix == b.Prefix && a.Metric == b.Metric
}

// laterAdded reports whether r is added with the routes through devices: it goes through one, or it ends a table of
// which the other routes do, and would be taken instead of them.
func (r Route) laterAdded() bool { return r.Device != "" || r.Type == Blackhole }

// fences reports whether r keeps a network from being reached by any other way than its own.
func (r Route) fences() bool {
	return r.Table == TableGuard || r.Table == TableMain && r.Type == Unreachable
}

// owned reports whether Ringway may change h.
func (h Route) owned() bool { return h.Protocol == Protocol || OwnTable(h.Table) }

// foreignIn returns the route of another program in the place of r.
func foreignIn(routes []Route, r Route) *Route {
	i := slices.IndexFunc(routes, func(h Route) bool { return sameRoutePlace(r, h) && !h.owned() })
	if i < 0 {
		return nil
	}
	return &routes[i]
}

func (d *differ) addRoutes(which func(Route) bool) {
	for _, r := range d.want.Routes {
		if r.Protocol != Protocol || !which(r) {
			continue
		}
		if slices.Contains(d.have.Routes, r) || foreignIn(d.have.Routes, r) != nil {
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
		unwanted := h.owned() && !slices.Contains(d.want.Routes, h) || d.want.IntrudingRoute(h)
		if unwanted && which(h) {
			d.do(Change{Verb: Delete, Route: &h})
		}
	}
}

// adding orders rules: the higher, the earlier a rule is added, and the later it is removed. It is the priority, but a
// rule that lets packets pass which come behind the guard is there only while the guard is.
func (r Rule) adding() int {
	if r.Priority > PriorityGuard {
		return PriorityFirst - r.Priority
	}
	return r.Priority
}

func (d *differ) addRules() {
	rules := slices.Clone(d.want.Rules)
	slices.SortStableFunc(rules, func(a, b Rule) int { return b.adding() - a.adding() })
	for _, r := range rules {
		if r.Protocol == Protocol && !slices.ContainsFunc(d.have.Rules, r.sameAs) {
			d.do(Change{Verb: Add, Rule: &r})
		}
	}
}

func (d *differ) removeRules() {
	rules := slices.Clone(d.have.Rules)
	slices.SortStableFunc(rules, func(a, b Rule) int { return a.adding() - b.adding() })
	for _, h := range rules {
		if h.Protocol == Protocol && !slices.Contains(d.want.Rules, h) {
			d.do(Change{Verb: Delete, Rule: &h})
		}
	}
}
