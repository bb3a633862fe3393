// Package qos is the class model of a branch's traffic and the pure plan of the
// WAN's queues: rates, shares, the HTB tree and its difference from what the
// kernel holds. The adapter that speaks netlink is qos/tc; nothing here imports
// netlink, os or a clock, and every package that needs a class's name, a DSCP or
// the layout of the mark takes it from here.
package qos

import (
	"fmt"
	"strings"
	"time"
)

// ClassName names one of the four classes of traffic (docs/packet-path.md, "Classes").
type ClassName string

// The classes, from the most to the least urgent.
const (
	Media      ClassName = "media"      // RTP and RTCP of calls
	Signalling ClassName = "signalling" // SIP and what controls calls
	Data       ClassName = "data"       // everything else
	Background ClassName = "background" // what yields to everything else (RFC 8622 LE, CS1)
)

// ClassNames lists the classes in order of urgency.
var ClassNames = []ClassName{Media, Signalling, Data, Background}

// DSCP is a differentiated services code point (RFC 2474), 0 to 63: the upper six
// bits of the IPv4 TOS or IPv6 traffic class octet.
type DSCP uint8

// Code points by their standard names (RFC 2474, 2597, 3246, 5865, 8622).
var dscpNames = map[string]DSCP{
	"df": 0, "cs0": 0, "le": 1, "cs1": 8, "af11": 10, "af12": 12, "af13": 14,
	"cs2": 16, "af21": 18, "af22": 20, "af23": 22, "cs3": 24, "af31": 26, "af32": 28, "af33": 30,
	"cs4": 32, "af41": 34, "af42": 36, "af43": 38, "cs5": 40, "va": 44, "ef": 46, "cs6": 48, "cs7": 56,
}

// ParseDSCP reads a code point by name (any case: EF, cs3, af31) or number 0-63.
func ParseDSCP(s string) (DSCP, error) {
	if d, ok := dscpNames[strings.ToLower(s)]; ok {
		return d, nil
	}
	var n int
	if _, err := fmt.Sscanf(s, "%d", &n); err == nil && n >= 0 && n <= 63 && fmt.Sprint(n) == s {
		return DSCP(n), nil
	}
	return 0, fmt.Errorf("%q is no DSCP (allowed: EF, VA, CS0-CS7, AF11-AF43, DF, LE or 0-63)", s)
}

// String gives the standard name, or the number where there is none.
func (d DSCP) String() string {
	for _, n := range []string{"df", "le", "cs1", "af11", "af12", "af13", "cs2", "af21", "af22", "af23", "cs3",
		"af31", "af32", "af33", "cs4", "af41", "af42", "af43", "cs5", "va", "ef", "cs6", "cs7"} {
		if dscpNames[n] == d {
			return strings.ToUpper(n)
		}
	}
	return fmt.Sprint(uint8(d))
}

// MarshalText is String: in JSON a list of code points is a list of names.
func (d DSCP) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText is ParseDSCP.
func (d *DSCP) UnmarshalText(b []byte) (err error) {
	*d, err = ParseDSCP(string(b))
	return err
}

// TOS is the octet that carries d with ECN bits zero (RFC 2474, RFC 3168).
func (d DSCP) TOS() uint8 { return uint8(d) << 2 }

// Protocol is the transport a PortMatch looks at.
type Protocol string

// The transports.
const (
	UDP Protocol = "udp"
	TCP Protocol = "tcp"
)

// PortMatch puts what the phones (hosts of a voice network) send to, or serve on, a port into a class.
type PortMatch struct {
	Protocol Protocol
	Low      uint16 // first port, 1-65535
	High     uint16 // last port, equal to Low for a single one
}

// String prints the form of the config: udp/5060 or udp/16384-32767.
func (p PortMatch) String() string {
	if p.Low == p.High {
		return fmt.Sprintf("%s/%d", p.Protocol, p.Low)
	}
	return fmt.Sprintf("%s/%d-%d", p.Protocol, p.Low, p.High)
}

// Class is one class as the config sets it.
type Class struct {
	Name  ClassName
	DSCP  []DSCP // inner code points it is known by, believed only from voice networks
	Outer DSCP   // what the packet carries on the WAN outside a tunnel, and towards the phones
	// guaranteed share of the shaped uplink, percent, 1-95; media's is also its ceiling (the voice budget)
	Share int
	Limit time.Duration // longest queue at the class's rate before packets are dropped
	Ports []PortMatch   // services by port, to or from voice networks
	// FlowLimit is the most that one flow may send out of the branch, IP headers included; 0 = no bound. Media's
	// alone: a call is a flow.
	FlowLimit BitRate
	// Admission: flows to a site are admitted while its voice budget lasts, and refused as a whole beyond it.
	// Media's alone.
	Admission bool
}
