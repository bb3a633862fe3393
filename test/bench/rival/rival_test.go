package rival

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/lab/host"
)

func TestNebulaConfigIsAsAlways(t *testing.T) {
	w := spec{
		a:      Edge{&host.Host{Name: "edge-a"}, "198.51.100.1"},
		b:      Edge{&host.Host{Name: "edge-b"}, "198.51.100.2"},
		nets:   Networks{A: []string{"10.16.1.0/24"}, B: []string{"10.16.2.0/24"}},
		port:   51823,
		device: "tun-3",
	}
	assert.Equal(t, `pki: {ca: /run/lab/nebula-ca.crt, cert: /run/lab/edge-b.crt, key: /run/lab/edge-b.key}
static_host_map: {"10.250.0.1": ["198.51.100.1:51823"]}
lighthouse: {am_lighthouse: false, hosts: []}
listen: {host: 198.51.100.2, port: 51823}
punchy: {punch: false}
tun:
  dev: tun-3
  mtu: 1300
  unsafe_routes:
    - {route: 10.16.1.0/24, via: 10.250.0.1}
firewall:
  outbound: [{port: any, proto: any, host: any, local_cidr: 0.0.0.0/0}]
  inbound: [{port: any, proto: any, host: any, local_cidr: 0.0.0.0/0}]
logging: {level: error}
`, w.nebulaConfig(1, w.ends()[1]))
}

func TestThrowawayIdentity(t *testing.T) {
	id, err := newIdentity("somebody")
	require.NoError(t, err)
	pair, err := tls.X509KeyPair([]byte(id.certificate), []byte(id.key))
	require.NoError(t, err)
	c, err := x509.ParseCertificate(pair.Certificate[0])
	require.NoError(t, err)
	assert.Equal(t, "somebody", c.Subject.CommonName)
	assert.Less(t, time.Until(c.NotAfter), 25*time.Hour)
	sum := sha256.Sum256(pair.Certificate[0])
	assert.Equal(t, strings.ToUpper(hex.EncodeToString(sum[:])), strings.ReplaceAll(id.fingerprint, ":", ""))
}

// Nebula is built by whatever go is there; that none of the versions can be built is told with each reason.
func TestNebulaThatCannotBeBuilt(t *testing.T) {
	bin, cache := t.TempDir(), t.TempDir()
	require.NoError(
		t,
		os.WriteFile(
			filepath.Join(bin, "go"),
			[]byte("#!/bin/sh\necho first >&2\necho no module for $3 >&2\nexit 1\n"),
			0o755,
		),
	)
	t.Setenv("PATH", bin+":/usr/bin:/bin")
	t.Setenv("XDG_CACHE_HOME", cache)
	var p Programs
	var said []string
	err := p.buildNebula(t.Context(), func(format string, _ ...any) { said = append(said, format) })
	require.ErrorContains(
		t,
		err,
		"none of these could be built (name one with --nebula PROGRAM, or leave nebula out of --vs):\n  "+
			"v1.12.0: no module for github.com/slackhq/nebula/cmd/nebula@v1.12.0\n  v1.11.2: ",
	)
	assert.Len(t, said, 2*len(nebulaVersions))
	left, err := os.ReadDir(filepath.Join(cache, "ringway"))
	require.NoError(t, err)
	assert.Empty(t, left)
}

func TestNebulaThatWasBuiltIsTaken(t *testing.T) {
	cache := t.TempDir()
	dir := filepath.Join(cache, "ringway", "nebula-v1.11.1")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	for _, f := range []string{"nebula", "nebula-cert"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, f), nil, 0o755))
	}
	t.Setenv("XDG_CACHE_HOME", cache)
	t.Setenv("PATH", t.TempDir())
	var p Programs
	require.NoError(t, p.buildNebula(t.Context(), t.Logf))
	assert.Equal(t, filepath.Join(dir, "nebula"), p.Nebula)
	require.NoError(t, p.UseNebula(filepath.Join(dir, "nebula")))
	assert.ErrorIs(t, p.UseNebula(filepath.Join(cache, "nebula")), os.ErrNotExist)
	assert.Equal(t, "x", lastLine("\n", errors.New("x")))
}
