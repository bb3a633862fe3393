package terminate

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"ringway/srtp/offer"
)

func TestVoid(t *testing.T) {
	for _, test := range []struct{ name, in, out string }{
		{"an answer",
			"v=0\r\no=- 1 1 IN IP4 10.1.10.9\r\ns=-\r\nc=IN IP4 10.1.10.9\r\nb=AS:80\r\nt=0 0\r\na=group:BUNDLE 0\r\n" +
				"m=audio 4000 RTP/SAVP 8 0\r\na=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:x\r\na=sendrecv\r\n" +
				"m=video 4002/2 RTP/AVP 96\r\nc=IN IP4 10.1.10.8\r\nk=clear:x\r\n",
			"v=0\r\no=- 1 1 IN IP4 10.1.10.9\r\ns=-\r\nc=IN IP4 10.1.10.9\r\nt=0 0\r\n" +
				"m=audio 0 RTP/SAVP 8 0\r\nm=video 0 RTP/AVP 96\r\nc=IN IP4 10.1.10.8\r\n"},
		{"ended by LF, or not at all", "v=0\nm=audio 4000 RTP/AVP 0", "v=0\r\nm=audio 0 RTP/AVP 0\r\n"},
		{"more blanks", "m=audio  4000\tRTP/AVP 0\r\n", "m=audio 0 RTP/AVP 0\r\n"},
		{"a line within a line", "v=0\r\ns=x\rm=audio 4000 RTP/AVP 0\r\nm=audio 4 RTP/AVP 0\r\n", ""},
		{"a zero in it", "v=0\r\nm=audio 4 RTP/AVP 0\x00\r\n", ""},
		{"half a line", "v=0\r\nm=audio 4000\r\n", ""},
		{"no media", "v=0\r\ns=-\r\n", ""},
		{"nothing", "", ""},
	} {
		assert.Equal(t, test.out, string(Void([]byte(test.in))), test.name)
	}
}

// No line that names a port keeps it, whatever was there.
func FuzzVoid(f *testing.F) {
	f.Add([]byte("v=0\r\nm=audio 4000 RTP/SAVP 8 0\r\na=crypto:1 AES_CM_128_HMAC_SHA1_80 inline:x\r\n"))
	f.Add([]byte("m=audio 4000 x y\rm=audio 5 x y"))
	f.Fuzz(func(t *testing.T, in []byte) {
		for _, line := range strings.FieldsFunc(string(Void(in)), func(r rune) bool { return r == '\r' || r == '\n' }) {
			if line[0] == 'm' {
				assert.Equal(t, "0", strings.Fields(line)[1])
			}
			assert.Contains(t, "vosctm", line[:1])
		}
	})
}

func TestPlacesAreFoundByTheLongestNetwork(t *testing.T) {
	place := func(network string, l offer.Level) Place {
		return Place{Network: netip.MustParsePrefix(network), Place: offer.Place{Policy: offer.Policy{Level: l}}}
	}
	given := Places{place("0.0.0.0/0", offer.Prefer), place("10.1.0.0/16", offer.Off),
		place("10.1.10.0/24", offer.Require), place("2001:db8::/32", offer.Require)}
	sorted := given.Sorted()
	for address, want := range map[string]offer.Level{
		"10.1.10.9": offer.Require, "10.1.20.9": offer.Off, "192.0.2.1": offer.Prefer, "2001:db8::1": offer.Require,
		"2001:db9::1": offer.Off, "::ffff:10.1.10.9": offer.Require,
	} {
		assert.Equal(t, want, sorted.At(netip.MustParseAddr(address)).Level, address)
	}
	assert.Equal(t, offer.Off, sorted.At(netip.Addr{}).Level)
	assert.Equal(t, offer.Prefer, given[0].Level, "what was given stays in its order")
}

// Pairs are joined where each sends to the other, and nowhere else: an end may name any address.
func TestPairsAreJoinedByBothEnds(t *testing.T) {
	at := netip.MustParseAddrPort
	pair := func(id uint64, near, nearTo, far, farTo string) *Pair {
		p := &Pair{ID: id}
		p.Ends[0].Local, p.Ends[0].Remote = at(near), at(nearTo)
		p.Ends[1].Local, p.Ends[1].Remote = at(far), at(farTo)
		return p
	}
	one := pair(1, "10.1.10.1:20000", "10.1.10.9:4000", "10.1.20.1:20000", "10.1.20.1:20002")
	two := pair(2, "10.1.20.1:20002", "10.1.20.1:20000", "10.9.0.1:20000", "10.9.0.2:4000")
	joined := pair(1, "10.1.10.1:20000", "10.1.10.9:4000", "10.9.0.1:20000", "10.9.0.2:4000")
	stranger := pair(3, "10.1.10.1:20004", "10.1.10.1:20000", "10.9.0.1:20004", "10.9.0.2:4004")
	c := New(Config{})
	for _, p := range []*Pair{one, two, stranger} {
		c.pairs[p.ID] = p
		for e := range p.Ends {
			c.local[p.Ends[e].Local] = place{p.ID, e}
		}
	}
	assert.Equal(t, joined, c.join(1))
	assert.Nil(t, c.join(2))
	assert.Equal(t, stranger, c.join(3))

	// Two that are joined at both ends go on in a circle, which ends.
	one.Ends[0].Remote, two.Ends[1].Remote = two.Ends[1].Local, one.Ends[0].Local
	assert.NotNil(t, c.join(1))
}
