// Package config turns the one config file into validated values: file, YAML tree, raw structs, then the types
// that the domains own. It reports every problem at once, with file and line.
package config

import (
	"net/netip"
	"slices"
	"time"

	"ringway/appliance/secrets"
	"ringway/qos"
	"ringway/routing"
	"ringway/sip/abuse"
	"ringway/srtp/keys/channel"
	"ringway/srtp/offer"
	"ringway/srtp/suite"
	"ringway/tunnel"
)

// Config is a valid configuration. Every value has its unit as a type and its default filled in.
type Config struct {
	Path  string // of the file, absolute
	Site  string // this box's own name
	WANs  []WAN
	Voice []routing.LAN
	// LANSRTP is how much voice and data networks need SRTP, by device; never Require for data.
	LANSRTP map[string]offer.Level
	Data    []routing.LAN
	KeyFile string // absolute, or relative to the config file's folder and made absolute
	// PublicKey is this box's own; zero where the key file was not read (no permission, WithoutKeyFiles).
	PublicKey tunnel.PublicKey
	// IdentityFile is that of this box's identity for the key channel between boxes, "" where no site has one; Identity is
	// its public half, as PublicKey is.
	IdentityFile string
	Identity     channel.PublicKey
	Tunnels      map[tunnel.Class]tunnel.Settings
	AutoMTU      map[tunnel.Class]bool // mtu: auto; Tunnels then has what it means where every interface takes 1500 bytes
	Sites        []Site                // in the file's order
	Classes      []qos.Class           // in order of urgency, all four
	SIP          SIP
	Records      Records
	Control      Control
	Machine      Machine
	Warnings     []Problem // what is allowed but deserves a word
}

// WAN is an uplink: how it is addressed and how fast it is.
type WAN struct {
	routing.Upstream
	qos.Line
	LinkMTU       int            // longest packet that the link layer carries; 0: what the interface takes
	ShapeDownlink bool           // what arrives over it in clear is limited to the downlink on the LANs
	Reach         []netip.Prefix // private addresses beyond it that anybody here may reach
	// a queue that somebody else made on the interface, or on a LAN's for the downlink, is replaced, and given
	// back at stop
	TakeOver    bool
	DHCPOptions []DHCPOption // sent with every message of the DHCP client
	Targets     []netip.Addr // that answer pings while the line delivers; empty: it is judged by its carrier alone
	Volume      *Volume      // `metered`; nil: its volume does not count
	// PrefixBits is the length of the prefix that is asked for by DHCPv6, for the LANs; 0: none is.
	PrefixBits   int
	DHCP6Address bool // an address is asked for by DHCPv6

	Tags  *Tags  // priorities in the tag (802.1p); nil: the kernel's 0
	PPPoE *PPPoE // nil: none
}

// Volume is what a line whose volume counts may carry. It carries calls only.
type Volume struct {
	Budget  uint64 // bytes a month, in both directions together; 0: not known
	FromDay int    // of the month, 1 to 28, on which it begins
}

// Tags are the priorities (802.1p, 0-7) in the tag of what leaves by a VLAN.
type Tags struct {
	Classes map[qos.ClassName]uint8
	Control uint8 // of what has no class: ARP, DHCP's broadcasts, PPPoE's own messages
}

// PPPoE is a session that pppd dials.
type PPPoE struct {
	User         string
	PasswordFile string // absolute, or relative to the config file's folder and made absolute
	Service      string // name of the provider's service; "": any
	MTU          int    // bytes of an IP packet
}

// DHCPOption is an option of DHCPv4 that a provider asks for, as it is sent.
type DHCPOption struct {
	Code  uint8
	Value []byte
}

// Site is another branch: its tunnels, and what its line carries.
type Site struct {
	tunnel.Site
	Downlink qos.BitRate // 0 = not known: what is sent to it is bounded by the uplink alone
	Copies   tunnel.CopiesWhen

	SRTP offer.Level
	// Identity is that of its box, and Box where that is; zero: it is no Ringway, or no keys are agreed with it.
	Identity channel.PublicKey
	Box      netip.Addr
}

