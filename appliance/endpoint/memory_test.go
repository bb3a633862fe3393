package endpoint

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
	munich = tunnel.Site{
		Name: "munich", PublicKey: tunnel.PublicKey{1},
		Endpoint: "munich.example.net", VoicePort: 51820, DataPort: 51821,
	}
	home  = netip.MustParseAddrPort("203.0.113.2:51820")
	away  = netip.MustParseAddrPort("192.0.2.77:40000")
	next  = netip.MustParseAddrPort("203.0.113.9:51820")
	none  netip.AddrPort
	never time.Time
)

func load(t *testing.T, path string) *Memory {
	t.Helper()
	return Load(path, slog.New(slog.DiscardHandler))
}

func empty(t *testing.T) *Memory {
	t.Helper()
	return load(t, filepath.Join(t.TempDir(), "endpoints.json"))
}

// restart is the memory of the daemon that comes after this one.
func restart(t *testing.T, m *Memory) *Memory {
	t.Helper()
	require.NoError(t, m.Save())
	return load(t, m.path)
}

// tell is Tell when munich's configured endpoint resolves to an address; none: it does not.
func tell(m *Memory, c tunnel.Class, resolved netip.AddrPort) (at netip.AddrPort, revision int) {
	delete(m.names, munich.Endpoint)
	if resolved.IsValid() {
		m.setNames(map[string]netip.Addr{munich.Endpoint: resolved.Addr()})
	}
	return m.Tell(c, munich)
}

func tells(t *testing.T, m *Memory, c tunnel.Class, resolved netip.AddrPort) netip.AddrPort {
	t.Helper()
	at, _ := tell(m, c, resolved)
	return at
}

func heard(m *Memory, c tunnel.Class, at netip.AddrPort) (moved bool) {
	return m.Heard(c, map[tunnel.PublicKey]netip.AddrPort{munich.PublicKey: at})
}

func device(at netip.AddrPort, revision int) tunnel.Device {
	p := tunnel.Peer{PublicKey: munich.PublicKey, Endpoint: at, EndpointRevision: revision}
	return tunnel.Device{Class: tunnel.Voice, Peers: []tunnel.Peer{p}}
}

func where(m *Memory) netip.AddrPort {
	at, _ := m.Where(tunnel.Voice, munich)
	return at
}

func TestASiteThatDialsInIsRememberedAcrossARestart(t *testing.T) {
	m := empty(t)
	assert.Equal(t, none, tells(t, m, tunnel.Voice, none))
	assert.True(t, heard(m, tunnel.Voice, away))
	assert.False(t, heard(m, tunnel.Voice, away), "nothing new")

	m = restart(t, m)
	assert.Equal(t, away, tells(t, m, tunnel.Voice, none))
	assert.Equal(t, none, tells(t, m, tunnel.Data, none), "each class has NAT bindings of its own")
}

func TestARoamedSiteStaysWhereItIsUntilItsNameMoves(t *testing.T) {
	m := empty(t)
	assert.Equal(t, home, tells(t, m, tunnel.Voice, home))
	heard(m, tunnel.Voice, away)
	assert.Equal(t, home, tells(t, m, tunnel.Voice, home), "the engine follows the peer by itself")
	assert.Equal(t, away, where(m))

	m = restart(t, m)
	assert.Equal(t, away, tells(t, m, tunnel.Voice, home), "a new engine must be told where the peer was last")
	assert.Equal(t, next, tells(t, m, tunnel.Voice, next), "the name means something new")
	assert.Equal(t, next, tells(t, m, tunnel.Voice, none), "the name does not resolve now")
}

// A daemon that starts again adopts an engine with living sessions, which must be told of a new address.
func TestAnEndpointThatChangedWhileTheDaemonWasDownIsTold(t *testing.T) {
	m := empty(t)
	_, revision := tell(m, tunnel.Voice, home)
	assert.Equal(t, 1, revision, "nothing was known")

	m = restart(t, m)
	_, revision = tell(m, tunnel.Voice, home)
	assert.Zero(t, revision)

	m = restart(t, m)
	at, revision := tell(m, tunnel.Voice, next)
	assert.Equal(t, next, at)
	assert.Equal(t, 1, revision)
}

// A hub failed over and back while this machine was off: the memory holds the line that is dead now.
func TestASilentPeerIsRetriedAtItsConfiguredEndpoint(t *testing.T) {
	m := empty(t)
	tells(t, m, tunnel.Voice, home)
	heard(m, tunnel.Voice, away)
	m = restart(t, m)
	now := time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)
	m.now = func() time.Time { return now }
	assert.Equal(t, away, tells(t, m, tunnel.Voice, home))

	observe := func(lastHandshake time.Time) (retried bool) {
		p := tunnel.PeerStatus{PublicKey: munich.PublicKey, Endpoint: away, LastHandshake: lastHandshake}
		_, retried = m.Observe(tunnel.Voice, []tunnel.PeerStatus{p})
		return retried
	}
	assert.False(t, observe(never), "it is given time to answer")
	now = now.Add(tryFor)
	assert.False(t, observe(now.Add(-time.Minute)), "it answers there")
	assert.True(t, observe(never))
	at, revision := tell(m, tunnel.Voice, home)
	assert.Equal(t, home, at)
	assert.Equal(t, 1, revision)

	assert.False(t, observe(never), "it is given time there, too")
	now = now.Add(tryFor)
	assert.True(t, observe(never))
	assert.Equal(t, away, tells(t, m, tunnel.Voice, home), "it was heard there, and may be there again")
}

