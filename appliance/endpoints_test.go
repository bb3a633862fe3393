package appliance

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/tunnel"
)

var (
	keyA = tunnel.PublicKey{1}
	home = netip.MustParseAddrPort("203.0.113.2:51820")
	away = netip.MustParseAddrPort("192.0.2.77:40000")
	next = netip.MustParseAddrPort("203.0.113.9:51820")
	none netip.AddrPort
)

// at is what choose says, without whether it is news.
func at(m *endpointMemory, c tunnel.Class, k tunnel.PublicKey, resolved netip.AddrPort) netip.AddrPort {
	ep, _ := m.choose(c, k, resolved)
	return ep
}

func TestASiteThatDialsInIsRememberedOverARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "endpoints.json")
	m := loadEndpoints(path, slog.New(slog.DiscardHandler))
	assert.Equal(t, none, at(m, tunnel.Voice, keyA, none))
	assert.True(t, m.saw(tunnel.Voice, map[tunnel.PublicKey]netip.AddrPort{keyA: away}))
	assert.False(t, m.saw(tunnel.Voice, map[tunnel.PublicKey]netip.AddrPort{keyA: away}), "nothing new")
	require.NoError(t, m.save())

	m = loadEndpoints(path, slog.New(slog.DiscardHandler))
	assert.Equal(t, away, at(m, tunnel.Voice, keyA, none))
	assert.Equal(t, none, at(m, tunnel.Data, keyA, none), "each class has sockets and so NAT bindings of its own")
}

func TestARoamedSiteIsLookedForWhereItWasUntilItsNameMoves(t *testing.T) {
	m := loadEndpoints(filepath.Join(t.TempDir(), "e"), slog.New(slog.DiscardHandler))
	assert.Equal(t, home, at(m, tunnel.Voice, keyA, home))
	m.saw(tunnel.Voice, map[tunnel.PublicKey]netip.AddrPort{keyA: away})
	assert.Equal(t, home, at(m, tunnel.Voice, keyA, home), "nothing new from here: the engine itself follows the peer")
	require.NoError(t, m.save())
	m = loadEndpoints(m.path, slog.New(slog.DiscardHandler))
	assert.Equal(t, away, at(m, tunnel.Voice, keyA, home), "after a restart the engine must be told where the peer was last")
	assert.Equal(t, next, at(m, tunnel.Voice, keyA, next), "the name says something new")
	assert.Equal(t, next, at(m, tunnel.Voice, keyA, none), "the name does not resolve now")
}

// A daemon that starts again adopts an engine with living sessions: what the config means anew must be told to it.
func TestAnEndpointThatChangedWhileTheDaemonWasDownIsNews(t *testing.T) {
	path := filepath.Join(t.TempDir(), "e")
	m := loadEndpoints(path, slog.New(slog.DiscardHandler))
	_, news := m.choose(tunnel.Voice, keyA, home)
	assert.Equal(t, 1, news, "nothing was known")
	require.NoError(t, m.save())

	m = loadEndpoints(path, slog.New(slog.DiscardHandler))
	_, news = m.choose(tunnel.Voice, keyA, home)
	assert.Zero(t, news)

	m = loadEndpoints(path, slog.New(slog.DiscardHandler))
	ep, news := m.choose(tunnel.Voice, keyA, next)
	assert.Equal(t, next, ep)
	assert.Equal(t, 1, news)
}

// A hub failed over and back while this box was off: the box remembers the line that is dead now.
func TestASilentPeerIsLookedForWhereItIsConfigured(t *testing.T) {
	m := loadEndpoints(filepath.Join(t.TempDir(), "e"), slog.New(slog.DiscardHandler))
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	m.now = func() time.Time { return now }
	m.saw(tunnel.Voice, map[tunnel.PublicKey]netip.AddrPort{keyA: away})
	m.known[tunnel.Voice][keyA.String()] = rememberedEndpoint{Resolved: home, Current: away}
	assert.Equal(t, away, at(m, tunnel.Voice, keyA, home))
	never := time.Time{}
	assert.False(t, m.giveUp(tunnel.Voice, keyA, never), "it is given a chance")
	now = now.Add(tryFor)
	assert.False(t, m.giveUp(tunnel.Voice, keyA, now.Add(-time.Minute)), "it answers there")
	assert.True(t, m.giveUp(tunnel.Voice, keyA, never))
	ep, news := m.choose(tunnel.Voice, keyA, home)
	assert.Equal(t, home, ep)
	assert.Equal(t, 1, news)
	now = now.Add(time.Hour)
	assert.False(t, m.giveUp(tunnel.Voice, keyA, never), "there is nowhere else to look")
}

func TestForgottenSitesLeaveTheFile(t *testing.T) {
	m := loadEndpoints(filepath.Join(t.TempDir(), "e"), slog.New(slog.DiscardHandler))
	m.saw(tunnel.Voice, map[tunnel.PublicKey]netip.AddrPort{keyA: away})
	m.keepOnly(nil)
	assert.Equal(t, none, at(m, tunnel.Voice, keyA, none))
}

func TestGarbageInTheMemoryIsNoReasonNotToStart(t *testing.T) {
	for _, content := range []string{"", "null", "{", `{"voice": 3}`, `{"voice":{"x":{"current":"nonsense"}}}`} {
		path := filepath.Join(t.TempDir(), "endpoints.json")
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		m := loadEndpoints(path, slog.New(slog.DiscardHandler))
		assert.Equal(t, home, at(m, tunnel.Voice, keyA, home), "%q", content)
		require.NoError(t, m.save())
	}
}

// A tunnel that is made anew (another engine, another device name) begins where its peers were heard last, and goes on so.
func TestANewEngineLearnsWherePeersRoamedTo(t *testing.T) {
	m := loadEndpoints(filepath.Join(t.TempDir(), "e"), slog.New(slog.DiscardHandler))
	assert.Equal(t, home, at(m, tunnel.Voice, keyA, home))
	assert.Equal(t, home.Addr(), m.lastMeant(keyA))
	m.saw(tunnel.Voice, map[tunnel.PublicKey]netip.AddrPort{keyA: away})
	assert.Equal(t, home, at(m, tunnel.Voice, keyA, home), "an engine that runs follows by itself")
	d := tunnel.Device{Class: tunnel.Voice, Peers: []tunnel.Peer{{PublicKey: keyA, Endpoint: home}}}
	assert.Equal(t, away, m.anew(d).Peers[0].Endpoint)
	assert.Equal(t, home, d.Peers[0].Endpoint, "a copy")
	assert.Equal(t, away, at(m, tunnel.Voice, keyA, home), "no change for the new engine")
}
