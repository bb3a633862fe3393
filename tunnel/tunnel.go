// Package tunnel is the encrypted half of a branch: one WireGuard device per class
// (voice, data), one peer per site in each. Here stand the pure values: keys, sites,
// the wanted state of a device and its difference from the observed one. The engines
// are packages of their own (tunnel/kernel, tunnel/wireguardgo, tunnel/realtime), and so
// is the process that runs a userspace engine (tunnel/plane). Nothing here imports netlink,
// os or a clock.
package tunnel

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"ringway/units"
)

// Class is the class of a tunnel: voice (media and signalling) or data (the rest).
type Class string

// The two tunnels of a site.
const (
	Voice Class = "voice"
	Data  Class = "data"
)

// Classes lists the tunnels in the order in which they are brought up.
var Classes = []Class{Voice, Data}

// EngineName chooses what encrypts.
type EngineName string

// The engines. All are plain WireGuard on the wire.
const (
	EngineAuto        EngineName = "auto"         // see Auto
	EngineKernel      EngineName = "kernel"       // WireGuard in the kernel
	EngineWireGuardGo EngineName = "wireguard-go" // the device package of wireguard-go in a plane process
	EngineRealtime    EngineName = "realtime"     // Ringway's own forwarding core in a plane process
)

// Auto is the engine that `auto` means for class c. Voice stays in userspace, where its process, its socket
// and its scheduling are its own: the kernel encrypts all of a machine's WireGuard on one set of queues.
func Auto(c Class, kernelHasWireGuard bool) EngineName {
	switch {
	case c == Voice:
		return EngineRealtime
	case kernelHasWireGuard:
		return EngineKernel
	}
	return EngineWireGuardGo
}

// PerPacket says whether e marks and pads packet by packet. The others see a whole device: one DSCP for all
// of it, and WireGuard's own padding to 16 bytes.
func (e EngineName) PerPacket() bool { return e == EngineRealtime }

// InnerMTU is the largest packet a tunnel device takes, in bytes, IP header included.
type InnerMTU int

// Overhead of one WireGuard data message in bytes: 16 header, 16 tag (WireGuard paper,
// section 5.4.6), 8 UDP, and the outer IP header. Padding to 16 bytes comes on top.
const (
	OverheadIPv4 = 16 + 16 + 8 + 20
	OverheadIPv6 = 16 + 16 + 8 + 40
)

// LeastProbeMTU is the least Device.ProbeMTU, in bytes: the smallest link of IPv6 (RFC 8200, section 5).
const LeastProbeMTU = 1280

// Settings is what the config says of one class's device.
type Settings struct {
	Interface  string // name of the network device, at most 15 bytes
	ListenPort uint16
	Engine     EngineName
	MTU        InnerMTU
	PadTo      int // as in Outer
}

// Carried says which tunnels a site has.
type Carried string

// A Ringway far end has both. Any other WireGuard has one; then everything goes there, and a
// configured preshared key is used as it is (never derived per class).
const (
	CarriedBoth  Carried = "both"
	CarriedVoice Carried = "voice"
	CarriedData  Carried = "data"
)

// Site is another branch, as the config describes it.
type Site struct {
	Name             string
	PublicKey        PublicKey
	Endpoint         string   // host name or address without port; empty for a site that dials in
	MoreEndpoints    []string // further ones, in order of preference
	VoicePort        uint16   // far end's listen ports
	DataPort         uint16
	VoiceNetworks    []netip.Prefix
	DataNetworks     []netip.Prefix
	FlatNetworks     []netip.Prefix // phones and everything else in one
	PresharedKeyFile string         // empty: none configured
	Tunnels          Carried
	Keepalive        time.Duration // persistent keepalive, 0 = off
}

// Networks is every prefix that lies behind the site.
func (s Site) Networks() []netip.Prefix {
	return slices.Concat(s.VoiceNetworks, s.DataNetworks, s.FlatNetworks)
}

