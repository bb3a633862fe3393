// Package media measures what it costs to re-key media on its way: the same calls go from one end to another through
// Ringway's media plane (ringway), through rtpengine in user space (rtpengine), and through a box that forwards them
// as they are (kernel). `ringway bench media` runs it.
//
// A run has one set of hosts for each path, case and suite; one at a time has calls. The steps of a trial (trial.go):
//
//	1 seal     the packets of all calls are made ready, those of a leg with SRTP encrypted (packets.go)
//	2 send     by an absolute schedule, evenly spread over all calls and both directions (ends.go)
//	3 receive  the kernel's timestamp of each packet against the sender's clock before its system call
//	4 account  what did not arrive is lost; the time that the box's core was busy, per packet
//
// The ends have one core, the box another one, so that a packet costs the box what it costs a machine of its own.
// Before the first trial of a path, a packet of each call is opened at its destination under the key that was agreed
// for that leg: what is measured has re-keyed media.
package media

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"ringway/srtp/suite"
)

// ErrUsage marks a mistake in the options, as opposed to a failure of the benchmark.
var ErrUsage = errors.New("wrong usage")

// Path is what is between the ends.
type Path string

// Paths.
const (
	Ringway   Path = "ringway"
	Old       Path = "ringway-old" // the same with the build before it
	RTPEngine Path = "rtpengine"
	Kernel    Path = "kernel" // forwards, and changes nothing
)

// Rivals are what --vs may name.
var Rivals = []Path{RTPEngine}

// Case is what the two legs of a call are.
type Case string

// Cases. Where both legs are SRTP, the caller's has another suite of the same cipher: rtpengine passes the keys of an
// end on to the other where their suites are the same, and then encrypts nothing.
const (
	Encrypt Case = "rtp-srtp"
	ReKey   Case = "srtp-srtp"
)

// Cases in the order of reports.
var Cases = []Case{Encrypt, ReKey}

// Suites that may be measured, of the callee's leg.
var Suites = []suite.Suite{suite.AES128CMHMACSHA180, suite.AEADAES128GCM}

// callersSuite is the suite of the caller's leg where both are SRTP.
func callersSuite(s suite.Suite) suite.Suite {
	if s == suite.AEADAES128GCM {
		return suite.AEADAES256GCM
	}
	return suite.AES128CMHMACSHA132
}

// Options are those of `ringway bench media`.
type Options struct {
	Against  []Path
	Cases    []Case
	Suites   []suite.Suite
	Calls    int
	Rates    []int // packets a second, of all calls in both directions together
	Duration time.Duration
	Rounds   int
	Best     bool // search the highest rate

	Builds   []string // of Ringway: none for the one that belongs to this program, one, or the old and the new one
	Helper   string   // whose helpers run on the hosts; default: this program
	Version  string   // required of a Ringway that is not given; empty: any
	Progress io.Writer
}

// Default is what `ringway bench media` does without flags.
func Default() Options {
	return Options{
		Against: []Path{RTPEngine}, Cases: Cases, Suites: Suites, Calls: 500, Rates: []int{50_000},
		Duration: 5 * time.Second, Rounds: 5, Best: true,
	}
}

// Bounds. The sequence number of a stream may not wrap in a run, and its packets are held in memory.
const (
	maxCalls   = 2000
	maxRate    = 1_000_000
	maxRounds  = 100
	maxTime    = 20 * time.Second
	maxPackets = 4_000_000 // of a trial
	maxNumber  = 60_000    // packets of a stream in all trials of a stand
)

func (o *Options) check() error {
	for i, p := range o.Against {
		if !slices.Contains(Rivals, p) || slices.Contains(o.Against[:i], p) {
			return fmt.Errorf("%w: --vs: %q (allowed: rtpengine, once)", ErrUsage, p)
		}
	}
	for i, c := range o.Cases {
		if !slices.Contains(Cases, c) || slices.Contains(o.Cases[:i], c) {
			return fmt.Errorf("%w: --cases: %q (allowed: %s and %s, each once)", ErrUsage, c, Encrypt, ReKey)
		}
	}
	for i, s := range o.Suites {
		if !slices.Contains(Suites, s) || slices.Contains(o.Suites[:i], s) {
			return fmt.Errorf("%w: --suites: %s (allowed: %s and %s, each once)", ErrUsage, s, Suites[0], Suites[1])
		}
	}
	if len(o.Cases) == 0 || len(o.Suites) == 0 || len(o.Rates) == 0 {
		return fmt.Errorf("%w: one case, one suite and one rate at least", ErrUsage)
	}
	for i, r := range o.Rates {
		if r < 1000 || r > maxRate || slices.Contains(o.Rates[:i], r) {
			return fmt.Errorf("%w: --rates: %d (allowed: 1000-%d, each once)", ErrUsage, r, maxRate)
		}
		if n := float64(r) * o.Duration.Seconds(); n > maxPackets {
			return fmt.Errorf("%w: --duration: %.0f packets at once (allowed: %d)", ErrUsage, n, maxPackets)
		}
	}
	switch {
	case o.Duration < 100*time.Millisecond || o.Duration > maxTime:
		return fmt.Errorf("%w: --duration: %s (allowed: 100ms-%s)", ErrUsage, o.Duration, maxTime)
	case o.Rounds < 1 || o.Rounds > maxRounds:
		return fmt.Errorf("%w: --rounds: %d (allowed: 1-%d)", ErrUsage, o.Rounds, maxRounds)
	case o.Calls < 10 || o.Calls > maxCalls:
		return fmt.Errorf("%w: --calls: %d (allowed: 10-%d)", ErrUsage, o.Calls, maxCalls)
	case len(o.Builds) > 2:
		return fmt.Errorf("%w: --ringway: %d programs (allowed: OLD,NEW, or one)", ErrUsage, len(o.Builds))
	}
	return nil
}

// command repeats the run.
func (o *Options) command() string {
	list := func(n int, word func(int) string) string {
		var all []string
		for i := range n {
			all = append(all, word(i))
		}
		return strings.Join(all, ",")
	}
	words := []string{
		"ringway bench media",
		"--vs '" + list(len(o.Against), func(i int) string { return string(o.Against[i]) }) + "'",
		"--cases " + list(len(o.Cases), func(i int) string { return string(o.Cases[i]) }),
		"--suites " + list(len(o.Suites), func(i int) string { return o.Suites[i].String() }),
		"--rates " + list(len(o.Rates), func(i int) string { return strconv.Itoa(o.Rates[i]) }),
		"--calls " + strconv.Itoa(o.Calls), "--duration " + o.Duration.String(), "--rounds " + strconv.Itoa(o.Rounds),
	}
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
