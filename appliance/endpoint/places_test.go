package endpoint

import (
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/tunnel"
)

// hub is a site with two addresses.
var (
	hub = tunnel.Site{
		Name: "hub", PublicKey: tunnel.PublicKey{3}, Endpoint: "203.0.113.2", MoreEndpoints: []string{"198.18.0.2"},
		VoicePort: 51820, DataPort: 51821,
	}
	hubSecond = netip.MustParseAddrPort("198.18.0.2:51820")
)

func dataPort(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), 51821) }

// newHub is a memory with a clock that stands, which knows the hub.
func newHub(t *testing.T) (m *Memory, now *time.Time) {
	t.Helper()
	m = empty(t)
	at := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	m.now = func() time.Time { return at }
	m.SetLiterals([]tunnel.Site{hub, munich})
	return m, &at
}

func heardPeer(at netip.AddrPort, last time.Time) []tunnel.PeerStatus {
	return []tunnel.PeerStatus{{PublicKey: munich.PublicKey, Endpoint: at, LastHandshake: last}}
}

func TestTheLastEightPlacesAreRemembered(t *testing.T) {
	m, now := newHub(t)
	m.NameLines(func(netip.Addr) string { return "wan0" })
	tells(t, m, tunnel.Voice, none)
	for i := range 12 {
		*now = now.Add(time.Minute)
		peers := heardPeer(netip.MustParseAddrPort(fmt.Sprintf("192.0.2.%d:40000", i)), *now)
		peers[0].Paths = []tunnel.PathStatus{{Source: netip.MustParseAddr("198.51.100.2"), Used: true}}
		m.Observe(tunnel.Voice, peers)
	}
	m.Observe(tunnel.Voice, heardPeer(netip.MustParseAddrPort("192.0.2.9:40000"), *now))
	require.NoError(t, m.Save())
	m = load(t, m.path)
	heard := m.known[tunnel.Voice][munich.PublicKey.String()].Heard
	require.Len(t, heard, maxHeard)
	assert.Equal(t, "192.0.2.9:40000", heard[0].At.String(), "it is there again")
	assert.Equal(t, "192.0.2.11:40000", heard[1].At.String())
	assert.Equal(t, "wan0", heard[1].WAN)
	assert.Equal(t, *now, heard[1].Last)
}

// The box starts again while a site that dials in has moved back to an address where it was before: it is tried at
// each.
func TestASiteThatMovedIsLookedForWhereItWasHeard(t *testing.T) {
	m, now := newHub(t)
	tells(t, m, tunnel.Voice, none)
	places := []netip.AddrPort{home, away, next}
	for _, at := range places {
		*now = now.Add(time.Minute)
		m.Observe(tunnel.Voice, heardPeer(at, *now))
	}
	m = restart(t, m)
	later := now.Add(time.Hour)
	m.now = func() time.Time { return later }
	assert.Equal(t, next, tells(t, m, tunnel.Voice, none))
	var tried []netip.AddrPort
	for i := range 4 {
		later = later.Add(tryFor << (i / 3)) // each was tried once
		_, retried := m.Observe(tunnel.Voice, heardPeer(where(m), never))
		require.True(t, retried)
		tried = append(tried, tells(t, m, tunnel.Voice, none))
	}
	assert.Equal(t, []netip.AddrPort{away, home, next, away}, tried)
}

func TestTheFileOfTheReleaseBeforeIsRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "endpoints.json")
	text := fmt.Sprintf(`{"voice": {%q: {"resolved": %q, "current": %q}}}`, munich.PublicKey.String(), home, away)
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	m := load(t, path)
	assert.Equal(t, away, tells(t, m, tunnel.Voice, home))
	assert.Equal(t, away, where(m))
}

