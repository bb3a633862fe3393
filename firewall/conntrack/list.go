package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// EachUDP calls f for both directions of each UDP connection, as the hosts of the LANs see it: for a connection
// that NAT translates, with the addresses before translation.
func EachUDP(f func(from, to netip.AddrPort)) error {
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		req := request(family, nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
		var bad error
		err := req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(msg []byte) bool {
			if err := eachDirection(msg, f); err != nil {
				bad = err
			}
			return true
		})
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			err = nil // the table was resized: what is missed is seen the next time
		}
		if err := errors.Join(err, bad); err != nil {
			return fmt.Errorf("list connections: %w", err)
		}
	}
	return nil
}

func eachDirection(msg []byte, f func(from, to netip.AddrPort)) error {
	attrs, err := parse(msg[nl.SizeofNfgenmsg:])
	if err != nil {
		return err
	}
	from, to, ok, err := endpoints(attrs[nl.CTA_TUPLE_ORIG])
	if err != nil || !ok {
		return err
	}
	f(from, to)
	if replied(attrs[nl.CTA_STATUS]) {
		f(to, from)
	}
	return nil
}

// statusSeenReply is IPS_SEEN_REPLY (linux/netfilter/nf_conntrack_common.h).
const statusSeenReply = 1 << 1

func replied(status []byte) bool {
	return len(status) == 4 && binary.BigEndian.Uint32(status)&statusSeenReply != 0
}

// endpoints reads a tuple; ok is false if it is not UDP.
func endpoints(b []byte) (from, to netip.AddrPort, ok bool, err error) {
	tuple, err := parse(b)
	if err != nil {
		return from, to, false, err
	}
	addresses, err := parse(tuple[nl.CTA_TUPLE_IP])
	if err != nil {
		return from, to, false, err
	}
	protocol, err := parse(tuple[nl.CTA_TUPLE_PROTO])
	if err != nil {
		return from, to, false, err
	}
	number := protocol[nl.CTA_PROTO_NUM]
	if len(number) != 1 || number[0] != unix.IPPROTO_UDP {
		return from, to, false, nil
	}
	source, dest := addresses[nl.CTA_IP_V4_SRC], addresses[nl.CTA_IP_V4_DST]
	if source == nil {
		source, dest = addresses[nl.CTA_IP_V6_SRC], addresses[nl.CTA_IP_V6_DST]
	}
	a, okA := netip.AddrFromSlice(source)
	b6, okB := netip.AddrFromSlice(dest)
	sport, dport := protocol[nl.CTA_PROTO_SRC_PORT], protocol[nl.CTA_PROTO_DST_PORT]
	if !okA || !okB || len(sport) != 2 || len(dport) != 2 {
		return from, to, false, nil
	}
	from = netip.AddrPortFrom(a, binary.BigEndian.Uint16(sport))
	to = netip.AddrPortFrom(b6, binary.BigEndian.Uint16(dport))
	return from, to, true, nil
}
