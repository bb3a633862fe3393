package vm

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/lease"
	"ringway/test/netnstest"
	"ringway/test/polltest"
)

// A WAN in a VLAN: calls, data and ARP have their priority in the tag, nothing untagged leaves, and who does not tag
// reaches nothing. Then the same WAN with a lease.
//
//	phone, pc -- berlin wan0.7 198.51.100.2 -- wan0.7 198.51.100.3 munich -- farphone, farpc
func TestAWANInAVLAN(t *testing.T) {
	inGuest(t)
	const priorities = "{media: 5, signalling: 3, data: 1, control: 6}"
	inVLAN := func() map[string]string {
		return map[string]string{"wan[wan0].vlan": "7", "wan[wan0].priorities": priorities}
	}
	b := newBranches(t, inVLAN(), inVLAN())
	before := b.berlin.state()
	b.munich.start()
	b.berlin.start()
	assert.Empty(t, b.berlin.status().Problems)
	links := b.berlin.run("ip", "-d", "link", "show", "wan0.7")
	assert.Contains(t, links, "802.1Q id 7")
	assert.Contains(t, links, "0:6")
	assert.Contains(t, b.berlin.run("tc", "class", "show", "dev", "wan0.7"), "overhead 4", "the tag is counted")
	assert.Equal(t, "nothing to change\n", b.berlin.run("ringway", "reload"))

	streams := b.streams()
	b.munich.run("ip", "neigh", "flush", "dev", "wan0.7")
	tags := capturedTags(t, b.munich.NS, "wan0", 300)
	t.Logf("frames from berlin: %v", tags)
	assert.NotZero(t, tags["7 p 5 IPv4"], "calls")
	assert.NotZero(t, tags["7 p 1 IPv4"], "data")
	for tag := range tags {
		assert.Contains(t, []string{"7 p 5 IPv4", "7 p 1 IPv4", "7 p 3 IPv4", "7 p 6 ARP", "7 p 6 IPv6", "7 p 1 IPv6"}, tag)
	}

	// An untagged neighbour reaches no service of the box.
	b.munich.run("ip", "addr", "add", "198.51.100.77/32", "dev", "wan0")
	card := linkLocal(t, b.berlin.try, "wan0")
	_, err := b.munich.try("ping", "-n", "-q", "-c", "1", "-W", "2", card+"%wan0")
	assert.Error(t, err)
	assert.Positive(t, b.berlin.status().Drops["parent_lan"].Packets)

	index := b.berlin.run("cat", "/sys/class/net/wan0.7/ifindex")
	lossless(t, "kill -9 and start of the daemon, a WAN in a VLAN", streams, func() {
		b.berlin.kill()
		b.berlin.start()
	})
	assert.Equal(t, index, b.berlin.run("cat", "/sys/class/net/wan0.7/ifindex"))
	b.berlin.stop()
	b.munich.stop()
	assert.Equal(t, before, b.berlin.state())
}

// A lease is asked for in the VLAN, with the priority of what has no class.
func TestALeaseInAVLAN(t *testing.T) {
	inGuest(t)
	e, provider := newEdge(t, "berlin"), netnstest.New(t)
	netnstest.Veth(t, e.NS, "wan0", provider, "eth0")
	for _, name := range []string{"voice0", "data0"} {
		netnstest.Veth(t, e.NS, name, netnstest.New(t), "eth0")
	}
	provider.IP(
		"link add link eth0 name eth0.7 type vlan id 7", "link set eth0.7 up", "addr add 192.0.2.1/24 dev eth0.7",
	)
	server := provider.Command("dnsmasq", "--keep-in-foreground", "--port=0", "--interface=eth0.7", "--bind-interfaces",
		"--dhcp-range=192.0.2.10,192.0.2.20,1h", "--leasefile-ro", "--conf-file=/dev/null", "--user=root", "--pid-file=")
	require.NoError(t, server.Start())
	t.Cleanup(func() { _ = server.Process.Kill(); _ = server.Wait() })

	e.write("ringway.yaml", variant(t, "branch-berlin.yaml", nil, map[string]string{
		"wan[wan0].vlan": "7", "wan[wan0].priorities": "{control: 6}", "wan[wan0].address": "dhcp", "wan[wan0].gateway": "",
		"sites[munich].public_key": otherKey(t),
	}))
	asked := make(chan map[string]int, 1)
	go func() { asked <- capturedTags(t, provider, "eth0", 3) }()
	e.start()
	var st struct {
		Leases lease.Status `json:"leases"`
	}
	polltest.Require(t, func() bool {
		out, err := e.try("ringway", "status", "--json")
		return err == nil && json.Unmarshal([]byte(out), &st) == nil && len(st.Leases) == 1 && st.Leases[0].Address.IsValid()
	}, time.Minute, 100*time.Millisecond, "no lease: %+v", &st)
	assert.Equal(t, "wan0.7", st.Leases[0].Interface)
	polltest.Require(t, func() bool {
		return strings.Contains(e.run("ip", "route", "show", "default"), "via 192.0.2.1 dev wan0.7")
	}, 20*time.Second, 100*time.Millisecond)
	for tag := range <-asked {
		if strings.Contains(tag, "IPv6") {
			continue // the kernel's own, when a device comes up
		}
		assert.True(t, strings.HasPrefix(tag, "7 p 6 "), "%s", tag)
	}
	e.stop()
}
