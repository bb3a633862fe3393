package firewall

import (
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/qos"
)

func bounds() SignallingBounds {
	return SignallingBounds{
		Devices: 16, DeviceLife: 2 * time.Second, Bans: 256, BanLife: 24 * time.Hour,
		Bypasses: 64, BypassLife: 30 * time.Second,
	}
}

// signalled is the branch with everything that signalling can ask for.
func signalled() Input {
	in := branch()
	in.Dynamic = append(HoleSets("calls", 512, 64, 2*time.Minute, in.SiteDataNetworks),
		SignallingSets("calls", bounds())...)
	in.Signalling = Signalling{
		Mode:  Enforce,
		Ports: []qos.PortMatch{port(qos.UDP, 5060, 5060), port(qos.TCP, 5060, 5060), port(qos.UDP, 5080, 5082)},
		Servers: []SignallingServer{
			{netip.MustParseAddr("10.2.20.5"), []qos.PortMatch{port(qos.UDP, 7000, 7001), port(qos.TCP, 7000, 7000)}},
			{Address: netip.MustParseAddr("2001:db8:2:20::5")},
		},
		Unread: true,
		Allow: []AllowedMedia{
			{netip.MustParsePrefix("203.0.113.0/24"), []qos.PortMatch{port(qos.UDP, 3478, 3478)}},
			{Network: netip.MustParsePrefix("2001:db8:f::/48")},
		},
	}
	return in
}

func TestSignallingText(t *testing.T) {
	got := strings.Join(Want(signalled()).Text(), "\n") + "\n"
	const file = "testdata/signalling.nft"
	if *rewrite {
		require.NoError(t, os.WriteFile(file, []byte(got), 0o644))
	}
	want, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, string(want), got, "if it is meant: go test ./firewall -update")
}

func rulesOf(t *testing.T, s State, chain string) (out []string) {
	t.Helper()
	c, ok := find(s.Chains, chain, chainOf)
	require.True(t, ok, chain)
	for _, r := range c.Rules {
		out = append(out, r.Text)
	}
	return out
}

// Without a mode the sets are declared, since their owner has them, and nothing looks them up.
func TestWithoutAModeNothingChanges(t *testing.T) {
	off := signalled()
	off.Signalling.Mode = ""
	plain := branch()
	plain.Dynamic = off.Dynamic
	assert.Equal(t, Want(plain), Want(off))

	lacking := signalled()
	lacking.Missing = []Feature{FeatureTProxy}
	assert.Equal(t, Want(plain), Want(lacking), "nobody could open a hole")

	plain.Dynamic = nil
	assert.Equal(t, Want(branch()), Want(plain))
}

func TestObserveBlocksNothing(t *testing.T) {
	in := signalled()
	in.Signalling.Mode = Observe
	s := Want(in)
	for _, rule := range rulesOf(t, s, "holes") {
		assert.True(t, strings.HasSuffix(rule, " accept"), rule)
	}
	text := strings.Join(s.Text(), "\n")
	for _, word := range []string{"no_hole", "open_from_voice_udp", "allowed_1", `counter name "sip_closed"`} {
		assert.NotContains(t, text, word)
	}
	assert.Contains(t, text, "tproxy to :5271", "messages are read all the same")
	assert.Contains(t, text, "counter sip_closed { }", "a counter that comes and goes would lose its value")
}

// When nobody listens, tproxy does not match: a mark that was set before it would keep the packet here.
func TestTProxyComesBeforeTheMark(t *testing.T) {
	found := 0
	for _, c := range Want(signalled()).Chains {
		for _, r := range c.Rules {
			at := func(what func(Expr) bool) int { return slices.IndexFunc(r.Exprs, what) }
			proxied := at(func(e Expr) bool { return e.Op == "tproxy" })
			if proxied < 0 {
				continue
			}
			found++
			assert.Greater(t, at(func(e Expr) bool { return e.Op == "meta" && e.Write }), proxied, r.Text)
			assert.True(t, strings.HasSuffix(r.Text, "accept"), r.Text)
		}
	}
	assert.Equal(t, 4, found, "two transports, two ports")
}

