package dtls

import (
	"errors"
	"fmt"
	"io"
	"slices"

	pion "github.com/pion/dtls/v3"

	"ringway/srtp/stream"
	"ringway/srtp/suite"
)

// ErrProfile says that the handshake agreed on no protection profile for SRTP that both may use.
var ErrProfile = errors.New("no common SRTP protection profile")

// exporter is the label under which the keys leave the handshake (RFC 5764 section 4.2).
const exporter = "EXTRACTOR-dtls_srtp"

// Suites are those that DTLS-SRTP has registered profiles for, in the order in which we offer them: a peer that takes
// the first gets an AEAD.
func Suites() []suite.Suite {
	return []suite.Suite{
		suite.AEADAES128GCM, suite.AEADAES256GCM, suite.AES128CMHMACSHA180, suite.AES128CMHMACSHA132,
	}
}

// Secret is a master key and its salt.
type Secret struct{ Master, Salt []byte }

// Format prints nothing of the key.
func (Secret) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, "SRTP secret") }

// Keys are what a handshake is for: a key for each direction. Whoever gets them overwrites them when they are no
// longer needed. They are plain bytes, since the next process that serves the leg needs them.
type Keys struct {
	Suite         suite.Suite
	Send, Receive Secret // from our point of view
}

// Wipe overwrites the keys.
func (k *Keys) Wipe() {
	for _, b := range [][]byte{k.Send.Master, k.Send.Salt, k.Receive.Master, k.Receive.Salt} {
		clear(b)
	}
}

// Format prints nothing of the keys.
func (k *Keys) Format(s fmt.State, _ rune) { _, _ = fmt.Fprintf(s, "SRTP keys of %s", k.Suite) }

// Streams makes both directions' keys of package stream, which have copies: one to seal, one to open. It takes some 6
// us and belongs on no forwarding thread. There is no MKI: use_srtp could carry one (RFC 5764 section 4.1.3), and
// nobody needs it where a handshake changes the keys.
func (k *Keys) Streams() (send, receive *stream.Key, err error) {
	if send, err = stream.NewKey(k.Suite, k.Send.Master, k.Send.Salt, nil, 0); err != nil {
		return nil, nil, fmt.Errorf("key to send with: %w", err)
	}
	if receive, err = stream.NewKey(k.Suite, k.Receive.Master, k.Receive.Salt, nil, 0); err != nil {
		send.Wipe()
		return nil, nil, fmt.Errorf("key to receive with: %w", err)
	}
	return send, receive, nil
}

// export takes the keys from a handshake.
func export(c *pion.Conn, role Role, allowed []suite.Suite) (*Keys, error) {
	profile, ok := c.SelectedSRTPProtectionProfile()
	s := suite.Suite(profile)
	if !ok || !slices.Contains(allowed, s) {
		return nil, ErrProfile
	}
	state, ok := c.ConnectionState()
	if !ok {
		return nil, errors.New("handshake has no state")
	}
	material, err := state.ExportKeyingMaterial(exporter, nil, 2*(s.KeyLen()+s.SaltLen()))
	if err != nil {
		return nil, fmt.Errorf("export SRTP keys: %w", err)
	}
	defer clear(material)
	return split(material, s, role), nil
}

// split cuts the exported material: the client's key, the server's, the client's salt, the server's
// (RFC 5764 section 4.2).
func split(material []byte, s suite.Suite, role Role) *Keys {
	cut := func(n int) []byte {
		b := slices.Clone(material[:n])
		material = material[n:]
		return b
	}
	client, server := Secret{Master: cut(s.KeyLen())}, Secret{Master: cut(s.KeyLen())}
	client.Salt, server.Salt = cut(s.SaltLen()), cut(s.SaltLen())
	if role == Client {
		return &Keys{Suite: s, Send: client, Receive: server}
	}
	return &Keys{Suite: s, Send: server, Receive: client}
}
