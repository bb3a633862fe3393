package certificate

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/netip"
	"net/url"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/certtest"
)

func source(ca *certtest.CA, name string, names ...string) Source {
	chain, key := ca.Issue(names...)
	return Source{Name: name, Names: names, Chain: PEM(chain), Key: PEM(key), CA: PEM(ca.PEM)}
}

func TestServersAreFoundByNameOrAddress(t *testing.T) {
	ca := certtest.NewCA(t)
	set, err := NewSet([]Source{
		source(ca, "pbx", "pbx.example.com", "sip.example.com"), source(ca, "old", "10.2.20.5", "2001:db8:2::5"),
	})
	require.NoError(t, err)
	pbx, old := netip.MustParseAddr("10.2.20.9"), netip.MustParseAddr("10.2.20.5")
	for _, c := range []struct {
		asked string
		to    netip.Addr
		want  string
		name  string
	}{
		{"pbx.example.com", pbx, "pbx", "pbx.example.com"},
		{"SIP.example.com", old, "pbx", "sip.example.com"},
		{"other.example.com", old, "", "other.example.com"},
		{"", old, "old", "10.2.20.5"},
		{"", netip.MustParseAddr("2001:db8:2::5"), "old", "2001:db8:2::5"},
		{"", netip.MustParseAddr("::ffff:10.2.20.5"), "old", "10.2.20.5"},
		{"", pbx, "", "10.2.20.9"},
	} {
		server, name := set.Find(c.asked, c.to)
		assert.Equal(t, c.name, name)
		if c.want == "" {
			assert.Nil(t, server)
			continue
		}
		require.NotNil(t, server, c.asked)
		assert.Equal(t, c.want, server.Name)
	}

	_, err = NewSet([]Source{source(ca, "one", "pbx.example.com"), source(ca, "two", "pbx.example.com")})
	require.EqualError(t, err, "pbx.example.com has two certificates, of one and two")
	_, err = NewSet(make([]Source, MaxServers+1))
	require.EqualError(t, err, "33 servers with certificates (allowed: up to 32)")
}

// RFC 5922, section 7.1.
func TestNamesInCertificatesForSIP(t *testing.T) {
	ca := certtest.NewCA(t)
	leaf := func(change func(*x509.Certificate), names ...string) *x509.Certificate {
		chain, _ := ca.IssueAs(change, names...)
		c, err := ParseChain(PEM(chain))
		require.NoError(t, err)
		return c
	}
	uri := func(text string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			u, err := url.Parse(text)
			require.NoError(t, err)
			c.URIs, c.DNSNames = []*url.URL{u}, nil
		}
	}
	nothing := func(*x509.Certificate) {}
	only := func(c *x509.Certificate) { c.DNSNames = nil }
	assert.NoError(t, Covers(leaf(nothing, "pbx.example.com"), "pbx.example.com"))
	assert.NoError(t, Covers(leaf(nothing, "*.example.com"), "pbx.example.com"))
	assert.NoError(t, Covers(leaf(nothing, "10.2.20.5"), "10.2.20.5"))
	assert.NoError(t, Covers(leaf(uri("sip:example.com"), "x"), "example.com"))
	assert.NoError(t, Covers(leaf(only, "PBX.example.com"), "pbx.example.com"), "a common name where there is no other")

	for _, c := range []struct {
		leaf *x509.Certificate
		want string
	}{
		{leaf(nothing, "a.example.com", "b.example.com"), `is for ["a.example.com" "b.example.com"], not for example.com`},
		{leaf(uri("sip:bob@example.com"), "x"), `is for ["sip:bob@example.com"], not for example.com`},
		{leaf(uri("https://example.com"), "example.com"), ""},
		{leaf(func(c *x509.Certificate) {
			c.Subject = pkix.Name{CommonName: "example.com"}
		}, "other.example.com"), `is for ["other.example.com"], not for example.com`},
		{leaf(nothing, "a", "b", "c", "d", "e"), `is for ["a" "b" "c" "d"] and 1 more, not for example.com`},
	} {
		err := Covers(c.leaf, "example.com")
		if c.want == "" {
			assert.NoError(t, err)
			continue
		}
		require.EqualError(t, err, c.want)
	}
}

func TestFilesThatHoldSomethingElse(t *testing.T) {
	ca := certtest.NewCA(t)
	good := source(ca, "pbx", "pbx.example.com")
	client, clientKey := ca.Issue("client")
	for _, c := range []struct {
		change func(*Source)
		want   string
	}{
		{func(s *Source) { s.Chain = "" },
			"certificate of pbx: holds no certificate (allowed: PEM, -----BEGIN CERTIFICATE-----)"},
		{func(s *Source) { s.Chain = s.Key },
			"certificate of pbx: holds no certificate (allowed: PEM, -----BEGIN CERTIFICATE-----)"},
		{func(s *Source) { s.Key = s.Chain },
			"certificate of pbx: holds no private key (allowed: PEM without a passphrase, RSA or ECDSA or Ed25519)"},
		{func(s *Source) { s.Key = PEM(clientKey) }, "certificate of pbx: is not the key of the certificate"},
		{func(s *Source) { s.Names = []string{"other.example.com"} },
			`certificate of pbx is for ["pbx.example.com"], not for other.example.com`},
		{func(s *Source) { s.CA = "x" }, "CA of pbx: holds no certificate (allowed: PEM, -----BEGIN CERTIFICATE-----)"},
		{func(s *Source) { s.ClientChain = PEM(client) },
			"client certificate of pbx: holds no private key (allowed: PEM without a passphrase, RSA or ECDSA or Ed25519)"},
	} {
		s := good
		c.change(&s)
		_, err := Parse(s)
		require.EqualError(t, err, c.want)
	}
	broken := PEM(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("no DER")}))
	_, err := ParseCA(broken)
	require.ErrorContains(t, err, "holds a certificate that cannot be parsed")
}

// A source is in settings that are compared, sent and perhaps printed.
func TestKeysAreNotPrinted(t *testing.T) {
	s := source(certtest.NewCA(t), "pbx", "pbx.example.com")
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x"} {
		assert.NotContains(t, fmt.Sprintf(format, s), "BEGIN")
	}
	sent, err := json.Marshal(s)
	require.NoError(t, err)
	var got Source
	require.NoError(t, json.Unmarshal(sent, &got))
	assert.Equal(t, s, got)
}
