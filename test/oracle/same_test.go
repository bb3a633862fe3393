package oracle

import (
	"encoding/json"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/lab"
	"ringway/test/netnstest"
)

// What Ringway made by netlink and what the tools made of the plan's words read back the same.
func TestPlansWordsMakeTheSame(t *testing.T) {
	t.Parallel()
	l := branches(t)
	edge := l.Host(lab.EdgeA)
	plan := func(part string) string {
		return sh(t, edge, ringway+" plan --all --only "+part+" "+configFile)
	}
	words := map[string]string{}
	for _, part := range []string{"nft", "ip", "tc"} {
		words[part] = plan(part)
	}

	twin := netnstest.New(t)
	far := netnstest.New(t)
	for _, device := range []string{"wan0", "voice0", "data0"} {
		netnstest.Veth(t, twin, device, far, device)
	}
	for _, device := range []string{"rw-voice", "rw-data"} {
		twin.Run("ip", "tuntap", "add", "dev", device, "mode", "tun")
	}
	feed := func(input, name string, args ...string) {
		t.Helper()
		cmd := twin.Command(name, args...)
		cmd.Stdin = strings.NewReader(input)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s: %s", name, out)
	}
	feed(words["nft"], "nft", "-f", "-")
	feed(words["ip"], "sh", "-e")
	feed(words["tc"], "sh", "-e")

	read := func(line string) (ours, theirs string) {
		t.Helper()
		return sh(t, edge, line), strings.TrimSpace(twin.Run("sh", "-ec", line))
	}
	for _, line := range []string{
		"ip -4 -j -d rule", "ip -6 -j -d rule",
		"ip -4 -j -d route show table all proto 82", "ip -6 -j -d route show table all proto 82",
		"tc -d -j qdisc show dev wan0",
	} {
		ours, theirs := read(line)
		is, want := objects(t, ours), objects(t, theirs)
		assert.NotEmpty(t, is, line)
		assert.Equal(t, want, is, "%s: what Ringway made, and what the plan's words made", line)
	}
	a, b := read("tc -d class show dev wan0 | sort") // no JSON of an HTB class in some versions of tc
	assert.Equal(t, 1+2*5, strings.Count(a, "class htb "), "the root, local and munich: %s", a)
	assert.Equal(t, b, a, "classes of wan0")
	for _, device := range []string{"wan0", "voice0", "data0", "rw-voice", "rw-data"} {
		a, b = read("ip -j -d addr show dev " + device)
		assert.Equal(t, addresses(t, b), addresses(t, a), "addresses of %s", device)
		if strings.HasPrefix(device, "rw-") {
			a, b = read("ip -o link show dev " + device + " | grep -o 'mtu [0-9]*\\|qlen [0-9]*\\|[<,]UP' | tr '<' ,")
			assert.Equal(t, b, a, "%s", device)
		}
	}

	var names []string
	for _, m := range regexp.MustCompile(`(?m)^sysctl -q (?:-e )?-w ([^=]+)=`).FindAllStringSubmatch(words["ip"], -1) {
		names = append(names, m[1])
	}
	require.Greater(t, len(names), 20)
	a, b = read("sysctl -e " + strings.Join(names, " "))
	assert.Equal(t, b, a)
	for _, m := range regexp.MustCompile(`(?m)^sysctl -q (?:-e )?-w ([^=]+)=(\d+)$`).FindAllStringSubmatch(
		words["ip"], -1) {
		if strings.Contains(a, m[1]+" = ") {
			assert.Contains(t, a+"\n", m[1]+" = "+m[2]+"\n")
		}
	}

	a, b = read("nft --debug=netlink list table inet ringway 2>&1")
	ours, theirs := ruleset(t, a), ruleset(t, b)
	assert.Greater(t, len(slices.Concat(slices.Collect(maps.Values(ours.rules))...)), 100)
	assert.Greater(t, len(ours.sets), 30)
	assert.Equal(t, theirs.rules, ours.rules, "expressions of the rules")
	// rules fill these, from what passes
	for _, flows := range []string{"media_flows4", "media_flows6", "media_hosts4", "media_hosts6"} {
		require.Contains(t, ours.sets, flows)
		ours.sets[flows], theirs.sets[flows] = nil, nil
	}
	assert.Equal(t, theirs.sets, ours.sets, "raw elements of the sets")
	assert.Equal(t, theirs.chains, ours.chains, "chains, their hooks and policies")
}

// objects reads a JSON list, in an order that does not depend on who made what first.
func objects(t *testing.T, text string) []string {
	t.Helper()
	var list []map[string]any
	require.NoError(t, json.Unmarshal([]byte(text), &list), "%s", text)
	out := make([]string, len(list))
	for i, o := range list {
		for _, k := range []string{"handle_offload", "stats", "refcnt"} {
			delete(o, k)
		}
		if options, ok := o["options"].(map[string]any); ok {
			delete(options, "direct_packets_stat") // a counter
		}
		if flags, ok := o["flags"].([]any); ok && len(flags) > 0 { // linkdown: nobody has opened the twin's tunnels
			o["flags"] = slices.DeleteFunc(flags, func(f any) bool { return f == "linkdown" })
		}
		b, err := json.Marshal(o)
		require.NoError(t, err)
		out[i] = string(b)
	}
	slices.Sort(out)
	return out
}

