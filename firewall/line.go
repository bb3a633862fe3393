package firewall

import "ringway/qos"

// A connection goes on by the WAN by which it began: its NAT address is of that one, and another provider drops it
// (BCP 38), or the far end does not know it. The mark of the connection holds the line, and the packets of LANs and of
// the box itself get it before they are routed. The rule that reads it comes behind the guard, so that no mark leads
// what is meant for a site or for a LAN out of a WAN; where the line has no carrier, the rule leads nowhere and the
// default route decides.

// ownMark is Ringway's part of the packets' marks.
func (p *plan) ownMark() qos.Mark {
	if len(p.Lines) == 0 {
		return qos.MarkAll
	}
	return qos.MarkAll | qos.MarkLineMask
}

// keepLine gives the packet the line of its connection.
func (p *plan) keepLine(match ...statement) []Rule {
	if len(p.Lines) == 0 {
		return nil
	}
	return one(append(match, markHas("ct", qos.MarkLineMask), jump("line"))...)
}

// followLine does so for packets of LANs. Of a connection that begins on a WAN the answers leave by that one.
func (p *plan) followLine() []Rule {
	if len(p.Lines) == 0 {
		return nil
	}
	var keep, arrived []Rule
	for _, l := range p.Lines {
		keep = append(keep, rule(markIs("ct", qos.MarkLineMask, l.Mark), markOr("meta", l.Mark), leave))
		arrived = append(arrived, rule(iif(l.Device), markReplace("ct", qos.MarkLineMask, l.Mark)))
	}
	p.chain("line", keep)
	p.chain("line_arrived", arrived)
	return append(p.keepLine(iifIn("lan")),
		rule(iifIn("wan"), markIs("ct", qos.MarkLineMask, 0), jump("line_arrived")))
}

// noteLine remembers by which line a connection leaves now. One that NAT does not translate may have moved.
func (p *plan) noteLine() (rules []Rule) {
	for _, l := range p.Lines {
		rules = append(rules, rule(oif(l.Device), markIsNot("ct", qos.MarkLineMask, l.Mark),
			markReplace("ct", qos.MarkLineMask, l.Mark)))
	}
	return rules
}

// markHas matches where one of the bits is set.
func markHas(key string, mask qos.Mark) statement {
	return func(l *line) {
		l.say("%s mark & 0x%x != 0x0", key, uint32(mask))
		l.add(Expr{Op: key, Key: "mark", Reg: 1}, and(host32(uint32(mask)), host32(0)), cmp("neq", host32(0)))
	}
}

func markIsNot(key string, mask, value qos.Mark) statement {
	return func(l *line) {
		l.say("%s mark & 0x%x != 0x%x", key, uint32(mask), uint32(value))
		l.add(Expr{Op: key, Key: "mark", Reg: 1}, and(host32(uint32(mask)), host32(0)),
			cmp("neq", host32(uint32(value))))
	}
}
