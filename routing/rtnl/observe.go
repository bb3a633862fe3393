// Package rtnl is the kernel's side of package routing: it reads links, addresses, routes, rules and sysctls
// into a routing.State, makes the changes that routing.Diff found, and reports changes of others. Everything
// is done in the network namespace of the calling thread.
package rtnl

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"ringway/routing"
)

// dumpTries is how often a dump is read that the kernel changed meanwhile.
const dumpTries = 5

// Observe reads everything that is Ringway's (recognised by protocol 82 on any device, by its route tables,
// by the alias of its links) and, of the rest, what scope mentions: its links with all addresses on them,
// routes in the place of its routes, its sysctls, and all rules among Ringway's priorities.
func Observe(scope routing.State) (routing.State, error) {
	var s routing.State
	if _, err := os.Stat("/proc/sys/net/ipv6"); err != nil {
		s.NoIPv6 = true
	}
	names, err := observeLinks(&s, scope)
	if err != nil {
		return routing.State{}, err
	}
	if err := observeAddresses(&s, scope, names); err != nil {
		return routing.State{}, err
	}
	families := []int{unix.AF_INET, unix.AF_INET6}
	if s.NoIPv6 {
		families = families[:1]
	}
	for _, family := range families {
		if err := observeRoutes(&s, scope, family, names); err != nil {
			return routing.State{}, err
		}
		if err := observeRules(&s, family); err != nil {
			return routing.State{}, err
		}
	}
	if s.Sysctls, err = Sysctls(scope.Sysctls); err != nil {
		return routing.State{}, err
	}
	s.Others.Observed = true
	s.Sort()
	return s, nil
}

// dump repeats f while the kernel says that the list changed meanwhile.
func dump[T any](f func() ([]T, error)) (list []T, err error) {
	for range dumpTries {
		if list, err = f(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return list, err
		}
	}
	return list, err
}

// observeLinks adds the links and returns the names of all links of the machine.
func observeLinks(s *routing.State, scope routing.State) (map[int]string, error) {
	links, err := dump(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list network devices: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	wanted := map[string]routing.Link{}
	for _, l := range scope.Links {
		wanted[l.Name] = l
	}
	for _, l := range links {
		a := l.Attrs()
		w, mentioned := wanted[a.Name]
		vlan, isVLAN := l.(*netlink.Vlan)
		own := isVLAN && a.Alias == routing.LinkAlias
		if !mentioned && !own {
			continue
		}
		o := routing.Link{Name: a.Name, Own: own, Up: a.Flags&net.FlagUp != 0}
		if isVLAN {
			o.VLAN, o.Parent = uint16(vlan.VlanId), names[a.ParentIndex]
			o.EgressMap = routing.EgressText(vlan.EgressQosMap)
		}
		if w.MTU != 0 {
			o.MTU = a.MTU
		}
		if w.TxQueueLen != 0 {
			o.TxQueueLen = a.TxQLen
		}
		if w.GSOMax != 0 {
			o.GSOMax = int(a.GSOMaxSize)
		}
		s.Links = append(s.Links, o)
	}
	return names, nil
}

// ifaProto is IFA_PROTO (linux/if_addr.h), since Linux 5.18.
const ifaProto = 11

func observeAddresses(s *routing.State, scope routing.State, names map[int]string) error {
	mentioned := map[string]bool{}
	for _, l := range s.Links {
		mentioned[l.Name] = true
	}
	ours := func(routing.Address) bool { return false }
	if !kernelTagsAddresses() {
		ours = untagged(scope)
	}
	msgs, err := dump(func() ([][]byte, error) {
		req := nl.NewNetlinkRequest(unix.RTM_GETADDR, unix.NLM_F_DUMP)
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		return req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWADDR)
	})
	if err != nil {
		return fmt.Errorf("list addresses: %w", err)
	}
	for _, m := range msgs {
		a, err := parseAddress(m, names)
		if err != nil {
			return fmt.Errorf("list addresses: %w", err)
		}
		if !a.Prefix.IsValid() {
			continue
		}
		if ours(a) {
			a.Protocol = routing.Protocol
		}
		// Ringway's own are read on all devices: one that the config no longer names must not keep them.
		if mentioned[a.Device] || a.Protocol == routing.Protocol {
			s.Addresses = append(s.Addresses, a)
		}
	}
	return nil
}

