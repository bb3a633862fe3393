package journal

import (
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/qos"
	"ringway/routing"
)

func address(prefix string) routing.State {
	return routing.State{Addresses: []routing.Address{{Device: "lan0", Prefix: netip.MustParsePrefix(prefix)}}}
}

func TestWhatWasFoundFirstIsKeptAcrossRestarts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.json")
	j, err := Load(path)
	require.ErrorIs(t, err, fs.ErrNotExist)
	link := routing.Link{Name: "lan0", Up: true}
	require.NoError(t, j.Note(routing.State{Links: []routing.Link{link}}, qos.State{}, []string{"rw-voice", "rw-data"}))
	require.NoError(t, j.Applied(address("10.1.0.1/24"), Networks{}, nil))

	j, err = Load(path)
	require.NoError(t, err)
	link.Up = false
	require.NoError(t, j.Note(routing.State{Links: []routing.Link{link}}, qos.State{}, []string{"rw-data", "rw-other"}))

	j, err = Load(path)
	require.NoError(t, err)
	assert.Equal(t, []string{"rw-voice", "rw-data", "rw-other"}, j.Devices())
	before := j.Before()
	require.Len(t, before.Routing.Links, 1)
	assert.True(t, before.Routing.Links[0].Up, "as it was before Ringway came")
	assert.Equal(t, address("10.1.0.1/24"), before.Last)

	fi, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o600), fi.Mode().Perm())
}

func TestAnUnreadableJournalIsAnEmptyOne(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.json")
	require.NoError(t, os.WriteFile(path, []byte(`{"devices": ["rw-voice"], "queues": 3}`), 0o600))
	j, err := Load(path)
	require.ErrorContains(t, err, "read journal "+path)
	assert.Empty(t, j.Devices())
	require.NoError(t, j.Note(routing.State{}, qos.State{}, []string{"rw-voice"}), "it can be written again")
}

func TestACloneIsIndependent(t *testing.T) {
	j, _ := Load(filepath.Join(t.TempDir(), "journal.json"))
	require.NoError(t, j.Note(routing.State{}, qos.State{}, []string{"rw-voice"}))
	j.Queues.Links = []qos.Link{{Interface: "wan0"}}

	c := j.Clone()
	c.Queues.Links[0].Interface = "wan1"
	c.Devices()[0] = "rw-other"
	assert.Equal(t, "wan0", j.Queues.Links[0].Interface)
	assert.Equal(t, []string{"rw-voice"}, j.Devices())
}

func TestQueuesOfOthersAreKeptUnlessTakenOver(t *testing.T) {
	wan := func(name string, uplink, downlink qos.BitRate, takeOver bool) config.WAN {
		w := config.WAN{ShapeDownlink: downlink > 0, TakeOver: takeOver}
		w.Upstream.Interface, w.Uplink, w.Downlink = name, uplink, downlink
		return w
	}
	lans := []routing.LAN{{Interface: "voice0"}}
	for name, c := range map[string]struct {
		wans []config.WAN
		want []string
	}{
		"nothing is shaped":     {[]config.WAN{wan("wan0", 0, 0, false)}, nil},
		"an uplink":             {[]config.WAN{wan("wan0", 1e6, 0, false)}, []string{"wan0"}},
		"taken over":            {[]config.WAN{wan("wan0", 1e6, 1e6, true)}, nil},
		"a downlink":            {[]config.WAN{wan("wan0", 0, 1e6, false)}, []string{"voice0"}},
		"one takes over LANs":   {[]config.WAN{wan("wan0", 1e6, 1e6, false), wan("wan1", 0, 1e6, true)}, []string{"wan0"}},
		"uplinks and downlinks": {[]config.WAN{wan("wan0", 1e6, 1e6, false)}, []string{"wan0", "voice0"}},
	} {
		assert.Equal(t, c.want, keptQueues(&config.Config{WANs: c.wans, Voice: lans}), name)
	}
}
