package status

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
)

func TestQueueView(t *testing.T) {
	stats := func(sent qos.ByteCount, drops uint64) Status {
		return Status{Site: "berlin", Queues: []qos.QueueStats{
			{WAN: "wan0", Site: qos.Local, Class: qos.Media, Rate: 5820 * qos.Kbit, Ceil: 5820 * qos.Kbit},
			{WAN: "wan0", Site: qos.Local, Class: qos.Data, Rate: 9700 * qos.Kbit, Ceil: 19400 * qos.Kbit, Sent: sent, SentPackets: uint64(sent), Drops: drops, Backlog: 60625, Borrowed: drops},
		}}
	}
	var r QueueRates
	begin := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	first := r.Next(stats(0, 0), begin)
	assert.Zero(t, first.Queues[1].Now, "one look has no rates")
	v := r.Next(stats(2_140_432, 12), begin.Add(time.Second))
	var b strings.Builder
	require.NoError(t, v.Print(&b))
	assert.Equal(t, `   WAN  CLASS      RATE  GUARANTEED   CEILING   BACKLOG     WAIT  DROPS  DROPS/S  BORROWED/S
  wan0  media      0bit     5.8mbit   5.8mbit       0 B   0.0 ms      0        0           0
  wan0   data  17.1mbit     9.7mbit  19.4mbit  59.2 KiB  50.0 ms     12       12          12
`, b.String())

	line, err := json.Marshal(v)
	require.NoError(t, err)
	assert.JSONEq(t, `{"time": "2026-11-25T12:00:01Z", "site": "berlin", "queues": [
		{"wan": "wan0", "class": "media", "site": "local", "now": 0, "guaranteed": 5820000, "ceiling": 5820000, "backlog": 0, "backlog_packets": 0, "wait_ns": 0,
		 "drops": 0, "drops_per_second": 0, "borrowed": 0, "borrowed_per_second": 0},
		{"wan": "wan0", "class": "data", "site": "local", "now": 17123456, "guaranteed": 9700000, "ceiling": 19400000, "backlog": 60625, "backlog_packets": 0, "wait_ns": 50000000,
		 "drops": 12, "drops_per_second": 12, "borrowed": 12, "borrowed_per_second": 12}]}`, string(line))

	// Columns that only some boxes need.
	n := uint64(3)
	v.Queues[1].Marks, v.Queues[1].Site = &n, "munich"
	b.Reset()
	require.NoError(t, v.Print(&b))
	assert.Regexp(
		t, `CLASS +SITE .* DROPS/S +ECN MARKS +BORROWED/S\n.* media +local .* 0 +- +0\n.* data +munich .* 12 +3 +12\n`, b.String())

	// A hub has more places than a screen has lines.
	hub := QueueView{}
	for i := range 300 {
		hub.Queues = append(hub.Queues, qos.QueueFlow{
			WAN: "wan0", Class: qos.Media, Site: fmt.Sprintf("branch-%d", i), Now: qos.BitRate(i),
		})
	}
	b.Reset()
	require.NoError(t, hub.Print(&b))
	assert.Equal(t, 1+maxSites+1, strings.Count(b.String(), "\n"))
	assert.Contains(t, b.String(), "branch-299 ")
	assert.NotContains(t, b.String(), "branch-1 ")

	b.Reset()
	require.NoError(t, QueueView{}.Print(&b))
	assert.Contains(t, b.String(), "no WAN has an uplink rate")
}
