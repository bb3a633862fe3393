package conntrack

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Flush removes every connection with an end in one of the networks, and returns how many there were.
func Flush(networks []netip.Prefix) (n int, err error) {
	for _, family := range []netlink.InetFamily{unix.AF_INET, unix.AF_INET6} {
		mine := slices.DeleteFunc(slices.Clone(networks), func(p netip.Prefix) bool {
			return p.Addr().Is4() != (family == unix.AF_INET)
		})
		if len(mine) == 0 {
			continue
		}
		found, err := within(family, mine)
		if err != nil {
			return n, fmt.Errorf("list connections: %w", err)
		}
		for _, name := range found {
			req := request(family, nl.IPCTNL_MSG_CT_DELETE, unix.NLM_F_ACK)
			req.AddRawData(name)
			_, err := req.Execute(unix.NETLINK_NETFILTER, 0)
			switch {
			case err == nil:
				n++
			case !errors.Is(err, fs.ErrNotExist): // it has just ended
				return n, fmt.Errorf("delete a connection: %w", err)
			}
		}
	}
	return n, nil
}

// within gives the attributes that name each connection with an end in one of the networks.
func within(family netlink.InetFamily, networks []netip.Prefix) (found [][]byte, err error) {
	req := request(family, nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
	var bad error
	err = req.ExecuteIter(unix.NETLINK_NETFILTER, 0, func(msg []byte) bool {
		attrs, err := parse(msg[nl.SizeofNfgenmsg:])
		if err != nil {
			bad = err
			return true
		}
		for _, direction := range []int{nl.CTA_TUPLE_ORIG, nl.CTA_TUPLE_REPLY} {
			touches, err := touches(attrs[direction], networks)
			if err != nil {
				bad = err
			}
			if touches {
				found = append(found, nameOf(attrs))
				break
			}
		}
		return true
	})
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		err = nil // the table was resized: what was found is right, and what was missed expires
	}
	return found, errors.Join(err, bad)
}

// touches reports whether a tuple has an address in one of the networks.
func touches(b []byte, networks []netip.Prefix) (bool, error) {
	tuple, err := parse(b)
	if err != nil {
		return false, err
	}
	addresses, err := parse(tuple[nl.CTA_TUPLE_IP])
	if err != nil {
		return false, err
	}
	for _, b := range addresses {
		a, ok := netip.AddrFromSlice(b)
		if ok && slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a) }) {
			return true, nil
		}
	}
	return false, nil
}
