// Package sip measures what it costs to have signalling read on its way: the same calls go from phones to a PBX
// through a box that reads them (ringway), through a stateful proxy (kamailio) and through a box that forwards them
// (kernel). `ringway bench sip` runs it.
//
// A run has one set of hosts for each path, all of them up at the same time; one path at a time has calls. The steps
// of a trial (trial.go):
//
//	1 place    the caller sends INVITEs by an absolute schedule, whatever becomes of the earlier ones (caller.go)
//	2 answer   the PBX answers each with 180 and 200 at once (answerer.go)
//	3 hold     a call that was answered ends after the same time
//	4 account  calls that did not end properly are lost; the CPU clocks of the path's processes, per call
//
// Nothing is sent again by the ends: a lost message is a lost call.
package sip

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ErrUsage marks a mistake in the options, as opposed to a failure of the benchmark.
var ErrUsage = errors.New("wrong usage")

// Path is what is between the phones and the PBX.
type Path string

// Paths.
const (
	Ringway  Path = "ringway"     // sip.mode: enforce
	Old      Path = "ringway-old" // the same with the build before it
	Kamailio Path = "kamailio"    // tm, rr and dialog
	Kernel   Path = "kernel"      // Ringway with sip.mode: off
)

// Rivals are what --vs may name.
var Rivals = []Path{Kamailio}

// Options are those of `ringway bench sip`.
type Options struct {
	Against  []Path
	Rates    []int         // calls a second
	Duration time.Duration // of placing calls, in each trial
	Hold     time.Duration // from the ACK to the BYE
	Rounds   int
	Calls    int  // dialogs that are up at once when memory is read; 0: it is not read
	Best     bool // search the highest rate without loss

	Builds   []string // of Ringway: none for the one that belongs to this program, one, or the old and the new one
	Helper   string   // whose helpers run on the hosts; default: this program
	Version  string   // required of a Ringway that is not given; empty: any
	Progress io.Writer
}

// Default is what `ringway bench sip` does without flags.
func Default() Options {
	return Options{
		Against: []Path{Kamailio}, Rates: []int{500, 1000, 2000}, Duration: 5 * time.Second, Hold: time.Second,
		Rounds: 5, Calls: 10_000, Best: true,
	}
}

// Bounds. A call has its own ports at the PBX, two of those from 1024 up.
const (
	maxRate   = 20_000
	maxRounds = 1000
	maxCalls  = 15_000
	maxTime   = time.Minute
)

func (o *Options) check() error {
	for i, p := range o.Against {
		if !slices.Contains(Rivals, p) || slices.Contains(o.Against[:i], p) {
			return fmt.Errorf("%w: --vs: %q (allowed: kamailio, once)", ErrUsage, p)
		}
	}
	if len(o.Rates) == 0 {
		return fmt.Errorf("%w: --rates: none is given (allowed: 1-%d)", ErrUsage, maxRate)
	}
	for i, r := range o.Rates {
		if r < 1 || r > maxRate || slices.Contains(o.Rates[:i], r) {
			return fmt.Errorf("%w: --rates: %d (allowed: 1-%d, each once)", ErrUsage, r, maxRate)
		}
		if up := float64(r) * o.Hold.Seconds(); up > maxCalls {
			return fmt.Errorf("%w: --hold: %.0f calls would be up at once (allowed: %d)", ErrUsage, up, maxCalls)
		}
	}
	for _, x := range []struct {
		flag string
		d    time.Duration
	}{{"duration", o.Duration}, {"hold", o.Hold}} {
		if x.d < time.Millisecond || x.d > maxTime {
			return fmt.Errorf("%w: --%s: %s (allowed: 1ms-%s)", ErrUsage, x.flag, x.d, maxTime)
		}
	}
	switch {
	case o.Rounds < 1 || o.Rounds > maxRounds:
		return fmt.Errorf("%w: --rounds: %d (allowed: 1-%d)", ErrUsage, o.Rounds, maxRounds)
	case len(o.Builds) > 2:
		return fmt.Errorf("%w: --ringway: %d programs (allowed: OLD,NEW, or one)", ErrUsage, len(o.Builds))
	case o.Calls < 0 || o.Calls > maxCalls:
		return fmt.Errorf("%w: --calls: %d (allowed: 0-%d)", ErrUsage, o.Calls, maxCalls)
	}
	return nil
}

// command repeats the run.
func (o *Options) command() string {
	var rates []string
	for _, r := range o.Rates {
		rates = append(rates, strconv.Itoa(r))
	}
	words := []string{"ringway bench sip"}
	for _, p := range o.Against {
		words = append(words, "--vs "+string(p))
	}
	if len(o.Against) == 0 {
		words = append(words, "--vs ''")
	}
	words = append(words, "--rates "+strings.Join(rates, ","), "--duration "+o.Duration.String(),
		"--hold "+o.Hold.String(), "--rounds "+strconv.Itoa(o.Rounds), "--calls "+strconv.Itoa(o.Calls))
	if len(o.Builds) == 2 {
		words = append(words, "--ringway OLD,NEW")
	}
	if !o.Best {
		words = append(words, "--best=false")
	}
	return strings.Join(words, " ")
}

// paths are those that are measured, in the order of the report.
func (o *Options) paths() []Path {
	all := []Path{Ringway}
	if len(o.Builds) == 2 {
		all = append(all, Old)
	}
	return append(append(all, o.Against...), Kernel)
}

// build is the program ringway of a path.
func (o *Options) build(p Path) string {
	if p == Old {
		return o.Builds[0]
	}
	return o.Builds[len(o.Builds)-1]
}
