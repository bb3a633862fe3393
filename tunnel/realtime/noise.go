package realtime

import (
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.org/x/crypto/curve25519"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tai64n"

	"ringway/tunnel"
)

// The handshake: Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s with WireGuard's prologue (paper, sections 5.4.2 and
// 5.4.3). Its state is in arrays of our own, so that it can be wiped. Nothing here keeps state between calls.

var (
	errLowOrder = errors.New("the other end's public key is of low order")
	errForged   = errors.New("authentication failed")
)

var zeroNonce [chacha20poly1305.NonceSize]byte

// identity is the device's own key pair.
type identity struct {
	private tunnel.PrivateKey
	public  tunnel.PublicKey
	set     bool
}

// shared is Curve25519's shared secret (RFC 7748, section 6.1: all zero is refused).
func shared(private *[32]byte, public []byte) (out [32]byte, err error) {
	s, err := curve25519.X25519(private[:], public)
	if err != nil {
		return out, errLowOrder
	}
	copy(out[:], s)
	clear(s)
	return out, nil
}

// symmetric is Noise's symmetric state: chaining key C and hash H.
type symmetric struct{ chain, hash [blake2s.Size]byte }

func newSymmetric(responder *tunnel.PublicKey) symmetric {
	s := symmetric{chain: device.InitialChainKey, hash: device.InitialHash}
	s.mixHash(responder[:])
	return s
}

func (s *symmetric) mixHash(data []byte) {
	h, _ := blake2s.New256(nil) // fails for no key that is nil
	h.Write(s.hash[:])
	h.Write(data)
	h.Sum(s.hash[:0])
}

func (s *symmetric) mixKey(in []byte) { device.KDF1(&s.chain, s.chain[:], in) }

// mixSecret mixes a shared secret and wipes it; key seals what follows.
func (s *symmetric) mixSecret(secret *[32]byte) (key [32]byte) {
	device.KDF2(&s.chain, &key, s.chain[:], secret[:])
	clear(secret[:])
	return key
}

func (s *symmetric) seal(dst []byte, key *[32]byte, plain []byte) {
	a, _ := chacha20poly1305.New(key[:]) // fails for no key of 32 bytes
	a.Seal(dst[:0], zeroNonce[:], plain, s.hash[:])
	wipe(a)
	clear(key[:])
	s.mixHash(dst[:len(plain)+tagSize])
}

func (s *symmetric) open(dst []byte, key *[32]byte, sealed []byte) error {
	a, _ := chacha20poly1305.New(key[:])
	_, err := a.Open(dst[:0], zeroNonce[:], sealed, s.hash[:])
	wipe(a)
	clear(key[:])
	if err != nil {
		return errForged
	}
	s.mixHash(sealed)
	return nil
}

// split makes the session's two keys (section 5.4.5).
func (s *symmetric) split() (initiator, responder [32]byte) {
	device.KDF2(&initiator, &responder, s.chain[:], nil)
	s.wipe()
	return initiator, responder
}

func (s *symmetric) wipe() {
	clear(s.chain[:])
	clear(s.hash[:])
}

// initiation is what an initiator keeps until it is answered.
type initiation struct {
	symmetric
	ephemeral [32]byte
	index     uint32
}

func (i *initiation) wipe() {
	i.symmetric.wipe()
	clear(i.ephemeral[:])
}

func newEphemeral() (private [32]byte, public [32]byte, err error) {
	if _, err := rand.Read(private[:]); err != nil {
		return private, public, fmt.Errorf("draw an ephemeral key: %w", err)
	}
	p, err := curve25519.X25519(private[:], curve25519.Basepoint)
	if err != nil {
		return private, public, err
	}
	copy(public[:], p)
	return private, public, nil
}

// initiate writes an initiation without its MACs into msg. static is the shared secret of the two static keys.
func (id *identity) initiate(to *tunnel.PublicKey, static [32]byte, index uint32, now tai64n.Timestamp,
	msg *[initiationSize]byte) (*initiation, error) {
	s := newSymmetric(to)
	i := &initiation{index: index}
	private, public, err := newEphemeral()
	if err != nil {
		return nil, err
	}
	i.ephemeral = private
	binary.LittleEndian.PutUint32(msg[0:], typeInitiation)
	binary.LittleEndian.PutUint32(msg[4:], index)
	copy(msg[8:40], public[:])
	s.mixKey(public[:])
	s.mixHash(public[:])
	es, err := shared(&private, to[:])
	if err != nil {
		return nil, err
	}
	key := s.mixSecret(&es)
	s.seal(msg[40:88], &key, id.public[:])
	key = s.mixSecret(&static)
	s.seal(msg[88:116], &key, now[:])
	i.symmetric = s
	clear(private[:])
	return i, nil
}

