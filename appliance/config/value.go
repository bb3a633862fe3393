package config

import (
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"ringway/qos"
	"ringway/units"
)

var decimal = regexp.MustCompile(`^(0|-?[1-9][0-9]{0,9})$`)

// integer reads a whole number; def where the key is not there.
func (c *checker) integer(s scalar, def, low, high int) int {
	if !s.ok() {
		return def
	}
	if !decimal.MatchString(s.text) {
		c.wrong(s.at, "%s is not an integer (allowed: %d to %d, decimal, no leading zero)", show(s.text), low, high)
		return def
	}
	n, err := strconv.Atoi(s.text)
	if err != nil || n < low || n > high {
		c.wrong(s.at, "%s is out of range (allowed: %d to %d)", s.text, low, high)
		return def
	}
	return n
}

func (c *checker) port(s scalar, def uint16) uint16 {
	return uint16(c.integer(s, int(def), 1, 65535))
}

var bareNumber = regexp.MustCompile(`^[0-9]+(\.[0-9]+)?$`)

// rate reads a bit rate, which must carry its unit: a bare 20 would be 20 bits a second.
func (c *checker) rate(s scalar) qos.BitRate {
	if !s.ok() {
		return 0
	}
	if bareNumber.MatchString(s.text) {
		c.wrong(s.at, "%s has no unit (allowed: kbit, mbit or gbit, like 20mbit)", show(s.text))
		return 0
	}
	r, err := units.ParseBitRate(s.text)
	if err != nil {
		c.wrong(
			s.at,
			"%s is not a rate within range (allowed: 64kbit to 100gbit, like 20mbit or 1.5mbit)",
			show(s.text),
		)
		return 0
	}
	return r
}

// duration reads a time with its unit, a multiple of step from low to high; allowed says so in words.
func (c *checker) duration(s scalar, def, low, high, step time.Duration, allowed string) time.Duration {
	if !s.ok() {
		return def
	}
	if bareNumber.MatchString(s.text) {
		c.wrong(s.at, "%s has no unit (allowed: %s)", show(s.text), allowed)
		return def
	}
	d, err := time.ParseDuration(s.text)
	switch {
	case err != nil:
		c.wrong(s.at, "%s is not a duration (allowed: %s)", show(s.text), allowed)
		return def
	case d < low || d > high || d%step != 0:
		c.wrong(s.at, "%s is out of range (allowed: %s)", show(s.text), allowed)
		return def
	}
	return d
}

// choice reads one of a few words.
func (c *checker) choice(s scalar, def string, allowed ...string) string {
	if !s.ok() {
		return def
	}
	if !slices.Contains(allowed, s.text) {
		c.wrong(s.at, "%s is not known (allowed: %s)", show(s.text), strings.Join(allowed, ", "))
		return def
	}
	return s.text
}

// yesNo reads true or false. YAML 1.1's other words for them mean text in 1.2: they are refused rather than
// guessed.
func (c *checker) yesNo(s scalar, def bool) bool {
	if !s.ok() {
		return def
	}
	if s.text != "true" && s.text != "false" {
		c.wrong(s.at, "%s is neither true nor false (allowed: true, false)", show(s.text))
		return def
	}
	return s.text == "true"
}

var siteName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func (c *checker) siteName(s scalar) string {
	if !s.ok() {
		return ""
	}
	if !siteName.MatchString(s.text) {
		c.wrong(
			s.at,
			"%s is not a valid site name (allowed: 1 to 63 of a-z, 0-9 and -, not first or last)",
			show(s.text),
		)
		return ""
	}
	return s.text
}

const maxInterface = 15 // IFNAMSIZ less the closing zero

