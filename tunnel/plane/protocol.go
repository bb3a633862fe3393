package plane

import (
	"net/netip"

	"ringway/process"
	"ringway/tunnel"
)

// The requests of a plane. Framing, hello, the handing back of descriptors and the end are package process's;
// they never change. A daemon meets planes older and newer than itself: unknown fields are ignored, and an
// unknown request is answered with an error.
const (
	// ProtocolMajor changes when requests change their meaning: a plane of another one is replaced.
	ProtocolMajor = 1
	// ProtocolMinor changes when a request is added. A new setting needs neither (settings.go).
	//
	// 1: `outer`, in start, in hello and as a request.
	// 2: `admission`, likewise.
	// 3: `settings` in place of the requests `bounds`, `link`, `outer` and `admission`.
	// 4: `reserve`, `release` and `reservations` (reserve.go).
	// 5: `series` (series.go).
	// 6: `reroute` (reroute.go).
	// 7: `confirm_mtu` (mtu.go).
	ProtocolMinor = 7
)

// Requests, and the event that a plane pushes.
const (
	typeStart     = "start"     // make the engine; once
	typeSettings  = "settings"  // change what is named
	typeSet       = "set"       // UAPI text
	typeUAPI      = "uapi"      // UAPI get, with secrets
	typeStatus    = "status"    // DeviceStatus
	typeHandshake = "handshake" // shake hands now

	typeReserve      = "reserve"      // keep places in voice budgets
	typeRelease      = "release"      // give them back
	typeReservations = "reservations" // list them

	typeSeries = "series" // what was counted of media

	typeReroute = "reroute" // leave addresses of ours

	typeConfirmMTU = "confirm_mtu" // find out whether long packets still pass

	typeEndpoints = "endpoints" // pushed: peers moved
)

// The bodies of requests, answers and events. That of settings is a Settings.
type (
	startRequest struct {
		Start startParameters `json:"start"`
	}
	uapiText struct { // request of set, answer of uapi
		Text string `json:"text,omitempty"`
	}
	statusAnswer struct {
		Status *tunnel.DeviceStatus `json:"status,omitempty"`
	}
	handshakeRequest struct {
		Keys []tunnel.PublicKey `json:"keys,omitempty"` // none = all
	}
	endpointsEvent struct {
		Endpoints map[string]netip.AddrPort `json:"endpoints,omitempty"` // by public key, base64
	}
)

type startParameters struct {
	Engine    tunnel.EngineName `json:"engine"`
	Interface string            `json:"interface"`
	Text      string            `json:"text"`      // first UAPI set
	Handshake bool              `json:"handshake"` // shake hands with all at once
	Settings
}

// about is what a plane says of itself in hello, beside what every process does.
type about struct {
	Class     tunnel.Class      `json:"class"`
	Running   bool              `json:"running"` // has an engine
	Engine    tunnel.EngineName `json:"engine,omitempty"`
	Interface string            `json:"interface,omitempty"`
	Settings                    // all that it knows, as they are
}

// Names of descriptors.
const (
	fileTUN  = "tun"
	fileUDP4 = "udp4"
	fileUDP6 = "udp6"
	fileUAPI = "uapi"
)

// Environment of a plane, set by the daemon.
const (
	envPrefix = "RINGWAY_PLANE"
	envClass  = envPrefix + "_CLASS"
)

// The users that planes run as: the package makes them; the numbers are the fallback.
var users = map[tunnel.Class]struct {
	name string
	id   uint32
}{
	tunnel.Voice: {"ringway-voice", 61801},
	tunnel.Data:  {"ringway-data", 61802},
}

// kindOf is the kind of process that a class's plane is.
func kindOf(c tunnel.Class, args, env []string) process.Kind {
	u, ok := users[c]
	if !ok {
		u = users[tunnel.Data]
	}
	return process.Kind{
		Name: "plane-" + string(c), Protocol: process.Protocol{Major: ProtocolMajor, Minor: ProtocolMinor},
		Args: args, EnvPrefix: envPrefix, Env: append([]string{envClass + "=" + string(c)}, env...),
		User: u.name, UserID: u.id,
	}
}
