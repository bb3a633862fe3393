package pppoe

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestOptions(t *testing.T) {
	o := Options{
		Device: "ppp-wan0.7", Under: "wan0.7", User: `0021#0001@example.net`, Password: `a "b" \c`, MTU: 1492, Log: "/run/l",
	}
	lines := strings.Split(o.Text(), "\n")
	for _, line := range []string{
		"plugin pppoe.so", "nic-wan0.7", "ifname ppp-wan0.7", `user "0021#0001@example.net"`, `password "a \"b\" \\c"`,
		"mtu 1492", "mru 1492", `logfile "/run/l"`, "lcp-echo-interval 1", "lcp-echo-failure 3", "nodefaultroute",
		"nopersist", "ip-up-script /bin/true",
	} {
		assert.Contains(t, lines, line)
	}
	assert.NotContains(t, o.Text(), "pppoe-service")
	assert.Less(t, strings.Index(o.Text(), "plugin"), strings.Index(o.Text(), "nic-"), "the plugin knows what a card is")
	o.Service = "voice"
	assert.Contains(t, o.Text(), "pppoe-service \"voice\"\n")
}

func TestProgress(t *testing.T) {
	const connected = "Plugin pppoe.so loaded.\nPPPoE plugin from pppd 2.4.9\nPPP session is 1\n" +
		"Connected to 02:00:00:00:00:01 via interface eth0.7\nUsing interface ppp0\nConnect: ppp0 <--> eth0.7\n"
	const up = connected + "CHAP authentication succeeded\nlocal  LL address fe80::1\nremote LL address fe80::2\n" +
		"local  IP address 198.51.100.10\nremote IP address 203.0.113.1\nprimary   DNS address 192.0.2.53\n" +
		"secondary DNS address 192.0.2.54\n"
	p := Read(up)
	assert.True(t, p.Up())
	assert.True(t, p.Discovered)
	assert.True(t, p.IPv6)
	assert.Equal(t, netip.MustParseAddr("198.51.100.10"), p.Address)
	assert.Equal(t, netip.MustParseAddr("203.0.113.1"), p.Peer)
	assert.Equal(t, []netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("192.0.2.54")}, p.DNS)
	assert.Equal(t, NoFailure, p.Failure)

	for _, c := range []struct {
		log     string
		status  int
		failure Failure
		detail  string
	}{
		{"Timeout waiting for PADO packets\nUnable to complete PPPoE Discovery\n", 1, NoAnswer, ""},
		{connected + "Remote message: \x1b[2Jblocked\x00\nCHAP authentication failed\nConnection terminated.\n", 19, Refused, "[2Jblocked"},
		{connected + "PAP authentication failed\n", 19, Refused, ""},
		{connected, 19, Refused, ""},
		{"PADS: Service-Name-Error: no such\n", 1, NoService, "no such"},
		{connected + "LCP: timeout sending Config-Requests\nConnection terminated.\nModem hangup\n", 16, NoPPP, ""},
		{up + "No response to 3 echo-requests\nSerial link appears to be disconnected.\nModem hangup\n", 15, EchoLost, ""},
		{up + "LCP terminated by peer (maintenance)\nModem hangup\n", 16, PeerEnded, "maintenance"},
		{up + "Modem hangup\n", 16, Interrupted, ""},
		{"Couldn't open the /dev/ppp device: No such file\nLinux kernel does not support PPPoE\n", 4, NoKernelSupport, ""},
		{"pppd: In file x: unrecognized option 'nodefaultroute6'\n", 2, WrongOptions,
			"pppd: In file x: unrecognized option 'nodefaultroute6'"},
		{"", -1, Interrupted, ""},
	} {
		p := Read(c.log).Ended(c.status)
		assert.Equal(t, c.failure, p.Failure, "%q", c.log)
		assert.Equal(t, c.detail, p.Detail, "%q", c.log)
	}
	assert.False(t, Read("local  IP address 127.0.0.1\nlocal  IP address 0.0.0.0\nlocal  IP address x\n").Up())
}

// FuzzRead: whatever the other end sends into pppd's log.
func FuzzRead(f *testing.F) {
	f.Add("Connect: ppp0 <--> eth0\nlocal  IP address 198.51.100.10\nprimary   DNS address 192.0.2.53\n", 0)
	f.Add("Remote message: \xff\x00\nCHAP authentication failed\n", 19)
	f.Add("LCP terminated by peer (x\n", 16)
	f.Fuzz(func(t *testing.T, log string, status int) {
		p := Read(log).Ended(status)
		assert.NotEqual(t, NoFailure, p.Failure)
		assert.LessOrEqual(t, len(p.Detail), maxDetail)
		assert.LessOrEqual(t, len(p.DNS), 2)
		for _, r := range p.Detail {
			assert.True(t, r >= ' ' && r <= '~', "%q", p.Detail)
		}
		again := Read(p.Log())
		assert.Equal(t, []any{p.Discovered, p.Address, p.Peer, p.IPv6, p.DNS},
			[]any{again.Discovered, again.Address, again.Peer, again.IPv6, again.DNS})
		for _, a := range append(p.DNS, p.Address, p.Peer) {
			assert.True(t, !a.IsValid() || a.Is4() && !a.IsLoopback() && !a.IsMulticast())
		}
	})
}

// A password that is written ahead, or a release with other options, is no other session.
func TestSameSession(t *testing.T) {
	o := Options{Device: "ppp-wan0", Under: "wan0", User: "a b", Password: "x", Service: "s", MTU: 1492, Log: "/run/l"}
	other := o
	other.Password = `new "word"`
	assert.True(t, o.SameSession(other.Text()))
	assert.True(t, o.SameSession(strings.Replace(o.Text(), "lcp-echo-interval 1", "lcp-echo-interval 7\nnovelty", 1)))
	for name, change := range map[string]func(*Options){
		"device": func(o *Options) { o.Device = "ppp-wan1" }, "card": func(o *Options) { o.Under = "wan0.7" },
		"user": func(o *Options) { o.User = "a" }, "service": func(o *Options) { o.Service = "" },
		"MTU": func(o *Options) { o.MTU = 1480 }, "log": func(o *Options) { o.Log = "/run/m" },
	} {
		other := o
		change(&other)
		assert.False(t, o.SameSession(other.Text()), name)
		assert.False(t, other.SameSession(o.Text()), name)
	}
	assert.False(t, o.SameSession(""))
}