// Between a new revision and the moment at which the engine is told of it, the engine goes on reporting the
// old place.
func TestAReportFromBeforeTheNewEndpointDoesNotUndoIt(t *testing.T) {
	m := empty(t)
	tells(t, m, tunnel.Voice, home)
	at, revision := tell(m, tunnel.Voice, next)

	assert.False(t, heard(m, tunnel.Voice, home))
	assert.Equal(t, next, where(m))
	assert.Equal(t, next, m.Latest(device(at, revision)).Peers[0].Endpoint, "for the successor of an engine that dies now")
	assert.True(t, heard(m, tunnel.Voice, away), "elsewhere, it moved")

	m.Told(device(at, revision-1))
	assert.True(t, heard(m, tunnel.Voice, next))
	assert.False(t, heard(m, tunnel.Voice, home), "an engine that was told something older")
	m.Told(device(at, revision))
	assert.True(t, heard(m, tunnel.Voice, home), "the peer really is there")
}

func TestForgottenSitesLeaveTheFile(t *testing.T) {
	m := empty(t)
	tells(t, m, tunnel.Voice, home)
	heard(m, tunnel.Voice, away)
	m = restart(t, m)
	m.KeepOnly([]tunnel.Site{munich})
	assert.Equal(t, away, tells(t, m, tunnel.Voice, none))

	m.KeepOnly(nil)
	assert.Equal(t, none, where(m))
	m = restart(t, m)
	assert.Equal(t, none, tells(t, m, tunnel.Voice, none))
}

func TestAnUnreadableFileDoesNotPreventAStart(t *testing.T) {
	for _, content := range []string{"", "null", "{", `{"voice": 3}`, `{"voice":{"x":{"current":"nonsense"}}}`} {
		path := filepath.Join(t.TempDir(), "endpoints.json")
		require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		m := load(t, path)
		assert.Equal(t, home, tells(t, m, tunnel.Voice, home), "%q", content)
		require.NoError(t, m.Save())
	}
}

func TestTheFileIsWrittenWhenSomethingChanged(t *testing.T) {
	m := empty(t)
	require.NoError(t, m.Save())
	assert.FileExists(t, m.path, "the first time in any case")

	require.NoError(t, os.Remove(m.path))
	require.NoError(t, m.Save())
	assert.NoFileExists(t, m.path)

	tells(t, m, tunnel.Voice, none)
	heard(m, tunnel.Voice, away)
	folder := filepath.Dir(m.path)
	require.NoError(t, os.Remove(folder))
	require.Error(t, m.Save())
	require.NoError(t, os.Mkdir(folder, 0o700))
	require.NoError(t, m.Save(), "what could not be written is tried again")
	assert.Equal(t, away, where(load(t, m.path)))
}

// A tunnel that is made again (another engine, another device name) begins where its peers were heard last.
// What it is told later is what it would have been told anyway.
func TestANewEngineLearnsWherePeersRoamedTo(t *testing.T) {
	m := empty(t)
	at, revision := tell(m, tunnel.Voice, home)
	heard(m, tunnel.Voice, away)

	d := device(at, revision)
	assert.Equal(t, away, m.Latest(d).Peers[0].Endpoint)
	assert.Equal(t, home, d.Peers[0].Endpoint, "d itself does not change")
	again, revisionAgain := tell(m, tunnel.Voice, home)
	assert.Equal(t, at, again)
	assert.Equal(t, revision, revisionAgain)
}

func TestThePlaceHeardLastIsTheLaterOne(t *testing.T) {
	m := empty(t)
	berlin := tunnel.Site{Name: "berlin", PublicKey: tunnel.PublicKey{2}}
	tells(t, m, tunnel.Voice, none)
	m.Tell(tunnel.Voice, berlin)
	heard(m, tunnel.Voice, away)
	m.Heard(tunnel.Voice, map[tunnel.PublicKey]netip.AddrPort{berlin.PublicKey: away})
	_, first := m.Where(tunnel.Voice, munich)
	_, second := m.Where(tunnel.Voice, berlin)
	assert.Greater(t, second, first)
}

// A plane is confined because it may be taken over: what it reports must not grow the daemon or its file.
func TestAPeerThatNoEngineWasToldOfIsIgnored(t *testing.T) {
	m := empty(t)
	assert.False(t, heard(m, tunnel.Voice, away))
	assert.Equal(t, none, where(m))

	tells(t, m, tunnel.Voice, none)
	assert.True(t, heard(m, tunnel.Voice, away))
	assert.Equal(t, away, where(m))
}
