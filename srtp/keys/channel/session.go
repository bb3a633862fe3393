package channel

import (
	"crypto/rand"
	"errors"
	"fmt"

	"github.com/flynn/noise"
)

// version is of everything that both ends must do alike. It changes when kinds of messages cannot express a difference.
const version = 1

// prologue binds a handshake to what it is for (Noise section 6). A renewal has the handshake hash of the session
// before it behind that (section 11.2).
var prologue = append([]byte("ringway media keys "), version)

var cipherSuite = noise.NewCipherSuite(noise.DH25519, noise.CipherChaChaPoly, noise.HashBLAKE2s)

// handshake is a Noise_KK handshake under way: one message each way.
//
//	-> e, es, ss
//	<- e, ee, se
type handshake struct {
	state     *noise.HandshakeState
	initiator bool
}

// session is what a handshake has agreed.
type session struct {
	send, receive *noise.CipherState
	binding       []byte
}

func newHandshake(own *Identity, far PublicKey, binding []byte) (*handshake, error) {
	if own.public == far {
		return nil, errors.New("both ends of the key channel have the same identity")
	}
	h := &handshake{initiator: Dials(own.public, far)}
	var err error
	h.state, err = noise.NewHandshakeState(noise.Config{
		CipherSuite: cipherSuite, Pattern: noise.HandshakeKK, Random: rand.Reader, Initiator: h.initiator,
		Prologue:      append(prologue[:len(prologue):len(prologue)], binding...),
		StaticKeypair: noise.DHKey{Private: own.private[:], Public: own.public[:]}, PeerStatic: far[:],
	})
	if err != nil {
		return nil, fmt.Errorf("handshake of the key channel: %w", err)
	}
	return h, nil
}

// write makes this end's message. The responder has a session then.
func (h *handshake) write() ([]byte, *session, error) {
	out, first, second, err := h.state.WriteMessage(nil, nil)
	if err != nil {
		return nil, nil, fmt.Errorf("handshake of the key channel: %w", err)
	}
	return out, h.session(first, second), nil
}

// read takes the far end's message. The initiator has a session then.
func (h *handshake) read(b []byte) (*session, error) {
	_, first, second, err := h.state.ReadMessage(nil, b)
	if err != nil {
		return nil, ErrIdentity
	}
	return h.session(first, second), nil
}

// session is what comes of the last message: a cipher of the initiator's direction, and one of the responder's.
func (h *handshake) session(initiators, responders *noise.CipherState) *session {
	if initiators == nil {
		return nil
	}
	s := &session{send: initiators, receive: responders, binding: h.state.ChannelBinding()}
	if !h.initiator {
		s.send, s.receive = s.receive, s.send
	}
	h.wipe()
	return s
}

// wipe overwrites the ephemeral private key. What the library has computed with it stays until it is collected.
func (h *handshake) wipe() { clear(h.state.LocalEphemeral().Private) }

// wipe overwrites a cipher's key. The library gives no way to clear it; Rekey puts another one in its place, from which
// the one before cannot be computed (Noise section 11.3).
func wipe(c *noise.CipherState) {
	if c != nil {
		c.Rekey()
	}
}
