// Package lab builds two whole branches on one machine, places calls between them and measures the voice.
// `ringway lab` and the end-to-end tests run it.
//
// Every host of the lab is a network and a mount namespace (with its own /run, /etc/ringway and
// /var/lib/ringway); all processes live in one PID namespace:
//
//	berlin                                                                            munich
//	phone-a 10.1.10.10 --- voice0 .1                              voice0 .1 --- phone-b 10.2.10.10
//	                                edge-a --- provider --- edge-b
//	pc-a    10.1.20.10 ---  data0 .1   |                    |     data0 .1 --- pc-b    10.2.20.10
//	                      198.51.100.2 |                    | 203.0.113.2
//
// With IPv6 the networks are 2001:db8:SIDE:NETWORK::/64, so phone-a is 2001:db8:1:10::10, and on the WAN
// 2001:db8:a::/64 and 2001:db8:b::/64. Options choose the family between the edges and that of phones and
// PCs. A second such pair, the baseline, may run beside the first at the same time with the same addresses:
// no cable joins them.
//
// The lab leaves nothing behind, however it ends. No namespace has a name; each is held by a process of the
// lab's PID namespace, whose process 1 exits when its standard input closes, and the kernel ends the rest. No
// device is ever created in the machine's own network.
package lab

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"ringway/qos"
	"ringway/test/lab/host"
	"ringway/test/lab/program"
	"ringway/units"
)

// Bulk is what fills the WAN while the calls are up.
type Bulk string

// The kinds of bulk traffic, from pc-a to pc-b.
const (
	BulkNone Bulk = "none"
	BulkTCP  Bulk = "tcp" // one TCP stream at full speed
	BulkUDP  Bulk = "udp" // a flood of twice the WAN's rate
)

// Options describe the lab.
type Options struct {
	Binary      string     // the program ringway that the edges run; default: the one that belongs to this program
	Helper      string     // the program whose `lab holder` holds the namespaces; default: this one
	Version     string     // required of a Binary that is not given; default: any
	WireGuardGo string     // the stock program wireguard-go for the baseline; default: beside Binary, or in PATH
	Paths       []PathName // pairs to build; default: Ringway only

	Underlay Family // between the edges; default: IPv4
	Overlay  Family // in the branches' networks; default: IPv4, with IPv6 beside it

	WAN    qos.BitRate   // rate of the provider's bottleneck in both directions; 0 = none
	Buffer Bytes         // of the provider's FIFO before the bottleneck
	Wire   bool          // the bottleneck is busy with one packet at a time; otherwise a meter (test/lab/provider)
	Delay  time.Duration // one way
	Loss   float64       // fraction that the provider loses, 0 to 1

	// Lines is how many lines berlin has, each with its own bottleneck, delay and loss; 0: one WAN, which is the
	// provider's own. Events happen to lines while Measure's calls are up.
	Lines  int
	Events []Event

	Seed uint64 // of the loss: the same seed loses the same packets

	Bulk     Bulk
	Calls    int
	NoCalls  bool          // none will be placed: SIPp need not be installed
	Duration time.Duration // of each call's media

	// SIP is what Ringway's edges do with signalling (sip.mode); default: off.
	SIP string

	// EdgeConfig may change an edge's configuration before it is written: values by path, as config.SetValues
	// takes them.
	EdgeConfig func(site string, values map[string]string)

	// Identities gives Ringway's edges an identity each, which the other one knows: they agree keys of media
	// (sites[].identity, sites[].box).
	Identities bool

	// StockFarEnd runs stock wireguard-go with one tunnel at munich's end of Ringway's pair; EdgeConfig
	// chooses which of berlin's tunnels it belongs to.
	StockFarEnd bool

	Progress io.Writer // nil = silent
}

// MachineDir is the directory of the lab's files on each host.
const MachineDir = host.Dir

// DefaultBuffer is the provider's buffer: 200 full packets, 120 ms at 20 Mbit/s.
const DefaultBuffer Bytes = 300_000

// Bytes counts bytes of a buffer.
type Bytes = qos.ByteCount

// ParseWAN reads the WAN's rate: none, or 20mbit.
func ParseWAN(s string) (qos.BitRate, error) {
	if s == "none" {
		return 0, nil
	}
	r, err := units.ParseBitRate(s)
	if err != nil {
		return 0, fmt.Errorf("%w, or none", err)
	}
	return r, nil
}

// needsStock reports whether an edge runs stock wireguard-go.
func (o Options) needsStock() bool {
	return o.StockFarEnd || slices.ContainsFunc(o.Paths, PathName.stock)
}

