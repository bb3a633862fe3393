// Package conntrack removes connections from the kernel's connection tracking table, in the calling
// thread's network namespace. The ruleset accepts packets of established connections whatever else it says,
// so closing a hole for calls does not end the flow that passed through it: its entry here has to go.
package conntrack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Attributes that the library has no name for (linux/netfilter/nfnetlink_conntrack.h), Linux 5.8.
const (
	attrFilter          = 25 // CTA_FILTER: which parts of CTA_TUPLE_ORIG a dump is limited to
	attrFilterOrigFlags = 1  // CTA_FILTER_ORIG_FLAGS

	filterSource   = 1 << 0
	filterDest     = 1 << 1
	filterProtocol = 1 << 3
	filterDestPort = 1 << 5
)

// Tuple says which connections are meant, by what their first packet had.
type Tuple struct {
	Protocol    uint8        // unix.IPPROTO_UDP or unix.IPPROTO_TCP
	Source      netip.Prefix // zero: any
	Destination netip.Addr
	Port        uint16 // of the destination; 0: any
}

func (t Tuple) String() string {
	source := "anywhere"
	if t.Source.IsValid() {
		source = t.Source.String()
	}
	return fmt.Sprintf(
		"protocol %d from %s to %s", t.Protocol, source, netip.AddrPortFrom(t.Destination, t.Port),
	)
}

// check says what is wrong with t.
func (t Tuple) check() error {
	switch {
	case t.Protocol != unix.IPPROTO_UDP && t.Protocol != unix.IPPROTO_TCP:
		return fmt.Errorf("%s: it is not UDP or TCP", t)
	case !t.Destination.IsValid() || t.Destination.Zone() != "" || t.Destination.Is4In6():
		return fmt.Errorf("%s: the destination is not a plain address", t)
	case t.Source.IsValid() && t.Source.Addr().Is4() != t.Destination.Is4():
		return fmt.Errorf("%s: source and destination are of different families", t)
	}
	return nil
}

func (t Tuple) family() netlink.InetFamily {
	if t.Destination.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// Delete removes the connections that match t, and returns how many there were. Deleting one that has just ended is
// fine.
func Delete(t Tuple) (n int, err error) {
	if err := t.check(); err != nil {
		return 0, fmt.Errorf("delete connections of %w", err)
	}
	found, err := find(t)
	if err != nil {
		return 0, fmt.Errorf("list connections of %s: %w", t, err)
	}

	for _, c := range found {
		req := request(t.family(), nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK)
		req.AddRawData(c)
		_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
		switch {
		case err == nil:
			n++
		case !errors.Is(err, fs.ErrNotExist):
			return n, fmt.Errorf("delete a connection of %s: %w", t, err)
		}
	}
	return n, nil
}

func request(family netlink.InetFamily, kind, flags int) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(netlink.ConntrackTable<<8|kind, flags)
	req.AddData(&nl.Nfgenmsg{NfgenFamily: uint8(family), Version: nl.NFNETLINK_V0})
	return req
}

// find gives the attributes that name each connection that matches t.
//
// The kernel leaves out most of what does not match, which spares copying a large table. Older ones than
// Linux 5.8 leave out nothing, and none knows networks. So each connection is compared here, too.
func find(t Tuple) (found [][]byte, err error) {
	req := request(t.family(), nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
	tuple, flags := t.attributes()
	req.AddData(tuple)
	req.AddData(filterAttr(flags))

	var bad error
	err = req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(msg []byte) bool {
		name, matches, err := t.match(msg)
		if err != nil {
			bad = err
		}
		if matches {
			found = append(found, name)
		}
		return true
	})
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		err = nil // the table was resized: what was found is right, and what was missed expires
	}
	return found, errors.Join(err, bad)
}

func filterAttr(flags uint32) *nl.RtAttr {
	filter := nl.NewRtAttr(attrFilter|unix.NLA_F_NESTED, nil)
	filter.AddRtAttr(attrFilterOrigFlags, nl.Uint32Attr(flags))
	return filter
}

