package host

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]string{
		"10.1.10.10":       "10.1.10.10",
		"2001:db8::9":      "2001:db8::9",
		"[2001:db8::9]":    "2001:db8::9",
		"::ffff:10.1.10.1": "10.1.10.1",
		"[]":               "",
		"":                 "",
		"pbx.example.com":  "",
		"fe80::1%eth0":     "",
		"10.1.10.010":      "",
		"10.1.10":          "",
	} {
		a, ok := Parse([]byte(text))
		assert.Equal(t, want != "", ok, text)
		if ok {
			assert.Equal(t, netip.MustParseAddr(want), a, text)
		}
	}
	_, ok := Parse([]byte(strings.Repeat("1", 1000)))
	assert.False(t, ok)
}

func TestParseAllocatesNothing(t *testing.T) {
	four, six, name := []byte("10.1.10.10"), []byte("[2001:db8::9]"), []byte("f")
	assert.Zero(t, testing.AllocsPerRun(100, func() { Parse(four); Parse(six) }))
	assert.LessOrEqual(t, testing.AllocsPerRun(100, func() { Parse(name) }), 1.0, "the error")
}
