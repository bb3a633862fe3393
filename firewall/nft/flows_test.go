package nft

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/firewall"
	"ringway/qos"
)

// A flow of media that sends more than a call does is limited to its bound; another one beside it, from the
// same phone to the same phone, loses nothing. What no transport's ports tell apart is bounded by its two
// addresses. Data is nobody's business here.
func TestAFlowOfMediaIsHeldToItsBound(t *testing.T) {
	t.Parallel()
	const ef, size = 46 << 2, 1000
	in := branch()
	in.Classes[0].FlowLimit = 64 * qos.Kbit // 8000 bytes a second, and as many at once with 3000 more
	w := newWorld(t, in)
	over := func() int { return int(w.counters()[firewall.CounterMediaFlow].Packets) }
	media := func() uint64 { return w.counters()[firewall.ClassCounter(qos.Media)].Packets }
	send := func(n int, src string, sport int, dst string, tos int) {
		from := w.listen(w.phone, src, sport)
		defer from.Close()
		want := media() + uint64(n)
		for range n {
			w.sendBytes(from, dst, 40000, tos, make([]byte, size))
		}
		if tos == ef {
			w.assertCounter(firewall.ClassCounter(qos.Media), want, "what was sent")
		}
	}
	for _, c := range []struct{ phone, far string }{{phone4, farPhone4}, {phone6, farPhone6}} {
		before, began := over(), time.Now()
		send(100, c.phone, 41000, c.far, ef)
		dropped := over() - before
		assert.LessOrEqual(t, dropped, 100-9, "a second of its rate is at once")
		assert.GreaterOrEqual(t, dropped, 100-11-int(time.Since(began).Seconds()*8)-1)
		before = over()
		send(8, c.phone, 41002, c.far, ef)
		send(100, c.phone, 41004, c.far, 0)
		assert.Equal(t, before, over(), "the flows beside it")
	}

	before := over()
	w.phone.Run(
		"ping", "-q", "-n", "-A", "-c", "50", "-l", "50", "-W", "1", "-Q", "0xb8", "-s", "972", farPhone4,
	)
	assert.Greater(t, over(), before+10, "no UDP")

	// What the rules keep of flows is no difference, and another bound changes the rules alone.
	assert.Empty(t, applyIn(t, w.edge, firewall.Want(in)))
	in.Classes[0].FlowLimit = 128 * qos.Kbit
	for _, c := range applyIn(t, w.edge, firewall.Want(in)) {
		assert.Contains(
			t, []firewall.Op{firewall.AddRule, firewall.InsertRule, firewall.DeleteRule}, c.Op, "%s", c,
		)
	}
	in.Classes[0].FlowLimit = 0
	require.NotEmpty(t, applyIn(t, w.edge, firewall.Want(in)))
	assert.Empty(t, applyIn(t, w.edge, firewall.Want(in)))
}
