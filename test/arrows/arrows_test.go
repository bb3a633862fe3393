// Package arrows holds the imports to the design: who may know whom, and why. It has no code of its own.
package arrows

import (
	"encoding/json"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

type pkg struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
	GoFiles      []string
}

func packages(t *testing.T) map[string]pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports,TestImports,XTestImports,GoFiles", "ringway/...")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	require.NoError(t, err)
	all := map[string]pkg{}
	dec := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var p pkg
		if err := dec.Decode(&p); err == io.EOF {
			break
		}
		require.NoError(t, err)
		all[strings.TrimPrefix(p.ImportPath, "ringway/")] = p
	}
	require.Greater(t, len(all), 15, "go list found too little to hold anything")
	return all
}

// mayImport lists, for every room, which other rooms of Ringway it may import. A room that is not listed is an
// error: a new room says here where it stands.
var mayImport = map[string][]string{
	"cmd/ringway":        {"appliance", "appliance/config", "tunnel", "tunnel/plane", "tunnel/realtime", "tunnel/wireguardgo", "qos", "stamp", "test/bench", "test/bench/probe", "test/bench/rival", "test/bench/tester", "test/lab", "test/lab/report"},
	"appliance":          {"appliance/config", "firewall", "firewall/nft", "qos", "qos/tc", "routing", "routing/rtnl", "routing/dhcp", "stamp", "tunnel", "tunnel/kernel", "tunnel/plane", "tunnel/descriptor"},
	"appliance/config":   {"qos", "routing", "tunnel"},
	"configs":            {"appliance/config"}, // a shipped file with values set
	"firewall":           {"qos"},              // class names, DSCP and the mark's layout
	"firewall/nft":       {"firewall", "qos"},
	"qos":                {},
	"qos/tc":             {"qos"},
	"quality":            {},
	"routing":            {},
	"routing/dhcp":       {},
	"routing/rtnl":       {"routing"},
	"stamp":              {"quality"}, // delays in, percentiles and MOS out
	"tunnel":             {},
	"tunnel/kernel":      {"tunnel"},
	"tunnel/plane":       {"tunnel"}, // engines come in through an interface, descriptors through the openers of tunnel/descriptor
	"tunnel/descriptor":  {"tunnel"},
	"tunnel/uapi":        {"tunnel"},
	"tunnel/datagram":    {},
	"tunnel/flowqueue":   {},
	"tunnel/wireguardgo": {"tunnel", "tunnel/datagram", "tunnel/descriptor", "tunnel/flowqueue", "tunnel/uapi"},
	"tunnel/realtime":    {"tunnel", "tunnel/datagram", "tunnel/descriptor", "tunnel/uapi"},
	"test/bench":         {"qos", "qos/tc", "quality", "test/bench/probe", "test/bench/report", "test/bench/rival", "test/bench/tester", "test/lab", "test/lab/bulk", "test/lab/host", "test/lab/report", "tunnel"},
	"test/bench/probe":   {"quality", "test/lab/fifo"},
	"test/bench/report":  {"test/bench/probe", "test/lab/report"},
	"test/bench/rival":   {"qos", "test/lab/host", "tunnel", "tunnel/descriptor", "tunnel/plane"},
	"test/bench/tester":  {},
	"test/lab":           {"appliance", "appliance/config", "configs", "quality", "qos", "qos/tc", "tunnel", "test/lab/bulk", "test/lab/capture", "test/lab/host", "test/lab/inside", "test/lab/provider", "test/lab/report"},
	"test/lab/bulk":      {"qos", "test/lab/host"},
	"test/lab/host":      {},
	"test/lab/capture":   {"quality", "test/lab/inside"},
	"test/lab/inside":    {},
	"test/lab/fifo":      {},
	"test/lab/provider":  {"quality", "test/lab/fifo", "test/lab/inside"},
	"test/lab/report":    {"quality"},
	"test/netnstest":     {},
	"test/enginetest":    {"test/netnstest", "tunnel", "tunnel/datagram", "tunnel/descriptor"},
	"test/streamtest":    {},
}

