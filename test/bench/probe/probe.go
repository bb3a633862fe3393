// Package probe sends and receives voice streams and measures how late the machine wakes a thread. It runs in processes of
// its own (Main, WakeMain), so that neither a collector nor the rest of a benchmark is in the figures: before
// a run everything is allocated, the collector is off, and each loop has a locked thread.
//
// The delay of a packet is the kernel's timestamp at its arrival (SO_TIMESTAMPNS, taken before any process is woken) less the
// sender's clock just before the system call that sends it. Both are CLOCK_REALTIME of one machine.
//
// test/bench imports it, and cmd/ringway for its hidden commands. It knows no tunnel: a path is a pair of addresses.
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

// Config is what a probe is told, as a line of JSON.
type Config struct {
	Shape  Shape         `json:"shape"`
	Run    uint32        `json:"run"`    // in every packet: stragglers of an earlier run are not this one's
	Offset time.Duration `json:"offset"` // of the schedule, so that the two directions do not send at the same moment
	Port   int           `json:"port"`   // where the far end listens, and this one
	TOS    int           `json:"tos"`
	Paths  []Ends        `json:"paths"`
}

// Ends are the two addresses between which a path carries packets.
type Ends struct {
	Local  string `json:"local"`
	Remote string `json:"remote"`
}

// oneFamily refuses what one socket could not hear.
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

// Key names a stream.
type Key struct {
	Path   uint8
	Stream uint16
}

// Result is what a probe saw: what left it, and what reached it from the far end, each in order of time.
type Result struct {
	Sent     []quality.Sighting[Key]
	Received []quality.Sighting[Key]

	Unsent    int             // packets that the kernel refused to send; they are not in Sent
	SendError string          // the first refusal
	Late      []time.Duration // how late the sender was, packet by packet
	Overflow  uint32          // packets that arrived and found our own buffer full
	Strangers int             // packets that are not of this run
	TooMany   int             // arrivals beyond what there was room to note
	Denied    []string        // what the machine did not allow
}

// The words between a probe and whoever started it, a line each. The result follows the last one, as gob.
const (
	sayReady    = "ready"    // sockets are open
	sayComplete = "complete" // everything was sent, and everything that can come has come
	sayResult   = "result"
	tellStart   = "start" // with the time of CLOCK_MONOTONIC in nanoseconds
	tellStop    = "stop"
)

// Main is the life of a probe: it reads its configuration, opens its sockets, starts at the time that it is told and
// hands over what it saw when it is told to stop.
func Main(stdin io.Reader, stdout io.Writer) error {
	in := bufio.NewReader(stdin)
	line, err := in.ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("read the probe's configuration: %w (the probe is started by `ringway bench`)", err)
	}
	var c Config
	if err := json.Unmarshal(line, &c); err != nil {
		return fmt.Errorf("read the probe's configuration: %w", err)
	}
	c.Shape.Paths = len(c.Paths)
	if c.Shape.Paths == 0 {
		return errors.New("the probe was told no path")
	}
	if err := c.Shape.check(); err != nil {
		return err
	}
	if err := oneFamily(c.Paths); err != nil {
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
		runtime.LockOSThread() // never unlocked: its scheduling must serve nobody else
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
		_, _ = in.ReadString('\n') // "stop", or the end of whoever started us
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
	res := Result{Sent: s.sent, Received: r.arrivals, Unsent: s.unsent, Late: s.late,
		Overflow: r.overflow, Strangers: r.strangers, TooMany: r.tooMany}
	if s.firstError != 0 {
		res.SendError = s.firstError.Error()
	}
	if err := denied.Load(); err != nil {
		res.Denied = append(res.Denied, (*err).Error())
	}
	if r.small != nil {
		res.Denied = append(res.Denied, r.small.Error())
	}
	if _, err := fmt.Fprintln(stdout, sayResult); err != nil {
		return err
	}
	return gob.NewEncoder(stdout).Encode(res)
}

func readStart(in *bufio.Reader) (time.Duration, error) {
	line, err := in.ReadString('\n')
	if err != nil {
		return 0, errors.New("the probe was not started: its standard input ended")
	}
	var ns int64
	if _, err := fmt.Sscanf(strings.TrimSpace(line), tellStart+" %d", &ns); err != nil {
		return 0, fmt.Errorf("the probe was told %q in place of its start", line)
	}
	return time.Duration(ns), nil
}

// quiet keeps the runtime out of the figures: no collection, and a spare processor for every thread that comes back from a system call.
func quiet() {
	debug.SetGCPercent(-1)
	runtime.GOMAXPROCS(max(8, runtime.GOMAXPROCS(0)))
}

// Monotonic is CLOCK_MONOTONIC now, by which probes start together.
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
