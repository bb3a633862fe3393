package config

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"ringway/qos"
)

// DefaultClasses is what a file without classes gets, in order of urgency.
func DefaultClasses() []qos.Class {
	return []qos.Class{
		{
			Name:      qos.Media,
			DSCP:      dscps("EF"),
			Outer:     46,
			Share:     30,
			Limit:     20 * time.Millisecond,
			FlowLimit: 256 * qos.Kbit,
			Admission: true,
		},
		{Name: qos.Signalling, DSCP: dscps("CS3", "CS5", "AF31"), Outer: 24, Share: 10, Limit: 100 * time.Millisecond,
			Ports: ports("udp/5060", "tcp/5060", "tcp/5061")},
		{Name: qos.Data, Outer: 0, Share: 50, Limit: 50 * time.Millisecond,
			Ports: ports("udp/67", "udp/53", "tcp/53", "udp/123", "tcp/80", "tcp/443", "udp/69", "tcp/389", "tcp/636")},
		{Name: qos.Background, DSCP: dscps("CS1", "LE"), Outer: 8, Share: 5, Limit: 200 * time.Millisecond},
	}
}

func dscps(names ...string) []qos.DSCP {
	var out []qos.DSCP
	for _, n := range names {
		d, err := qos.ParseDSCP(n)
		if err != nil {
			panic(err) // a constant of DefaultClasses is wrong
		}
		out = append(out, d)
	}
	return out
}

func ports(texts ...string) []qos.PortMatch {
	var out []qos.PortMatch
	for _, t := range texts {
		p, ok := parsePorts(t)
		if !ok {
			panic("no port: " + t) // a constant of DefaultClasses is wrong
		}
		out = append(out, p)
	}
	return out
}

var portForm = regexp.MustCompile(`^(udp|tcp)/([1-9][0-9]{0,4})(?:-([1-9][0-9]{0,4}))?$`)

func parsePorts(s string) (qos.PortMatch, bool) {
	m := portForm.FindStringSubmatch(s)
	if m == nil {
		return qos.PortMatch{}, false
	}
	low, _ := strconv.Atoi(m[2]) // the form says digits
	high := low
	if m[3] != "" {
		high, _ = strconv.Atoi(m[3])
	}
	if low > high || high > 65535 {
		return qos.PortMatch{}, false
	}
	return qos.PortMatch{Protocol: qos.Protocol(m[1]), Low: uint16(low), High: uint16(high)}, true
}

// placedPorts and placedClass keep positions for the checks across classes.
type placedPorts struct {
	at
	qos.PortMatch
	class qos.ClassName
}

type dscpUse struct {
	at
	class qos.ClassName
}

func (c *checker) classes(raw *rawFile, cfg *Config) {
	cfg.Classes = DefaultClasses()
	names := make([]string, len(qos.ClassNames))
	given := map[qos.ClassName]*rawClass{}
	for i, n := range qos.ClassNames {
		names[i] = string(n)
	}
	for i := range raw.Classes.items {
		r := &raw.Classes.items[i]
		c.need(r.at, r.Name, "name", strings.Join(names, ", "))
		name := c.choice(r.Name, "", names...)
		pos := slices.Index(names, name)
		if first := given[qos.ClassName(name)]; first != nil && name != "" {
			c.wrong(r.Name.at, "%q is given twice (first on line %d)", name, first.Name.line)
			pos = -1
		}
		var spare qos.Class // of a class that is none: its values are checked all the same
		target := &spare
		if pos >= 0 {
			target, given[qos.ClassName(name)] = &cfg.Classes[pos], r
		}
		c.class(r, target)
	}
	c.distinctDSCP(cfg, given)
	c.distinctPorts(cfg, given)
	c.shares(raw, cfg, given)
}

// leastFlow is a call of G.711 with SRTP over IPv6, 92 kbit/s (222 bytes 50 times a second), and its RTCP
// where that shares the port.
const leastFlow = 100 * qos.Kbit

