package wanted

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"ringway/qos"
	"ringway/tunnel"
)

// Media is counted where signalling is read and the engine sees packets, as much as the line can carry.
func TestWhatTheEngineMeasures(t *testing.T) {
	measured := func(class tunnel.Class, change map[string]string) tunnel.Measured {
		f := Facts{Queues: qos.AssumedFeatures()}
		return device(t, From(shipped(t, "branch-berlin.yaml", change), f), class).Measured
	}
	assert.Zero(t, measured(tunnel.Voice, nil), "sip.mode: off")
	observe := map[string]string{"sip.mode": "observe", "wan[wan0].uplink": "40mbit"}
	assert.Equal(t, tunnel.Measured{Media: 1 << 46, Series: 1666}, measured(tunnel.Voice, observe))
	assert.Zero(t, measured(tunnel.Data, observe))
	for uplink, series := range map[string]int{"2mbit": 512, "1gbit": 8192} {
		observe["wan[wan0].uplink"], observe["wan[wan0].downlink"] = uplink, uplink
		assert.Equal(t, series, measured(tunnel.Voice, observe).Series, uplink)
	}
	observe["tunnels[voice].engine"] = "wireguard-go"
	assert.Zero(t, measured(tunnel.Voice, observe))
}
