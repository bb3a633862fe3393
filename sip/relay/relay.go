// Package relay runs the transparent SIP relay as a supervised process, called calls.
//
// The daemon (root) opens the sockets that TPROXY delivers signalling to, keeps duplicates, and hands them to
// the process, which has nothing else: it reads phones' bytes. Each message goes on byte for byte as it came,
// from the sender's own address and port (package transparent), and is followed on its way (package dialog).
// What a call needs, the process asks of the daemon: media flows to let pass. The daemon checks each one, so
// that a process which was taken over can open nothing that a call could not.
//
// The process's half is Main (child.go), core.go (what a message means) and asker.go (requests to the daemon, most of
// them by the channel of channel.go).
// The daemon's half is Supervisor (supervisor.go) and the sockets (sockets.go). They meet in protocol.go.
package relay

import (
	"net/netip"
	"time"

	"ringway/process"
	"ringway/sip/abuse"
	"ringway/sip/admission"
	"ringway/sip/call"
	"ringway/sip/certificate"
	"ringway/sip/dialog"
	"ringway/sip/ladder"
	"ringway/sip/registrar"
	"ringway/sip/terminate"
	"ringway/sip/transparent"
	"ringway/tunnel"
)

const (
	// ProtocolMajor changes when requests change their meaning: a process of another one is replaced.
	ProtocolMajor = 3
	// ProtocolMinor changes when a request is added.
	ProtocolMinor = 1
	// minorMedia is the first that relays media.
	minorMedia = 1
)

// Ends are who opened a TCP connection, and to whom.
type Ends = transparent.Ends

// Requests of the daemon, requests of the process, and the event that the process pushes.
const (
	typeSettings = "settings"
	typeStatus   = "status"
	typeCalls    = "calls"
	typeLadder   = "ladder"
	typeBans     = "bans"
	typeUnban    = "unban"
	typeForget   = "forget"
	typeExport   = "export" // stop, and hand TCP connections over
	typeTake     = "take"
	typeImport   = "import"
	typePhones   = "phones"
	typeKnown    = "known"   // registrations that the process before knew
	typeMedia    = "media"   // these flows were seen
	typeReset    = "reset"   // these connections go over a line that is gone
	typeRestore  = "restore" // calls of the process before, whose media is relayed

	typeSockets     = "sockets"     // fresh sockets to send from
	typeFlows       = "flows"       // calls need other flows
	typeChannel     = "channel"     // a socket for short requests of that kind
	typeHomer       = "homer"       // a socket to a Homer server
	typeReports     = "reports"     // abuse, and records of calls
	typeUnreachable = "unreachable" // a server did not answer a connection

	typeBeat = "beat" // pushed: the loops that read signalling work
)

// How the daemon notices that nothing reads signalling.
const (
	// BeatInterval is the time between two beats.
	BeatInterval = 40 * time.Millisecond
	// MaxSilence is how long no beat may come until signalling passes unread.
	MaxSilence = 200 * time.Millisecond
)

// Settings are what the process is told by the daemon.
type Settings struct {
	// Inside are the networks behind tunnels, Own those of this box, which count first, Phones those of phones.
	Inside []netip.Prefix `json:"inside"`
	Own    []netip.Prefix `json:"own"`
	Phones []netip.Prefix `json:"phones"`

	Site    string         `json:"site"`    // this box's name, for what it answers itself
	Enforce bool           `json:"enforce"` // else nothing is refused, whatever it is
	Admit   bool           `json:"admit"`   // calls that do not fit are refused
	Budgets admission.Plan `json:"budgets"`

	EmergencyNumbers  []string `json:"emergency_numbers"`
	EmergencyPrefixes []string `json:"emergency_prefixes"`

	Abuse       string        `json:"abuse"`                  // AbuseOff, AbuseWarn or AbuseBlock
	AbuseLimits *abuse.Limits `json:"abuse_limits,omitempty"` // but for PhoneLimit and ServerLimit; nil: the defaults
	Servers     []netip.Addr  `json:"servers"`                // PBXs and trunks
	PhoneLimit  int           `json:"phone_limit"`            // messages a second from one phone; 0: the default
	Country     string        `json:"country"`                // own country code; empty: not known
	ServerLimit int           `json:"server_limit"`           // likewise from any other address
	Privacy     string        `json:"privacy"`                // package privacy's
	Homer       Homer         `json:"homer,omitzero"`

	// By which certificates TLS is read, and where it is spoken: ports of every address, and those of servers.
	TLS        []certificate.Source `json:"tls,omitempty"`
	TLSPorts   []uint16             `json:"tls_ports,omitempty"`
	TLSServers []netip.AddrPort     `json:"tls_servers,omitempty"`

	Media *Media `json:"media,omitempty"` // nil: no media is relayed
}

