// Package bulk fills a path with iperf3 and reports what arrived. It needs root and iperf3.
package bulk

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
	"ringway/test/lab/host"
)

// How bulk runs.
const (
	port    = 5201
	payload = 1200             // of a UDP packet: below the MTU of every tunnel
	WarmUp  = 3 * time.Second  // until queues are full and TCP has found its rate
	forever = 24 * time.Hour   // it is ended, it does not end
	ending  = 15 * time.Second // for iperf3 to say goodbye through a way that is full of its own packets
)

// Options say what flows.
type Options struct {
	To    string      // address of the receiving host
	UDP   bool        // a flood of Rate; otherwise TCP
	Rate  qos.BitRate // 0: as fast as TCP goes; otherwise TCP sends no more than that
	Flows int         // TCP streams at the same time; 0 = one
}

// Running is bulk traffic that flows.
type Running struct {
	Started time.Time
	server  *host.Process
	client  *host.Process
	out     string // the server's JSON, as this process reaches it
}

// Start starts bulk traffic between two hosts and returns once it has run for WarmUp.
func Start(ctx context.Context, from, to *host.Host, o Options) (*Running, error) {
	b := &Running{out: to.Path(host.Dir + "/bulk.json")}
	out, err := os.Create(b.out)
	if err != nil {
		return nil, fmt.Errorf("prepare bulk on %s: %w", to.Name, err)
	}
	defer out.Close()
	server := to.Command(
		"iperf3",
		"--server",
		"--one-off",
		"--json",
		"--port",
		strconv.Itoa(port),
		"--interval",
		"0.5",
	)
	server.Stdout = out
	if b.server, err = to.Spawn("iperf3-server", server); err != nil {
		return nil, err
	}
	if err := to.WaitTCP(ctx, port); err != nil {
		return nil, err
	}
	args := []string{
		"--client",
		o.To,
		"--port",
		strconv.Itoa(port),
		"--time",
		strconv.Itoa(int(forever / time.Second)),
		"--interval",
		"0",
	}
	if o.UDP {
		args = append(args, "--udp", "--length", strconv.Itoa(payload))
	}
	if o.Flows > 1 {
		args = append(args, "--parallel", strconv.Itoa(o.Flows))
	}
	if o.Rate > 0 {
		args = append(args, "--bitrate", strconv.FormatUint(uint64(o.Rate), 10))
	}
	b.Started = time.Now()
	if b.client, err = from.Spawn("iperf3-client", from.Command("iperf3", args...)); err != nil {
		b.Kill()
		return nil, err
	}
	select {
	case <-b.client.Ended:
		b.Kill()
		return nil, fmt.Errorf("bulk: iperf3 ended (%v):\n%s", b.client.Err(), b.client.LastWords())
	case <-ctx.Done():
		b.Kill()
		return nil, context.Cause(ctx)
	case <-time.After(WarmUp):
	}
	return b, nil
}

// Stop ends the traffic and gives what arrived between from and until.
func (b *Running) Stop(ctx context.Context, from, until time.Time) (qos.BitRate, error) {
	defer b.Kill()
	select {
	case <-b.client.Ended:
		return 0, fmt.Errorf("bulk ended before its time (%v):\n%s", b.client.Err(), b.client.LastWords())
	default:
	}
	b.client.Signal(unix.SIGINT)
	ctx, cancel := context.WithTimeoutCause(ctx, ending, errors.New("iperf3 does not end"))
	defer cancel()
	if err := b.server.Wait(ctx); ctx.Err() != nil {
		// The end of the test was lost; the server reports its count when it is asked on its own host.
		b.server.Signal(unix.SIGTERM)
		again, cancel := context.WithTimeout(context.WithoutCancel(ctx), 3*time.Second)
		defer cancel()
		if b.server.Wait(again) != nil && again.Err() != nil {
			return 0, fmt.Errorf("bulk: %w", errors.Join(err, context.Cause(ctx)))
		}
	}
	text, err := os.ReadFile(b.out)
	if err != nil {
		return 0, fmt.Errorf("read what bulk arrived: %w", err)
	}
	rate, err := received(text, from.Sub(b.Started), until.Sub(b.Started))
	if err != nil {
		return 0, fmt.Errorf("bulk: %w", err)
	}
	return rate, nil
}

// Kill ends the traffic at once.
func (b *Running) Kill() {
	for _, p := range []*host.Process{b.client, b.server} {
		if p != nil {
			p.Signal(unix.SIGKILL)
		}
	}
}

// received is the mean over the server's intervals that lie within [from, until), counted from the start of
// the test.
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
		return 0, fmt.Errorf(
			"iperf3 measured nothing between %s and %s (%s)",
			from.Round(time.Second),
			until.Round(time.Second),
			report.Error,
		)
	}
	return qos.BitRate(bytes * 8 / seconds), nil
}
