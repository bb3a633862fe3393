package plan

import (
	"fmt"
	"strings"

	"ringway/appliance/config"
	"ringway/qos"
	"ringway/sip/abuse"
)

// SignallingRemarks say what sip.mode: enforce closes, and what it leaves open.
func SignallingRemarks(cfg *config.Config) (out []string) {
	if cfg.SIP.Mode != config.SIPEnforce {
		return nil
	}
	say := func(format string, args ...any) { out = append(out, "# "+fmt.Sprintf(format, args...)) }
	say("sip.mode: enforce closes UDP from a port of 1024 and up to another one, between voice networks and sites, data " +
		"networks and WANs, unless a call needs it")
	say("open without a call, towards voice networks: %s", udpPorts(cfg, qos.Media, qos.Signalling))
	say("open without a call, from voice networks: %s", udpPorts(cfg, qos.ClassNames...))
	for _, a := range cfg.SIP.Allow {
		say("open without a call: %s, %s", a.Network, words(a.Ports))
	}
	if cfg.SIP.Unread {
		say("sip.unread: allow: what voice networks mark as media passes, with its answers")
	} else {
		say("sip.unread: deny: calls that cannot be read (%s) have no media", unreadTLS(cfg))
	}
	if cfg.SIP.Closed {
		say("sip.on_failure: closed: without a process that reads signalling, no new call has media")
	}
	if cfg.SIP.Abuse == "block" {
		sayToll(say, "a phone's user", &cfg.SIP.AbuseLimits.Phones.Block)
		sayToll(say, "a user of a PBX", &cfg.SIP.AbuseLimits.PBX.Block)
	}
	return out
}

// sayToll says for what new calls outside are refused.
func sayToll(say func(string, ...any), who string, t *abuse.Toll) {
	var limits []string
	add := func(is bool, format string, args ...any) {
		if is {
			limits = append(limits, fmt.Sprintf(format, args...))
		}
	}
	add(t.PerMinute > 0, "more than %d new ones in a minute", t.PerMinute)
	add(t.AtOnce > 0, "more than %d at once to one country", t.AtOnce)
	add(t.Abroad > 0, "after %g minutes abroad in a day", t.Abroad.Minutes())
	add(t.OutOfHours, "abroad out of hours")
	add(t.Premium, "to premium numbers")
	if len(limits) > 0 {
		say("sip.toll: new calls outside of %s are refused: %s", who, strings.Join(limits, ", "))
	}
}

// unreadTLS says which SIP over TLS cannot be read.
func unreadTLS(cfg *config.Config) string {
	var read []string
	for _, s := range cfg.SIP.TLS {
		read = append(read, s.Names...)
	}
	if len(read) == 0 {
		return "SIP over TLS"
	}
	return "SIP over TLS but with " + strings.Join(read, ", ")
}

// udpPorts are the UDP ports of classes, and those of SIP, from 1024 up.
func udpPorts(cfg *config.Config, classes ...qos.ClassName) string {
	var all []qos.PortMatch
	add := func(ports []qos.PortMatch) {
		for _, p := range ports {
			if p.Protocol == qos.UDP && p.High >= 1024 {
				all = append(all, p)
			}
		}
	}
	add(cfg.SIP.Ports)
	for _, s := range cfg.SIP.Servers {
		add(s.Ports)
	}
	for _, c := range classes {
		add(cfg.Class(c).Ports)
	}
	return words(all)
}

// words are ports, each once.
func words(all []qos.PortMatch) string {
	var out []string
	seen := map[qos.PortMatch]bool{}
	for _, p := range all {
		if !seen[p] {
			seen[p] = true
			out = append(out, p.String())
		}
	}
	if len(out) == 0 {
		return "nothing"
	}
	return strings.Join(out, ", ")
}
