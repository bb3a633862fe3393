package plan

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/configs"
)

// The plan says what enforce would cut off before it does.
func TestThePlanSaysWhatEnforceCloses(t *testing.T) {
	remarks := func(change map[string]string) string {
		data, err := configs.Variant("branch-berlin.yaml", change)
		require.NoError(t, err)
		cfg, err := config.Parse("box.yaml", data, config.WithoutKeyFiles())
		require.NoError(t, err)
		return strings.Join(SignallingRemarks(cfg), "\n")
	}
	assert.Empty(t, remarks(nil))
	assert.Empty(t, remarks(map[string]string{"sip.mode": "observe"}))
	text := remarks(map[string]string{"sip.mode": "enforce", "sip.unread": "deny"})
	assert.Contains(t, text, "closes UDP from a port of 1024 and up")
	assert.Contains(t, text, "towards voice networks: udp/5060")
	assert.Contains(t, text, "calls that cannot be read (SIP over TLS) have no media")
	text = remarks(map[string]string{
		"sip.mode": "enforce", "sip.unread": "deny",
		"sip.tls": "[{name: pbx, server_names: [pbx.example.com], cert: c, key: k, ca: a}]",
	})
	assert.Contains(t, text, "calls that cannot be read (SIP over TLS but with pbx.example.com) have no media")
	text = remarks(map[string]string{"sip.mode": "enforce", "sip.unread": "allow"})
	assert.Contains(t, text, "passes, with its answers")
	assert.NotContains(t, text, "sip.toll")

	toll := map[string]string{
		"sip.mode": "enforce", "sip.unread": "deny",
		"sip.toll.phones": "{block: {per_minute: 20, abroad: 90m, premium: true}}",
		"sip.toll.pbx":    "{block: {at_once: 4, out_of_hours: true}}",
	}
	text = remarks(toll)
	assert.Contains(t, text, "# sip.toll: new calls outside of a phone's user are refused: "+
		"more than 20 new ones in a minute, after 90 minutes abroad in a day, to premium numbers")
	assert.Contains(t, text, "# sip.toll: new calls outside of a user of a PBX are refused: "+
		"more than 4 at once to one country, abroad out of hours")
	toll["sip.abuse"] = "warn"
	assert.NotContains(t, remarks(toll), "sip.toll")
}
