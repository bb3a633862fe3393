package admission

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"ringway/qos"
	"ringway/sip/dialog"
	"ringway/tunnel"
)

// World is where media may go from this branch, and what they may take on the way.
type World struct {
	// Own are the networks of this branch, with its own addresses on the WANs: a phone that asked a STUN
	// server describes itself with those.
	Own   []netip.Prefix
	Lines []Line
	Sites []Site
}

// Line is a WAN.
type Line struct {
	Name string
	// Pool is what calls with all sites together may take (qos.Budgets.Pool), in bits a second on the
	// provider's meter. 0: each site has its budget for itself.
	Pool qos.BitRate
	// Out and In are for calls that go to no site (qos.Budgets.Local), sent and received. Their packets are
	// counted without a tunnel around them. Rate 0: no bound.
	Out, In qos.Budget
	// Networks are destinations outside all tunnels that are reached over this line. What is in no line's
	// networks is reached over the first line.
	Networks []netip.Prefix
}

// Site is a peer with a tunnel.
type Site struct {
	Name     string
	Key      tunnel.PublicKey
	Networks []netip.Prefix
	Line     int // index into Lines of the one that leads there

	// Ringway: the far end guards what it sends. Else both directions are reckoned here.
	Ringway bool
	// Out is for what is sent to the site, In for what comes from it where that is reckoned here. Rate 0: no
	// bound. CallIPv6 and SRTP are each call's own.
	Out, In qos.Budget
	// Other is what flows take of Out that no signalling explains, as the engine sees them: phones whose
	// signalling is not read.
	Other qos.BitRate
}

// Where is one budget: of a site, or of a line for what goes to no site, in one direction. With neither a
// site nor Internet it is the pool of a line.
type Where struct {
	Site     string `json:"site,omitempty"`
	Line     string `json:"line,omitempty"`
	Internet bool   `json:"internet,omitempty"`
	Inbound  bool   `json:"inbound,omitempty"`
}

// account is what was taken of one budget.
type account struct {
	Where
	key    tunnel.PublicKey // of the site
	budget qos.Budget
	limit  qos.BitRate // for RTP, bits a second; without a rate in budget there is no bound
	other  qos.BitRate // taken by what no signalling explains
	taken  qos.BitRate
	places int
	pool   *account // that counts as well; nil: none
	costs  map[packets]qos.BitRate
}

func newAccount(w Where, b qos.Budget, pool *account) *account {
	return &account{Where: w, budget: b, limit: b.RTP(), pool: pool}
}

// bounded reports whether there is a budget at all.
func (a *account) bounded() bool { return a.budget.Rate > 0 }

// cost is what a stream takes here at most, in bits a second on the provider's meter.
func (a *account) cost(s *dialog.Stream) (rate qos.BitRate) {
	for _, c := range s.Codecs {
		p := packets{c.Payload, c.Interval, isIPv6(s), srtpOf(s)}
		known, ok := a.costs[p]
		if !ok {
			known = a.reckon(c, p)
			if a.costs == nil || len(a.costs) >= maxCosts {
				a.costs = map[packets]qos.BitRate{}
			}
			a.costs[p] = known
		}
		rate = max(rate, known)
	}
	return rate
}

// packets are what the cost of a stream depends on in one account.
type packets struct {
	payload  qos.ByteCount
	interval time.Duration
	ipv6     bool
	srtp     qos.ByteCount // what it adds to each
}

// srtpOf is what SRTP adds to each packet of a stream.
func srtpOf(s *dialog.Stream) qos.ByteCount {
	switch {
	case !s.SRTP:
		return 0
	case s.Overhead > 0:
		return qos.ByteCount(s.Overhead)
	}
	return qos.SRTPTag
}

// maxCosts bounds the costs that an account remembers: there are few codecs, and each step of qos.Budget is
// made again for each.
const maxCosts = 64

func (a *account) reckon(c qos.Codec, p packets) qos.BitRate {
	b := a.budget
	b.CallIPv6, b.SRTP = p.ipv6, max(b.SRTP, p.srtp)
	if a.Internet {
		return untunnelled(b, c)
	}
	return b.Call(c)
}

// untunnelled is qos.Budget.Call for packets without a tunnel around them.
func untunnelled(b qos.Budget, c qos.Codec) qos.BitRate {
	steps := b.Steps(c)
	padding := slices.IndexFunc(steps, func(s qos.Step) bool { return s.Name == "padding" })
	packet := steps[padding-1].Total
	if b.Wire != nil {
		packet = b.Wire(packet)
	}
	const second = 1e9
	interval := uint64(c.Interval)
	return qos.BitRate((uint64(packet)*8*second + interval - 1) / interval)
}

// isIPv6 reports the family of a stream's packets, as far as it is known.
func isIPv6(s *dialog.Stream) bool {
	for _, a := range []netip.Addr{s.From.Addr(), s.To.Addr(), s.ToHop, s.FromHop} {
		if a.IsValid() {
			return a.Is6()
		}
	}
	return false
}