// received is an initiation as far as it was read.
type received struct {
	symmetric
	ephemeral [32]byte
	static    tunnel.PublicKey
	sender    uint32
	time      tai64n.Timestamp
}

// read reads an initiation up to its sender's static key. That costs one multiplication, and says whether it
// comes from a peer.
func (id *identity) read(msg []byte) (*received, error) {
	r := &received{symmetric: newSymmetric(&id.public), sender: binary.LittleEndian.Uint32(msg[4:])}
	copy(r.ephemeral[:], msg[8:40])
	r.mixKey(r.ephemeral[:])
	r.mixHash(r.ephemeral[:])
	es, err := shared((*[32]byte)(&id.private), r.ephemeral[:])
	if err != nil {
		return nil, err
	}
	key := r.mixSecret(&es)
	if err := r.open(r.static[:], &key, msg[40:88]); err != nil {
		return nil, err
	}
	return r, nil
}

// finish reads the rest, which is the peer's time stamp.
func (r *received) finish(static [32]byte, msg []byte) error {
	key := r.mixSecret(&static)
	return r.open(r.time[:], &key, msg[88:116])
}

// respond writes the response without its MACs and makes the session's keys.
func (r *received) respond(psk *tunnel.PresharedKey, index uint32, msg *[responseSize]byte) (
	send, receive [32]byte, err error) {
	private, public, err := newEphemeral()
	if err != nil {
		return send, receive, err
	}
	defer clear(private[:])
	binary.LittleEndian.PutUint32(msg[0:], typeResponse)
	binary.LittleEndian.PutUint32(msg[4:], index)
	binary.LittleEndian.PutUint32(msg[8:], r.sender)
	copy(msg[12:44], public[:])
	r.mixHash(public[:])
	r.mixKey(public[:])
	ee, err := shared(&private, r.ephemeral[:])
	if err != nil {
		return send, receive, err
	}
	r.mixKey(ee[:])
	se, err := shared(&private, r.static[:])
	if err != nil {
		return send, receive, err
	}
	r.mixKey(se[:])
	clear(ee[:])
	clear(se[:])
	key := r.mixPSK(psk)
	r.seal(msg[44:60], &key, nil)
	receive, send = r.split()
	return send, receive, nil
}

func (s *symmetric) mixPSK(psk *tunnel.PresharedKey) (key [32]byte) {
	var tau [32]byte
	device.KDF3(&s.chain, &tau, &key, s.chain[:], psk[:])
	s.mixHash(tau[:])
	clear(tau[:])
	return key
}

// complete reads the response to i and makes the session's keys. A forged response leaves i as it is.
func (id *identity) complete(i *initiation, psk *tunnel.PresharedKey, msg []byte) (
	send, receive [32]byte, sender uint32, err error) {
	s := i.symmetric
	defer s.wipe()
	ephemeral := msg[12:44]
	s.mixHash(ephemeral)
	s.mixKey(ephemeral)
	ee, err := shared(&i.ephemeral, ephemeral)
	if err != nil {
		return send, receive, 0, err
	}
	s.mixKey(ee[:])
	se, err := shared((*[32]byte)(&id.private), ephemeral)
	if err != nil {
		return send, receive, 0, err
	}
	s.mixKey(se[:])
	clear(ee[:])
	clear(se[:])
	key := s.mixPSK(psk)
	if err := s.open(nil, &key, msg[44:60]); err != nil {
		return send, receive, 0, err
	}
	send, receive = s.split()
	return send, receive, binary.LittleEndian.Uint32(msg[4:]), nil
}

// sameMAC compares in constant time.
func sameMAC(a, b []byte) bool { return hmac.Equal(a, b) }

// wipe clears the key inside an AEAD of x/crypto, which is a struct of nothing but the key (a test verifies
// that). The AEAD may no longer be used: it would encrypt with a key that everybody knows.
func wipe(a cipher.AEAD) {
	type value struct{ _, data unsafe.Pointer }
	clear((*[chacha20poly1305.KeySize]byte)((*value)(unsafe.Pointer(&a)).data)[:])
}