// parseAddress reads one message of a dump.
func parseAddress(message []byte, names map[int]string) (routing.Address, error) {
	msg := nl.DeserializeIfAddrmsg(message)
	attrs, err := nl.ParseRouteAttr(message[msg.Len():])
	if err != nil {
		return routing.Address{}, err
	}

	a := routing.Address{Device: names[int(msg.Index)]}
	var local, address netip.Addr
	for _, attr := range attrs {
		switch attr.Attr.Type {
		case unix.IFA_LOCAL:
			local, _ = netip.AddrFromSlice(attr.Value)
		case unix.IFA_ADDRESS:
			address, _ = netip.AddrFromSlice(attr.Value)
		case ifaProto:
			if len(attr.Value) > 0 {
				a.Protocol = attr.Value[0]
			}
		}
	}
	if !local.IsValid() {
		local = address // IPv6 has IFA_LOCAL on point-to-point links only
	}
	if local.IsValid() {
		a.Prefix = netip.PrefixFrom(local, int(msg.Prefixlen))
	}
	return a, nil
}

// untagged returns which addresses are Ringway's on a kernel without IFA_PROTO: those that scope wants,
// unless it also has them as those of others, as a state that was recorded before has.
func untagged(scope routing.State) func(routing.Address) bool {
	asked, foreign := map[routing.Address]bool{}, map[routing.Address]bool{}
	for _, a := range scope.Addresses {
		key := routing.Address{Device: a.Device, Prefix: a.Prefix}
		if a.Protocol == routing.Protocol {
			asked[key] = true
		} else {
			foreign[key] = true
		}
	}
	return func(a routing.Address) bool {
		key := routing.Address{Device: a.Device, Prefix: a.Prefix}
		return asked[key] && !foreign[key]
	}
}

// kernelTagsAddresses reports whether this kernel stores the protocol of an address.
func kernelTagsAddresses() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var major, minor int
	if n, _ := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); n != 2 {
		return false
	}
	return major > 5 || major == 5 && minor >= 18
}

var routeTypes = map[int]routing.RouteType{
	unix.RTN_UNICAST: routing.Unicast, unix.RTN_THROW: routing.Throw, unix.RTN_UNREACHABLE: routing.Unreachable,
	unix.RTN_BLACKHOLE: routing.Blackhole, unix.RTN_PROHIBIT: "prohibit", unix.RTN_LOCAL: routing.Local,
}

func observeRoutes(s *routing.State, scope routing.State, family int, names map[int]string) error {
	routes, err := dump(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return fmt.Errorf("list %s routes: %w", familyName(family), err)
	}
	type place struct {
		table, metric uint32
		prefix        netip.Prefix
	}
	concerned := routing.InterestsOf(scope).Concerned
	wanted := map[place]bool{}
	for _, r := range scope.Routes {
		wanted[place{r.Table, r.Metric, r.Prefix}] = true
	}
	for _, r := range routes {
		t, known := routeTypes[r.Type]
		if !known {
			continue
		}
		o := routing.Route{
			Table: uint32(r.Table), Type: t, Metric: uint32(r.Priority), Protocol: uint8(r.Protocol),
			OnLink: r.Flags&unix.RTNH_F_ONLINK != 0, Gateway: addrOf(r.Gw), Source: addrOf(r.Src), MTU: r.MTU,
			MTULock: r.MTULock,
		}
		if a, ok := netip.AddrFromSlice(r.Dst.IP); ok {
			ones, _ := r.Dst.Mask.Size()
			if family == unix.AF_INET {
				a = a.Unmap() // the library writes the IPv4 default in 16 bytes
			}
			o.Prefix = netip.PrefixFrom(a, ones)
		}
		if t == routing.Unicast { // the kernel names lo in other IPv6 routes
			o.Device = names[r.LinkIndex]
		}
		own := o.Protocol == routing.Protocol || routing.OwnTable(o.Table)
		if !own && o.Table == routing.TableMain && o.Protocol != unix.RTPROT_KERNEL && concerned(o.Prefix) {
			s.Others.Routes = append(s.Others.Routes, o)
		}
		if own || wanted[place{o.Table, o.Metric, o.Prefix}] || scope.IntrudingRoute(o) {
			s.Routes = append(s.Routes, o)
		}
	}
	return nil
}

