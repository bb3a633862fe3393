package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/qos"
	"ringway/test/lab"
	"ringway/tunnel"
)

// beside is how a flow fares beside bulk of eight others.
type beside struct {
	p50, p99  time.Duration
	lost      int
	out, back float64 // bulk's goodput, Mbit/s; back: the other way, where it runs, too
}

func (b beside) String() string {
	return fmt.Sprintf("ping p50 %.1f ms, p99 %.1f ms, %d lost; bulk %.2f Mbit/s out, %.2f back",
		b.p50.Seconds()*1e3, b.p99.Seconds()*1e3, b.lost, b.out, b.back)
}

// besideBulk pings from pc-a to pc-b while eight TCP flows fill the WAN, in one direction or in both.
func besideBulk(t *testing.T, l *lab.Lab, both bool, seconds int) (b beside) {
	t.Helper()
	a, far := l.Host(lab.PCA), l.Host(lab.PCB)
	ctx := within(t, time.Duration(seconds+60)*time.Second)
	const settle = 3
	ways := [][]string{{}}
	if both {
		ways = append(ways, []string{"--reverse"})
	}
	outs := make([]chan string, len(ways))
	for i, way := range ways {
		port := strconv.Itoa(5211 + i)
		server := far.Command("iperf3", "--server", "--one-off", "--port", port)
		s, err := far.Spawn("iperf3-"+port, server)
		require.NoError(t, err)
		defer s.Signal(unix.SIGKILL)
		require.NoError(t, far.WaitTCP(ctx, 5211+i))
		outs[i] = make(chan string, 1)
		go func() {
			out, err := a.Run(ctx, "iperf3", append(
				[]string{"--client", "10.2.20.10", "--port", port, "--parallel", "8", "--json",
					"--omit", strconv.Itoa(settle), "--time", strconv.Itoa(seconds)}, way...)...)
			assert.NoError(t, err, out)
			outs[i] <- out
		}()
	}
	select {
	case <-time.After((settle + 1) * time.Second):
	case <-ctx.Done():
	}
	n := (seconds - 2) * 20
	// fails when one is lost
	said, _ := a.Run(ctx, "ping", "-n", "-i", "0.05", "-c", strconv.Itoa(n), "-W", "2", "10.2.20.10")
	var rtt []time.Duration
	for line := range strings.Lines(said) {
		if _, after, ok := strings.Cut(line, "time="); ok {
			ms, err := strconv.ParseFloat(strings.Fields(after)[0], 64)
			require.NoError(t, err)
			rtt = append(rtt, time.Duration(ms*float64(time.Millisecond)))
		}
	}
	require.NotEmpty(t, rtt, said)
	slices.Sort(rtt)
	b.p50, b.p99, b.lost = rtt[len(rtt)/2], rtt[len(rtt)*99/100], n-len(rtt)
	for i, into := range []*float64{&b.out, &b.back}[:len(ways)] {
		var r struct {
			End struct {
				Sum struct {
					Rate float64 `json:"bits_per_second"`
				} `json:"sum_received"`
			} `json:"end"`
		}
		out := <-outs[i]
		require.NoError(t, json.Unmarshal([]byte(out), &r), out)
		*into = r.End.Sum.Rate / 1e6
	}
	return b
}

// A flow beside bulk waits for what is under way, not for what waits: hosts that share a slow line can still
// work. BENCH_BEFORE names another build of the program that is measured in turns with this one.
// BENCH_BESIDE_SECONDS is how long each time.
func TestLongAFlowBesideBulkWaitsLittle(t *testing.T) {
	seconds := 8
	if n, err := strconv.Atoi(os.Getenv("BENCH_BESIDE_SECONDS")); err == nil {
		seconds = n
	}
	for _, wan := range []qos.BitRate{2 * qos.Mbit, 20 * qos.Mbit} {
		for _, both := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/both=%v", wan, both), func(t *testing.T) {
				if before := os.Getenv("BENCH_BEFORE"); before != "" {
					l := branches(t, lab.Options{WAN: wan, Binary: before})
					t.Logf("before: %s", besideBulk(t, l, both, seconds))
					l.Close()
				}
				l := branches(t, lab.Options{WAN: wan})
				var got beside
				for range 3 { // a busy machine only adds to it
					got = besideBulk(t, l, both, seconds)
					t.Logf("now:    %s", got)
					if got.p50 < 30*time.Millisecond {
						break
					}
				}
				assert.Less(t, got.p50, 30*time.Millisecond)
				assert.Zero(t, got.lost, "a flow that sends little is never dropped")
				assert.Greater(t, got.out, 0.75*float64(wan)/1e6)
				text, err := l.Edge("a").Ringway(within(t, 10*time.Second), "status", "--json")
				require.NoError(t, err)
				st := struct {
					Tunnels []tunnel.DeviceStatus
					Queues  []qos.QueueStats
				}{}
				require.NoError(t, json.Unmarshal([]byte(text), &st))
				for _, tun := range st.Tunnels {
					if tun.Class == tunnel.Data {
						require.NotNil(t, tun.Queue)
						t.Logf("%+v, drops %v", *tun.Queue, tun.Drops)
					}
				}
				for _, q := range st.Queues {
					if q.Class == qos.Data {
						assert.Zero(t, q.Drops, "nothing is dropped after it was encrypted")
					}
				}
			})
		}
	}
}