var interfaceName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]*$`)

// netdev reads the name of a network interface. The kernel takes more characters, but sysctl, nft and tc
// would each need them quoted in another way.
func (c *checker) netdev(s scalar) string {
	if !s.ok() {
		return ""
	}
	switch {
	case len(s.text) > maxInterface:
		c.wrong(
			s.at,
			"%s is too long for an interface name: %d bytes (allowed: 1 to %d)",
			show(s.text),
			len(s.text),
			maxInterface,
		)
	case !interfaceName.MatchString(s.text):
		c.wrong(
			s.at,
			"%s is not a valid interface name (allowed: letters, digits, _ . and -, not - or . first)",
			show(s.text),
		)
	case slices.Contains([]string{"lo", "all", "default"}, s.text):
		c.wrong(s.at, "%s is reserved by the kernel (allowed: another interface)", show(s.text))
	default:
		return s.text
	}
	return ""
}

// prefix reads what both networks and addresses are: an address with its length.
func (c *checker) prefix(s scalar) (netip.Prefix, bool) {
	if !s.ok() {
		return netip.Prefix{}, false
	}
	p, err := netip.ParsePrefix(s.text)
	if err == nil && !p.Addr().Is4In6() {
		return p, true
	}
	if a, aerr := netip.ParseAddr(s.text); aerr == nil && a.Zone() == "" && !a.Is4In6() {
		example := 24
		if a.Is6() {
			example = 64
		}
		c.wrong(s.at, "%s has no prefix length (allowed: with its length, like %s/%d)", show(s.text), a, example)
		return netip.Prefix{}, false
	}
	c.wrong(s.at, "%s is not an IP network (allowed: like 10.1.10.1/24 or 2001:db8:1:10::1/64)", show(s.text))
	return netip.Prefix{}, false
}

// addresses reads own addresses with prefix length, of which at most narrow4 or narrow6 bits are the network's.
func (c *checker) addresses(l scalars, narrow4, narrow6 int) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range l.items {
		p, ok := c.prefix(s)
		if !ok || !c.usable(s, p.Addr()) {
			continue
		}
		widest, narrowest := 8, narrow4
		if p.Addr().Is6() {
			widest, narrowest = 16, narrow6
		}
		switch {
		case p.Bits() < widest || p.Bits() > narrowest:
			c.wrong(s.at, "%s has a prefix length out of range (allowed: /%d to /%d)", p, widest, narrowest)
		case p.Addr().Is4() && p.Bits() <= 30 && p.Addr() == p.Masked().Addr():
			c.wrong(s.at, "%s is the network's own address (allowed: a host's, like %s/%d)", p, p.Addr().Next(), p.Bits())
		case p.Addr().Is4() && p.Bits() <= 30 && !p.Contains(p.Addr().Next()):
			c.wrong(
				s.at,
				"%s is the network's broadcast address (allowed: a host's, like %s/%d)",
				p,
				p.Addr().Prev(),
				p.Bits(),
			)
		case slices.ContainsFunc(out, func(o netip.Prefix) bool { return o.Addr() == p.Addr() }):
			c.wrong(s.at, "%s is given twice (allowed: once)", p.Addr())
		default:
			out = append(out, p)
		}
	}
	return out
}

// usable refuses addresses that no host on a network can have.
func (c *checker) usable(s scalar, a netip.Addr) bool {
	what := ""
	switch {
	case a.IsUnspecified():
		what = "unspecified"
	case a.IsLoopback():
		what = "a loopback address"
	case a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		what = "not a unicast address"
	case a.IsLinkLocalUnicast():
		what = "link-local"
	default:
		return true
	}
	c.wrong(s.at, "%s is %s (allowed: a unicast address that routers forward)", a, what)
	return false
}

// networks reads prefixes without host bits.
func (c *checker) networks(l scalars) []placedNet {
	var out []placedNet
	for _, s := range l.items {
		p, ok := c.prefix(s)
		switch {
		case !ok:
		case p != p.Masked():
			c.wrong(s.at, "%s has host bits set (allowed: the network, %s)", p, p.Masked())
		case p.Bits() == 0:
			c.wrong(s.at, "%s covers all addresses (allowed: the site's own networks)", p)
		case c.usable(s, p.Addr()):
			out = append(out, placedNet{at: s.at, prefix: p})
		}
	}
	return out
}

func prefixes(nets []placedNet) []netip.Prefix {
	var out []netip.Prefix
	for _, n := range nets {
		out = append(out, n.prefix)
	}
	return out
}
