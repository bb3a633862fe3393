package realtime

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"hash"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.zx2c4.com/wireguard/device"

	"ringway/tunnel"
	"ringway/tunnel/datagram"
)

// Cookies (sections 5.3, 5.4.4 and 5.4.7): under load a handshake message must prove that its sender receives
// at the address that it sends from. device.CookieChecker does the same, but its check locks and allocates,
// and the inbound thread may do neither. That thread checks the proofs of peers whose address is known, and
// lets those through any flood.

// cookies makes and checks proofs. It belongs to the control side.
type cookies struct {
	encrypt cipher.AEAD // for replies, keyed by our public key
	secret  hash.Hash   // MAC keyed by a secret that changes every two minutes
	born    int64       // of the secret; 0: none yet
	number  uint64      // of the secret
}

func newCookies(own *tunnel.PublicKey) (*cookies, error) {
	h, err := blake2s.New256(nil)
	if err != nil {
		return nil, err
	}
	h.Write([]byte(device.WGLabelCookie))
	h.Write(own[:])
	a, err := chacha20poly1305.NewX(h.Sum(nil))
	if err != nil {
		return nil, fmt.Errorf("key the cookies: %w", err)
	}
	return &cookies{encrypt: a}, nil
}

// renew makes a new secret if the last one is too old. It reports whether it did.
func (c *cookies) renew(now int64) (did bool, err error) {
	if c.born != 0 && time.Duration(now-c.born) < cookieRefreshTime {
		return false, nil
	}
	var key [blake2s.Size]byte
	if _, err := rand.Read(key[:]); err != nil {
		return false, fmt.Errorf("draw the cookies' secret: %w", err)
	}
	c.secret, err = blake2s.New128(key[:])
	c.born, c.number = now, c.number+1
	return true, err
}

// of returns the cookie of an address and port.
func (c *cookies) of(a *datagram.Sockaddr) (cookie [blake2s.Size128]byte) {
	c.secret.Reset()
	c.secret.Write(a.B[2:4])
	if a.V6() {
		c.secret.Write(a.B[8:24])
	} else {
		c.secret.Write(a.B[4:8])
	}
	c.secret.Sum(cookie[:0])
	return cookie
}

// check reports whether a message's second MAC was made with the cookie of the address that it came from.
func (c *cookies) check(msg []byte, from *datagram.Sockaddr) bool {
	cookie := c.of(from)
	m, err := blake2s.New128(cookie[:])
	return err == nil && hasMAC2(m, msg)
}

// hasMAC2 reports whether m makes the message's second MAC.
func hasMAC2(m hash.Hash, msg []byte) bool {
	at := len(msg) - blake2s.Size128
	m.Reset()
	m.Write(msg[:at])
	var sum [blake2s.Size]byte
	return sameMAC(m.Sum(sum[:0]), msg[at:])
}

// reply writes the answer to a message that proves nothing.
func (c *cookies) reply(msg []byte, to *datagram.Sockaddr, out *[cookieSize]byte) error {
	cookie := c.of(to)
	binary.LittleEndian.PutUint32(out[0:], typeCookie)
	copy(out[4:8], msg[4:8]) // its sender index
	nonce := out[8 : 8+chacha20poly1305.NonceSizeX]
	if _, err := rand.Read(nonce); err != nil {
		return fmt.Errorf("draw a nonce: %w", err)
	}
	mac1 := msg[len(msg)-2*blake2s.Size128 : len(msg)-blake2s.Size128]
	c.encrypt.Seal(out[8+chacha20poly1305.NonceSizeX:8+chacha20poly1305.NonceSizeX], nonce, cookie[:], mac1)
	return nil
}

// endpointKey is an address and port, without a zone.
type endpointKey struct {
	addr [16]byte
	port uint16
}

func endpointKeyOf(s *datagram.Sockaddr) endpointKey {
	h := endpointKey{port: binary.BigEndian.Uint16(s.B[2:])}
	if s.V6() {
		copy(h.addr[:], s.B[8:24])
	} else {
		h.addr = s.Bare().As16()
	}
	return h
}

// knownEndpoints are the peers' addresses, each with the MAC that proves it. They do not change, but are
// replaced as a whole; the MACs are the inbound thread's.
type knownEndpoints struct {
	proofs map[endpointKey]hash.Hash
	addrs  map[[16]byte]struct{}
}

// proof is the MAC for a peer's address. It is kept while address and secret stay the same.
type proof struct {
	at     datagram.Sockaddr
	number uint64
	mac    hash.Hash
}

// publishKnownEndpointsLocked tells the inbound thread where the peers are.
func (e *Engine) publishKnownEndpointsLocked() {
	h := &knownEndpoints{
		proofs: make(map[endpointKey]hash.Hash, len(e.peers)),
		addrs:  make(map[[16]byte]struct{}, len(e.peers)),
	}
	for _, p := range e.peers {
		to := p.endpoint.Load()
		if to == nil {
			continue
		}
		at := endpointKeyOf(&to.raw)
		h.addrs[at.addr] = struct{}{}
		if e.cookies == nil || e.cookies.secret == nil {
			continue
		}
		if p.proof.mac == nil || p.proof.at != to.raw || p.proof.number != e.cookies.number {
			cookie := e.cookies.of(&to.raw)
			m, err := blake2s.New128(cookie[:])
			if err != nil {
				continue
			}
			p.proof = proof{to.raw, e.cookies.number, m}
		}
		h.proofs[at] = p.proof.mac
	}
	e.known.Store(h)
}