// What is kept out of conntrack is what the relay takes: of the same candidates, by the same matches.
func TestUntrackedIsWhatIsTaken(t *testing.T) {
	s := Want(signalled())
	var candidates []string
	for _, r := range rulesOf(t, s, "intercept") {
		if strings.HasSuffix(r, " goto signalling") {
			candidates = append(candidates, strings.Replace(r, "goto signalling", "goto untracked", 1))
		}
	}
	require.NotEmpty(t, candidates)
	assert.Equal(t, candidates, rulesOf(t, s, "untrack"))

	var openings []string
	for _, r := range rulesOf(t, s, "signalling_tcp") {
		if opening, ok := strings.CutSuffix(r, " goto signalling_opening"); ok {
			openings = append(openings, "iifname @sip_tcp "+opening+" notrack")
		}
	}
	require.NotEmpty(t, openings)
	untracked := rulesOf(t, s, "untracked")
	assert.Equal(t, openings, untracked[len(untracked)-len(openings):])
	for _, chain := range []string{"untracked", "signalling"} {
		assert.Equal(t, []string{"meta pkttype != unicast return", "fib daddr type local return"}, rulesOf(t, s, chain)[:2])
	}
}

// A rule that looks up a set which is not there would make the kernel refuse the whole table.
func TestWhatRulesNameIsThere(t *testing.T) {
	for name, in := range map[string]Input{"branch": branch(), "signalled": signalled(), "empty": {}} {
		s := Want(in)
		used := map[string]bool{}
		for _, c := range s.Chains {
			for _, r := range c.Rules {
				for _, e := range r.Exprs {
					there := true
					switch e.Op {
					case "lookup", "dynset":
						_, there = find(s.Sets, e.Name, setOf)
						used[e.Name] = true
					case "objref":
						there = slices.Contains(s.Counters, e.Name)
					case "verdict":
						if e.Name != "" {
							_, there = find(s.Chains, e.Name, chainOf)
						}
					}
					assert.True(t, there, "%s: %s", name, r.Text)
				}
			}
		}
		for _, d := range in.Dynamic {
			assert.True(t, used[d.Name], "%s: no rule looks up %s", name, d.Name)
		}
	}
}

func TestWithoutServersNobodyLooksForThem(t *testing.T) {
	in := signalled()
	in.Signalling.Servers = nil
	in.Classes[0].Ports = nil // of media, which are looked up in voice_networks, too
	text := strings.Join(Want(in).Text(), "\n")
	assert.NotContains(t, text, "sip_servers")
	assert.NotContains(t, text, "voice_networks")
	in.Signalling.Ports = nil
	assert.NotContains(t, strings.Join(Want(in).Text(), "\n"), "@sip_ports", "every packet would look in an empty set")
}

// Where somebody has to say that it is enforced, the voice LANs alone decide nothing.
func TestEnforcedDevices(t *testing.T) {
	in := signalled()
	assert.Contains(t, rulesOf(t, Want(in), "holes"), "iifname @voice_lan goto no_hole")
	enforced := EnforcedSet("calls", 16, time.Minute)
	require.NoError(t, enforced.Check())
	in.Dynamic = append(in.Dynamic, enforced)
	rules := rulesOf(t, Want(in), "holes")
	assert.Equal(t, []string{
		"iifname @voice_lan oifname @voice_lan return",
		"iifname @sip_enforced goto no_hole", "oifname @sip_enforced goto no_hole",
	}, rules[len(rules)-3:])
}

func TestMessageLimits(t *testing.T) {
	limits := func(in Input) []string {
		s := Want(in)
		return append(rulesOf(t, s, "signalling_limit_lan"), rulesOf(t, s, "signalling_limit_far")...)
	}
	in := signalled()
	assert.Equal(t, []string{
		`update @sip_rate_lan4 { ip saddr limit rate over 10/second burst 40 packets } counter name "sip_flood" drop`,
		`update @sip_rate_lan6 { ip6 saddr limit rate over 10/second burst 40 packets } counter name "sip_flood" drop`,
		`update @sip_rate_far4 { ip saddr limit rate over 200/second burst 400 packets } counter name "sip_flood" drop`,
		`update @sip_rate_far6 { ip6 saddr limit rate over 200/second burst 400 packets } counter name "sip_flood" drop`,
	}, limits(in))
	in.Signalling.LANLimit, in.Signalling.FarLimit = MessageLimit{Rate: 5, Burst: 6}, MessageLimit{Rate: 50}
	assert.Contains(t, limits(in)[0], "over 5/second burst 6 packets")
	assert.Contains(t, limits(in)[2], "over 50/second burst 400 packets")
	in.Missing = []Feature{FeatureFlowLimit}
	text := strings.Join(Want(in).Text(), "\n")
	assert.NotContains(t, text, "sip_rate")
	assert.NotContains(t, text, "signalling_limit")
}

