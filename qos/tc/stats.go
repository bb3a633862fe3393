package tc

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"ringway/qos"
)

// Stats reads the counters of the leaves of Ringway's trees: for each interface first what goes to no site,
// then sites by name, with classes in order of urgency. Interfaces without a tree have none, nor have sites
// that are not named.
func Stats(interfaces, sites []string) ([]qos.QueueStats, error) {
	return stats(interfaces, qos.Places(sites))
}

// DownlinkStats reads the counters of the downlink queues on the LANs' cards. wans are all WANs of the
// config, in its order.
func DownlinkStats(cards, wans []string) ([]qos.QueueStats, error) {
	return stats(cards, qos.DownlinkPlaces(wans))
}

func stats(interfaces []string, places map[qos.Handle]qos.Place) ([]qos.QueueStats, error) {
	var out []qos.QueueStats
	for _, name := range interfaces {
		index, err := linkIndex(name)
		if errors.As(err, &netlink.LinkNotFoundError{}) {
			continue
		}
		if err != nil {
			return nil, err
		}
		s, err := linkStats(name, index, places)
		if err != nil {
			return nil, fmt.Errorf("read queue counters of %s: %w", name, err)
		}
		out = append(out, s...)
	}
	return out, nil
}

func linkStats(name string, index int, places map[qos.Handle]qos.Place) ([]qos.QueueStats, error) {
	classes, err := dump(unix.RTM_GETTCLASS, unix.RTM_NEWTCLASS, index)
	if err != nil {
		return nil, err
	}
	qdiscs, err := dump(unix.RTM_GETQDISC, unix.RTM_NEWQDISC, index)
	if err != nil {
		return nil, err
	}
	leaf := map[qos.Handle]tcMessage{}
	for _, q := range qdiscs {
		leaf[q.parent] = q
	}
	var out []qos.QueueStats
	for _, m := range classes {
		place, ours := places[m.handle]
		if !ours || m.kind != "htb" {
			continue
		}
		c, err := readClass(m)
		if err != nil {
			return nil, err
		}
		s := qos.QueueStats{WAN: name, Site: place.Site, Class: place.Class, Rate: c.Rate, Ceil: c.Ceil}
		n, err := readCounters(m)
		if err != nil {
			return nil, err
		}
		n.copyTo(&s)
		s.Borrowed = uint64(u32at(m.attrs[nl.TCA_XSTATS], 4)) // struct tc_htb_xstats: lends, borrows, …
		if q, ok := leaf[m.handle]; ok {
			if err := readLeaf(&s, q, leaf); err != nil {
				return nil, err
			}
		}
		out = append(out, s)
	}
	slices.SortFunc(out, byUrgency)
	return out, nil
}

// readLeaf adds what the leaf qdisc of a class counts, and its own child in it.
func readLeaf(s *qos.QueueStats, q tcMessage, leaves map[qos.Handle]tcMessage) error {
	// The leaf counts the dropped packets of a super-packet that it split; its class saw one packet, taken in part.
	n, err := readCounters(q)
	if err != nil {
		return err
	}
	s.Drops = uint64(n.drops)

	d, err := readQdisc(q)
	if err != nil {
		return err
	}
	switch {
	case d.TBF != nil:
		s.Limit = d.TBF.Limit
	case d.FIFO != nil && d.Kind == "bfifo":
		s.Limit = qos.ByteCount(d.FIFO.Limit)
	}

	child, ok := leaves[q.handle|1]
	if !ok || child.kind != "fq_codel" {
		return nil
	}
	// struct tc_fq_codel_xstats: type (TCA_FQ_CODEL_XSTATS_QDISC is 0), maxpacket, drop_overlimit, ecn_mark, …
	if b := child.attrs[nl.TCA_XSTATS]; len(b) >= 16 && u32at(b, 0) == 0 {
		marks := uint64(u32at(b, 12))
		s.Marks = &marks
	}
	return nil
}

// byUrgency orders what goes to no site before sites by name, and classes by urgency.
func byUrgency(a, b qos.QueueStats) int {
	switch {
	case a.Site == b.Site:
		return cmp.Compare(slices.Index(qos.ClassNames, a.Class), slices.Index(qos.ClassNames, b.Class))
	case a.Site == qos.Local:
		return -1
	case b.Site == qos.Local:
		return 1
	}
	return cmp.Compare(a.Site, b.Site)
}

// RootStats reads the counters of an interface's root queue, whoever made it, children included. found is
// false if the interface has only the kernel's default.
func RootStats(name string) (s qos.QueueStats, found bool, err error) {
	index, err := linkIndex(name)
	if err != nil {
		return s, false, err
	}
	qdiscs, err := dump(unix.RTM_GETQDISC, unix.RTM_NEWQDISC, index)
	if err != nil {
		return s, false, fmt.Errorf("read queue counters of %s: %w", name, err)
	}
	for _, m := range qdiscs {
		if m.handle == 0 || m.parent != qos.RootHandle {
			continue
		}
		n, err := readCounters(m)
		if err != nil {
			return s, false, fmt.Errorf("read queue counters of %s: %w", name, err)
		}
		s = qos.QueueStats{WAN: name}
		n.copyTo(&s)
		return s, true, nil
	}
	return s, false, nil
}

type counters struct {
	bytes, packets                   uint64
	qlen, backlog, drops, overlimits uint32
}

func (n counters) copyTo(s *qos.QueueStats) {
	s.Sent, s.SentPackets, s.Overlimits = qos.ByteCount(n.bytes), n.packets, uint64(n.overlimits)
	s.Backlog, s.BacklogPackets, s.Drops = qos.ByteCount(n.backlog), uint64(n.qlen), uint64(n.drops)
}

func readCounters(m tcMessage) (counters, error) {
	a, err := parseAttrs(m.attrs[nl.TCA_STATS2])
	if err != nil {
		return counters{}, err
	}
	var n counters
	if b := a[nl.TCA_STATS_BASIC]; len(b) >= 12 { // struct gnet_stats_basic
		n.bytes, n.packets = binary.NativeEndian.Uint64(b), uint64(u32at(b, 8))
	}
	if p, ok := a.u64(nl.TCA_STATS_PKT64); ok {
		n.packets = p
	}
	q := a[nl.TCA_STATS_QUEUE] // struct gnet_stats_queue: qlen, backlog, drops, requeues, overlimits
	n.qlen, n.backlog, n.drops, n.overlimits = u32at(q, 0), u32at(q, 4), u32at(q, 8), u32at(q, 16)
	return n, nil
}
