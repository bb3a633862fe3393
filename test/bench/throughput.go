package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ringway/quality/figures"
	"ringway/test/bench/report"
	"ringway/test/bench/rival"
	"ringway/test/bench/tester"
	"ringway/test/lab"
	"ringway/test/lab/host"
	"ringway/test/lab/program"
)

// Throughput is a finished run.
type Throughput struct{ Report report.Throughput }

// JSON writes the report as JSON; its fields are stable.
func (t Throughput) JSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(t.Report)
}

// Table prints the report as text.
func (t Throughput) Table(w io.Writer) error { return report.ThroughputTable(w, t.Report) }

// throughputRun is a run in progress.
type throughputRun struct {
	o     ThroughputOptions
	say   func(format string, args ...any)
	out   report.Throughput
	trial uint32
	guess map[string]float64 // start of the next search for an engine and size
}

// MeasureThroughput searches the highest rate without loss for each engine in turn: while one is measured, no
// other runs. It leaves nothing behind. It needs root.
func MeasureThroughput(ctx context.Context, o ThroughputOptions) (Throughput, error) {
	if err := o.check(); err != nil {
		return Throughput{}, err
	}
	begin := time.Now()
	r := &throughputRun{o: o, say: progress(o.Progress), guess: map[string]float64{}}
	var kinds []rival.Kind
	for _, e := range o.Engines {
		kind, _ := e.way()
		kinds = append(kinds, kind)
	}
	if err := r.o.Programs.Find(ctx, kinds, r.say); err != nil {
		return Throughput{}, err
	}
	if o.OneCore {
		if _, err := host.LookPath("nft"); err != nil {
			return Throughput{}, errors.New(
				"--one-core needs nft, to keep the far end from decrypting (on Debian: apt-get install nftables)",
			)
		}
		// It will be bound to one core. As on a machine with one core, it then runs that many threads (and is
		// faster than with two threads on one core).
		r.o.Programs.Cores = 1
	}
	identity, err := program.Identify(ctx, r.o.Programs.Ringway)
	if err != nil {
		return Throughput{}, err
	}
	r.out = report.Throughput{
		Ringway: identity, Machine: figures.ThisMachine(),
		Settings: report.ThroughputSettings{
			Build:        identity.Version,
			TrialSeconds: o.Trial.Seconds(),
			Resolution:   o.Resolution,
			Loss:         o.Loss,
			OneCore:      o.OneCore,
			Rounds:       o.Rounds,
			IMIX:         imix,
			Started:      begin.UTC().Format(time.RFC3339),
			Command:      o.command(),
		},
		Denied: []string{},
	}
	for _, s := range o.Sizes {
		row := report.ThroughputSize{Size: sizeName(s), IPBytes: meanSize(s)}
		for _, e := range o.Engines {
			row.Engines = append(row.Engines, report.ThroughputEngine{Name: string(e)})
		}
		r.out.Sizes = append(r.out.Sizes, row)
	}
	for round := 1; round <= o.Rounds; round++ {
		for i, e := range o.Engines {
			if err := r.engine(ctx, i, round); err != nil {
				return Throughput{}, fmt.Errorf("engine %s, round %d: %w", e, round, err)
			}
		}
	}
	r.out.Summarize(string(Stock))
	return Throughput{r.out}, nil
}

// progress prints messages with the time since it was created.
func progress(w io.Writer) func(format string, args ...any) {
	begin := time.Now()
	return func(format string, args ...any) {
		if w != nil {
			fmt.Fprintf(w, "%6.1fs  %s\n", time.Since(begin).Seconds(), fmt.Sprintf(format, args...))
		}
	}
}

// setup is a tunnel alone between two testers.
type setup struct {
	stand     *stand
	sender    *tester.Client
	receiver  *tester.Client
	a, b      []int // processes that carry packets at the sender's and at the receiver's edge
	left      func() (left, error)
	processes [2]*host.Process // of the sender and of the receiver
}

