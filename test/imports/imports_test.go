// Package imports tests which package may import which, and why. It has no code of its own.
package imports

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
	require.Greater(t, len(all), 15, "go list found too few packages")
	return all
}

// mayImport lists, for every package, which other packages of Ringway it may import. A package that is missing is an
// error: add a line for every new one.
var mayImport = map[string][]string{
	"cmd/ringway/settings": {},
	"quality/figures":      {"quality"},
	"test/lab/program":     {"quality/figures"},
	"cmd/ringway-lab":      {"cmd/cli", "srtp/suite", "test/bench", "test/bench/media", "test/bench/probe", "test/bench/rival", "test/bench/sip", "test/bench/tester", "test/lab", "test/lab/program", "units"},
	"cmd/ringway/live":     {"appliance", "appliance/control", "appliance/status", "qos", "quality/figures", "stamp", "tunnel"},
	"cmd/cli":              {},
	"cmd/ringway":          {"appliance", "appliance/calls", "appliance/commit", "appliance/compare", "appliance/config", "appliance/control", "appliance/line", "appliance/media", "appliance/plan", "appliance/status", "appliance/systemd", "cmd/cli", "cmd/ringway/live", "cmd/ringway/settings", "durable", "sip/call", "sip/capture", "sip/record", "sip/registrar", "sip/relay", "srtp/plane", "tunnel", "tunnel/plane", "tunnel/realtime", "tunnel/wireguardgo"},
	"appliance":            {"appliance/announcer", "appliance/calls", "appliance/clock", "appliance/commit", "appliance/compare", "appliance/component", "appliance/config", "appliance/control", "appliance/dial", "appliance/endpoint", "appliance/engine", "appliance/exposition", "appliance/journal", "appliance/lease", "appliance/line", "appliance/lock", "appliance/media", "appliance/metered", "appliance/metrics", "appliance/pathmtu", "appliance/plan", "appliance/problem", "appliance/reflector", "appliance/status", "appliance/systemd", "appliance/task", "appliance/unmarked", "appliance/wanted", "debounce", "firewall", "firewall/conntrack", "firewall/nft", "qos", "qos/tc", "routing", "routing/rtnl", "sip/admission", "sip/relay", "tunnel", "tunnel/descriptor", "tunnel/kernel", "tunnel/plane"},
	"appliance/problem":    {},
	"appliance/status":     {"appliance/problem", "qos", "tunnel"},
	"appliance/calls":      {"appliance/config", "appliance/exposition", "appliance/problem", "appliance/secrets", "appliance/status", "appliance/task", "appliance/wanted", "firewall", "firewall/conntrack", "firewall/nft", "qos", "quality", "sip/admission", "sip/call", "sip/certificate", "sip/dialog", "sip/ladder", "sip/privacy", "sip/record", "sip/registrar", "sip/relay", "sip/terminate", "tunnel"},
	"appliance/control":    {"appliance/plan", "appliance/status", "sip/call", "sip/ladder", "sip/record", "sip/registrar", "sip/relay"},
	"appliance/compare":    {"appliance/config", "appliance/control", "appliance/dial", "appliance/endpoint", "appliance/engine", "appliance/journal", "appliance/lease", "appliance/plan", "appliance/status", "appliance/wanted", "firewall", "firewall/nft", "qos", "qos/tc", "routing", "routing/rtnl", "tunnel", "tunnel/kernel"},
	"appliance/engine":     {"appliance/plan", "appliance/task", "tunnel", "tunnel/kernel"},
	"appliance/config":     {"appliance/secrets", "qos", "routing", "sip/abuse", "sip/certificate", "sip/emergency", "srtp/keys", "srtp/keys/channel", "srtp/offer", "srtp/suite", "tunnel", "units"},
	"appliance/plan":       {"appliance/config", "appliance/wanted", "firewall", "qos", "routing", "sip/abuse", "srtp/keys/channel", "srtp/offer", "tunnel", "units"},
	"appliance/secrets":    {"sip/certificate", "tunnel"},
	"appliance/wanted":     {"appliance/config", "appliance/secrets", "firewall", "qos", "routing", "sip/admission", "srtp/keys/channel", "srtp/offer", "srtp/policy", "tunnel", "units"},
	"configs":              {"appliance/config"},
	"durable":              {},
	"appliance/clock":      {"durable"},
	"boottime":             {},
	"appliance/commit":     {"appliance/config", "appliance/status", "boottime", "durable"},
	"appliance/endpoint":   {"durable", "routing/rawudp", "tunnel"},
	"appliance/lock":       {},
	"appliance/systemd":    {},
	"debounce":             {},
	"appliance/journal":    {"appliance/config", "appliance/plan", "boottime", "durable", "firewall", "firewall/conntrack", "firewall/nft", "qos", "qos/tc", "routing", "routing/rtnl"},
	"firewall":             {"qos", "units"},
	"firewall/conntrack":   {},
	"firewall/nft":         {"debounce", "firewall"},
	"qos":                  {"units"},
	"qos/tc":               {"debounce", "qos"},
	"quality":              {},
	"routing":              {},
	"routing/advert":       {"boottime", "durable"},
	"routing/announce":     {"boottime", "durable"},
	"routing/pppoe":        {},
	"routing/dhcp":         {"boottime", "durable", "routing/rawudp"},
	"routing/dhcp6":        {"boottime", "durable"},
	"routing/rawudp":       {},
	"routing/echo":         {},
	"routing/rtnl":         {"debounce", "routing"},
	"sip/abuse":            {"sip/message"},
	"sip/admission":        {"qos", "sip/dialog", "sip/message", "tunnel"},
	"sip/body":             {"sip/message"},
	"sip/call":             {},
	"sip/capture":          {},
	"sip/codec":            {"qos", "sip/sdp"},
	"sip/compact":          {},
	"sip/dialog":           {"qos", "sip/codec", "sip/compact", "sip/message", "sip/sdp"},
	"sip/emergency":        {"sip/message"},
	"sip/hep":              {"sip/privacy"},
	"sip/host":             {},
	"sip/ladder":           {"sip/body", "sip/call", "sip/message", "sip/privacy", "sip/sdp"},
	"sip/message":          {"sip/host"},
	"sip/privacy":          {"sip/message"},
	"sip/record":           {"durable", "sip/call", "sip/privacy"},
	"sip/refusal":          {"sip/host", "sip/message"},
	"sip/registrar":        {"sip/message"},
	"sip/relay":            {"process", "qos", "sip/abuse", "sip/admission", "sip/body", "sip/call", "sip/certificate", "sip/compact", "sip/dialog", "sip/emergency", "sip/hep", "sip/ladder", "sip/message", "sip/privacy", "sip/record", "sip/refusal", "sip/registrar", "sip/sdp", "sip/terminate", "sip/transparent", "srtp/offer", "srtp/sdes", "srtp/suite", "tunnel", "units"},
	"sip/sdp":              {"sip/host"},
	"sip/terminate":        {"sip/compact", "sip/dialog", "sip/sdp", "srtp/offer", "srtp/sdes"},
	"sip/certificate":      {},
	"sip/transparent":      {"sip/certificate", "sip/message", "tunnel/datagram"},
	"srtp/dtls":            {"srtp/stream", "srtp/suite"},
	"srtp/keys":            {"srtp/suite"},
	"srtp/keys/channel":    {"srtp/keys", "srtp/suite"},
	"srtp/media":           {"srtp/stream", "tunnel/datagram", "tunnel/turn"},
	"srtp/media/rules":     {},
	"srtp/offer":           {"sip/sdp", "srtp/sdes", "srtp/suite"},
	"srtp/policy":          {"srtp/offer"},
	"srtp/plane":           {"boottime", "durable", "process", "process/priority", "srtp/dtls", "srtp/keys", "srtp/media", "srtp/stream", "srtp/suite"},
	"srtp/sdes":            {"srtp/suite"},
	"srtp/stream":          {"srtp/suite"},
	"srtp/suite":           {},
	"stamp":                {"quality", "units"},
	"process":              {"durable"}, // a kind of process is a package that uses it
	"process/priority":     {},
	"tunnel":               {"units"},
	"tunnel/kernel":        {"tunnel"},
	"tunnel/plane":         {"process", "process/priority", "tunnel"},
	"tunnel/descriptor":    {"tunnel"},
	"tunnel/uapi":          {"tunnel"},
	"tunnel/datagram":      {},
	"tunnel/turn":          {},
	"tunnel/flowqueue":     {"units"},
	"tunnel/ledger":        {"qos", "tunnel", "units"}, // qos alone computes with budgets
	"tunnel/path":          {"quality", "tunnel", "units"},
	"tunnel/series":        {},
	"tunnel/wireguardgo":   {"tunnel", "tunnel/datagram", "tunnel/descriptor", "tunnel/flowqueue", "tunnel/uapi", "units"},
	"tunnel/realtime":      {"tunnel", "tunnel/datagram", "tunnel/descriptor", "tunnel/ledger", "tunnel/path", "tunnel/series", "tunnel/turn", "tunnel/uapi", "units"},
	"units":                {},
	"test/bench":           {"appliance/plan", "qos", "qos/tc", "quality", "quality/figures", "test/bench/probe", "test/bench/report", "test/bench/rival", "test/bench/tester", "test/lab", "test/lab/bulk", "test/lab/host", "test/lab/program", "test/lab/report", "tunnel", "units"},
	"test/bench/probe":     {"quality", "test/lab/fifo"},
	"test/bench/report":    {"quality/figures", "test/bench/probe", "test/lab/report"},
	"test/bench/rival":     {"qos", "test/lab/host", "test/lab/program", "tunnel", "tunnel/descriptor", "tunnel/plane"},
	"test/bench/cost":      {"test/lab/host"},
	"test/bench/media":     {"quality/figures", "srtp/media", "srtp/media/rules", "srtp/stream", "srtp/suite", "test/bench/cost", "test/bench/rival", "test/lab/host", "test/lab/program"},
	"test/bench/sip":       {"quality/figures", "test/bench/cost", "test/bench/rival", "test/lab/host", "test/lab/program", "tunnel"},
	"test/bench/tester":    {},
	"test/lab":             {"appliance", "appliance/config", "appliance/control", "appliance/plan", "appliance/problem", "configs", "qos", "qos/tc", "quality", "quality/figures", "test/lab/bulk", "test/lab/capture", "test/lab/host", "test/lab/program", "test/lab/provider", "test/lab/report", "test/lab/twice", "tunnel", "units"},
	"test/lab/twice":       {},
	"test/lab/bulk":        {"qos", "test/lab/host"},
	"test/lab/host":        {},
	"test/lab/capture":     {"quality", "test/lab/inside"},
	"test/lab/inside":      {},
	"test/lab/fifo":        {},
	"test/lab/provider":    {"quality", "test/lab/fifo", "test/lab/inside"},
	"test/lab/report":      {"quality", "quality/figures"},
	"test/certtest":        {},
	"test/dhcptest":        {},
	"test/manualtest":      {},
	"test/netnstest":       {},
	"test/polltest":        {},
	"test/enginetest":      {"test/netnstest", "test/polltest", "tunnel", "tunnel/datagram", "tunnel/descriptor"},
	"test/streamtest":      {},
	"appliance/component":  {"appliance/config", "appliance/exposition", "appliance/problem", "appliance/status", "appliance/task"},
	"appliance/exposition": {"appliance/status"},
	"appliance/line":       {"appliance/config", "appliance/exposition", "appliance/problem", "appliance/status", "appliance/task", "durable", "routing/echo", "routing/rtnl", "tunnel"},
	"appliance/pathmtu":    {"durable", "tunnel"},
	"appliance/metered":    {"appliance/config", "appliance/exposition", "appliance/problem", "appliance/status", "boottime", "durable", "routing/rtnl"},
	"appliance/dial":       {"appliance/config", "appliance/endpoint", "appliance/exposition", "appliance/lease", "appliance/problem", "appliance/secrets", "appliance/status", "appliance/task", "durable", "process", "routing", "routing/advert", "routing/pppoe", "routing/rawudp", "routing/rtnl"},
	"appliance/lease":      {"appliance/config", "appliance/endpoint", "appliance/exposition", "appliance/problem", "appliance/status", "appliance/task", "boottime", "routing", "routing/advert", "routing/dhcp", "routing/dhcp6", "tunnel"},
	"appliance/announcer":  {"appliance/config", "appliance/task", "boottime", "routing", "routing/announce", "routing/dhcp6"},
	"appliance/metrics":    {"appliance/config", "appliance/exposition", "appliance/problem", "appliance/status", "appliance/task", "firewall", "qos", "tunnel"},
	"appliance/unmarked":   {"appliance/config", "appliance/exposition", "appliance/problem", "appliance/status", "firewall", "firewall/nft"},
	"appliance/media":      {"appliance/config", "appliance/exposition", "appliance/keychannel", "appliance/problem", "appliance/status", "appliance/task", "appliance/wanted", "durable", "firewall", "process", "qos", "sip/relay", "sip/sdp", "sip/terminate", "srtp/dtls", "srtp/keys", "srtp/keys/channel", "srtp/media", "srtp/offer", "srtp/plane", "srtp/sdes", "srtp/suite", "tunnel"},
	"appliance/keychannel": {"appliance/config", "appliance/exposition", "appliance/problem", "appliance/status", "appliance/task", "firewall", "qos", "srtp/keys", "srtp/keys/channel"},
	"appliance/reflector":  {"appliance/config", "appliance/exposition", "appliance/problem", "appliance/status", "appliance/task", "appliance/wanted", "qos", "stamp", "tunnel"},
	"appliance/task":       {},
}