// Media says for whom media is relayed, so that each end may have keys of its own.
type Media struct {
	// First and Last bound the ports at the box's media addresses.
	First uint16 `json:"first"`
	Last  uint16 `json:"last"`
	// Places are what is known of networks, the box's addresses towards them among it. They change with the state of
	// the key channel to a site.
	Places terminate.Places `json:"places"`
	// Certificate is the box's, in DER, for DTLS; nil: none is offered.
	Certificate []byte `json:"certificate,omitempty"`
	// Used are the ports that the media plane has pairs for. A process that begins gives them to no other call for a
	// while.
	Used []netip.AddrPort `json:"used,omitempty"`
}

// inside says whether an address is behind a tunnel.
func (s *Settings) inside(a netip.Addr) bool { return !holds(s.Own, a) && holds(s.Inside, a) }

func holds(networks []netip.Prefix, a netip.Addr) bool {
	for _, n := range networks {
		if n.Contains(a) {
			return true
		}
	}
	return false
}

// Change is what one message of a call makes of its flows.
type Change struct {
	Hops  [2]netip.Addr // of the leg, caller's side first; what they are bounds what may be opened
	Via   []netip.Addr  // the hops of all legs of the call; they bound it as well
	Open  []dialog.Flow
	Close []dialog.Flow

	Places []Place // in voice budgets, in the order in which they are to change

	// Media are pairs of legs that the media plane is to have from now on, or no longer. Flows of theirs go from an end
	// to a media address of this box, or from there to the end: both are in Open like all others.
	Media []terminate.Change

	saved []terminate.Saved // for the process that replaces this one: the Supervisor keeps it
}

// Place is a change of what an engine keeps for a flow.
type Place struct {
	Release bool               `json:"release,omitempty"` // else it is reserved, or kept at another rate
	Reserve tunnel.Reservation `json:"reserve"`
}

// Stats are the counters of the process.
type Stats struct {
	Calls       int                `json:"calls"`       // legs that are followed
	Connections int                `json:"connections"` // of TCP
	Encrypted   int                `json:"encrypted"`   // of them, those whose TLS is read
	TLS         []TLSServer        `json:"tls"`
	Messages    uint64             `json:"messages"`   // read and sent on
	Unread      map[string]uint64  `json:"unread"`     // sent on without being understood, by reason
	Refused     map[string]uint64  `json:"refused"`    // not sent on, by reason
	Transport   map[string]uint64  `json:"transport"`  // what befell datagrams and connections
	LateFlows   uint64             `json:"late_flows"` // messages that went on before their flows were open
	Phones      int                `json:"phones"`     // registrations that are known
	Mirrored    uint64             `json:"hep_sent"`   // messages to a Homer server
	Unmirrored  uint64             `json:"hep_lost"`   // that could not be sent
	Budgets     []admission.Budget `json:"budgets"`    // of calls, and how much of each is taken
	Beyond      uint64             `json:"beyond"`     // calls and flows that were too many to be followed

	Relayed      int    `json:"relayed,omitempty"`        // legs whose media this box relays
	MediaPorts   int    `json:"media_ports,omitempty"`    // pairs of ports that they have
	NoMediaPorts uint64 `json:"no_media_ports,omitempty"` // how often none was free

	// Barred is how many legs have no media because policy changed during the call. NoMedia is the latest message whose
	// description was refused or emptied for want of SRTP; nil: there was none.
	Barred  int      `json:"barred,omitempty"`
	NoMedia *NoMedia `json:"no_media,omitempty"`
}

type (
	callsAnswer struct {
		Calls []call.Call `json:"calls"`
	}
	phonesAnswer struct {
		Phones []registrar.Binding `json:"phones"`
	}
	ladderRequest struct {
		ID string `json:"call"` // of a leg, or a Call-ID
	}
	ladderAnswer struct {
		View *ladder.View `json:"view,omitempty"` // nil: nothing is kept
	}
	bansAnswer struct {
		Bans []Standing `json:"bans"`
	}
	unbanRequest struct {
		Address netip.Addr `json:"address"`
	}
	unbanAnswer struct {
		Found bool `json:"found"`
	}
	forgetRequest struct {
		Number string `json:"number"`
	}
	resetRequest struct {
		Connections []Ends `json:"connections"`
	}
	resetAnswer struct {
		Reset int `json:"reset"`
	}
	mediaRequest struct {
		Flows []dialog.Flow `json:"flows"`
	}
	socketsRequest struct {
		Kind  transparent.SocketKind `json:"kind"`
		Count int                    `json:"count"`
	}
	homerRequest struct {
		Server netip.AddrPort `json:"server"`
	}
	unreachableRequest struct {
		Server netip.AddrPort `json:"server"`
	}
)

const envPrefix = "RINGWAY_CALLS"

// kindOf is the kind of process.
func kindOf(args, env []string) process.Kind {
	return process.Kind{
		Name: "calls", Protocol: process.Protocol{Major: ProtocolMajor, Minor: ProtocolMinor},
		Args: args, EnvPrefix: envPrefix, Env: env,
		User: "ringway-calls", UserID: 61803,
	}
}