// addresses are those with global scope, without what only tells one interface from another.
func addresses(t *testing.T, text string) []string {
	t.Helper()
	var list []struct {
		AddrInfo []map[string]any `json:"addr_info"`
	}
	require.NoError(t, json.Unmarshal([]byte(text), &list))
	var out []string
	for _, l := range list {
		for _, a := range l.AddrInfo {
			if a["scope"] != "global" {
				continue
			}
			b, err := json.Marshal(a)
			require.NoError(t, err)
			out = append(out, string(b))
		}
	}
	slices.Sort(out)
	return out
}

type readBack struct {
	rules  map[string][]string // by chain, in order: each rule's expressions
	sets   map[string][]string // raw elements, sorted
	chains []string            // heads as nft prints them
}

var (
	setHead = regexp.MustCompile(`^inet ringway @(\S+)$`)
	// nft marks the end of nothing before the first interval, which no packet can tell from no mark.
	zeroEnd  = regexp.MustCompile(`^element (0{8} )+ : 1 \[end\]$`)
	ruleHead = regexp.MustCompile(`^inet ringway (\S+) \d+( \d+)?\s*$`)
)

// ruleset reads what `nft --debug=netlink` prints: the expressions and elements as the kernel gave them, then the
// same in nft's own words, of which only what the expressions do not hold is taken.
func ruleset(t *testing.T, text string) readBack {
	t.Helper()
	r := readBack{rules: map[string][]string{}, sets: map[string][]string{}}
	var inSet bool
	name := ""
	for _, line := range strings.Split(text, "\n") {
		switch trimmed := strings.TrimSpace(line); {
		case setHead.MatchString(line):
			name, inSet = setHead.FindStringSubmatch(line)[1], true
			r.sets[name] = []string{}
		case ruleHead.MatchString(line):
			name, inSet = ruleHead.FindStringSubmatch(line)[1], false
			r.rules[name] = append(r.rules[name], "")
		case zeroEnd.MatchString(trimmed):
		case strings.HasPrefix(trimmed, "element ") && inSet:
			r.sets[name] = append(r.sets[name], trimmed)
		case strings.HasPrefix(trimmed, "[ ") && !inSet:
			n := len(r.rules[name])
			require.Positive(t, n, "%q", line)
			r.rules[name][n-1] += trimmed + "\n"
		case strings.HasPrefix(trimmed, "chain "), strings.HasPrefix(trimmed,
			"type filter hook"), strings.HasPrefix(trimmed, "type nat hook"),
			strings.HasPrefix(trimmed, "type route hook"), strings.HasPrefix(trimmed,
				"set "), strings.HasPrefix(trimmed, "map "), strings.HasPrefix(trimmed, "flags "):
			r.chains = append(r.chains, trimmed)
		}
	}
	for _, s := range r.sets {
		slices.Sort(s)
	}
	slices.Sort(r.chains)
	return r
}

// Once it runs, there is nothing to change; a user without rights sees the same as far as the kernel lets him, and
// is told of the rest.
func TestPlanOfWhatRuns(t *testing.T) {
	t.Parallel()
	l := branches(t)
	for _, side := range []string{"a", "b"} {
		out := sh(t, l.Edge(side).Host, ringway+" plan "+configFile)
		assert.Equal(t, 4, strings.Count(out, "# nothing to change"), "edge-%s:\n%s", side, out)
		for _, line := range strings.Split(out, "\n") {
			assert.True(t, strings.HasPrefix(line, "#"), "edge-%s would change: %s", side, line)
		}
	}
	edge := l.Host(lab.EdgeA)
	out := sh(t, edge, "setpriv --reuid 65534 --regid 65534 --clear-groups "+ringway+" plan "+configFile)
	assert.Contains(t, out, "the kernel shows this only to root; taken as absent")
	assert.NotContains(t, out, "\nip ", "routes and rules are shown to everybody")
	assert.NotContains(t, out, "\ntc ", "queues are shown to everybody")

	// What somebody took away is what the plan says, and nothing else.
	require.NoError(t, l.Edge("a").Kill(within(t, patience)), "so that nobody repairs it")
	sh(t, edge, "tc qdisc del dev wan0 root; ip rule del pref 5230; nft flush chain inet ringway guard")
	out = sh(t, edge, ringway+" plan --only tc "+configFile)
	assert.Contains(t, out, "tc qdisc replace dev wan0 root handle 1: htb default 30")
	out = sh(t, edge, ringway+" plan --only ip "+configFile)
	assert.Contains(t, out, "ip -4 rule add pref 5230 lookup 5273 protocol 82")
	assert.Equal(t, 2, len(strings.Split(out, "\n")), "%s", out)
	assert.Contains(t, sh(t, edge, ringway+" plan --only nft "+configFile),
		"iifname @wan ip saddr @sites4 counter name \"spoof_wan\" drop")
}
