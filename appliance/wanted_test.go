package appliance

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/configs"
	"ringway/qos"
	"ringway/routing"
	"ringway/tunnel"
)

// shipped loads a config that ships, changed at the given paths.
func shipped(t *testing.T, name string, change map[string]string) *config.Config {
	t.Helper()
	data, err := configs.FS.ReadFile(name)
	require.NoError(t, err)
	if change != nil {
		data, err = config.SetValues(data, change)
		require.NoError(t, err)
	}
	cfg, err := config.Parse(name, data, config.WithoutKeyFiles())
	require.NoError(t, err)
	return cfg
}

func device(t *testing.T, w wanted, c tunnel.Class) tunnel.Device {
	t.Helper()
	for _, d := range w.devices {
		if d.Class == c {
			return d
		}
	}
	require.Fail(t, "no device", c)
	return tunnel.Device{}
}

func TestEachClassMixesAPresharedKeyOfItsOwn(t *testing.T) {
	configured, err := tunnel.NewPrivateKey()
	require.NoError(t, err)
	keys := secrets{preshared: map[string]tunnel.PresharedKey{"munich": tunnel.PresharedKey(configured)}}
	both := want(shipped(t, "branch-berlin.yaml", nil), facts{secrets: keys, queues: qos.AssumedFeatures()})
	voice, data := device(t, both, tunnel.Voice).Peers[0].PresharedKey, device(t, both, tunnel.Data).Peers[0].PresharedKey
	assert.NotEqual(t, voice, data, "or one side's voice tunnel could be joined to the other's data tunnel")
	assert.NotEqual(t, tunnel.PresharedKey(configured), voice)

	none := want(shipped(t, "branch-berlin.yaml", nil), facts{queues: qos.AssumedFeatures()})
	assert.False(t, device(t, none, tunnel.Voice).Peers[0].PresharedKey.IsZero(), "also where none is configured")

	single := want(shipped(t, "branch-berlin.yaml", map[string]string{"sites[munich].tunnels": "data"}), facts{secrets: keys, queues: qos.AssumedFeatures()})
	assert.Empty(t, device(t, single, tunnel.Voice).Peers, "any other WireGuard has one tunnel")
	assert.Equal(t, tunnel.PresharedKey(configured), device(t, single, tunnel.Data).Peers[0].PresharedKey, "and uses the key as it is")
}

func TestASiteWithOneTunnelHasBothClassesRoutedThere(t *testing.T) {
	w := want(shipped(t, "branch-berlin.yaml", map[string]string{"sites[munich].tunnels": "data"}), facts{queues: qos.AssumedFeatures()})
	for _, r := range w.routing.Routes {
		if r.Device == "rw-voice" {
			assert.Fail(t, "a route through a tunnel that the site does not have", "%+v", r)
		}
	}
}

func TestEngines(t *testing.T) {
	engines := func(kernel bool, change map[string]string) string {
		w := want(shipped(t, "branch-berlin.yaml", change), facts{kernelWireGuard: kernel, queues: qos.AssumedFeatures()})
		return fmt.Sprint(device(t, w, tunnel.Voice).Settings.Engine, " ", device(t, w, tunnel.Data).Settings.Engine)
	}
	assert.Equal(t, "realtime wireguard-go", engines(false, nil))
	assert.Equal(t, "realtime kernel", engines(true, nil))
	assert.Equal(t, "kernel wireguard-go", engines(true, map[string]string{"tunnels[voice].engine": "kernel", "tunnels[data].engine": "wireguard-go"}))
}

// Ciphertext is marked by the class inside: by the code point that the firewall writes there, and by those that phones use.
func TestHowPacketsLookFromOutside(t *testing.T) {
	outer := func(c tunnel.Class, change map[string]string) string {
		return device(t, want(shipped(t, "branch-berlin.yaml", change), facts{queues: qos.AssumedFeatures()}), c).Outer.Words()
	}
	assert.Equal(t, "outer DSCP 46, 24 for inner 24, 24 for inner 26, 24 for inner 40, 46 for inner 46", outer(tunnel.Voice, nil))
	assert.Equal(t, "outer DSCP 0, 0 for inner 0, 8 for inner 1, 8 for inner 8", outer(tunnel.Data, nil))
	assert.Equal(t, "outer DSCP 44, 26 for inner 24, 26 for inner 26, 26 for inner 40, 44 for inner 44, 44 for inner 46, padded to 256 bytes",
		outer(tunnel.Voice, map[string]string{"classes[media].outer": "VA", "classes[signalling].outer": "AF31",
			"tunnels[voice].engine": "realtime", "tunnels[voice].pad_to": "256"}))
	assert.Equal(t, "outer DSCP 46, 24 for inner 24, 24 for inner 26, 46 for inner 46", outer(tunnel.Voice, map[string]string{
		"classes[media].dscp": "[EF, CS3]", "classes[signalling].dscp": "[AF31]"}), "what the firewall writes for a class is that class")
}

