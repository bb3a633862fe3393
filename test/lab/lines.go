package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"ringway/qos"
	"ringway/test/lab/host"
	"ringway/test/lab/provider"
	"ringway/test/lab/report"
	"ringway/test/lab/twice"
)

// With lines, berlin's edge is joined to the provider by hosts of their own, each a network with its own
// bottleneck, delay and loss:
//
//	       wan0 198.51.100.2 --- line-wan0 ---.
//	edge-a                                     provider --- edge-b
//	       wan1 192.0.2.2    --- line-wan1 ---'
//
// A line drops what comes from the edge without an address of the line (BCP 38), and counts it. Munich's own line
// has no bottleneck.

// lineNames are the edge's devices.
var lineNames = [...]string{"wan0", "wan1"}

// MaxLines bounds Options.Lines.
const MaxLines = len(lineNames)

// secondWAN is the network of wan1; that of wan0 is the side's own.
var secondWAN = lan{
	"192.0.2.0/24",
	"2001:db8:c::/64",
	"192.0.2.2",
	"2001:db8:c::2",
	"192.0.2.1",
	"2001:db8:c::1",
}

// The devices of a line's host, named as the provider's process expects them.
var lineNear, lineFar = sides[0].provider, sides[1].provider

// line is one of berlin's.
type line struct {
	*host.Host        // between the edge and the provider
	device     string // the edge's
	net        lan
	number     int
	family     Family // of the WAN
	buffer     int    // bytes in its FIFO
	state      lineState
	seen       lineState // as the kernel has it
}

// lineState is what events change.
type lineState struct {
	cut, hole bool
	loss      float64
	rate      qos.BitRate // of the bottleneck; 0: there is none
}

// lineCount is how many the pair has; 0: the lab is one without lines.
func (p *Pair) lineCount() int {
	if p.Name == Single {
		return min(1, p.lab.Options.Lines)
	}
	return p.lab.Options.Lines
}

// lineNet is the network of a line.
func lineNet(i int) lan {
	if i == 0 {
		return sides[0].wan
	}
	return secondWAN
}

// link are the addresses between a line's host and the provider, which no other host sees.
func (l *line) link() lan {
	return lan{
		edge: fmt.Sprintf("100.64.%d.2", l.number), edge6: fmt.Sprintf("fd00:64:%d::2", l.number),
		remote: fmt.Sprintf("100.64.%d.1", l.number), remote6: fmt.Sprintf("fd00:64:%d::1", l.number),
	}
}

// newLine builds a line and joins it to the edge and the provider. There is no bottleneck yet.
func (p *Pair) newLine(ctx context.Context, number int) (*line, error) {
	l := &line{device: lineNames[number], number: number, net: lineNet(number), family: p.outer()}
	l.state.rate, l.buffer = p.lab.Options.WAN, int(p.lab.Options.Buffer)
	l.seen.rate = l.state.rate
	var err error
	if l.Host, err = p.lab.world.NewHost("line-" + l.device); err != nil {
		return nil, err
	}
	p.lines = append(p.lines, l)
	if err := l.Do(quietIPv6); err != nil {
		return nil, fmt.Errorf("prepare host %s: %w", l.Name, err)
	}
	core, link := p.Host(Provider), l.link()
	if err := l.IP(ctx, p.Host(EdgeA),
		"link set lo up", "link add "+lineNear+" type veth peer name "+l.device+" netns /proc/self/fd/3",
		"link set "+lineNear+" up"); err != nil {
		return nil, err
	}
	if err := l.IP(ctx, core,
		"link add "+lineFar+" type veth peer name "+l.Name+" netns /proc/self/fd/3", "link set "+lineFar+" up"); err != nil {
		return nil, err
	}
	near, far := l.addresses(), []string{"link set " + l.Name + " up"}
	for _, f := range families(l.family) {
		n, near2 := l.net.of(f), link.of(f)
		near = append(near, "addr add "+near2.edge+near2.length+" dev "+lineFar+near2.flags,
			"route add default via "+near2.remote)
		far = append(far, "addr add "+near2.remote+near2.length+" dev "+l.Name+near2.flags)
		far = append(far, "route add "+n.network+" via "+near2.edge)
	}
	if err := core.IP(ctx, nil, far...); err != nil {
		return nil, err
	}
	return l, l.IP(ctx, nil, near...)
}

// addresses are lines of ip(8): those towards the edge. The kernel removes IPv6's when the cable is pulled.
func (l *line) addresses() []string {
	var lines []string
	for _, f := range families(l.family) {
		n := l.net.of(f)
		lines = append(lines, "addr replace "+n.remote+n.length+" dev "+lineNear+n.flags)
	}
	return lines
}

