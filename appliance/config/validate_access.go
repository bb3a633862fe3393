package config

import (
	"slices"
	"strings"
	"unicode"

	"ringway/appliance/secrets"
	"ringway/qos"
)

const (
	jumboMTU   = 1500 // of a session whose frames are longer than Ethernet's (RFC 4638)
	jumboFrame = 1508 // what the network card has to take for that, PPPoE's and PPP's headers included
	// pppoeHeaders are PPPoE's 6 bytes and the 2 of PPP's protocol (RFC 2516, section 4).
	pppoeHeaders = 8
	tagBytes     = 4   // of an 802.1Q tag
	maxPPPName   = 255 // bytes of a user, password or service: pppd's buffers
)

// access reads how a WAN is reached: untagged or in a VLAN, by Ethernet or by PPPoE.
func (c *checker) access(r rawWAN, w *WAN, devices *deviceSet) {
	w.Interface = c.netdev(r.Interface)
	w.VLAN = uint16(c.integer(r.VLAN, 0, 1, 4094))
	w.Card = w.Interface
	under := w.Under()
	if w.Card == "" || r.VLAN.set && w.VLAN == 0 {
		under = ""
	}
	w.Interface = under
	if len(under) > maxInterface {
		c.wrong(r.Interface.at, "%s with its VLAN is %s, too long for an interface name: %d bytes (allowed: 1 to %d)",
			show(w.Card), under, len(under), maxInterface)
		under = ""
	}
	devices.add(under, r.Interface.at)
	c.tags(r, w)
	if r.PPPoE.key != "" {
		c.pppoe(r, w, under, devices)
	}
	if w.VLAN == 0 && w.PPPoE == nil {
		w.Card = ""
	}
}

// tags reads the priorities in the tag.
func (c *checker) tags(r rawWAN, w *WAN) {
	if !r.Priority.set && r.Priorities.key == "" {
		return
	}
	if w.VLAN == 0 {
		pos := r.Priorities.at
		if r.Priority.set {
			pos = r.Priority.at
		}
		if !r.VLAN.set {
			c.wrong(pos, "is set, but without vlan there is no tag that it could be in (allowed: with vlan)")
		}
		return
	}
	def := c.integer(r.Priority, 0, 0, 7)
	read := func(s scalar) uint8 { return uint8(c.integer(s, def, 0, 7)) }
	p := r.Priorities
	w.Tags = &Tags{
		Classes: map[qos.ClassName]uint8{
			qos.Media: read(p.Media), qos.Signalling: read(p.Signalling),
			qos.Data: read(p.Data), qos.Background: read(p.Background),
		},
		Control: read(p.Control),
	}
}

func (c *checker) pppoe(r rawWAN, w *WAN, under string, devices *deviceSet) {
	p := r.PPPoE
	c.need(p.at, p.User, "user", "the name that the provider gave")
	c.need(p.at, p.PasswordFile, "password_file", "the name of a file of mode 0600 that holds the password")
	w.PPPoE = &PPPoE{
		User: c.pppName(p.User), Service: c.pppName(p.Service),
		MTU: c.integer(p.MTU, pppoeMTU, minIPv6MTU, jumboMTU),
	}
	if p.PasswordFile.ok() {
		w.PPPoE.PasswordFile = c.keyPath(p.PasswordFile, "")
	}
	if w.PPPoE.PasswordFile != "" && !c.skip {
		_, err := secrets.ReadPassword(c.keys, w.PPPoE.PasswordFile)
		c.checkKey(p.PasswordFile.at, err, "write the password into %s, mode 0600")
	}
	w.Upstream.PPPoE = true
	if w.PPPoE.MTU > pppoeMTU {
		w.FrameMTU = jumboFrame
	}
	switch {
	case p.Device.set:
		w.Interface = c.netdev(p.Device)
	case under == "":
		w.Interface = ""
	default:
		w.Interface = "ppp-" + under
	}
	if len(w.Interface) > maxInterface {
		c.wrong(p.at, "%s is too long for the name of the PPP device: %d bytes (allowed: set device to a name of 1 to %d)",
			w.Interface, len(w.Interface), maxInterface)
		return
	}
	pos := p.Device.at
	if !p.Device.set {
		pos = p.at
	}
	devices.add(w.Interface, pos)
}

// pppName reads a text for pppd.
func (c *checker) pppName(s scalar) string {
	if !s.ok() {
		return ""
	}
	if len(s.text) > maxPPPName || strings.ContainsFunc(s.text, unicode.IsControl) {
		c.wrong(s.at, "%s is not a name for PPP (allowed: up to %d bytes without control characters)", show(s.text),
			maxPPPName)
		return ""
	}
	return s.text
}

// jumbo refuses longer frames on a network card that also carries a network untagged, which would take them over.
func (c *checker) jumbo(raw *rawFile, cfg *Config) {
	for i, w := range cfg.WANs {
		if w.FrameMTU == 0 {
			continue
		}
		shared := slices.ContainsFunc(cfg.WANs, func(o WAN) bool { return o.Interface == w.Card })
		for _, l := range slices.Concat(cfg.Voice, cfg.Data) {
			shared = shared || l.Device() == w.Card
		}
		if shared {
			c.wrong(raw.WAN.items[i].PPPoE.MTU.at, "%d needs frames of %d bytes on %s, which carries another network "+
				"untagged (allowed: up to %d there)", w.PPPoE.MTU, jumboFrame, w.Card, pppoeMTU)
		}
	}
}

// accessOverhead counts the headers that this box adds below what the kernel's queues see, unless the config says how
// much there is. Links that stand for another access than Ethernet's are taken at their word.
func accessOverhead(r rawWAN, w *WAN) {
	if w.PPPoE != nil && (w.LinkMTU == 0 || w.PPPoE.MTU < w.LinkMTU) {
		w.LinkMTU = w.PPPoE.MTU
	}
	link := r.Link.text
	if r.Overhead.set || slices.Contains([]string{"ip", "conservative"}, link) ||
		strings.HasPrefix(link, "pppoa-") || strings.HasPrefix(link, "ipoa-") {
		return
	}
	if w.VLAN != 0 && link != "vlan" {
		w.LinkLayer.Overhead += tagBytes
	}
	if w.PPPoE != nil && !strings.HasPrefix(link, "pppoe-") {
		w.LinkLayer.Overhead += pppoeHeaders
	}
}
