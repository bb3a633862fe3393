// Package plane runs a userspace WireGuard engine as a process of its own, and supervises it.
//
// A plane is started by the daemon, one per class, and outlives it: when the daemon is killed,
// upgraded or restarted, the plane forwards on, and the next daemon adopts it through its
// control socket. The daemon (root) opens the tunnel device and the sockets, keeps duplicates, and
// hands them over; the plane holds nothing else and may do nothing else (sandbox.go).
//
// Two halves meet at the protocol (protocol.go): Main is the process (server.go, sandbox.go), Supervisor
// the daemon's side (supervisor.go, configure.go, client.go, process.go). Only appliance and cmd import this room; it
// knows no engine: engines come in through NewEngine.
package plane

import (
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"

	"ringway/tunnel"
)

// Files are the descriptors that an engine works on, borrowed until NewEngine returns: it duplicates
// what it keeps. UDP6 or UDP4 may be nil where the machine lacks the family.
type Files struct {
	TUN, UDP4, UDP6 *os.File
}

// Start is what an engine is made from.
type Start struct {
	Files  Files
	Class  tunnel.Class
	Bounds tunnel.Bounds
	MTU    int
	Log    *slog.Logger
}

// NewEngine makes an engine that forwards from the moment it returns.
type NewEngine func(Start) (Engine, error)

// marker is an engine that marks and pads packet by packet. What a whole socket's TOS can say is set from outside.
type marker interface {
	SetOuter(o tunnel.Outer) error
}

// admitter is an engine that admits calls up to a site's budget.
type admitter interface {
	SetAdmission(a tunnel.Admission) error
}

// Engine is what a plane runs; tunnel/wireguardgo has one. It is wider than a usual interface since
// it is exactly the seam between a process and the one thing that it is there for.
type Engine interface {
	Set(r io.Reader) error // body of a UAPI set=1; the device's own key holds before a peer is set
	Get(w io.Writer) error // answer to a UAPI get=1, with secrets
	ServeUAPI(l net.Listener) error
	Status() tunnel.DeviceStatus
	Handshake(keys ...tunnel.PublicKey) // none = all peers with an endpoint
	Endpoints() <-chan map[tunnel.PublicKey]netip.AddrPort
	SetMTU(mtu int) error
	SetBounds(b tunnel.Bounds) error
	Close() error
	Done() <-chan struct{} // closed when the engine ended by itself or by Close
}
