package bench

import (
	"fmt"
	"io"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"ringway/test/bench/rival"
	"ringway/test/bench/tester"
)

// Engine is what carries packets in `ringway bench throughput`: the kinds of `bench jitter` by the same
// names, and another engine of Ringway's plane.
type Engine string

// RingwayWireGuardGo is Ringway's plane with the engine wireguard-go.
const RingwayWireGuardGo Engine = "ringway-wireguard-go"

// Stock is the engine that others are compared with.
const Stock = Engine(rival.WireGuardGo)

// Engines lists them in the order of reports.
var Engines = []Engine{
	Engine(rival.Ringway),
	RingwayWireGuardGo,
	Stock,
	Engine(rival.Nebula),
	Engine(rival.OpenVPN),
	Engine(rival.Kernel),
}

// way is the path to bring up, and the engine of its planes.
func (e Engine) way() (rival.Kind, string) {
	if e == RingwayWireGuardGo {
		return rival.Ringway, "wireguard-go"
	}
	return rival.Kind(e), "realtime"
}

// IMIX stands for the mix among the sizes.
const IMIX = 0

// imix is the simple IMIX: of Ethernet frames seven of 64 bytes, four of 570, one of 1518. These are its IP
// packets (18 bytes less), the long one cut to the tunnel's MTU, in an order that spreads them.
var imix = []int{46, 552, 46, 46, 552, 46, tunnelMTU, 46, 552, 46, 46, 552}

const tunnelMTU = 1420

// ThroughputOptions are the options of `ringway bench throughput`.
type ThroughputOptions struct {
	Programs   rival.Programs
	Engines    []Engine
	Sizes      []int // of IP packets; IMIX for the mix
	Trial      time.Duration
	Resolution float64 // share
	Loss       float64 // share that may be lost: 0 is RFC 2544's throughput
	OneCore    bool
	Rounds     int
	Progress   io.Writer // nil: silent
}

// DefaultThroughput is RFC 2544's series, limited to a tunnel's MTU, with G.711's packet in it: 172 bytes of
// UDP payload.
func DefaultThroughput() ThroughputOptions {
	return ThroughputOptions{
		Engines: []Engine{Engine(rival.Ringway), Stock, Engine(rival.Kernel)},
		Sizes:   []int{64, 128, 200, 512, 1024, 1280, 1420, IMIX},
		Trial:   2 * time.Second, Resolution: 0.02, Rounds: 1,
	}
}

// Limits of a search.
const (
	minTrial   = 100 * time.Millisecond
	maxTrial   = time.Minute // RFC 2544, section 24
	minRate    = 500
	maxRate    = 4e6
	firstRate  = 20e3
	growth     = 1.3
	testerPort = 20100
	nearA      = "10.16.1.1" // edge-a towards its phone
	tries      = 2           // of a rate
	sentEnough = 0.995       // of a trial's packets: below, the tester could not send at this rate
)

func (o *ThroughputOptions) check() error {
	switch {
	case o.Trial < minTrial || o.Trial > maxTrial:
		return fmt.Errorf("%w: --trial: %s (allowed: %s-%s)", ErrUsage, o.Trial, minTrial, maxTrial)
	case o.Resolution < 0.001 || o.Resolution > 0.5:
		return fmt.Errorf("%w: --resolution: %.2f %% (allowed: 0.1-50)", ErrUsage, 100*o.Resolution)
	case o.Loss < 0 || o.Loss > 0.1:
		return fmt.Errorf("%w: --loss: %g %% (allowed: 0-10)", ErrUsage, 100*o.Loss)
	case o.Rounds < 1 || o.Rounds > 100:
		return fmt.Errorf("%w: --rounds: %d (allowed: 1-100)", ErrUsage, o.Rounds)
	case len(o.Engines) == 0:
		return fmt.Errorf("%w: --engines: none is given (allowed: %s)", ErrUsage, engineNames(Engines))
	case len(o.Sizes) == 0:
		return fmt.Errorf(
			"%w: --sizes: none is given (allowed: bytes of an IP packet, %d-%d, and imix)",
			ErrUsage,
			tester.MinSize,
			tunnelMTU,
		)
	}
	for i, e := range o.Engines {
		if !slices.Contains(Engines, e) || slices.Contains(o.Engines[:i], e) {
			return fmt.Errorf("%w: --engines: %q (allowed: %s, each once)", ErrUsage, e, engineNames(Engines))
		}
		if o.OneCore && e == Engine(rival.Kernel) {
			return fmt.Errorf(
				"%w: --one-core: the kernel's forwarding is not a process that can be bound to a core (leave %s out of --engines)",
				ErrUsage,
				e,
			)
		}
	}
	for i, s := range o.Sizes {
		if s != IMIX && (s < tester.MinSize || s > tunnelMTU) || slices.Contains(o.Sizes[:i], s) {
			return fmt.Errorf(
				"%w: --sizes: %d (allowed: bytes of an IP packet, %d-%d, and imix, each once)",
				ErrUsage,
				s,
				tester.MinSize,
				tunnelMTU,
			)
		}
	}
	if o.OneCore && runtime.NumCPU() < 2 {
		return fmt.Errorf("%w: --one-core: this machine has one core, and the tester needs another", ErrUsage)
	}
	return nil
}

func engineNames(engines []Engine) string {
	var names []string
	for _, e := range engines {
		names = append(names, string(e))
	}
	return strings.Join(names, ", ")
}

func sizeName(size int) string {
	if size == IMIX {
		return "imix"
	}
	return strconv.Itoa(size)
}

func sizesOf(size int) []int {
	if size == IMIX {
		return imix
	}
	return []int{size}
}

func meanSize(size int) float64 {
	sum := 0
	all := sizesOf(size)
	for _, s := range all {
		sum += s
	}
	return float64(sum) / float64(len(all))
}

// command is the command line that repeats the run.
func (o *ThroughputOptions) command() string {
	var sizes []string
	for _, s := range o.Sizes {
		sizes = append(sizes, sizeName(s))
	}
	c := fmt.Sprintf(
		"ringway bench throughput --engines %s --sizes %s --trial %s --resolution %g --rounds %d",
		strings.ReplaceAll(
			engineNames(o.Engines),
			", ",
			",",
		),
		strings.Join(sizes, ","),
		o.Trial,
		100*o.Resolution,
		o.Rounds,
	)
	if o.Loss > 0 {
		c += fmt.Sprintf(" --loss %g", 100*o.Loss)
	}
	if o.OneCore {
		c += " --one-core"
	}
	return c
}
