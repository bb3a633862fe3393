package conntrack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// ErrGone says that there is no such connection.
var ErrGone = errors.New("no such connection")

// ExtendUDP keeps a connection of UDP, and what NAT does for it, for so long from now on. from and to are those of its
// first packet.
func ExtendUDP(from, to netip.AddrPort, life time.Duration) error {
	t := Tuple{Protocol: unix.IPPROTO_UDP, Destination: to.Addr()}
	req := request(t.family(), nl.IPCTNL_MSG_CT_NEW, unix.NLM_F_ACK)
	req.AddData(original(t.Protocol, from, to))
	seconds := uint32(max(life.Seconds(), 1))
	req.AddData(nl.NewRtAttr(nl.CTA_TIMEOUT, binary.BigEndian.AppendUint32(nil, seconds)))

	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return ErrGone
	case err != nil:
		return fmt.Errorf("keep the connection from %s to %s: %w", from, to, err)
	}
	return nil
}

// FindTCP looks for a connection of TCP by the addresses and ports of its first packet. It returns ErrGone if there is
// none: its packets are not translated by NAT any more as they were.
func FindTCP(from, to netip.AddrPort) error {
	t := Tuple{Protocol: unix.IPPROTO_TCP, Destination: to.Addr()}
	req := request(t.family(), nl.IPCTNL_MSG_CT_GET, unix.NLM_F_ACK)
	req.AddData(original(t.Protocol, from, to))
	_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
	switch {
	case errors.Is(err, unix.ENOENT):
		return ErrGone
	case err != nil:
		return fmt.Errorf("look for the connection from %s to %s: %w", from, to, err)
	}
	return nil
}

// original is the tuple of a connection's first packet.
func original(protocol byte, from, to netip.AddrPort) *nl.RtAttr {
	tuple := nl.NewRtAttr(nl.CTA_TUPLE_ORIG|unix.NLA_F_NESTED, nil)
	addresses := tuple.AddRtAttr(nl.CTA_TUPLE_IP|unix.NLA_F_NESTED, nil)
	source, dest := nl.CTA_IP_V4_SRC, nl.CTA_IP_V4_DST
	if to.Addr().Is6() {
		source, dest = nl.CTA_IP_V6_SRC, nl.CTA_IP_V6_DST
	}
	addresses.AddRtAttr(source, from.Addr().AsSlice())
	addresses.AddRtAttr(dest, to.Addr().AsSlice())
	ports := tuple.AddRtAttr(nl.CTA_TUPLE_PROTO|unix.NLA_F_NESTED, nil)
	ports.AddRtAttr(nl.CTA_PROTO_NUM, []byte{protocol})
	ports.AddRtAttr(nl.CTA_PROTO_SRC_PORT, binary.BigEndian.AppendUint16(nil, from.Port()))
	ports.AddRtAttr(nl.CTA_PROTO_DST_PORT, binary.BigEndian.AppendUint16(nil, to.Port()))
	return tuple
}
