// Package firewall is the pure plan of the table `inet ringway`: who gets which class, what
// may be forwarded, what must never leave in clear, and which queue a packet joins on the WAN.
// Want turns the config's facts into a State; State.Text is what nft(8) reads; Diff says what
// differs from the observed State. The adapter that speaks netlink is firewall/nft. Nothing
// here imports netlink, os or a clock; of the other domains only qos (class names, DSCP, marks).
// Only appliance and firewall/nft import it.
package firewall

import (
	"fmt"
	"net/netip"
	"strings"

	"ringway/qos"
)

// Table is the name of the one table that is Ringway's, of family inet.
const Table = "ringway"

// Input is what the plan is made from.
type Input struct {
	WANs       []string // network devices
	DHCP       []string // those of WANs that ask for their address
	Voice      []LAN
	Data       []LAN
	Tunnels    []Tunnel
	Classes    []qos.Class
	Priorities []Priority // empty where nothing is shaped
	Peers      []Peer     // ciphertext endpoints with a queue of their own; of two for one endpoint and class the first counts
	Downlink   Downlink   // zero where nothing is shaped inwards
	PeerQueues bool       // there may be peers later: the maps stand there empty. Else, without peers, no packet is looked up

	SiteNetworks       []netip.Prefix // every network of every site; the three below are added to it
	SiteVoiceNetworks  []netip.Prefix
	SiteDataNetworks   []netip.Prefix
	SingleSiteNetworks []netip.Prefix // of sites that have one tunnel only: its packets are told apart by ports and DSCP, whichever tunnel brings them

	LocalServices []qos.PortMatch // what the box itself serves to its LANs beside DHCP and ICMP
	Reflector     bool            // the box answers probes (RFC 8762) from sites
	Slow          []SlowWAN       // WANs where a long packet would keep calls waiting
	Missing       []Feature       // what the kernel lacks (nft.Probe); the plan does without
}

// LAN is one local network.
type LAN struct {
	Device   string
	Networks []netip.Prefix
}

// Tunnel is one of the box's tunnel devices.
type Tunnel struct {
	Class      string // voice or data
	Device     string
	ListenPort uint16
	MTU        int // largest inner packet; 0: TCP's segment size is left alone
}

// SlowWAN holds the packets of local internet's TCP to a size, as the tunnels' MTU does theirs. In bytes, IP header included; 0: any
// size. Over IPv6 never less than 1280, which every link takes (RFC 8200, section 5).
type SlowWAN struct {
	Device         string
	Sent, Received int
}

// Priority is the queue of a class on a shaped WAN.
type Priority struct {
	WAN     string
	Class   qos.ClassName
	ClassID uint32 // skb->priority, 0x10010 is tc's 1:10
}

// Peer is a ciphertext endpoint whose packets of a class go to a queue of their own.
type Peer struct {
	Endpoint netip.AddrPort
	Class    qos.ClassName
	ClassID  uint32
}

// Downlink are the queues on LANs' devices: of what comes in from WANs in clear, and of calls, which go before it.
type Downlink struct {
	LANs    []string // devices whose card has the queues, VLANs too
	CallsID uint32   // skb->priority of media and signalling, wherever they come from
	WANs    []WANQueue
}

// WANQueue is the queue on LANs of what comes in from a WAN.
type WANQueue struct {
	WAN     string
	ClassID uint32 // skb->priority
}

// Feature is a part of nftables that a kernel may lack.
type Feature string

// The features that Ringway can do without, each at a price (see Feature.Cost).
const (
	FeatureMasquerade Feature = "masquerade" // source NAT for local internet
	FeatureMSS        Feature = "mss"        // rewriting of TCP's segment size
	FeatureLimit      Feature = "limit"      // rate limits
	FeatureNAT        Feature = "nat"        // chains of type nat
	FeatureFlowLimit  Feature = "flow_limit" // a rate limit of its own for every flow
)

// Cost says in an operator's words what the lack of f means.
func (f Feature) Cost() string {
	switch f {
	case FeatureMasquerade, FeatureNAT:
		return "hosts with private IPv4 addresses have no local internet"
	case FeatureMSS:
		return "TCP through the tunnels depends on path MTU discovery, and that of local internet sends long packets on slow lines"
	case FeatureLimit:
		return "pings from the internet are not answered"
	case FeatureFlowLimit:
		return "one phone gone mad takes what all calls share"
	}
	return "unknown feature"
}

