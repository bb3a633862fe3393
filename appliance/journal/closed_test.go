package journal

import (
	"io/fs"
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/routing"
	"ringway/tunnel"
)

func nets(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, s := range list {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

// of is a config with one LAN and one site.
func of(own []netip.Prefix, sites []netip.Prefix) *config.Config {
	return &config.Config{
		Voice: []routing.LAN{{Interface: "voice0", Addresses: own}},
		Sites: []config.Site{{Site: tunnel.Site{Name: "munich", VoiceNetworks: sites}}},
	}
}

func TestWhatLeavesTheConfigIsClosedForAWhile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.json")
	j, err := Load(path)
	require.ErrorIs(t, err, fs.ErrNotExist)
	first := of(nets("10.1.10.1/24"), nets("10.2.0.0/16", "2001:db8:2::/48"))
	assert.Empty(t, j.closingAt(first, time.Minute), "a first start closes nothing")
	require.NoError(t, j.Applied(routing.State{}, NetworksOf(first), nil))
	assert.Empty(t, j.Gone(first))

	// The site shrinks to a network inside its old one, and a LAN goes.
	second := of(nets("10.1.11.1/24"), nets("10.2.10.0/24"))
	assert.Equal(t, nets("10.2.0.0/16", "2001:db8:2::/48", "10.1.10.0/24"), j.Gone(second))
	closed := j.closingAt(second, time.Minute)
	until := time.Minute + ClosedFor
	assert.Equal(t, []Closed{
		{netip.MustParsePrefix("10.2.0.0/16"), until}, {netip.MustParsePrefix("2001:db8:2::/48"), until},
		{netip.MustParsePrefix("10.1.10.0/24"), until},
	}, closed)
	assert.Equal(t, closed, j.closingAt(second, time.Minute), "a plan changes nothing")
	require.NoError(t, j.Applied(routing.State{}, NetworksOf(second), closed))

	// It lasts over restarts of the daemon, until it is due, or until the config has the network again.
	j, err = Load(path)
	require.NoError(t, err)
	assert.Empty(t, j.Gone(second))
	assert.Equal(t, closed, j.closingAt(second, until-1))
	assert.Empty(t, j.closingAt(second, until))
	back := j.closingAt(first, 2*time.Minute)
	assert.Equal(t, []Closed{
		{netip.MustParsePrefix("10.2.10.0/24"), 2*time.Minute + ClosedFor},
		{netip.MustParsePrefix("10.1.11.0/24"), 2*time.Minute + ClosedFor},
	}, back)

	// A network that changes hands is open, and its connections end.
	swapped := of(nets("10.2.10.1/24"), nets("10.1.11.0/24"))
	assert.Equal(t, nets("10.2.10.0/24", "10.1.11.0/24"), j.Gone(swapped))
	for _, c := range j.closingAt(swapped, 2*time.Minute) {
		assert.Equal(t, until, c.Until, "%s", c.Network)
	}
}

func TestTheJournalOfAnEarlierBuildSaysWhatItKeptApart(t *testing.T) {
	j, _ := Load(filepath.Join(t.TempDir(), "journal.json"))
	j.Last = routing.State{Routes: []routing.Route{
		{Table: routing.TableGuard, Type: routing.Unreachable, Prefix: netip.MustParsePrefix("10.2.10.0/24")},
		{Table: routing.TableVoice, Type: routing.Throw, Prefix: netip.MustParsePrefix("10.1.10.0/24")},
		{Table: routing.TableVoice, Type: routing.Unreachable, Prefix: netip.MustParsePrefix("0.0.0.0/0")},
	}}
	assert.Equal(t, nets("10.2.10.0/24", "10.1.10.0/24"), j.Gone(of(nil, nil)))
}

func TestWhatIsInUseIsNotShut(t *testing.T) {
	closed := []Closed{{Network: netip.MustParsePrefix("10.2.0.0/22")}, {Network: netip.MustParsePrefix("10.9.0.0/24")}}
	assert.Equal(t, nets("10.2.0.0/22", "10.9.0.0/24"), Shut(closed, nets("10.3.0.0/16", "2001:db8::/32"), nil))
	assert.Equal(t, nets("10.2.0.0/24", "10.2.2.0/23"), Shut(closed, nets("10.2.1.0/24", "10.9.0.0/16"), nil))
	assert.Empty(t, Shut(closed, nets("10.0.0.0/8"), nil))
	assert.Equal(t, nets("10.2.0.0/22", "10.9.0.0/24"), Shut(closed, nil, nets("10.0.0.0/8")), "reach is wider")
	assert.Equal(t, nets("10.2.0.0/23", "10.2.3.0/24"), Shut(closed, nil, nets("10.2.2.0/24", "10.9.0.0/24")))
	six := []Closed{{Network: netip.MustParsePrefix("2001:db8:2::/48")}}
	got := Shut(six, nets("2001:db8:2::1/128"), nil)
	assert.Len(t, got, 128-48)
	for _, p := range got {
		assert.False(t, p.Contains(netip.MustParseAddr("2001:db8:2::1")))
	}
}
