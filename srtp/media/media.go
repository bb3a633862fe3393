// Package media is the forwarding core of the media plane: it takes the media of calls in on one leg, opens it, and
// sends it on by the other leg under that one's keys.
//
// In: nftables' TPROXY brings the whole range of media ports to one UDP socket for each side and address family. Out:
// one raw socket for each; we write the headers of IP and UDP. So a call costs no socket and no system call, and each
// socket's mark bounds what may leave by it (package srtp/media/rules has both halves for the firewall).
//
// The walk of a packet, all on the thread that has the turn of its side (package tunnel/turn):
//
//  1. worker.loop, receive: recvmmsg, with the destination before TPROXY and the kernel's time of arrival
//  2. forwarder.take: what has waited longer than 20 ms is dropped; the leg by the destination (table.go)
//  3. classify: RTP, RTCP or DTLS by the first bytes (RFC 7983, RFC 5761); DTLS goes to a ring for another goroutine
//  4. forwarder.open: authenticate and decrypt; only then is anything learned of the packet, and its quota taken. What
//     RTCP says of packets that were numbered again (package stream) is translated
//  5. forwarder.seal: encrypt under the other leg's key, and write the headers in front (header.go)
//  6. worker.flush: sendmmsg
//
// Nothing of that allocates or waits for a lock. What the control side changes reaches the threads as an immutable
// table that is swapped, or, where it changes the keys of a stream in use, as one request that the thread serves
// between two packets. The state of a stream belongs to the thread of the side where its packets arrive: the receiver
// of the leg that they arrive on and the sender of the leg that they leave by.
package media

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"ringway/srtp/stream"
)

// Side is a network that media arrives from.
type Side uint8

// Sides. A leg to a trunk on a WAN is on LAN's side: it is one of this branch's own, not the far box's.
const (
	LAN Side = iota
	Tunnel
	sides
)

func (s Side) String() string {
	switch s {
	case LAN:
		return "lan"
	case Tunnel:
		return "tunnel"
	}
	return fmt.Sprintf("side %d", uint8(s))
}

// Protection is what a leg's packets are.
type Protection uint8

// The zero value is none, and refused: a leg is in clear because somebody said so.
const (
	Clear  Protection = iota + 1 // RTP and RTCP (RFC 3550)
	Secure                       // SRTP and SRTCP (RFC 3711). Without keys nothing passes, in either direction
)

// Bounds.
const (
	// maxWait is how long a packet may have waited for us. Later it is too late for its call, and takes the time of one
	// that is not.
	maxWait = 20 * time.Millisecond
	// learnEvery is how often a leg's packets may move where it is sent to.
	learnEvery = 100 * time.Millisecond
	// maxDTLSWaiting is how many packets of DTLS of a leg wait to be read. They may be forged, and the legs share a queue.
	maxDTLSWaiting = 16
	maxLegs        = 4000 // of a relay
	// mustCollect is how many bytes of garbage are collected at once: 200 new calls make them.
	mustCollect = 3 << 20
	maxPayloads = 128
)

// Payloads is the payload types that a leg may send, a bit for each (RFC 3550 section 5.1).
type Payloads [maxPayloads / 64]uint64

// NewPayloads allows the given types.
func NewPayloads(types ...uint8) (p Payloads) {
	for _, t := range types {
		p[t%maxPayloads/64] |= 1 << (t % 64)
	}
	return p
}

func (p *Payloads) has(t uint8) bool { return p[t/64]&(1<<(t%64)) != 0 }

// Leg is one end of a call's media: our address there, the other's, and how they are protected.
type Leg struct {
	// ID names the leg in counters, updates and later calls. It is the caller's, and of no other leg.
	ID   uint64
	Side Side

	// Local is our address and port of RTP, Remote what signalling said of the other end. With RTCP's not set, RTCP is
	// on the same ports (RFC 5761).
	Local, Remote         netip.AddrPort
	LocalRTCP, RemoteRTCP netip.AddrPort

	Protection Protection
	// Receiver opens what arrives, Sender protects what leaves. They belong to the relay from Set on, until the leg is
	// removed or replaced by one with others; then the relay wipes their keys. Where one key was offered to several
	// branches of a call there is one Sender for all of them: it goes from one leg to the next by Replace, or by Detach
	// and Set. Two Senders of one key would use its indices twice.
	Receiver *stream.Receiver
	Sender   *stream.Sender
	// DTLS says that packets of DTLS are taken from the address that signalling said (RFC 5764).
	DTLS bool
	// Learn has authentic packets from another address move where the leg is sent to (symmetric RTP, RFC 4961). RTP in
	// clear teaches nothing: anybody can send it.
	Learn bool

	Payloads Payloads // that may arrive
	Quota    Quota    // of RTP that arrives
	DSCP     uint8    // of what leaves, 0 to 63
}

// Errors of Set and of changes of keys.
var (
	ErrUnknownLeg = errors.New("no leg with this ID")
	ErrClosed     = errors.New("the relay has ended")
)

// check returns what is wrong with a leg.
func (l *Leg) check() error {
	ends := []struct {
		name string
		a    netip.AddrPort
	}{{"local address", l.Local}, {"remote address", l.Remote}}
	if l.LocalRTCP.IsValid() || l.RemoteRTCP.IsValid() {
		ends = append(ends, []struct {
			name string
			a    netip.AddrPort
		}{{"local address of RTCP", l.LocalRTCP}, {"remote address of RTCP", l.RemoteRTCP}}...)
	}
	for _, e := range ends {
		ip := e.a.Addr()
		switch {
		case !e.a.IsValid() || e.a.Port() == 0 || ip.IsUnspecified() || ip.IsMulticast() || ip.Is4In6():
			return fmt.Errorf("%s %s is not an address and port of one host", e.name, e.a)
		case ip.Zone() != "":
			return fmt.Errorf("%s %s has a zone, and a raw packet has no place for it", e.name, e.a)
		case ip.Is4() != l.Local.Addr().Is4():
			return fmt.Errorf("%s %s is of another address family than %s", e.name, e.a, l.Local)
		}
	}
	switch {
	case l.Side >= sides:
		return fmt.Errorf("%s is not a side", l.Side)
	case l.Protection != Clear && l.Protection != Secure:
		return fmt.Errorf("protection %d is neither clear nor secure", l.Protection)
	case l.Protection == Clear && (l.Receiver != nil || l.Sender != nil || l.DTLS || l.Learn):
		return errors.New("a leg in clear has no keys, and learns nothing")
	case l.DSCP > 63:
		return fmt.Errorf("DSCP %d (allowed 0-63)", l.DSCP)
	}
	return l.Quota.check()
}