// The file is on flash: it is written once in ten minutes at most, and at the end.
func TestTheFileIsWrittenSeldom(t *testing.T) {
	m, now := newHub(t)
	require.NoError(t, m.Save())
	tells(t, m, tunnel.Voice, none)
	writes := 0
	for i := range 3600 { // an hour, with a peer that moves every second
		*now = now.Add(time.Second)
		m.Heard(tunnel.Voice, map[tunnel.PublicKey]netip.AddrPort{
			munich.PublicKey: netip.AddrPortFrom(away.Addr(), uint16(1000+i)),
		})
		before := m.written
		require.NoError(t, m.SaveInTime())
		if m.written != before {
			writes++
		}
	}
	assert.Equal(t, 6, writes)
	require.NoError(t, m.Save(), "at the end")
	assert.EqualValues(t, 4599, where(load(t, m.path)).Port())

	quiet, now := newHub(t)
	tells(t, quiet, tunnel.Voice, none)
	*now = now.Add(time.Minute)
	quiet.Observe(tunnel.Voice, heardPeer(away, *now))
	require.NoError(t, quiet.Save())
	for range 100 { // handshakes at the same place are no reason to write
		*now = now.Add(2 * time.Minute)
		quiet.Observe(tunnel.Voice, heardPeer(away, *now))
		assert.False(t, quiet.unsaved)
	}
}

func TestAListIsTold(t *testing.T) {
	m, _ := newHub(t)
	assert.Equal(t, []netip.AddrPort{home, hubSecond}, m.Remotes(tunnel.Voice, hub))
	at, revision := m.Tell(tunnel.Voice, hub)
	assert.Equal(t, home, at)
	m.Heard(tunnel.Voice, map[tunnel.PublicKey]netip.AddrPort{hub.PublicKey: hubSecond})

	other := hub
	other.MoreEndpoints = []string{"198.18.0.2", "192.0.2.99"}
	m.SetLiterals([]tunnel.Site{other})
	at, again := m.Tell(tunnel.Voice, other)
	assert.Equal(t, hubSecond, at, "it is heard at one of the list, and stays there")
	assert.Equal(t, revision, again)

	other.Endpoint, other.MoreEndpoints = "192.0.2.98", []string{"192.0.2.99"}
	m.SetLiterals([]tunnel.Site{other})
	at, again = m.Tell(tunnel.Voice, other)
	assert.Equal(t, "192.0.2.98:51820", at.String())
	assert.Equal(t, revision+1, again)
}

// An engine that does not know several addresses: a peer that does not answer is sent to at the next one.
func TestAPeerThatDoesNotAnswerIsSentToElsewhere(t *testing.T) {
	m, now := newHub(t)
	m.Tell(tunnel.Data, hub)
	p := tunnel.PeerStatus{PublicKey: hub.PublicKey, Endpoint: dataPort(home)}
	look := func(rx, tx uint64) bool {
		*now = now.Add(time.Second)
		p.RxBytes, p.TxBytes = p.RxBytes+rx, p.TxBytes+tx
		return m.Steer(tunnel.Data, []tunnel.Site{hub}, []tunnel.PeerStatus{p}, nil)
	}
	for range 100 {
		require.False(t, look(0, 32), "keepalives ask for no answer")
	}
	for i := range 100 {
		require.False(t, look(uint64(32*(i%10/9)), 1000), "it answers every ten seconds")
	}
	looks := 0
	for !look(0, 1000) {
		looks++
		require.Less(t, looks, 20)
	}
	assert.InDelta(t, 12, looks, 2)
	at, revision := m.Tell(tunnel.Data, hub)
	assert.Equal(t, dataPort(hubSecond), at)
	assert.Equal(t, 2, revision)
	paths, moves := m.Paths(tunnel.Data, hub, at)
	require.Len(t, paths, 2)
	assert.True(t, paths[1].Used)
	assert.Equal(t, whyNotHeard, moves[0].Why)

	p.Endpoint = at
	moved := 0
	for range 600 { // nobody answers anywhere
		if look(0, 1000) {
			moved++
			p.Endpoint, _ = m.Tell(tunnel.Data, hub)
		}
	}
	assert.LessOrEqual(t, moved, 8)
	assert.Positive(t, moved)
}

