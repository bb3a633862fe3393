package dial

import (
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/appliance/problem"
	"ringway/process"
	"ringway/routing"
	"ringway/routing/advert"
	"ringway/routing/pppoe"
)

// A session that was up is dialed again at once; tries without one wait longer and longer.
func TestPauses(t *testing.T) {
	var p pauses
	var got []time.Duration
	for range 8 {
		got = append(got, p.next(0, false))
	}
	s := time.Second
	assert.Equal(t, []time.Duration{s, 2 * s, 4 * s, 8 * s, 16 * s, 32 * s, 60 * s, 60 * s}, got)
	assert.Zero(t, p.next(steady, false))
	assert.Equal(t, s, p.next(steady-1, false), "a session that breaks off at once is a failed try")
	assert.Equal(t, refusedPause, p.next(0, true))
	assert.Equal(t, 2*refusedPause, p.next(0, true))
}

func TestWhatIsWrongIsSaid(t *testing.T) {
	d := New(Options{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler), Changed: func() {}})
	since := time.Date(2026, 12, 1, 12, 0, 0, 0, time.UTC)
	s := &session{state: state{phase: phaseWaiting, since: since, downSince: since, dials: 2}}
	d.running["ppp-wan0"] = s
	assert.Empty(t, d.Problems(), "the first try has not ended")
	s.state.reason, s.state.progress.Failure = string(pppoe.Refused), pppoe.Refused
	assert.Equal(t, []problem.Problem{{
		Subject: "ppp-wan0", Severity: problem.Critical, Since: since,
		Text: "no PPPoE session: the provider refuses user or password",
		Action: "compare user and password_file with what the provider gave; the provider may have blocked the line; " +
			"it is tried again every minute at least",
	}}, d.Problems())
	assert.Equal(t, "PPPoE: ppp-wan0 waiting (the provider refuses user or password)", d.Status().String())
	assert.Empty(t, d.NameServers())

	s.state = state{phase: phaseUp, since: since, progress: pppoe.Progress{
		Address: netip.MustParseAddr("198.51.100.10"), Peer: netip.MustParseAddr("203.0.113.1"),
		DNS: []netip.Addr{netip.MustParseAddr("192.0.2.53")},
	}}
	assert.Empty(t, d.Problems())
	assert.Equal(t, "PPPoE: ppp-wan0 up 198.51.100.10 peer 203.0.113.1", d.Status().String())
	require.Len(t, d.NameServers(), 1)
	assert.Equal(t, "ppp-wan0", d.NameServers()[0].By.Interface)
}

// Neither end may be in a network of ours: the kernel makes a route to the other end.
func TestNeitherEndMayBeOurs(t *testing.T) {
	private := []routing.Network{{Prefix: netip.MustParsePrefix("10.1.10.0/24"), Name: "voice0"}}
	ours, other := netip.MustParseAddr("10.1.10.5"), netip.MustParseAddr("198.51.100.10")
	assert.NoError(t, check(private, other, netip.MustParseAddr("10.64.64.64")))
	assert.ErrorContains(t, check(private, ours, other), "overlaps 10.1.10.0/24 of voice0")
	assert.ErrorContains(t, check(private, other, ours), "its address 10.1.10.5")
}

// The files of a session hold a password, also while there is no process: nothing is left of them.
func TestQuitLeavesNoFile(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pppoe")
	require.NoError(t, os.Mkdir(dir, 0o700))
	sleep, err := process.Program{Name: "sleep", Args: []string{"100"}}.Start(os.Stderr)
	require.NoError(t, err)
	defer sleep.Release()
	for name, text := range map[string]string{
		"ppp0.options": "password x", "ppp1.options": "password x", "ppp1.log": "", "ppp1.process": sleep.ID(),
		"ppp2.process": "1 0", "ppp3.process": "words",
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	require.NoError(t, Quit(dir))
	assert.NoDirExists(t, dir)
	<-sleep.Exited()
	assert.NoError(t, Quit(dir), "there is none")
}

// Options that change end a session, those of another WAN do not.
func TestFollow(t *testing.T) {
	d := New(Options{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler), Changed: func() {}})
	cfg := func(user string) *config.Config {
		return &config.Config{WANs: []config.WAN{
			{Upstream: routing.Upstream{Interface: "wan1"}},
			{Upstream: routing.Upstream{Interface: "ppp-wan0.7", Card: "wan0", VLAN: 7, PPPoE: true},
				PPPoE: &config.PPPoE{User: user, PasswordFile: "/p", MTU: 1492}},
		}}
	}
	d.Follow(cfg("a"))
	require.Len(t, d.wanted, 1)
	before := d.wanted["ppp-wan0.7"]
	assert.Equal(t, "wan0.7", before.Under)
	d.Follow(cfg("a"))
	assert.True(t, d.wanted["ppp-wan0.7"].sameAs(before))
	d.Follow(cfg("b"))
	assert.False(t, d.wanted["ppp-wan0.7"].sameAs(before))
}

