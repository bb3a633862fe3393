package rtnl

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"ringway/routing"
)

// Apply makes the changes one after the other. It goes on after one that fails, since the rest may still work
// (a site's routes do not wait for another WAN's cable), and returns all errors joined.
//
// What needs a change that failed is not tried, so that only errors that matter are returned: nothing is put
// on a device that could not be made, and routes do without a source address that could not be added.
// Forwarding is not switched on for a family whose guard could not be made.
func Apply(changes []routing.Change) error {
	f := failures{devices: map[string]bool{}, guards: map[int]bool{}, sources: map[netip.Addr]bool{}}
	var errs []error
	for _, c := range changes {
		if family := c.Forwards(); family != 0 && f.guards[family] {
			errs = append(errs, fmt.Errorf("%s: omitted: without the guard packets for sites could leave in clear", c))
			continue
		}
		if f.devices[c.Device()] {
			if c.Address != nil {
				f.sources[c.Address.Prefix.Addr()] = true
			}
			continue
		}
		if err := apply(f.adapt(c)); err != nil {
			errs = append(errs, err)
			f.note(c, err)
		}
	}
	return errors.Join(errs...)
}

// failures is what could not be made.
type failures struct {
	devices map[string]bool
	guards  map[int]bool // by family
	sources map[netip.Addr]bool
}

// adapt removes a source address from a route that the kernel would refuse because of it.
func (f failures) adapt(c routing.Change) routing.Change {
	if c.Route != nil && c.Verb != routing.Delete && f.sources[c.Route.Source] {
		r := *c.Route
		r.Source = netip.Addr{}
		c.Route = &r
	}
	return c
}

func (f failures) note(c routing.Change, err error) {
	exists := errors.Is(err, unix.EEXIST)
	switch {
	case c.Link != nil && c.Verb == routing.Add:
		f.devices[c.Link.Name] = true
	case c.Address != nil && c.Verb == routing.Add && !exists:
		f.sources[c.Address.Prefix.Addr()] = true
	case c.Guards() != 0 && c.Verb != routing.Delete && !exists:
		f.guards[c.Guards()] = true
	}
}

func apply(c routing.Change) error {
	var err error
	switch {
	case c.Link != nil:
		err = applyLink(c)
	case c.Address != nil:
		err = applyAddress(c.Verb, *c.Address)
	case c.Route != nil:
		err = applyRoute(c.Verb, *c.Route)
	case c.Rule != nil:
		err = applyRule(c.Verb, *c.Rule)
	case c.Sysctl != nil:
		err = os.WriteFile(sysctlPath(c.Sysctl.Key), []byte(strconv.Itoa(c.Sysctl.Value)+"\n"), 0)
	}
	if err != nil && c.Verb == routing.Delete && gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", c, err)
	}
	return nil
}

// gone reports whether a removal failed because there was nothing left to remove: the kernel removes routes
// and addresses together with their device, and another program may have been faster.
func gone(err error) bool {
	var missing netlink.LinkNotFoundError
	return errors.As(err, &missing) || errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) ||
		errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.ENODEV)
}

func applyLink(c routing.Change) error {
	l := c.Link
	if c.Verb == routing.Add {
		return addVLAN(*l)
	}
	link, err := netlink.LinkByName(l.Name)
	if err != nil {
		return err
	}
	switch {
	case c.Verb == routing.Delete:
		return netlink.LinkDel(link)
	case c.Down:
		return netlink.LinkSetDown(link)
	case l.MTU != 0:
		return netlink.LinkSetMTU(link, l.MTU)
	case l.TxQueueLen != 0:
		return netlink.LinkSetTxQLen(link, l.TxQueueLen)
	case l.GSOMax != 0: // IPv4's own limit follows it
		return netlink.LinkSetGSOMaxSize(link, l.GSOMax)
	case l.EgressMap != "":
		return setEgressMap(link, routing.ParseEgress(l.EgressMap))
	}
	return netlink.LinkSetUp(link)
}

// ErrNoVLAN is the error of making a VLAN device if the kernel was built without 802.1Q.
var ErrNoVLAN = errors.New("this kernel has no VLAN (802.1Q) support: " +
	"load the module 8021q, or use a kernel with CONFIG_VLAN_8021Q")