func TestImportsPointDownwards(t *testing.T) {
	for name, p := range packages(t) {
		if len(p.GoFiles) == 0 { // tests alone
			continue
		}
		allowed, known := mayImport[name]
		if !assert.True(t, known, "package %s is not listed: add what it may import to mayImport in test/imports", name) {
			continue
		}
		for _, i := range p.Imports {
			if imported, ours := strings.CutPrefix(i, "ringway/"); ours {
				assert.Contains(t, allowed, imported, "%s must not import %s", name, imported)
			}
		}
	}
}

// onlyImporters lists the libraries that only the named packages may import, each with the reason.
var onlyImporters = []struct {
	prefix    string
	importers []string
	why       string
}{
	{"github.com/spf13/viper", []string{"cmd/ringway/settings"}, "it lowercases keys and has no positions, so it serves settings of the command line alone"},
	{"go.yaml.in/yaml", []string{"appliance/config", "cmd/ringway/settings"}, "both keep the node tree, so that every error has a line"},
	{"github.com/spf13/cobra", []string{"cmd/cli", "cmd/ringway", "cmd/ringway-lab", "test/manualtest"}, "only the programs know the command line"},
	{"github.com/vishvananda/netlink", []string{"firewall/conntrack", "qos/tc", "routing/rtnl", "routing/dhcp", "tunnel/kernel", "test/netnstest"}, "one adapter for each domain and one for tests, so that units are converted in one place"},
	{"github.com/mdlayher/ndp", []string{"routing/advert", "routing/announce"}, "advertisements are read in one place, and sent in one"},
	{"github.com/mdlayher/packet", []string{"routing/rawudp"}, "packets that no route and no rule decides about are sent in one place"},
	{"github.com/google/nftables", []string{"firewall/nft"}, "one adapter for each domain"},
	{"golang.zx2c4.com/wireguard/device", []string{"tunnel/wireguardgo", "tunnel/realtime"}, "engines are replaceable"},
	{"golang.zx2c4.com/wireguard/tun", []string{"tunnel/wireguardgo"}, "engines are replaceable"},
	{"golang.zx2c4.com/wireguard/wgctrl", []string{"tunnel/kernel"}, "engines are replaceable"},
	{"github.com/prometheus/client_golang", []string{"appliance/exposition"}, "components name their metrics; one package encodes them"},
	{"github.com/google/renameio", []string{"durable"}, "it syncs no directory and sets no owner"},
	{"github.com/flynn/noise", []string{"srtp/keys/channel"}, "its states are to be wiped, and a handshake to be confirmed"},
	{"github.com/landlock-lsm/go-landlock", []string{"process"}, "one sandbox, which each kind of process only adds to"},
	{"github.com/pion/dtls", []string{"srtp/dtls"}, "it keeps state for every hello, and ends handshakes for what is not authenticated"},
	{"github.com/pion/srtp", []string{"srtp/stream"}, "it encrypts an index twice when told to, and forgets where it was after a gap"},
	{"github.com/pion/sdp", nil, "it writes a description again as a whole, where only some lines may change: tests compare with it"},
	{"gonum.org/v1/plot", []string{"test/lab/report"}, "only reports draw plots"},
}

