package vm

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/netnstest"
	"ringway/test/streamtest"
)

//	phone, pc --- berlin wan0 (netem 15 ms) --- east (provider) west --- wan0 munich --- farphone, farpc
//	                                  netem 20 ms                  netem 20 ms, 2 % lost
//
// A line far away, behind berlin's queues; and on berlin's WAN somebody's own netem. It is left alone with a
// clear word, is replaced when the config says so, while nothing is lost of what comes in, and is back with
// its own numbers at the stop.
func TestNetemOnTheWANAndBehindIt(t *testing.T) {
	inGuest(t)
	b := newBranches(t, nil, nil)
	b.berlin.run("ip", "link", "del", "wan0")
	provider := netnstest.New(t)
	netnstest.Veth(t, b.berlin.NS, "wan0", provider, "east")
	netnstest.Veth(t, b.munich.NS, "wan0", provider, "west")
	provider.Run("ip", "link", "add", "br0", "type", "bridge")
	for _, dev := range []string{"east", "west"} {
		provider.Run("ip", "link", "set", dev, "master", "br0")
	}
	provider.Run("ip", "link", "set", "br0", "up")
	provider.Run("tc", "qdisc", "add", "dev", "east", "root", "netem", "delay", "20ms")
	provider.Run("tc", "qdisc", "add", "dev", "west", "root", "netem", "delay", "20ms", "loss", "2%")
	b.berlin.run("tc", "qdisc", "add", "dev", "wan0", "root", "handle", "8001:", "netem", "limit", "500",
		"delay", "15ms")
	root := func() string { return b.berlin.run("tc", "qdisc", "show", "dev", "wan0", "root") }
	before := b.berlin.state()
	b.munich.start()
	b.berlin.start()
	streams := b.streams()

	problems := fmt.Sprint(b.berlin.status().Problems)
	assert.Contains(t, problems, "wan0 has a queue that is not Ringway's (netem")
	assert.Contains(t, problems, "wan[wan0].take_over: true")
	assert.Contains(t, root(), "qdisc netem 8001:")
	assert.GreaterOrEqual(t, roundTrip(t, b), 55.0, "ms: there through both, back through the provider's")

	text, err := os.ReadFile(b.berlin.dir + "/etc/ringway.yaml")
	require.NoError(t, err)
	require.Contains(t, string(text), "uplink: 20mbit\n")
	b.berlin.write("ringway.yaml", []byte(strings.Replace(
		string(text), "uplink: 20mbit\n", "uplink: 20mbit\n    take_over: true\n", 1)))
	lossless(t, "netem replaced by Ringway's queues, 20 ms from the other side",
		streamtest.Streams{streams[1], streams[3]}, func() { b.berlin.run("ringway", "reload") })
	assert.Empty(t, b.berlin.status().Problems)
	assert.Contains(t, root(), "qdisc htb 1:")
	rtt := roundTrip(t, b)
	assert.GreaterOrEqual(t, rtt, 40.0, "ms: the provider's is still there")
	assert.Contains(t, provider.Run("tc", "qdisc", "show", "dev", "west"), "loss 2%")

	b.berlin.stop()
	assert.Contains(t, root(), "qdisc netem")
	assert.Regexp(t, `limit 500 delay 15(\.0)?ms`, root())
	assert.Equal(t, before, b.berlin.state())
}

// roundTrip is the shortest of some round trips between the phones, in ms.
func roundTrip(t *testing.T, b *branches) float64 {
	t.Helper()
	out, err := b.phone.Try("ping", "-c20", "-i0.05", "-W5", "-Q", "0xb8", "10.2.10.9")
	require.NoError(t, err)
	m := regexp.MustCompile(`rtt min/avg/max/mdev = ([0-9.]+)/`).FindStringSubmatch(out)
	require.NotNil(t, m, out)
	ms, err := strconv.ParseFloat(m[1], 64)
	require.NoError(t, err)
	return ms
}
