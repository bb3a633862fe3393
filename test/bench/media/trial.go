package media

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"ringway/test/bench/cost"
	"ringway/test/bench/rival"
	"ringway/test/lab/host"
)

// restTime is what the last packets are given to come; look is how often it is looked whether they have.
const (
	restTime = 300 * time.Millisecond
	look     = 5 * time.Millisecond
)

// run sends media through the path, and takes account of it.
func (s *stand) run(ctx context.Context, rate int, d time.Duration, keep bool) (t Trial, err error) {
	each := max(1, int(float64(rate)*d.Seconds()/float64(len(s.flows))+0.5))
	b, err := newBatch(s.flows, each)
	if err != nil {
		return t, err
	}
	e := &ends{
		sockets: s.sockets, to: s.to, batch: b, gap: time.Second / time.Duration(rate), keep: keep,
		sent: make([]int64, b.len()), came: make([]int64, b.len()), wrong: make([]error, 2),
	}
	before, err := s.usage()
	if err != nil {
		return t, err
	}
	start := time.Now()
	if err := s.carry(ctx, e); err != nil {
		return t, errors.Join(err, s.alive())
	}
	took := time.Since(start)
	after, err := s.usage()
	if err != nil {
		return t, errors.Join(err, s.alive())
	}
	return s.account(e, before, after, took)
}

// carry runs the ends until all packets were sent, and the last ones had their time.
func (s *stand) carry(ctx context.Context, e *ends) error {
	sent, received := make(chan error, 1), make(chan error, 2)
	go func() { sent <- cost.OnCore(s.cores.Ends, e.send) }()
	for end := range 2 {
		go func() { received <- cost.OnCore(s.cores.Ends, func() error { return e.receive(end) }) }()
	}
	var err error
	for waiting := true; waiting && err == nil; {
		select {
		case err = <-sent:
			waiting = false
		case <-ctx.Done():
			err = ctx.Err()
			e.over.Store(true)
			<-sent
			waiting = false
		}
	}
	if err == nil {
		err = host.Pause(ctx, restTime)
	}
	e.over.Store(true)
	return errors.Join(err, <-received, <-received)
}

// usage is what a path has used of the processor.
type usage struct {
	pids    []int
	process time.Duration // of its processes
	idle    time.Duration // that the box's core had nothing to do
	softirq time.Duration // of its other time, sampled by the kernel's tick
	backlog int           // packets that cores have dropped because too many waited for them
	at      time.Time
}

func (s *stand) usage() (u usage, err error) {
	u.at = time.Now()
	if u.idle, err = unused(s.cores.Box); err != nil {
		return u, err
	}
	if u.softirq, err = cost.SoftIRQ(s.cores.Box); err != nil {
		return u, err
	}
	if u.backlog, err = cost.BacklogDrops(); err != nil || s.process == nil {
		return u, err
	}
	if u.pids, err = s.processes(); err != nil {
		return u, err
	}
	slices.Sort(u.pids)
	u.process, err = rival.CPUTime(u.pids)
	return u, err
}

// unused is the time that a core had nothing to do, which the kernel does not sample but measures, or was taken away by
// the host of a virtual machine (proc_stat(5)).
func unused(core int) (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("read the CPU counters: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		if len(f) <= 8 || f[0] != fmt.Sprintf("cpu%d", core) {
			continue
		}
		var sum int64
		for _, x := range []string{f[4], f[5], f[8]} { // idle, iowait, steal
			n, err := strconv.ParseInt(x, 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read the CPU counters: %w", err)
			}
			sum += n
		}
		return time.Duration(sum) * 10 * time.Millisecond, nil
	}
	return 0, fmt.Errorf("read the CPU counters: there is no core %d", core)
}

// account makes the trial's figures.
func (s *stand) account(e *ends, before, after usage, took time.Duration) (t Trial, err error) {
	if err := errors.Join(e.wrong...); err != nil {
		return t, fmt.Errorf("%s: what arrives is not what was agreed: %w", s.name, err)
	}
	if !slices.Equal(before.pids, after.pids) {
		return t, fmt.Errorf("%s: one of its processes was replaced", s.name)
	}
	n := e.batch.len()
	delays := make([]int64, 0, n)
	for i, at := range e.came {
		if at != 0 {
			delays = append(delays, at-e.sent[i])
		}
	}
	slices.Sort(delays)
	us := func(q float64) float64 { return float64(cost.Quantile(delays, q)) / 1000 }
	per := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / float64(n) }
	return Trial{
		Sent: n, Lost: n - len(delays), Twice: e.twice[0] + e.twice[1], Strange: e.strange[0] + e.strange[1],
		Overflow: int(e.dropped[0] + e.dropped[1]), BacklogDrops: after.backlog - before.backlog,
		CoreNS:    per(after.at.Sub(before.at) - (after.idle - before.idle)),
		ProcessNS: per(after.process - before.process), SoftIRQNS: per(after.softirq - before.softirq),
		Delay:        Quantiles{us(0.5), us(0.99), us(0.999)},
		SenderLateUS: float64(e.late) / 1000, Seconds: took.Seconds(),
	}, nil
}

// check sends a few packets of each flow until all arrive, and opens them.
func (s *stand) check(ctx context.Context) error {
	for {
		t, err := s.run(ctx, 20_000, 3*time.Duration(len(s.flows))*time.Second/20_000, true)
		switch {
		case err != nil:
			return err
		case t.Lost == 0:
			return nil
		}
		if err := host.Pause(ctx, 50*time.Millisecond); err != nil {
			return fmt.Errorf("%s: %d of %d packets do not arrive: %w", s.name, t.Lost, t.Sent, err)
		}
	}
}
