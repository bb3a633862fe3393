package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"ringway/qos"
)

// How bulk runs.
const (
	bulkPort    = 5201
	bulkPayload = 1200             // of a UDP packet: below the MTU of every tunnel
	bulkWarmUp  = 3 * time.Second  // until queues are full and TCP has found its rate
	bulkForever = 24 * time.Hour   // it is ended, it does not end
	bulkEnd     = 15 * time.Second // for iperf3 to say goodbye through a WAN that is full of its own packets
)

// floodRate is what a UDP flood sends where the WAN has no rate to be twice of.
const floodRate = 50 * qos.Mbit

// RunningBulk is bulk traffic from pc-a to pc-b.
type RunningBulk struct {
	Kind    Bulk
	Started time.Time
	pair    *Pair
	server  *process
	client  *process
	out     string // the server's JSON, as this process reaches it
}

// StartBulk starts bulk traffic and returns once it has run for three seconds.
func (p *Pair) StartBulk(ctx context.Context, kind Bulk) (*RunningBulk, error) {
	pc, far := p.Host(PCA), p.Host(PCB)
	b := &RunningBulk{Kind: kind, pair: p, out: far.Path(MachineDir + "/bulk.json")}
	out, err := os.Create(b.out)
	if err != nil {
		return nil, fmt.Errorf("prepare bulk on %s: %w", far.Name, err)
	}
	defer out.Close()
	server := far.Command("iperf3", "--server", "--one-off", "--json", "--port", strconv.Itoa(bulkPort), "--interval", "1")
	server.Stdout = out
	if b.server, err = far.spawn("iperf3-server", server); err != nil {
		return nil, err
	}
	if err := far.waitTCP(ctx, bulkPort); err != nil {
		return nil, err
	}
	args := []string{"--client", sides[1].data.remote, "--port", strconv.Itoa(bulkPort), "--time", strconv.Itoa(int(bulkForever / time.Second)), "--interval", "0"}
	if kind == BulkUDP {
		rate := 2 * p.lab.Options.WAN
		if rate == 0 {
			rate = floodRate
		}
		args = append(args, "--udp", "--length", strconv.Itoa(bulkPayload), "--bitrate", strconv.FormatUint(uint64(rate), 10))
	}
	b.Started = time.Now()
	if b.client, err = pc.spawn("iperf3-client", pc.Command("iperf3", args...)); err != nil {
		b.kill()
		return nil, err
	}
	select {
	case <-b.client.ended:
		b.kill()
		return nil, fmt.Errorf("%s: bulk: iperf3 ended (%v):\n%s", p.Name, b.client.err, b.client.lastWords())
	case <-ctx.Done():
		b.kill()
		return nil, context.Cause(ctx)
	case <-time.After(bulkWarmUp):
	}
	return b, nil
}

// waitTCP waits until a TCP port listens on the host.
func (h *Host) waitTCP(ctx context.Context, port int) error {
	for {
		out, err := h.Run(ctx, "ss", "-Hltn", fmt.Sprintf("sport = :%d", port))
		if err != nil {
			return err
		}
		if out != "" {
			return nil
		}
		if err := pauseFor(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// Stop ends the traffic and gives what arrived at pc-b between from and until.
func (b *RunningBulk) Stop(ctx context.Context, from, until time.Time) (qos.BitRate, error) {
	defer b.kill()
	select {
	case <-b.client.ended:
		return 0, fmt.Errorf("%s: bulk ended before its time (%v):\n%s", b.pair.Name, b.client.err, b.client.lastWords())
	default:
	}
	b.client.signal(unix.SIGINT)
	ctx, cancel := context.WithTimeoutCause(ctx, bulkEnd, errors.New("iperf3 does not end"))
	defer cancel()
	if err := b.server.wait(ctx); ctx.Err() != nil {
		// The goodbye was lost; the server says what it counted when it is asked on its own host.
		b.server.signal(unix.SIGTERM)
		again, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		if b.server.wait(again) != nil && again.Err() != nil {
			return 0, fmt.Errorf("%s: bulk: %w", b.pair.Name, errors.Join(err, context.Cause(ctx)))
		}
	}
	text, err := os.ReadFile(b.out)
	if err != nil {
		return 0, fmt.Errorf("%s: read what bulk arrived: %w", b.pair.Name, err)
	}
	rate, err := received(text, from.Sub(b.Started), until.Sub(b.Started))
	if err != nil {
		return 0, fmt.Errorf("%s: %w", b.pair.Name, err)
	}
	return rate, nil
}

func (b *RunningBulk) kill() {
	for _, p := range []*process{b.client, b.server} {
		if p != nil {
			p.signal(unix.SIGKILL)
		}
	}
}

// received is the mean over the server's intervals that lie within [from, until), counted from the start of the test.
func received(text []byte, from, until time.Duration) (qos.BitRate, error) {
	var report struct {
		Intervals []struct {
			Sum struct {
				Start   float64 `json:"start"`
				End     float64 `json:"end"`
				Seconds float64 `json:"seconds"`
				Bytes   float64 `json:"bytes"`
			} `json:"sum"`
		} `json:"intervals"`
		Error string `json:"error"`
	}
	if err := json.Unmarshal(text, &report); err != nil {
		return 0, fmt.Errorf("read iperf3's JSON: %w", err)
	}
	var bytes, seconds float64
	for _, i := range report.Intervals {
		if i.Sum.Start >= from.Seconds() && i.Sum.End <= until.Seconds() {
			bytes += i.Sum.Bytes
			seconds += i.Sum.Seconds
		}
	}
	if seconds == 0 {
		return 0, fmt.Errorf("iperf3 measured nothing between %s and %s (%s)", from.Round(time.Second), until.Round(time.Second), report.Error)
	}
	return qos.BitRate(bytes * 8 / seconds), nil
}
