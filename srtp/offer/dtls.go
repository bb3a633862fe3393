package offer

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"slices"
	"strings"
)

// Role is the box's in a handshake (RFC 4145 section 4).
type Role uint8

// Roles. Held means that there is to be no new handshake for now, by `holdconn`; an association that exists goes on.
const (
	Passive Role = iota // waits for a ClientHello
	Active              // sends it once the answer is under way
	Held
)

// Fingerprint is a hash of a certificate (RFC 8122). Two are equal if they are the same hash and value.
type Fingerprint struct {
	Hash  string // in lower case: sha-256, sha-384 or sha-512
	Value string // bytes, not text
}

// Association is the DTLS of a leg (RFC 8842).
type Association struct {
	// Epoch changes when there is to be a new handshake. While it is the same, the association, its keys and roll-over
	// counters stay. It is unique in a call.
	Epoch uint32
	Role  Role
	// Remote are the fingerprints of which the other end's certificate has to have one. While an offer of ours has no
	// answer there is none, and a ClientHello has to wait.
	Remote []Fingerprint
	// LocalID and RemoteID are the values of a=tls-id; empty: not given.
	LocalID, RemoteID string
}

// hashes are those that may vouch for a certificate, strongest last, with their lengths. SHA-1 is not among them.
var hashes = []struct {
	name string
	size int
	sum  func([]byte) []byte
}{
	{"sha-256", sha256.Size, func(b []byte) []byte { h := sha256.Sum256(b); return h[:] }},
	{"sha-384", sha512.Size384, func(b []byte) []byte { h := sha512.Sum384(b); return h[:] }},
	{"sha-512", sha512.Size, func(b []byte) []byte { h := sha512.Sum512(b); return h[:] }},
}

// parseFingerprint reads `sha-256 4A:AD:…`. Phones write both in either case.
func parseFingerprint(value []byte) (f Fingerprint, ok bool) {
	name, text, _ := bytes.Cut(value, []byte(" "))
	f.Hash = strings.ToLower(string(name))
	for _, h := range hashes {
		if h.name != f.Hash {
			continue
		}
		text = bytes.TrimSpace(text)
		if len(text) != 3*h.size-1 {
			return f, false
		}
		raw, err := hex.DecodeString(strings.ReplaceAll(string(text), ":", ""))
		f.Value = string(raw)
		return f, err == nil && len(raw) == h.size
	}
	return f, false
}

// String is the attribute's value.
func (f Fingerprint) String() string {
	pairs := make([]string, len(f.Value))
	for i := range len(f.Value) {
		pairs[i] = strings.ToUpper(hex.EncodeToString([]byte{f.Value[i]}))
	}
	return f.Hash + " " + strings.Join(pairs, ":")
}

// fingerprint is that of the box's certificate by the strongest hash that the other end has used, since it may know no
// other; by SHA-256 if it has used none yet.
func (c *Config) fingerprint(remote []Fingerprint) Fingerprint {
	best := hashes[0]
	for _, h := range hashes {
		if slices.ContainsFunc(remote, func(f Fingerprint) bool { return f.Hash == h.name }) {
			best = h
		}
	}
	return Fingerprint{best.name, string(best.sum(c.Certificate))}
}

// association is what a leg knows of its DTLS.
type association struct {
	Association
	offered string // LocalID in an offer of ours that has no answer yet
	setup   string // of our answer
}

// same says whether a description goes on with the association (RFC 8842 section 4): neither identity has changed.
func (a *association) same(s *section) bool {
	if a.RemoteID != s.tlsID || len(a.Remote) != len(s.prints) {
		return false
	}
	return !slices.ContainsFunc(s.prints, func(f Fingerprint) bool { return !slices.Contains(a.Remote, f) })
}

// takeOffer sets the role by what was offered, and says how to answer. An association that goes on keeps its role
// (RFC 8842 section 5.5).
func (a *association) takeOffer(c *Call, s *section, goesOn bool) (reason string) {
	role := Active
	switch s.setup {
	case "actpass":
		if goesOn && a.Role != Held {
			role = a.Role
		}
	case "passive":
	case "active", "": // RFC 4145 section 4.1: an offer without it is active
		role = Passive
	case "holdconn":
		role = Held
		if goesOn {
			role = a.Role
		}
	default:
		return "a media line has an unknown a=setup"
	}
	a.setup = [...]string{"passive", "active", "holdconn"}[role]
	if s.setup == "holdconn" {
		a.setup = "holdconn"
	}
	if goesOn = goesOn && role == a.Role; !goesOn {
		a.LocalID = c.config.NewID()
	}
	a.offered = a.LocalID
	a.settle(c, s, role, goesOn)
	return ""
}

// takeAnswer does so by an answer to our `actpass`.
func (a *association) takeAnswer(c *Call, s *section, goesOn bool) (reason string) {
	var role Role
	switch s.setup {
	case "active":
		role = Passive
	case "passive", "": // RFC 4145 section 4.1: an answer without it is passive
		role = Active
	case "holdconn":
		role = Held
		if goesOn {
			role = a.Role
		}
	case "actpass":
		// No answer (RFC 5763 section 5); but baresip repeats what it has offered itself. Of an association that goes on the
		// roles are known, and stay.
		if role = a.Role; !goesOn || a.offered != a.LocalID {
			return "the answer's a=setup is neither active nor passive"
		}
	default:
		return "the answer's a=setup is neither active nor passive"
	}
	goesOn = goesOn && a.offered == a.LocalID && role == a.Role
	a.LocalID = a.offered
	a.settle(c, s, role, goesOn)
	return ""
}

func (a *association) settle(c *Call, s *section, role Role, goesOn bool) {
	if !goesOn {
		a.Epoch = c.nextEpoch()
	}
	a.Role, a.RemoteID, a.Remote = role, s.tlsID, slices.Clone(s.prints)
}

// attributes are those of an offer (setup is "actpass") or an answer.
func (a *association) attributes(c *Config, setup, id string) []string {
	all := []string{attrFingerprint + ":" + c.fingerprint(a.Remote).String(), attrSetup + ":" + setup}
	if id != "" {
		all = append(all, attrTLSID+":"+id)
	}
	return all
}
