package wanted

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/appliance/secrets"
	"ringway/configs"
	"ringway/qos"
	"ringway/routing"
	"ringway/tunnel"
)

// shipped loads a shipped config with values replaced.
func shipped(t *testing.T, name string, change map[string]string) *config.Config {
	t.Helper()
	data, err := configs.Variant(name, change)
	require.NoError(t, err)
	cfg, err := config.Parse(name, data, config.WithoutKeyFiles())
	require.NoError(t, err)
	return cfg
}

func device(t *testing.T, w State, c tunnel.Class) tunnel.Device {
	t.Helper()
	for _, d := range w.Devices {
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
	keys := secrets.Keys{Preshared: map[string]tunnel.PresharedKey{"munich": tunnel.PresharedKey(configured)}}
	both := From(shipped(t, "branch-berlin.yaml", nil), Facts{Keys: keys, Queues: qos.AssumedFeatures()})
	voice, data := device(t, both, tunnel.Voice).Peers[0].PresharedKey, device(t, both,
		tunnel.Data).Peers[0].PresharedKey
	assert.NotEqual(t, voice, data, "or one side's voice tunnel could be joined to the other's data tunnel")
	assert.NotEqual(t, tunnel.PresharedKey(configured), voice)

	none := From(shipped(t, "branch-berlin.yaml", nil), Facts{Queues: qos.AssumedFeatures()})
	assert.False(t, device(t, none, tunnel.Voice).Peers[0].PresharedKey.IsZero(), "also where none is configured")

	single := From(
		shipped(t, "branch-berlin.yaml", map[string]string{"sites[munich].tunnels": "data"}),
		Facts{Keys: keys, Queues: qos.AssumedFeatures()},
	)
	assert.Empty(t, device(t, single, tunnel.Voice).Peers, "any other WireGuard has one tunnel")
	assert.Equal(
		t,
		tunnel.PresharedKey(configured),
		device(t, single, tunnel.Data).Peers[0].PresharedKey,
		"and uses the key as it is",
	)
}

func TestASiteWithOneTunnelHasBothClassesRoutedThere(t *testing.T) {
	w := From(
		shipped(t, "branch-berlin.yaml", map[string]string{"sites[munich].tunnels": "data"}),
		Facts{Queues: qos.AssumedFeatures()},
	)
	for _, r := range w.Routing.Routes {
		if r.Device == "rw-voice" {
			assert.Fail(t, "a route through a tunnel that the site does not have", "%+v", r)
		}
	}
}

func TestEngines(t *testing.T) {
	engines := func(kernel bool, change map[string]string) string {
		w := From(
			shipped(t, "branch-berlin.yaml", change),
			Facts{KernelWireGuard: kernel, Queues: qos.AssumedFeatures()},
		)
		return fmt.Sprint(device(t, w, tunnel.Voice).Settings.Engine, " ", device(t, w, tunnel.Data).Settings.Engine)
	}
	assert.Equal(t, "realtime wireguard-go", engines(false, nil))
	assert.Equal(t, "realtime kernel", engines(true, nil))
	assert.Equal(
		t,
		"kernel wireguard-go",
		engines(true, map[string]string{"tunnels[voice].engine": "kernel", "tunnels[data].engine": "wireguard-go"}),
	)
}

// Ciphertext is marked by the class inside: by the code point that the firewall writes there, and by those
// that phones use.
func TestHowPacketsLookFromOutside(t *testing.T) {
	outer := func(c tunnel.Class, change map[string]string) string {
		return device(
			t,
			From(shipped(t, "branch-berlin.yaml", change), Facts{Queues: qos.AssumedFeatures()}),
			c,
		).Outer.Words()
	}
	assert.Equal(
		t,
		"outer DSCP 46, 24 for inner 24, 24 for inner 26, 24 for inner 40, 46 for inner 46",
		outer(tunnel.Voice, nil),
	)
	assert.Equal(t, "outer DSCP 0, 0 for inner 0, 8 for inner 1, 8 for inner 8", outer(tunnel.Data, nil))
	assert.Equal(
		t,
		"outer DSCP 44, 26 for inner 24, 26 for inner 26, 26 for inner 40, 44 for inner 44, 44 for inner 46, "+
			"padded to 256 bytes",
		outer(tunnel.Voice, map[string]string{"classes[media].outer": "VA", "classes[signalling].outer": "AF31",
			"tunnels[voice].engine": "realtime", "tunnels[voice].pad_to": "256"}),
	)
	assert.Equal(
		t,
		"outer DSCP 46, 24 for inner 24, 24 for inner 26, 46 for inner 46",
		outer(tunnel.Voice, map[string]string{
			"classes[media].dscp": "[EF, CS3]", "classes[signalling].dscp": "[AF31]"}),
		"what the firewall writes for a class is that class",
	)
}

func TestTheMachineIsTunedIfItMayBe(t *testing.T) {
	tuned := func(change map[string]string) bool {
		w := From(shipped(t, "branch-berlin.yaml", change), Facts{Queues: qos.AssumedFeatures()})
		return slices.ContainsFunc(w.Routing.Sysctls, func(s routing.Sysctl) bool {
			return s == routing.Sysctl{Key: "net/core/netdev_budget", Value: SoftirqBudget, Optional: true}
		})
	}
	assert.True(t, tuned(nil))
	assert.False(t, tuned(map[string]string{"machine.tune": "false"}))
}

// A super-packet carries at most 1 ms at the WAN's rate, none where that is not even two packets.
func TestSuperPackets(t *testing.T) {
	super := func(rate string) int {
		w := From(
			shipped(t, "branch-berlin.yaml", map[string]string{"wan[wan0].uplink": rate, "wan[wan0].downlink": ""}),
			Facts{Queues: qos.AssumedFeatures()},
		)
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
	keys := secrets.Keys{
		Private:   private,
		Preshared: map[string]tunnel.PresharedKey{"munich": tunnel.PresharedKey(psk)},
	}
	w := From(shipped(t, "branch-berlin.yaml", nil), Facts{Keys: keys, Queues: qos.AssumedFeatures()})
	asJSON, err := json.Marshal(w.Devices)
	require.NoError(t, err)
	var words []string
	for _, d := range w.Devices {
		words = append(words, d.Words()...)
	}
	for _, k := range []tunnel.PrivateKey{private, psk} {
		raw := fmt.Sprint([32]byte(k))
		for _, printed := range []string{fmt.Sprintf("%v %+v %#v", w.Devices, w.Devices, w.Devices),
			fmt.Sprintf("%s %x", private, private),
			fmt.Sprintf("%+v", keys), string(asJSON), strings.Join(words, "\n")} {
			assert.NotContains(t, printed, k.Base64())
			assert.NotContains(t, printed, k.Hex())
			assert.NotContains(t, printed, raw[1:len(raw)-1])
		}
	}
}

// A port for metrics is a service of data networks in the firewall's plan; one on loopback opens nothing.
func TestMetricsOpenTheirPortToDataNetworksAlone(t *testing.T) {
	for listen, port := range map[string]string{"[]": "22", "[127.0.0.1:9586]": "22", "[10.1.20.1:9586]": "22, 9586"} {
		cfg := shipped(t, "branch-berlin.yaml", map[string]string{"control.metrics": listen})
		text := strings.Join(From(cfg, Facts{}).Firewall.Text(), "\n")
		assert.Contains(
			t,
			text,
			fmt.Sprintf("set served_tcp { type inet_service; flags interval; elements = { %s }; }", port),
			listen,
		)
	}
}