// attributes are t as CTA_TUPLE_ORIG, and which parts of it count. Addresses of IPv6 do not: there the
// kernel has the comparison the wrong way round (ctnetlink_filter_match_tuple, Linux 6.18) and leaves out
// those that match.
func (t Tuple) attributes() (tuple *nl.RtAttr, flags uint32) {
	tuple = nl.NewRtAttr(nl.CTA_TUPLE_ORIG|unix.NLA_F_NESTED, nil)
	if t.Destination.Is4() {
		addresses := tuple.AddRtAttr(nl.CTA_TUPLE_IP|unix.NLA_F_NESTED, nil)
		if t.Source.IsValid() && t.Source.IsSingleIP() {
			addresses.AddRtAttr(nl.CTA_IP_V4_SRC, t.Source.Addr().AsSlice())
			flags |= filterSource
		}
		addresses.AddRtAttr(nl.CTA_IP_V4_DST, t.Destination.AsSlice())
		flags |= filterDest
	}

	protocol := tuple.AddRtAttr(nl.CTA_TUPLE_PROTO|unix.NLA_F_NESTED, nil)
	protocol.AddRtAttr(nl.CTA_PROTO_NUM, []byte{t.Protocol})
	if t.Port != 0 {
		protocol.AddRtAttr(nl.CTA_PROTO_DST_PORT, binary.BigEndian.AppendUint16(nil, t.Port))
		flags |= filterDestPort
	}
	return tuple, flags | filterProtocol
}

// match compares a connection, as the kernel lists it, with t. name is what the kernel finds it by again:
// the tuple, its zone, and its number, which a later connection of the same tuple does not have.
func (t Tuple) match(msg []byte) (name []byte, matches bool, err error) {
	attrs, err := parse(msg[nl.SizeofNfgenmsg:])
	if err != nil {
		return nil, false, err
	}
	tuple, err := parse(attrs[nl.CTA_TUPLE_ORIG])
	if err != nil {
		return nil, false, err
	}
	addresses, err := parse(tuple[nl.CTA_TUPLE_IP])
	if err != nil {
		return nil, false, err
	}
	protocol, err := parse(tuple[nl.CTA_TUPLE_PROTO])
	if err != nil {
		return nil, false, err
	}

	source, dest := addresses[nl.CTA_IP_V4_SRC], addresses[nl.CTA_IP_V4_DST]
	if t.Destination.Is6() {
		source, dest = addresses[nl.CTA_IP_V6_SRC], addresses[nl.CTA_IP_V6_DST]
	}
	from, ok := netip.AddrFromSlice(source)
	port := binary.BigEndian.AppendUint16(nil, t.Port)
	switch {
	case !ok, !bytes.Equal(dest, t.Destination.AsSlice()):
		return nil, false, nil
	case t.Source.IsValid() && !t.Source.Contains(from):
		return nil, false, nil
	case !bytes.Equal(protocol[nl.CTA_PROTO_NUM], []byte{t.Protocol}):
		return nil, false, nil
	case t.Port != 0 && !bytes.Equal(protocol[nl.CTA_PROTO_DST_PORT], port):
		return nil, false, nil
	}

	return nameOf(attrs), true, nil
}

// nameOf is what the kernel finds a connection by again.
func nameOf(attrs map[int][]byte) (name []byte) {
	for _, a := range []int{nl.CTA_TUPLE_ORIG | unix.NLA_F_NESTED, nl.CTA_ZONE, nl.CTA_ID} {
		if value, ok := attrs[a&int(nl.NLA_TYPE_MASK)]; ok {
			name = append(name, nl.NewRtAttr(a, value).Serialize()...)
		}
	}
	return name
}

// parse splits a list of attributes. Of two with one type the last counts.
func parse(b []byte) (map[int][]byte, error) {
	list, err := nl.ParseRouteAttr(b)
	if err != nil {
		return nil, fmt.Errorf("read a connection of the kernel's: %w", err)
	}
	attrs := make(map[int][]byte, len(list))
	for _, a := range list {
		attrs[int(a.Attr.Type&nl.NLA_TYPE_MASK)] = a.Value
	}
	return attrs, nil
}
