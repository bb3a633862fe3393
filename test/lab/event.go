package lab

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"ringway/qos"
	"ringway/units"
)

// EventKind is what happens to a line.
type EventKind string

// The kinds of events.
const (
	Cut       EventKind = "cut"       // the cable is pulled: both ends lose the carrier
	Blackhole EventKind = "blackhole" // nothing is delivered in either direction; the carrier stays
	Loss      EventKind = "loss"      // a share of the packets is lost in each direction, each by chance
	Swing     EventKind = "swing"     // the rate goes down and up again, over and over
)

// Event is something that happens to one of berlin's lines while calls are up.
type Event struct {
	Line  string // the edge's device: wan0, wan1
	Kind  EventKind
	At    time.Duration // since the first call was placed
	Until time.Duration // the line is well again; 0: never
	Loss  float64       // of Loss: 0 to 1
	Low   qos.BitRate   // of Swing
	High  qos.BitRate   // of Swing
}

// swingPeriod is how long a swinging line needs from its highest rate to its lowest and back, swingStep how long it
// keeps one rate.
const (
	swingPeriod = 10 * time.Second
	swingStep   = 500 * time.Millisecond
)

// ParseEvent reads an event as the lab's flags give it: LINE@FROM[-UNTIL], before which loss and swing have a value:
// LINE=5%[@FROM[-UNTIL]], LINE=5-50mbit[@FROM[-UNTIL]]. Times count from the first call.
func ParseEvent(kind EventKind, s string) (Event, error) {
	e := Event{Kind: kind}
	what, when, timed := strings.Cut(s, "@")
	line, value, valued := strings.Cut(what, "=")
	e.Line = line
	wantsValue := kind == Loss || kind == Swing
	form := map[EventKind]string{
		Cut: "wan0@10s or wan0@10s-20s", Blackhole: "wan0@10s or wan0@10s-20s",
		Loss: "wan0=5% or wan0=5%@10s-20s", Swing: "wan1=5-50mbit or wan1=5-50mbit@10s-20s",
	}[kind]
	bad := func(why string) (Event, error) {
		return e, fmt.Errorf("%q: %s (allowed: like %s)", s, why, form)
	}
	switch {
	case line == "":
		return bad("no line is named")
	case wantsValue && !valued:
		return bad("no value")
	case !wantsValue && valued:
		return bad("a value is not expected")
	case !wantsValue && !timed:
		return bad("no time")
	}
	var err error
	switch kind {
	case Loss:
		if e.Loss, err = ParseShare(value); err != nil {
			return bad(err.Error())
		}
	case Swing:
		if e.Low, e.High, err = parseRates(value); err != nil {
			return bad(err.Error())
		}
	}
	if !timed {
		return e, nil
	}
	from, until, ends := strings.Cut(when, "-")
	if e.At, err = time.ParseDuration(from); err != nil || e.At < 0 {
		return bad(fmt.Sprintf("%q is not a time", from))
	}
	if !ends {
		return e, nil
	}
	if e.Until, err = time.ParseDuration(until); err != nil || e.Until <= e.At {
		return bad(fmt.Sprintf("%q is not a time after %s", until, e.At))
	}
	return e, nil
}

// ParseShare reads 1% or 0.01. A bare number of one or more is refused: it could be a percentage or a mistake.
func ParseShare(s string) (float64, error) {
	bad := fmt.Errorf("%q is not a share (allowed: 0%% to 99%%, or 0 to 0.99)", s)
	number, percent := strings.CutSuffix(s, "%")
	x, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0, bad
	}
	if percent {
		x /= 100
	}
	if !(x >= 0 && x <= 0.99) {
		return 0, bad
	}
	return x, nil
}

// parseRates reads 5-50mbit or 500kbit-5mbit: without a unit the lower rate has the higher one's.
func parseRates(s string) (low, high qos.BitRate, err error) {
	first, second, ok := strings.Cut(s, "-")
	if !ok {
		return 0, 0, fmt.Errorf("%q is not two rates", s)
	}
	if high, err = units.ParseBitRate(second); err != nil {
		return 0, 0, err
	}
	if strings.TrimRight(first, "0123456789.") == "" {
		first += strings.TrimLeft(second, "0123456789.")
	}
	if low, err = units.ParseBitRate(first); err != nil {
		return 0, 0, err
	}
	if low >= high {
		return 0, 0, errors.New("the first rate is not below the second")
	}
	return low, high, nil
}

