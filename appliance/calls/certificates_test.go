package calls

import (
	"crypto/x509"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/appliance/problem"
	"ringway/appliance/secrets"
	"ringway/sip/relay"
	"ringway/test/certtest"
)

// pbxFiles are the files of one server.
type pbxFiles struct {
	t     *testing.T
	ca    *certtest.CA
	files secrets.ServerFiles
}

func newPBXFiles(t *testing.T) *pbxFiles {
	dir := t.TempDir()
	p := &pbxFiles{t: t, ca: certtest.NewCA(t), files: secrets.ServerFiles{
		Name: "pbx", Names: []string{"pbx.example.com"},
		Chain: filepath.Join(dir, "pbx.crt"), Key: filepath.Join(dir, "pbx.key"), CA: filepath.Join(dir, "ca.crt"),
	}}
	p.write(p.files.CA, p.ca.PEM)
	p.renew(func(*x509.Certificate) {})
	return p
}

func (p *pbxFiles) write(path, text string) {
	require.NoError(p.t, os.WriteFile(path, []byte(text), 0o600))
}

func (p *pbxFiles) renew(change func(*x509.Certificate)) {
	chain, key := p.ca.IssueAs(change, "pbx.example.com")
	p.write(p.files.Chain, chain)
	p.write(p.files.Key, key)
}

func TestCertificatesAreReadWhenTheyChange(t *testing.T) {
	p := newPBXFiles(t)
	x := newCertificates(secrets.Below(""))
	first := x.follow([]secrets.ServerFiles{p.files})
	require.Len(t, first, 1)
	assert.Empty(t, x.problems(time.Now()))
	_, changed := x.look()
	assert.False(t, changed)

	p.renew(func(*x509.Certificate) {})
	second, changed := x.look()
	assert.True(t, changed)
	require.Len(t, second, 1)
	assert.NotEqual(t, first, second)

	// The certificate is there, its key not yet: what was before holds, and that is said.
	chain, key := p.ca.Issue("pbx.example.com")
	p.write(p.files.Chain, chain)
	half, changed := x.look()
	assert.False(t, changed)
	assert.Equal(t, second, half)
	require.Len(t, x.problems(time.Now()), 1)
	got := x.problems(time.Now())[0]
	assert.Equal(t, problem.Warning, got.Severity)
	assert.Equal(t, "its files have changed and are not used: "+p.files.Key+" is not the key of the certificate", got.Text)
	p.write(p.files.Key, key)
	_, changed = x.look()
	assert.True(t, changed)
	assert.Empty(t, x.problems(time.Now()))

	assert.Empty(t, x.follow(nil))
	assert.Empty(t, x.expiries())
}

func TestProblemsWithCertificates(t *testing.T) {
	p := newPBXFiles(t)
	p.renew(func(c *x509.Certificate) { c.NotAfter = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC) })
	missing := secrets.ServerFiles{Name: "old", Names: []string{"x"}, Chain: "/none", Key: "/none", CA: "/none"}
	x := newCertificates(secrets.Below(""))
	assert.Len(t, x.follow([]secrets.ServerFiles{p.files, missing}), 1, "the others are used")
	at := func(year int, month time.Month, day int) []problem.Problem {
		return x.problems(time.Date(year, month, day, 0, 0, 0, 0, time.UTC))
	}
	old := problem.Problem{
		Subject: "tls old", Severity: problem.Critical,
		Text:   "SIP over TLS is not read: /none cannot be read: no such file or directory",
		Action: "correct it; it is read again every 10s",
	}
	renew := "renew it; it is read when it changes"
	assert.Equal(t, []problem.Problem{old}, at(2029, 12, 1))
	assert.Equal(t, []problem.Problem{{
		Subject: "tls pbx", Severity: problem.Warning, Text: p.files.Chain + " expires at 2030-01-02 03:04:05", Action: renew,
	}, old}, at(2029, 12, 30))
	assert.Equal(t, []problem.Problem{{
		Subject: "tls pbx", Severity: problem.Critical, Action: renew,
		Text: p.files.Chain + " has expired at 2030-01-02 03:04:05: phones refuse it",
	}, old}, at(2030, 1, 3))
}

func TestServersWhoseTLSFailsAreProblems(t *testing.T) {
	now := time.Now()
	server := netip.MustParseAddrPort("10.2.20.5:5061")
	c := &Calls{}
	c.cfg.Mode = config.SIPEnforce
	say := func(why, text string) string {
		c.stats.TLS = []relay.TLSServer{{Name: "pbx", Server: server, At: now.Add(-time.Minute), Why: why, Error: text}}
		all := c.failedTLS(now)
		if len(all) == 0 {
			return ""
		}
		return all[0].String()
	}
	assert.Empty(t, say("", ""))
	assert.Equal(t, "tls server pbx: 10.2.20.5:5061 asks for a client certificate: what is sent to it over TLS passes "+
		"unread; give sip.tls[pbx].client_cert and client_key", say(relay.TLSClientCertificate, ""))
	assert.Equal(t, "tls server pbx: 10.2.20.5:5061 is not known to be this server, and its phones' connections are "+
		"reset: unknown CA; give the CA of its certificate in sip.tls[pbx].ca, and its name in server_names",
		say(relay.TLSUnverified, "unknown CA"))
	c.cfg.Mode = config.SIPObserve
	assert.Contains(t, say(relay.TLSUnverified, "unknown CA"), "pass unread")
	assert.Contains(t, say("tls_server_failed", "EOF"), "TLS with 10.2.20.5:5061 failed: EOF; see whether")
	now = now.Add(2 * time.Hour)
	c.stats.TLS[0].At = now.Add(-2 * time.Hour)
	assert.Empty(t, c.failedTLS(now))
}