// The gateway of a session is the router that is advertised in it.
func TestTheGatewayOfASession(t *testing.T) {
	d := New(Options{})
	router := netip.MustParseAddr("fe80::1")
	d.running["ppp-wan0"] = &session{state: state{advertised: advert.Result{Gateway: router}}}
	assert.Equal(t, router, d.Gateway("ppp-wan0"))
	assert.False(t, d.Gateway("wan1").IsValid())
}

// A config that makes an end of a session one of ours is refused: the session would end, and never be back.
func TestASessionIsNotLostToAConfig(t *testing.T) {
	d := New(Options{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler), Changed: func() {}})
	cfg := func(networks ...string) *config.Config {
		c := &config.Config{WANs: []config.WAN{{
			Upstream: routing.Upstream{Interface: "ppp-wan0", Card: "wan0", PPPoE: true}, PPPoE: &config.PPPoE{MTU: 1492},
		}}}
		s := config.Site{}
		s.Name = "munich"
		for _, n := range networks {
			s.VoiceNetworks = append(s.VoiceNetworks, netip.MustParsePrefix(n))
		}
		c.Sites = append(c.Sites, s)
		return c
	}
	d.Follow(cfg())
	const ours, peers = "198.51.100.0/24", "10.64.0.0/16"
	assert.NoError(t, d.Conflict(cfg(peers)), "there is no session")
	s := &session{state: state{phase: phaseUp, progress: pppoe.Progress{
		Address: netip.MustParseAddr("198.51.100.10"), Peer: netip.MustParseAddr("10.64.64.64"),
	}}}
	d.running["ppp-wan0"] = s
	assert.NoError(t, d.Conflict(cfg("10.2.0.0/16")))
	assert.EqualError(t, d.Conflict(cfg(peers)), "ppp-wan0 has a PPPoE session: "+
		"its address 10.64.64.64: 10.64.64.64 overlaps 10.64.0.0/16 of site munich")
	assert.ErrorContains(t, d.Conflict(cfg(ours)), "its address 198.51.100.10: ")
	without := cfg(peers)
	without.WANs = nil
	assert.NoError(t, d.Conflict(without), "the config wants no session")

	s.state.phase = phaseWaiting
	assert.NoError(t, d.Conflict(cfg(peers)))
	s.state.phase = phaseUp
	d.Follow(cfg(peers))
	assert.NoError(t, d.Conflict(cfg(peers)), "the config that runs refuses it already")
}

// A daemon that starts adopts a session that is up though its password cannot be read, or is another one by now; it
// ends one of another user.
func TestASessionIsAdoptedWithoutItsPassword(t *testing.T) {
	dir := t.TempDir()
	d := New(Options{Dir: dir, Log: slog.New(slog.DiscardHandler), Changed: func() {}})
	w := wish{passwordFile: filepath.Join(dir, "none"), Options: pppoe.Options{
		Device: "ppp-wan0", Under: "wan0", User: "a", MTU: 1492, Log: d.file("ppp-wan0", logFile),
	}}
	old := w.Options
	old.Password = "of last year"
	sleep, err := process.Program{Name: "sleep", Args: []string{"100"}}.Start(os.Stderr)
	require.NoError(t, err)
	defer sleep.Release()
	defer func() { _ = sleep.End(0) }()
	require.NoError(t, os.WriteFile(d.file("ppp-wan0", optionsFile), []byte(old.Text()), 0o600))
	require.NoError(t, os.WriteFile(d.file("ppp-wan0", processFile), []byte(sleep.ID()), 0o600))

	p, err := d.newSession(t.Context(), w).dial()
	require.NoError(t, err)
	require.NotNil(t, p)
	assert.Equal(t, sleep.ID(), p.ID())
	p.Release()

	w.User, w.Under = "b", "lo"
	_, err = d.newSession(t.Context(), w).dial()
	assert.ErrorContains(t, err, w.passwordFile)
	<-sleep.Exited()
}

// A log that has become long is emptied, and the next daemon still reads from it that the session is up, and how.
func TestALongLogKeepsTheSession(t *testing.T) {
	d := New(Options{Dir: t.TempDir(), Log: slog.New(slog.DiscardHandler), Changed: func() {}})
	w := wish{Options: pppoe.Options{Device: "ppp-wan0", Under: "wan0", User: "a", MTU: 1492}}
	s := d.newSession(t.Context(), w)
	text := "Connect: ppp0 <--> wan0\nlocal  IP address 198.51.100.10\nremote IP address 203.0.113.1\n" +
		"local  LL address fe80::1\nprimary   DNS address 192.0.2.53\nsecondary DNS address 192.0.2.54\n"
	up := pppoe.Read(text)
	text += strings.Repeat("rcvd [LCP EchoReq id=0x1]\n", maxLog/20)
	require.NoError(t, os.WriteFile(s.file(logFile), []byte(text), 0o600))
	s.read(up)
	short, err := os.ReadFile(s.file(logFile))
	require.NoError(t, err)
	assert.Less(t, len(short), 500)
	next := d.newSession(t.Context(), w).read(pppoe.Progress{})
	assert.True(t, next.Up())
	assert.Equal(t, []any{up.Address, up.Peer, up.IPv6, up.DNS, up.Discovered},
		[]any{next.Address, next.Peer, next.IPv6, next.DNS, next.Discovered})
}
