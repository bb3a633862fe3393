// Package transparent is the input and output of a SIP relay that its users do not see. What phones and PBXs
// send to each other comes in by TPROXY, is shown to a Handler message by message, and goes on from its sender's
// own address and port, byte for byte. The package finds where messages begin and end; it knows nothing of calls.
//
// A datagram takes these steps, all of them in the loop of the listener that it came to:
//
//	1 receive  recvmmsg; a control message says where the datagram was sent to (datagrams.go)
//	2 judge    message.Scan, then the Handler
//	3 send     sendmsg on the egress socket of its source port, which puts the sender's address on it (egress.go)
//
// A TCP connection takes these; each connection is served on its own, the directions of step 3 side by side:
//
//	1 accept   in the loop of the listener; the accepted socket's own address is the destination (accept.go)
//	2 dial     from the sender's address and port; nothing is read before the far end has accepted (dial.go)
//	  secure   to a port of TLS: both handshakes, if there is a certificate for the server (secure.go)
//	3 carry    read, cut into messages, show them to the Handler, write (direction.go, side.go)
//
// The process that runs a Relay makes no socket: package process forbids socket(2). Listeners are handed over,
// and the sockets that messages leave by come from Config.Open, which asks the daemon. The daemon makes both
// with Listen and OpenEgress (open.go).
package transparent

import (
	"context"
	"log/slog"
	"net/netip"
	"time"

	"ringway/sip/message"
)

// Transport is what carries a message.
type Transport uint8

// Transports. Sockets know UDP and TCP alone.
const (
	UDP Transport = iota
	TCP
	TLS

	transports
)

var transportNames = [transports]string{UDP: "udp", TCP: "tcp", TLS: "tls"}

func (t Transport) String() string { return transportNames[t] }

// Message is one SIP message on its way, or something that came where messages come and is none.
type Message struct {
	From, To  netip.AddrPort // its sender, and whom it was sent to
	Transport Transport

	// FromNear: it came in by a listener for the LAN side. What comes back on a TCP connection has the other
	// value than what went out on it.
	FromNear bool

	// Raw and SIP belong to the relay again when the Handler returns.
	Raw []byte
	SIP *message.Message // as scanned; not filled where Reason refuses it

	// Reason says why it was not read. With a Verdict of Refused, a datagram goes on only if the Handler lets it,
	// and on TCP the fault has ended the stream: the Action is ignored, both sides are reset.
	Reason message.Reason
}

// Action says what becomes of a message. The zero value: it goes on as it came.
type Action struct {
	Drop bool // it does not go on

	// Reply is sent back to the sender in the name of the one that the message was sent to, for example a 488.
	Reply []byte
	// Raw goes on instead of what came; nil: what came goes on.
	Raw []byte
	// Secret: Raw is overwritten once it has gone on.
	Secret bool
	// Close ends the TCP connection, after Reply and Raw have been written.
	Close bool
	// Wait is called before the message goes on; nil: nothing is. While it does not return, nothing else of the
	// listener goes on: it has to be bounded.
	Wait func()
}

// overwrite makes good what Secret says.
func (a *Action) overwrite() {
	if a.Secret {
		clear(a.Raw)
	}
}

// Handler judges a message. It is called on the goroutine that read it: several at once, those of one listener or
// of one direction of a connection one after the other. What it returns must stay unchanged. While it runs, nothing
// else of the listener is read. Datagrams that came together are all judged before the first of them goes on, so that
// what several of them wait for is asked for at once.
type Handler func(*Message) Action

// SocketKind says what kind of socket a message leaves by.
type SocketKind struct {
	Transport Transport
	V6        bool
	Inside    bool // for what goes through a tunnel: it bears another mark
}

const socketKinds = 4 * int(transports)

func (k SocketKind) index() int {
	i := int(k.Transport) * 4
	if k.V6 {
		i += 2
	}
	if k.Inside {
		i++
	}
	return i
}

func (k SocketKind) String() string {
	s := k.Transport.String() + "4"
	if k.V6 {
		s = k.Transport.String() + "6"
	}
	if k.Inside {
		s += "_inside"
	}
	return s
}

