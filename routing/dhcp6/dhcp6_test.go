package dhcp6_test

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"ringway/routing/dhcp6"
	"ringway/test/netnstest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// box wan0 --- up0 provider (kea, or the test's own server)
type link struct {
	t             *testing.T
	box, provider *netnstest.NS
	dir           string
	leases        chan dhcp6.Lease
	notes         chan string
	refuse        func(netip.Prefix) error
	second        time.Duration
	want          dhcp6.Want
	client        *dhcp6.Client
	renewed       atomic.Int32 // what a server of ours counts
	stop          func()
}

func newLink(t *testing.T) *link {
	s := &link{t: t, box: netnstest.New(t), provider: netnstest.New(t), dir: t.TempDir(),
		want: dhcp6.Want{PrefixBits: 56, Address: true}}
	for _, ns := range []*netnstest.NS{s.box, s.provider} {
		ns.Run("sh", "-c", "echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad; "+
			"echo 0 > /proc/sys/net/ipv6/conf/all/accept_dad")
	}
	netnstest.Veth(t, s.provider, "up0", s.box, "wan0")
	s.provider.Run("ip", "addr", "add", "2001:db8:ff::1/64", "dev", "up0", "nodad")
	return s
}

// kea serves prefixes of a pool and addresses.
func (s *link) kea(pool, lifetimes string) (stop func()) {
	s.t.Helper()
	if _, err := exec.LookPath("kea-dhcp6"); err != nil {
		s.t.Skip("kea-dhcp6 is not installed")
	}
	config := fmt.Sprintf(`{"Dhcp6": {
		"interfaces-config": {"interfaces": ["up0"]}, "server-id": {"type": "LL", "persist": false},
		"lease-database": {"type": "memfile", "name": %q, "lfc-interval": 0},
		%s,
		"option-data": [{"name": "dns-servers", "data": "2001:db8:ff::53"}],
		"subnet6": [{"id": 1, "subnet": "2001:db8:ff::/64", "interface": "up0",
			"pools": [{"pool": "2001:db8:ff::100-2001:db8:ff::1ff"}],
			"pd-pools": [{"prefix": %q, "prefix-len": 48, "delegated-len": 56}]}],
		"loggers": [{"name": "kea-dhcp6", "output_options": [{"output": "stderr"}], "severity": "INFO"}]}}`,
		filepath.Join(s.dir, "leases6.csv"), lifetimes, pool)
	file := filepath.Join(s.dir, "kea.json")
	require.NoError(s.t, os.WriteFile(file, []byte(config), 0o600))
	cmd := s.provider.Command("kea-dhcp6", "-c", file)
	cmd.Env = append(os.Environ(), "KEA_PIDFILE_DIR="+s.dir, "KEA_LOCKFILE_DIR=none", "KEA_LOGGER_DESTINATION=stderr")
	cmd.Stderr = s.t.Output()
	require.NoError(s.t, cmd.Start())
	stop = func() {
		if cmd.ProcessState == nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	s.t.Cleanup(stop)
	return stop
}

const (
	longLife  = `"renew-timer": 1000, "rebind-timer": 2000, "preferred-lifetime": 3000, "valid-lifetime": 4000`
	shortLife = `"renew-timer": 1, "rebind-timer": 2, "preferred-lifetime": 4, "valid-lifetime": 6`
)

func (s *link) run() {
	s.leases, s.notes = make(chan dhcp6.Lease, 1000), make(chan string, 1000)
	duid, err := dhcp6.LoadDUID(filepath.Join(s.dir, "duid"))
	require.NoError(s.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	log := slog.New(slog.NewTextHandler(s.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	c := &dhcp6.Client{
		Interface: "wan0", DUID: duid, File: filepath.Join(s.dir, "lease6.json"), Want: s.want, Log: log,
		Second: cmp.Or(s.second, 50*time.Millisecond), Refuse: s.refuse,
		Note:   func(text string) { s.notes <- text },
		Report: func(l dhcp6.Lease) { s.leases <- l },
	}
	s.client = c
	go func() { done <- s.box.Do(func() error { return c.Run(ctx) }) }()
	s.stop = func() {
		cancel()
		if done != nil {
			require.NoError(s.t, <-done)
			done = nil
		}
	}
	s.t.Cleanup(s.stop)
}

// lease waits for a report that fits.
func (s *link) lease(what string, fits func(dhcp6.Lease) bool) dhcp6.Lease {
	s.t.Helper()
	end := time.After(15 * time.Second)
	for {
		select {
		case l := <-s.leases:
			if fits(l) {
				return l
			}
		case <-end:
			require.Fail(s.t, "no report", what)
		}
	}
}

// note waits for a note with these words.
func (s *link) note(words string) {
	s.t.Helper()
	end := time.After(15 * time.Second)
	for {
		select {
		case text := <-s.notes:
			if strings.Contains(text, words) {
				return
			}
		case <-end:
			require.Fail(s.t, "no note", words)
		}
	}
}

func held(l dhcp6.Lease) bool { return len(l.Prefixes) > 0 }

func within(p netip.Prefix, pool string) bool {
	return netip.MustParsePrefix(pool).Overlaps(p) && p.Bits() == 56
}

// A provider's server delegates a prefix and assigns an address; the next start goes on with both at once, and asks
// for the same ones again after a boot. A release gives the prefix back.
func TestALeaseOfKea(t *testing.T) {
	s := newLink(t)
	s.kea("2001:db8:5600::", longLife)
	s.run()
	first := s.lease("prefix and address", func(l dhcp6.Lease) bool { return held(l) && len(l.Addresses) > 0 })
	assert.True(t, within(first.Prefixes[0].Prefix, "2001:db8:5600::/48"), "%v", first)
	assert.True(t, netip.MustParsePrefix("2001:db8:ff::/64").Contains(first.Addresses[0].Address))
	assert.Equal(t, []netip.Addr{netip.MustParseAddr("2001:db8:ff::53")}, first.DNS)
	assert.Greater(t, first.Prefixes[0].Valid, first.Prefixes[0].Preferred)
	assert.Greater(t, first.Rebind, first.Renew)
	s.stop()

	assert.Equal(t, first, dhcp6.Last(filepath.Join(s.dir, "lease6.json"), "wan0"))
	s.run()
	assert.Equal(t, first, s.lease("the same at once", held))
	s.stop()

	file := filepath.Join(s.dir, "lease6.json")
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	other := strings.Replace(string(b), `"boot":"`, `"boot":"x`, 1)
	require.NotEqual(t, string(b), other)
	require.NoError(t, os.WriteFile(file, []byte(other), 0o600))
	assert.True(t, dhcp6.Last(file, "wan0").Empty(), "of another boot: it is not known how long it is valid")
	s.run()
	assert.Equal(t, first.Prefixes[0].Prefix, s.lease("confirmed", held).Prefixes[0].Prefix)
	s.stop()

	require.NoError(t, s.box.Do(func() error { s.client.Release(t.Context()); return nil }))
	assert.NoFileExists(t, filepath.Join(s.dir, "lease6.json"))
	csv, err := os.ReadFile(filepath.Join(s.dir, "leases6.csv"))
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(string(csv)), "\n")
	fields := strings.Split(lines[len(lines)-1], ",")
	assert.Equal(t, "0", fields[2], "valid lifetime in kea's last record: %s", lines[len(lines)-1])
}

// The provider renumbers: its server, restarted with another pool, takes the old prefix away and gives another one.
func TestAnotherPrefix(t *testing.T) {
	t.Parallel()
	s := newLink(t)
	stop := s.kea("2001:db8:5600::", shortLife)
	s.run()
	s.lease("prefix", held)

	stop()
	require.NoError(t, os.Remove(filepath.Join(s.dir, "leases6.csv")))
	s.kea("2001:db8:7700::", shortLife)
	second := s.lease("new prefix", func(l dhcp6.Lease) bool {
		return held(l) && within(l.Prefixes[0].Prefix, "2001:db8:7700::/48")
	})
	assert.Len(t, second.Prefixes, 1, "kea says that the old one has a lifetime of 0")
}