func (c *checker) class(r *rawClass, cl *qos.Class) {
	if r.DSCP.set {
		cl.DSCP = nil
	}
	for _, s := range r.DSCP.items {
		if d, ok := c.dscp(s); ok {
			cl.DSCP = append(cl.DSCP, d)
		}
	}
	if d, ok := c.dscp(r.Outer); ok {
		cl.Outer = d
	}
	cl.Share = c.integer(r.Share, cl.Share, 1, 95)
	cl.Limit = c.duration(r.Limit, cl.Limit, time.Millisecond, 2*time.Second, time.Millisecond,
		"1ms to 2s in whole milliseconds, like 20ms")
	if r.Ports.set {
		cl.Ports = c.portList(r.Ports)
	}
	switch {
	case !r.FlowLimit.ok():
	case cl.Name != qos.Media:
		c.wrong(
			r.FlowLimit.at,
			"flow_limit applies to media only: no single rate suits the flows of another class (allowed: omit it)",
		)
	case r.FlowLimit.text == "none":
		cl.FlowLimit = 0
	default:
		if cl.FlowLimit = c.rate(r.FlowLimit); cl.FlowLimit > 0 && cl.FlowLimit < leastFlow {
			c.wrong(
				r.FlowLimit.at,
				"%s is less than one call of G.711 sends (allowed: at least %s, or none)",
				show(r.FlowLimit.text),
				leastFlow,
			)
		}
	}
	if admission := c.yesNo(r.Admission, cl.Admission); cl.Name == qos.Media {
		cl.Admission = admission
	} else if r.Admission.ok() {
		c.wrong(r.Admission.at, "admission applies to media only: other classes carry no calls (allowed: omit it)")
	}
}

func (c *checker) portList(l scalars) (out []qos.PortMatch) {
	for _, s := range l.items {
		if !s.ok() {
			continue
		}
		if p, ok := parsePorts(s.text); ok {
			out = append(out, p)
		} else {
			c.wrong(s.at, "%s is not a port (allowed: udp/ or tcp/ with 1 to 65535, like udp/5060 or udp/16384-32767)",
				show(s.text))
		}
	}
	return out
}

func (c *checker) dscp(s scalar) (qos.DSCP, bool) {
	if !s.ok() {
		return 0, false
	}
	d, err := qos.ParseDSCP(s.text)
	if err != nil {
		c.wrong(s.at, "%s is not a DSCP (allowed: EF, VA, CS0-CS7, AF11-AF43, DF, LE or 0-63)", show(s.text))
		return 0, false
	}
	return d, true
}

// distinctDSCP: a code point that two classes are known by would make the class a matter of rule order.
func (c *checker) distinctDSCP(cfg *Config, given map[qos.ClassName]*rawClass) {
	seen := map[qos.DSCP]dscpUse{}
	for _, cl := range cfg.Classes {
		for i, d := range cl.DSCP {
			use := dscpUse{class: cl.Name}
			if r := given[cl.Name]; r != nil && r.DSCP.set {
				use.at = r.DSCP.at
				if len(r.DSCP.items) == len(cl.DSCP) {
					use.at = r.DSCP.items[i].at
				}
			}
			first, dup := seen[d]
			if !dup {
				seen[d] = use
				continue
			}
			if use.line < first.line || use.key == "" {
				first, use = use, first
			}
			c.wrong(
				use.at,
				"%s already belongs to %s (allowed: each DSCP in one class)",
				d,
				byDefault(string(first.class), first.key),
			)
		}
	}
}

func byDefault(name, key string) string {
	if key == "" {
		return name + " by default"
	}
	return name
}

func (c *checker) distinctPorts(cfg *Config, given map[qos.ClassName]*rawClass) {
	var all []placedPorts
	for _, cl := range cfg.Classes {
		for i, p := range cl.Ports {
			pp := placedPorts{PortMatch: p, class: cl.Name}
			if r := given[cl.Name]; r != nil && r.Ports.set {
				pp.at = r.Ports.at
				if len(r.Ports.items) == len(cl.Ports) {
					pp.at = r.Ports.items[i].at
				}
			}
			for _, o := range all { // at most 4 times maxWords
				if o.Protocol != p.Protocol || o.High < p.Low || p.High < o.Low {
					continue
				}
				first, second := o, pp
				if second.line < first.line || second.key == "" {
					first, second = second, first
				}
				c.wrong(
					second.at,
					"%s overlaps %s of %s (allowed: each port in one class)",
					second.PortMatch,
					first.PortMatch,
					byDefault(string(first.class), first.key),
				)
			}
			all = append(all, pp)
		}
	}
}

// shares are guarantees: together they cannot be more than there is.
func (c *checker) shares(raw *rawFile, cfg *Config, given map[qos.ClassName]*rawClass) {
	sum, parts := 0, []string(nil)
	pos := raw.Classes.at
	for _, cl := range cfg.Classes {
		sum += cl.Share
		part := fmt.Sprintf("%s %d", cl.Name, cl.Share)
		if r := given[cl.Name]; r == nil || !r.Share.set {
			part += " by default"
		} else if r.Share.line > pos.line || pos.key == "classes" {
			pos = r.Share.at
		}
		parts = append(parts, part)
	}
	if sum > 100 {
		c.wrong(pos, "the shares add up to %d: %s (allowed: up to 100 together)", sum, strings.Join(parts, ", "))
	}
}
