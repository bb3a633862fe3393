// Package firewall plans the nf_tables table `inet ringway`: which class a packet gets, what is forwarded,
// what must never leave unencrypted, and which queue a packet joins on the WAN. Want turns facts of the
// config into a State; State.Text is what nft(8) reads; Diff compares it with the observed State. The plan
// is pure: the netlink adapter is firewall/nft.
package firewall

import (
	"fmt"
	"net/netip"
	"strings"

	"ringway/qos"
)

// Table is the name of Ringway's only table, of family inet.
const Table = "ringway"

// Input is what the plan is made from.
type Input struct {
	WANs  []string // network devices
	DHCP  []string // those of WANs that get addresses from their network
	Voice []LAN
	Data  []LAN
	// Parents are network cards that carry VLANs of ours and no untagged network.
	Parents []string

	// Subnets says that LANs may have parts of prefixes that are delegated to WANs (LAN.Delegated); Elsewhere are those
	// prefixes that must not be a source on a WAN.
	Subnets   bool
	Elsewhere []Elsewhere

	Reach     []Reach      // private addresses on the WANs; without an entry a WAN has none
	Endpoints []netip.Addr // of sites as configured, which the box itself may reach over any WAN

	// Lines are the marks of the WANs, by which connections go on where they began; empty with one WAN.
	Lines []Line
	// Metered are WANs that carry calls only: media, signalling, the voice tunnel and what the box itself sends.
	Metered []string

	Tunnels []Tunnel
	Classes []qos.Class

	Priorities []Priority // empty where nothing is shaped
	// Peers are ciphertext endpoints with a queue of their own. Of two with the same endpoint and class,
	// the first counts. PeerQueues says that there may be some later, so that their maps are declared,
	// empty; without either, no packet is looked up.
	Peers      []Peer
	PeerQueues bool
	Downlink   Downlink // zero where the downlink is not shaped

	SiteNetworks      []netip.Prefix // every network of every site; the three below are added to it
	SiteVoiceNetworks []netip.Prefix
	SiteDataNetworks  []netip.Prefix
	// SiteFlatNetworks have phones and everything else in one. They are among SingleSiteNetworks, too.
	SiteFlatNetworks []netip.Prefix
	// SingleSiteNetworks are those of sites with one tunnel only. Their packets are classified by port and
	// DSCP, whichever tunnel they arrive from.
	SingleSiteNetworks []netip.Prefix

	LocalServices []qos.PortMatch // what the box serves to its LANs beside DHCP and ICMP
	Reflector     bool            // the box answers probes (RFC 8762) from sites
	Slow          []SlowWAN       // WANs where a full-size packet would delay calls
	ShortPaths    []ShortPath     // sites that take shorter packets than the tunnels do
	Missing       []Feature       // what the kernel lacks (nft.Probe); the plan does without

	Dynamic []DynamicSet // sets that components fill; without any, no rule looks one up
	// Signalling needs the sets of SignallingSets and, to open holes, of HoleSets in Dynamic.
	Signalling Signalling
	// Terminated is media that this box itself receives and sends. It needs Signalling, by which calls are known.
	Terminated Terminated
	Boxes      []netip.Addr // of sites, with which keys of media are agreed
}

// Line is how the connections of a WAN are known.
type Line struct {
	Device string
	Mark   qos.Mark // within MarkLineMask
}

// LAN is one local network.
type LAN struct {
	Device    string
	Networks  []netip.Prefix
	Delegated []netip.Prefix // those of Networks that are for the internet alone
}