func TestRoomsImportOnlyDownwards(t *testing.T) {
	for name, p := range packages(t) {
		if len(p.GoFiles) == 0 { // tests alone
			continue
		}
		allowed, known := mayImport[name]
		if !assert.True(t, known, "room %s is not in the table of arrows: say what it may import, in test/arrows and in docs/architecture.md", name) {
			continue
		}
		for _, i := range p.Imports {
			if room, ours := strings.CutPrefix(i, "ringway/"); ours {
				assert.Contains(t, allowed, room, "%s imports %s", name, room)
			}
		}
	}
}

// oneHome lists libraries that are wrapped once: what is not in a room's domain does not see them.
var oneHome = []struct {
	prefix string
	homes  []string
	why    string
}{
	{"github.com/spf13/viper", []string{"appliance/config"}, "it lowercases keys and has no positions: nobody may read a setting past validation"},
	{"go.yaml.in/yaml", []string{"appliance/config"}, "as viper"},
	{"github.com/spf13/cobra", []string{"cmd/ringway"}, "no domain knows of a command line"},
	{"github.com/vishvananda/netlink", []string{"qos/tc", "routing/rtnl", "routing/dhcp", "tunnel/kernel"}, "an adapter a domain, so that units are converted once"},
	{"github.com/google/nftables", []string{"firewall/nft"}, "an adapter a domain"},
	{"golang.zx2c4.com/wireguard/device", []string{"tunnel/wireguardgo", "tunnel/realtime"}, "engines are replaceable"},
	{"golang.zx2c4.com/wireguard/tun", []string{"tunnel/wireguardgo"}, "engines are replaceable"},
	{"golang.zx2c4.com/wireguard/wgctrl", []string{"tunnel/kernel"}, "engines are replaceable"},
	{"github.com/prometheus/client_golang", []string{"appliance"}, "one collector over one status: a domain counts, and does not know who reads"},
	{"gonum.org/v1/plot", []string{"test/lab/report"}, "the daemon draws nothing"},
}

func TestWrappedLibrariesHaveOneHome(t *testing.T) {
	for name, p := range packages(t) {
		for _, i := range p.Imports {
			for _, lib := range oneHome {
				if strings.HasPrefix(i, lib.prefix) {
					assert.Contains(t, lib.homes, name, "%s imports %s: %s", name, i, lib.why)
				}
			}
		}
	}
}

// pure rooms compute plans: what they print must depend on what they are given alone.
var pure = []string{"firewall", "qos", "routing", "tunnel", "quality"}

func TestPlansArePure(t *testing.T) {
	all := packages(t)
	for _, name := range pure {
		p, ok := all[name]
		require.True(t, ok, "no room %s", name)
		for _, i := range p.Imports {
			impure := i == "os" || i == "net" || i == "os/exec" || i == "syscall" || strings.HasPrefix(i, "golang.org/x/sys") || strings.Contains(i, "netlink")
			assert.False(t, impure, "%s imports %s: a plan must not see the machine", name, i)
		}
	}
}

func TestOnlyTestsImportTestSupport(t *testing.T) {
	for name, p := range packages(t) {
		if strings.HasPrefix(name, "test/") {
			continue
		}
		for _, i := range p.Imports {
			assert.False(t, strings.HasSuffix(i, "test") && strings.HasPrefix(i, "ringway/"), "%s imports %s", name, i)
			assert.NotContains(t, []string{"testing", "github.com/stretchr/testify/require"}, i, "%s imports %s", name, i)
		}
	}
}

func TestOnlyMainExits(t *testing.T) {
	out, err := exec.Command("grep", "-rln", "--include=*.go", "--exclude=*_test.go", `os\.Exit(`, "../..").Output()
	require.NoError(t, err)
	files := strings.Fields(string(out))
	assert.True(t, slices.Equal(files, []string{"../../cmd/ringway/main.go"}), "os.Exit outside main: %v", files)
}
