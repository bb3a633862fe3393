// Package plane runs the media of calls (package srtp/media) as a supervised process, rw-media. The process has eight
// sockets, which the daemon has opened, and nothing else.
//
// What makes it different from other kinds of processes is what its death must not cost: an index of SRTP encrypts one
// packet, ever (RFC 3711 section 9.1), whichever process seals it. So both halves keep the same book (book.go): which
// pairs of legs there are, under which keys, and how far each of these has been used.
//
//   - The process dies: the daemon's half gives its book to the next process, which has the same sockets. It goes on
//     2^13 indices further, which is more than the one before can have used without the daemon having heard of it.
//   - The daemon dies: media goes on. The next daemon asks the process for its book.
//   - Both die at once: the keys are gone, as they are in no file. The next daemon says how many calls that were.
//
// Main is the process (server.go); Supervisor is the daemon's half (supervisor.go). They meet in protocol.go.
package plane

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"ringway/srtp/dtls"
	"ringway/srtp/keys"
	"ringway/srtp/media"
	"ringway/srtp/stream"
	"ringway/srtp/suite"
)

// Keying is where the keys of a leg are from.
type Keying string

// Keyings.
const (
	Clear   Keying = "clear"   // there are none: RTP
	SDES    Keying = "sdes"    // session descriptions, which the owner has read
	DTLS    Keying = "dtls"    // a handshake, which the process does
	Channel Keying = "channel" // the key channel between boxes (package srtp/keys)
)

// Pair is a call's media: what arrives on one leg leaves by the other.
type Pair struct {
	ID uint64 `json:"id"`
	// Generation is Supervisor.Generation of when the keys were made. With another one they may have been used by a
	// process of which nothing is known, and are not taken.
	Generation uint64 `json:"generation"`
	Legs       [2]Leg `json:"legs"`
}

// Leg is one end of a pair. What has no comment is as in media.Leg.
type Leg struct {
	// ID is of no other leg. It stands for the local port: a leg keeps it where another pair has it, as that of another
	// branch of a fork, or after pairs were joined. Then its association goes on, and where it was learned to be. Set the
	// pair that has a leg from now on before the one that had it is removed.
	ID uint64 `json:"id"`
	// Call is where epochs are unique: two legs with keys of one call and epoch have one stream, and one pair at a time
	// has it. It goes on in another pair, also where the one before was removed.
	Call       uint64         `json:"call,omitempty"`
	Side       media.Side     `json:"side"`
	Local      netip.AddrPort `json:"local"`
	Remote     netip.AddrPort `json:"remote"`
	LocalRTCP  netip.AddrPort `json:"local_rtcp,omitzero"`
	RemoteRTCP netip.AddrPort `json:"remote_rtcp,omitzero"`

	Keying Keying `json:"keying"`
	// Send and Receive are of SDES.
	Send    Stream `json:"send,omitzero"`
	Receive Stream `json:"receive,omitzero"`
	// ClearSRTCP takes SRTCP that is authenticated only. It is of a leg that has no keys yet, or gets others.
	ClearSRTCP  bool         `json:"clear_srtcp,omitempty"`
	Association *Association `json:"association,omitempty"` // of DTLS
	Channel     keys.Leg     `json:"channel,omitzero"`      // of Channel

	Learn    bool           `json:"learn,omitempty"`
	Payloads media.Payloads `json:"payloads"`
	Quota    media.Quota    `json:"quota"`
	DSCP     uint8          `json:"dscp,omitempty"`
}

// Stream is the keys of one direction of a leg.
type Stream struct {
	// Epoch is another one where indices begin again. While it is the same, the keys are.
	Epoch uint32 `json:"epoch,omitempty"`
	// Keys are one to send with, and up to four to receive with, which MKIs tell apart; none: nothing passes.
	Keys []Key `json:"keys,omitempty"`
}

// Key is a master key. Its secret is beside the JSON of messages, never in it.
type Key struct {
	Suite    suite.Suite `json:"suite"`
	MKI      []byte      `json:"mki,omitempty"`
	Lifetime uint64      `json:"lifetime,omitempty"` // packets; 0: 2^48
	Master   []byte      `json:"-"`
	Salt     []byte      `json:"-"`
}