// engine measures all sizes of one engine, on a testbed of its own.
func (r *throughputRun) engine(ctx context.Context, index, round int) error {
	e := r.o.Engines[index]
	kind, planeEngine := e.way()
	r.say("round %d of %d: %s", round, r.o.Rounds, e)
	s, err := newStand(ctx, r.o.Programs.Helper, lab.IPv4, 1)
	if err != nil {
		return err
	}
	defer s.close()
	if err := s.join(ctx, []rival.Kind{kind}, r.o.Programs, planeEngine, func(string, ...any) {}); err != nil {
		return err
	}
	c := &setup{stand: s}
	defer c.close()
	if c.a, c.b, err = s.paths[0].tunnel.Engines(); err != nil {
		return err
	}
	a, b := s.edges()
	r.deny(rival.Denied(a, b)...)
	if err := r.startTesters(ctx, c); err != nil {
		return err
	}
	if r.o.OneCore {
		if err := r.isolate(ctx, c, c.processes[0].PID(), c.processes[1].PID()); err != nil {
			return err
		}
	}
	for i, size := range r.o.Sizes {
		row := &r.out.Sizes[i].Engines[index]
		row.Program = s.paths[0].tunnel.Program
		done, err := r.size(ctx, c, e, size)
		if err != nil {
			return fmt.Errorf("%s bytes: %w", sizeName(size), c.explain(err))
		}
		done.Round = round
		row.Rounds = append(row.Rounds, done)
		r.say("  %s bytes: %.0f packets/s", sizeName(size), done.PacketsPerS)
	}
	return s.alive()
}

// startTesters starts the sender at a's phone and the receiver at b's.
func (r *throughputRun) startTesters(ctx context.Context, c *setup) error {
	for i, phone := range []string{phoneA, phoneB} {
		on, path := phone, c.stand.ends(phone)[0]
		if r.o.OneCore && phone == phoneA {
			// From the edge itself: that saves a cable and the forwarding of a packet, so that the tester is
			// faster than the engine.
			on, path.Local = edgeA, nearA
		}
		p, client, err := startTester(c.stand.hosts[on], r.o.Programs.Helper, tester.Config{
			Receive: phone == phoneB, Local: path.Local, Remote: path.Remote, Port: testerPort, TOS: expedited,
		})
		if err != nil {
			return err
		}
		c.processes[i] = p
		if phone == phoneA {
			c.sender = client
		} else {
			c.receiver = client
		}
		if err := client.Ready(ctx); err != nil {
			return fmt.Errorf("%w: %s", err, p.LastWords())
		}
	}
	return nil
}

// explain adds what the tunnel and the testers printed.
func (c *setup) explain(err error) error {
	return errors.Join(err, c.stand.alive(),
		fmt.Errorf("the testers printed: %s %s", c.processes[0].LastWords(), c.processes[1].LastWords()))
}

func (c *setup) close() {
	for _, t := range []*tester.Client{c.sender, c.receiver} {
		if t != nil {
			t.Close()
		}
	}
}

func (r *throughputRun) deny(words ...string) {
	for _, w := range words {
		if w != "" && !slices.Contains(r.out.Denied, w) {
			r.out.Denied = append(r.out.Denied, w)
		}
	}
}

func startTester(h *host.Host, binary string, config tester.Config) (*host.Process, *tester.Client, error) {
	cmd := h.Command(binary, "bench", "tester")
	in, inNear, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer in.Close()
	outNear, out, err := os.Pipe()
	if err != nil {
		inNear.Close()
		return nil, nil, err
	}
	defer out.Close()
	cmd.Stdin, cmd.Stdout = in, out
	// The runtime preempts goroutines that run for long; the tester's do so by design.
	cmd.Env = append(cmd.Env, "GODEBUG=asyncpreemptoff=1")
	p, err := h.Spawn("tester", cmd)
	if err == nil {
		var c *tester.Client
		if c, err = tester.NewClient(h.Name, inNear, outNear, config); err == nil {
			return p, c, nil
		}
	}
	inNear.Close()
	outNear.Close()
	return nil, nil, err
}