// Endpoints are all host names or addresses of the site, in order of preference.
func (s Site) Endpoints() []string {
	if s.Endpoint == "" {
		return nil
	}
	return append([]string{s.Endpoint}, s.MoreEndpoints...)
}

// Has says whether the site has a tunnel of class c.
func (s Site) Has(c Class) bool {
	return s.Tunnels == CarriedBoth || s.Tunnels == "" || string(s.Tunnels) == string(c)
}

// Via is the tunnel that carries class c's traffic to the site.
func (s Site) Via(c Class) Class {
	if s.Has(c) {
		return c
	}
	return Class(s.Tunnels)
}

// Port is the far end's port for the tunnel of class c.
func (s Site) Port(c Class) uint16 {
	if c == Voice {
		return s.VoicePort
	}
	return s.DataPort
}

// Device is the wanted state of one class's WireGuard device, whole.
type Device struct {
	Class     Class
	Settings  Settings
	FwMark    uint32 // of the sockets that carry ciphertext (qos.MarkOuter...)
	Outer     Outer
	Admission Admission
	Measured  Measured
	// Sources are the addresses of our lines, one for each line and family, in order of preference; none where there is
	// one line and no peer has several addresses.
	Sources []netip.Addr
	// ProbeMTU is the longest outer packet in bytes that sites' paths are probed for; 0: they are not.
	ProbeMTU   int
	Paths      Paths
	Copies     Copies
	PrivateKey PrivateKey
	Peers      []Peer // sorted by Site
	Bounds     Bounds
}

// Outer is how packets look from outside: per packet, by the class inside, where the engine sees packets
// (realtime). The other engines mark a whole device alike, by TOS, and leave the rest.
type Outer struct {
	TOS   uint8       // TOS octet of what is in none of Marks; ECN bits zero
	Marks []OuterMark // sorted by Inner, each Inner once
	// PadTo is the size in bytes to which smaller inner packets are padded, so that their length tells
	// nothing. 0 is WireGuard's own padding to 16.
	PadTo int
}

// OuterMark is the code point that ciphertext gets for the one inside. Both are DSCP, 0-63.
type OuterMark struct{ Inner, Outer uint8 }

// Equal compares all of it; no mark and none at all are the same.
func (o Outer) Equal(p Outer) bool {
	return o.TOS == p.TOS && o.PadTo == p.PadTo && slices.Equal(o.Marks, p.Marks)
}

// Words is for people.
func (o Outer) Words() string {
	var b strings.Builder
	fmt.Fprintf(&b, "outer DSCP %d", o.TOS>>2)
	for _, m := range o.Marks {
		fmt.Fprintf(&b, ", %d for inner %d", m.Outer, m.Inner)
	}
	if o.PadTo > 0 {
		fmt.Fprintf(&b, ", padded to %d bytes", o.PadTo)
	}
	return b.String()
}

// Peer is one site in one device.
type Peer struct {
	Site         string
	PublicKey    PublicKey
	PresharedKey PresharedKey   // already derived for the class; zero = none
	Endpoint     netip.AddrPort // zero: not known (dials in)
	// EndpointRevision counts how often an engine had to be told the endpoint although it may have heard the
	// peer elsewhere: the configured endpoint means something new, or the peer is silent where it roamed to.
	EndpointRevision int
	AllowedIPs       []netip.Prefix // sorted
	Keepalive        time.Duration
}

// MustTellEndpoint reports whether an engine is to be told p's endpoint although it may have heard the peer
// elsewhere. before is the peer as the same daemon wanted it last; nil: it is not known, as after a restart.
func (p Peer) MustTellEndpoint(before *Peer) bool {
	switch {
	case !p.Endpoint.IsValid():
		return false
	case before == nil:
		return p.EndpointRevision > 0
	}
	// From no endpoint to one of the same revision: the peer called by itself, and the engine knows better
	// where it is now.
	changed := before.Endpoint.IsValid() && p.Endpoint != before.Endpoint
	return changed || p.EndpointRevision > before.EndpointRevision
}

