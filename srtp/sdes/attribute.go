// Package sdes reads and writes the crypto attribute of session descriptions, by which two ends agree on the keys of
// SRTP in their signalling (RFC 4568), and picks one of those offered. A key appears in no error and no log line.
package sdes

import (
	"bytes"
	"crypto/rand"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"math/big"
	"slices"
	"strconv"
	"strings"

	"ringway/srtp/suite"
)

// Limits of the RFC (sections 5.1.1, 6.1, 6.3.5), and one of ours.
const (
	maxTag      = 999_999_999
	maxMKI      = 128     // bytes
	maxLifetime = 1 << 48 // packets, for SRTP
	minWindow   = 64      // packets, of WSH
	maxKeys     = 8       // ours: keys of one attribute
)

// Attribute is one line a=crypto.
type Attribute struct {
	Tag   uint32
	Suite suite.Suite
	Keys  []Key // one at least; with several each has an MKI, all of one length

	UnencryptedSRTP  bool
	UnencryptedSRTCP bool
	Unauthenticated  bool // SRTP without a tag
	Window           int  // WSH: the smallest replay window that the sender asks for, packets; 0: not given
}

// Key is a master key. Its fields are secret.
type Key struct {
	Master, Salt []byte
	Lifetime     uint64 // packets; 0: not given, which means 2^48 of SRTP and 2^31 of SRTCP (RFC 3711 section 9.2)
	MKI          []byte // nil: none
}

// Format prints nothing of the key.
func (k Key) Format(s fmt.State, _ rune) {
	_, _ = io.WriteString(s, "key of "+strconv.Itoa(len(k.Master))+" bytes")
}

// Equal says whether key and salt are the same (RFC 4568 section 7.1.4: then, at the same address and port, the
// roll-over counter goes on).
func (k Key) Equal(other Key) bool {
	return subtle.ConstantTimeCompare(k.Master, other.Master)&subtle.ConstantTimeCompare(k.Salt, other.Salt) == 1
}

// Wipe overwrites the key.
func (k Key) Wipe() {
	clear(k.Master)
	clear(k.Salt)
}

// NewKey makes a random key for s, without an MKI.
func NewKey(s suite.Suite) Key {
	k := Key{Master: make([]byte, s.KeyLen()), Salt: make([]byte, s.SaltLen())}
	_, _ = rand.Read(k.Master) // never fails: crypto/rand
	_, _ = rand.Read(k.Salt)
	return k
}

// Parse reads the value of the attribute: what follows "a=crypto:". An attribute with a suite, a method or a session
// parameter that is not supported is an error; section 6.3.7 wants such a line to be ignored, not the offer refused.
func Parse(value string) (Attribute, error) {
	fields := strings.FieldsFunc(value, func(r rune) bool { return r == ' ' || r == '\t' })
	if len(fields) < 3 {
		return Attribute{}, errors.New("crypto attribute: a tag, a suite and a key are needed")
	}
	var a Attribute
	tag, err := strconv.ParseUint(fields[0], 10, 32)
	if err != nil || tag > maxTag {
		return Attribute{}, fmt.Errorf("crypto attribute: tag %.20q is not a number of at most 9 digits", fields[0])
	}
	a.Tag = uint32(tag)
	if a.Suite, err = suite.Parse(fields[1]); err != nil {
		return Attribute{}, fmt.Errorf("crypto attribute %d: %w", tag, err)
	}

	keys := strings.Split(fields[2], ";")
	if len(keys) > maxKeys {
		return Attribute{}, fmt.Errorf("crypto attribute %d: more than %d keys", tag, maxKeys)
	}
	for i, text := range keys {
		k, err := parseKey(text, a.Suite)
		if err != nil {
			return Attribute{}, fmt.Errorf("crypto attribute %d: key %d: %w", tag, i+1, err)
		}
		a.Keys = append(a.Keys, k)
	}
	if err := checkMKIs(a.Keys); err != nil {
		return Attribute{}, fmt.Errorf("crypto attribute %d: %w", tag, err)
	}
	for _, p := range fields[3:] {
		if err := a.parameter(p); err != nil {
			return Attribute{}, fmt.Errorf("crypto attribute %d: %w", tag, err)
		}
	}
	return a, nil
}

