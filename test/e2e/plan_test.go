package e2e

import (
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/configs"
	"ringway/test/lab"
	"ringway/test/polltest"
	"ringway/tunnel"
)

// planner is an edge whose plans are compared with what its reloads do.
type planner struct {
	*testing.T
	*lab.Edge
}

// commands are the lines of an output that are commands of a tool, in any order: comments are for people.
func commands(out string) []string {
	lines := slices.DeleteFunc(strings.Split(out, "\n"), func(l string) bool {
		return l == "" || strings.HasPrefix(l, "#") || l == "nothing to change"
	})
	slices.Sort(lines)
	return lines
}

func (p *planner) plan() string {
	p.Helper()
	for range 10 {
		out, err := p.Ringway(within(p.T, 20*time.Second), "plan", "/etc/ringway/ringway.yaml")
		require.NoError(p, err)
		// On a busy machine it is asked again. What a plan without the daemon says is another test's.
		if !strings.HasPrefix(out, "# the daemon did not answer within 2s") {
			return out
		}
	}
	require.Fail(p, "the daemon never answered")
	return ""
}

func (p *planner) reload() string {
	p.Helper()
	out, err := p.Ringway(within(p.T, 20*time.Second), "reload")
	require.NoError(p, err)
	return out
}

// agree demands that the plan of a config says what its reload does, and that nothing is left to change then.
func (p *planner) agree(text string) (planned []string) {
	p.Helper()
	require.NoError(p, p.WriteConfig([]byte(text)))
	out := p.plan()
	planned = commands(out)
	require.Equal(p, planned, commands(p.reload()), "the plan was:\n%s", out)
	p.settled()
	return planned
}

// settled demands that plan and reload find nothing to change.
func (p *planner) settled() {
	p.Helper()
	out := p.plan()
	assert.Empty(p, commands(out))
	assert.Equal(p, 4, strings.Count(out, "# nothing to change\n"), "%s", out)
	assert.Equal(p, "nothing to change\n", p.reload())
}

// Every shipped config, one after the other in the same running daemon: what the plan says is what the reload does.
func TestAPlanIsWhatAReloadDoes(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty})
	p := &planner{t, l.Edge("a")}
	running, err := p.Config()
	require.NoError(t, err)
	for _, name := range []string{"munich.psk", "hamburg.psk", "hub.psk"} {
		key, err := tunnel.NewPrivateKey()
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(p.Path("/etc/ringway/"+name), []byte(key.Base64()), 0o600))
	}
	p.settled()
	names, err := fs.Glob(configs.FS, "*.yaml")
	require.NoError(t, err)
	require.NotEmpty(t, names)
	for _, name := range names {
		text, err := configs.FS.ReadFile(name)
		require.NoError(t, err)
		if strings.Contains(string(text), "vlan:") {
			continue // this kernel may have no VLANs
		}
		t.Run(name, func(t *testing.T) {
			p := &planner{t, p.Edge}
			require.NotEmpty(t, p.agree(string(text)))
		})
	}
	p.agree(string(running))
}

// with gives the config another value at each path.
func (p *planner) with(change map[string]string) string {
	p.Helper()
	text, err := p.Config()
	require.NoError(p, err)
	out, err := config.SetValues(text, change)
	require.NoError(p, err)
	return string(out)
}

// eventually waits for a command's output.
func (p *planner) eventually(want string, command ...string) {
	p.Helper()
	var out string
	polltest.Require(p, func() bool {
		out, _ = p.Edge.Run(p.Context(), command[0], command[1:]...)
		return strings.Contains(out, want)
	}, 20*time.Second, 50*time.Millisecond, "%s", command)
}

func (p *planner) restarted(change func()) {
	p.Helper()
	_, err := p.Ringway(within(p.T, 20*time.Second), "stop")
	require.NoError(p, err)
	change()
	require.NoError(p, p.Start(p.Context()))
	require.NoError(p, p.WaitReady(within(p.T, 20*time.Second)))
}