// provideLines starts the bottleneck of each line and lets the provider forward between them.
func (p *Pair) provideLines(ctx context.Context) error {
	if err := p.Host(Provider).Do(forward); err != nil {
		return err
	}
	o := p.lab.Options
	for _, l := range p.lines {
		if _, err := p.provideAt(l.Host, provider.Config{
			RateBits: uint64(o.WAN), BufferBytes: int(o.Buffer), Wire: o.Wire, Delay: o.Delay, Loss: o.Loss,
			Seed: o.Seed + uint64(l.number)<<32,
		}); err != nil {
			return err
		}
		if err := l.filter(ctx); err != nil {
			return err
		}
		if err := neighbour(ctx, p.Host(EdgeA), l.device, l.Host, lineNear, l.net.of(p.outer()).edge); err != nil {
			return err
		}
	}
	return neighbour(ctx, p.Host(EdgeB), "wan0", p.Host(Provider), lineFar, sides[1].wan.of(p.outer()).edge)
}

// filter has the line's host drop what the state says. It replaces the rules in one transaction.
func (l *line) filter(ctx context.Context) error {
	var drops []string
	for _, device := range []string{lineNear, lineFar} {
		switch {
		case l.state.hole:
			drops = append(drops, "iifname "+device+" drop")
		case l.state.loss > 0:
			drops = append(drops, fmt.Sprintf("iifname %s numgen random mod 1000000 < %.0f drop", device, l.state.loss*1e6))
		}
	}
	var own []string // BCP 38
	for _, f := range families(l.family) {
		match := map[Family]string{IPv4: "ip", IPv6: "ip6"}[f]
		own = append(own, fmt.Sprintf("iifname %s %s saddr != %s counter drop", lineNear, match, l.net.of(f).network))
	}
	_, err := l.RunInput(ctx, fmt.Sprintf(`add table inet line
delete table inet line
table inet line {
	chain forward {
		type filter hook forward priority 0;
		%s
	}
}
`, strings.Join(append(own, drops...), "\n\t\t")), "nft", "-f", "-")
	return err
}

// change has something happen to a line. A pair without this line is left alone.
func (p *Pair) change(ctx context.Context, device string, change func(*lineState)) error {
	for _, l := range p.lines {
		if l.device == device {
			change(&l.state)
			if err := l.apply(ctx); err != nil {
				return fmt.Errorf("%s: %w", p.Name, err)
			}
		}
	}
	return nil
}

// apply makes the line what its state says.
func (l *line) apply(ctx context.Context) error {
	now, was := l.state, l.seen
	if now.cut != was.cut {
		lines := []string{"link set " + lineNear + " down"}
		if !now.cut {
			lines = append([]string{"link set " + lineNear + " up"}, l.addresses()...)
		}
		if err := l.IP(ctx, nil, lines...); err != nil {
			return err
		}
	}
	if now.hole != was.hole || now.loss != was.loss {
		if err := l.filter(ctx); err != nil {
			return err
		}
	}
	if now.rate != was.rate {
		c := provider.Config{RateBits: uint64(now.rate), BufferBytes: l.buffer}
		if err := provider.SetRate(ctx, l.NetPath(), [2]string{lineNear, lineFar}, c); err != nil {
			return err
		}
	}
	l.seen = now
	return nil
}

// happen changes the lines of all pairs at the times of the options' events, counted from begin, until ctx ends. It
// returns what happened, and when it began to.
func (l *Lab) happen(ctx context.Context, begin time.Time) ([]report.Event, error) {
	var events []report.Event
	for _, s := range timeline(l.Options.Events, l.Options.WAN, l.Options.Duration) {
		if host.Pause(ctx, time.Until(begin.Add(s.at))) != nil {
			return events, nil // the calls are over
		}
		if s.what != "" {
			events = append(events, report.Event{At: time.Since(begin).Seconds(), What: s.what})
			l.show.note("%s", s.what)
		}
		g, gctx := errgroup.WithContext(ctx)
		for _, p := range l.pairs {
			g.Go(func() error { return p.change(gctx, s.line, s.change) })
		}
		if err := g.Wait(); err != nil {
			if ctx.Err() != nil {
				return events, nil
			}
			return events, fmt.Errorf("%s: %w", s.what, err)
		}
	}
	return events, nil
}

// carried reads what the edge sent and received by each of its lines so far.
func (p *Pair) carried() (out []report.LineBytes, err error) {
	for _, l := range p.lines {
		b := report.LineBytes{Line: l.device}
		for name, into := range map[string]*uint64{"tx_bytes": &b.Sent, "rx_bytes": &b.Received} {
			if *into, err = p.Host(EdgeA).Counter(l.device, name); err != nil {
				return nil, err
			}
		}
		out = append(out, b)
	}
	return out, nil
}