func (o *Options) fill() error {
	if len(o.Paths) == 0 {
		o.Paths = []PathName{Ringway}
	}
	if err := o.fillFamilies(); err != nil {
		return err
	}
	if o.Buffer == 0 {
		o.Buffer = DefaultBuffer
	}
	if o.Bulk == "" {
		o.Bulk = BulkNone
	}
	if o.Calls == 0 {
		o.Calls = 10
	}
	if o.Duration == 0 {
		o.Duration = 20 * time.Second
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	switch {
	case o.Calls < 1 || o.Calls > maxCalls:
		return fmt.Errorf("%d calls at once (allowed: 1-%d)", o.Calls, maxCalls)
	case o.Duration < time.Second || o.Duration > time.Hour:
		return fmt.Errorf("calls of %s (allowed: 1s-1h)", o.Duration)
	case o.Loss < 0 || o.Loss >= 1:
		return fmt.Errorf("a loss of %g (allowed: 0 to less than 1)", o.Loss)
	case o.Delay < 0 || o.Delay > 5*time.Second:
		return fmt.Errorf("a delay of %s (allowed: 0-5s)", o.Delay)
	case o.Lines < 0 || o.Lines > MaxLines:
		return fmt.Errorf("%d lines (allowed: 1-%d)", o.Lines, MaxLines)
	case o.Lines > 0 && o.Wire:
		return errors.New("lines that are wires (allowed: meters)")
	case o.Bulk != BulkNone && o.Bulk != BulkTCP && o.Bulk != BulkUDP:
		return fmt.Errorf("bulk %q (allowed: none, tcp, udp)", o.Bulk)
	}
	for _, p := range o.Paths {
		if !slices.Contains(pathNames, p) {
			return fmt.Errorf(
				"unknown pair %q (allowed: %s)",
				p,
				strings.ReplaceAll(strings.Trim(fmt.Sprint(pathNames), "[]"), " ", ", "),
			)
		}
		if p.overLines() != (o.Lines > 0) && (o.Lines > 0 || p == Single || p == Duplicate) {
			return fmt.Errorf("the pair %s and %d lines (allowed with lines: ringway, baseline, single, duplicate-all)",
				p, o.Lines)
		}
		if (p == FQCoDel || p == Cake) && o.WAN == 0 {
			return fmt.Errorf("the pair %s needs a rate for its WAN", p)
		}
	}
	return o.checkEvents()
}

// findPrograms fills in the programs that were not given.
func (o *Options) findPrograms() error {
	if o.Binary == "" && slices.Contains(o.Paths, Ringway) {
		path, err := program.Find(o.Version)
		if err != nil {
			return err
		}
		o.Binary = path
	}
	if o.Helper == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
		o.Helper = self
	}
	return nil
}

// ErrUsage marks a mistake in the options, as opposed to a failure of the lab.
var ErrUsage = errors.New("wrong usage")

// Lab is a running lab.
type Lab struct {
	Options Options
	world   *host.World
	pairs   []*Pair
	show    *progress
	kept    bool
}

// New builds the lab and waits until packets flow between the branches of every pair. It needs root. When it
// fails, it leaves nothing behind.
func New(ctx context.Context, o Options) (_ *Lab, err error) {
	if err := o.fill(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUsage, err)
	}
	if err := o.findPrograms(); err != nil {
		return nil, err
	}
	if err := checkTools(o); err != nil {
		return nil, err
	}
	if o.needsStock() {
		if o.WireGuardGo, err = findWireGuardGo(o.WireGuardGo, cmp.Or(o.Binary, o.Helper)); err != nil {
			return nil, err
		}
	}
	l := &Lab{Options: o, show: newProgress(o.Progress)}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	l.show.step("building %d hosts", (7+o.Lines)*len(o.Paths))
	if l.world, err = host.NewWorld(o.Helper); err != nil {
		return nil, err
	}
	g, gctx := errgroup.WithContext(ctx)
	pairs := make([]*Pair, len(o.Paths))
	for i, name := range o.Paths {
		g.Go(func() (err error) {
			pairs[i], err = l.newPair(gctx, name)
			return err
		})
	}
	err = g.Wait()
	for _, p := range pairs {
		if p != nil {
			l.pairs = append(l.pairs, p)
		}
	}
	if err != nil {
		return nil, err
	}
	for _, p := range l.pairs {
		if err := p.provide(ctx); err != nil {
			return nil, err
		}
	}
	l.show.step("starting the edges")
	g, gctx = errgroup.WithContext(ctx)
	for _, p := range l.pairs {
		g.Go(func() error { return p.bringUp(gctx) })
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return l, nil
}

// Pair finds a pair by name; nil if it is not in this lab.
func (l *Lab) Pair(name PathName) *Pair {
	for _, p := range l.pairs {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// Namespace is the path of the PID namespace that all processes of the lab live in.
func (l *Lab) Namespace() string { return l.world.Namespace() }

// Host finds a host of the first pair.
func (l *Lab) Host(name string) *Host { return l.pairs[0].Host(name) }

// Edge is edge a or b of the first pair.
func (l *Lab) Edge(side string) *Edge { return l.pairs[0].Edge(side) }

// Close ends every process of the lab, and with them the namespaces, devices and files. A lab that is kept is
// only released.
func (l *Lab) Close() {
	if l.world != nil && !l.kept {
		l.world.Close()
		l.world = nil
	}
	for _, p := range l.pairs {
		for _, h := range p.hosts {
			h.Close()
		}
		for _, line := range p.lines {
			line.Close()
		}
	}
	l.show.end()
}
