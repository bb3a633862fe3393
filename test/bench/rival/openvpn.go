package rival

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"strings"
	"time"

	"ringway/test/lab/host"
)

// OpenVPN's own addresses on the two edges.
var openVPNAddresses = [2]string{"10.251.0.1", "10.251.0.2"}

// openVPN runs OpenVPN from edge to edge over UDP, in user space. Each side knows the other's certificate by
// its fingerprint; the certificates are created here and never used again.
func (w spec) openVPN(ctx context.Context) (*Tunnel, error) {
	t := &Tunnel{Program: "OpenVPN"}
	if out, _ := w.a.Host.Run(ctx, w.programs.OpenVPN, "--version"); len(
		strings.Fields(out),
	) > 1 { // 2.5 exits with status 1 after --version
		t.Program = strings.Join(strings.Fields(out)[:2], " ")
	}
	var ids [2]identity
	for i := range ids {
		var err error
		if ids[i], err = newIdentity(fmt.Sprintf("ringway bench %d", i)); err != nil {
			return nil, err
		}
	}
	for i, e := range w.ends() {
		h := e.near.Host
		role := "tls-client"
		if e.first {
			role = "tls-server\ndh none"
		}
		config := fmt.Sprintf(`dev %s
dev-type tun
proto udp4
local %s
lport %d
remote %s %d
ifconfig %s %s
%s
cert %[9]s/openvpn.crt
key %[9]s/openvpn.key
peer-fingerprint %[10]s
disable-dco
verb 1
`, w.device, e.near.WAN, w.port, e.far.WAN, w.port, openVPNAddresses[i], openVPNAddresses[1-i], role, host.Dir, ids[1-i].fingerprint)
		for _, f := range []struct{ name, text string }{{"openvpn.crt", ids[i].certificate},
			{"openvpn.key", ids[i].key}, {"openvpn.conf", config}} {
			if err := os.WriteFile(h.Path(host.Dir+"/"+f.name), []byte(f.text), 0o600); err != nil {
				return nil, fmt.Errorf("configure OpenVPN on %s: %w", h.Name, err)
			}
		}
		p, err := h.Spawn("openvpn", h.Command(w.programs.OpenVPN, "--config", host.Dir+"/openvpn.conf"))
		if err != nil {
			return nil, err
		}
		t.processes = append(t.processes, p)
		if err := w.waitDevice(ctx, h, p, true); err != nil {
			return nil, err
		}
		if err := w.routeIn(ctx, e); err != nil {
			return nil, err
		}
	}
	return t, nil
}

// identity is a key and a self-signed certificate.
type identity struct{ certificate, key, fingerprint string }

func newIdentity(name string) (id identity, err error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return id, err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return id, fmt.Errorf("create a temporary certificate: %w", err)
	}
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return id, err
	}
	id.certificate = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	id.key = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
	sum := sha256.Sum256(der)
	var pairs []string
	for _, b := range sum {
		pairs = append(pairs, hex.EncodeToString([]byte{b}))
	}
	id.fingerprint = strings.ToUpper(strings.Join(pairs, ":"))
	return id, nil
}
