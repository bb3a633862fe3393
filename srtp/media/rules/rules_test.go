package rules_test

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/media/rules"
	"ringway/test/netnstest"
	"ringway/test/polltest"
)

func plan() rules.Plan {
	return rules.Plan{
		Table: "media", Ports: rules.Ports{First: 40000, Last: 40099}, Delivered: 0x40, PacketsPerPort: 400,
		LAN: rules.Side{
			Interfaces: []string{"lan0.20", "lan0"},
			Addresses:  []netip.Addr{netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("192.0.2.1")},
			Port4:      5001, Port6: 5002, Mark: 0x41,
		},
		Tunnel: rules.Side{
			Interfaces: []string{"rw-voice"}, Addresses: []netip.Addr{netip.MustParseAddr("198.51.100.1")},
			Port4: 5003, Mark: 0x42,
		},
	}
}

func TestText(t *testing.T) {
	text, err := plan().Text()
	require.NoError(t, err)
	want, err := os.ReadFile("testdata/plan.nft")
	require.NoError(t, err)
	assert.Equal(t, string(want), text)
}

// nft takes it, twice, and its own listing has the same chains.
func TestNftTakesIt(t *testing.T) {
	ns := netnstest.New(t)
	text, err := plan().Text()
	require.NoError(t, err)
	for _, flags := range [][]string{{"-c"}, nil, nil} {
		cmd := ns.Command("nft", append(flags, "-f", "-")...)
		cmd.Stdin = strings.NewReader(text)
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
	}
	listed := ns.Run("nft", "list", "table", "inet", "media")
	assert.Equal(t, strings.Count(text, "chain "), strings.Count(listed, "chain "))
	assert.Equal(t, strings.Count(text, " notrack"), strings.Count(listed, " notrack"))
	assert.Contains(t, listed, "size 400")
}

// A port that finds no place in the set of limits has none of it: its packets are dropped, and counted as a flood.
func TestAFullSetDrops(t *testing.T) {
	phone, box := netnstest.New(t), netnstest.New(t)
	netnstest.Veth(t, phone, "eth", box, "lan0")
	for _, family := range []struct{ network, phone, box, chain string }{
		{"udp4", "192.0.2.7/24", "192.0.2.1/24", "media_take_lan4"},
		{"udp6", "2001:db8:1::7/64", "2001:db8:1::1/64", "media_take_lan6"},
	} {
		t.Run(family.network, func(t *testing.T) {
			nodad := []string{}
			if family.network == "udp6" {
				nodad = []string{"nodad"}
			}
			phone.Run("ip", append([]string{"addr", "add", family.phone, "dev", "eth"}, nodad...)...)
			box.Run("ip", append([]string{"addr", "add", family.box, "dev", "lan0"}, nodad...)...)
			text, err := plan().Text()
			require.NoError(t, err)
			text = strings.NewReplacer("size 400;", "size 1;", "size 200;", "size 1;", // a chain that counts
				"chain "+family.chain+" {", "chain "+family.chain+" {\n\t\tcounter name taken",
				"counter media_flood { }", "counter media_flood { }\n\tcounter taken { }").Replace(text)
			cmd := box.Command("nft", "-f", "-")
			cmd.Stdin = strings.NewReader(text)
			out, err := cmd.CombinedOutput()
			require.NoError(t, err, "%s", out)

			var conn net.PacketConn
			require.NoError(t, phone.Do(func() (err error) {
				conn, err = net.ListenPacket(family.network, ":0")
				return err
			}))
			t.Cleanup(func() { _ = conn.Close() })
			const each = 10
			for _, port := range []uint16{40001, 40002, 40003} {
				for range each {
					to := netip.AddrPortFrom(netip.MustParsePrefix(family.box).Addr(), port)
					_, err := conn.WriteTo([]byte("media"), net.UDPAddrFromAddrPort(to))
					require.NoError(t, err)
				}
			}
			counted := func(counter, packets string) bool {
				return strings.Contains(box.Run("nft", "list", "counter", "inet", "media", counter), "packets "+packets+" ")
			}
			polltest.Require(t, func() bool { return counted("taken", "10") && counted("media_flood", "20") },
				10*time.Second, 10*time.Millisecond)
		})
	}
}

func TestWhatCannotBePlanned(t *testing.T) {
	for why, spoil := range map[string]func(p *rules.Plan){
		`"a b" is not the name of a table`:      func(p *rules.Plan) { p.Table = "a b" },
		"media ports 5-4":                       func(p *rules.Plan) { p.Ports = rules.Ports{First: 5, Last: 4} },
		"0 packets a second of a port":          func(p *rules.Plan) { p.PacketsPerPort = 0 },
		"are not three":                         func(p *rules.Plan) { p.LAN.Mark = p.Tunnel.Mark },
		"lan: no mark":                          func(p *rules.Plan) { p.LAN.Mark = 0 },
		"tunnel: no interface":                  func(p *rules.Plan) { p.Tunnel.Interfaces = nil },
		"is not the name of an interface":       func(p *rules.Plan) { p.LAN.Interfaces = []string{`x" }; }`} },
		"is not an address of this side alone":  func(p *rules.Plan) { p.Tunnel.Addresses = p.LAN.Addresses },
		"lan: no socket for TPROXY":             func(p *rules.Plan) { p.LAN.Port6 = 0 },
		"lan: invalid IP is not an address of ": func(p *rules.Plan) { p.LAN.Addresses = []netip.Addr{{}} },
	} {
		p := plan()
		spoil(&p)
		text, err := p.Text()
		assert.ErrorContains(t, err, why)
		assert.Empty(t, text)
	}
}
