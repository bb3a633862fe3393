package rtnl

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"ringway/routing"
)

// Apply makes the changes one after the other and goes on after one that fails, since the rest
// may still hold (a site's routes do not wait for another WAN's cable). All errors come back joined.
//
// What needs something that failed is not tried, so that the errors are those that matter: nothing
// is put on a device that could not be made, and routes do without the source address that it
// would have had. Forwarding is not switched on for a family whose guard could not be made.
func Apply(changes []routing.Change) error {
	var errs []error
	lost, unguarded := map[string]bool{}, map[int]bool{}
	noSource := map[netip.Addr]bool{}
	for _, c := range changes {
		if family := c.Forwards(); family != 0 && unguarded[family] {
			errs = append(errs, fmt.Errorf("%s: left out, for nothing would keep sites' packets from leaving in clear", c))
			continue
		}
		if lost[c.Device()] {
			if c.Address != nil {
				noSource[c.Address.Prefix.Addr()] = true
			}
			continue
		}
		if c.Route != nil && c.Verb != routing.Delete && noSource[c.Route.Source] {
			r := *c.Route
			r.Source = netip.Addr{}
			c.Route = &r
		}
		err := apply(c)
		if err == nil {
			continue
		}
		errs = append(errs, err)
		switch {
		case c.Link != nil && c.Verb == routing.Add:
			lost[c.Link.Name] = true
		case c.Address != nil && c.Verb == routing.Add && !errors.Is(err, unix.EEXIST):
			noSource[c.Address.Prefix.Addr()] = true
		case c.Guards() != 0 && c.Verb != routing.Delete && !errors.Is(err, unix.EEXIST):
			unguarded[c.Guards()] = true
		}
	}
	return errors.Join(errs...)
}

func apply(c routing.Change) error {
	err := func() error {
		switch {
		case c.Link != nil:
			return applyLink(c)
		case c.Address != nil:
			return applyAddress(c.Verb, *c.Address)
		case c.Route != nil:
			return applyRoute(c.Verb, *c.Route)
		case c.Rule != nil:
			return applyRule(c.Verb, *c.Rule)
		case c.Sysctl != nil:
			return os.WriteFile(sysctlPath(c.Sysctl.Key), []byte(strconv.Itoa(c.Sysctl.Value)+"\n"), 0)
		}
		return nil
	}()
	if err != nil && c.Verb == routing.Delete && gone(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("%s: %w", c, err)
	}
	return nil
}

// gone is whether a removal failed because there was nothing to remove any more: with a device
// go its routes and addresses, and somebody else may have been faster.
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
	}
	return netlink.LinkSetUp(link)
}

// ErrNoVLAN is what making a VLAN device ends in where the kernel was built without 802.1Q.
var ErrNoVLAN = errors.New("this kernel has no VLAN (802.1Q) support: load the module 8021q, or use a kernel with CONFIG_VLAN_8021Q")

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

// applyAddress builds the message itself: the library knows no IFA_PROTO.
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
	o := &netlink.Route{Table: int(r.Table), Priority: int(r.Metric), Protocol: netlink.RouteProtocol(r.Protocol), Dst: ipNet(r.Prefix), MTU: r.MTU}
	for number, t := range routeTypes {
		if t == r.Type {
			o.Type = number
		}
	}
	if r.Device != "" {
		link, err := netlink.LinkByName(r.Device)
		if err != nil {
			return err
		}
		o.LinkIndex = link.Attrs().Index
	}
	if r.Gateway.IsValid() {
		o.Gw = r.Gateway.AsSlice()
	} else if r.Type == routing.Unicast && r.Prefix.Addr().Is4() {
		o.Scope = netlink.SCOPE_LINK // as ip(8) does; a gateway must be in a wider scope than what it is reached by
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
	if v == routing.Add {
		return netlink.RuleAdd(o)
	}
	return netlink.RuleDel(o)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
