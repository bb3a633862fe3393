package lab

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"ringway/qos"
)

// What the rivals get is what somebody who knows them would set, at Ringway's own margin of 3 percent.
func TestTheRivalsQueues(t *testing.T) {
	for _, c := range []struct {
		path PathName
		rate qos.BitRate
		want []string
	}{
		{Baseline, qos.Mbit, nil},
		{Kernel, qos.Mbit, nil},
		{Cake, 2 * qos.Mbit, []string{"root cake bandwidth 1940000bit diffserv4 overhead 14"}},
		// A full packet takes 12.5 ms at 970 kbit/s.
		{FQCoDel, qos.Mbit, []string{"root handle 1: tbf rate 970000bit burst 1600 latency 1s", "parent 1:1 fq_codel target 18729us interval 113729us"}},
		{FQCoDel, 100 * qos.Mbit, []string{"root handle 1: tbf rate 97000000bit burst 12125 latency 1s", "parent 1:1 fq_codel target 5000us interval 100000us"}},
	} {
		assert.Equal(t, c.want, stockQueue(c.path, c.rate), "%s at %s", c.path, c.rate)
	}
}
