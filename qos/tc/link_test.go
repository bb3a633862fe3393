package tc

import (
	"fmt"
	"math"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
)

// What leaves is the configured rate as the provider's meter counts it, with short packets as with long
// ones, whatever the line is.
func TestTheRateIsTheMeters(t *testing.T) {
	t.Parallel()
	for _, link := range []string{"kernel", "ip", "ethernet", "pppoe-ptm", "pppoa-vcmux", "pppoe-llcsnap"} {
		for _, size := range []int{60, 300, 1400} {
			t.Run(fmt.Sprintf("%s %d", link, size), func(t *testing.T) {
				w := newWAN(t, 5*qos.Mbit)
				w.in.WANs[0].LinkLayer, _ = qos.ParseLink(link)
				reconcile(t, w.a, qos.Want(w.in))
				shaped := float64(w.in.WANs[0].Shaped())
				c := w.dial(qos.Data, 9002, nil)
				// A machine that stands still for longer than a burst sends less, and stamps late what it captured:
				// then it is measured again.
				for look := 1; ; look++ {
					var wg sync.WaitGroup
					var end atomic.Bool
					stop := w.capture()
					wg.Go(func() { push(c, size, &end) })
					pace(500 * time.Millisecond)
					end.Store(true)
					wg.Wait()
					got := 0.0
					if frames := steady(stop()); len(frames) > 1 {
						got = w.throughput(frames)
					}
					t.Logf("%.0f kbit/s of %.0f on the meter", got/1e3, shaped/1e3)
					if math.Abs(got-shaped) < 0.02*shaped {
						break
					}
					require.Less(t, look, 5, "%.0f kbit/s of %.0f on the meter", got/1e3, shaped/1e3)
				}
				if link == "pppoe-ptm" {
					assert.InDelta(t, 5e6*0.97*64/65, shaped, 80)
				}
			})
		}
	}
}

// push sends packets of one size at three times the link.
func push(c *net.UDPConn, size int, stop *atomic.Bool) {
	buf := make([]byte, size)
	for !stop.Load() {
		for range 2 + 3750/(size+60) {
			if _, err := c.Write(buf); err != nil && !refused(err) {
				return
			}
		}
		pace(2 * time.Millisecond)
	}
}

// A tree from before sites had classes becomes one of now, and is known as Ringway's own until then.
func TestATreeOfBefore(t *testing.T) {
	a, _ := pair(t)
	feed(t, a, strings.Split(strings.TrimSpace(`
tc qdisc replace dev wan0 root handle 1: htb default 30
tc class add dev wan0 parent 1: classid 1:1 htb rate 19400kbit ceil 19400kbit burst 2425 cburst 2425 prio 0 quantum 1518
tc class add dev wan0 parent 1:1 classid 1:10 htb rate 5820kbit ceil 5820kbit burst 4850 cburst 14550 prio 0 quantum 1518
tc class add dev wan0 parent 1:1 classid 1:20 htb rate 1940kbit ceil 19400kbit burst 1518 cburst 2425 prio 1 quantum 1518
tc class add dev wan0 parent 1:1 classid 1:30 htb rate 9700kbit ceil 19400kbit burst 1518 cburst 2425 prio 2 quantum 1518
tc class add dev wan0 parent 1:1 classid 1:40 htb rate 970kbit ceil 19400kbit burst 1518 cburst 2425 prio 3 quantum 1518
tc qdisc add dev wan0 parent 1:10 handle 10: tbf rate 121440mbit burst 1518 limit 14550
tc qdisc add dev wan0 parent 1:20 handle 20: tbf rate 121440mbit burst 1518 limit 24250
tc qdisc add dev wan0 parent 1:30 handle 30: tbf rate 121440mbit burst 1518 limit 60625
tc qdisc add dev wan0 parent 1:40 handle 40: tbf rate 121440mbit burst 1518 limit 24250`), "\n"))
	before := observe(t, a)
	assert.Empty(t, before.Links[0].Theirs())
	assert.Equal(t, qos.State{Links: []qos.Link{{Interface: "wan0"}}}, before.Foreign())
	in := input(20 * qos.Mbit)
	in.Sites = []qos.Site{{Name: "munich"}}
	for _, c := range reconcile(t, a, qos.Want(in)) {
		assert.False(t, c.Qdisc != nil && c.Qdisc.Parent == qos.RootHandle, "%s: the root stays", c)
	}
	assert.Empty(t, reconcile(t, a, qos.Want(in)))
}
