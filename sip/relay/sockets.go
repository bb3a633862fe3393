package relay

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"

	"golang.org/x/sys/unix"

	"ringway/process"
	"ringway/qos"
	"ringway/sip/transparent"
)

// Ports on which TPROXY delivers; the firewall lets nothing else reach them. What comes from LANs and what comes
// from tunnels and WANs have listeners of their own: the answers on a connection bear the mark of the listener that
// accepted it.
const (
	NearPort = 5271
	FarPort  = 5272
)

// reserved reports whether a socket that sends from a port would take its messages from a listener.
func reserved(port uint16) bool { return port == NearPort || port == FarPort }

// Marks of what the relay sends. It is signalling; for a site, it goes through a tunnel.
const (
	markNear   = qos.Mark(2 << 9)
	markInside = qos.MarkInner | markNear
)

// marking is that of packets of signalling. CS3 is what phones commonly mark SIP with; where the class has another
// code point the firewall writes that.
func marking(m qos.Mark) transparent.Marking {
	const cs3 = 24
	return transparent.Marking{Mark: uint32(m), TOS: cs3 << 2}
}

// socket is a listener by name.
type socket struct {
	name      string
	transport transparent.Transport
	at        netip.AddrPort
	near      bool
}

// How many TCP connections one address may have here at once, of 4096 in all. A PBX opens one to each of its phones
// that registered over TCP; a far PBX has those of a whole branch or hub.
const (
	maxNearConnections = 512
	maxFarConnections  = 2048
)

func (s *socket) connections() int {
	if s.near {
		return maxNearConnections
	}
	return maxFarConnections
}

var listeners = []socket{
	listener("udp4-near", transparent.UDP, "0.0.0.0", true), listener("udp4-far", transparent.UDP, "0.0.0.0", false),
	listener("udp6-near", transparent.UDP, "::", true), listener("udp6-far", transparent.UDP, "::", false),
	listener("tcp4-near", transparent.TCP, "0.0.0.0", true), listener("tcp4-far", transparent.TCP, "0.0.0.0", false),
	listener("tcp6-near", transparent.TCP, "::", true), listener("tcp6-far", transparent.TCP, "::", false),
}

func listener(name string, t transparent.Transport, address string, near bool) socket {
	port := uint16(FarPort)
	if near {
		port = NearPort
	}
	return socket{name, t, netip.AddrPortFrom(netip.MustParseAddr(address), port), near}
}

// Listen opens the sockets that TPROXY delivers to, in the network namespace of the calling thread. Without IPv6
// those of IPv4 are enough.
func Listen() (files []process.File, err error) {
	for _, s := range listeners {
		mark := markInside
		if s.near {
			mark = markNear
		}
		fd, err := transparent.Listen(s.transport, s.at, marking(mark))
		if err != nil && s.at.Addr().Is6() && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) {
			continue
		}
		if err != nil {
			process.CloseFiles(files...)
			return nil, err
		}
		files = append(files, process.File{Name: s.name, FD: fd})
	}
	return files, nil
}

// fileJournal names the journal's descriptor.
const fileJournal = "journal"

// openJournal opens the journal in the run directory. What is in it stays.
func openJournal(runDir string) (process.File, error) {
	fd, err := unix.Open(journalPath(runDir), unix.O_RDWR|unix.O_CREAT|unix.O_APPEND|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return process.File{}, fmt.Errorf("open the journal of calls: %w", err)
	}
	return process.File{Name: fileJournal, FD: fd}, nil
}

func journalPath(runDir string) string { return filepath.Join(runDir, "calls.journal") }

// Open opens a fresh socket for the process to send from.
func Open(kind transparent.SocketKind) (fd int, err error) {
	mark := markNear
	if kind.Inside {
		mark = markInside
	}
	return transparent.OpenEgress(kind, marking(mark))
}

// handedOver are the listeners that the process was started with. They stay the Child's.
func handedOver(child *process.Child) (all []transparent.Listener, err error) {
	for _, s := range listeners {
		fd := child.FD(s.name)
		if fd == process.NoFD {
			continue
		}
		if err := unix.SetNonblock(fd, true); err != nil {
			return nil, fmt.Errorf("make %s non-blocking: %w", s.name, err)
		}
		all = append(all, transparent.Listener{FD: fd, Near: s.near, PerSource: s.connections()})
	}
	if len(all) == 0 {
		return nil, errors.New("no socket for signalling was handed over")
	}
	return all, nil
}
