package config_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/sip/abuse"
)

func abuseLimits(t *testing.T, values map[string]string) abuse.Limits {
	t.Helper()
	data, err := config.SetValues(minimal(t), values)
	require.NoError(t, err)
	cfg, err := config.Parse("/etc/ringway/box.yaml", data, config.WithoutKeyFiles())
	require.NoError(t, err)
	require.NoError(t, cfg.SIP.AbuseLimits.Validate(), "the process takes what the config allows")
	return cfg.SIP.AbuseLimits
}

// A limit that is set changes nothing else, but for what would contradict it.
func TestAbuseLimits(t *testing.T) {
	want := abuse.Defaults()
	assert.Equal(t, want, abuseLimits(t, nil), "nothing is set: as it was before there were keys")

	want.Scan = abuse.Rule{Warn: 3, Block: 3, Within: time.Minute, Ban: 30 * time.Minute, MaxBan: 30 * time.Minute}
	want.Guess.Within, want.Guess.MaxBan = time.Hour, 12*time.Hour
	want.Malformed.Block = 0
	want.Flood.Dropped.Ban, want.Flood.Dropped.MaxBan = time.Second, time.Hour
	want.Flood.Throttled = abuse.Rate{PerSecond: 2, Burst: 20}
	want.Phones.Block = abuse.Toll{AtOnce: 2, Premium: true}
	want.PBX.Warn.Abroad = 0
	want.Numbers = abuse.Numbers{International: []string{"011"}, Line: "9", Internal: 4}
	want.Premium = []string{"1900", "49900"}
	want.Hours = abuse.Hours{To: 24 * time.Hour, Days: [7]bool{time.Monday: true, time.Sunday: true}}
	assert.Equal(t, want, abuseLimits(t, map[string]string{
		"sip.abuse_limits.scan":      "{block: 3, ban: 30m}",
		"sip.abuse_limits.guess":     "{within: 1h, max_ban: 12h}",
		"sip.abuse_limits.malformed": "{block: 0}",
		"sip.abuse_limits.flood":     "{ban: 1s, max_ban: 1h}",
		"sip.abuse_limits.throttled": "{per_second: 2, burst: 20}",
		"sip.toll.phones":            "{block: {at_once: 2, premium: true}}",
		"sip.toll.pbx":               "{warn: {abroad: 0s}}",
		"sip.toll.international":     `["011"]`,
		"sip.toll.line":              "9",
		"sip.toll.extensions":        "4",
		"sip.toll.premium":           `["1900", "49900"]`,
		"sip.toll.hours":             "00:00-24:00",
		"sip.toll.days":              "[mon, sun]",
	}))
	never := abuseLimits(t, map[string]string{"sip.toll.days": "[]", "sip.toll.international": "[]"})
	assert.Equal(t, [7]bool{}, never.Hours.Days)
	assert.Empty(t, never.Numbers.International)
}

// The largest and smallest limits of the config are within those of package abuse.
func TestAbuseLimitsAtTheirBounds(t *testing.T) {
	for _, rule := range []string{
		"{warn: 0, block: 0, within: 1s, ban: 1s, max_ban: 1s}",
		"{warn: 1000, block: 1000, within: 24h, ban: 24h, max_ban: 24h}",
	} {
		abuseLimits(t, map[string]string{
			"sip.abuse_limits.scan": rule, "sip.abuse_limits.guess": rule, "sip.abuse_limits.malformed": rule,
			"sip.abuse_limits.flood": rule,
		})
	}
	for _, x := range [][2]string{
		{"{per_second: 1, burst: 1}", "100ms"}, {"{per_second: 100000, burst: 100000}", "32s"},
	} {
		abuseLimits(t, map[string]string{"sip.abuse_limits.throttled": x[0], "sip.abuse_limits.grace": x[1]})
	}
	for _, toll := range []string{
		"{per_minute: 0, at_once: 0, abroad: 0s}", "{per_minute: 1000, at_once: 1000, abroad: 744h}",
	} {
		abuseLimits(t, map[string]string{
			"sip.toll.phones": "{warn: " + toll + ", block: " + toll + "}", "sip.toll.extensions": "15",
			"sip.toll.premium": `["123456789012345"]`, "sip.toll.line": "123", "sip.toll.international": `["123456"]`,
		})
	}
}
