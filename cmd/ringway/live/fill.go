package live

import (
	"fmt"
	"time"

	"ringway/quality/figures"
	"ringway/stamp"
)

// newReport converts a measurement to the report's names and units.
func newReport(t Target, res *stamp.Result, g stamp.Figures) Report {
	p := res.Probe
	l := Report{
		Machine: figures.ThisMachine(),
		Target:  t,
		Probe: Probing{
			Streams: p.Streams, IntervalUS: micros(p.Interval), Size: p.Size,
			Seconds:   (p.Interval * time.Duration(p.Count)).Seconds(),
			TimeoutUS: micros(p.Timeout), LateUS: micros(res.Late), FarTimeUS: micros(g.FarTime),
			Started: res.Began.Format(time.RFC3339),
		},
		Clocks: Clocks{OneWay: g.Clocks.OneWay, ErrorUS: micros(g.Clocks.Error), Statement: g.Clocks.Statement},
		Lost: Lost{
			Sent: g.Lost.Sent, Lost: g.Lost.Total, Forward: g.Lost.Forward, Backward: g.Lost.Backward, Unknown: g.Lost.Unknown,
			Stateful: g.Lost.Stateful, Unsent: res.SendErrors, Strangers: res.Strange,
		},
		DSCPThere:   codePointCounts(g.DSCPThere),
		DSCPHere:    codePointCounts(g.DSCPHere),
		Interrupted: res.Interrupted,
	}
	if g.Clocks.Drift && !g.Clocks.OneWay {
		l.Clocks.DriftPPM = &g.Clocks.DriftPPM
	}

	round := figures.NewDirection("", g.RoundTrip, figures.Found{Unmatched: res.Strange})
	l.RoundTrip = newMeasure(round.Measure, true, false)
	l.addDirection(figures.AToB, g.Forward, g.DSCPThere, p.DSCP, g.Clocks.OneWay)
	l.addDirection(figures.BToA, g.Backward, g.DSCPHere, p.DSCP, g.Clocks.OneWay)
	l.addWarnings(res, g)
	return l
}

// addDirection adds one direction; dscp counts its packets by the code point that they arrived with.
func (l *Report) addDirection(name string, d stamp.Direction, dscp map[uint8]int, sent uint8, oneWay bool) {
	var found figures.Found
	for v, n := range dscp {
		if v != sent {
			found.WrongDSCP += n
		}
	}

	m := figures.NewDirection(name, d.Summary, found).Measure
	m.Sent, m.Received, m.Loss = d.Sent, d.Received, d.Loss
	l.Directions = append(l.Directions, Direction{Name: name, Measure: newMeasure(m, oneWay, true)})

	if found.WrongDSCP > 0 {
		where := map[string]string{figures.AToB: "to the far end", figures.BToA: "on the way back"}[name]
		l.warn(
			"%d packets lost their code point %s: a device on the path re-marks them, or the box there puts them "+
				"in another class.",
			found.WrongDSCP,
			where,
		)
	}
}

func (l *Report) warn(format string, args ...any) {
	l.Warnings = append(l.Warnings, fmt.Sprintf(format, args...))
}

// addWarnings names what makes the figures less reliable than they look.
func (l *Report) addWarnings(res *stamp.Result, g stamp.Figures) {
	if res.Late > res.Probe.Interval {
		l.warn("this machine sent up to %s late: it is too busy for this rate, and part of the variation is its own.",
			res.Late.Round(time.Microsecond))
	}
	if res.SendErrors > 0 {
		l.warn("%d probes could not be sent (%v) and are not counted.", res.SendErrors, res.SendError)
	}
	if res.Strange > 0 {
		l.warn("%d packets arrived that answer no probe.", res.Strange)
	}
	if res.Overflow > 0 {
		l.warn(
			"%d answers overflowed the receive buffer of this machine: they were lost here, not on the path.",
			res.Overflow,
		)
	}
	if g.BadReply > 0 {
		l.warn("%d answers have malformed extensions.", g.BadReply)
	}
	if g.Lost.Sent < 1000 {
		l.warn("with %d packets in each direction, p99.9 is the worst packet.", g.Lost.Sent)
	}
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// codePoint names the two code points that probes have (RFC 3246, RFC 2474).
func codePoint(d uint8) string {
	switch d {
	case 46:
		return "EF"
	case 0:
		return "DF"
	}
	return fmt.Sprint(d)
}

func codePointCounts(c map[uint8]int) map[string]int {
	out := map[string]int{}
	for d, n := range c {
		out[codePoint(d)] += n
	}
	return out
}
