// Package probe sends and receives voice streams and measures how late the machine wakes a thread. It runs in
// processes of its own (Main, WakeMain), so that neither a garbage collector nor the rest of a benchmark
// affects the figures: before a run everything is allocated, the collector is off, and each loop has a locked
// thread.
//
// The delay of a packet is the kernel's timestamp at its arrival (SO_TIMESTAMPNS, taken before any process is
// woken) less the sender's clock just before the system call that sends it. Both are CLOCK_REALTIME of one
// machine.
//
// A path is a pair of addresses; the package knows nothing of tunnels.
package probe

import (
	"bufio"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"ringway/quality"
	"ringway/test/lab/fifo"
)

// Config is the configuration of a probe, as a line of JSON.
type Config struct {
	Shape  Shape         `json:"shape"`
	Run    uint32        `json:"run"`    // in every packet: late packets of an earlier run are not counted
	Offset time.Duration `json:"offset"` // of the schedule, so that the two directions do not send at the same moment
	Port   int           `json:"port"`   // on which both ends listen
	TOS    int           `json:"tos"`
	Paths  []Ends        `json:"paths"`
}

// Ends are the two addresses between which a path carries packets.
type Ends struct {
	Local  string `json:"local"`
	Remote string `json:"remote"`
}

// oneFamily refuses addresses that one socket could not receive.
func oneFamily(paths []Ends) error {
	var first netip.Addr
	for i, p := range paths {
		for _, s := range []string{p.Local, p.Remote} {
			a, err := netip.ParseAddr(s)
			if err != nil {
				return fmt.Errorf("path %d: %w", i, err)
			}
			if !first.IsValid() {
				first = a
			}
			if a.Is4() != first.Is4() {
				return fmt.Errorf("path %d: %s is not of the family of %s (allowed: one family for all)", i, a, first)
			}
		}
	}
	return nil
}

// Key identifies a stream.
type Key struct {
	Path   uint8
	Stream uint16
}

// Result is what a probe saw: what it sent and what it received from the far end, each in order of time.
type Result struct {
	Sent     []quality.Sighting[Key]
	Received []quality.Sighting[Key]

	Unsent    int             // packets that the kernel refused to send; they are not in Sent
	SendError string          // the first refusal
	Late      []time.Duration // how late the sender was, packet by packet
	Overflow  uint32          // packets that overflowed our own buffer
	Strangers int             // packets that are not of this run
	TooMany   int             // arrivals beyond the capacity
	Denied    []string        // what the machine denied
}

// The lines that a probe and its parent exchange. The result follows the last one, as gob.
const (
	sayReady    = "ready"    // sockets are open
	sayComplete = "complete" // everything was sent, and everything that can arrive has arrived
	sayResult   = "result"
	tellStart   = "start" // with the time of CLOCK_MONOTONIC in nanoseconds
	tellStop    = "stop"
)

// Main is the main function of a probe: it reads its configuration, opens its sockets, starts at the given
// time and returns what it saw when it is stopped.
func Main(stdin io.Reader, stdout io.Writer) error {
	in := bufio.NewReader(stdin)
	c, err := readConfig(in)
	if err != nil {
		return err
	}
	quiet()
	s, err := newSender(c)
	if err != nil {
		return err
	}
	defer s.close()
	r, err := newReceiver(c)
	if err != nil {
		return err
	}
	defer r.close()
	var denied atomic.Pointer[error]
	received := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: its scheduling must not apply to other goroutines
		received <- r.run()
	}()
	endReceiving := sync.OnceValue(func() error {
		r.stop.Store(true)
		return <-received
	})
	defer func() { _ = endReceiving() }() // before its socket is closed
	if _, err := fmt.Fprintln(stdout, sayReady); err != nil {
		return err
	}
	start, err := readStart(in)
	if err != nil {
		return err
	}
	stop := make(chan struct{})
	go func() {
		_, _ = in.ReadString('\n') // "stop", or the exit of the parent
		close(stop)
	}()
	sent := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := fifo.RealTime(); err != nil {
			denied.Store(&err)
		}
		sent <- s.run(start, stop)
	}()
	if err := <-sent; err != nil {
		return err
	}
	select {
	case <-r.complete:
	case <-stop:
	}
	if _, err := fmt.Fprintln(stdout, sayComplete); err != nil {
		return err
	}
	<-stop
	if err := endReceiving(); err != nil {
		return err
	}
	res := newResult(s, r, denied.Load())
	if _, err := fmt.Fprintln(stdout, sayResult); err != nil {
		return err
	}
	return gob.NewEncoder(stdout).Encode(res)
}

// readConfig reads and checks the configuration, the first line of standard input.
func readConfig(in *bufio.Reader) (c Config, err error) {
	line, err := in.ReadBytes('\n')
	if err != nil {
		return c, fmt.Errorf("read the probe's configuration: %w (only `ringway bench` starts the probe)", err)
	}
	if err := json.Unmarshal(line, &c); err != nil {
		return c, fmt.Errorf("read the probe's configuration: %w", err)
	}
	c.Shape.Paths = len(c.Paths)
	if c.Shape.Paths == 0 {
		return c, errors.New("the probe has no path")
	}
	if err := c.Shape.check(); err != nil {
		return c, err
	}
	return c, oneFamily(c.Paths)
}

// newResult collects what both ends saw; denied is what the machine denied the sending thread.
func newResult(s *sender, r *receiver, denied *error) Result {
	res := Result{
		Sent: s.sent, Received: r.arrivals, Unsent: s.unsent, Late: s.late,
		Overflow: r.overflow, Strangers: r.strangers, TooMany: r.tooMany,
	}
	if s.firstError != 0 {
		res.SendError = s.firstError.Error()
	}
	if denied != nil {
		res.Denied = append(res.Denied, (*denied).Error())
	}
	if r.small != nil {
		res.Denied = append(res.Denied, r.small.Error())
	}
	return res
}

func readStart(in *bufio.Reader) (time.Duration, error) {
	line, err := in.ReadString('\n')
	if err != nil {
		return 0, errors.New("the probe was not started: its standard input ended")
	}
	var ns int64
	if _, err := fmt.Sscanf(strings.TrimSpace(line), tellStart+" %d", &ns); err != nil {
		return 0, fmt.Errorf("the probe received %q instead of its start", line)
	}
	return time.Duration(ns), nil
}

// quiet keeps the Go runtime out of the figures: no garbage collection, and a spare processor for every
// thread that returns from a system call.
func quiet() {
	debug.SetGCPercent(-1)
	runtime.GOMAXPROCS(max(8, runtime.GOMAXPROCS(0)))
}

// Monotonic is CLOCK_MONOTONIC now, by which probes synchronize their start.
func Monotonic() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts) // cannot fail with this clock
	return time.Duration(ts.Nano())
}

// sleepUntil returns when CLOCK_MONOTONIC has reached at.
func sleepUntil(at time.Duration) {
	ts := unix.NsecToTimespec(int64(at))
	for unix.ClockNanosleep(unix.CLOCK_MONOTONIC, unix.TIMER_ABSTIME, &ts, nil) == unix.EINTR {
	}
}
