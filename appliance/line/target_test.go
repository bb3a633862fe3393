package line

import (
	"log/slog"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"ringway/appliance/config"
	"ringway/routing"
	"ringway/routing/echo"
	"ringway/routing/rtnl"
	"ringway/tunnel"
)

// answering is a line whose targets last answered so long ago; a negative age: never.
type answering struct {
	name    string
	carrier bool
	limit   time.Duration
	age     time.Duration
}

func TestTargetsShowWhichLinesDeliver(t *testing.T) {
	const limit, never = 3 * time.Second, -1
	var j judge
	now := time.Now()
	// step looks every quarter of a second, and counts the changes.
	step := func(d time.Duration, lines ...answering) (changes int) {
		for end := now.Add(d); now.Before(end); {
			now = now.Add(askTick)
			var all []judged
			for _, l := range lines {
				v := judged{name: l.name, carrier: l.carrier, limit: l.limit}
				if l.age >= 0 {
					v.last = now.Add(-l.age)
				}
				all = append(all, v)
			}
			if j.look(now, all) {
				changes++
			}
		}
		return changes
	}
	well := func(name string) answering { return answering{name, true, limit, 0} }
	gone := func(name string) answering { return answering{name, true, limit, time.Hour} }
	unasked := answering{"lte0", true, 0, never}

	assert.Zero(t, step(time.Minute, well("wan0"), well("lte0")))
	late := answering{"wan0", true, limit, 2900 * time.Millisecond}
	assert.Zero(t, step(time.Minute, late, well("lte0")), "one answer in time")
	assert.Equal(t, 1, step(limit+askTick, gone("wan0"), well("lte0")))
	assert.Equal(t, []string{"wan0"}, j.silent())
	assert.Zero(t, step(healthTime-time.Second, well("wan0"), well("lte0")))
	assert.Zero(t, step(time.Second, gone("wan0"), well("lte0")), "a gap")
	assert.Zero(t, step(healthTime-time.Second, well("wan0"), well("lte0")))
	assert.Equal(t, 1, step(2*time.Second, well("wan0"), well("lte0")))
	assert.Empty(t, j.silent())

	// Targets that have gone everywhere are no reason to leave a line.
	assert.Zero(t, step(time.Minute, gone("wan0"), gone("lte0")))
	assert.Equal(t, []string{"lte0", "wan0"}, j.mutes())
	assert.Equal(t, 1, step(time.Minute, gone("wan0"), unasked), "a line without targets is taken for one that delivers")
	assert.Empty(t, j.mutes())
	assert.Equal(t, 1, step(time.Second, well("wan0"), answering{"lte0", false, 0, never}), "there is no other line")
	assert.Zero(t, step(time.Minute, gone("wan0")), "the only line")
	assert.Equal(t, []string{"wan0"}, j.mutes())

	// A line that has just come is given the time to be asked.
	j = judge{}
	assert.Zero(t, step(limit-askTick, answering{"wan0", true, limit, never}, well("lte0")))
	assert.Equal(t, 1, step(time.Second, answering{"wan0", true, limit, never}, well("lte0")))
	assert.Equal(t, 1, step(time.Second, answering{"wan0", false, limit, never}, well("lte0")), "no carrier says more")
	assert.Empty(t, j.silent())

	// When the line that was taken instead falls silent, too, the first that answers is taken, however lately.
	j = judge{}
	step(4*time.Second, gone("wan0"), well("lte0"))
	assert.Equal(t, []string{"wan0"}, j.silent())
	step(4*time.Second, well("wan0"), gone("lte0"))
	assert.Equal(t, []string{"lte0"}, j.silent())
}

// A daemon that starts does not lead everything to a line that the one before has left.
func TestSilentTargetsAreKept(t *testing.T) {
	file := filepath.Join(t.TempDir(), "targets.json")
	var j judge
	j.restore([]string{"wan0"})
	assert.False(t, j.look(time.Now(), []judged{
		{name: "wan0", carrier: true, limit: time.Second}, {name: "lte0", carrier: true},
	}))
	assert.Equal(t, []string{"wan0"}, j.silent())
	assert.Empty(t, New(Options{Targets: file}).loadTargets())
}

