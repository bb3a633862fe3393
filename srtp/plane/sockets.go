package plane

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"ringway/process"
	"ringway/srtp/media"
)

// Ports are those of the sockets that TPROXY brings packets to, by side and family (IPv4, IPv6); 0: there is none.
type Ports [2][2]uint16

// Side says by what a side's sockets are known to the firewall.
type Side struct {
	Mark uint32 // of what leaves
	Port uint16 // on loopback, that TPROXY brings packets to; 0: any
}

// Open opens the sockets of the process in the network namespace of the calling thread: for each side and family one
// for TPROXY, and a raw one with the side's mark. Without IPv6 those of IPv4 are enough.
func Open(lan, tunnel Side) (files []process.File, err error) {
	for side, by := range [...]Side{lan, tunnel} {
		for v6 := range 2 {
			some, err := open(side, v6, by)
			if err != nil && v6 == 1 && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) {
				continue
			}
			if err != nil {
				process.CloseFiles(files...)
				return nil, err
			}
			files = append(files, some...)
		}
	}
	return files, nil
}

// open opens both sockets of a side and family.
func open(side, v6 int, by Side) ([]process.File, error) {
	in, _, err := media.ListenIn(v6 == 1, by.Port)
	if err != nil {
		return nil, err
	}
	inFD, err := process.TakeFD(in)
	if err != nil {
		return nil, err
	}
	out, err := media.OpenOut(v6 == 1, by.Mark)
	if err != nil {
		process.Close(inFD)
		return nil, err
	}
	outFD, err := process.TakeFD(out)
	if err != nil {
		process.Close(inFD)
		return nil, err
	}
	return []process.File{{Name: fileIn[side][v6], FD: inFD}, {Name: fileOut[side][v6], FD: outFD}}, nil
}

// portsOf are the ports of sockets.
func portsOf(files []process.File) (p Ports, err error) {
	byName := map[string]int{}
	for _, f := range files {
		byName[f.Name] = f.FD
	}
	for side := range fileIn {
		for v6, name := range fileIn[side] {
			fd, is := byName[name]
			if !is {
				continue
			}
			at, err := unix.Getsockname(fd)
			if err != nil {
				return p, fmt.Errorf("read the port of %s: %w", name, err)
			}
			switch at := at.(type) {
			case *unix.SockaddrInet4:
				p[side][v6] = uint16(at.Port)
			case *unix.SockaddrInet6:
				p[side][v6] = uint16(at.Port)
			}
		}
	}
	if p == (Ports{}) {
		return p, errors.New("there is no socket for media")
	}
	return p, nil
}
