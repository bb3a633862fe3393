package config_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
)

const small = `# a box
site: berlin # its name
wan:
  - interface: wan0
    address: dhcp # by the provider
    uplink: 20mbit
voice:
  - {interface: lan0, vlan: 20, address: 10.1.10.1/24}
sites:
  - name: munich
    endpoint: site
`

func TestSetValues(t *testing.T) {
	got, err := config.SetValues([]byte(small), map[string]string{
		"site":                         "name",
		"wan[wan0].interface":          "ppp0",
		"wan[wan0].address":            "[198.51.100.2/24, \"2001:db8::2/64\"]",
		"wan[0].uplink":                "",
		"wan[wan0].downlink":           "",
		"voice[lan0.20].address":       "10.9.10.1/24",
		"voice[lan0.20].vlan":          "30",
		"sites[munich].endpoint":       "null",
		"sites[+]":                     "{name: paris, data_networks: [10.3.0.0/16]}",
		"tunnels[data].listen_port":    "5000",
		"tunnels[data].mtu":            "1280",
		"control.group":                `""`,
		"classes[background].dscp":     "[]",
		"sites[munich].site":           "",
		"sites[munich].voice_networks": "10.2.0.0/16",
	})
	require.NoError(t, err)
	assert.Equal(t, `# a box
site: name # its name
wan:
  - interface: ppp0
    address: [198.51.100.2/24, "2001:db8::2/64"] # by the provider
voice:
  - {interface: lan0, vlan: 30, address: 10.9.10.1/24}
sites:
  - name: munich
    endpoint: null
    voice_networks: 10.2.0.0/16
  - {name: paris, data_networks: [10.3.0.0/16]}
classes:
  - name: background
    dscp: []
control:
  group: ""
tunnels:
  - name: data
    listen_port: 5000
    mtu: 1280
`, string(got))
}

func TestSetValuesDeletesElements(t *testing.T) {
	got, err := config.SetValues([]byte("sites:\n  - name: a\n  - name: b\n"), map[string]string{"sites[a]": ""})
	require.NoError(t, err)
	assert.Equal(t, "sites:\n  - name: b\n", string(got))
}

func TestSetValuesRefuses(t *testing.T) {
	for path, want := range map[string]string{
		"":                   "set : not a path (allowed: like wan[wan0].uplink)",
		"Site":               "set Site: not a path (allowed: like wan[wan0].uplink)",
		"wan[wan1].uplink":   "set wan[wan1].uplink: there is no wan[wan1]",
		"data[lan0].address": "set data[lan0].address: there is no data[lan0]",
		"site.name":          "set site.name: site is a single value",
		"wan[wan0]":          "set wan[wan0]: an element can be deleted or, by [+], appended",
		"data[+]":            "set data[+]: there is no list data",
	} {
		_, err := config.SetValues([]byte(small), map[string]string{path: "x"})
		assert.EqualError(t, err, want)
	}
	_, err := config.SetValues([]byte("- a\n"), nil)
	assert.EqualError(t, err, "set values: the text is not one mapping")
	_, err = config.SetValues([]byte("a: [\n"), nil)
	assert.ErrorContains(t, err, "set values: yaml: ")
}
