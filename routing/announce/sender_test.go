package announce_test

import (
	"context"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"ringway/boottime"
	"ringway/routing/announce"
	"ringway/test/netnstest"
	"ringway/test/polltest"
)

// box lan0 --- eth0 host, whose kernel takes what is advertised
func TestAHostFollows(t *testing.T) {
	box, host := netnstest.New(t), netnstest.New(t)
	for _, ns := range []*netnstest.NS{box, host} {
		ns.Run("sh", "-c", "cd /proc/sys/net/ipv6/conf && echo 0 > default/accept_dad && echo 0 > all/accept_dad")
	}
	netnstest.Veth(t, box, "lan0", host, "eth0")
	host.Run("sh", "-c", "cd /proc/sys/net/ipv6/conf/eth0 && echo 1 > accept_ra && echo 1 > autoconf")
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())

	file := filepath.Join(t.TempDir(), "announced.json")
	start := func(c announce.Content) (s *announce.Sender, stop func()) {
		s = &announce.Sender{Interface: "lan0", File: file, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
		s.Set(c)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- box.Do(func() error { return s.Run(ctx) }) }()
		return s, func() { cancel(); require.NoError(t, <-done) }
	}
	content := func(p string) announce.Content {
		now := boottime.Now()
		return announce.Content{Prefixes: []announce.Prefix{
			{Prefix: netip.MustParsePrefix(p), Preferred: now + time.Hour, Valid: now + time.Hour},
		}}
	}
	// is waits until the host has an address of a network, with or without the word.
	is := func(network, state string, has bool) {
		t.Helper()
		polltest.Require(t, func() bool {
			for line := range strings.Lines(host.Run("ip", "-6", "-o", "address", "show", "dev", "eth0")) {
				if strings.Contains(line, network) {
					return strings.Contains(line, state) == has
				}
			}
			return false
		}, 15*time.Second, 20*time.Millisecond, "%s %s %v", network, state, has)
	}
	router := func() bool { return strings.Contains(host.Run("ip", "-6", "route", "show", "default"), "via fe80") }

	_, stop := start(content("2001:db8:5600:1::/64"))
	is("2001:db8:5600:1:", "deprecated", false)
	polltest.Require(t, router, 5*time.Second, 20*time.Millisecond)
	// A host that asks makes nobody write to flash.
	before, err := os.Stat(file)
	require.NoError(t, err)
	host.Run("sh", "-c", "ip link set eth0 down && ip link set eth0 up")
	is("2001:db8:5600:1:", "deprecated", false)
	after, err := os.Stat(file)
	require.NoError(t, err)
	assert.Equal(t, before.ModTime(), after.ModTime())
	stop()
	assert.True(t, router(), "the end of the daemon is not that of the router")

	// Another one, although nobody but the file knows of the first.
	s, stop := start(content("2001:db8:7700:1::/64"))
	is("2001:db8:7700:1:", "deprecated", false)
	is("2001:db8:5600:1:", "deprecated", true)

	// A change is told at once, though not more than every three seconds.
	s.Set(announce.Content{})
	is("2001:db8:7700:1:", "deprecated", true)
	polltest.Require(t, func() bool { return !router() }, 5*time.Second, 20*time.Millisecond)
	stop()

	s, stop = start(content("2001:db8:7700:1::/64"))
	is("2001:db8:7700:1:", "deprecated", false)
	stop()
	require.NoError(t, box.Do(s.Farewell))
	is("2001:db8:7700:1:", "deprecated", true)
}
