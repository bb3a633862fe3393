package transparent

import (
	"crypto/tls"
	"encoding/binary"
	"io"
	"net"
	"time"

	"ringway/sip/certificate"
)

// What a stream that may be TLS begins with (RFC 8446, sections 4 and 5.1; RFC 5246 is the same in this).
const (
	recordHandshake   = 22
	recordHeader      = 5
	maxRecord         = 1<<14 + 256
	handshakeHello    = 1
	handshakeHeader   = 4
	maxHello          = 16 << 10 // 2 KB with post-quantum key shares; crypto/tls takes 64 KB
	maxHelloWithFrame = 2 * maxHello
)

// helloState says how far a ClientHello has come.
type helloState uint8

const (
	helloPartial helloState = iota
	helloWhole
	helloNone      // the stream does not begin with TLS
	helloMalformed // it does, but with nothing that can be read
)

// readHello reads the ClientHello that a stream begins with. It accepts any bytes.
func readHello(b []byte) (*certificate.Offered, helloState) {
	n, state := helloLength(b)
	if state != helloWhole {
		return nil, state
	}
	var offered *certificate.Offered
	c := tls.Server(replay{rest: b[:n]}.conn(), certificate.PeekConfig(func(info *tls.ClientHelloInfo) {
		offered = certificate.NewOffered(info)
	}))
	_ = c.Handshake() // it ends with an error in any case, and what it answers goes nowhere
	if offered == nil {
		return nil, helloMalformed
	}
	return offered, helloWhole
}

// helloLength finds the end of a ClientHello, which may be cut into records anywhere.
func helloLength(b []byte) (n int, state helloState) {
	have, want := 0, handshakeHeader // bytes of the handshake message
	var header [handshakeHeader]byte
	for have < want {
		rest := b[n:]
		switch {
		case n > maxHelloWithFrame:
			return 0, helloMalformed
		case len(rest) > 0 && rest[0] != recordHandshake, len(rest) > 1 && rest[1] != 3:
			if n == 0 {
				return 0, helloNone
			}
			return 0, helloMalformed
		case len(rest) < recordHeader:
			return 0, helloPartial
		}
		length := int(binary.BigEndian.Uint16(rest[3:]))
		if length == 0 || length > maxRecord {
			return 0, helloMalformed
		}
		content := rest[recordHeader:]
		content = content[:min(length, len(content))]
		if have < handshakeHeader {
			copy(header[have:], content)
		}
		have += len(content)
		if have > 0 && header[0] != handshakeHello {
			return 0, helloMalformed
		}
		if have >= handshakeHeader {
			want = handshakeHeader + (int(header[1])<<16 | int(header[2])<<8 | int(header[3]))
			if want > maxHello {
				return 0, helloMalformed
			}
		}
		n += recordHeader + length
		if len(content) < length {
			return 0, helloPartial
		}
	}
	return n, helloWhole
}

// replay gives bytes that were read before, and takes what is written nowhere.
type replay struct{ rest []byte }

func (r replay) conn() net.Conn { return &r }

func (r *replay) Read(b []byte) (int, error) {
	if len(r.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *replay) Write(b []byte) (int, error)      { return len(b), nil }
func (r *replay) Close() error                     { return nil }
func (r *replay) LocalAddr() net.Addr              { return nil }
func (r *replay) RemoteAddr() net.Addr             { return nil }
func (r *replay) SetDeadline(time.Time) error      { return nil }
func (r *replay) SetReadDeadline(time.Time) error  { return nil }
func (r *replay) SetWriteDeadline(time.Time) error { return nil }

// prefixed is a connection of which the first bytes were read before.
type prefixed struct {
	*net.TCPConn
	prefix []byte
}

func (p *prefixed) Read(b []byte) (int, error) {
	if len(p.prefix) == 0 {
		return p.TCPConn.Read(b)
	}
	n := copy(b, p.prefix)
	if p.prefix = p.prefix[n:]; len(p.prefix) == 0 {
		p.prefix = nil
	}
	return n, nil
}
