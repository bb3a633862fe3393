package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/ndp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/lab"
)

// provider6 is the provider of secondWAN's line, with its server for prefixes:
//
//	pc-a --- edge-a lte0 --- lte-a provider 2001:db8:ff::1 (kea)
type provider6 struct {
	t    *testing.T
	host *lab.Host
	dir  string
	stop func()
}

// delegate has the server of the line delegate prefixes of a pool, with lifetimes of seconds.
func (p *provider6) delegate(pool string, length int) {
	p.t.Helper()
	if p.stop != nil {
		p.stop()
	}
	leases := filepath.Join(p.dir, "leases6.csv")
	_ = os.Remove(leases)
	config := fmt.Sprintf(`{"Dhcp6": {
		"interfaces-config": {"interfaces": ["lte-a"]}, "server-id": {"type": "LL", "persist": false},
		"lease-database": {"type": "memfile", "name": %q, "lfc-interval": 0},
		"renew-timer": 2, "rebind-timer": 4, "preferred-lifetime": 20, "valid-lifetime": 30,
		"subnet6": [{"id": 1, "subnet": "2001:db8:ff::/64", "interface": "lte-a",
			"pools": [{"pool": "2001:db8:ff::100-2001:db8:ff::1ff"}],
			"pd-pools": [{"prefix": %q, "prefix-len": %d, "delegated-len": 56}]}]}}`, leases, pool, length)
	file := filepath.Join(p.dir, "kea.json")
	require.NoError(p.t, os.WriteFile(file, []byte(config), 0o600))
	cmd := p.host.Command("kea-dhcp6", "-c", file)
	cmd.Env = append(os.Environ(), "KEA_PIDFILE_DIR="+p.dir, "KEA_LOCKFILE_DIR=none", "KEA_LOGGER_DESTINATION=/dev/null")
	require.NoError(p.t, p.host.Start(cmd))
	p.stop = func() {
		p.stop = nil
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// newProvider6 makes the line a WAN of edge-a whose provider delegates prefixes, with a subnet for the data network.
func newProvider6(t *testing.T, l *lab.Lab) *provider6 {
	t.Helper()
	if _, err := exec.LookPath("kea-dhcp6"); err != nil {
		t.Skip("kea-dhcp6 is not installed")
	}
	a, p := l.Edge("a"), &provider6{t: t, host: l.Host(lab.Provider), dir: t.TempDir()}
	secondWAN(t, l)
	require.NoError(t, p.host.IP(t.Context(), nil, "address add 2001:db8:ff::1/64 dev lte-a nodad"))
	advertiseAs(t, p.host, "lte-a", &ndp.RouterAdvertisement{RouterLifetime: time.Hour})
	t.Cleanup(func() {
		if p.stop != nil {
			p.stop()
		}
	})
	out, err := a.Run(t.Context(), "ip", "-6", "-o", "address", "show", "dev", "lte0", "scope", "link")
	require.NoError(t, err)
	gateway := strings.Split(strings.Fields(out)[3], "/")[0]
	for _, pool := range []string{firstPool, secondPool} {
		require.NoError(t, p.host.IP(t.Context(), nil, "route add "+pool+"/48 via "+gateway+" dev lte-a"))
	}
	_, err = l.Host(lab.PCA).Run(t.Context(), "sh", "-c",
		"cd /proc/sys/net/ipv6/conf/eth0 && echo 1 > accept_ra && echo 1 > autoconf && echo 0 > accept_dad")
	require.NoError(t, err)
	p.delegate(firstPool, 48)
	changeConfig(t, a, "- interface: lte0\n    address: dhcp\n",
		"- interface: lte0\n    address: dhcp\n    dhcp6: {prefix: 56}\n")
	changeConfig(t, a, "- interface: data0\n", "- interface: data0\n    prefix_from: lte0\n    subnet: 2\n")
	return p
}

const (
	firstPool  = "2001:db8:5600::"
	secondPool = "2001:db8:7700::"
)

// globalOf waits until a host's device has an address of a network that is in a state: "" is preferred.
func globalOf(t *testing.T, h *lab.Host, device, network, state string) (address string) {
	t.Helper()
	in := netip.MustParsePrefix(network)
	var out string
	require.True(t, polled(30*time.Second, func() bool {
		out, _ = h.Run(t.Context(), "ip", "-6", "-o", "address", "show", "dev", device, "scope", "global")
		for line := range strings.Lines(out) {
			p, err := netip.ParsePrefix(strings.Fields(line)[3])
			deprecated := strings.Contains(line, "deprecated")
			if err == nil && in.Contains(p.Addr()) && deprecated == (state == "deprecated") {
				address = p.Addr().String()
				return true
			}
		}
		return false
	}), "no address of %s (%s) on %s: %s", network, state, device, out)
	return address
}

func pinged(t *testing.T, from *lab.Host, source, to string) error {
	t.Helper()
	_, err := from.Run(t.Context(), "ping", "-6", "-c", "1", "-W", "1", "-I", source, to)
	return err
}

// reachesInternet waits for an answer of the provider.
func reachesInternet(t *testing.T, from *lab.Host, source string) {
	t.Helper()
	require.True(t, polled(15*time.Second, func() bool { return pinged(t, from, source, "2001:db8:ff::1") == nil }),
		"%s does not reach the internet", source)
}

// A provider delegates a prefix; hosts have addresses of it and reach the internet by that provider's line, which is
// not the preferred one. Nothing else follows: nobody reaches them from there, no site does, and what no LAN has of the
// prefix leads nowhere. Then the provider renumbers while calls run: hosts have the new addresses, the old ones are
// deprecated, and no call notices.
func TestLongAProviderDelegatesAndRenumbers(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty})
	a, pc := l.Edge("a"), l.Host(lab.PCA)
	calls := talking(t, l, 4, 25*time.Second)
	p := newProvider6(t, l)

	first := globalOf(t, pc, "eth0", "2001:db8:5600:2::/64", "")
	globalOf(t, a.Host, "data0", "2001:db8:5600:2::1/128", "")
	globalOf(t, a.Host, "lte0", "2001:db8:ff::/64", "")
	reachesInternet(t, pc, first)

	// What no LAN has leads nowhere, from a host and from outside.
	out, err := a.Run(t.Context(), "ip", "-6", "route", "get", "2001:db8:5600:7::1")
	assert.True(t, err != nil || strings.Contains(out, "unreachable"), "%s", out)
	assert.Error(t, pinged(t, pc, first, "2001:db8:5600:7::1"))
	assert.Error(t, pinged(t, p.host, "2001:db8:ff::1", first), "from the internet")
	// Sites know the configured networks only.
	stop := onLine(t, l, "lte-a")
	assert.Error(t, pinged(t, pc, first, "2001:db8:2:20::10"))
	ownOnly(t, stop())

	// The next daemon goes on with the prefix at once.
	require.NoError(t, a.Restart(within(t, 30*time.Second)))
	require.NoError(t, pinged(t, pc, first, "2001:db8:ff::1"))

	p.delegate(secondPool, 48)
	second := globalOf(t, pc, "eth0", "2001:db8:7700:2::/64", "")
	assert.Equal(t, first, globalOf(t, pc, "eth0", "2001:db8:5600:2::/64", "deprecated"))
	reachesInternet(t, pc, second)
	calls.unharmed()

	said, err := a.Ringway(t.Context(), "status")
	require.NoError(t, err)
	assert.Contains(t, said, "prefix 2001:db8:7700::/56")
	assert.Contains(t, said, "data0 2001:db8:1:20::/64 and 2001:db8:7700:2::/64")

	// What the config wants no more is given back, and hosts are told.
	changeConfig(t, a, "    prefix_from: lte0\n    subnet: 2\n", "")
	changeConfig(t, a, "    dhcp6: {prefix: 56}\n", "")
	globalOf(t, pc, "eth0", "2001:db8:7700:2::/64", "deprecated")
	assert.True(t, polled(15*time.Second, func() bool {
		csv, err := os.ReadFile(filepath.Join(p.dir, "leases6.csv"))
		lines := strings.Split(strings.TrimSpace(string(csv)), "\n")
		return err == nil && strings.Split(lines[len(lines)-1], ",")[2] == "0"
	}), "released")
}

// A provider's server that delegates our own network is refused and said; nothing of it is used.
func TestAProviderDelegatesOurNetwork(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty})
	a := l.Edge("a")
	p := newProvider6(t, l)
	p.delegate("2001:db8:1::", 56)
	problemWith(t, a, "leases lte0", "refused the prefix 2001:db8:1::/56", "overlaps 2001:db8:1:10::/64 of voice0")
	out, err := a.Run(t.Context(), "ip", "-6", "route", "show", "table", "all")
	require.NoError(t, err)
	assert.NotContains(t, out, "2001:db8:1::/56")
}