// The data tunnel goes where the voice tunnel is heard.
func TestDataFollowsVoiceToAnotherAddress(t *testing.T) {
	m, now := newHub(t)
	m.Tell(tunnel.Data, hub)
	source := netip.MustParseAddr("198.51.100.2")
	data := tunnel.PeerStatus{PublicKey: hub.PublicKey, Endpoint: dataPort(home)}
	voice := func(used int, states ...tunnel.PathState) tunnel.PeerStatus {
		p := tunnel.PeerStatus{PublicKey: hub.PublicKey}
		for i, r := range []netip.AddrPort{home, hubSecond} {
			p.Paths = append(p.Paths, tunnel.PathStatus{Source: source, Remote: r, Used: i == used, State: states[i]})
		}
		return p
	}
	look := func(v tunnel.PeerStatus) (moved bool) {
		*now = now.Add(time.Second)
		moved = m.Steer(tunnel.Data, []tunnel.Site{hub}, []tunnel.PeerStatus{data}, []tunnel.PeerStatus{v})
		if moved {
			data.Endpoint, _ = m.Tell(tunnel.Data, hub)
		}
		return moved
	}
	for range 60 {
		require.False(t, look(voice(0, tunnel.PathUp, tunnel.PathUp)))
	}
	require.False(t, look(voice(1, tunnel.PathSilent, tunnel.PathUp)))
	require.True(t, look(voice(1, tunnel.PathSilent, tunnel.PathUp)))
	assert.Equal(t, dataPort(hubSecond), data.Endpoint)
	for range int(backAfter / time.Second) {
		require.False(t, look(voice(0, tunnel.PathUp, tunnel.PathUp)))
	}
	require.True(t, look(voice(0, tunnel.PathUp, tunnel.PathUp)), "and back")
	assert.Equal(t, dataPort(home), data.Endpoint)
	data.Endpoint = dataPort(away)
	for range 60 {
		require.False(t, look(voice(1, tunnel.PathSilent, tunnel.PathUp)), "it has chosen an address by itself")
	}
	v := []tunnel.PeerStatus{voice(0, tunnel.PathSilent, tunnel.PathUp)}
	assert.False(t, m.Steer(tunnel.Voice, []tunnel.Site{hub}, v, nil), "the engine knows better")
}

// A site that is closed has its addresses tried ever more seldom, writes nothing, and is heard at once when it opens.
func TestAClosedSiteCostsNextToNothing(t *testing.T) {
	m, now := newHub(t)
	var text strings.Builder
	m.log = slog.New(slog.NewTextHandler(&text, nil))
	tells(t, m, tunnel.Voice, home)
	*now = now.Add(time.Minute)
	m.Observe(tunnel.Voice, heardPeer(away, *now))
	require.NoError(t, m.Save())
	last := *now

	var tried []netip.AddrPort
	var at []time.Duration
	for now.Sub(last) < 10*time.Hour {
		*now = now.Add(time.Second)
		moved, retried := m.Observe(tunnel.Voice, heardPeer(where(m), last))
		require.False(t, moved)
		if retried {
			to, revision := tell(m, tunnel.Voice, home)
			assert.Equal(t, to, where(m), "the firewall knows where it is sent to")
			assert.Equal(t, to, m.Latest(device(home, revision)).Peers[0].Endpoint)
			m.Told(device(to, revision))
			tried, at = append(tried, to), append(at, now.Sub(last))
		}
	}
	require.Greater(t, len(tried), 8)
	assert.Equal(t, []netip.AddrPort{home, away, home, away, home}, tried[:5])
	var waits []time.Duration
	for i := range 8 {
		waits = append(waits, at[i+1]-at[i])
	}
	assert.Equal(t, []time.Duration{20, 40, 40, 80, 80, 160, 160, 300}, seconds(waits))
	assert.Less(t, len(tried), 10*12+10, "once in five minutes")
	assert.False(t, m.unsaved, "nothing is known that was not")
	assert.Equal(t, 1, strings.Count(text.String(), "trying another address"))
	assert.Equal(t, away, where(restart(t, m)), "where it was heard")

	// It opens, at the place that is tried.
	for where(m) != home {
		*now = now.Add(time.Second)
		m.Observe(tunnel.Voice, heardPeer(where(m), last))
	}
	last = now.Add(time.Second)
	*now = last
	moved, _ := m.Observe(tunnel.Voice, heardPeer(home, last))
	assert.True(t, moved)
	assert.True(t, m.unsaved)
	assert.Equal(t, home, where(restart(t, m)))
	*now = last.Add(silentAfter)
	_, retried := m.Observe(tunnel.Voice, heardPeer(home, last))
	assert.True(t, retried)
	*now = now.Add(tryFor)
	_, retried = m.Observe(tunnel.Voice, heardPeer(where(m), last))
	assert.True(t, retried, "and it is looked for as often as at first")
}