// Association is a leg's DTLS.
type Association struct {
	Epoch uint32 `json:"epoch"` // another one: another handshake
	// Offered says that an offer of ours has no answer yet: the peer's first message may come before it. Without a
	// role, there is nothing else to do yet.
	Offered bool      `json:"offered,omitempty"`
	Role    dtls.Role `json:"role,omitempty"` // 0: none is to begin (holdconn); one that is established goes on
	// Fingerprints are the values of a=fingerprint; LocalID and RemoteID those of a=tls-id.
	Fingerprints []string      `json:"fingerprints,omitempty"`
	LocalID      string        `json:"local_id,omitempty"`
	RemoteID     string        `json:"remote_id,omitempty"`
	Suites       []suite.Suite `json:"suites,omitempty"` // as in dtls.Agreement
}

// Bounds.
const (
	maxReceiveKeys  = 4
	maxMKI          = 40 // so that a packet with the longest tag and SRTCP's index has room for it
	maxFingerprints = 16
	maxText         = 256
)

// Format prints nothing of the key.
func (k Key) Format(s fmt.State, _ rune) { _, _ = fmt.Fprintf(s, "key of %s", k.Suite) }

var _ fmt.Formatter = Key{}

// Wipe overwrites the key.
func (k *Key) Wipe() {
	clear(k.Master)
	clear(k.Salt)
}

func (k *Key) clone() Key {
	return Key{k.Suite, bytes.Clone(k.MKI), k.Lifetime, bytes.Clone(k.Master), bytes.Clone(k.Salt)}
}

// same says whether it is the same secret, whatever it is called.
func (k *Key) same(o *Key) bool {
	return k.Suite == o.Suite && bytes.Equal(k.MKI, o.MKI) && bytes.Equal(k.Master, o.Master) &&
		bytes.Equal(k.Salt, o.Salt)
}

func (k *Key) check() error {
	switch {
	case !k.Suite.Valid():
		return fmt.Errorf("%s is not a crypto suite", k.Suite)
	case len(k.Master) != k.Suite.KeyLen() || len(k.Salt) != k.Suite.SaltLen():
		return fmt.Errorf("key of %s with %d and %d bytes", k.Suite, len(k.Master), len(k.Salt))
	case len(k.MKI) > maxMKI:
		return fmt.Errorf("MKI of %d bytes (allowed 0-%d)", len(k.MKI), maxMKI)
	}
	return nil
}

// live is the key as package stream has it.
func (k *Key) live() (*stream.Key, error) {
	return stream.NewKey(k.Suite, k.Master, k.Salt, k.MKI, k.Lifetime)
}

// Wipe overwrites all keys.
func (p *Pair) Wipe() {
	for _, k := range p.keys() {
		k.Wipe()
	}
}

// keys are all keys, always in the same order.
func (p *Pair) keys() (all []*Key) {
	for i := range p.Legs {
		for _, s := range []*Stream{&p.Legs[i].Send, &p.Legs[i].Receive} {
			for j := range s.Keys {
				all = append(all, &s.Keys[j])
			}
		}
	}
	return all
}

// check returns what is wrong with a pair by itself.
func (p *Pair) check() error {
	for i := range p.Legs {
		if err := p.Legs[i].check(); err != nil {
			return fmt.Errorf("leg %d: %w", p.Legs[i].ID, err)
		}
	}
	if p.Legs[0].ID == p.Legs[1].ID {
		return fmt.Errorf("leg %d cannot be joined with itself", p.Legs[0].ID)
	}
	return nil
}

func (l *Leg) check() error {
	keyed := l.forMedia()
	if err := keyed.Check(); err != nil {
		return err
	}
	switch {
	case (l.Keying == DTLS) != (l.Association != nil):
		return errors.New("an association belongs to a leg of DTLS")
	case (l.Keying == Channel) != (l.Channel != keys.Leg{}):
		return errors.New("a name in the key channel belongs to a leg whose keys are from there")
	case l.Keying != SDES && (len(l.Send.Keys) > 0 || len(l.Receive.Keys) > 0):
		return errors.New("keys belong to a leg of SDES")
	}
	switch l.Keying {
	case Clear, Channel:
	case SDES:
		return l.checkKeys()
	case DTLS:
		_, err := l.agreement()
		return err
	default:
		return fmt.Errorf("%.20q is not a keying", string(l.Keying))
	}
	return nil
}

