// Package live measures the path to another appliance that is in service: STAMP probes (RFC 8762) of the size
// and pace of voice go through the tunnel of a class, past the queues that calls pass, and the far end's
// daemon reflects them.
package live

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"ringway/appliance"
	"ringway/stamp"
	"ringway/tunnel"
)

// Options say what `ringway bench live` sends.
type Options struct {
	Class              string // of tunnel: voice or data
	Streams, Size      int    // Size is the UDP payload in bytes
	Interval, Duration time.Duration
	Progress           io.Writer
}

// UsageError is a mistake in the options; nothing was sent.
type UsageError struct{ error }

func (e UsageError) Unwrap() error { return e.error }

// dscpOf marks a probe as a packet of a class: the firewall chooses the tunnel by it (chain own), and the far
// end answers with the same code point.
var dscpOf = map[string]uint8{string(tunnel.Voice): 46, string(tunnel.Data): 0}

// probe checks the options and converts them to a probe of STAMP.
func (o Options) probe() (stamp.Probe, error) {
	dscp, known := dscpOf[o.Class]
	switch {
	case !known:
		return stamp.Probe{}, fmt.Errorf("--class: unknown class of tunnel %q (allowed: voice, data)", o.Class)
	case o.Interval <= 0:
		return stamp.Probe{}, fmt.Errorf("--interval: %s is out of range (allowed: 1ms to 10s)", o.Interval)
	case o.Duration < o.Interval || o.Duration > 24*time.Hour:
		return stamp.Probe{}, fmt.Errorf("--duration: %s is out of range (allowed: one interval to 24h)", o.Duration)
	}
	count := int(o.Duration / o.Interval)
	p := stamp.Probe{Streams: o.Streams, Interval: o.Interval, Count: count, Size: o.Size, DSCP: dscp}
	return p, p.Validate()
}

// Run probes target, a site's name or an address, and reports what was measured.
func Run(ctx context.Context, paths appliance.Paths, o Options, target string) (Report, error) {
	p, err := o.probe()
	if err != nil {
		return Report{}, UsageError{err}
	}

	t := Target{Class: o.Class, DSCP: codePoint(p.DSCP)}
	if p.To, err = findTarget(ctx, p, paths, target, &t); err != nil {
		return Report{}, err
	}
	fmt.Fprintf(o.Progress, "probing %s for %s\n", p.To, o.Duration)
	res, err := stamp.Measure(ctx, p)
	if err != nil {
		return Report{}, err
	}

	g := res.Figures()
	if g.Lost.Sent == g.Lost.Total {
		return Report{}, unlessInterrupted(
			ctx,
			fmt.Errorf("none of %d probes came back from %s, which had answered before "+
				"(check the tunnel: `ringway status`)", g.Lost.Sent, p.To),
		)
	}
	t.Address, t.Source = p.To.Addr().String(), res.Source.String()
	if p.To.Port() != stamp.Port {
		t.Address = p.To.String()
	}
	return newReport(t, res, g), nil
}

// findTarget finds the address to probe and checks that it answers.
func findTarget(
	ctx context.Context,
	p stamp.Probe,
	paths appliance.Paths,
	target string,
	t *Target,
) (netip.AddrPort, error) {
	address, ok := parseTarget(target)
	if !ok {
		t.Site = target
		return findSite(ctx, p, paths, target)
	}
	if !firstAnswer(ctx, p, []netip.AddrPort{address}).IsValid() {
		return netip.AddrPort{}, unlessInterrupted(
			ctx,
			fmt.Errorf("%s answers no probe (check the tunnel: `ringway status`; "+
				"the far end must run Ringway with control.reflector: true, or another STAMP reflector)", address),
		)
	}
	return address, nil
}

// unlessInterrupted returns err, or "interrupted" once Ctrl-C was pressed: the probes' silence is then no
// fault to look for.
func unlessInterrupted(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	return err
}
