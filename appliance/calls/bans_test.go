package calls

import (
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/sip/relay"
)

// withoutProcess is the component of a box that enforces, while no process reads signalling.
func withoutProcess(t *testing.T) (*Calls, map[string]*fakeSet) {
	t.Helper()
	sets := map[string]*fakeSet{}
	for _, name := range []string{"banned4", "banned6"} {
		sets[name] = &fakeSet{elements: map[string]time.Duration{}}
	}
	c, err := New(Options{
		RunDir: t.TempDir(), RecordDir: t.TempDir(), Log: slog.New(slog.DiscardHandler),
		Sets: func(name string) (Set, bool) { s, ok := sets[name]; return s, ok },
	})
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.relay.Run(ended) })
	c.cfg.Mode, c.cfg.Abuse = config.SIPEnforce, relay.AbuseBlock
	return c, sets
}

// The firewall's bans outlive the process that asked for them: they are listed, and can be lifted, without it.
func TestBansOutliveTheProcess(t *testing.T) {
	c, sets := withoutProcess(t)
	first, second := netip.MustParseAddr("192.0.2.66"), netip.MustParseAddr("2001:db8::66")
	ban := func(a netip.Addr, d time.Duration) relay.Report {
		return relay.Report{Source: a, Kind: "scan", Level: "block", Action: "ban", For: d}
	}
	inRelay := ban(netip.MustParseAddr("192.0.2.67"), time.Hour)
	inRelay.InRelay = true
	c.takeReports([]relay.Report{ban(first, time.Hour), ban(second, time.Minute), inRelay}, nil)
	sets["banned4"].elements["192.0.2.1"] = time.Second // of an earlier daemon

	bans, err := c.Bans(t.Context())
	require.NoError(t, err)
	until := func(d time.Duration) time.Time { return time.Unix(0, 0).Add(d) }
	assert.Equal(t, []relay.Standing{
		{Source: netip.MustParseAddr("192.0.2.1"), Action: "ban", Until: until(time.Second)},
		{Source: first, Kind: "scan", Action: "ban", Until: until(time.Hour)},
		{Source: second, Kind: "scan", Action: "ban", Until: until(time.Minute)},
	}, bans)

	require.NoError(t, c.Unban(t.Context(), first))
	assert.Equal(t, []string{"192.0.2.1"}, sets["banned4"].keys())
	assert.EqualError(t, c.Unban(t.Context(), first), "192.0.2.66 is not banned (ringway bans lists who is)")
}

// What addresses are banned for is not remembered for more of them than can be banned.
func TestWhatBansAreForIsBounded(t *testing.T) {
	c, sets := withoutProcess(t)
	a := netip.MustParseAddr("192.0.0.0")
	for range maxBanKinds {
		a = a.Next()
		c.noteBan(a, "scan")
	}
	require.Len(t, c.banKinds, maxBanKinds)
	sets["banned4"].elements[a.String()] = time.Hour // the others are over
	c.noteBan(a.Next(), "flood")
	assert.Equal(t, map[netip.Addr]string{a: "scan", a.Next(): "flood"}, c.banKinds)
}

// What is said in a call is for nobody unless the config permits it, and the log has who asked.
func TestSoundNeedsTheConfig(t *testing.T) {
	c, _ := withoutProcess(t)
	var log strings.Builder
	c.log = slog.New(slog.NewTextHandler(&log, nil))
	_, err := c.Capture(t.Context(), "5f2a91c3", true, "uid 0, logged in as ann")
	assert.ErrorContains(t, err, "calls.recording: forbidden")
	assert.Contains(t, log.String(), `"the sound of a call may not be written" call=5f2a91c3 who="uid 0, logged in as ann"`)

	c.wantCalls.Recording = true
	_, err = c.Capture(t.Context(), "5f2a91c3", true, "uid 0")
	assert.EqualError(t, err, "no process reads signalling")
}
