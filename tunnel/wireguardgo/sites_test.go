package wireguardgo

import (
	"regexp"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/enginetest"
	"ringway/test/polltest"
	"ringway/tunnel"
)

// hubBounds are bounds as the daemon makes them for a hub with 40 Mbit/s whose sites take 21 together.
var hubBounds = tunnel.Bounds{Rate: 21e6, TxQueueLen: 256, InFlight: 17, FlowPackets: 350, SendBuffer: 37440,
	ReceiveBuffer: 1 << 20}

// hubAndSites is a hub whose WAN's queues hold what goes to fast to 20 Mbit/s and what goes to slow to 1 Mbit/s.
func hubAndSites(t *testing.T) (hub, fast, slow *enginetest.Box) {
	hub, fast = wire(t)
	slow = enginetest.Behind(t, hub, fast)
	for _, b := range []*enginetest.Box{hub, fast, slow} {
		b.Open(0, 0, hubBounds)
		b.Start(hubBounds)
	}
	hub.Set(hub.Peer(fast, "192.0.2.2:51820"))
	hub.Set(hub.Peer(slow, "198.51.100.3:51820"))
	fast.Set(fast.Peer(hub, "192.0.2.1:51820"))
	slow.Set(slow.Peer(hub, "192.0.2.1:51820"))
	tc := func(args ...string) { hub.NS.Run("tc", args...) }
	tc("qdisc", "add", "dev", "wire0", "root", "handle", "1:", "htb", "default", "2")
	tc("class", "add", "dev", "wire0", "parent", "1:", "classid", "1:1", "htb", "rate", "40mbit", "burst", "3000",
		"cburst", "3000")
	for _, c := range [][2]string{{"2", "20mbit"}, {"3", "1mbit"}} {
		tc("class", "add", "dev", "wire0", "parent", "1:1", "classid", "1:"+c[0], "htb", "rate", "500kbit", "ceil",
			c[1], "burst", "1600", "cburst", "1600")
		tc("qdisc", "add", "dev", "wire0", "parent", "1:"+c[0], "pfifo", "limit", "200")
	}
	tc("filter", "add", "dev", "wire0", "parent", "1:", "protocol", "ip", "u32", "match", "ip", "dst",
		"198.51.100.3/32", "flowid", "1:3")
	require.NoError(t, hub.Ping("10.66.0.2"))
	require.NoError(t, hub.Ping("10.66.0.3"))
	return hub, fast, slow
}

// service is what a site gets: Mbit/s of one TCP flow, and the median round trip beside it.
type service struct {
	rate float64
	rtt  time.Duration
}

var medianOf = regexp.MustCompile(`time=([0-9.]+)`)

func serve(t *testing.T, hub, site *enginetest.Box, seconds int) (s service) {
	t.Helper()
	pings := hub.NS.Command("ping", "-n", "-i", "0.02", "-c", strconv.Itoa(40*seconds), "10.66.0."+strconv.Itoa(site.N))
	got := make(chan []byte, 1)
	go func() { out, _ := pings.CombinedOutput(); got <- out }()
	s.rate = hub.Iperf(site, seconds)
	var all []float64
	for _, m := range medianOf.FindAllSubmatch(<-got, -1) {
		ms, err := strconv.ParseFloat(string(m[1]), 64)
		require.NoError(t, err)
		all = append(all, ms)
	}
	require.NotEmpty(t, all)
	s.rtt = time.Duration(median(all) * float64(time.Millisecond))
	return s
}

// A flood to a site with a slow line takes nothing from the other site, and fills its own line.
func TestTimedASlowSiteDoesNotHoldUpOthers(t *testing.T) {
	hub, fast, slow := hubAndSites(t)
	alone := serve(t, hub, fast, 2)
	packet := make([]byte, 1300)
	stop := hub.Flood("10.66.0.3:9", 2, func() []byte { return packet })
	polltest.Require(t, func() bool { return hub.E.Status().Queue.SlowSites == 1 }, 10*time.Second,
		10*time.Millisecond)
	began, was := time.Now(), slow.E.Status().Peers[0].RxBytes
	beside := serve(t, hub, fast, 2)
	took, now := time.Since(began), slow.E.Status().Peers[0].RxBytes
	rate := float64(now-was) * 8 / took.Seconds() / 1e6
	h := engine(hub).hub
	t.Logf("fast site alone %.1f Mbit/s, %v; beside a flood %.1f Mbit/s, %v; the slow one got %.2f Mbit/s; limit %d, %+v",
		alone.rate, alone.rtt, beside.rate, beside.rtt, rate,
		h.peers.now.Load().byKey[slow.Key.Public()].account.limit.Load(), hub.E.Status().Queue)
	assert.Greater(t, beside.rate, 0.8*alone.rate)
	assert.Less(t, beside.rtt, 3*alone.rtt+10*time.Millisecond)
	assert.Greater(t, rate, 0.7, "Mbit/s of the slow site's 1")
	assert.Empty(t, hub.E.Status().Queue.Note)

	// A card that tells nothing: as it was with one account, and said.
	h.fair.sites.blind.Store(true)
	polltest.Require(t, func() bool { return !h.fair.sites.on.Load() }, 10*time.Second, 10*time.Millisecond)
	assert.Contains(t, hub.E.Status().Queue.Note, "SO_TIMESTAMPING")
	if testing.Verbose() {
		was := serve(t, hub, fast, 2)
		t.Logf("with one account: %.1f Mbit/s, %v", was.rate, was.rtt)
	}
	stop()
	polltest.Require(t, func() bool { return h.fair.allUnderWay() == 0 && h.fair.seen.packets.Load() == 0 },
		20*time.Second, 10*time.Millisecond)
	for _, to := range []string{"10.66.0.2", "10.66.0.3"} {
		assert.NoError(t, hub.Ping(to))
	}
}
