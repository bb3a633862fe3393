package channel

import (
	"encoding/binary"
	"fmt"
	"io"

	"ringway/srtp/keys"
)

// A frame is two bytes of length (big-endian, of all that follows), one byte of type, and the rest: in a handshake the
// version and a Noise message. A transport frame's type is the number of its session, and the rest is ciphertext, which
// also authenticates the type.
const (
	headLen = 3
	// handshakeType is no session's: those have sessionType set.
	handshakeType = 0x01
	sessionType   = 0x80
	sessionMask   = 0x7f

	tagLen           = 16 // ChaCha20-Poly1305 (RFC 8439)
	handshakeMessage = keyLen + tagLen
	maxFrame         = 1 + keys.MaxMessage + tagLen
)

// readFrame reads a frame into the buffer, which has room for the longest. Nothing is allocated for it.
func readFrame(r io.Reader, buffer *[headLen + maxFrame]byte) (kind byte, body []byte, err error) {
	if _, err := io.ReadFull(r, buffer[:headLen]); err != nil {
		return 0, nil, err
	}
	n := int(binary.BigEndian.Uint16(buffer[:]))
	if n < 1 || n > maxFrame {
		return 0, nil, fmt.Errorf("%w: length %d (at most %d)", ErrFrame, n, maxFrame)
	}
	body = buffer[headLen : headLen+n-1]
	if _, err := io.ReadFull(r, body); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return buffer[2], body, nil
}

// appendHead begins a frame whose rest has n bytes.
func appendHead(b []byte, kind byte, n int) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(1+n)), kind)
}

// readHandshake returns the Noise message in a frame.
func readHandshake(kind byte, body []byte) ([]byte, error) {
	switch {
	case kind != handshakeType || len(body) == 0:
		return nil, fmt.Errorf("%w: no handshake", ErrFrame)
	case body[0] != version:
		return nil, fmt.Errorf("%w: %d, not %d", ErrVersion, body[0], version)
	case len(body) != 1+handshakeMessage:
		return nil, fmt.Errorf("%w: handshake of %d bytes, not %d", ErrFrame, len(body), 1+handshakeMessage)
	}
	return body[1:], nil
}