// parseKey reads "inline:" key and salt in base64, and behind a "|" each, a lifetime, an MKI, or both in this order.
func parseKey(text string, s suite.Suite) (Key, error) {
	method, info, _ := strings.Cut(text, ":")
	if !strings.EqualFold(method, "inline") {
		return Key{}, fmt.Errorf("method %.20q is not inline", method)
	}
	parts := strings.Split(info, "|")
	// Phones leave the padding out, or have too much of it.
	raw, err := base64.RawStdEncoding.DecodeString(strings.TrimRight(parts[0], "="))
	if err != nil {
		return Key{}, errors.New("key is not base64") // without err, which would quote a byte of it
	}
	if want := s.KeyLen() + s.SaltLen(); len(raw) != want {
		clear(raw)
		return Key{}, fmt.Errorf("key and salt have %d bytes, %s needs %d", len(raw), s, want)
	}
	k := Key{Master: raw[:s.KeyLen():s.KeyLen()], Salt: raw[s.KeyLen():]}

	rest := parts[1:]
	if len(rest) > 0 && !strings.Contains(rest[0], ":") {
		if k.Lifetime, err = parseLifetime(rest[0]); err != nil {
			return Key{}, err
		}
		rest = rest[1:]
	}
	if len(rest) > 0 {
		if k.MKI, err = parseMKI(rest[0]); err != nil {
			return Key{}, err
		}
		rest = rest[1:]
	}
	if len(rest) > 0 {
		return Key{}, errors.New("more than a lifetime and an MKI behind the key")
	}
	return k, nil
}

