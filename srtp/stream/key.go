// Package stream protects and opens the packets of one direction of a leg (RFC 3711), around the cryptography of
// pion/srtp. What it adds is what a relay needs that runs for months: an index is used once a key, whatever arrives;
// the roll-over counter is found again after a gap; no state is made for a packet that is not authenticated; keys
// change without a packet lost.
//
// Nothing here is safe for concurrent use: a direction belongs to one thread. Times are nanoseconds of any clock that
// never goes back. Neither Seal nor Open allocates, but for a source that is one of many (usualSources).
package stream

import (
	"bytes"
	"errors"
	"fmt"

	pion "github.com/pion/srtp/v3"

	"ringway/srtp/suite"
)

// Why a packet is dropped. Callers count each.
var (
	ErrMalformed   = errors.New("not an RTP or RTCP packet")
	ErrReplayed    = errors.New("index was seen already, or is older than the window")
	ErrForged      = errors.New("authentication failed")
	ErrUnknownKey  = errors.New("no key with this MKI")
	ErrSources     = errors.New("too many sources")
	ErrUnencrypted = errors.New("SRTCP is authenticated but not encrypted")
	ErrDuplicate   = errors.New("sequence number was sent already")
	ErrExhausted   = errors.New("key has protected as many packets as it may")
	ErrWiped       = errors.New("key was wiped")
)

// Limits of RFC 3711 section 9.2, for a key.
const (
	maxIndex     = 1<<48 - 1
	maxRTCPIndex = 1<<31 - 1
)

// Key is a master key, ready to be used: making it costs some 3 us and 40 allocations, which is why it is made
// elsewhere than on a forwarding thread. A key is for one direction of one leg.
type Key struct {
	suite        suite.Suite
	master, salt []byte // ours, for Wipe and for further contexts
	mki          []byte
	lifetime     uint64 // packets
	context      *pion.Context
	wiped        bool

	used   bool   // to protect something
	sealed uint64 // SRTP packets, of all sources
	opened uint64 // SRTP and SRTCP packets

	// sources is how many there were since the context was made.
	sources int
	// least and leastRTCP are the least indices that a receiver accepts of a source that it does not know: it may have
	// accepted smaller ones, of a source that it has forgotten.
	least, leastRTCP uint64
}

// NewKey makes a key of a master key and salt, which it copies. mki is nil or what each packet carries to name the key.
// lifetime is how many SRTP packets it may protect; 0: 2^48.
func NewKey(s suite.Suite, master, salt, mki []byte, lifetime uint64) (*Key, error) {
	if !s.Valid() {
		return nil, fmt.Errorf("%s is not a crypto suite", s)
	}
	if len(master) != s.KeyLen() || len(salt) != s.SaltLen() {
		return nil, fmt.Errorf("%s needs a key of %d bytes and a salt of %d, not %d and %d",
			s, s.KeyLen(), s.SaltLen(), len(master), len(salt))
	}
	if lifetime == 0 || lifetime > maxIndex {
		lifetime = maxIndex
	}
	k := &Key{suite: s, master: bytes.Clone(master), salt: bytes.Clone(salt), mki: bytes.Clone(mki), lifetime: lifetime}
	var err error
	k.context, err = k.newContext()
	return k, err
}

// newContext makes a context without replay protection, which is ours, since we tell the library each packet's counter.
func (k *Key) newContext() (*pion.Context, error) {
	if k.wiped {
		return nil, ErrWiped // or everybody would know the key
	}
	c, err := pion.CreateContext(k.master, k.salt, pion.ProtectionProfile(k.suite), pion.MasterKeyIndicator(k.mki))
	if err != nil {
		return nil, fmt.Errorf("SRTP context of %s: %w", k.suite, err)
	}
	return c, nil
}

// newSource says that the key is used for one more source. The library forgets none, so now and then it gets another
// context. Whoever calls it tells the library each packet's counter.
func (k *Key) newSource() {
	k.sources++
	if k.sources < contextUses {
		return
	}
	if c, err := k.newContext(); err == nil {
		k.context, k.sources = c, 0
	}
}

// Suite returns the suite of the key.
func (k *Key) Suite() suite.Suite { return k.suite }

// MKI returns the key's MKI, nil if it has none. It is not to be changed.
func (k *Key) MKI() []byte { return k.mki }

// Sealed returns how many SRTP packets were protected with the key.
func (k *Key) Sealed() uint64 { return k.sealed }

// Opened returns how many SRTP and SRTCP packets were opened with the key: what says that the far end uses it.
func (k *Key) Opened() uint64 { return k.opened }

// Wiped says whether the key was wiped.
func (k *Key) Wiped() bool { return k.wiped }

// may says whether the key may protect one more packet.
func (k *Key) may() error {
	switch {
	case k.wiped:
		return ErrWiped
	case k.sealed >= k.lifetime:
		return ErrExhausted
	}
	return nil
}

// Format prints nothing of the key.
func (k *Key) Format(s fmt.State, _ rune) { _, _ = fmt.Fprintf(s, "key of %s", k.suite) }

// Wipe overwrites the master key and gives up the session keys that the library has derived. These stay in memory until
// they are collected: Go gives no way to overwrite them. The key cannot be used again.
func (k *Key) Wipe() {
	clear(k.master)
	clear(k.salt)
	k.context, k.wiped = nil, true
}

var _ fmt.Formatter = (*Key)(nil)
