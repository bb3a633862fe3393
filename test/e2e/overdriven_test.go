package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/qos"
	"ringway/test/lab"
	"ringway/test/polltest"
)

// flood sends UDP of class media from a phone, in packets of so many bytes with the headers, a port of its
// own for each of flows, until stopped; it gives how many packets it sent.
func flood(t *testing.T, from *lab.Host, to string, flows, size int, rate qos.BitRate) (stop func() int) {
	t.Helper()
	const tick = 2 * time.Millisecond
	payload := size - 28
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
			due := int(time.Since(began).Seconds() * float64(rate) / 8 / float64(size))
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

// One misbehaving phone sends three times what all calls may take, as media, for as long as calls are up. Data
// keeps its floor and more, the calls stay good, and what exceeds is counted. The bound of a flow is what
// does it: without one, the calls share the loss.
func TestLongAMisbehavingPhone(t *testing.T) {
	const calls, shaped = 10, twenty * 97 / 100
	const budget = shaped * 30 / 100
	for _, c := range []struct {
		name, limit string
	}{{"bounded", ""}, {"unbounded", "none"}} {
		t.Run(c.name, func(t *testing.T) {
			l := branches(t, lab.Options{WAN: twenty, EdgeConfig: func(_ string, values map[string]string) {
				if c.limit != "" {
					values["classes[media].flow_limit"] = c.limit
					values["classes[media].admission"] = "false" // which bounds a flow, too, by what it began with
				}
			}})
			talk := talking(t, l, calls, 12*time.Second)
			bulk, err := l.Pair(lab.Ringway).StartBulk(t.Context(), lab.BulkTCP)
			require.NoError(t, err)
			from := time.Now()
			stop := flood(t, l.Host(lab.PhoneA), "10.2.10.10", 1, 1200, 3*budget)
			h, result := talk.heard()
			until := time.Now()
			sent := stop()
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
			t.Logf(
				"%d packets of the flood, %d beyond its bound; %d voice packets lost, worst MOS %.2f; data %d kbit/s",
				sent, over, lost, worst(h), rate/qos.Kbit)
			assert.Greater(t, sent, 10_000, "the flood")
			assert.Greater(t, rate, qos.BitRate(shaped*50/100), "data's share")
			if c.limit != "" {
				assert.Zero(t, over)
				assert.Less(t, worst(h), 4.0, "the flood is no harm, and nothing is shown")
				return
			}
			assert.Equal(t, calls, result.Completed, result.Why)
			assert.GreaterOrEqual(t, worst(h), 4.0)
			assert.Greater(t, over, sent*9/10)
		})
	}
}

// More calls than the budget carries, all of normal shape, three times as many: those that came first stay as
// good as they were, data keeps its floor, what is too much is refused as a whole and counted, and the box
// says so. Without admission all calls share the loss.
func TestTimedMoreCallsThanTheBudget(t *testing.T) {
	said, over, sent, h, completed := moreCallsThanTheBudget(t, "true")
	voice, lost := count(h)

	assert.Equal(t, callsThatFit, completed)
	assert.LessOrEqual(t, lost, voice/200)
	assert.GreaterOrEqual(t, worst(h), 4.0)
	assert.Greater(t, over, uint64(sent*95/100))
	assert.Contains(
		t, said, "admission munich: new calls are refused: the voice budget, 1164 kbit/s, is used up (9 media flows "+
			"are admitted and stay")
}

// What the budget prevents: without admission every call loses packets.
func TestLongMoreCallsWithoutAdmission(t *testing.T) {
	t.Parallel()
	_, over, _, h, _ := moreCallsThanTheBudget(t, "false")
	assert.Zero(t, over)
	assert.Less(t, worst(h), 3.0, "too many calls do no harm, so the test with admission shows nothing")
}

// callsThatFit is the budget of a WAN of 4 Mbit/s, as `ringway plan` prints it: 9 calls of 112.8 kbit/s
// (G.711 in packets of 20 ms) in 1164 kbit/s.
const callsThatFit = 9

// moreCallsThanTheBudget fills the voice budget with calls and sends twice as many beside them, and bulk.
func moreCallsThanTheBudget(t *testing.T, admission string) (
	problems string, over uint64, sent int, h lab.Heard, completed int,
) {
	t.Helper()
	const wan, more, size = 4 * qos.Mbit, 2 * callsThatFit, 200
	l := branches(t, lab.Options{WAN: wan, EdgeConfig: func(_ string, values map[string]string) {
		values["classes[media].admission"] = admission
	}})
	talk := talking(t, l, callsThatFit, 6*time.Second)
	bulk, err := l.Pair(lab.Ringway).StartBulk(t.Context(), lab.BulkTCP)
	require.NoError(t, err)
	from := time.Now()

	var stops []func() int
	for _, x := range []struct{ phone, to string }{{lab.PhoneA, "10.2.10.10"}, {lab.PhoneB, "10.1.10.10"}} {
		stops = append(stops, flood(t, l.Host(x.phone), x.to, more, size, more*size*8*50))
	}
	if admission == "true" {
		polltest.Require(t, func() bool {
			list := status(t, l.Edge("a")).Problems
			problems = fmt.Sprint(list)
			return len(list) > 0
		}, 5*time.Second, 200*time.Millisecond, "the box reports no problem")
	}

	h, result := talk.heard()
	until := time.Now()
	sent = stops[0]()
	stops[1]()
	rate, err := bulk.Stop(t.Context(), from, until)
	require.NoError(t, err)
	shaped := wan.Percent(97)
	assert.Greater(t, rate, shaped.Percent(50), "data's share")

	over = status(t, l.Edge("a")).Tunnels[0].Drops["over_budget"]
	voice, lost := count(h)
	t.Logf("%d packets of %d more calls, %d refused; of the first calls' %d packets %d lost, worst MOS %.2f; "+
		"data %d kbit/s; %s", sent, more, over, voice, lost, worst(h), rate/qos.Kbit, problems)
	return problems, over, sent, h, result.Completed
}