func TestLibrariesAreImportedOnlyByTheirWrappers(t *testing.T) {
	for name, p := range packages(t) {
		for _, i := range p.Imports {
			for _, lib := range onlyImporters {
				if strings.HasPrefix(i, lib.prefix) {
					assert.Contains(t, lib.importers, name, "%s must not import %s: %s", name, i, lib.why)
				}
			}
		}
	}
}

// pure lists the packages that compute plans: their result depends only on their arguments.
var pure = []string{"appliance/plan", "appliance/problem", "appliance/status", "units", "appliance/wanted",
	"firewall", "qos", "routing", "tunnel", "quality", "sip/abuse", "sip/admission", "sip/body", "sip/call",
	"sip/certificate", "sip/codec", "sip/dialog", "sip/emergency", "sip/hep", "sip/host", "sip/ladder", "sip/message",
	"sip/privacy", "sip/refusal", "sip/registrar", "sip/sdp", "sip/terminate",
	"srtp/keys", "srtp/media/rules", "srtp/offer", "srtp/policy", "srtp/sdes", "srtp/stream", "srtp/suite"}

func TestPlansArePure(t *testing.T) {
	all := packages(t)
	for _, name := range pure {
		p, ok := all[name]
		require.True(t, ok, "no package %s", name)
		for _, i := range p.Imports {
			impure := i == "os" || i == "net" || i == "os/exec" || i == "syscall" ||
				strings.HasPrefix(i, "golang.org/x/sys") || strings.Contains(i, "netlink")
			assert.False(t, impure, "%s must not import %s: a plan depends only on its arguments", name, i)
		}
	}
}

