package rival

import (
	"context"
	"fmt"
	"os"
	"strings"

	"ringway/test/lab/host"
)

// Nebula's own addresses on the two edges.
var nebulaAddresses = [2]string{"10.250.0.1", "10.250.0.2"}

// nebula runs Nebula with a certificate authority that lives as long as the benchmark. The phones' networks
// are "unsafe routes" in its terms: networks behind a host of the overlay.
func (w spec) nebula(ctx context.Context) (*Tunnel, error) {
	version, err := w.a.Host.Run(ctx, w.programs.Nebula, "-version")
	if err != nil {
		return nil, err
	}
	t := &Tunnel{Program: "nebula " + strings.TrimSpace(strings.TrimPrefix(version, "Version: "))}
	const dir = host.Dir
	first := w.a.Host
	if _, err := first.Run(ctx, w.programs.NebulaCert, "ca", "-name", "ringway bench", "-duration", "24h",
		"-out-crt", dir+"/nebula-ca.crt", "-out-key", dir+"/nebula-ca.key"); err != nil {
		return nil, err
	}
	for i, e := range w.ends() {
		h := e.near.Host
		if _, err := first.Run(ctx, w.programs.NebulaCert, "sign", "-name", h.Name, "-ca-crt", dir+"/nebula-ca.crt",
			"-ca-key", dir+"/nebula-ca.key",
			"-networks", nebulaAddresses[i]+"/24", "-unsafe-networks", strings.Join(e.behind, ","),
			"-out-crt", dir+"/"+h.Name+".crt", "-out-key", dir+"/"+h.Name+".key"); err != nil {
			return nil, err
		}
		if h != first {
			for _, f := range []string{"nebula-ca.crt", h.Name + ".crt", h.Name + ".key"} {
				text, err := os.ReadFile(first.Path(dir + "/" + f))
				if err == nil {
					err = os.WriteFile(h.Path(dir+"/"+f), text, 0o600)
				}
				if err != nil {
					return nil, fmt.Errorf("copy %s to %s: %w", f, h.Name, err)
				}
			}
		}
		if err := os.WriteFile(h.Path(dir+"/nebula.yml"), []byte(w.nebulaConfig(i, e)), 0o644); err != nil {
			return nil, fmt.Errorf("configure Nebula on %s: %w", h.Name, err)
		}
		cmd := h.Command(w.programs.Nebula, "-config", dir+"/nebula.yml")
		cmd.Env = append(cmd.Env, w.programs.goEnv()...)
		p, err := h.Spawn("nebula", cmd)
		if err != nil {
			return nil, err
		}
		t.processes = append(t.processes, p)
		if err := w.waitDevice(ctx, h, p, true); err != nil { // it adds its routes itself
			return nil, err
		}
	}
	return t, nil
}

func (w spec) nebulaConfig(i int, e end) string {
	var routes strings.Builder
	for _, n := range e.farther {
		fmt.Fprintf(&routes, "    - {route: %s, via: %s}\n", n, nebulaAddresses[1-i])
	}
	return fmt.Sprintf(`pki: {ca: %[1]s/nebula-ca.crt, cert: %[1]s/%[2]s.crt, key: %[1]s/%[2]s.key}
static_host_map: {"%[3]s": ["%[4]s:%[5]d"]}
lighthouse: {am_lighthouse: false, hosts: []}
listen: {host: %[6]s, port: %[5]d}
punchy: {punch: false}
tun:
  dev: %[7]s
  mtu: 1300
  unsafe_routes:
%[8]sfirewall:
  outbound: [{port: any, proto: any, host: any, local_cidr: 0.0.0.0/0}]
  inbound: [{port: any, proto: any, host: any, local_cidr: 0.0.0.0/0}]
logging: {level: error}
`, host.Dir, e.near.Host.Name, nebulaAddresses[1-i], e.far.WAN, w.port, e.near.WAN, w.device, routes.String())
}
