package calls

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
	"ringway/sip/call"
	"ringway/tunnel"
)

// queueRig is a meter with two queues of a WAN.
type queueRig struct {
	*meterRig
	data, media uint64 // dropped
	err         error
}

func newQueueRig() *queueRig {
	r := &queueRig{meterRig: newMeterRig()}
	r.queues.read = func() ([]qos.QueueStats, error) {
		return []qos.QueueStats{
			{WAN: "wan0", Site: "hamburg", Class: qos.Media, Drops: r.media},
			{WAN: "wan0", Site: qos.Local, Class: qos.Data, Drops: r.data},
			{WAN: "wan1", Site: qos.Local, Class: qos.Data, Drops: 1000},
		}, r.err
	}
	return r
}

// pass lets seconds go by, in each of which so much is dropped.
func (r *queueRig) pass(seconds int, media, data uint64) {
	for range seconds {
		r.clock = r.clock.Add(time.Second)
		r.media, r.data = r.media+media, r.data+data
		r.queues.sample(r.clock, true)
	}
}

// lines has the engine say that a series lost packets on the line, at times before now.
func (r *queueRig) lines(all []call.Call, lost uint32, ago ...time.Duration) *call.Quality {
	s := r.series(1, true, 10_000, 10_000, 10_000)
	s.Began, s.Line = all[0].Began, lost
	for _, d := range ago {
		s.LineAt = append(s.LineAt, r.clock.Add(-d))
	}
	r.engine.series = []tunnel.SeriesStatus{s}
	r.look(context.Background())
	r.fill(all)
	return all[0].Sent
}

// Beside packets that the line lost stands what the WANs' queues dropped in those seconds, and in no others; each
// second counts once, however often the engine tells of it, with a clock that is read again each time.
func TestQueueDropsStandBesideLossesOfTheLine(t *testing.T) {
	r := newQueueRig()
	all := []call.Call{r.testCall()}
	r.pass(5, 0, 7)
	r.pass(3, 2, 30)
	r.pass(10, 0, 7)
	q := r.lines(all, 6, 10*time.Second)
	assert.Equal(t, map[string]uint64{"media": 6, "data": 90}, q.WANDrops)
	assert.Contains(t, q.String(), "(line 6; WAN queues dropped 96)")
	assert.Contains(t, q.Detail(), "6 of 10000 packets lost (line 6), ")
	assert.Contains(t, q.Detail(), "; while the line lost packets, the WANs' queues dropped data 90, media 6")
	b, err := json.Marshal(q)
	require.NoError(t, err)
	assert.Contains(t, string(b), `"wan_queue_drops":{"data":90,"media":6}`)

	r.clock = r.clock.Add(20 * time.Millisecond)
	assert.Equal(t, q.WANDrops, r.lines(all, 6, 10*time.Second+15*time.Millisecond).WANDrops)
	r.clock = r.clock.Add(-20 * time.Millisecond)
	q = r.lines(all, 8, 10*time.Second, 9*time.Second) // one second more, two are known
	assert.Equal(t, map[string]uint64{"media": 6, "data": 97}, q.WANDrops)

	r.pass(10, 0, 0)
	q = r.lines(all, 9, 2*time.Second)
	assert.Equal(t, map[string]uint64{"media": 6, "data": 97}, q.WANDrops, "nothing was dropped here meanwhile")
}

// Losses without drops are the provider's, and say so. Without losses, without readings, or of a time long ago nothing
// is said.
func TestQueueDropsThatAreNotThere(t *testing.T) {
	r := newQueueRig()
	all := []call.Call{r.testCall()}
	r.pass(10, 0, 0)
	q := r.lines(all, 6, 5*time.Second)
	assert.Equal(t, map[string]uint64{"media": 0, "data": 0}, q.WANDrops)
	assert.Contains(t, q.Detail(), "queues dropped none")
	assert.Contains(t, q.String(), "WAN queues dropped 0")

	r = newQueueRig()
	all = []call.Call{r.testCall()}
	r.pass(10, 5, 5)
	assert.Nil(t, r.lines(all, 0).WANDrops)
	r.clock = r.clock.Add(time.Hour)
	r.pass(10, 0, 0)
	assert.Nil(t, r.lines(all, 6, time.Hour/2).WANDrops, "nobody read the counters then")

	r = newQueueRig()
	all = []call.Call{r.testCall()}
	r.err = errors.New("no such device")
	r.pass(10, 5, 5)
	assert.Nil(t, r.lines(all, 6, 5*time.Second).WANDrops)
	r.queues.read = nil
	r.pass(10, 5, 5)
	assert.Nil(t, r.lines(all, 7, 5*time.Second).WANDrops)
}

// Counters that begin again were of another queue; what was dropped while there were no calls is of no second; what is
// kept is bounded.
func TestReadingsOfQueues(t *testing.T) {
	r := newQueueRig()
	sum := func() (n uint64) {
		for _, s := range r.queues.between(time.Time{}, r.clock) {
			n += s.drops["data"]
		}
		return n
	}
	r.data = 500
	r.pass(3, 0, 10)
	assert.EqualValues(t, 20, sum(), "the first reading is where counting begins")
	r.data = 0
	r.pass(1, 0, 4)
	assert.EqualValues(t, 24, sum())
	r.queues.sample(r.clock, false) // no calls
	r.pass(1, 0, 1000)
	assert.EqualValues(t, 24, sum())
	r.clock = r.clock.Add(time.Minute) // the daemon was kept from it
	r.pass(1, 0, 1000)
	assert.EqualValues(t, 24, sum())
	r.pass(3*queueSecondsKept, 0, 1)
	assert.Len(t, r.queues.seconds, queueSecondsKept)
	assert.EqualValues(t, queueSecondsKept, sum())
}

func TestTheQualityOfAShownCall(t *testing.T) {
	q := &call.Quality{Packets: 1}
	all := []call.Call{{ID: "a", CallID: "x"}, {ID: "b", CallID: "x", Received: q}}
	for id, want := range map[string]*call.Quality{"x": q, "b": q, "a": nil, "y": nil} {
		sent, received := measuredOf(all, id)
		assert.Nil(t, sent)
		assert.Same(t, want, received, id)
	}
}
