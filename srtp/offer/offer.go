// Package offer decides what becomes of the media lines of an offer and its answer (RFC 3264) where the box terminates
// media: which leg has which keys, what the other end is offered, and which lines of the session description change. It
// opens nothing and sends nothing: ports, keys and identifiers are handed in, and what is agreed is a description of
// legs for the media plane.
//
// Each line m= of a call has two legs, one to each end. An end is a phone, a PBX or a trunk, whose keys are agreed in
// its session descriptions (RFC 4568, RFC 5763), or the box of another site: then the line is plain RTP/AVP, keys pass
// by the channel between the boxes, and a=ringway-srtp says that they will.
//
// Only lines c=, m= and a= of relayed media change. Under `require` no leg is ever without keys: a line that cannot
// have them is refused with port 0, a call without such a line by a Refusal. No key is sent under with two epochs.
package offer

import (
	"fmt"
	"io"
	"net/netip"

	"ringway/sip/sdp"
	"ringway/srtp/sdes"
	"ringway/srtp/suite"
)

// End is one of the two ends of a call.
type End uint8

// Ends, by who sent the first INVITE.
const (
	Caller End = iota
	Callee
)

func (e End) other() End { return 1 - e }

// Level is how much an end's legs need SRTP.
type Level uint8

// Levels. Under Off the box offers none, and takes it from who offers nothing else.
const (
	Off Level = iota
	Prefer
	Require
)

// Keying is where the keys of a leg are from.
type Keying uint8

// Keyings. A leg that is Clear has none. Undecided is one that was offered and has no answer yet: nothing is to be
// sent.
const (
	Undecided Keying = iota
	Clear
	SDES
	DTLS
	Channel // the key channel between boxes
)

func (k Keying) String() string {
	return [...]string{"undecided", "RTP", "SRTP by SDES", "DTLS-SRTP", "SRTP between boxes"}[min(k, Channel)]
}

// Policy is what the legs to one end may be.
type Policy struct {
	Level Level
	// Minimum is the weakest suite that is offered and, under Require, taken; 0: AES_CM_128_HMAC_SHA1_80. Under Prefer
	// and Off a weaker one is taken if the other end offers nothing better: it is more than none.
	Minimum suite.Suite
	// Methods are what is offered, preferred first, of SDES and DTLS; nil: SDES. Both are taken from who offers them, DTLS
	// with rtcp-mux alone.
	Methods []Keying
	// ClearSRTCP honours UNENCRYPTED_SRTCP (RFC 4568 section 6.3.2). Without it such an attribute is not taken.
	ClearSRTCP bool
	// RequireEmergency holds Require for emergency calls, too.
	RequireEmergency bool
}

// ForEmergency is the policy for an emergency call: it is not refused for lack of SRTP unless RequireEmergency.
func (p Policy) ForEmergency() Policy {
	if p.Level == Require && !p.RequireEmergency {
		p.Level = Prefer
	}
	return p
}

// permits says whether a leg may be as it was agreed.
func (p *Policy) permits(l *leg) bool {
	switch {
	case p.Level != Require, l.keying == DTLS:
		return true
	case l.keying == SDES, l.keying == Channel:
		return !weaker(l.suite, p.minimum()) && (p.ClearSRTCP || !l.clearSRTCP)
	}
	return false
}

func (p *Policy) minimum() suite.Suite {
	if p.Minimum == 0 {
		return suite.AES128CMHMACSHA180
	}
	return p.Minimum
}

func (p *Policy) methods() []Keying {
	if len(p.Methods) == 0 {
		return []Keying{SDES}
	}
	return p.Methods
}

// Place is what is at an end, and where the box is for it.
type Place struct {
	Policy
	// IPv4 and IPv6 are the box's media addresses towards this end; either may be missing.
	IPv4, IPv6 netip.Addr
	// Box is the voice address of the far box, invalid if the end is a phone, a PBX or a trunk. A line with another
	// address is not that box's.
	Box netip.Addr
	// ChannelUp says that keys can be exchanged with that box now.
	ChannelUp bool
	// Hop is where the end's signalling comes from. Its family is what the end is known to have: what another end's
	// description says may be a box's, which has one family whatever the phones have.
	Hop netip.Addr
}

// local is the box's address for an end that is offered to, as far as known in that family; of the other family if the
// box has none.
func (p *Place) local(remote netip.Addr) netip.Addr {
	if p.Hop.IsValid() {
		remote = p.Hop
	}
	if a := p.family(remote.Is4()); a.IsValid() {
		return a
	}
	return p.family(!remote.Is4())
}

func (p *Place) family(four bool) netip.Addr {
	if four {
		return p.IPv4
	}
	return p.IPv6
}

// Ports hands out the box's media ports.
type Ports interface {
	// Allocate returns an even port of that address which is free together with the odd one above it; false: there is
	// none.
	Allocate(address netip.Addr) (port uint16, ok bool)
	// Release gives both ports back.
	Release(local netip.AddrPort)
}

// Config is what all calls share.
type Config struct {
	Ports Ports
	// NewKey makes a random key, as sdes.NewKey does.
	NewKey func(suite.Suite) sdes.Key
	// NewID makes a random tls-id of 20 to 255 letters and digits (RFC 8842 section 4).
	NewID func() string
	// Certificate is the box's, in DER, for DTLS; nil: no DTLS.
	Certificate []byte
}

