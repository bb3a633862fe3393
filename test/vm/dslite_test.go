package vm

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"ringway/test/netnstest"
	"ringway/test/polltest"
)

// A line as many homes have it: IPv6 of its own, and IPv4 through a home router that takes it to a translator of the
// provider's inside IPv6 (DS-Lite, RFC 6333), so that 40 bytes of each packet are the provider's. The far end has both
// families. Calls go by IPv6; it fails, and they go on by DS-Lite, in packets that fit.
//
//	phone, pc -- berlin wan0 -- eth0 home eth1 ==== eth0 provider eth1 -- wan0 munich -- farphone, farpc
//	     192.168.178.20 -- 192.168.178.1    (IPv4 in IPv6)   203.0.113.9 -- 192.0.2.2
func TestALineWithDSLite(t *testing.T) {
	inGuest(t)
	b := newBranches(t, nil, nil)
	home, provider := netnstest.New(t), netnstest.New(t)
	b.berlin.run("ip", "link", "del", "wan0") // and its other end
	netnstest.Veth(t, b.berlin.NS, "wan0", home, "eth0")
	netnstest.Veth(t, home, "eth1", provider, "eth0")
	netnstest.Veth(t, provider, "eth1", b.munich.NS, "wan0")
	for _, x := range []struct {
		ns    *netnstest.NS
		lines string
	}{
		{home, `ip addr add 192.168.178.1/24 dev eth0
ip addr add 2001:db8:a::1/64 dev eth0 nodad
ip addr add 2001:db8:b::2/64 dev eth1 nodad
ip -6 route add default via 2001:db8:b::1
ip link add aftr type ip6tnl local 2001:db8:b::2 remote 2001:db8:b::1 mode ipip6 encaplimit none dev eth1
ip link set aftr mtu 1460 up
ip route add default dev aftr
sysctl -qw net.ipv4.ip_forward=1
sysctl -qw net.ipv6.conf.all.forwarding=1`},
		{provider, `ip addr add 2001:db8:b::1/64 dev eth0 nodad
ip addr add 2001:db8:c::1/64 dev eth1 nodad
ip addr add 192.0.2.1/24 dev eth1
ip addr add 203.0.113.9/32 dev lo
ip -6 route add 2001:db8:a::/64 via 2001:db8:b::2
ip link add b4 type ip6tnl local 2001:db8:b::1 remote 2001:db8:b::2 mode ipip6 encaplimit none dev eth0
ip link set b4 mtu 1460 up
ip route add 192.168.178.0/24 dev b4
sysctl -qw net.ipv4.ip_forward=1
sysctl -qw net.ipv6.conf.all.forwarding=1
nft add table ip nat
nft add chain ip nat post { type nat hook postrouting priority srcnat ; }
nft add rule ip nat post ip saddr 192.168.178.0/24 oifname eth1 snat to 203.0.113.9`},
	} {
		for line := range strings.Lines(x.lines) {
			w := strings.Fields(line)
			x.ns.Run(w[0], w[1:]...)
		}
	}
	b.berlin.write("ringway.yaml", variant(t, "branch-berlin.yaml", nil, map[string]string{
		"wan[wan0].address":        `[192.168.178.20/24, "2001:db8:a::20/64"]`,
		"wan[wan0].gateway":        `[192.168.178.1, "2001:db8:a::1"]`,
		"sites[munich].public_key": b.munich.key.Public().String(),
		"sites[munich].endpoint":   `["2001:db8:c::2", 192.0.2.2]`,
	}))
	b.munich.write("ringway.yaml", variant(t, "branch-munich.yaml", nil, map[string]string{
		"wan[wan0].address": `[192.0.2.2/24, "2001:db8:c::2/64"]`, "wan[wan0].gateway": `[192.0.2.1, "2001:db8:c::1"]`,
		"sites[berlin].public_key": b.berlin.key.Public().String(), "sites[berlin].endpoint": "",
	}))
	b.munich.start()
	b.berlin.start()
	streams := b.streams()
	text := b.berlin.run("ringway", "paths", "munich")
	assert.Regexp(t, `munich +voice +\[2001:db8:c::2\]:51820 `, text)
	assert.Regexp(t, regexp.MustCompile(`2001:db8:c::2 +yes +up `), text)

	// The provider's IPv6 to the far end fails. What carries DS-Lite is another part of it.
	provider.Run("ip", "-6", "addr", "del", "2001:db8:c::1/64", "dev", "eth1")
	for _, s := range streams {
		assert.True(t, s.Arrives(time.Minute), "goes on by DS-Lite")
	}
	// Of the 1460 bytes that the line takes a message fills whole blocks of 16.
	fits := regexp.MustCompile(`192\.0\.2\.2 +yes +up +\S+ ms +14[45]\d\n`)
	if !polltest.Until(func() bool {
		text = b.berlin.run("ringway", "paths", "munich")
		return fits.MatchString(text)
	}, time.Minute, time.Second) {
		t.Errorf("what the line takes is not found:\n%s", text)
	}
	routes := b.berlin.run("ip", "-4", "route", "show", "10.2.20.0/24", "table", "all")
	assert.Regexp(t, "rw-data .* mtu 13[67]", routes, "of the tunnel, in packets that need no fragments")

	// A full packet of a PC in each direction, which may not be fragmented: it is told what fits, and then passes.
	for _, x := range []struct {
		ns *netnstest.NS
		to string
	}{{b.pc, "10.2.20.9"}, {b.farpc, "10.1.20.9"}} {
		polltest.Assert(t, func() bool {
			_, err := x.ns.Try("ping", "-n", "-c", "1", "-W", "2", "-M", "want", "-s", "1472", x.to)
			return err == nil
		}, 30*time.Second, 100*time.Millisecond, "no full packet to %s", x.to)
	}
	for _, s := range streams {
		assert.True(t, s.Arrives(30*time.Second))
	}
	b.berlin.stop()
	b.munich.stop()
}