func TestSignallingSets(t *testing.T) {
	var text []string
	for _, d := range SignallingSets("calls", bounds()) {
		require.NoError(t, d.Check())
		text = append(text, d.Declaration().declaration())
	}
	assert.Equal(t, []string{
		"set sip_udp { type ifname; flags timeout; timeout 2s; size 32; }",
		"set sip_tcp { type ifname; flags timeout; timeout 2s; size 32; }",
		"set banned4 { type ipv4_addr; flags timeout; timeout 86400s; size 512; }",
		"set sip_bypass4 { type ipv4_addr . inet_service; flags timeout; timeout 30s; size 128; }",
		"set banned6 { type ipv6_addr; flags timeout; timeout 86400s; size 512; }",
		"set sip_bypass6 { type ipv6_addr . inet_service; flags timeout; timeout 30s; size 128; }",
	}, text)

	for _, c := range []struct{ address, set, key string }{
		{"10.1.10.2", "banned4", "10.1.10.2"},
		{"::ffff:10.1.10.2", "banned4", "10.1.10.2"},
		{"2001:db8::1", "banned6", "2001:db8::1"},
	} {
		set, key := Ban(netip.MustParseAddr(c.address))
		assert.Equal(t, []string{c.set, c.key}, []string{set, key})
	}
	set, key := Bypass(netip.MustParseAddrPort("[::ffff:10.2.20.2]:5060"))
	assert.Equal(t, []string{"sip_bypass4", "10.2.20.2 . 5060"}, []string{set, key})
	set, key = Bypass(netip.MustParseAddrPort("[2001:db8::1]:5061"))
	assert.Equal(t, []string{"sip_bypass6", "2001:db8::1 . 5061"}, []string{set, key})
}

// Without NAT, private addresses stay in, from the relay too.
func TestTheRelayLeaksNoPrivateAddresses(t *testing.T) {
	in := signalled()
	const untracked = `ct state invalid,untracked ip saddr @nat4 counter name "invalid_wan" drop`
	assert.Contains(t, rulesOf(t, Want(in), "egress_wan"), untracked)
	in.Missing = []Feature{FeatureMasquerade}
	assert.Contains(t, rulesOf(t, Want(in), "egress_wan"), `ip saddr @nat4 counter name "forward_drop" drop`)
}

// Signalling that nobody reads is counted before enforce drops it, in both modes, unless the config says that its port
// is SIP's. Without a mode nothing is counted.
func TestOtherSignallingIsSeen(t *testing.T) {
	for _, mode := range []SignallingMode{Observe, Enforce} {
		in := signalled()
		in.Signalling.Mode = mode
		s := Want(in)
		forward := rulesOf(t, s, "forward")
		at := slices.Index(forward, "iifname @voice_lan ct state new jump seen")
		require.GreaterOrEqual(t, at, 0)
		assert.Less(t, at, slices.Index(forward, "meta l4proto udp jump holes"))
		assert.Contains(t, rulesOf(t, s, "seen"), `tcp dport 2000 counter name "seen_sccp" return`)
		assert.Contains(t, rulesOf(t, s, "seen"), `tcp dport 5061 counter name "seen_sip_tls" return`)
		for _, protocol := range UnreadSignalling() {
			assert.Contains(t, s.Counters, SeenCounter(protocol))
			assert.NotContains(t, DropCounters(), SeenCounter(protocol))
		}

		in.Signalling.Ports = append(in.Signalling.Ports, port(qos.TCP, 5061, 5061), port(qos.UDP, 2000, 2000))
		s = Want(in)
		assert.NotContains(t, rulesOf(t, s, "seen"), `tcp dport 5061 counter name "seen_sip_tls" return`)
		assert.Contains(t, rulesOf(t, s, "seen"), `tcp dport 2000 counter name "seen_sccp" return`, "that is TCP")
	}
	in := signalled()
	in.Signalling.Mode = ""
	assert.NotContains(t, strings.Join(Want(in).Text(), "\n"), "seen")
}