// Result is what to pass on, and what was agreed. Keys in it are copies: Wipe overwrites them.
type Result struct {
	// Body is the session description to pass on, whose length is the message's new Content-Length. It is the one that
	// was read if nothing in it changes.
	Body []byte
	// Settled says that the offer has its answer: Media holds from now on. Until then it is what may come of it: the legs
	// to the end that offered have no local port in the first offer of a call.
	Settled bool
	// Media are the relayed lines.
	Media []Media
	// Passed are the lines that reach the other end as they are, past the box: not RTP, by a protocol that the box does
	// not speak, or all if the whole body is passed. There are none where no end needs SRTP: then nothing is read.
	Passed []Line
	// Refused are the lines of an offer that the box refuses.
	Refused []Line
}

// Line is a line m= that is not relayed.
type Line struct {
	Index    int
	Kind     sdp.Kind
	Protocol string // as it was written, 40 bytes at most
	// Encrypted says that the protocol is one over TLS or DTLS. Where SRTP is required no other passes.
	Encrypted bool
	Reason    string // why it is refused
}

// Media is one relayed line m=.
type Media struct {
	Index int // of the line
	Kind  sdp.Kind
	Legs  [2]Leg // by End
}

// Leg is what the media plane needs to know of one side of a line.
type Leg struct {
	Keying   Keying
	Protocol string // of the line on this side, such as RTP/SAVP

	// Local is the box's even port; RTCP is one above unless Mux.
	Local netip.AddrPort
	// Remote and RemoteRTCP are where the end receives. They are invalid while not known; a hold by 0.0.0.0 (RFC 2543)
	// leaves the last ones.
	Remote, RemoteRTCP netip.AddrPort
	Mux                bool // RTCP on the port of RTP (RFC 5761)

	// Stale says that the end may expect a roll-over counter of 0 under the key of Send, and the sender may be beyond: the
	// end has moved in an answer (RFC 4568 section 7.1.4), or another branch of a fork has used the key. The sender goes
	// on all the same, since it would use indices again; the next offer whose version has risen has another key. Until
	// then an end that begins with 0 does not hear a sender that is beyond.
	Stale bool

	// Suite of SDES and Channel; that of DTLS is agreed in the handshake. While Undecided it is the one offered that
	// costs most.
	Suite   suite.Suite
	MKI     int // bytes in each packet
	Send    Keys
	Receive Keys
	// ClearSRTCP says that SRTCP is authenticated but not encrypted, as negotiated.
	ClearSRTCP bool
	DTLS       *Association // of DTLS alone

	// What the end sends to the box: whether it may now, whether it wants to receive, codecs, packet times in ms (0: not
	// given; RFC 8866 section 6.4).
	Sends, Receives bool
	Codecs          []Codec
	Ptime, MaxPtime int
}

// Keys are those of one direction of a leg by SDES.
type Keys struct {
	// Keys are one when sending; when receiving several, told apart by MKI.
	Keys []sdes.Key
	// Epoch names what is kept of the direction: roll-over counters and the indices that were used, a replay window. It
	// changes when these start at 0: with a new key, or when receiving at a new address (RFC 4568 section 7.1.4). It is
	// unique in a call, and so is the key that is sent under: one key, one epoch, one sender. The branches of a fork were
	// offered the same key, so their results have the same epoch: then the media plane keeps one sender for all, whose
	// indices go on from branch to branch, also where the branch that used it has ended (Call.Epochs), and lets one branch
	// at a time have it. 0: no keys. With Channel it has no keys, and a new one means that both directions need new ones.
	Epoch uint32
}

// Codec is a payload type of a line.
type Codec struct {
	PayloadType uint8
	Name        string
	Clock       uint32 // hertz; 0: not known
	Channels    uint8
	Params      string
}

// Wipe overwrites the keys, and the body if it has any.
func (r *Result) Wipe() {
	for i := range r.Media {
		for e := range r.Media[i].Legs {
			l := &r.Media[i].Legs[e]
			wipe(l.Send.Keys)
			wipe(l.Receive.Keys)
		}
	}
	clear(r.Body)
	r.Body = nil
}

// Format prints nothing of the body, which has keys.
func (r Result) Format(s fmt.State, _ rune) {
	_, _ = fmt.Fprintf(s, "%d lines of media in %d bytes", len(r.Media), len(r.Body))
}

// Refusal is why a description cannot be passed on. To an offer the box answers with Status and Reason. An answer
// cannot be answered: then the call is ended towards who sent it, and the offer gets that status.
type Refusal struct {
	Status int // of SIP: 488, 491 or 503
	Reason string
}

func (r *Refusal) Error() string { return fmt.Sprintf("%d %s", r.Status, r.Reason) }

func notAcceptable(reason string) *Refusal { return &Refusal{488, reason} }

// Overhead is by how many bytes packets of a leg are longer than those of RTP and RTCP, with an MKI of that many bytes
// (RFC 3711 sections 3.1 and 3.4): what admission and budget add for each packet. A suite that is none costs nothing.
func Overhead(s suite.Suite, mki int) (rtp, rtcp int) {
	if !s.Valid() {
		return 0, 0
	}
	return s.Overhead() + mki, s.RTCPOverhead() + mki
}

// ChannelMKI is the length in bytes of the MKI between boxes.
const ChannelMKI = 4

// Overhead is that of the leg. While its suite is not agreed, it is the most that may be.
func (l *Leg) Overhead() (rtp, rtcp int) {
	s := l.Suite
	if l.Keying == DTLS && !s.Valid() {
		s = costliest
	}
	return Overhead(s, l.MKI)
}

// costliest is a suite with the longest tag.
const costliest = suite.AEADAES256GCM

// Format prints nothing of what a call knows.
func (c *Call) Format(s fmt.State, _ rune) {
	_, _ = io.WriteString(s, fmt.Sprintf("call with %d branches", len(c.branches)))
}

func wipe(keys []sdes.Key) {
	for _, k := range keys {
		k.Wipe()
	}
}