func TestWhatACallCostsIsPlanned(t *testing.T) {
	remarks := func(change map[string]string) []string {
		cfg := shipped(t, "minimal.yaml", change)
		out := tunnelRemarks(want(cfg, facts{queues: qos.AssumedFeatures()}).devices)
		for _, l := range callLines(callsOf(cfg)) {
			if strings.Contains(l, "G.711:") {
				out = append(out, l)
			}
		}
		return out
	}
	const plain = "160 + 12 RTP + 8 UDP + 20 IPv4 = 200, padded to 208, + 32 WireGuard + 8 UDP + 20 IPv4 + 14 link = 282 bytes; 50 a second, 112.8 kbit/s a call, calls: 49"
	assert.Equal(t, []string{"#   G.711: " + plain}, remarks(map[string]string{"tunnels[voice].engine": "wireguard-go"}))
	assert.Equal(t, []string{"# rw-voice: outer DSCP CS3 for inner CS3, AF31, CS5; EF for inner EF; EF for what else there is; padded to 512 bytes",
		"# rw-voice: calls are admitted up to the voice budget, sites: 1, of 5.8mbit",
		"#   G.711: 160 + 12 RTP + 8 UDP + 20 IPv4 = 200, padded to 512, + 32 WireGuard + 8 UDP + 20 IPv4 + 14 link = 586 bytes; 50 a second, 234.4 kbit/s a call, calls: 23; " +
			"without pad_to 282 bytes, 50 a second, 112.8 kbit/s a call, calls: 49"},
		remarks(map[string]string{"tunnels[voice].engine": "realtime", "tunnels[voice].pad_to": "512"}))
}

func TestTheMachineIsTunedIfItMayBe(t *testing.T) {
	tuned := func(change map[string]string) bool {
		w := want(shipped(t, "branch-berlin.yaml", change), facts{queues: qos.AssumedFeatures()})
		return slices.ContainsFunc(w.routing.Sysctls, func(s routing.Sysctl) bool {
			return s == routing.Sysctl{Key: "net/core/netdev_budget", Value: softirqBudget, Optional: true}
		})
	}
	assert.True(t, tuned(nil))
	assert.False(t, tuned(map[string]string{"machine.tune": "false"}))
}

// A super-packet carries at most 1 ms at the WAN's rate, none where that is not even two packets.
func TestSuperPackets(t *testing.T) {
	super := func(rate string) int {
		w := want(shipped(t, "branch-berlin.yaml", map[string]string{"wan[wan0].uplink": rate, "wan[wan0].downlink": ""}), facts{queues: qos.AssumedFeatures()})
		return device(t, w, tunnel.Data).Bounds.SuperPacket
	}
	assert.Zero(t, super("20mbit"), "1 ms is 2,425 bytes")
	assert.Equal(t, 12125, super("100mbit"))
	assert.Equal(t, maxSuperPacket, super("10gbit"))
	assert.Equal(t, maxSuperPacket, super(""), "an unknown rate bounds nothing")
}

// Whatever is printed of the wanted state, by accident or not, holds no key.
func TestSecretsNeverPrint(t *testing.T) {
	private, err := tunnel.NewPrivateKey()
	require.NoError(t, err)
	psk, err := tunnel.NewPrivateKey()
	require.NoError(t, err)
	keys := secrets{private: private, preshared: map[string]tunnel.PresharedKey{"munich": tunnel.PresharedKey(psk)}}
	w := want(shipped(t, "branch-berlin.yaml", nil), facts{secrets: keys, queues: qos.AssumedFeatures()})
	asJSON, err := json.Marshal(w.devices)
	require.NoError(t, err)
	var words []string
	for _, d := range w.devices {
		words = append(words, d.Words()...)
	}
	for _, k := range []tunnel.PrivateKey{private, psk} {
		raw := fmt.Sprint([32]byte(k))
		for _, printed := range []string{fmt.Sprintf("%v %+v %#v", w.devices, w.devices, w.devices), fmt.Sprintf("%s %x", private, private),
			fmt.Sprintf("%+v", keys), string(asJSON), strings.Join(words, "\n")} {
			assert.NotContains(t, printed, k.Base64())
			assert.NotContains(t, printed, k.Hex())
			assert.NotContains(t, printed, raw[1:len(raw)-1])
		}
	}
}

func TestKeyFilesAreNamedNotQuoted(t *testing.T) {
	dir := t.TempDir()
	secret := "c2VjcmV0IHRoYXQgaXMgdG9vIHNob3J0"
	path := filepath.Join(dir, "private.key")
	require.NoError(t, os.WriteFile(path, []byte(secret), 0o600))
	_, err := readSecrets(&config.Config{KeyFile: path})
	require.Error(t, err)
	assert.Contains(t, err.Error(), path)
	assert.NotContains(t, err.Error(), secret)
}
