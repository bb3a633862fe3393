package nft

import (
	"net"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/firewall"
	"ringway/qos"
	"ringway/test/netnstest"
)

func markSocket(t *testing.T, c *net.UDPConn, mark qos.Mark) {
	t.Helper()
	raw, err := c.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, int(mark))
	}))
	require.NoError(t, err)
}

// A connection goes on by the line on which it began, while the rule of that line is there; what is meant for a site
// does not follow it.
func TestConnectionsKeepTheirLine(t *testing.T) {
	t.Parallel()
	in := branch()
	in.WANs = []string{"wan0", "lte0"}
	in.Lines = []firewall.Line{{Device: "wan0", Mark: qos.LineMark(3)}, {Device: "lte0", Mark: qos.LineMark(11)}}
	w := newWorld(t, in)
	other := netnstest.New(t)
	netnstest.Veth(t, w.edge, "lte0", other, "eth0")
	for _, c := range []struct {
		n     *netnstest.NS
		lines []string
	}{
		{w.edge, []string{"addr add 203.0.113.2/24 dev lte0",
			"rule add pref 5235 fwmark 0x60/0x1e0 lookup 5346", "rule add pref 5235 fwmark 0x160/0x1e0 lookup 5345",
			"route add default via 203.0.113.1 table 5345", "route add default via 198.51.100.1 table 5346",
			"route add throw 10.1.10.0/24 table 5345", "route add throw 10.1.10.0/24 table 5346",
			"route replace default via 203.0.113.1"}},
		{other, []string{"addr add 203.0.113.1/24 dev eth0", "addr add 192.0.2.129/32 dev lo"}},
		{w.internet, []string{"addr add 192.0.2.129/32 dev lo"}},
	} {
		c.n.IP(c.lines...)
	}
	w.edge.Run("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.wan0.rp_filter=2",
		"net.ipv4.conf.lte0.rp_filter=2")
	const host, port = "192.0.2.129", 7000
	first, second := w.listen(w.internet, host, port), w.listen(other, host, port)
	phone := w.listen(w.phone, phone4, 30000)
	w.send(phone, host, port, 0)
	w.receive(second, "it begins by lte0")
	assert.Contains(t, w.edge.Run("conntrack", "-L", "-p", "udp", "--orig-port-dst", "7000"), "203.0.113.2")

	w.edge.Run("ip", "route", "replace", "default", "via", "198.51.100.1")
	w.send(phone, host, port, 0)
	w.receive(second, "and goes on by it")
	w.send(w.listen(w.phone, phone4, 30001), host, port, 0)
	w.receive(first, "another one begins by wan0")
	seen := w.edge.Run("nft", "list", "set", "inet", "witness", "seen")
	assert.Regexp(t, `"lte0" \. 7000 \. 0x00000760 `, seen, "line 11, data")

	w.edge.Run("ip", "rule", "del", "pref", "5235", "fwmark", "0x160/0x1e0")
	w.send(phone, host, port, 0) // NAT sees that the line is another one, and forgets the connection
	w.send(phone, host, port, 0)
	w.receive(first, "without the line's rule it goes on by wan0")
}
