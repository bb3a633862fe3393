package keychannel

import (
	"ringway/appliance/exposition"
	"ringway/appliance/status"
)

var (
	families exposition.Families

	up = families.Gauge("ringway_srtp_channel_up",
		"Whether the key channel to a site is up: 0 or 1. Without it calls to the site that begin get no keys.", "site")
	legs = families.Gauge("ringway_srtp_channel_legs",
		"Legs of media between the boxes: all, or those with a key in use.", "site", "state")
	rotations = families.Counter("ringway_srtp_channel_rotations_total",
		"Keys of this box for media to a site that followed another.", "site")
	offered = families.Counter("ringway_srtp_channel_keys_total",
		"Keys of media: offered by this box, taken from the far box, refused by this box or by the far one.",
		"site", "event")
	strangers = families.Counter("ringway_srtp_channel_strangers_total",
		"Connections from elsewhere than a site that is to dial, or beyond what a site may have.")
)

// Families are the metrics of key channels.
func (c *Channels) Families() exposition.Families { return families }

// Collect shows the section of the status about key channels.
func (c *Channels) Collect(st status.Status, to exposition.Sink) {
	s, ok := status.Section[Status](st, Name)
	if !ok || len(s.Sites) == 0 {
		return
	}
	for i := range s.Sites {
		x := &s.Sites[i]
		to.Put(up, map[bool]float64{true: 1}[x.Up], x.Site)
		to.Put(legs, float64(x.Legs), x.Site, "all")
		to.Put(legs, float64(x.Sending), x.Site, "sending")
		to.Put(rotations, float64(x.Rotations), x.Site)
		to.Put(offered, float64(x.KeysOffered), x.Site, "offered")
		to.Put(offered, float64(x.KeysTaken), x.Site, "taken")
		to.Put(offered, float64(x.KeysRefused), x.Site, "refused")
		to.Put(offered, float64(x.RefusedThere), x.Site, "refused_there")
	}
	to.Put(strangers, float64(s.Strangers))
}