func TestOnlyTestsImportTestSupport(t *testing.T) {
	for name, p := range packages(t) {
		if strings.HasPrefix(name, "test/") {
			continue
		}
		for _, i := range p.Imports {
			assert.False(t, strings.HasSuffix(i, "test") && strings.HasPrefix(i, "ringway/"), "%s must not import %s", name, i)
			assert.NotContains(t, []string{"testing", "github.com/stretchr/testify/require"}, i,
				"%s must not import %s", name, i)
		}
	}
}

// What ships must not change with the tests: the appliance is built of no package under test.
func TestTheApplianceIsBuiltWithoutTestPackages(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "ringway/cmd/ringway").Output()
	require.NoError(t, err)
	for p := range strings.FieldsSeq(string(out)) {
		assert.False(t, strings.HasPrefix(p, "ringway/test/"), "cmd/ringway depends on %s", p)
	}
}

func TestOnlyMainExits(t *testing.T) {
	out, err := exec.Command("grep", "-rln", "--include=*.go", "--exclude=*_test.go", `os\.Exit(`, "../..").Output()
	require.NoError(t, err)
	files := slices.Sorted(slices.Values(strings.Fields(string(out))))
	assert.True(t, slices.Equal(files, []string{"../../cmd/ringway-lab/main.go", "../../cmd/ringway/main.go"}),
		"os.Exit outside main: %v", files)
}
