package sdes_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/sdes"
	"ringway/srtp/suite"
)

// Keys of zeros and ones, in base64: 30, 28 and 44 bytes.
var (
	cm128  = strings.Repeat("A", 40)
	gcm128 = strings.Repeat("A", 38) + "=="
	gcm256 = strings.Repeat("A", 59) + "="
	cm256  = strings.Repeat("A", 62) + "=="
)

func TestParse(t *testing.T) {
	for _, c := range []struct {
		text string
		want sdes.Attribute
	}{
		{"1 AES_CM_128_HMAC_SHA1_80 inline:" + cm128, sdes.Attribute{Tag: 1, Suite: suite.AES128CMHMACSHA180}},
		// RFC 4568 section 6.1, and decimal lifetimes as phones send them.
		{"1 AES_CM_128_HMAC_SHA1_80 inline:" + cm128 + "|2^20|1:4", sdes.Attribute{Tag: 1, Suite: suite.AES128CMHMACSHA180}},
		{"2 AES_CM_128_HMAC_SHA1_32  inline:" + cm128 + "|1048576", sdes.Attribute{Tag: 2, Suite: suite.AES128CMHMACSHA132}},
		{"2 AES_CM_128_HMAC_SHA1_32\tinline:" + cm128 + "|66051:4", sdes.Attribute{Tag: 2, Suite: suite.AES128CMHMACSHA132}},
		// A tag of 0, a method in capitals, no padding, drafts' name of the suite.
		{"0 AES_CM_256_HMAC_SHA1_80 INLINE:" + strings.TrimRight(cm256, "="), sdes.Attribute{Suite: suite.AES256CMHMACSHA180}},
		{"9 AEAD_AES_128_GCM inline:" + gcm128, sdes.Attribute{Tag: 9, Suite: suite.AEADAES128GCM}},
		{"9 AEAD_AES_256_GCM inline:" + gcm256, sdes.Attribute{Tag: 9, Suite: suite.AEADAES256GCM}},
		{"1 AES_CM_128_HMAC_SHA1_80 inline:" + cm128 + " KDR=0 UNENCRYPTED_SRTCP WSH=1024 -x=1", sdes.Attribute{Tag: 1,
			Suite: suite.AES128CMHMACSHA180, UnencryptedSRTCP: true, Window: 1024}},
		{"1 AES_CM_128_HMAC_SHA1_80 inline:" + cm128 + " UNENCRYPTED_SRTP UNAUTHENTICATED_SRTP", sdes.Attribute{Tag: 1,
			Suite: suite.AES128CMHMACSHA180, UnencryptedSRTP: true, Unauthenticated: true}},
	} {
		got, err := sdes.Parse(c.text)
		require.NoError(t, err, c.text)
		require.Len(t, got.Keys, 1)
		assert.Equal(t, make([]byte, c.want.Suite.KeyLen()), got.Keys[0].Master)
		assert.Equal(t, make([]byte, c.want.Suite.SaltLen()), got.Keys[0].Salt)
		got.Keys = nil
		assert.Equal(t, c.want, got, c.text)
	}
}

func TestLifetimeAndMKI(t *testing.T) {
	for text, want := range map[string]sdes.Key{
		"":                 {},
		"|2^31":            {Lifetime: 1 << 31},
		"|2^48|1:1":        {Lifetime: 1 << 48, MKI: []byte{1}},
		"|1048577":         {Lifetime: 1048577},
		"|66051:4":         {MKI: []byte{0, 1, 2, 3}},
		"|0:2":             {MKI: []byte{0, 0}},
		"|4294967295:4":    {MKI: []byte{255, 255, 255, 255}},
		"|2^10|0001:00128": {Lifetime: 1024, MKI: append(make([]byte, 127), 1)},
	} {
		a, err := sdes.Parse("1 AES_CM_128_HMAC_SHA1_80 inline:" + cm128 + text)
		require.NoError(t, err, text)
		assert.Equal(t, want.Lifetime, a.Keys[0].Lifetime, text)
		assert.Equal(t, want.MKI, a.Keys[0].MKI, text)
	}
}