// What did not answer the question does not count: another host, another number, another cookie, late, or twice.
func TestForgedAnswersDoNotCount(t *testing.T) {
	to, now := netip.MustParseAddr("203.0.113.9"), time.Now()
	s := &askSock{id: 7, open: map[uint16]question{1: {to, 42, now}}}
	right := echo.Message{ID: 7, Seq: 1, Cookie: 42}
	for name, m := range map[string]echo.Message{
		"another program": {ID: 8, Seq: 1, Cookie: 42}, "another number": {ID: 7, Seq: 2, Cookie: 42},
		"a guess": {ID: 7, Seq: 1, Cookie: 43},
	} {
		assert.False(t, s.answered(to, m, now, time.Second), name)
	}
	assert.False(t, s.answered(to.Next(), right, now, time.Second), "another host")
	assert.False(t, s.answered(to, right, now.Add(2*time.Second), time.Second), "late")
	assert.True(t, s.answered(to, right, now, time.Second))
	assert.False(t, s.answered(to, right, now, time.Second), "twice")
}

// A WAN's gateway is asked wherever it comes from: the config, DHCP, router advertisements in PPP or beside DHCPv6.
func TestTheGatewayIsAskedThatTheNetworkNames(t *testing.T) {
	var asked []string
	named, target := netip.MustParseAddr("fe80::1"), netip.MustParseAddr("203.0.113.9")
	l := New(Options{Gateways: func(device string) []netip.Addr {
		asked = append(asked, device)
		return []netip.Addr{named, target}
	}})
	for name, u := range map[string]routing.Upstream{
		"DHCP": {DHCP: true}, "PPPoE": {PPPoE: true}, "DHCPv6": {DHCP6: true},
	} {
		assert.Equal(t, []netip.Addr{named}, l.asked(config.WAN{Targets: []netip.Addr{target}, Upstream: u}).gateways, name)
	}
	asked = nil
	assert.Empty(t, l.asked(config.WAN{Targets: []netip.Addr{target}}).gateways)
	assert.Empty(t, asked, "the config names them all")
}

// Targets are asked where no site tells: hosts that drop pings for a while must not move calls from a line by which
// sites are heard, least of all to one that costs and of which nobody knows whether it delivers.
func TestSitesSayMoreThanTargets(t *testing.T) {
	const limit = 3 * time.Second
	began := time.Now()
	look := func(j *judge, wan0, lte0 judged) (changes int) {
		wan0.name, wan0.carrier, lte0.name, lte0.carrier = "wan0", true, "lte0", true
		for now := began; now.Before(began.Add(time.Minute)); now = now.Add(askTick) {
			if j.look(now, []judged{wan0, lte0}) {
				changes++
			}
		}
		return changes
	}
	dead, heard := judged{limit: limit}, judged{limit: limit, heard: true}
	var j judge
	assert.Zero(t, look(&j, heard, judged{}), "a site is heard")
	assert.Empty(t, j.mutes())
	assert.Zero(t, look(&j, dead, judged{metered: true}), "nobody knows whether the stick delivers")
	assert.Equal(t, []string{"wan0"}, j.mutes())
	assert.Equal(t, 1, look(&judge{}, dead, judged{metered: true, heard: true}), "a site is heard by the stick alone")
	assert.Equal(t, 1, look(&judge{}, dead, judged{metered: true, limit: limit, heard: true}))
	assert.Equal(t, 1, look(&judge{}, dead, judged{}), "a line that costs nothing")

	j = judge{}
	j.restore([]string{"wan0"})
	assert.Equal(t, 1, look(&j, heard, judged{}), "it delivers again, as sites show")
}

// What the engine says of sites reaches the judge, as long as it is fresh.
func TestTheJudgeIsToldOfSites(t *testing.T) {
	now := time.Now()
	wan := func(name string) config.WAN {
		return config.WAN{Upstream: routing.Upstream{Interface: name}}
	}
	l := New(Options{Log: slog.New(slog.DiscardHandler)})
	l.config = []config.WAN{wan("wan0"), wan("lte0")}
	l.config[0].Targets = addresses("203.0.113.9")
	l.lines = []seen{
		{Line: rtnl.Line{Name: "wan0", Carrier: true, Addresses: addresses(firstLine)}},
		{Line: rtnl.Line{Name: "lte0", Carrier: true, Addresses: addresses(secondLine)}},
	}
	ours := map[netip.Addr]bool{addresses(firstLine)[0]: true, addresses(secondLine)[0]: true}
	for range 20 {
		now = now.Add(time.Second)
		l.deliveries.observe(now, ours, []tunnel.PeerStatus{peer(tunnel.PathUp, tunnel.PathUp)})
		_, changed := l.lookAtTargets(now)
		assert.False(t, changed)
	}
	silent, changed := l.lookAtTargets(now.Add(heardNow))
	assert.True(t, changed, "the engine does not answer any more")
	assert.Equal(t, []string{"wan0"}, silent)
}
