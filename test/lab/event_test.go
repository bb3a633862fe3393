package lab

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
)

func TestEventsAreReadAsTheFlagsGiveThem(t *testing.T) {
	for _, c := range []struct {
		kind EventKind
		text string
		want Event
	}{
		{Cut, "wan0@10s", Event{Line: "wan0", Kind: Cut, At: 10 * time.Second}},
		{Blackhole, "wan1@1.5s-20s", Event{Line: "wan1", Kind: Blackhole, At: 1500 * time.Millisecond, Until: 20 * time.Second}},
		{Loss, "wan0=5%", Event{Line: "wan0", Kind: Loss, Loss: 0.05}},
		{Loss, "wan0=0.05@3s-4s", Event{Line: "wan0", Kind: Loss, Loss: 0.05, At: 3 * time.Second, Until: 4 * time.Second}},
		{Swing, "wan1=5-50mbit", Event{Line: "wan1", Kind: Swing, Low: 5 * qos.Mbit, High: 50 * qos.Mbit}},
		{Swing, "wan1=500kbit-5mbit@1s", Event{Line: "wan1", Kind: Swing, Low: qos.Mbit / 2, High: 5 * qos.Mbit, At: time.Second}},
	} {
		e, err := ParseEvent(c.kind, c.text)
		require.NoError(t, err, c.text)
		assert.Equal(t, c.want, e, c.text)
	}
	for _, c := range []struct {
		kind EventKind
		text string
		want string
	}{
		{Cut, "wan0", `"wan0": no time (allowed: like wan0@10s or wan0@10s-20s)`},
		{Cut, "@10s", `"@10s": no line is named (allowed: like wan0@10s or wan0@10s-20s)`},
		{Cut, "wan0=5%@10s", `"wan0=5%@10s": a value is not expected (allowed: like wan0@10s or wan0@10s-20s)`},
		{Cut, "wan0@soon", `"wan0@soon": "soon" is not a time (allowed: like wan0@10s or wan0@10s-20s)`},
		{Blackhole, "wan0@10s-5s", `"wan0@10s-5s": "5s" is not a time after 10s (allowed: like wan0@10s or wan0@10s-20s)`},
		{Loss, "wan0@5s", `"wan0@5s": no value (allowed: like wan0=5% or wan0=5%@10s-20s)`},
		{Loss, "wan0=5", `"wan0=5": "5" is not a share (allowed: 0% to 99%, or 0 to 0.99) (allowed: like wan0=5% or wan0=5%@10s-20s)`},
		{Swing, "wan1=5mbit", `"wan1=5mbit": "5mbit" is not two rates (allowed: like wan1=5-50mbit or wan1=5-50mbit@10s-20s)`},
		{Swing, "wan1=50-5mbit", `"wan1=50-5mbit": the first rate is not below the second (allowed: like wan1=5-50mbit or wan1=5-50mbit@10s-20s)`},
	} {
		_, err := ParseEvent(c.kind, c.text)
		assert.EqualError(t, err, c.want)
	}
}

func TestEventsThatCannotBeAreRefused(t *testing.T) {
	cut := Event{Line: "wan0", Kind: Cut, At: 5 * time.Second}
	for _, c := range []struct {
		o    Options
		want string
	}{
		{Options{Events: []Event{cut}}, "--cut wan0: there is no such line"},
		{Options{Lines: 1, Events: []Event{{Line: "wan1", Kind: Cut}}}, "--cut wan1: there is no such line (allowed: wan0)"},
		{Options{Lines: 2, Duration: 5 * time.Second, Events: []Event{cut}}, "--cut wan0: the calls are over after 5s"},
		{Options{Lines: 2, Events: []Event{{Line: "wan0", Kind: Swing, Low: 1, High: 2}}}, "--swing wan0: the lines have no rate"},
		{Options{Lines: 2, Events: []Event{cut, {Line: "wan0", Kind: Cut, At: 7 * time.Second}}}, "--cut wan0: two at the same time, at 5s and 7s"},
		{Options{Lines: 3}, "3 lines (allowed: 1-2)"},
		{Options{Lines: 2, Paths: []PathName{Kernel}}, "the pair kernel and 2 lines"},
		{Options{Paths: []PathName{Duplicate}}, "the pair duplicate-all and 0 lines"},
	} {
		_, err := New(t.Context(), c.o)
		require.ErrorIs(t, err, ErrUsage)
		assert.ErrorContains(t, err, c.want)
	}
}

// What changes when, for each kind of event.
func TestTheTimeline(t *testing.T) {
	second := time.Second
	steps := timeline([]Event{
		{Line: "wan0", Kind: Cut, At: 2 * second, Until: 4 * second},
		{Line: "wan1", Kind: Loss, Loss: 0.05, At: second},
		{Line: "wan1", Kind: Swing, Low: 5 * qos.Mbit, High: 50 * qos.Mbit, At: 3 * second, Until: 8 * second},
	}, 20*qos.Mbit, 10*second)
	var text string
	states := map[string]*lineState{"wan0": {}, "wan1": {}}
	for _, s := range steps {
		s.change(states[s.line])
		st := *states[s.line]
		text += fmt.Sprintf("%v %s %v %v %.1fM %s\n", s.at, s.line, st.cut, st.loss, float64(st.rate)/1e6, s.what)
	}
	assert.Equal(t, `1s wan1 false 0.05 0.0M wan1 loses 5 %
2s wan0 true 0 0.0M wan0 is cut
3s wan1 false 0.05 50.0M wan1 swings between 5mbit and 50mbit
3.5s wan1 false 0.05 39.7M 
4s wan0 false 0 0.0M wan0 is plugged in
4s wan1 false 0.05 31.5M 
4.5s wan1 false 0.05 25.1M 
5s wan1 false 0.05 19.9M 
5.5s wan1 false 0.05 15.8M 
6s wan1 false 0.05 12.6M 
6.5s wan1 false 0.05 10.0M 
7s wan1 false 0.05 7.9M 
7.5s wan1 false 0.05 6.3M 
8s wan1 false 0.05 20.0M wan1 swings no more
`, text)
}
