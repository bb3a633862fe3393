// Package plane runs a userspace WireGuard engine as a supervised process, one for each class.
//
// The daemon (root) opens the tunnel device and the sockets, keeps duplicates, and hands them over; the plane
// has nothing else. When the daemon is killed, upgraded or restarted, the plane keeps forwarding, and the
// next daemon adopts it. How a process is started, confined, adopted and replaced is package process's; here
// is what makes it a plane: the requests (protocol.go), the settings that change in place (settings.go), the
// descriptors that outlive it (resources.go), and what its threads are allowed (sandbox.go, priority.go).
//
// Main is the process (server.go); Supervisor is the daemon's side (supervisor.go, configure.go). Engines are
// made by a NewEngine: this package imports none.
package plane

import (
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"

	"ringway/tunnel"
)

// Files are the descriptors that an engine works on, borrowed until NewEngine returns: it duplicates what it
// keeps. UDP6 or UDP4 may be nil where the machine lacks the family.
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

// Engine is what a plane runs. It is wider than a usual interface since it is exactly the seam between a
// process and the one thing that the process is there for. An engine may also be a marker or an admitter
// (settings.go).
type Engine interface {
	Set(r io.Reader) error // body of a UAPI set=1; the device's own key holds before a peer is set
	Get(w io.Writer) error // answer to a UAPI get=1, with secrets
	ServeUAPI(l net.Listener) error
	Status() tunnel.DeviceStatus
	Handshake(keys ...tunnel.PublicKey) // none = all peers with an endpoint
	Reroute(r tunnel.Reroute)
	Endpoints() <-chan map[tunnel.PublicKey]netip.AddrPort
	SetMTU(mtu int) error
	SetBounds(b tunnel.Bounds) error
	Close() error
	Done() <-chan struct{} // closed when the engine stopped unexpectedly or by Close
}