// isolate gives the sender's engine a core of its own and everything else the others, and takes the far end
// out of the measurement: with few cores it would be the bottleneck. It still answers handshakes, but data
// messages for it are dropped on arrival; what counts is what the near engine reports as sent.
func (r *throughputRun) isolate(ctx context.Context, c *setup, others ...int) error {
	var allowed, one, rest unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return fmt.Errorf("read the allowed cores: %w", err)
	}
	core := -1
	for i := range runtime.NumCPU() * 64 { // numbers may have gaps
		if allowed.IsSet(i) {
			core = i // the last: interrupts like the first
		}
	}
	rest = allowed
	rest.Clear(core)
	one.Set(core)
	if rest.Count() == 0 {
		return fmt.Errorf("%w: --one-core: this program may use one core, and the tester needs another", ErrUsage)
	}
	if err := rival.Pin(c.a, &one); err != nil {
		return err
	}
	if err := rival.Pin(append(others, c.b...), &rest); err != nil {
		return err
	}
	t := c.stand.paths[0].tunnel
	if _, err := c.stand.hosts[edgeB].RunInput(ctx, t.DropData(), "nft", "-f", "-"); err != nil {
		return fmt.Errorf("drop data at the far end: %w", err)
	}
	edge := c.stand.hosts[edgeA]
	c.left = func() (l left, err error) {
		if l.bytes, err = t.SentBytes(edge); err == nil {
			l.dropped, err = t.DeviceDrops(edge)
		}
		return l, err
	}
	return nil
}

// size searches the rate of one size.
func (r *throughputRun) size(ctx context.Context, c *setup, e Engine, size int) (report.ThroughputRound, error) {
	key := string(e) + " " + sizeName(size)
	first := r.guess[key]
	if first == 0 {
		first = r.guess[string(e)]
	}
	if first == 0 {
		first = firstRate
	}
	var out report.ThroughputRound
	best := report.Trial{}
	f, err := search{
		first:      first,
		min:        minRate,
		max:        maxRate,
		growth:     growth,
		resolution: r.o.Resolution,
	}.run(
		func(rate float64) (verdict, error) {
			// A shared machine loses packets for reasons of its own, and may delay the tester itself: so there is
			// a second try.
			for try := 1; ; try++ {
				t, err := r.try(ctx, c, size, rate)
				if err != nil {
					return lossy, err
				}
				out.Trials = append(out.Trials, t)
				switch {
				case t.Verdict == report.Held:
					if t.Offered > best.Offered {
						best = t
					}
					return held, nil
				case try == tries && t.Verdict == report.Unsent:
					return unsent, nil
				case try == tries:
					return lossy, nil
				}
			}
		},
	)
	if err != nil {
		return out, err
	}
	if f.rate > 0 {
		r.guess[key], r.guess[string(e)] = f.rate, f.rate
	}
	out.Trial, out.LimitedBy = best, ""
	out.PacketsPerS = best.Offered
	out.BitsPerS = best.Offered * 8 * meanSize(size)
	switch f.above {
	case lossy:
		out.LimitedBy = report.ByLoss
	case unsent:
		out.LimitedBy = report.ByTester
	case unknown:
		out.LimitedBy = report.ByLimit
	}
	return out, nil
}

// try runs one trial.
func (r *throughputRun) try(ctx context.Context, c *setup, size int, rate float64) (report.Trial, error) {
	r.trial++
	t := tester.Trial{Number: r.trial, Sizes: sizesOf(size), Rate: rate, Length: r.o.Trial}
	patient, cancel := context.WithTimeoutCause(
		ctx,
		2*r.o.Trial+20*time.Second,
		errors.New("the testers do not answer"),
	)
	defer cancel()
	if err := c.receiver.Prepare(patient, t); err != nil {
		return report.Trial{}, err
	}
	before, err := c.look()
	if err != nil {
		return report.Trial{}, err
	}
	sent, err := c.sender.Send(patient, t)
	if err != nil {
		return report.Trial{}, err
	}
	var arrived int
	out := report.Trial{Asked: rate, Sent: sent.Packets, Refused: sent.Refused, Late: micros(sent.Late)}
	var after look
	if c.left == nil {
		got, err := c.receiver.Collect(patient, t, sent.Packets)
		if err != nil {
			return report.Trial{}, err
		}
		arrived = got.Packets
		out.Duplicates, out.Overflow = got.Duplicates, int(got.Overflow)
		r.deny(got.Denied)
		if after, err = c.look(); err != nil {
			return report.Trial{}, err
		}
	} else if arrived, after, err = c.collectLeft(patient, t, sent.Packets, before); err != nil {
		return report.Trial{}, err
	}
	r.deny(sent.Denied)
	out.Received = arrived
	if s := sent.Took.Seconds(); s > 0 {
		// What was offered, by the sender's own clock; a trial's length is its last packet's turn.
		out.Offered = min(rate, float64(sent.Packets)/s)
	}
	if arrived > 0 {
		perPacket := func(d time.Duration) float64 { return micros(d) / float64(arrived) }
		if len(c.a) > 0 {
			out.CPU.SenderEdge = perPacket(after.a - before.a)
			if c.left == nil {
				out.CPU.ReceiverEdge = perPacket(after.b - before.b)
			}
		}
		out.CPU.Machine = perPacket(after.busy - before.busy)
	}
	if took := after.at.Sub(before.at); took > 0 && len(c.a) > 0 {
		out.CPU.SenderEdgeShare = float64(after.a-before.a) / float64(min(took, max(sent.Took, time.Millisecond)))
	}
	switch {
	case float64(sent.Packets) < sentEnough*float64(t.Packets()):
		out.Verdict = report.Unsent
	// packets that overflowed our own buffer are not the path's loss
	case float64(arrived+out.Overflow) >= float64(sent.Packets)*(1-r.o.Loss):
		out.Verdict = report.Held
	default:
		out.Verdict = report.Lossy
	}
	return out, nil
}

