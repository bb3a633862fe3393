// Package suite names the ways of protecting SRTP and SRTCP that Ringway knows, with the lengths that follow from them.
package suite

import (
	"fmt"
	"strings"
)

// Suite is a crypto suite of SDES (RFC 4568 section 6.2, RFC 6188, RFC 7714), and a protection profile of DTLS-SRTP
// (RFC 5764 section 4.1.2, RFC 7714 section 14.2). The numbers are the profiles'; the two suites of AES-256 in counter
// mode have no registered one, and the numbers of the drafts that libsrtp and browsers use. The zero value is none.
type Suite uint16

// Suites, weakest last.
const (
	AEADAES256GCM      Suite = 8
	AEADAES128GCM      Suite = 7
	AES256CMHMACSHA180 Suite = 3
	AES128CMHMACSHA180 Suite = 1
	AES256CMHMACSHA132 Suite = 4
	AES128CMHMACSHA132 Suite = 2
)

// Lengths in bytes.
const (
	cmSalt  = 14 // RFC 3711 section 8.2
	gcmSalt = 12 // RFC 7714 section 12
	gcmTag  = 16 // RFC 7714 section 13
	// rtcpTag is SRTCP's in counter mode, also where the suite's name ends in 32: that is the length for SRTP alone
	// (RFC 4568 section 6.2.2).
	rtcpTag = 10
	// rtcpIndex is the index with the E bit that each SRTCP packet carries (RFC 3711 section 3.4).
	rtcpIndex = 4
)

type properties struct {
	name           string
	key, salt, tag int
	aead           bool
}

var all = map[Suite]properties{
	AEADAES256GCM:      {"AEAD_AES_256_GCM", 32, gcmSalt, gcmTag, true},
	AEADAES128GCM:      {"AEAD_AES_128_GCM", 16, gcmSalt, gcmTag, true},
	AES256CMHMACSHA180: {"AES_256_CM_HMAC_SHA1_80", 32, cmSalt, 10, false},
	AES128CMHMACSHA180: {"AES_CM_128_HMAC_SHA1_80", 16, cmSalt, 10, false},
	AES256CMHMACSHA132: {"AES_256_CM_HMAC_SHA1_32", 32, cmSalt, 4, false},
	AES128CMHMACSHA132: {"AES_CM_128_HMAC_SHA1_32", 16, cmSalt, 4, false},
}

// aliases are names that phones send for suites whose registered name is another: drafts of RFC 6188 had the length
// last, as RFC 4568 has it for 128 bits.
var aliases = map[string]Suite{
	"AES_CM_256_HMAC_SHA1_80": AES256CMHMACSHA180,
	"AES_CM_256_HMAC_SHA1_32": AES256CMHMACSHA132,
}

// All returns every suite, strongest first.
func All() []Suite {
	return []Suite{
		AEADAES256GCM, AEADAES128GCM, AES256CMHMACSHA180, AES128CMHMACSHA180, AES256CMHMACSHA132, AES128CMHMACSHA132,
	}
}

// Parse returns the suite with that name. Case does not matter: RFC 4568 wants capitals, not every phone sends them.
func Parse(name string) (Suite, error) {
	for s, p := range all {
		if strings.EqualFold(p.name, name) {
			return s, nil
		}
	}
	for alias, s := range aliases {
		if strings.EqualFold(alias, name) {
			return s, nil
		}
	}
	return 0, fmt.Errorf("crypto suite %.40q is not supported", name)
}

// Valid says whether s is one of the suites above.
func (s Suite) Valid() bool { _, ok := all[s]; return ok }

// String is the name that SDES uses.
func (s Suite) String() string {
	if p, ok := all[s]; ok {
		return p.name
	}
	return fmt.Sprintf("suite %d", uint16(s))
}

// KeyLen is the length of the master key in bytes.
func (s Suite) KeyLen() int { return all[s].key }

// SaltLen is the length of the master salt in bytes.
func (s Suite) SaltLen() int { return all[s].salt }

// AEAD says whether the cipher authenticates by itself: then the authentication tag stands before the MKI, else
// behind it.
func (s Suite) AEAD() bool { return all[s].aead }

// Overhead is by how many bytes an SRTP packet is longer than the RTP packet in it, without an MKI.
func (s Suite) Overhead() int { return all[s].tag }

// RTCPOverhead is by how many bytes an SRTCP packet is longer than the RTCP packet in it, without an MKI.
func (s Suite) RTCPOverhead() int {
	if s.AEAD() {
		return gcmTag + rtcpIndex
	}
	return rtcpTag + rtcpIndex
}
