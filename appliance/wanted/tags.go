package wanted

import (
	"ringway/appliance/config"
	"ringway/qos"
	"ringway/routing"
)

// ownPriorities are those of skb->priority that the kernel uses by itself (0 to 15, linux/pkt_sched.h).
const ownPriorities = 16

// upstream is a WAN for routing. The kernel writes the priority into a VLAN's tag by skb->priority, which the firewall
// sets to the queue of the packet's class: that of the WAN, or of a site.
func upstream(w config.WAN, queues qos.Input) routing.Upstream {
	u := w.Upstream
	if w.Tags == nil {
		return u
	}
	tags := map[uint32]uint32{}
	for p := range uint32(ownPriorities) { // not classified: what is no IP, or no packet of an IP socket
		tags[p] = uint32(w.Tags.Control)
	}
	for _, p := range qos.Priorities(queues) {
		if p.WAN == w.Interface {
			tags[p.ClassID] = uint32(w.Tags.Classes[p.Class])
		}
	}
	for _, p := range qos.SitePriorities(queues) {
		tags[p.ClassID] = uint32(w.Tags.Classes[p.Class])
	}
	u.EgressMap = routing.EgressText(tags)
	return u
}