// checkEvents refuses events that the options do not allow.
func (o *Options) checkEvents() error {
	for i, e := range o.Events {
		name := fmt.Sprintf("--%s %s", e.Kind, e.Line)
		if at := slices.Index(lineNames[:], e.Line); at < 0 || at >= o.Lines {
			return fmt.Errorf("%s: there is no such line (allowed: %s)", name,
				strings.Join(lineNames[:o.Lines], ", "))
		}
		if e.At >= o.Duration || e.Until > o.Duration {
			return fmt.Errorf("%s: the calls are over after %s (allowed: an earlier time, or longer calls)",
				name, o.Duration)
		}
		if e.Kind == Swing && o.WAN == 0 {
			return fmt.Errorf("%s: the lines have no rate (allowed: with a rate in --wan)", name)
		}
		for _, other := range o.Events[:i] {
			if other.Line == e.Line && other.Kind == e.Kind && other.At < e.end() && e.At < other.end() {
				return fmt.Errorf("%s: two at the same time, at %s and %s (allowed: one after the other)",
					name, other.At, e.At)
			}
		}
	}
	return nil
}

// end is when the line is well again, or never.
func (e Event) end() time.Duration { return cmp.Or(e.Until, math.MaxInt64) }

// step is one change of a line.
type step struct {
	at     time.Duration
	line   string
	what   string // for the report; empty: part of the event that began
	change func(*lineState)
}

// timeline is the changes that the events are made of, in their order.
func timeline(events []Event, rate qos.BitRate, end time.Duration) []step {
	var steps []step
	for _, e := range events {
		begins, ends := e.words()
		add := func(at time.Duration, what string, change func(*lineState)) {
			steps = append(steps, step{at, e.Line, what, change})
		}
		switch e.Kind {
		case Cut:
			add(e.At, begins, func(s *lineState) { s.cut = true })
		case Blackhole:
			add(e.At, begins, func(s *lineState) { s.hole = true })
		case Loss:
			add(e.At, begins, func(s *lineState) { s.loss = e.Loss })
		case Swing:
			what := begins
			for at := e.At; at < min(e.end(), end); at += swingStep {
				now := e.rate(at - e.At)
				add(at, what, func(s *lineState) { s.rate = now })
				what = ""
			}
		}
		if e.Until == 0 {
			continue
		}
		add(e.Until, ends, func(s *lineState) {
			switch e.Kind {
			case Cut:
				s.cut = false
			case Blackhole:
				s.hole = false
			case Loss:
				s.loss = 0
			case Swing:
				s.rate = rate
			}
		})
	}
	slices.SortStableFunc(steps, func(a, b step) int { return cmp.Compare(a.at, b.at) })
	return steps
}

// rate is a swinging line's some time after it began to swing: by equal factors down and up again.
func (e Event) rate(after time.Duration) qos.BitRate {
	phase := float64(after%swingPeriod) / float64(swingPeriod) // 0 to 1
	down := 1 - math.Abs(2*phase-1)                            // 0 at both ends, 1 in the middle
	return qos.BitRate(float64(e.High) * math.Pow(float64(e.Low)/float64(e.High), down))
}

// words say that the event begins and ends.
func (e Event) words() (begins, ends string) {
	switch e.Kind {
	case Cut:
		return e.Line + " is cut", e.Line + " is plugged in"
	case Blackhole:
		return e.Line + " delivers nothing", e.Line + " delivers again"
	case Loss:
		return fmt.Sprintf("%s loses %.4g %%", e.Line, e.Loss*100), e.Line + " loses nothing more"
	}
	return fmt.Sprintf("%s swings between %s and %s", e.Line, e.Low, e.High), e.Line + " swings no more"
}
