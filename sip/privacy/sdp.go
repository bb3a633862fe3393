package privacy

import "bytes"

// keptAttributes are the attributes of SDP whose values are kept (RFC 8866, and the RFC of each). None of them
// holds a key: a fingerprint is a hash of a certificate (RFC 8122), and `ice-ufrag` a name.
var keptAttributes = map[string]bool{
	"rtpmap": true, "fmtp": true, "ptime": true, "maxptime": true, "sendrecv": true, "sendonly": true,
	"recvonly": true, "inactive": true, "rtcp": true, "rtcp-mux": true, "rtcp-mux-only": true, "rtcp-fb": true,
	"rtcp-rsize": true, "rtcp-xr": true, "candidate": true, "end-of-candidates": true, "ice-ufrag": true,
	"ice-options": true, "ice-lite": true, "ice2": true, "remote-candidates": true, "ice-mismatch": true,
	"fingerprint": true, "setup": true, "connection": true, "tls-id": true, "mid": true, "group": true,
	"bundle-only": true, "extmap": true, "extmap-allow-mixed": true, "msid-semantic": true, "content": true,
	"label": true, "framerate": true, "framesize": true, "imageattr": true, "floorctrl": true, "confid": true,
	"silencesupp": true, "direction": true, "x-rtp-session-id": true, "nortpproxy": true, "rtpproxy": true,
	"t38faxversion": true, "t38maxbitrate": true, "t38faxfillbitremoval": true, "t38faxtranscodingmmr": true,
	"t38faxtranscodingjbig": true, "t38faxratemanagement": true, "t38faxmaxbuffer": true,
	"t38faxmaxdatagram": true, "t38faxudpec": true, "t38faxmaxifp": true, "t38vendorinfo": true,
	"acap": true, "pcfg": true, "acfg": true, "csup": true, "creq": true, "curr": true, "des": true, "conf": true,
	"altc": true, "tcap": true,
}

// suites are the crypto suites of SDES (RFC 4568, section 6.2, and the RFC of each). A word that is none of
// them may be a part of a key.
var suites = map[string]bool{
	"AES_CM_128_HMAC_SHA1_80": true, "AES_CM_128_HMAC_SHA1_32": true, "F8_128_HMAC_SHA1_80": true,
	"AES_192_CM_HMAC_SHA1_80": true, "AES_192_CM_HMAC_SHA1_32": true, // RFC 6188
	"AES_256_CM_HMAC_SHA1_80": true, "AES_256_CM_HMAC_SHA1_32": true,
	"AES_CM_192_HMAC_SHA1_80": true, "AES_CM_192_HMAC_SHA1_32": true, // as some phones write them
	"AES_CM_256_HMAC_SHA1_80": true, "AES_CM_256_HMAC_SHA1_32": true,
	"AEAD_AES_128_GCM": true, "AEAD_AES_256_GCM": true, // RFC 7714
	"SEED_CTR_128_HMAC_SHA1_80": true, "SEED_128_CCM_80": true, "SEED_128_GCM_96": true, // RFC 5669
}

// appendSDP writes a session description line by line. A CR ends a line as an LF does: some readers take it so,
// and a key behind one would otherwise be part of a line that is kept.
func (r *Redactor) appendSDP(b, description []byte) []byte {
	for len(description) > 0 {
		end := 0
		for end < len(description) && description[end] != '\r' && description[end] != '\n' {
			end++
		}
		line := trim(description[:end])
		description = description[min(end+1, len(description)):]
		if len(line) == 0 {
			continue
		}
		if len(line) < 2 || line[1] != '=' || !isLetter(line[0]) {
			b = append(appendBlanked(b, len(line)), "\r\n"...)
			continue
		}
		b = append(b, line[:2]...)
		b = append(r.appendLine(b, line[0], line[2:]), "\r\n"...)
	}
	return b
}

// appendLine writes the value of one line. Name, information, e-mail and phone lines are text for people.
func (r *Redactor) appendLine(b []byte, kind byte, value []byte) []byte {
	switch kind {
	case 'v', 'c', 'b', 't', 'r', 'm':
		if !hasKey(value) {
			return append(b, value...)
		}
	case 'o':
		user, rest, ok := bytes.Cut(value, []byte(" "))
		if ok && !hasKey(rest) {
			if string(user) == "-" {
				return append(b, value...)
			}
			b = r.appendUser(b, user)
			return append(append(b, ' '), rest...)
		}
	case 's':
		if string(value) == "-" {
			return append(b, value...)
		}
	case 'a':
		return appendAttribute(b, value)
	}
	return appendBlanked(b, len(value))
}

func appendAttribute(b, value []byte) []byte {
	name, rest, has := bytes.Cut(value, []byte(":"))
	l := lower(name)
	kept := keptAttributes[string(l.bytes())]
	// A name that is not known and long enough to be a key (22 characters of ice-pwd, RFC 8839) goes as well.
	if !isName(name) || !kept && (!has || len(name) > 20) {
		return appendBlanked(b, len(value))
	}
	b = append(b, name...)
	if !has {
		return b
	}
	b = append(b, ':')
	switch {
	case equalFold(name, "crypto"):
		return appendCrypto(b, rest)
	case kept && !hasKey(rest):
		return append(b, rest...)
	default:
		return appendBlanked(b, len(rest))
	}
}

// appendCrypto writes `1 AES_CM_128_HMAC_SHA1_80 inline:KEY|2^20|1:4` (RFC 4568, section 4) without the key and
// what follows it.
func appendCrypto(b, value []byte) []byte {
	tag, rest, _ := bytes.Cut(value, []byte(" "))
	suite, key, _ := bytes.Cut(bytes.TrimLeft(rest, " "), []byte(" "))
	if !suites[string(suite)] || len(tag) > 9 || len(bytes.Trim(tag, "0123456789")) > 0 {
		return appendBlanked(b, len(value))
	}
	b = append(append(append(append(b, tag...), ' '), suite...), ' ')
	return appendBlanked(b, len(key))
}

// hasKey holds for a value with key parameters of SDES or MIKEY in it: of an attribute within another (RFC 5939,
// `a=acap:1 crypto:1 … inline:KEY`), or of a line that was joined with the next one.
func hasKey(value []byte) bool {
	for i, c := range value {
		rest := value[i:]
		switch c | 0x20 { // in lower case
		case 'i':
			if hasPrefixFold(rest, "inline:") || hasPrefixFold(rest, "ice-pwd") {
				return true
			}
		case 'c':
			if hasPrefixFold(rest, "crypto:") {
				return true
			}
		case 'k':
			if hasPrefixFold(rest, "key-mgmt") {
				return true
			}
		case 'm':
			if hasPrefixFold(rest, "mikey") {
				return true
			}
		}
	}
	return false
}