func TestRefusals(t *testing.T) {
	key := "1 AES_CM_128_HMAC_SHA1_80 inline:" + cm128
	for _, c := range []struct{ text, want string }{
		{"",
			"crypto attribute: a tag, a suite and a key are needed"},
		{"1 AES_CM_128_HMAC_SHA1_80",
			"crypto attribute: a tag, a suite and a key are needed"},
		{"-1 AES_CM_128_HMAC_SHA1_80 inline:" + cm128,
			`crypto attribute: tag "-1" is not a number of at most 9 digits`},
		{"1234567890 AES_CM_128_HMAC_SHA1_80 inline:" + cm128,
			`crypto attribute: tag "1234567890" is not a number of at most 9 digits`},
		{"1 F8_128_HMAC_SHA1_80 inline:" + cm128,
			`crypto attribute 1: crypto suite "F8_128_HMAC_SHA1_80" is not supported`},
		{"1 AES_CM_128_HMAC_SHA1_80 uri:x",
			`crypto attribute 1: key 1: method "uri" is not inline`},
		{"1 AES_CM_128_HMAC_SHA1_80 inline:%%%",
			"crypto attribute 1: key 1: key is not base64"},
		{"1 AEAD_AES_128_GCM inline:" + cm128,
			"crypto attribute 1: key 1: key and salt have 30 bytes, AEAD_AES_128_GCM needs 28"},
		{key + "|2^49",
			`crypto attribute 1: key 1: lifetime "2^49" is not 2^0 to 2^48`},
		{key + "|0",
			`crypto attribute 1: key 1: lifetime "0" is not a number of 1 to 2^48 packets`},
		{key + "|1:0",
			`crypto attribute 1: key 1: MKI length "0" is not 1 to 128`},
		{key + "|1:129",
			`crypto attribute 1: key 1: MKI length "129" is not 1 to 128`},
		{key + "|256:1",
			`crypto attribute 1: key 1: MKI "256" does not fit 1 bytes`},
		{key + "|-1:1",
			`crypto attribute 1: key 1: MKI "-1" is not a number`},
		{key + "|:1",
			`crypto attribute 1: key 1: MKI "" does not fit 1 bytes`},
		{key + "|2^20|1:4|x",
			"crypto attribute 1: key 1: more than a lifetime and an MKI behind the key"},
		{key + ";inline:" + cm128,
			"crypto attribute 1: several keys, and one without an MKI"},
		{key + "|1:4;inline:" + cm128 + "|2:2",
			"crypto attribute 1: MKIs of different lengths"},
		{key + "|1:4;inline:" + cm128 + "|1:4",
			"crypto attribute 1: two keys with the same MKI"},
		{key + strings.Repeat(";inline:"+cm128+"|1:4", 8),
			"crypto attribute 1: more than 8 keys"},
		{key + " KDR=3",
			`crypto attribute 1: key derivation rate "3" is not supported`},
		{key + " WSH=63",
			`crypto attribute 1: window size hint "63" is not a number of 64 or more`},
		{key + " FEC_ORDER=FEC_SRTP",
			`crypto attribute 1: session parameter "FEC_ORDER" is not supported`},
	} {
		_, err := sdes.Parse(c.text)
		assert.EqualError(t, err, c.want, c.text)
	}
}

// Whatever is done with a key, a print shows nothing of it.
func TestAKeyIsNotPrinted(t *testing.T) {
	a, err := sdes.Parse("1 AES_CM_128_HMAC_SHA1_80 inline:" + strings.Repeat("a2V5", 10) + "|7:1")
	require.NoError(t, err)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q"} {
		for _, v := range []any{a, a.Keys, a.Keys[0], &a.Keys[0]} {
			text := fmt.Sprintf(verb, v)
			assert.NotContains(t, text, "key"+"key", verb)
			assert.NotContains(t, text, "107", verb)  // k, in decimal
			assert.NotContains(t, text, "0x6b", verb) // and in hex
			assert.NotContains(t, text, "6b65", verb)
		}
	}
	_, err = sdes.Parse("1 AES_CM_128_HMAC_SHA1_80 inline:c2VjcmV0c2VjcmV0!")
	assert.NotContains(t, err.Error(), "c2Vj")
	a.Keys[0].Wipe()
	assert.Equal(t, make([]byte, 16), a.Keys[0].Master)
	assert.Equal(t, make([]byte, 14), a.Keys[0].Salt)
}

