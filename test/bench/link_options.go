package bench

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"ringway/qos"
	"ringway/test/bench/probe"
	"ringway/test/bench/report"
	"ringway/test/lab"
)

// LinkOptions are the options of `ringway bench link`.
type LinkOptions struct {
	Ringway     string        // to be measured; empty: the program that belongs to this one
	Helper      string        // whose helpers run on the hosts; empty: this program
	Version     string        // required of a Ringway that is not given; empty: any
	WireGuardGo string        // the stock program; empty: beside ringway, else in PATH
	Rates       []qos.BitRate // of the links, the same in both directions
	Against     []string      // beside ringway: LinkRivals
	Family      lab.Family    // of the links, phones and PCs
	Calls       int
	Duration    time.Duration // of a load and round
	Rounds      int
	InTurn      bool      // one path after the other at every rate, as above togetherUpTo
	Progress    io.Writer // nil: silent
}

// LinkRivals may run beside Ringway, each on a link of its own. The lab calls none its baseline.
var LinkRivals = []string{"none", string(lab.FQCoDel), string(lab.Cake), string(lab.Kernel)}

// DefaultLink is one call on links from the slowest to one that the processor feels.
func DefaultLink() LinkOptions {
	return LinkOptions{Rates: []qos.BitRate{qos.Mbit, 2 * qos.Mbit, 10 * qos.Mbit, 20 * qos.Mbit, 100 * qos.Mbit},
		Against: LinkRivals, Family: lab.IPv4, Calls: 1, Duration: 20 * time.Second, Rounds: 3}
}

// What flows.
const (
	linkFlows    = 8 // TCP, in each direction
	linkFlood    = 2 // times the link's rate, in each direction
	linkInterval = 20 * time.Millisecond
	linkSize     = 172   // RTP with 20 ms of G.711
	linkPort     = 30000 // not one of the lab's media ports, whose packets its phones drop
	floodPort    = 5202
	// What the provider holds: as long as an access router's, and never less than a handful of packets.
	fifoTime    = 120 * time.Millisecond
	fifoPackets = 32
	fullFrame   = 1514
	// A link up to this is a wire, busy with one packet at a time. Above, the relay that keeps a wire's clock
	// would itself be in the figures, the kernel's meter is the bottleneck, and the kernel's own forwarding runs beside
	// it for comparison.
	kernelAbove = report.AddedUpTo * qos.BitRate(1)
	// Up to this rate all paths are loaded at the same time. Above, three floods of twice the link in both
	// directions are more than two cores can carry.
	togetherUpTo = 50 * qos.Mbit
	minLink      = qos.Mbit // the voice budget of a slower link carries no call
	maxLink      = qos.Gbit
	maxLinkTime  = 10 * time.Minute
)

func (o *LinkOptions) check() error {
	if len(o.Rates) == 0 {
		return fmt.Errorf("%w: --rates: none is given (allowed: %s-%s)", ErrUsage, minLink, maxLink)
	}
	for i, r := range o.Rates {
		if r < minLink || r > maxLink || slices.Contains(o.Rates[:i], r) {
			return fmt.Errorf("%w: --rates: %s (allowed: %s-%s, each once)", ErrUsage, r, minLink, maxLink)
		}
	}
	for i, a := range o.Against {
		if !slices.Contains(LinkRivals, a) || slices.Contains(o.Against[:i], a) {
			return fmt.Errorf("%w: --vs: %q (allowed: %s, each once)", ErrUsage, a, strings.Join(LinkRivals, ", "))
		}
	}
	if err := checkFamily(o.Family); err != nil {
		return err
	}
	switch {
	case o.Duration < minTime || o.Duration > maxLinkTime:
		return fmt.Errorf("%w: --duration: a load of %s (allowed: %s-%s)", ErrUsage, o.Duration, minTime, maxLinkTime)
	case o.Rounds < 1 || o.Rounds > 100:
		return fmt.Errorf("%w: --rounds: %d (allowed: 1-100)", ErrUsage, o.Rounds)
	case o.Calls < 1 || o.Calls > 500:
		return fmt.Errorf("%w: --calls: %d (allowed: 1-500)", ErrUsage, o.Calls)
	}
	return nil
}

func (o *LinkOptions) shape() probe.Shape {
	return probe.Shape{Streams: o.Calls, Interval: linkInterval, Size: linkSize, Lead: lead, Length: o.Duration}
}

// command is the command line that repeats the run.
func (o *LinkOptions) command() string {
	var rates []string
	for _, r := range o.Rates {
		rates = append(rates, r.String())
	}
	against := strings.Join(o.Against, ",")
	if against == "" {
		against = `""`
	}
	turn := ""
	if o.InTurn {
		turn = " --in-turn"
	}
	return fmt.Sprintf(
		"ringway bench link --rates %s%s --vs %s --calls %d --duration %s --rounds %d%s",
		strings.Join(rates, ","),
		familyFlag(o.Family),
		against,
		o.Calls,
		o.Duration,
		o.Rounds,
		turn,
	)
}

func checkFamily(f lab.Family) error {
	if f != lab.IPv4 && f != lab.IPv6 {
		return fmt.Errorf("%w: --family: %q (allowed: %s, %s)", ErrUsage, f, lab.IPv4, lab.IPv6)
	}
	return nil
}

// familyFlag is the flag for a family.
func familyFlag(f lab.Family) string {
	if f == lab.IPv4 {
		return ""
	}
	return " --family " + string(f)
}

// buffer is the provider's FIFO.
func buffer(rate qos.BitRate) qos.ByteCount { return max(rate.Bytes(fifoTime), fifoPackets*fullFrame) }