func (l *Leg) checkKeys() error {
	if len(l.Send.Keys) > 1 || len(l.Receive.Keys) > maxReceiveKeys {
		return fmt.Errorf("%d and %d keys (allowed: 1 to send, %d to receive)",
			len(l.Send.Keys), len(l.Receive.Keys), maxReceiveKeys)
	}
	for _, s := range []Stream{l.Send, l.Receive} {
		for i := range s.Keys {
			if err := s.Keys[i].check(); err != nil {
				return err
			}
		}
	}
	for i := range l.Receive.Keys {
		k, first := &l.Receive.Keys[i], &l.Receive.Keys[0]
		if i > 0 && (k.Suite != first.Suite || len(k.MKI) == 0 || len(k.MKI) != len(first.MKI)) {
			return errors.New("several keys need one suite and MKIs of one length")
		}
		if slices.ContainsFunc(l.Receive.Keys[:i], func(o Key) bool { return bytes.Equal(o.MKI, k.MKI) }) {
			return errors.New("two keys with one MKI")
		}
	}
	return nil
}

// forMedia is the leg as package media has it, without streams.
func (l *Leg) forMedia() media.Leg {
	m := media.Leg{
		ID: l.ID, Side: l.Side, Local: l.Local, Remote: l.Remote, LocalRTCP: l.LocalRTCP, RemoteRTCP: l.RemoteRTCP,
		Protection: media.Secure, DTLS: l.Keying == DTLS, Learn: l.Learn, Payloads: l.Payloads, Quota: l.Quota, DSCP: l.DSCP,
	}
	if l.Keying == Clear {
		m.Protection = media.Clear
	}
	return m
}

// agreement is what package dtls needs to know; nil: there is no role yet.
func (l *Leg) agreement() (*dtls.Agreement, error) {
	a := l.Association
	if len(a.Fingerprints) > maxFingerprints || len(a.LocalID) > maxText || len(a.RemoteID) > maxText ||
		len(a.Suites) > maxFingerprints {
		return nil, errors.New("an association of that size is not taken")
	}
	for _, s := range a.Suites {
		if !slices.Contains(dtls.Suites(), s) {
			return nil, fmt.Errorf("DTLS has no profile for %s", s)
		}
	}
	if a.Role == 0 {
		return nil, nil
	}
	if a.Role != dtls.Client && a.Role != dtls.Server {
		return nil, errors.New("an association has no such role")
	}
	out := &dtls.Agreement{
		Role: a.Role, LocalID: a.LocalID, RemoteID: a.RemoteID, Remote: l.Remote, Suites: a.Suites,
	}
	for _, value := range a.Fingerprints {
		f, err := dtls.ParseFingerprint(value)
		if err != nil {
			return nil, err
		}
		out.Fingerprints = append(out.Fingerprints, f)
	}
	if !slices.ContainsFunc(out.Fingerprints, dtls.Fingerprint.Accepted) {
		return nil, errors.New("an association has no fingerprint that is accepted")
	}
	return out, nil
}

// packKeys appends the secrets of keys, which are in this order in the JSON beside them.
func packKeys(b []byte, all []*Key) []byte {
	for _, k := range all {
		b = append(append(b, k.Master...), k.Salt...)
	}
	return b
}

var errSecrets = errors.New("the keys beside the message are not those in it")

// unpackKeys gives keys their secrets. The lengths follow from the suites, and nothing may be left.
func unpackKeys(b []byte, all []*Key) error {
	take := func(n int) ([]byte, bool) {
		if n == 0 || len(b) < n {
			return nil, false
		}
		out := bytes.Clone(b[:n])
		b = b[n:]
		return out, true
	}
	for _, k := range all {
		master, ok := take(k.Suite.KeyLen())
		if ok {
			k.Master = master
			k.Salt, ok = take(k.Suite.SaltLen())
		}
		if !ok {
			wipeKeys(all)
			return errSecrets
		}
	}
	if len(b) > 0 {
		wipeKeys(all)
		return errSecrets
	}
	return nil
}

func wipeKeys(all []*Key) {
	for _, k := range all {
		k.Wipe()
	}
}