// Reroute has an engine choose again which of our addresses it sends from.
type Reroute struct {
	// From are addresses that are not to be sent from any more: they have gone, their line has no carrier, or another
	// line is preferred. The kernel's routes choose another.
	From []netip.Addr `json:"from"`
	// Keys are the peers that it is about; none: all.
	Keys []PublicKey `json:"keys,omitempty"`
}

// TrialTime is how long packets that arrive at an address which was left do not bring peers back to it. A peer that has
// heard of the new address sends there by then; one that has not still sends to the old one, which is taken again: that
// long a packet may be lost where the new line delivers nothing.
const TrialTime = 500 * time.Millisecond

// About reports whether r is about a peer.
func (r Reroute) About(k PublicKey) bool { return len(r.Keys) == 0 || slices.Contains(r.Keys, k) }

// Bounds holds what stands between the tunnel device and the WAN to a time. They are sized together
// (qos.PathBounds): the sum is the longest that a data packet waits inside the box.
type Bounds struct {
	Rate          units.BitRate // of the WAN; 0 = unknown, nothing is shaped
	TxQueueLen    int           // packets in the tunnel device's own queue
	InFlight      int           // packets between tunnel device and socket, each direction
	FlowPackets   int           // packets in flow queues before the engine (wireguard-go); 0 = no flow queues
	SendBuffer    int           // SO_SNDBUF as set (the kernel doubles it), bytes
	ReceiveBuffer int           // SO_RCVBUF as set, bytes
	DeviceGSO     int           // largest super-packet that the tunnel device takes from the kernel, bytes
	SuperPacket   int           // largest UDP GSO payload in bytes; 0 = no GSO
}

// DeviceStatus is what a device says of itself. It carries no secret.
type DeviceStatus struct {
	Class      Class      `json:"class"`
	Interface  string     `json:"interface"`
	Engine     EngineName `json:"engine"`
	PublicKey  string     `json:"public_key"`
	ListenPort uint16     `json:"listen_port"`
	PlanePID   int        `json:"plane_pid,omitempty"` // process that runs the engine; 0 = the kernel
	PlaneBuild string     `json:"plane_build,omitempty"`
	// PlaneLogDropped counts log lines of the plane that the daemon did not log, because they were too many.
	PlaneLogDropped uint64            `json:"plane_log_dropped,omitempty"`
	Since           time.Time         `json:"since"`
	Restarts        int               `json:"restarts"`
	Adopted         bool              `json:"adopted"`
	Drops           map[string]uint64 `json:"drops,omitempty"` // by reason
	// Collections counts how often the engine realtime had its garbage collected: each may keep packets
	// waiting for a moment.
	Collections uint64         `json:"collections,omitempty"`
	Threads     []ThreadStatus `json:"threads,omitempty"` // the engine realtime's that forward (added by the daemon)
	Queue       *FlowStatus    `json:"queue,omitempty"`   // flow queues before the engine; nil: none
	// Reservations of places in the voice budgets; nil: none was asked for.
	Reservations *ReservationCounts `json:"reservations,omitempty"`
	// Error is why the device could not be read; then the fields above are what the daemon knows without it.
	Error string       `json:"error,omitempty"`
	Peers []PeerStatus `json:"peers"`
}

// FlowStatus is how the queues are in which the flows of a tunnel wait for the WAN.
type FlowStatus struct {
	Packets uint64 `json:"packets"` // that wait now
	Bytes   uint64 `json:"bytes"`   // of them
	Flows   int    `json:"flows"`   // that send now
	Marked  uint64 `json:"marked"`  // packets that went on with ECN's mark, in all
	// Limit is the socket memory in bytes (truesize) that packets behind the queues may take at present.
	Limit uint64 `json:"limit"`
	// SlowSites is how many sites' lines hold back what goes to them, now: it waits for them alone.
	SlowSites int    `json:"slow_sites,omitempty"`
	Note      string `json:"note,omitempty"` // why one site may hold up others, where it may
}

