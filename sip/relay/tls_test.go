package relay

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/sip/certificate"
	"ringway/sip/transparent"
	"ringway/test/certtest"
)

func source(ca *certtest.CA, name string, names ...string) certificate.Source {
	chain, key := ca.Issue(names...)
	return certificate.Source{
		Name: name, Names: names, Chain: certificate.PEM(chain), Key: certificate.PEM(key), CA: certificate.PEM(ca.PEM),
	}
}

func TestTLSFollowsTheSettings(t *testing.T) {
	c := newCore(time.Now)
	use := func(s Settings) {
		t.Helper()
		b, err := json.Marshal(s) // as the process gets them
		require.NoError(t, err)
		var got Settings
		require.NoError(t, json.Unmarshal(b, &got))
		require.NoError(t, c.use(got))
	}
	use(Settings{Privacy: "show"})
	assert.Nil(t, c.security.Load())

	ca := certtest.NewCA(t)
	own := netip.MustParseAddrPort("10.2.20.5:5071")
	s := Settings{
		Privacy: "show", TLS: []certificate.Source{source(ca, "pbx", "pbx.example.com")}, TLSPorts: []uint16{5061},
		TLSServers: []netip.AddrPort{own},
	}
	use(s)
	first := c.security.Load()
	require.NotNil(t, first)
	assert.True(t, first.Lenient, "observe")
	for to, want := range map[string]bool{
		"10.2.20.9:5061": true, "10.2.20.5:5071": true, "10.2.20.9:5071": false, "10.2.20.9:5060": false,
	} {
		assert.Equal(t, want, first.Port(netip.MustParseAddrPort(to)), to)
	}
	s.Enforce = true
	use(s)
	assert.False(t, c.security.Load().Lenient)
	assert.Same(t, first.Servers, c.security.Load().Servers, "what is known of servers stays")

	first.Outcome("pbx", own, TLSUnverified, errors.New("x509: \x1b[1m"+strings.Repeat("x", 1000)))
	first.Outcome("another", own, "", nil)
	got := c.stats().TLS
	require.Len(t, got, 1)
	assert.Equal(t, map[string]uint64{TLSUnverified: 1}, got[0].Failed)
	assert.Equal(t, own, got[0].Server)
	assert.True(t, strings.HasPrefix(got[0].Error, "x509: ?[1mxxx"), got[0].Error)
	assert.LessOrEqual(t, len(got[0].Error), maxTLSError+3)

	s.TLS = []certificate.Source{source(ca, "pbx", "pbx.example.com")}
	use(s)
	assert.NotSame(t, first.Servers, c.security.Load().Servers, "a certificate was renewed")
	got = c.stats().TLS
	assert.Empty(t, got[0].Why)
	assert.Equal(t, map[string]uint64{TLSUnverified: 1}, got[0].Failed)
	first.Outcome("pbx", own, "", nil)
	assert.EqualValues(t, 1, c.stats().TLS[0].Read)

	bad := s
	bad.TLS = []certificate.Source{{Name: "pbx"}}
	require.ErrorContains(t, c.use(bad), "certificate of pbx: holds no certificate")
	assert.NotNil(t, c.security.Load(), "what was before holds")
	use(Settings{Privacy: "show"})
	assert.Nil(t, c.security.Load())
}

// The reasons by which the appliance tells problems apart are names of counters.
func TestReasonsOfTLSAreCounted(t *testing.T) {
	r, err := transparent.New(transparent.Config{
		Handle: func(*transparent.Message) transparent.Action { return transparent.Action{} },
		Open:   (&server{}).openSockets,
	})
	require.NoError(t, err)
	defer r.Close()
	for _, why := range []string{TLSUnverified, TLSClientCertificate} {
		assert.Contains(t, r.Stats().Counts, why)
	}
}