// look is a reading of all counters.
type look struct {
	at         time.Time
	a, b, busy time.Duration
	left       left
}

// left is what a near engine has sent, and what it was too slow to read.
type left struct{ bytes, dropped uint64 }

func (c *setup) look() (l look, err error) {
	l.at = time.Now()
	if l.a, err = rival.CPUTime(c.a); err != nil {
		return l, err
	}
	if l.b, err = rival.CPUTime(c.b); err != nil {
		return l, err
	}
	if c.left != nil {
		if l.left, err = c.left(); err != nil {
			return l, err
		}
	}
	l.busy, err = busyTime()
	return l, err
}

// collectLeft waits until the near engine has sent everything, or sends no more.
func (c *setup) collectLeft(ctx context.Context, t tester.Trial, sent int, before look) (int, look, error) {
	// The bytes of the tunnel's messages give their number. A handshake among them can hide a missing packet;
	// a packet that the device had no room for cannot be hidden.
	bytes := messageBytes(t.Sizes, sent)
	count := func(l look) int {
		n := sent
		if got := l.left.bytes - before.left.bytes; got < bytes {
			n = int(float64(sent) * float64(got) / float64(bytes))
		}
		return max(0, min(n, sent-int(l.left.dropped-before.left.dropped)))
	}
	last, lastAt := before, time.Now()
	for {
		now, err := c.look()
		if err != nil {
			return 0, now, err
		}
		if now.left.bytes > last.left.bytes {
			last, lastAt = now, now.at
		}
		if count(now) >= sent || now.at.Sub(lastAt) > quietFor {
			return count(now), now, nil
		}
		if err := host.Pause(ctx, 5*time.Millisecond); err != nil {
			return 0, now, err
		}
	}
}

// messageBytes is the total length of the messages of n packets.
func messageBytes(sizes []int, n int) (sum uint64) {
	for i, s := range sizes {
		times := n / len(sizes)
		if i < n%len(sizes) {
			times++
		}
		sum += uint64(times) * rival.MessageSize(s)
	}
	return sum
}

// quietFor is how long nothing may leave until the wait ends.
const quietFor = 200 * time.Millisecond

// busyTime is the time that all cores have spent on anything, including the kernel's own work.
func busyTime() (time.Duration, error) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("read the CPU counters: %w", err)
	}
	line, _, _ := strings.Cut(string(text), "\n")
	fields := strings.Fields(line)
	if len(fields) < 9 || fields[0] != "cpu" {
		return 0, fmt.Errorf("read the CPU counters: %q is not the first line of /proc/stat", line)
	}
	var sum uint64
	for i, f := range fields[1:9] { // user nice system idle iowait irq softirq steal
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read the CPU counters: %w", err)
		}
		if i != 3 && i != 4 && i != 7 {
			sum += n
		}
	}
	const perSecond = 100 // USER_HZ, the same on every architecture that Go runs on
	return time.Duration(sum) * time.Second / perSecond, nil
}
