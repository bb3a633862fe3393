package bench

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"ringway/test/bench/report"
	"ringway/test/bench/tester"
	"ringway/test/lab"
	"ringway/test/lab/bulk"
	"ringway/test/lab/host"
)

// linkLoad fills the links of all paths.
type linkLoad struct {
	flows  [][2]*bulk.Running
	floods [][2]*flood
}

var directions = [2][2]string{{lab.PCA, lab.PCB}, {lab.PCB, lab.PCA}}

// fill loads all links in both directions at the same time and returns once the load has run for bulk.WarmUp.
func (r *linkRun) fill(ctx context.Context, s *linkLab, kind string) (*linkLoad, error) {
	l := &linkLoad{flows: make([][2]*bulk.Running, len(s.paths)), floods: make([][2]*flood, len(s.paths))}
	if kind == report.Alone {
		return l, nil
	}
	var g errgroup.Group
	for i, p := range s.paths {
		for d, pcs := range directions {
			from, to := p.pair.Host(pcs[0]), p.pair.Host(pcs[1])
			g.Go(func() (err error) {
				if kind == report.TCP {
					l.flows[i][d], err = bulk.Start(
						ctx,
						from,
						to,
						bulk.Options{To: p.pair.Address(pcs[1]), Flows: linkFlows},
					)
				} else {
					l.floods[i][d], err = r.flood(ctx, s, p, pcs, uint32(d))
				}
				if err != nil {
					err = fmt.Errorf("%s: %w", p.name, err)
				}
				return err
			})
		}
	}
	if err := g.Wait(); err != nil {
		l.kill()
		return nil, err
	}
	return l, nil
}

// flood is UDP in one direction. The receiver exists so that nothing answers with "port unreachable".
type flood struct {
	sender, receiver *tester.Client
	trial            tester.Trial
	sent             chan error    // error, or nil
	ended            chan struct{} // closed when all is sent
}

func (r *linkRun) flood(
	ctx context.Context,
	s *linkLab,
	p linkPath,
	pcs [2]string,
	number uint32,
) (_ *flood, err error) {
	f := &flood{
		sent:  make(chan error, 1),
		ended: make(chan struct{}),
		trial: tester.Trial{Number: r.run*2 + number, Sizes: []int{p.flooding},
			Rate:   linkFlood * float64(s.rate) / 8 / float64(p.flooding),
			Length: bulk.WarmUp + 2*startIn + lead + r.o.Duration + r.beyond},
	}
	defer func() {
		if err != nil {
			f.kill()
		}
	}()
	local, remote := p.pair.Address(pcs[0]), p.pair.Address(pcs[1])
	for _, end := range []struct {
		on     string
		client **tester.Client
		config tester.Config
	}{
		{pcs[1], &f.receiver, tester.Config{Receive: true, Local: remote, Remote: local, Port: floodPort, Load: true}},
		{pcs[0], &f.sender, tester.Config{Local: local, Remote: remote, Port: floodPort, Load: true}},
	} {
		proc, client, err := startTester(p.pair.Host(end.on), s.lab.Options.Helper, end.config)
		if err != nil {
			return f, err
		}
		*end.client = client
		if err := client.Ready(ctx); err != nil {
			return f, fmt.Errorf("%w: %s", err, proc.LastWords())
		}
	}
	go func() {
		sent, err := f.sender.Send(ctx, f.trial)
		if err == nil && sent.Packets < f.trial.Packets()*9/10 {
			err = fmt.Errorf(
				"%s sent %d packets of a flood of %d in %s, %d were refused (%s)",
				pcs[0],
				sent.Packets,
				f.trial.Packets(),
				sent.Took,
				sent.Refused,
				sent.Error,
			)
		}
		f.sent <- err
		close(f.ended)
	}()
	return f, host.Pause(ctx, bulk.WarmUp)
}

// floodBeyond is how much longer than voice a flood lasts, on a machine that is not overloaded.
const floodBeyond = 5 * time.Second

// errFloodOver: processes took seconds to start, and part of the measurement was without the flood. Such a
// round is repeated.
var errFloodOver = errors.New("the flood ended before the voice streams (is the machine too busy?)")

const floodAgain = 3

// lasted rejects the figures of a path whose flood ended before them.
func (l *linkLoad) lasted(path int) error {
	for _, f := range l.floods[path] {
		if f == nil {
			continue
		}
		select {
		case <-f.ended:
			return errFloodOver
		default:
		}
	}
	return nil
}

// stop waits for the end of the flood, so that it does not affect what follows.
func (f *flood) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, f.trial.Length+20*time.Second, errors.New("the flood does not end"))
	defer cancel()
	select {
	case err := <-f.sent:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (f *flood) kill() {
	for _, c := range []*tester.Client{f.sender, f.receiver} {
		if c != nil {
			c.Close()
		}
	}
}

// stop ends the load.
func (l *linkLoad) stop(ctx context.Context) error {
	var g errgroup.Group
	for i := range l.floods {
		for _, f := range l.floods[i] {
			if f != nil {
				g.Go(func() error { return f.stop(ctx) })
			}
		}
	}
	return g.Wait()
}

func (l *linkLoad) kill() {
	for i := range l.flows {
		for d := range directions {
			if f := l.flows[i][d]; f != nil {
				f.Kill()
			}
			if f := l.floods[i][d]; f != nil {
				f.kill()
			}
		}
	}
}