// kind is what an address belongs to.
type kind uint8

const (
	nowhere kind = iota
	own
	site
	internet
)

// location is where an address is. index is that of the site, or of the line that leads there.
type location struct {
	kind
	index int
}

// world is a World to look things up in.
type world struct {
	networks map[netip.Prefix]location
	lengths  [2][]int // of prefixes in networks by family, the longest first
	sites    []accounts
	lines    []accounts
	all      []*account // in the order of the configuration
}

// accounts are those of a site, or of a line for the internet. in is nil where the far end guards itself.
type accounts struct{ out, in *account }

func compile(w World) *world {
	c := &world{networks: map[netip.Prefix]location{}}
	pools := make([]*account, len(w.Lines))
	for i, l := range w.Lines {
		if l.Pool > 0 {
			pools[i] = newAccount(Where{Line: l.Name}, qos.Budget{Rate: l.Pool}, nil)
			c.all = append(c.all, pools[i])
		}
		at := Where{Line: l.Name, Internet: true}
		out := newAccount(at, l.Out, nil)
		at.Inbound = true
		in := newAccount(at, l.In, nil)
		c.lines = append(c.lines, accounts{out, in})
		c.all = append(c.all, out, in)
	}
	for i := range w.Sites {
		c.addSite(&w.Sites[i], w.Lines, pools)
	}

	c.add(location{kind: own}, w.Own)
	for i, s := range w.Sites {
		c.add(location{site, i}, s.Networks)
	}
	for i, l := range w.Lines {
		c.add(location{internet, i}, l.Networks)
	}
	for _, lengths := range c.lengths {
		slices.SortFunc(lengths, func(a, b int) int { return cmp.Compare(b, a) })
	}
	return c
}

func (c *world) addSite(s *Site, lines []Line, pools []*account) {
	at, pool := Where{Site: s.Name}, (*account)(nil)
	if s.Line >= 0 && s.Line < len(lines) {
		at.Line, pool = lines[s.Line].Name, pools[s.Line]
	}
	a := accounts{out: newAccount(at, s.Out, pool)}
	a.out.key, a.out.other = s.Key, s.Other
	if pool != nil {
		pool.other += s.Other
	}
	c.all = append(c.all, a.out)
	if !s.Ringway {
		at.Inbound = true
		a.in = newAccount(at, s.In, nil)
		c.all = append(c.all, a.in)
	}
	c.sites = append(c.sites, a)
}

// add has networks belong to a location, unless they belong to another one already.
func (c *world) add(l location, networks []netip.Prefix) {
	for _, p := range networks {
		p = p.Masked()
		if _, has := c.networks[p]; has || !p.IsValid() {
			continue
		}
		c.networks[p] = l
		lengths := &c.lengths[family(p.Addr())]
		if !slices.Contains(*lengths, p.Bits()) {
			*lengths = append(*lengths, p.Bits())
		}
	}
}

func family(a netip.Addr) int {
	if a.Is6() {
		return 1
	}
	return 0
}

// find looks an address up in the networks that are known.
func (c *world) find(a netip.Addr) (l location, ok bool) {
	for _, bits := range c.lengths[family(a)] {
		p, err := a.Prefix(bits)
		if err != nil {
			continue
		}
		if l, ok = c.networks[p]; ok {
			return l, true
		}
	}
	return l, false
}

// locate is where an end of a stream is. Its hop decides for an end without an address, and for one whose
// private address is in no network here: it is behind somebody's NAT, and its packets come from where its
// signalling does. What is in no network at all is reached over the first line.
func (c *world) locate(end, hop netip.Addr) (l location) {
	for _, a := range []netip.Addr{end.Unmap(), hop.Unmap()} {
		if !a.IsValid() || a.IsLoopback() || a.IsLinkLocalUnicast() {
			continue
		}
		if l, ok := c.find(a); ok {
			return l
		}
		if len(c.lines) > 0 {
			l = location{kind: internet}
		}
		if !a.IsPrivate() {
			return l
		}
	}
	return l
}

// charged are the accounts that media from one place to another pass through here: each end guards what it
// sends, and what comes from an end that does not guard itself is reckoned here. Media within one place, and
// from the internet to the internet, do not pass here.
func (c *world) charged(from, to location) (all [2]*account) {
	if from.kind == nowhere || to.kind == nowhere || from == to || from.kind == internet && to.kind == internet {
		return all
	}
	switch to.kind {
	case site:
		all[0] = c.sites[to.index].out
	case internet:
		all[0] = c.lines[to.index].out
	}
	switch from.kind {
	case site:
		all[1] = c.sites[from.index].in
	case internet:
		all[1] = c.lines[from.index].in
	}
	return all
}

// account finds the one of the same name; nil if there is none any more.
func (c *world) account(w Where) *account {
	for _, a := range c.all {
		if a.Where == w {
			return a
		}
	}
	return nil
}