// ThreadStatus is how a thread that forwards packets is scheduled.
type ThreadStatus struct {
	Name string `json:"name"`
	TID  int    `json:"tid"`
	// Realtime is whether it runs under SCHED_FIFO. If not, the machine refused that, or the thread lowered
	// itself after taking a core for too long.
	Realtime bool `json:"realtime"`
}

// PathStatus is a path to a peer: from one of our lines to one of its addresses.
type PathStatus struct {
	Source    netip.Addr     `json:"source"`
	Remote    netip.AddrPort `json:"remote,omitzero"` // absent in the status of a plane that does not know several
	Used      bool           `json:"used"`
	State     PathState      `json:"state"`
	RoundTrip time.Duration  `json:"round_trip_ns,omitempty"` // of the last probe by a path that is not used; 0: not known
	// MTU is the longest packet in bytes, all headers included, that probing found to pass; 0: not known.
	MTU int `json:"mtu,omitempty"`
}

// PathState is what is known of a path.
type PathState string

// The states of a path.
const (
	PathUnknown PathState = "unknown" // nothing was sent by it yet, or the far end does not know paths
	PathUp      PathState = "up"
	PathSilent  PathState = "silent" // nothing is heard by it
)

// PathMove is a change of the path that is used.
type PathMove struct {
	At   time.Time  `json:"at"`
	From netip.Addr `json:"from,omitzero"` // zero: the kernel chose
	To   netip.Addr `json:"to"`
	Why  string     `json:"why"`
	// The peer's addresses; absent in the status of a plane that does not know several.
	FromRemote netip.AddrPort `json:"from_remote,omitzero"`
	ToRemote   netip.AddrPort `json:"to_remote,omitzero"`
}

// PeerStatus is what a device says of one peer.
type PeerStatus struct {
	Site          string         `json:"site"` // empty where the device does not know (the daemon fills it in)
	PublicKey     PublicKey      `json:"public_key"`
	Endpoint      netip.AddrPort `json:"endpoint"`
	LastHandshake time.Time      `json:"last_handshake"` // zero: never
	RxBytes       uint64         `json:"rx_bytes"`
	TxBytes       uint64         `json:"tx_bytes"`
	RxPackets     uint64         `json:"rx_packets,omitempty"` // absent: the kernel's WireGuard counts bytes alone
	TxPackets     uint64         `json:"tx_packets,omitempty"`
	AllowedIPs    []netip.Prefix `json:"allowed_ips"`
	Keepalive     time.Duration  `json:"keepalive_ns"`
	// RoundTrip is how long messages took lately to the peer and back; absent: not known. The engine realtime measures it
	// while there are calls with the peer, if that measures, too.
	RoundTrip time.Duration `json:"round_trip_ns,omitempty"`
	// Paths are those to the peer, in order of preference; none where there is one line and no far end has several
	// addresses, or the engine does not know lines. Moves are their last changes, the latest last.
	Paths []PathStatus `json:"paths,omitempty"`
	Moves []PathMove   `json:"moves,omitempty"`
	// PathMTU is the longest packet in bytes, all headers included, that passes by each path of which probing has found
	// what it takes; absent: it has of none.
	PathMTU int `json:"path_mtu,omitempty"`
	// Copies is how media is sent twice to the peer and received; nil: neither end sends copies.
	Copies *CopiesStatus `json:"copies,omitempty"`
	// MTU is how long packets inside to the peer may be, in bytes, and MTUSource what decides that (the daemon fills them
	// in).
	MTU       int    `json:"mtu,omitempty"`
	MTUSource string `json:"mtu_source,omitempty"`
	// Media is nil where calls with the site have no budget, or the engine does not know calls.
	Media *MediaStatus `json:"media,omitempty"`
}