// Listener is a socket that TPROXY delivers to, made by Listen.
type Listener struct {
	FD   int  // stays the caller's: the relay works on a duplicate
	Near bool // what comes here comes from a LAN

	// PerSource is how many TCP connections one source address may have here at once: a PBX has one to each phone;
	// 0 means Limits.PerSource.
	PerSource int
}

// Config says what a Relay works with. Listeners, Handle and Open must be given. All functions are called from
// several goroutines at once.
type Config struct {
	Listeners []Listener
	Handle    Handler

	// Inside reports whether an address is behind a tunnel. It is called for every datagram.
	Inside func(netip.Addr) bool

	// Open gives n fresh sockets of a kind, or fewer, but one at least (OpenEgress makes them). They are the
	// relay's from then on. It may be slow: it runs in the background.
	Open func(ctx context.Context, kind SocketKind, n int) (fds []int, err error)

	// Secure says how SIP over TLS is read from now on; nil: it passes unread.
	Secure func() *Security

	// Unreachable is told of a TCP destination that refused a connection or did not answer. A sender whose
	// connection was accepted and then reset would never try its next server (DNS SRV), so the owner lets
	// connections to this destination pass unread for some time. It is called before the sender's connection is
	// reset, whose next attempt then finds that done.
	Unreachable func(destination netip.AddrPort)

	// Reserved reports UDP ports that programs of this machine bind. A socket of ours on such a port, bound
	// because a stranger sent from it, would keep them from it: what comes from there is dropped.
	Reserved func(port uint16) bool

	Limits Limits
	Log    *slog.Logger
}

// Limits bound what strangers can make the relay hold. A zero field means the default.
type Limits struct {
	Connections int   // at once; default 4096
	PerSource   int   // connections of one source address at once, if its Listener does not say; default 64
	Egress      int   // UDP sockets, one for each source port, family and side; default 1024
	Fresh       int   // sockets of each kind that wait for their use; default 16
	Memory      int64 // bytes of TCP buffers; default 64 MiB

	// Handshakes of TLS: at once, of one source address at once, and those that begin in a second; default 256, 16
	// and 50.
	Handshakes, HandshakesPerSource, HandshakeRate int

	Hello     time.Duration // for a ClientHello to become complete, from the start of its connection; default 30 s
	Handshake time.Duration // for both handshakes of a connection; also what they wait at most to begin; default 10 s

	Dial    time.Duration // for the far end to accept a connection; default 5 s
	Message time.Duration // for a message on TCP to become complete; default 30 s (RFC 3261: timer B is 32 s)
	Stall   time.Duration // for a peer to take what is written to it; default 60 s
	Idle    time.Duration // without traffic before a connection is closed; default 2 h
	Fetch   time.Duration // for a datagram to wait for a fresh socket; default 20 ms
}

func (l Limits) withDefaults() Limits {
	set(&l.Connections, 4096)
	set(&l.PerSource, 64)
	set(&l.Egress, 1024)
	set(&l.Fresh, 16)
	set(&l.Memory, 64<<20)
	set(&l.Handshakes, 256)
	set(&l.HandshakesPerSource, 16)
	set(&l.HandshakeRate, 50)
	set(&l.Hello, 30*time.Second)
	set(&l.Handshake, 10*time.Second)
	set(&l.Dial, 5*time.Second)
	set(&l.Message, 30*time.Second)
	set(&l.Stall, time.Minute)
	set(&l.Idle, 2*time.Hour)
	set(&l.Fetch, 20*time.Millisecond)
	return l
}

func set[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

func (c Config) withDefaults() Config {
	c.Limits = c.Limits.withDefaults()
	if c.Inside == nil {
		c.Inside = func(netip.Addr) bool { return false }
	}
	if c.Secure == nil {
		c.Secure = func() *Security { return nil }
	}
	if c.Unreachable == nil {
		c.Unreachable = func(netip.AddrPort) {}
	}
	if c.Reserved == nil {
		c.Reserved = func(uint16) bool { return false }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}
