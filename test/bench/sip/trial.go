package sip

import (
	"context"
	"errors"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"ringway/test/bench/cost"
	"ringway/test/bench/rival"
	"ringway/test/lab/host"
)

// trial is one run of calls through one path.
type trial struct {
	name  string // that begins the Call-IDs
	rate  int    // calls a second
	count int
	hold  time.Duration
	rest  time.Duration            // that the last calls are given to end
	up    func(answered int) error // called once all are up; nil: not
}

// Pauses: what is done after the last message is part of the calls' cost.
const (
	restTime   = 5 * time.Second
	afterwards = 500 * time.Millisecond
	look       = 5 * time.Millisecond
	firstPort  = 2000
	ports      = 31_000 // pairs of them
)

// run places calls and takes account of them.
func (s *stand) run(ctx context.Context, t trial) (Trial, error) {
	before, err := s.usage()
	if err != nil {
		return Trial{}, err
	}
	a := &answerer{socket: s.callee, address: pbx, trial: t.name,
		port: func(n int) int { return firstPort + 2*(n%ports) }}
	c := &caller{
		socket: s.caller, phones: phoneAddresses(), pbx: pbx, trial: t.name, rate: t.rate, count: t.count, hold: t.hold,
		next:  unix.SockaddrInet4{Port: sipPort, Addr: s.nextHop},
		phone: func(n int) int { return n % phoneCount },
		port:  func(n int) int { return firstPort + 2*(n/phoneCount%ports) },
	}
	if err := c.prepare(); err != nil {
		return Trial{}, err
	}
	start := time.Now()
	err = s.carry(ctx, t, c, a)
	took := time.Since(start)
	if err != nil {
		return Trial{}, err
	}
	if err := host.Pause(ctx, afterwards); err != nil {
		return Trial{}, err
	}
	after, err := s.usage()
	if err != nil {
		return Trial{}, err
	}
	return s.account(t, c, a, before, after, took)
}

// carry runs the ends until all calls are over, or the last ones had their time.
func (s *stand) carry(ctx context.Context, t trial, c *caller, a *answerer) error {
	threads := []func() error{c.place, c.receive, a.run}
	ended := make(chan error, len(threads))
	for _, f := range threads {
		go func() { ended <- cost.OnCore(s.cores.Ends, f) }()
	}
	err := s.wait(ctx, t, c)
	c.over.Store(true)
	a.over.Store(true)
	for range threads {
		err = errors.Join(err, <-ended)
	}
	return err
}

func (s *stand) wait(ctx context.Context, t trial, c *caller) error {
	placing := time.Duration(t.count) * time.Second / time.Duration(t.rate)
	deadline := time.Now().Add(placing + t.hold + t.rest)
	for time.Now().Before(deadline) {
		up, over := c.progress()
		if over == t.count {
			return nil
		}
		if t.up != nil && up == t.count {
			if err := t.up(up); err != nil {
				return err
			}
			t.up = nil
		}
		if err := host.Pause(ctx, look); err != nil {
			return err
		}
		if err := s.alive(); err != nil {
			return err
		}
	}
	return nil
}

// account makes the trial's figures.
func (s *stand) account(t trial, c *caller, a *answerer, before, after usage, took time.Duration) (Trial, error) {
	calls := float64(t.count)
	r := Trial{
		Restarted: !slices.Equal(before.pids, after.pids),
		Placed:    t.count, Lost: t.count - c.done, Refused: c.refuse, SenderLateUS: us(c.late),
		CPUPerCallUS:     us(after.cpu-before.cpu) / calls,
		SoftIRQPerCallUS: us(after.softirq-before.softirq) / calls,
		Overflow:         int(c.dropped + a.dropped),
		BacklogDrops:     after.backlog - before.backlog,
		Seconds:          took.Seconds(),
	}
	if r.Restarted { // the clock of a process ends with it
		r.CPUPerCallUS = 0
	}
	all := a.delays
	for k := range all {
		all[k] = append(all[k], c.delays[k]...)
	}
	r.Messages = map[string]Quantiles{}
	var together []int64
	for k, d := range all {
		if len(d) > 0 {
			r.Messages[kindNames[k]] = quantiles(d)
		}
		together = append(together, d...)
	}
	r.Delay = quantiles(together)
	return r, nil
}

func us(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// quantiles sorts its argument.
func quantiles(ns []int64) Quantiles {
	if len(ns) == 0 {
		return Quantiles{}
	}
	slices.Sort(ns)
	at := func(q float64) float64 { return float64(cost.Quantile(ns, q)) / 1000 }
	return Quantiles{P50: at(0.5), P99: at(0.99)}
}

// usage is what a path has used of the processor.
type usage struct {
	pids    []int
	cpu     time.Duration // of its processes
	softirq time.Duration // of the box's core, whoever caused it, sampled by the kernel's tick
	backlog int           // packets that cores have dropped because too many waited for them
}

func (s *stand) usage() (u usage, err error) {
	if s.process == nil {
		return u, nil
	}
	if u.pids, err = s.processes(); err != nil {
		return u, err
	}
	slices.Sort(u.pids)
	if u.cpu, err = rival.CPUTime(u.pids); err != nil {
		return u, err
	}
	if u.softirq, err = cost.SoftIRQ(s.cores.Box); err != nil {
		return u, err
	}
	u.backlog, err = cost.BacklogDrops()
	return u, err
}

// memory is what the path's processes hold, with their parts of what they share.
func (s *stand) memory() (bytes int, err error) {
	pids, err := s.processes()
	if err != nil {
		return 0, err
	}
	return cost.Memory(pids)
}