func TestNewKeysAreDifferent(t *testing.T) {
	for _, s := range suite.All() {
		a, b := sdes.NewKey(s), sdes.NewKey(s)
		assert.Len(t, a.Master, s.KeyLen())
		assert.Len(t, a.Salt, s.SaltLen())
		assert.False(t, a.Equal(b))
		assert.True(t, a.Equal(a))
		assert.False(t, bytes.Equal(a.Salt, b.Salt))
	}
}

// offer has each suite once, and one of them a second time with an MKI.
func offer(t *testing.T) []sdes.Attribute {
	var all []sdes.Attribute
	for _, text := range []string{
		"1 AEAD_AES_128_GCM inline:" + gcm128,
		"2 AES_CM_128_HMAC_SHA1_80 inline:" + cm128,
		"3 AES_CM_128_HMAC_SHA1_80 inline:" + cm128 + "|1:4",
		"4 AES_CM_128_HMAC_SHA1_32 inline:" + cm128,
	} {
		a, err := sdes.Parse(text)
		require.NoError(t, err)
		all = append(all, a)
	}
	return all
}

func TestChoose(t *testing.T) {
	got, ok := sdes.Choose(offer(t), func(a sdes.Attribute) bool { return !a.Suite.AEAD() })
	require.True(t, ok)
	assert.EqualValues(t, 2, got.Tag, "the first that is acceptable, with its own tag")
	_, ok = sdes.Choose(offer(t), func(sdes.Attribute) bool { return false })
	assert.False(t, ok)
}

func TestMatch(t *testing.T) {
	for text, want := range map[string]uint32{
		"1 AEAD_AES_128_GCM inline:" + gcm128:        1,
		"2 AES_CM_128_HMAC_SHA1_80 inline:" + cm128:  2,
		"3 AES_CM_128_HMAC_SHA1_80 inline:" + cm128:  3,
		"1 AES_CM_128_HMAC_SHA1_32 inline:" + cm128:  4, // the first line's tag with another line's suite
		"77 AES_CM_128_HMAC_SHA1_32 inline:" + cm128: 4, // numbered by itself
	} {
		answer, err := sdes.Parse(text)
		require.NoError(t, err)
		got, err := sdes.Match(offer(t), answer)
		require.NoError(t, err, text)
		assert.Equal(t, want, got.Tag, text)
	}
	for _, text := range []string{
		"1 AES_CM_128_HMAC_SHA1_80 inline:" + cm128, // two lines have this suite
		"1 AEAD_AES_256_GCM inline:" + gcm256,
	} {
		answer, err := sdes.Parse(text)
		require.NoError(t, err)
		_, err = sdes.Match(offer(t), answer)
		assert.ErrorIs(t, err, sdes.ErrNoMatch, text)
	}
}

// What is read is written the same, and nothing crashes.
func FuzzParse(f *testing.F) {
	f.Add("1 AES_CM_128_HMAC_SHA1_80 inline:" + cm128 + "|2^20|1:4")
	f.Add("1 AES_CM_128_HMAC_SHA1_32 inline:" + cm128 + "|1000|1:4;inline:" + cm128 + "|2:4 UNENCRYPTED_SRTCP WSH=64 -x")
	f.Add("0 AEAD_AES_256_GCM inline:" + gcm256)
	f.Fuzz(func(t *testing.T, text string) {
		a, err := sdes.Parse(text)
		if err != nil {
			return
		}
		b, err := sdes.Parse(string(a.Append(nil)))
		require.NoError(t, err)
		assert.Equal(t, a, b)
	})
}