// Class is the class of that name.
func (cfg *Config) Class(n qos.ClassName) qos.Class {
	i := slices.IndexFunc(cfg.Classes, func(c qos.Class) bool { return c.Name == n })
	return cfg.Classes[i] // validation fills in all four
}

// TunnelSites are the sites as tunnels see them.
func (cfg *Config) TunnelSites() []tunnel.Site {
	sites := make([]tunnel.Site, len(cfg.Sites))
	for i, s := range cfg.Sites {
		sites[i] = s.Site
	}
	return sites
}

// SIP says whether the signalling of calls is read, and what follows from it.
type SIP struct {
	Mode    SIPMode
	Unread  bool            // Enforce: media of calls that are not read passes by its DSCP
	Closed  bool            // Enforce: what is closed stays closed while nothing reads signalling
	Ports   []qos.PortMatch // of signalling, whatever the address
	Servers []SIPServer
	Allow   []SIPAllow

	Emergency []string // numbers that always pass
	Prefixes  []string // that a PBX wants dialled before them

	// Messages a second that one address may send: one of a voice network, and any other.
	PhoneLimit, ServerLimit int

	Country string // own country code; "": not known

	TLS      []secrets.ServerFiles // servers whose TLS is read
	TLSPorts []uint16              // of Ports, where TLS is spoken

	Media Media

	Abuse       string       // off; warn: it is reported; block: sources are banned as well, with Enforce
	AbuseLimits abuse.Limits // without Country, PhoneLimit and ServerLimit
}

// Media is how media is encrypted that the box terminates, where srtp is not off.
type Media struct {
	Ports   qos.PortMatch // of this box's addresses in LANs, UDP; the first is even
	Minimum suite.Suite
	Methods []offer.Keying // SDES and DTLS, the preferred first
	// Of keys between boxes, whichever comes first.
	RotateEvery   time.Duration
	RotatePackets uint64

	ClearSRTCP       bool // is taken where the other end asks for it
	RequireEmergency bool // require holds for emergency calls, too
	PacketsPerPort   int  // a second; more is dropped
}

// Records says what is kept of calls.
type Records struct {
	Privacy string        // mask: numbers lose their last three digits; show
	Keep    time.Duration // of records

	HEP   netip.AddrPort // Homer server; invalid: none
	HEPID uint32         // capture agent

	Recording bool // what is said in a call may be written to a file (ringway calls pcap --with-sound)
}

// SIPMode is what Ringway does with the signalling of calls.
type SIPMode string

// The modes.
const (
	SIPOff     SIPMode = "off"     // it is forwarded like everything else
	SIPObserve SIPMode = "observe" // it is read; media gets its class; nothing is blocked
	SIPEnforce SIPMode = "enforce" // media passes only as a call needs it
)

// SIPServer is a PBX or a proxy with ports of its own.
type SIPServer struct {
	Name      string
	Addresses []netip.Addr
	Ports     []qos.PortMatch
	TLSPorts  []uint16 // of Ports, where TLS is spoken
}

// SIPAllow is UDP between voice networks and another network that needs no call.
type SIPAllow struct {
	Network netip.Prefix
	Ports   []qos.PortMatch // of the other network, UDP
}

// Control says who may ask the running daemon, and who reaches the box.
type Control struct {
	Group string // members of this group may read status; empty: root alone
	// what the box itself serves to data networks, here and at the sites, besides DHCP and ICMP
	Services  []qos.PortMatch
	Reflector bool // sites' probes (RFC 8762) are answered
	// Metrics are the addresses on which Prometheus is answered, each loopback or this box's own in a data
	// network.
	Metrics []netip.AddrPort
}

// Machine says which settings of the machine, beyond its network, may be changed while Ringway runs.
type Machine struct {
	Tune bool // what makes calls wait less (appliance/machine.go)
}

// Problem is one thing wrong with the file.
type Problem struct {
	File    string
	Line    int    // 1-based, 0 where the file as a whole is meant
	Key     string // dotted path with list positions by name or number: sites[munich].public_key
	Message string // what is wrong (what is allowed)
}
