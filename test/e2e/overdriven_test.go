package e2e

import (
	"context"
	"encoding/json"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/qos"
	"ringway/test/lab"
)

// flood sends UDP of class media from a phone, a port of its own for each of flows, until stopped; it gives how many packets it sent.
func flood(t *testing.T, from *lab.Host, to string, flows int, rate qos.BitRate) (stop func() int) {
	t.Helper()
	const payload, tick = 1172, 2 * time.Millisecond // 1200 bytes with the headers
	ctx, cancel := context.WithCancel(t.Context())
	sent := 0
	var wg sync.WaitGroup
	var conns []net.Conn
	for range flows {
		var c net.Conn
		require.NoError(t, from.Do(func() (err error) {
			c, err = (&net.Dialer{}).DialContext(t.Context(), "udp", net.JoinHostPort(to, "40000"))
			return err
		}))
		raw, err := c.(*net.UDPConn).SyscallConn()
		require.NoError(t, err)
		require.NoError(t, raw.Control(func(fd uintptr) {
			err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, expedited<<2)
		}))
		require.NoError(t, err)
		conns = append(conns, c)
	}
	began := time.Now()
	wg.Go(func() {
		ticks := time.NewTicker(tick)
		defer ticks.Stop()
		for ctx.Err() == nil {
			due := int(time.Since(began).Seconds() * float64(rate) / 8 / (payload + 28))
			for ; sent < due; sent++ {
				_, _ = conns[sent%flows].Write(make([]byte, payload)) // nobody listens there: refused is what it may be
			}
			select {
			case <-ctx.Done():
			case <-ticks.C:
			}
		}
	})
	var once sync.Once
	stop = func() int {
		once.Do(func() {
			cancel()
			wg.Wait()
			for _, c := range conns {
				c.Close()
			}
		})
		return sent
	}
	t.Cleanup(func() { stop() })
	return stop
}

// worst is the mean opinion score of the worst call, both directions.
func worst(h lab.Heard) float64 {
	return min(h.AToB.Summary().WorstVoice.MOS, h.BToA.Summary().WorstVoice.MOS)
}

// One phone gone mad sends three times what all calls may take, as media, for as long as calls are up. Data keeps its floor and more, the
// calls stay good, and what exceeds is counted. The bound of a flow is what does it: without one, the calls share the loss.
func TestAPhoneGoneMad(t *testing.T) {
	long(t)
	const calls, shaped = 10, twenty * 97 / 100
	const budget = shaped * 30 / 100
	for _, c := range []struct {
		name, limit string
	}{{"bounded", ""}, {"unbounded", "none"}} {
		t.Run(c.name, func(t *testing.T) {
			l := branches(t, lab.Options{WAN: twenty, EdgeConfig: func(_ string, values map[string]string) {
				if c.limit != "" {
					values["classes[media].flow_limit"] = c.limit
				}
			}})
			talk := talking(t, l, calls, 12*time.Second)
			bulk, err := l.Pair(lab.Ringway).StartBulk(t.Context(), lab.BulkTCP)
			require.NoError(t, err)
			from := time.Now()
			stop := flood(t, l.Host(lab.PhoneA), "10.2.10.10", 1, 3*budget)
			h, result := talk.heard()
			until := time.Now()
			mad := stop()
			rate, err := bulk.Stop(t.Context(), from, until)
			require.NoError(t, err)
			_, lost := count(h)
			out, err := l.Edge("a").Ringway(t.Context(), "status", "--json")
			require.NoError(t, err)
			var st struct {
				Drops map[string]struct{ Packets int }
			}
			require.NoError(t, json.Unmarshal([]byte(out), &st))
			over := st.Drops["media_flow"].Packets
			t.Logf("%d packets of the flood, %d beyond its bound; %d voice packets lost, worst MOS %.2f; data %d kbit/s", mad, over, lost, worst(h), rate/qos.Kbit)
			assert.Greater(t, mad, 10_000, "the flood")
			assert.Greater(t, rate, qos.BitRate(shaped*50/100), "data's share")
			if c.limit != "" {
				assert.Zero(t, over)
				assert.Less(t, worst(h), 4.0, "the flood is no harm, and nothing is shown")
				return
			}
			assert.Equal(t, calls, result.Completed, result.Why)
			assert.GreaterOrEqual(t, worst(h), 4.0)
			assert.Greater(t, over, mad*9/10)
		})
	}
}