// parseLifetime reads a number of packets, as a power of two or in decimal: phones send both.
func parseLifetime(text string) (uint64, error) {
	var n uint64
	if power, ok := strings.CutPrefix(text, "2^"); ok {
		exponent, err := strconv.ParseUint(power, 10, 8)
		if err != nil || exponent > 48 {
			return 0, fmt.Errorf("lifetime %.20q is not 2^0 to 2^48", text)
		}
		return 1 << exponent, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil || n == 0 || n > maxLifetime {
		return 0, fmt.Errorf("lifetime %.20q is not a number of 1 to 2^48 packets", text)
	}
	return n, nil
}

// parseMKI reads a value in decimal and its length in bytes.
func parseMKI(text string) ([]byte, error) {
	value, length, _ := strings.Cut(text, ":")
	n, err := strconv.ParseUint(length, 10, 16)
	if err != nil || n == 0 || n > maxMKI {
		return nil, fmt.Errorf("MKI length %.20q is not 1 to %d", length, maxMKI)
	}
	// SetString takes a sign and underscores, and a number of any length at its price.
	if len(value) > 310 || strings.Trim(value, "0123456789") != "" {
		return nil, fmt.Errorf("MKI %.20q is not a number", value)
	}
	v, ok := new(big.Int).SetString(value, 10)
	if !ok || v.BitLen() > int(n)*8 {
		return nil, fmt.Errorf("MKI %.20q does not fit %d bytes", value, n)
	}
	return v.FillBytes(make([]byte, n)), nil
}

// checkMKIs holds section 6.1: several keys need MKIs, all different and of one length.
func checkMKIs(keys []Key) error {
	for i, k := range keys {
		if len(keys) > 1 && k.MKI == nil {
			return errors.New("several keys, and one without an MKI")
		}
		if len(k.MKI) != len(keys[0].MKI) {
			return errors.New("MKIs of different lengths")
		}
		if slices.ContainsFunc(keys[:i], func(o Key) bool { return k.MKI != nil && bytes.Equal(o.MKI, k.MKI) }) {
			return errors.New("two keys with the same MKI")
		}
	}
	return nil
}

// parameter reads one session parameter (section 6.3).
func (a *Attribute) parameter(text string) error {
	name, value, _ := strings.Cut(text, "=")
	switch strings.ToUpper(name) {
	case "UNENCRYPTED_SRTP":
		a.UnencryptedSRTP = true
	case "UNENCRYPTED_SRTCP":
		a.UnencryptedSRTCP = true
	case "UNAUTHENTICATED_SRTP":
		a.Unauthenticated = true
	case "KDR":
		// A rate of 0 is what holds without: session keys are derived once.
		if strings.Trim(value, "0") != "" || value == "" {
			return fmt.Errorf("key derivation rate %.20q is not supported", value)
		}
	case "WSH":
		n, err := strconv.ParseUint(value, 10, 31)
		if err != nil || n < minWindow {
			return fmt.Errorf("window size hint %.20q is not a number of %d or more", value, minWindow)
		}
		a.Window = int(n)
	default:
		if strings.HasPrefix(name, "-") {
			return nil // an extension that may be ignored
		}
		return fmt.Errorf("session parameter %.40q is not supported", name)
	}
	return nil
}

// Append adds the value of the attribute to b: what follows "a=crypto:".
func (a Attribute) Append(b []byte) []byte {
	b = strconv.AppendUint(b, uint64(a.Tag), 10)
	b = append(b, ' ')
	b = append(b, a.Suite.String()...)
	for i, k := range a.Keys {
		b = append(b, " ;"[min(i, 1)])
		b = append(b, "inline:"...)
		b = base64.StdEncoding.AppendEncode(b, slices.Concat(k.Master, k.Salt))
		if k.Lifetime != 0 {
			b = append(b, '|')
			b = appendLifetime(b, k.Lifetime)
		}
		if k.MKI != nil {
			b = append(b, '|')
			b = new(big.Int).SetBytes(k.MKI).Append(b, 10)
			b = append(b, ':')
			b = strconv.AppendInt(b, int64(len(k.MKI)), 10)
		}
	}
	for _, p := range []struct {
		set  bool
		name string
	}{
		{a.UnencryptedSRTP, " UNENCRYPTED_SRTP"},
		{a.UnencryptedSRTCP, " UNENCRYPTED_SRTCP"},
		{a.Unauthenticated, " UNAUTHENTICATED_SRTP"},
	} {
		if p.set {
			b = append(b, p.name...)
		}
	}
	if a.Window != 0 {
		b = append(b, " WSH="...)
		b = strconv.AppendInt(b, int64(a.Window), 10)
	}
	return b
}

// appendLifetime writes a power of two as such: some phones read nothing else.
func appendLifetime(b []byte, n uint64) []byte {
	if n&(n-1) != 0 {
		return strconv.AppendUint(b, n, 10)
	}
	exponent := 0
	for n>>exponent > 1 {
		exponent++
	}
	return strconv.AppendInt(append(b, "2^"...), int64(exponent), 10)
}

// Choose returns the first attribute that acceptable takes: offers have the preferred one first (section 5.1.2).
// The answer has that attribute's tag, suite and, if it has any, MKI length, and a key of the answerer's own.
func Choose(offer []Attribute, acceptable func(Attribute) bool) (Attribute, bool) {
	if i := slices.IndexFunc(offer, acceptable); i >= 0 {
		return offer[i], true
	}
	return Attribute{}, false
}

// ErrNoMatch says that an answer chose nothing that was offered.
var ErrNoMatch = errors.New("the answer's crypto attribute matches none of the offer")

// Match returns which of the offered attributes the answer has chosen. The tag decides (section 5.1.3). Some phones
// number their answer by themselves: then it is the offered one with that suite, if there is just one.
func Match(offer []Attribute, answer Attribute) (Attribute, error) {
	var bySuite []Attribute
	for _, a := range offer {
		if a.Suite != answer.Suite {
			continue
		}
		if a.Tag == answer.Tag {
			return a, nil
		}
		bySuite = append(bySuite, a)
	}
	if len(bySuite) == 1 {
		return bySuite[0], nil
	}
	return Attribute{}, ErrNoMatch
}