func addVLAN(l routing.Link) error {
	parent, err := netlink.LinkByName(l.Parent)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = l.Name, parent.Attrs().Index
	vlan := &netlink.Vlan{LinkAttrs: attrs, VlanId: int(l.VLAN), VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
	switch err := netlink.LinkAdd(vlan); {
	case errors.Is(err, unix.EOPNOTSUPP):
		return ErrNoVLAN
	case err != nil:
		return err
	}
	link, err := netlink.LinkByName(l.Name)
	if err == nil {
		err = netlink.LinkSetAlias(link, routing.LinkAlias)
	}
	return err
}

// setEgressMap sets pairs and leaves the others as they are (vlan_changelink). The library can set them only when it
// makes a device.
func setEgressMap(link netlink.Link, pairs map[uint32]uint32) error {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_ACK)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(link.Attrs().Index)
	req.AddData(msg)
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("vlan"))
	qos := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.IFLA_VLAN_EGRESS_QOS, nil)
	for _, from := range slices.Sorted(maps.Keys(pairs)) {
		pair := binary.NativeEndian.AppendUint32(nil, from) // struct ifla_vlan_qos_mapping
		qos.AddRtAttr(nl.IFLA_VLAN_QOS_MAPPING, binary.NativeEndian.AppendUint32(pair, pairs[from]))
	}
	req.AddData(info)
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

// applyAddress builds the message itself: the library cannot set IFA_PROTO.
func applyAddress(v routing.Verb, a routing.Address) error {
	link, err := netlink.LinkByName(a.Device)
	if err != nil {
		return err
	}
	kind, flags := unix.RTM_NEWADDR, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL
	if v == routing.Delete {
		kind, flags = unix.RTM_DELADDR, unix.NLM_F_ACK
	}
	req := nl.NewNetlinkRequest(kind, flags)
	addr := a.Prefix.Addr()
	msg := nl.NewIfAddrmsg(unix.AF_INET)
	msg.Index, msg.Prefixlen = uint32(link.Attrs().Index), uint8(a.Prefix.Bits())
	if addr.Is6() {
		msg.Family = unix.AF_INET6
	}
	if v == routing.Add && addr.Is6() {
		msg.IfAddrmsg.Flags = unix.IFA_F_NODAD
	}
	req.AddData(msg)
	req.AddData(nl.NewRtAttr(unix.IFA_LOCAL, addr.AsSlice()))
	req.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, addr.AsSlice()))
	if v == routing.Add {
		if a.Broadcast() {
			req.AddData(nl.NewRtAttr(unix.IFA_BROADCAST, broadcast(a.Prefix).AsSlice()))
		}
		req.AddData(nl.NewRtAttr(ifaProto, []byte{a.Protocol}))
	}
	_, err = req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}

func broadcast(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i, m := range net.CIDRMask(p.Bits(), 32) {
		b[i] |= ^m
	}
	return netip.AddrFrom4(b)
}

func applyRoute(v routing.Verb, r routing.Route) error {
	o := &netlink.Route{
		Table: int(r.Table), Priority: int(r.Metric), Protocol: netlink.RouteProtocol(r.Protocol),
		Dst: ipNet(r.Prefix), MTU: r.MTU, MTULock: r.MTULock,
	}
	for number, t := range routeTypes {
		if t == r.Type {
			o.Type = number
		}
	}
	device := r.Device
	if r.Type == routing.Local {
		device = "lo"
	}
	if device != "" {
		link, err := netlink.LinkByName(device)
		if err != nil {
			return err
		}
		o.LinkIndex = link.Attrs().Index
	}
	o.Scope = scope(r)
	if r.Gateway.IsValid() {
		o.Gw = r.Gateway.AsSlice()
	}
	if r.OnLink {
		o.Flags = unix.RTNH_F_ONLINK
	}
	if r.Source.IsValid() {
		o.Src = r.Source.AsSlice()
	}
	switch v {
	case routing.Add:
		return netlink.RouteAdd(o)
	case routing.Replace:
		return netlink.RouteReplace(o)
	}
	return netlink.RouteDel(o)
}

// scope is that of an IPv4 route, as ip(8) sets it: a gateway's must be wider than that of the route to it.
func scope(r routing.Route) netlink.Scope {
	switch {
	case r.Prefix.Addr().Is6() || r.Gateway.IsValid():
	case r.Type == routing.Unicast:
		return netlink.SCOPE_LINK
	case r.Type == routing.Local:
		return netlink.SCOPE_HOST
	}
	return netlink.SCOPE_UNIVERSE
}

func applyRule(v routing.Verb, r routing.Rule) error {
	o := netlink.NewRule()
	o.Family = unix.AF_INET
	if r.Family == 6 {
		o.Family = unix.AF_INET6
	}
	o.Priority, o.Table, o.IifName, o.Protocol = r.Priority, int(r.Table), r.Input, r.Protocol
	if r.Mask != 0 {
		o.Mark, o.Mask = r.Mark, &r.Mask
	}
	if r.Source.IsValid() {
		o.Src = ipNet(netip.PrefixFrom(r.Source, r.Source.BitLen()))
	}
	if r.Network.IsValid() {
		o.Src = ipNet(r.Network)
	}
	if v == routing.Add {
		return netlink.RuleAdd(o)
	}
	return netlink.RuleDel(o)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
