package e2e

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"ringway/test/lab"
)

// SIPp over TCP, on one connection for all calls and on one for each, in both families, through two boxes that read
// it: the calls complete, not a packet of media is lost, each message arrives as it was sent, and the far phone sees
// the near one's own address and port.
func TestSIPpOverTCP(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: reading("enforce", nil)})
	for _, c := range []struct {
		transport string
		ip        lab.Family
	}{{"t1", lab.IPv4}, {"tn", lab.IPv4}, {"t1", lab.IPv6}, {"tn", lab.IPv6}} {
		t.Run(fmt.Sprintf("%s, %s", c.transport, c.ip), func(t *testing.T) {
			near, far := listenTo(t, l.Host(lab.PhoneA)), listenTo(t, l.Host(lab.PhoneB))
			k := dialled(t, l, 3, 1500*time.Millisecond, lab.Dialing{
				Transport: c.transport, Family: c.ip, Ramp: 300 * time.Millisecond,
			})
			heardAll(t, l, k, "")
			noHoles(t, l)

			sentA, cameA := near.stop()
			sentB, cameB := far.stop()
			assert.Len(t, sentA, map[string]int{"t1": 1, "tn": 3}[c.transport], "connections")
			assert.Equal(t, sentA, cameB, "each byte, from phone-a's own address and port")
			assert.Equal(t, sentB, cameA, "each byte, from phone-b's own address and port")
			for _, text := range sentA {
				assert.Contains(t, text, "INVITE sip:phone-b@")
				assert.Contains(t, text, "BYE sip:phone-b@")
			}
		})
	}
}
