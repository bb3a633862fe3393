package dtls_test

import (
	"encoding/pem"
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/dtls"
)

func TestFingerprint(t *testing.T) {
	value := "sha-256 " + strings.Repeat("AB:", 31) + "0F"
	f, err := dtls.ParseFingerprint(value)
	require.NoError(t, err)
	assert.Equal(t, value, f.String())
	assert.True(t, f.Accepted())

	// Case 26: neither part's case matters.
	for _, same := range []string{strings.ToUpper(value), strings.ToLower(value), "  " + value + "\r"} {
		got, err := dtls.ParseFingerprint(same)
		require.NoError(t, err)
		assert.Equal(t, f, got)
	}
	for _, weak := range []string{"sha-1 " + strings.Repeat("AB:", 19) + "0F", "md5 " + strings.Repeat("AB:", 15) + "0F"} {
		got, err := dtls.ParseFingerprint(weak)
		require.NoError(t, err)
		assert.False(t, got.Accepted())
		assert.Equal(t, weak, got.String())
	}
	for _, bad := range []string{
		"", "sha-256", "sha-256 ", "sha-256 AB", "sha-256 " + strings.Repeat("AB:", 32), value + ":11",
		strings.Replace(value, ":", "-", 1), strings.Replace(value, "AB", "XY", 1), strings.Repeat("x", 300),
		"sha-512 " + strings.Repeat("AB:", 64) + "0F",
	} {
		_, err := dtls.ParseFingerprint(bad)
		assert.Error(t, err, bad)
	}
}

// Case 26: the answer has the offer's hash.
func TestFingerprintOfTheAnswer(t *testing.T) {
	c := newCertificate(t)
	assert.Contains(t, c.Fingerprint(nil).String(), "sha-256 ")
	offer := []dtls.Fingerprint{c.Fingerprint(nil)}
	sha1, err := dtls.ParseFingerprint("sha-1 " + strings.Repeat("AB:", 19) + "0F")
	require.NoError(t, err)
	sha512, err := dtls.ParseFingerprint("SHA-512 " + strings.Repeat("AB:", 63) + "0F")
	require.NoError(t, err)
	assert.Contains(t, c.Fingerprint([]dtls.Fingerprint{sha1, sha512, offer[0]}).String(), "sha-512 ")
	assert.Contains(t, c.Fingerprint([]dtls.Fingerprint{sha1}).String(), "sha-256 ")
}

func TestCertificateIsChecked(t *testing.T) {
	text, err := dtls.NewCertificate()
	require.NoError(t, err)
	other, err := dtls.NewCertificate()
	require.NoError(t, err)
	certificate, key := split(t, text)
	_, otherKey := split(t, other)
	for name, bad := range map[string][]byte{
		"nothing":          nil,
		"no key":           certificate,
		"no certificate":   key,
		"another's key":    append(append([]byte{}, certificate...), otherKey...),
		"two certificates": append(append([]byte{}, text...), certificate...),
		"broken":           []byte(strings.Replace(string(text), "MI", "AA", 1)),
	} {
		_, err := dtls.ParseCertificate(bad)
		assert.Error(t, err, name)
	}
	_, err = dtls.ParseCertificate(append(append([]byte{}, key...), certificate...)) // the order does not matter
	assert.NoError(t, err)
}

func split(t *testing.T, text []byte) (certificate, key []byte) {
	first, rest := pem.Decode(text)
	second, _ := pem.Decode(rest)
	require.NotNil(t, second)
	return pem.EncodeToMemory(first), pem.EncodeToMemory(second)
}

// Nothing that holds a secret prints it.
func TestSecretsDoNotPrint(t *testing.T) {
	c := newCertificate(t)
	k := &dtls.Keys{Suite: dtls.Suites()[0], Send: dtls.Secret{Master: []byte("SECRET"), Salt: []byte("SECRET")}}
	k.Receive = k.Send
	for _, v := range []any{c, k, k.Send, dtls.Event{Keys: k}, dtls.Config{Certificate: c}} {
		for _, format := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q"} {
			out := fmt.Sprintf(format, v)
			assert.NotContains(t, out, "SECRET")
			assert.NotContains(t, out, "534543524554")
			assert.NotContains(t, out, "83, 69")
			assert.NotContains(t, out, "83 69")
			assert.NotContains(t, out, "PrivateKey")
			assert.NotContains(t, out, "0x53")
		}
	}
}