func observeRules(s *routing.State, family int) error {
	rules, err := dump(func() ([]netlink.Rule, error) { return netlink.RuleList(family) })
	if err != nil {
		return fmt.Errorf("list %s rules: %w", familyName(family), err)
	}
	s.Others.Missing = append(s.Others.Missing, missingRules(family, rules)...)
	for _, r := range rules {
		if r.Protocol != routing.Protocol && r.Priority < routing.PriorityFirst && uint32(r.Table) != routing.TableLocal {
			s.Others.Rules = append(s.Others.Rules, otherRule(family, r))
		}
		among := routing.PriorityFirst <= r.Priority && r.Priority <= routing.PriorityLast
		if r.Protocol != routing.Protocol && !among {
			continue
		}
		o := routing.Rule{
			Family: 4, Priority: r.Priority, Mark: r.Mark, Input: r.IifName, Table: uint32(r.Table), Protocol: r.Protocol,
		}
		if family == unix.AF_INET6 {
			o.Family = 6
		}
		if r.Mask != nil {
			o.Mask = *r.Mask
		}
		if whole, of := 0, 0; r.Src != nil {
			if whole, of = r.Src.Mask.Size(); whole == of {
				o.Source = addrOf(r.Src.IP).Unmap()
			} else if r.Protocol == routing.Protocol { // of others: More
				o.Network = netip.PrefixFrom(addrOf(r.Src.IP), whole)
			}
		}
		o.More = r.Protocol != routing.Protocol && hasMore(r)
		s.Rules = append(s.Rules, o)
	}
	return nil
}

// missingRules are those that the kernel starts with and nobody can do without.
func missingRules(family int, rules []netlink.Rule) (out []routing.Rule) {
	first := []routing.Rule{{Priority: 0, Table: routing.TableLocal}, {Priority: 32766, Table: routing.TableMain}}
	for _, want := range first {
		there := slices.ContainsFunc(rules, func(r netlink.Rule) bool {
			return uint32(r.Table) == want.Table && otherRule(family, r).Bare() && r.Protocol != routing.Protocol
		})
		if !there {
			want.Family = familyNumber(family)
			out = append(out, want)
		}
	}
	return out
}

func otherRule(family int, r netlink.Rule) routing.OtherRule {
	o := routing.OtherRule{
		Family: familyNumber(family), Priority: r.Priority, Table: uint32(r.Table), Mark: r.Mark,
		Input: r.IifName, Output: r.OifName, From: prefixOf(r.Src), To: prefixOf(r.Dst),
	}
	switch {
	case r.Mask != nil:
		o.Mask = *r.Mask
	case r.Mark != 0:
		o.Mask = 1<<32 - 1
	}
	r.Src, r.Dst, r.OifName = nil, nil, ""
	o.More = hasMore(r)
	return o
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(addrOf(n.IP).Unmap(), ones)
}

func familyNumber(family int) int {
	if family == unix.AF_INET6 {
		return 6
	}
	return 4
}

// hasMore reports whether a rule has selectors or actions that a routing.Rule cannot hold.
func hasMore(r netlink.Rule) bool {
	network := false
	if r.Src != nil {
		ones, bits := r.Src.Mask.Size()
		network = ones != bits
	}
	selectors := network || r.Dst != nil || r.OifName != "" || r.Tos != 0 || r.TunID != 0 || r.Invert ||
		r.Dport != nil || r.Sport != nil || r.IPProto != 0 || r.UIDRange != nil
	actions := r.Goto >= 0 || r.Flow >= 0 || r.SuppressPrefixlen >= 0 || r.SuppressIfgroup >= 0
	return selectors || actions
}

// Sysctls reads the values of want that this kernel has.
func Sysctls(want []routing.Sysctl) (out []routing.Sysctl, err error) {
	for _, c := range want {
		b, err := os.ReadFile(sysctlPath(c.Key))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read sysctl %s: %w", c.Key, err)
		}
		v, err := strconv.Atoi(strings.TrimSpace(string(b)))
		if err != nil {
			return nil, fmt.Errorf("read sysctl %s: %w", c.Key, err)
		}
		out = append(out, routing.Sysctl{Key: c.Key, Value: v})
	}
	return out, nil
}

// IPv6MTU is how long IPv6 packets on a device may be: the device's MTU, or less where a router advertised so.
func IPv6MTU(device string) (bytes int, err error) {
	b, err := os.ReadFile(sysctlPath("net/ipv6/conf/" + device + "/mtu"))
	if err != nil {
		return 0, fmt.Errorf("read the IPv6 MTU of %s: %w", device, err)
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

func sysctlPath(key string) string { return filepath.Join("/proc/sys", key) }

func familyName(family int) string {
	if family == unix.AF_INET6 {
		return "IPv6"
	}
	return "IPv4"
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a
}