// State is the table, whole. The zero State is: no table.
type State struct {
	Present  bool     `json:"present"`
	Dormant  bool     `json:"dormant,omitempty"`  // there, but somebody switched it off; never wanted
	Counters []string `json:"counters,omitempty"` // names, sorted
	Sets     []Set    `json:"sets,omitempty"`     // sorted by name
	Chains   []Chain  `json:"chains,omitempty"`   // in the plan's order; observed: the kernel's
}

// Set is a named set, or a named map where Data is not empty.
type Set struct {
	Name     string `json:"name"`
	Type     string `json:"type"`           // nft's words: ipv4_addr . inet_service
	Data     string `json:"data,omitempty"` // nft's word: classid
	Interval bool   `json:"interval,omitempty"`
	// Size is not 0 for a set that rules fill themselves: at most so many elements, each of which goes when no packet of it came for
	// Timeout seconds. What it holds is the kernel's, and is neither read nor compared.
	Size     uint32    `json:"size,omitempty"`
	Timeout  uint32    `json:"timeout,omitempty"`
	Elements []Element `json:"elements,omitempty"` // in canonical order (Canonical)
}

// Element is one entry of a set (Key), or of a map (Key and Value), in nft's words.
type Element struct {
	Key   string `json:"key"`
	Value string `json:"value,omitempty"`
}

// Chain is a base chain where Hook is not empty, else one that rules jump to.
type Chain struct {
	Name     string `json:"name"`
	Type     string `json:"type,omitempty"` // filter, nat, route
	Hook     string `json:"hook,omitempty"`
	Priority int    `json:"priority,omitempty"`
	Policy   string `json:"policy,omitempty"` // accept, drop
	Rules    []Rule `json:"rules,omitempty"`
}

// Rule is one rule. Exprs is what the kernel runs and all that is compared; Text is the same
// in nft's words and is empty in an observed State, Handle is zero in a wanted one.
type Rule struct {
	Text   string `json:"text,omitempty"`
	Exprs  []Expr `json:"exprs"`
	Handle uint64 `json:"handle,omitempty"`
}

// String is the rule's text, or its expressions where the text is not known.
func (r Rule) String() string {
	if r.Text != "" {
		return r.Text
	}
	var b strings.Builder
	for i, e := range r.Exprs {
		if i > 0 {
			b.WriteByte(' ')
		}
		b.WriteString(e.String())
	}
	return b.String()
}

// Text is the state as a file for `nft -f`. An absent table has no text.
func (s State) Text() []string {
	if !s.Present {
		return nil
	}
	out := []string{"table inet " + Table + " {"}
	for _, c := range s.Counters {
		out = append(out, "\tcounter "+c+" { }")
	}
	for _, t := range s.Sets {
		out = append(out, "\t"+t.declaration())
	}
	// Chains are declared before rules jump to them: nft -f takes them in any order, a reader too.
	for _, c := range s.Chains {
		out = append(out, "\tchain "+c.Name+" {")
		if c.Hook != "" {
			out = append(out, "\t\t"+c.spec())
		}
		for _, r := range c.Rules {
			out = append(out, "\t\t"+r.String())
		}
		out = append(out, "\t}")
	}
	return append(out, "}")
}

func (c Chain) spec() string {
	return fmt.Sprintf("type %s hook %s priority %d; policy %s;", c.Type, c.Hook, c.Priority, c.Policy)
}

func (t Set) kind() string {
	if t.Data != "" {
		return "map"
	}
	return "set"
}

func (t Set) spec() string {
	s := "type " + t.Type
	if t.Data != "" {
		s += " : " + t.Data
	}
	s += ";"
	if t.Interval {
		s += " flags interval;"
	}
	if t.Size > 0 {
		s += fmt.Sprintf(" flags dynamic,timeout; timeout %ds; size %d;", t.Timeout, t.Size)
	}
	return s
}

func (t Set) declaration() string {
	s := t.kind() + " " + t.Name + " { " + t.spec()
	if len(t.Elements) > 0 {
		s += " elements = { " + t.words(t.Elements) + " };"
	}
	return s + " }"
}

func (t Set) words(elems []Element) string {
	out := make([]string, len(elems))
	for i, e := range elems {
		out[i] = e.Key
		if t.Type == "ifname" {
			out[i] = fmt.Sprintf("%q", e.Key)
		}
		if e.Value != "" {
			out[i] += " : " + e.Value
		}
	}
	return strings.Join(out, ", ")
}
