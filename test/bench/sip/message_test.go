package sip

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func example() party {
	return party{trial: "t1-", number: 7, phone: "10.1.1.8", pbx: "10.2.0.10", port: 2000}
}

// A message says when it left, and which call it is of.
func TestAMessageSaysWhenItLeft(t *testing.T) {
	b := example().invite(nil)
	assert.Zero(t, sentAt(b))
	before := time.Now().UnixNano()
	stamp(b)
	assert.InDelta(t, before, sentAt(b), float64(time.Minute))
	assert.Equal(t, 7, number(b, "t1-"))
	assert.Equal(t, -1, number(b, "t2-"), "of another trial")
	assert.Equal(t, -1, number(nil, "t1-"))
}

// An answer goes back the way of its request, and the ACK by the proxies that asked for it (RFC 3261, section 12.1.2).
func TestTheRouteOfAnAnswer(t *testing.T) {
	request := strings.Replace(string(example().invite(nil)), "Via: ",
		"Record-Route: <sip:b;lr>\r\nRecord-Route: <sip:a;lr>\r\nVia: SIP/2.0/UDP proxy\r\nVia: ", 1)
	got := string(response(nil, []byte(request), "200 OK", ";tag=p7", "sip:2001@10.2.0.10:5060", "v=0\r\n"))
	assert.Equal(t, 2, strings.Count(got, "\r\nVia: "))
	assert.Contains(t, got, "To: <sip:2001@10.2.0.10>;tag=p7\r\n")
	assert.True(t, strings.HasSuffix(got, "Content-Length: 5\r\n\r\nv=0\r\n"), got)

	p := example()
	p.tag, p.routes = ";tag=p7", routes([]byte(got))
	ack := string(p.ack(nil))
	assert.Contains(t, ack, "Route: <sip:a;lr>\r\nRoute: <sip:b;lr>\r\n")
	assert.Contains(t, ack, "CSeq: 1 ACK\r\n")
	assert.Contains(t, string(p.bye(nil)), "CSeq: 2 BYE\r\n")
}

func TestQuantiles(t *testing.T) {
	assert.Zero(t, quantiles(nil))
	var ns []int64
	for i := range int64(100) {
		ns = append(ns, (99-i)*1000)
	}
	assert.Equal(t, Quantiles{P50: 50, P99: 99}, quantiles(ns))
}

func TestOptions(t *testing.T) {
	good := Default()
	require.NoError(t, good.check())
	for name, change := range map[string]func(*Options){
		"rival":    func(o *Options) { o.Against = []Path{"opensips"} },
		"no rate":  func(o *Options) { o.Rates = nil },
		"rate":     func(o *Options) { o.Rates = []int{0} },
		"hold":     func(o *Options) { o.Hold = time.Hour },
		"up":       func(o *Options) { o.Hold = 10 * time.Second },
		"duration": func(o *Options) { o.Duration = 0 },
		"rounds":   func(o *Options) { o.Rounds = 0 },
		"calls":    func(o *Options) { o.Calls = maxCalls + 1 },
		"builds":   func(o *Options) { o.Builds = []string{"a", "b", "c"} },
	} {
		o := Default()
		change(&o)
		assert.ErrorIs(t, o.check(), ErrUsage, name)
	}
}

// Ratios are those of pairs; a round in which a process was replaced has no CPU time.
func TestSummary(t *testing.T) {
	at := func(p Path, rounds ...Trial) Row { return Row{Name: p, CallsPerS: 500, Rounds: rounds} }
	one := func(cpu, p99 float64) Trial {
		return Trial{Placed: 10, CPUPerCallUS: cpu, Delay: Quantiles{P50: 1, P99: p99}}
	}
	r := Report{Paths: []Row{
		at(Ringway, one(100, 40), Trial{Placed: 10, Lost: 3, Restarted: true}, one(300, 90)),
		at(Kamailio, one(400, 50), one(500, 50), one(600, 60)), at(Kernel, one(10, 10), one(10, 10), one(10, 30)),
	}}
	r.summarize()
	w := r.row(Ringway, 500)
	assert.Equal(t, []any{30, 3, 1}, []any{w.Placed, w.Lost, w.Restarts})
	assert.Equal(t, []float64{0.25, 0.5}, w.CPURatios)
	assert.InDelta(t, 200, w.CPUPerCallUS, 0)
	assert.Equal(t, []float64{4, 3}, w.DelayRatios)
	var b strings.Builder
	require.NoError(t, r.Table(&b))
	assert.Contains(t, b.String(), "0.38")
}
