package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"ringway/quality"
	"ringway/test/bench/probe"
	"ringway/test/lab/host"
	lab "ringway/test/lab/report"
)

// heard is what one direction's probes saw.
type heard struct {
	direction string
	result    probe.Result // of the sending end
	far       probe.Result // of the receiving end
}

// bothWays are the directions between two probes.
func bothWays(a, b probe.Result) []heard { return []heard{{lab.AToB, a, b}, {lab.BToA, b, a}} }

// measured matches what was sent on one of the probes' paths with what came, without the lead.
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
	// The lead is known by its numbers: they are sent by schedule.
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

// figures are a direction's in the lab's shape.
func (h heard) figures(streams []quality.Stream[probe.Key], unmatched int) lab.Direction {
	return lab.NewDirection(h.direction, quality.Summarize(streams, quality.G711),
		lab.Found{Unmatched: unmatched, CaptureLost: h.far.Overflow + uint32(h.far.TooMany)})
}

// delays are those of all packets that came.
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

// speaker is a host with what its probe is told.
type speaker struct {
	host   *host.Host
	config probe.Config
}

// converse has all speakers send at the same time and gives what each saw, in their order. while, where it is given, runs from the
// moment in which what is measured begins; what it measures is to last as long as that.
func converse(ctx context.Context, binary string, speakers []speaker, while func(context.Context) error) ([]probe.Result, error) {
	var clients []*probe.Client
	var length time.Duration
	for _, s := range speakers {
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
	// What never comes is lost, and no error; the probes are then told to stop in the middle of their waiting.
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
	// The runtime's monitor may interrupt a thread that runs for long; ours do so on purpose.
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

// explain adds what the probe itself said.
func (p *process) explain(err error) error {
	return fmt.Errorf("%w: %s", err, p.proc.LastWords())
}