// seconds are durations as so many nanoseconds, which are readable.
func seconds(all []time.Duration) (n []time.Duration) {
	for _, d := range all {
		n = append(n, d/time.Second)
	}
	return n
}

// The daemon starts again, and the first reconciliation comes before names are looked up: nothing moves then, nor when
// they have been.
func TestAStartMovesNothingWhileNamesAreNotLookedUp(t *testing.T) {
	first, second := netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("198.18.0.2")
	two := []netip.AddrPort{home, hubSecond}
	for name, c := range map[string]struct {
		hosts  []string
		before map[string]netip.Addr
		steps  []map[string]netip.Addr // what is found after the start
	}{
		"a name and an address": {
			[]string{"hub.example.net", "198.18.0.2"}, map[string]netip.Addr{"hub.example.net": first},
			[]map[string]netip.Addr{nil, {"hub.example.net": first}},
		},
		"two names": {
			[]string{"a.example.net", "b.example.net"},
			map[string]netip.Addr{"a.example.net": first, "b.example.net": second},
			[]map[string]netip.Addr{nil, {"b.example.net": second}, {"a.example.net": first}},
		},
		"an address and a name": {
			[]string{"203.0.113.2", "b.example.net"}, map[string]netip.Addr{"b.example.net": second},
			[]map[string]netip.Addr{nil, {"b.example.net": second}},
		},
	} {
		for _, noted := range []bool{true, false} {
			site := hub
			site.Endpoint, site.MoreEndpoints = c.hosts[0], c.hosts[1:]
			sites := []tunnel.Site{site}
			m := empty(t)
			m.SetLiterals(sites)
			m.setNames(c.before)
			at, _ := m.Tell(tunnel.Voice, site)
			require.Equal(t, home, at)
			if !noted { // by an earlier build
				p := m.known[tunnel.Voice][hub.PublicKey.String()]
				p.Meant = nil
				m.known[tunnel.Voice][hub.PublicKey.String()] = p
			}

			m = restart(t, m)
			m.SetLiterals(sites)
			uses := m.uses(Query{Sites: sites})
			for i, host := range c.hosts {
				assert.Equal(t, two[i].Addr(), uses[host].addr, "%s: %s", name, host)
			}
			for _, found := range c.steps {
				m.setNames(found)
				at, revision := m.Tell(tunnel.Voice, site)
				assert.Equal(t, home, at, name)
				assert.Zero(t, revision, name)
				assert.Equal(t, two, m.Remotes(tunnel.Voice, site), name)
			}
			require.NoError(t, m.Save())
			assert.Equal(t, two, m.known[tunnel.Voice][hub.PublicKey.String()].resolvedList(), name)
		}
	}
}

// One name of a list is replaced by one that was not looked up yet: the site stays where it is until it is.
func TestANewNameMovesNothingUntilItIsLookedUp(t *testing.T) {
	for _, again := range []bool{false, true} {
		site := hub
		site.Endpoint = "old.example.net"
		m := empty(t)
		m.SetLiterals([]tunnel.Site{site})
		m.setNames(map[string]netip.Addr{"old.example.net": home.Addr()})
		_, before := m.Tell(tunnel.Voice, site)
		if again {
			m, before = restart(t, m), 0
		}

		site.Endpoint = "new.example.net"
		m.SetLiterals([]tunnel.Site{site})
		m.KeepOnly([]tunnel.Site{site})
		for range 2 {
			at, revision := m.Tell(tunnel.Voice, site)
			assert.Equal(t, home, at)
			assert.Equal(t, before, revision)
		}
		m.setNames(map[string]netip.Addr{"new.example.net": next.Addr()})
		at, revision := m.Tell(tunnel.Voice, site)
		assert.Equal(t, next, at)
		assert.Equal(t, before+1, revision)
		assert.Equal(t, map[string]netip.Addr{"new.example.net": next.Addr()},
			m.known[tunnel.Voice][hub.PublicKey.String()].Meant)
	}
}

// A plan is made of a copy, which changes nothing.
func TestACopyOfTheMemoryNotesNothing(t *testing.T) {
	m := empty(t)
	tells(t, m, tunnel.Voice, home)
	c := m.Clone()
	tells(t, c, tunnel.Voice, next)
	assert.Equal(t, home.Addr(), m.known[tunnel.Voice][munich.PublicKey.String()].Meant[munich.Endpoint])
}
