package firewall

import (
	"slices"

	"ringway/qos"
)

// unreadSignalling is signalling that the relay does not read, by its registered ports or, for SIP over WebSocket,
// by those of common servers. On ports 80 and 443 it looks like any page.
var unreadSignalling = []struct {
	name  string
	ports []qos.PortMatch
}{
	{"sip_tls", portsOf(qos.TCP, 5061)},
	{"sip_websocket", portsOf(qos.TCP, 5066, 7443, 8088, 8089)}, // FreeSWITCH: 5066 and 7443; Asterisk: 8088 and 8089
	{"sccp", portsOf(qos.TCP, 2000, 2443)},                      // 2443: over TLS
	{"mgcp", portsOf(qos.UDP, 2427, 2727)},                      // RFC 3435, section 3.1.3: gateway, call agent
	{"h323", append(portsOf(qos.TCP, 1720), portsOf(qos.UDP, 1719)...)},
}

func portsOf(proto qos.Protocol, numbers ...uint16) (all []qos.PortMatch) {
	for _, n := range numbers {
		all = append(all, qos.PortMatch{Protocol: proto, Low: n, High: n})
	}
	return all
}

const seenPrefix = "seen_"

// UnreadSignalling are the names of the protocols that are counted where SIP is taken.
func UnreadSignalling() (names []string) {
	for _, u := range unreadSignalling {
		names = append(names, u.name)
	}
	return names
}

// SeenCounter names the counter of a protocol of UnreadSignalling.
func SeenCounter(protocol string) string { return seenPrefix + protocol }

func seenCounters() (names []string) {
	for _, n := range UnreadSignalling() {
		names = append(names, SeenCounter(n))
	}
	return names
}

// seen counts connections from voice networks that are signalling by their port, and that nobody reads. It comes
// before what enforce drops. A port that the config says is SIP's is not another protocol's.
func (p *plan) seen() []Rule {
	if p.Signalling.Mode == "" {
		return nil
	}
	var rules []Rule
	for _, u := range unreadSignalling {
		for _, m := range u.ports {
			if !slices.Contains(p.Signalling.Ports, m) {
				rules = append(rules, rule(portIs(m.Protocol, "dport", m.Low), counter(SeenCounter(u.name)), leave))
			}
		}
	}
	p.chain("seen", rules)
	return one(iifIn("voice_lan"), ctState("new"), jump("seen"))
}