// Elsewhere are prefixes that are delegated to other WANs than this one.
type Elsewhere struct {
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

// SlowWAN limits the packet size of TCP between LANs and the internet on a slow WAN, in bytes including the IP
// header; 0: no limit. Over IPv6 the limit is at least 1280, which every link takes (RFC 8200, section 5).
type SlowWAN struct {
	Device         string
	Sent, Received int
}

// ShortPath limits the packet size of TCP to and from networks of sites, in bytes including the IP header.
type ShortPath struct {
	MTU      int // each has another
	Networks []netip.Prefix
}

// set is the name of the pair of sets with the networks.
func (p ShortPath) set() string { return fmt.Sprintf("short%d_", p.MTU) }

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

// Downlink describes the queues on LAN devices for what arrives from WANs unencrypted, and for calls, which
// go first.
type Downlink struct {
	LANs    []string // devices whose card has the queues, VLANs included
	CallsID uint32   // skb->priority of media and signalling, wherever they come from
	WANs    []WANQueue
}

// WANQueue is the queue on LANs for what arrives from a WAN.
type WANQueue struct {
	WAN     string
	ClassID uint32 // skb->priority
}

// Feature is a part of nftables that a kernel may lack.
type Feature string

// The features that Ringway can do without, each at a cost (Feature.Cost).
const (
	FeatureMasquerade Feature = "masquerade" // source NAT for local internet
	FeatureMSS        Feature = "mss"        // rewriting of TCP's segment size
	FeatureLimit      Feature = "limit"      // rate limits
	FeatureNAT        Feature = "nat"        // chains of type nat
	FeatureFlowLimit  Feature = "flow_limit" // a rate limit for each flow
	FeatureTProxy     Feature = "tproxy"     // delivery of others' packets to a socket of this box
	FeatureFib        Feature = "fib"        // look-up of a source address
	FeatureReject     Feature = "reject"     // an answer to who sends what is dropped
)

// Cost says what the lack of f means for the operator.
func (f Feature) Cost() string {
	switch f {
	case FeatureMasquerade, FeatureNAT:
		return "hosts with private IPv4 addresses have no local internet"
	case FeatureMSS:
		return "TCP through the tunnels depends on path MTU discovery, and slow WANs carry full-size packets"
	case FeatureLimit:
		return "pings from the internet are not answered"
	case FeatureFlowLimit:
		return "one misbehaving phone can starve all calls, TFTP's answers do not reach phones, and media in class data " +
			"is not found"
	case FeatureFib:
		return "what NAT leaves private is not dropped, and hosts reach a WAN's gateway as the box itself does"
	case FeatureReject:
		return "hosts wait for a timeout where a WAN does not lead to a private address"
	case FeatureTProxy:
		return "SIP is forwarded unread, and media is known by its DSCP alone; with srtp: require there are no calls"
	}
	return "unknown feature"
}

// State is the whole table. The zero State means that there is none.
type State struct {
	Present  bool     `json:"present"`
	Dormant  bool     `json:"dormant,omitempty"`  // present, but switched off by somebody; never wanted
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
	// Size is not 0 for a set that rules or, where Owned, a component fills: at most so many elements, each of
	// which goes Timeout seconds after its last packet (rules) or sooner (Owned). Its elements are neither read
	// nor compared.
	Size     uint32    `json:"size,omitempty"`
	Timeout  uint32    `json:"timeout,omitempty"`
	Owned    bool      `json:"owned,omitempty"`    // its elements are a component's (DynamicSet)
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
	if words := strings.Split(t.Type, " . "); words[len(words)-1] == "integer" {
		s = "typeof " + typeofMediaFlow(t.Type) // nft has no other way to declare a number of some bits
	}
	if t.Data != "" {
		s += " : " + t.Data
	}
	s += ";"
	var flags []string
	if t.Interval {
		flags = append(flags, "interval")
	}
	switch {
	case t.Owned:
		flags = append(flags, "timeout")
	case t.Size > 0:
		flags = append(flags, "dynamic", "timeout")
	}
	if flags != nil {
		s += " flags " + strings.Join(flags, ",") + ";"
	}
	if t.Size > 0 {
		s += fmt.Sprintf(" timeout %ds; size %d;", t.Timeout, t.Size)
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