// since is what passed between two readings.
func since(before, after []report.LineBytes) []report.LineBytes {
	for i := range after {
		after[i].Sent -= before[i].Sent
		after[i].Received -= before[i].Received
	}
	return after
}

// Line is the host of one of berlin's lines; it panics for an unknown name.
func (p *Pair) Line(device string) *Host {
	for _, l := range p.lines {
		if l.device == device {
			return l.Host
		}
	}
	panic("no line " + device + " in the lab")
}

// stockLines sets up the lines of an edge without Ringway: addresses, and a default route for each with a metric of its
// own. Reverse path checks are loose, as they have to be where there are several lines.
func (e *Edge) stockLines(ctx context.Context) error {
	var lines []string
	for i, l := range e.pair.lines {
		lines = append(lines, "link set "+l.device+" up")
		for _, f := range families(l.family) {
			n := l.net.of(f)
			lines = append(lines, "addr replace "+n.edge+n.length+" dev "+l.device+n.flags,
				fmt.Sprintf("route replace default via %s dev %s metric %d", n.remote, l.device, metric(i)))
		}
	}
	if err := e.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/conf/all/rp_filter", []byte("2"), 0)
	}); err != nil {
		return err
	}
	if err := e.IP(ctx, nil, lines...); err != nil {
		return err
	}
	if e.pair.Name != Baseline {
		return nil
	}
	return e.watchCarrier(ctx)
}

func metric(line int) int { return 10 * (line + 1) }

// watchCarrier starts the process that takes addresses and routes of a line away without a carrier, see carrier.go.
func (e *Edge) watchCarrier(context.Context) error {
	var watched []carrierLine
	for i, l := range e.pair.lines {
		w := carrierLine{Device: l.device}
		for _, f := range families(l.family) {
			n := l.net.of(f)
			w.With = append(w.With, "addr replace "+n.edge+n.length+" dev "+l.device+n.flags,
				fmt.Sprintf("route replace default via %s dev %s metric %d", n.remote, l.device, metric(i)))
			w.Without = append(w.Without, map[Family]string{IPv4: "-4", IPv6: "-6"}[f]+" addr flush dev "+l.device+
				" scope global")
		}
		watched = append(watched, w)
	}
	return e.helper("carrier", watched)
}

// helper starts `lab holder WHAT CONFIG` on the edge; it runs until the lab ends.
func (e *Edge) helper(what string, config any) error {
	text, err := json.Marshal(config)
	if err != nil {
		return err
	}
	cmd := e.Command(e.pair.lab.Options.Helper, "lab", "holder", what, string(text))
	if err := host.StartHolder(cmd, func() error {
		_, err := e.Spawn(what, cmd)
		return err
	}); err != nil {
		return fmt.Errorf("%s: start %s: %w", e.Name, what, err)
	}
	return nil
}

// overLines reports whether the edge is berlin's, with lines instead of the provider's WAN.
func (e *Edge) overLines() bool { return e.side.edge == EdgeA && len(e.pair.lines) > 0 }

// ringwayLines adds the second line to the shipped config of berlin.
func (e *Edge) ringwayLines(values map[string]string) {
	if !e.overLines() || len(e.pair.lines) < 2 {
		return
	}
	l := e.pair.lines[1]
	n := l.net.of(l.family)
	rates := ""
	if rate := e.pair.lab.Options.WAN; rate > 0 {
		rates = ", uplink: " + rate.String() + ", downlink: " + rate.String()
	}
	values["wan[+]"] = fmt.Sprintf("{interface: %s, address: %q, gateway: %q%s}",
		l.device, n.edge+n.length, n.remote, rates)
}

// duplicate starts the relay around the tunnel that sends everything by every line, and returns the address at which
// the tunnel reaches the far end through it.
func (e *Edge) duplicate() (endpoint string, err error) {
	const near = "127.0.0.1:51821"
	far, err := netip.ParseAddrPort(net.JoinHostPort(sides[1].wan.of(e.pair.outer()).edge, duplicatePort))
	if err != nil {
		return "", err
	}
	c := twice.Config{
		Near:   netip.MustParseAddrPort(near),
		Tunnel: netip.MustParseAddrPort("127.0.0.1:" + baselinePort),
	}
	if e.side.edge == EdgeB {
		c.Listen = far
	} else {
		c.Remote = far
		for _, l := range e.pair.lines {
			address := netip.MustParseAddr(l.net.of(l.family).edge)
			c.Lines = append(c.Lines, twice.Line{Device: l.device, Address: address})
		}
	}
	return near, e.helper("duplicate", c)
}

const duplicatePort = "51822"
