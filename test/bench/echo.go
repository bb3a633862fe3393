package bench

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"ringway/quality"
	"ringway/test/bench/report"
	"ringway/test/lab"
	"ringway/test/lab/host"
)

// Round trips are measured by ping(8), which uses the kernel's timestamp for an answer's arrival.
const (
	echoEvery   = 100 * time.Millisecond
	echoPayload = 100                      // of ICMP
	echoWait    = 4 * time.Second          // later answers count as lost
	signalled   = "0x60"                   // CS3, as phones mark signalling; the answer carries it, too
	plain       = "0"                      //
	echoSlack   = echoWait + 2*time.Second // beyond the last question
)

// echoPacket is how long a question is as an IP packet.
func echoPacket(f lab.Family) int {
	if f == lab.IPv6 {
		return echoPayload + 8 + 40
	}
	return echoPayload + 8 + 20
}

var echoTime = regexp.MustCompile(` time=([0-9.]+) ms`)

// echo pings for the given time and returns the distribution of round trips.
func echo(ctx context.Context, h *host.Host, from, to, tos string, length time.Duration) (*report.Echo, error) {
	count := max(1, int(length/echoEvery))
	ctx, cancel := context.WithTimeoutCause(ctx, length+echoSlack, fmt.Errorf("ping does not end"))
	defer cancel()
	// It fails where nothing came back, too; how many came is counted here. ping waits for two round trips in
	// the end, which on a line with seconds of queue is longer than what loads it flows.
	text, err := h.Run(
		ctx,
		"timeout",
		"-s",
		"INT",
		strconv.FormatFloat((length+echoWait).Seconds(), 'f', -1, 64),
		"ping",
		"-n",
		"-I",
		from,
		"-Q",
		tos,
		"-s",
		strconv.Itoa(echoPayload),
		"-c",
		strconv.Itoa(count),
		"-i",
		strconv.FormatFloat(echoEvery.Seconds(), 'f', -1, 64),
		"-W",
		strconv.Itoa(int(echoWait/time.Second)),
		to,
	)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	e := readEcho(text, count)
	if e.Received == 0 && err != nil && !echoSummary.MatchString(text) {
		return nil, err
	}
	return e, nil
}

var echoSummary = regexp.MustCompile(`packets transmitted`)

// readEcho parses the output of ping.
func readEcho(text string, sent int) *report.Echo {
	d := quality.NewDistribution()
	for _, m := range echoTime.FindAllStringSubmatch(text, -1) {
		if ms, err := strconv.ParseFloat(m[1], 64); err == nil {
			d.Record(time.Duration(ms * float64(time.Millisecond)))
		}
	}
	return &report.Echo{
		Sent:     sent,
		Received: min(sent, int(d.Count())),
		Min:      micros(d.Min()),
		P50:      micros(d.Percentile(50)),
		P99:      micros(d.Percentile(99)),
		Max:      micros(d.Max()),
	}
}
