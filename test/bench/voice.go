package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"ringway/quality"
	"ringway/quality/figures"
	"ringway/test/bench/probe"
	"ringway/test/lab/host"
)

// heard is what the probes of one direction saw.
type heard struct {
	direction string
	result    probe.Result // of the sending end
	far       probe.Result // of the receiving end
}

// bothWays are the directions between two probes.
func bothWays(a, b probe.Result) []heard { return []heard{{figures.AToB, a, b}, {figures.BToA, b, a}} }

// measured matches the packets sent on one of the probes' paths with those received, without the lead.
func (h heard) measured(path int, interval time.Duration) ([]quality.Stream[probe.Key], int) {
	of := func(all []quality.Sighting[probe.Key]) (out []quality.Sighting[probe.Key]) {
		for _, s := range all {
			if int(s.Key.Path) == path {
				out = append(out, s)
			}
		}
		return out
	}
	sent := of(h.result.Sent)
	// The lead is known by its sequence numbers: packets are sent by schedule.
	first := uint32(lead / interval)
	from := quality.Timestamp(0)
	for _, s := range sent {
		if s.Media >= first {
			from = s.At
			break
		}
	}
	return quality.Match(sent, of(h.far.Received), quality.MatchOptions{From: from})
}

// figures are a direction's figures in the lab's shape.
func (h heard) figures(streams []quality.Stream[probe.Key], unmatched int) figures.Direction {
	return figures.NewDirection(h.direction, quality.Summarize(streams, quality.G711),
		figures.Found{Unmatched: unmatched, CaptureLost: h.far.Overflow + uint32(h.far.TooMany)})
}

// delays are those of all packets that arrived.
func delays(streams []quality.Stream[probe.Key]) (out []time.Duration) {
	for _, s := range streams {
		for _, p := range s.Packets {
			if !p.Lost {
				out = append(out, p.Delay())
			}
		}
	}
	return out
}

// sender is a host and the configuration of its probe.
type sender struct {
	host   *host.Host
	config probe.Config
}

// exchange has all senders send at the same time and returns what each saw, in their order. while, if given,
// runs from the start of the measured part and must last as long as that.
func exchange(
	ctx context.Context,
	binary string,
	senders []sender,
	while func(context.Context) error,
) ([]probe.Result, error) {
	var clients []*probe.Client
	var length time.Duration
	for _, s := range senders {
		p, err := startProbe(s.host, binary, s.config)
		if err != nil {
			return nil, err
		}
		defer p.close()
		clients = append(clients, p.Client)
		if err := p.Ready(ctx); err != nil {
			return nil, p.explain(err)
		}
		length = max(length, s.config.Shape.Length)
	}
	at := probe.Monotonic() + startIn
	for _, p := range clients {
		if err := p.Start(at); err != nil {
			return nil, err
		}
	}
	if while != nil {
		if err := host.Pause(ctx, startIn+lead); err != nil {
			return nil, err
		}
		if err := while(ctx); err != nil {
			return nil, err
		}
	}
	patient, cancel := context.WithTimeout(ctx, at+lead+length+stragglers-probe.Monotonic())
	defer cancel()
	var waiting, taking errgroup.Group
	for _, p := range clients {
		waiting.Go(func() error { return p.Complete(patient) })
	}
	// Packets that never arrive are lost, which is not an error; the probes are then stopped while they wait.
	if err := waiting.Wait(); err != nil && !errors.Is(err, probe.ErrWaiting) {
		return nil, err
	}
	results := make([]probe.Result, len(clients))
	stopping, cancel := context.WithTimeoutCause(ctx, 20*time.Second, errors.New("the probes do not end"))
	defer cancel()
	for i, p := range clients {
		taking.Go(func() (err error) {
			results[i], err = p.Stop(stopping)
			return err
		})
	}
	if err := taking.Wait(); err != nil {
		return nil, err
	}
	return results, nil
}

// process is a probe in a process of its own.
type process struct {
	*probe.Client
	proc *host.Process
	name string
}

func startProbe(h *host.Host, binary string, c probe.Config) (*process, error) {
	cmd := h.Command(binary, "bench", "probe")
	in, inNear, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	outNear, out, err := os.Pipe()
	if err != nil {
		in.Close()
		inNear.Close()
		return nil, err
	}
	cmd.Stdin, cmd.Stdout = in, out
	// The runtime preempts goroutines that run for long; the probe's do so by design.
	cmd.Env = append(cmd.Env, "GODEBUG=asyncpreemptoff=1")
	proc, err := h.Spawn("probe", cmd)
	in.Close()
	out.Close()
	if err != nil {
		inNear.Close()
		outNear.Close()
		return nil, err
	}
	p := &process{proc: proc, name: h.Name}
	if p.Client, err = probe.NewClient(h.Name, inNear, outNear, c); err != nil {
		inNear.Close()
		outNear.Close()
		return nil, p.explain(err)
	}
	return p, nil
}

func (p *process) close() { p.Close() }

// explain adds the probe's own output.
func (p *process) explain(err error) error {
	return fmt.Errorf("%w: %s", err, p.proc.LastWords())
}
