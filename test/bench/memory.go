package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"ringway/test/bench/report"
	"ringway/test/lab"
	"ringway/test/lab/host"
	"ringway/test/lab/program"
	"ringway/tunnel"
	"ringway/units"
)

// MemoryOptions are the options of `ringway bench memory`.
type MemoryOptions struct {
	Helper  string // whose helpers run on the hosts; empty: this program
	Version string // required of a ringway that is not given; empty: any
	Sites   []int  // how many other sites the config has
}

// DefaultMemory is a small branch, and a hub.
func DefaultMemory() MemoryOptions { return MemoryOptions{Sites: []int{2, 500}} }

// Bounds, and how long a daemon that is ready is given until its memory is read.
const (
	maxSites   = 2000
	memorySite = time.Minute // to be ready with all sites
	settleFor  = 3 * time.Second
)

func (o *MemoryOptions) check() error {
	if len(o.Sites) == 0 {
		return fmt.Errorf("%w: --sites: none is given (allowed: 1-%d)", ErrUsage, maxSites)
	}
	for i, n := range o.Sites {
		if n < 1 || n > maxSites || slices.Contains(o.Sites[:i], n) {
			return fmt.Errorf("%w: --sites: %d (allowed: 1-%d, each once)", ErrUsage, n, maxSites)
		}
	}
	return nil
}

func (o *MemoryOptions) command() string {
	var sites []string
	for _, n := range o.Sites {
		sites = append(sites, strconv.Itoa(n))
	}
	return "ringway bench memory --sites " + strings.Join(sites, ",")
}

// memory is what one build's processes hold.
type memory []report.Figure

func (m memory) Figures() []report.Figure { return m }

// MeasureMemory reads how much memory the daemon and the planes of each build hold with each number of sites.
// Nothing is left when it returns. It needs root.
func MeasureMemory(ctx context.Context, b BuildsOptions, o MemoryOptions) (report.Builds, error) {
	if err := o.check(); err != nil {
		return report.Builds{}, err
	}
	if len(b.Builds) == 0 {
		path, err := program.Find(o.Version)
		if err != nil {
			return report.Builds{}, err
		}
		b.Builds = []string{path}
	}
	b.Benchmark, b.Command = "memory", o.command()
	return CompareBuilds(ctx, b, func(ctx context.Context, build string) (reported, error) {
		var all memory
		for _, n := range o.Sites {
			one, err := o.measure(ctx, build, n)
			if err != nil {
				return nil, fmt.Errorf("%d sites: %w", n, err)
			}
			all = append(all, one...)
		}
		return all, nil
	})
}

// measure starts a branch with so many sites from nothing. One of them is there, the others never dial in.
func (o *MemoryOptions) measure(ctx context.Context, build string, sites int) (memory, error) {
	l, err := lab.New(ctx, lab.Options{Binary: build, Helper: o.Helper, WAN: units.Gbit, NoCalls: true})
	if err != nil {
		return nil, err
	}
	defer l.Close()

	e := l.Edge("a")
	if err := addSites(ctx, e, sites-1); err != nil {
		return nil, err
	}
	ready, cancel := context.WithTimeoutCause(ctx, memorySite, fmt.Errorf("not ready after %s", memorySite))
	defer cancel()
	status, err := waitReady(ready, e)
	if err != nil {
		return nil, err
	}
	if err := host.Pause(ctx, settleFor); err != nil {
		return nil, err
	}

	var out memory
	add := func(who string, pid int) error {
		n, err := resident(e, pid)
		if err != nil {
			return fmt.Errorf("%s: %w", who, err)
		}
		out = append(out, report.Figure{What: fmt.Sprintf("%d sites, %s", sites, who), Unit: "KiB", Value: n})
		return nil
	}
	err = add("daemon", status.PID)
	for _, class := range []tunnel.Class{tunnel.Voice, tunnel.Data} {
		device, ok := status.Tunnel(class)
		if !ok {
			return nil, fmt.Errorf("the daemon has no tunnel of class %s", class)
		}
		err = errors.Join(err, add(string(class)+" plane", device.PlanePID))
	}
	return out, err
}

// addSites gives the edge's config so many sites more, and starts it again from nothing.
func addSites(ctx context.Context, e *lab.Edge, more int) error {
	text, err := e.Config()
	if err != nil {
		return err
	}
	var b strings.Builder
	b.WriteString("sites:\n")
	for i := range more {
		key, err := tunnel.NewPrivateKey()
		if err != nil {
			return err
		}
		fmt.Fprintf(
			&b,
			"  - {name: branch-%d, public_key: %s, downlink: 20mbit, voice_networks: 10.%d.%d.0/24, data_networks: "+
				"10.%d.%d.0/24}\n",
			i,
			key.Public(),
			100+i/250,
			i%250,
			110+i/250,
			i%250,
		)
	}
	if _, err := e.Ringway(ctx, "stop"); err != nil {
		return err
	}
	if err := e.WriteConfig([]byte(strings.Replace(string(text), "sites:\n", b.String(), 1))); err != nil {
		return err
	}
	return e.Start(ctx)
}

func waitReady(ctx context.Context, e *lab.Edge) (lab.Status, error) {
	for {
		s, err := e.Status(ctx)
		if err == nil && s.Ready {
			return s, nil
		}
		if perr := host.Pause(ctx, 100*time.Millisecond); perr != nil {
			return s, errors.Join(perr, err)
		}
	}
}

var residentLine = regexp.MustCompile(`(?m)^VmRSS:\s+(\d+) kB$`)

// resident is how much memory a process of the edge holds, in KiB (VmRSS, proc_pid_status(5)). pid is as the
// host counts.
func resident(e *lab.Edge, pid int) (float64, error) {
	text, err := os.ReadFile(e.Path(fmt.Sprintf("/proc/%d/status", pid)))
	if err != nil {
		return 0, fmt.Errorf("read its memory: %w", err)
	}
	m := residentLine.FindSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("read its memory: process %d has no VmRSS", pid)
	}
	return strconv.ParseFloat(string(m[1]), 64)
}
