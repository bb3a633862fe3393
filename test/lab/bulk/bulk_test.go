package bulk

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
)

func TestReceivedCountsIntervalsInside(t *testing.T) {
	const text = `{"intervals":[
		{"sum":{"start":0,"end":1,"seconds":1,"bytes":9e9}},
		{"sum":{"start":1,"end":2,"seconds":1,"bytes":1000}},
		{"sum":{"start":2,"end":3,"seconds":1,"bytes":3000}},
		{"sum":{"start":3,"end":3.5,"seconds":0.5,"bytes":9e9}}],"error":"the client has terminated"}`
	got, err := received([]byte(text), time.Second, 3*time.Second)
	require.NoError(t, err)
	assert.Equal(t, qos.BitRate(16_000), got)

	_, err = received([]byte(text), 5*time.Second, 9*time.Second)
	assert.EqualError(t, err, "iperf3 measured nothing between 5s and 9s (the client has terminated)")
	_, err = received([]byte("{"), 0, 0)
	assert.ErrorContains(t, err, "read iperf3's JSON")
}
