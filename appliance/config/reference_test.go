package config_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/configs"
)

// withoutDefault are the keys that a file has to set, or that mean something by not being there.
var withoutDefault = map[string]bool{
	"site": true, "wan": true, "voice": true, "data": true, "sites": true,
	"wan[].interface": true, "wan[].address": true, "wan[].gateway": true, "wan[].uplink": true, "wan[].downlink": true,
	"wan[].metered": true, "wan[].metered.budget": true,
	"wan[].dhcp6": true, "wan[].dhcp6.prefix": true,
	"voice[].prefix_from": true, "voice[].subnet": true, "data[].prefix_from": true, "data[].subnet": true,
	"wan[].vlan": true, "wan[].priority": true, "wan[].priorities": true, "wan[].priorities.media": true,
	"wan[].priorities.signalling": true, "wan[].priorities.data": true, "wan[].priorities.background": true,
	"wan[].priorities.control": true, "wan[].pppoe": true, "wan[].pppoe.user": true, "wan[].pppoe.password_file": true,
	"wan[].pppoe.service": true, "wan[].pppoe.mtu": true, "wan[].pppoe.device": true,
	"voice[].interface": true, "voice[].vlan": true, "voice[].address": true,
	"data[].interface": true, "data[].vlan": true, "data[].address": true,
	"sites[].name": true, "sites[].public_key": true, "sites[].endpoint": true, "sites[].downlink": true,
	"sites[].identity": true, "sites[].box": true,
	"sip": true, "sip.unread": true, "sip.servers": true, "sip.servers[].name": true, "sip.servers[].address": true,
	"sip.tls": true, "sip.tls[].name": true, "sip.tls[].server_names": true, "sip.tls[].cert": true,
	"sip.tls[].key": true, "sip.tls[].ca": true, "sip.tls[].client_cert": true, "sip.tls[].client_key": true,
	"sip.allow": true, "sip.allow[].network": true, "sip.allow[].ports": true,
	"sites[].voice_networks": true, "sites[].data_networks": true, "sites[].preshared_key_file": true,
}

// TestReferenceHasEveryKey: the reference names each key, and says of each what is its default or that it is
// required.
func TestReferenceHasEveryKey(t *testing.T) {
	data, err := configs.FS.ReadFile("reference.yaml")
	require.NoError(t, err)
	written, err := config.WrittenKeys(data)
	require.NoError(t, err)
	known := config.KnownKeys()
	require.Greater(t, len(known), 40)
	for _, k := range known {
		assert.True(t, written[k], "%s is not in reference.yaml", k)
	}
	for k := range withoutDefault {
		assert.Contains(t, known, k)
	}
	for _, word := range []string{"mbit", "Percent", "Bytes", "1-65535", "576-9000", "1ms-2s", "1-4094",
		"-14 to 64", "0-30", "1-95"} {
		assert.Contains(t, string(data), word, "a unit or range")
	}
}

// TestReferenceSetsDefaults: whatever has a default can be deleted from the reference, one key or all at
// once, and the config means the same.
func TestReferenceSetsDefaults(t *testing.T) {
	data, err := configs.FS.ReadFile("reference.yaml")
	require.NoError(t, err)
	root := box(t)
	parse := func(data []byte) *config.Config {
		cfg, err := config.Parse("/etc/ringway/box.yaml", data, config.WithRoot(root))
		require.NoError(t, err, "%s", data)
		return cfg
	}
	want := parse(data)
	require.Empty(t, want.Warnings)

	elements := map[string][]string{
		"wan": {
			"wan0",
		}, "sites": {"munich"}, "sip.servers": {"pbx"}, "tunnels": {"voice", "data"},
		"classes": {"media", "signalling", "data", "background"},
	}
	all := map[string]string{}
	for _, key := range config.KnownKeys() {
		if withoutDefault[key] || strings.HasSuffix(key, "[].name") {
			continue
		}
		list, _, isElement := strings.Cut(key, "[]")
		names := elements[list]
		if !isElement {
			names = []string{""}
		}
		if strings.HasPrefix(key, "wan[].metered") {
			names = []string{"lte0"}
		}
		for _, e := range names {
			path := strings.ReplaceAll(key, "[]", "["+e+"]")
			less, err := config.SetValues(data, map[string]string{path: ""})
			require.NoError(t, err)
			require.NotEqual(t, string(data), string(less))
			assert.Equal(t, normal(want), normal(parse(less)), "without %s", path)
			if isElement {
				all[path] = ""
			}
		}
	}
	require.Greater(t, len(all), 30)
	bare, err := config.SetValues(data, all)
	require.NoError(t, err)
	assert.Equal(t, normal(want), normal(parse(bare)))
}

// normal makes an empty list and none the same: only tests tell them apart.
func normal(cfg *config.Config) config.Config {
	c := *cfg
	for i := range c.Classes {
		if len(c.Classes[i].DSCP) == 0 {
			c.Classes[i].DSCP = nil
		}
		if len(c.Classes[i].Ports) == 0 {
			c.Classes[i].Ports = nil
		}
	}
	return c
}
