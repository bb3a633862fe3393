package pathmtu

import (
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/tunnel"
)

var (
	quiet  = slog.New(slog.DiscardHandler)
	munich = tunnel.Site{Name: "munich", PublicKey: tunnel.PublicKey{1}}
	paris  = tunnel.Site{Name: "paris", PublicKey: tunnel.PublicKey{2}}
	sites  = []tunnel.Site{munich, paris}
)

func peer(s tunnel.Site, mtu int, sent uint64) []tunnel.PeerStatus {
	return []tunnel.PeerStatus{{PublicKey: s.PublicKey, PathMTU: mtu, TxBytes: sent}}
}

// What was found holds for the next daemon, and while no plane says it, for an hour; then it is forgotten.
func TestWhatWasFoundIsKept(t *testing.T) {
	file, now := filepath.Join(t.TempDir(), "mtu.json"), time.Now()
	s := Load(file, now, quiet)
	assert.Empty(t, s.MTUs(sites))
	assert.False(t, s.Observe(now, tunnel.Voice, peer(munich, 0, 0)), "not known")
	assert.True(t, s.Observe(now, tunnel.Voice, peer(munich, 1392, 0)))
	assert.False(t, s.Observe(now, tunnel.Voice, peer(munich, 1392, 0)))
	assert.Equal(t, map[string]int{"munich": 1392}, s.MTUs(sites))

	s = Load(file, now, quiet)
	assert.Equal(t, map[string]int{"munich": 1392}, s.MTUs(sites))
	assert.False(t, s.Observe(now.Add(keptFor), tunnel.Voice, peer(munich, 0, 0)), "a new plane does not know yet")
	assert.True(t, s.Observe(now.Add(keptFor+time.Second), tunnel.Voice, peer(munich, 0, 0)))
	assert.Empty(t, s.MTUs(sites))
	assert.Empty(t, Load(file, now, quiet).MTUs(sites))
}

// The tunnels of a site go the same way: the least that either finds holds for both.
func TestTheLeastOfBothTunnelsHolds(t *testing.T) {
	s, now := Load("", time.Now(), quiet), time.Now()
	assert.True(t, s.Observe(now, tunnel.Voice, peer(munich, 1500, 0)))
	assert.True(t, s.Observe(now, tunnel.Data, peer(munich, 1392, 0)))
	assert.False(t, s.Observe(now, tunnel.Voice, peer(munich, 1456, 0)))
	assert.Equal(t, map[string]int{"munich": 1392}, s.MTUs(sites))
	s.Keep([]tunnel.Site{paris})
	assert.Empty(t, s.MTUs(sites))
}

// A plane is not believed what no path takes, nor is a file.
func TestWhatCannotBeIsNotTaken(t *testing.T) {
	file, now := filepath.Join(t.TempDir(), "mtu.json"), time.Now()
	s := Load(file, now, quiet)
	for _, mtu := range []int{-1, 1, 575, 65536} {
		assert.False(t, s.Observe(now, tunnel.Voice, peer(munich, mtu, 0)), mtu)
	}
	for _, text := range []string{"", "[", `{"x":{"voice":1400}}`, `{"` + munich.PublicKey.String() + `":{"voice":7}}`} {
		require.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		assert.Empty(t, Load(file, now, quiet).MTUs(sites), text)
	}
}

// Sites to which two full packets are sent in a second are confirmed, each every ten seconds at most; a call is none.
func TestWhereLongPacketsAreSent(t *testing.T) {
	s, now := Load("", time.Now(), quiet), time.Now()
	at := func(second int, sent uint64) []tunnel.PublicKey {
		now := now.Add(time.Duration(second) * time.Second)
		s.Observe(now, tunnel.Data, peer(munich, 0, sent))
		return s.Long(now)
	}
	assert.Empty(t, at(0, 1<<30), "nothing to compare with yet")
	assert.Empty(t, at(1, 1<<30+2400))
	assert.Equal(t, []tunnel.PublicKey{munich.PublicKey}, at(2, 1<<30+8000))
	assert.Empty(t, at(3, 1<<30+16000))
	assert.Empty(t, at(11, 1<<30+16000))
	assert.Equal(t, []tunnel.PublicKey{munich.PublicKey}, at(12, 1<<30+16000), "there were some since")
	assert.Empty(t, at(22, 1<<30+16000))
	assert.Empty(t, at(23, 0), "a new plane counts from zero")
}
