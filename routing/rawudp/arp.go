package rawudp

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// What ARP for Ethernet and IPv4 looks like (RFC 826).
const (
	arpLength  = 28
	arpRequest = 1
	arpReply   = 2
	arpTimeout = 500 * time.Millisecond // of each try
	arpTries   = 3
)

var errNoARP = errors.New("nobody answered ARP")

// resolve asks the link for the hardware address of a neighbour.
func (c *Conn) resolve(ctx context.Context, neighbour netip.Addr) (net.HardwareAddr, error) {
	filter, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 6, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: arpReply, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: arpLength},
	})
	if err != nil {
		return nil, err
	}
	socket, err := packet.Listen(c.ifc, packet.Datagram, unix.ETH_P_ARP, &packet.Config{Filter: filter})
	if err != nil {
		return nil, err
	}
	defer socket.Close()

	question := arp(c.ifc.HardwareAddr, c.options.Local.Addr(), neighbour)
	for range arpTries {
		if _, err := socket.WriteTo(question, &packet.Addr{HardwareAddr: broadcast}); err != nil {
			return nil, err
		}
		until := time.Now().Add(arpTimeout)
		if end, ok := ctx.Deadline(); ok && end.Before(until) {
			until = end
		}
		if err := socket.SetReadDeadline(until); err != nil {
			return nil, err
		}
		mac, err := answerOf(socket, neighbour)
		if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return mac, err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errNoARP
}

func answerOf(socket net.PacketConn, neighbour netip.Addr) (net.HardwareAddr, error) {
	b := make([]byte, 2*arpLength)
	for {
		n, _, err := socket.ReadFrom(b)
		if err != nil {
			return nil, err
		}
		if mac, from, ok := parseARP(b[:n]); ok && from == neighbour {
			return mac, nil
		}
	}
}

// arpHeader are the types and lengths of Ethernet and IPv4.
var arpHeader = []byte{0, 1, 8, 0, 6, 4}

func arp(mac net.HardwareAddr, from, neighbour netip.Addr) []byte {
	b := append(bytes.Clone(arpHeader), 0, arpRequest)
	b = append(append(b, mac...), from.AsSlice()...)
	return append(append(b, make([]byte, 6)...), neighbour.AsSlice()...)
}

func parseARP(b []byte) (mac net.HardwareAddr, from netip.Addr, ok bool) {
	if len(b) < arpLength || !bytes.HasPrefix(b, arpHeader) || binary.BigEndian.Uint16(b[6:]) != arpReply {
		return nil, netip.Addr{}, false
	}
	mac = bytes.Clone(b[8:14])
	if mac[0]&1 != 0 { // a group is nobody's address
		return nil, netip.Addr{}, false
	}
	return mac, netip.AddrFrom4([4]byte(b[14:18])), true
}