// What a daemon learns at run time is in its plans: they find nothing to change where a reload finds nothing,
// and say what a reload does after an edit.
func TestAPlanKnowsWhatTheDaemonLearned(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty})
	a, b := l.Edge("a"), l.Edge("b")
	first, err := a.Config()
	require.NoError(t, err)
	must := func(h *lab.Host, command ...string) {
		t.Helper()
		_, err := h.Run(t.Context(), command[0], command[1:]...)
		require.NoError(t, err)
	}
	slower := map[string]string{"wan[wan0].uplink": "10mbit"}
	for _, c := range []struct {
		name string
		run  func(p *planner)
	}{
		{"another device, engine and port", func(p *planner) {
			lines := p.agree(p.with(map[string]string{"tunnels[data].interface": "rw-other",
				"tunnels[voice].engine":     "wireguard-go",
				"tunnels[data].listen_port": "51900"}))
			assert.Contains(p, strings.Join(lines, "\n"), "dev rw-other", "routes through a device that is yet to be made")
			p.agree(p.with(map[string]string{"tunnels[voice].listen_port": "51900", "tunnels[data].listen_port": "51820"}))
		}},
		{"a key file that is not loaded", func(p *planner) {
			key, err := tunnel.NewPrivateKey()
			require.NoError(p, err)
			require.NoError(p, os.WriteFile(p.Path("/etc/ringway/new.psk"), []byte(key.Base64()), 0o600))
			text := p.with(map[string]string{"sites[munich].preshared_key_file": "new.psk"})
			require.NoError(p, p.WriteConfig([]byte(text)))
			assert.Contains(p, p.plan(), "# tunnels (key files that the running config does not use: 1;")
			p.agree(text)
		}},
		{"a site that roamed", func(p *planner) {
			far, err := b.Config()
			require.NoError(p, err)
			text, err := config.SetValues(far, map[string]string{"tunnels[data].listen_port": "52000"})
			require.NoError(p, err)
			require.NoError(p, b.WriteConfig(text))
			_, err = b.Ringway(within(p.T, 20*time.Second), "reload")
			require.NoError(p, err)
			p.eventually("203.0.113.2:52000", ringway, "status", "--json")
			p.eventually("203.0.113.2 . 52000", "nft", "list", "table", "inet", "ringway")
			p.settled()
			p.agree(p.with(slower))
		}},
		{"the WAN's MTU", func(p *planner) {
			must(p.Host, "ip", "link", "set", "wan0", "mtu", "1400")
			p.eventually("nothing to change", ringway, "reload")
			p.settled()
			p.agree(p.with(slower))
		}},
		{"a foreign qdisc, left alone and taken over", func(p *planner) {
			p.restarted(func() {
				must(p.Host, "tc", "qdisc", "add", "dev", "wan0", "root", "handle", "7:", "pfifo", "limit", "77")
			})
			p.settled()
			p.agree(p.with(map[string]string{"tunnels[data].mtu": "1300"}))
			lines := p.agree(p.with(map[string]string{"wan[wan0].take_over": "true"}))
			assert.Contains(p, strings.Join(lines, "\n"), "tc class add dev wan0")
			p.restarted(func() {})
			p.settled()
		}},
		{"a lease, and a name that its server resolves", func(p *planner) {
			server := l.Host(lab.Provider)
			_, err := server.Spawn("dnsmasq", server.Command("dnsmasq", "--no-daemon", "--conf-file=/dev/null", "--user=root",
				"--address=/munich.example.net/203.0.113.3", "--no-resolv", "--no-hosts", "--pid-file=",
				"--interface=wan-a", "--dhcp-authoritative", "--no-ping", "--dhcp-leasefile=/run/dnsmasq.leases",
				"--dhcp-range=198.51.100.50,198.51.100.59,255.255.255.0,2m", "--dhcp-option=option:router,198.51.100.1"))
			require.NoError(p, err)
			polltest.Require(p, func() bool {
				sockets, _ := server.Run(p.Context(), "cat", "/proc/net/udp")
				return strings.Contains(sockets, ":0043 ")
			}, 10*time.Second, 20*time.Millisecond, "dnsmasq does not serve DHCP")
			text := regexp.MustCompile(`(?m)^ +gateway: .*\n`).ReplaceAllString(string(first), "")
			text = strings.Replace(text, "address: 198.51.100.2/24", "address: dhcp", 1)
			p.agree(text)
			p.eventually("198.51.100.5", "ip", "-o", "-4", "addr", "show", "dev", "wan0")
			p.eventually("default via 198.51.100.1", "ip", "route")
			p.settled()
			p.agree(p.with(slower))
			must(b.Host, "ip", "address", "add", "203.0.113.3/24", "dev", "wan0")
			p.agree(p.with(map[string]string{"sites[munich].endpoint": "munich.example.net"}))
			p.eventually(`"endpoint": "203.0.113.3:51820"`, ringway, "status", "--json")
			// Munich goes on sending from where it was: the data tunnel may have to follow it first.
			polltest.Require(p, func() bool {
				return len(commands(p.plan())) == 0 && p.reload() == "nothing to change\n"
			}, 15*time.Second, 200*time.Millisecond)
			p.settled()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := &planner{t, a}
			p.agreeSilently(string(first))
			c.run(p)
		})
	}
}

// agreeSilently begins a case with a config, whatever the one before left.
func (p *planner) agreeSilently(text string) {
	p.Helper()
	require.NoError(p, p.WriteConfig([]byte(text)))
	p.reload()
	p.settled()
}
