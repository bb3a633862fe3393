package rival

import (
	"context"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"ringway/test/lab/host"
	"ringway/tunnel"
)

// wireguardMTU is wg-quick's MTU on an Ethernet.
const wireguardMTU = 1420

func (w spec) keys() (keys [2]tunnel.PrivateKey, err error) {
	for i := range keys {
		if keys[i], err = tunnel.NewPrivateKey(); err != nil {
			return keys, err
		}
	}
	return keys, nil
}

// wireguardGo runs stock wireguard-go, one process on each edge, with one peer each.
func (w spec) wireguardGo(ctx context.Context) (*Tunnel, error) {
	keys, err := w.keys()
	if err != nil {
		return nil, err
	}
	t := &Tunnel{Program: "wireguard-go " + w.programs.wireguardGoVersion(ctx)}
	for i, e := range w.ends() {
		p, err := w.wireguardGoEnd(ctx, e, keys[i], keys[1-i].Public())
		if err != nil {
			return nil, err
		}
		t.processes = append(t.processes, p)
	}
	return t, nil
}

// wireguardGoEnd runs one end's stock wireguard-go.
func (w spec) wireguardGoEnd(
	ctx context.Context,
	e end,
	key tunnel.PrivateKey,
	peer tunnel.PublicKey,
) (*host.Process, error) {
	h := e.near.Host
	cmd := h.Command(w.programs.WireGuardGo, "--foreground", w.device)
	cmd.Env = append(append(cmd.Env, "LOG_LEVEL=error"), w.programs.goEnv()...)
	p, err := h.Spawn(string(w.kind), cmd)
	if err != nil {
		return nil, err
	}
	if err := waitSocket(ctx, h, p, "/run/wireguard/"+w.device+".sock"); err != nil {
		return nil, err
	}
	keyFile := host.Dir + "/" + string(w.kind) + ".key"
	if err := os.WriteFile(h.Path(keyFile), []byte(key.Base64()+"\n"), 0o600); err != nil {
		return nil, fmt.Errorf("write a throwaway key on %s: %w", h.Name, err)
	}
	if _, err := h.Run(ctx, "wg", "set", w.device, "listen-port", strconv.Itoa(w.port), "private-key", keyFile,
		"peer", peer.String(), "endpoint", net.JoinHostPort(e.far.WAN,
			strconv.Itoa(w.port)), "allowed-ips", strings.Join(e.farther, ",")); err != nil {
		return nil, err
	}
	return p, w.routeIn(ctx, e, fmt.Sprintf("link set %s mtu %d up", w.device, wireguardMTU))
}

func waitSocket(ctx context.Context, h *host.Host, p *host.Process, path string) error {
	for {
		if _, err := os.Stat(h.Path(path)); err == nil {
			return nil
		}
		select {
		case <-p.Ended:
			return fmt.Errorf("%s: the program exited (%v):\n%s", h.Name, p.Err(), p.LastWords())
		default:
		}
		if err := host.Pause(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("%s: wait for %s: %w:\n%s", h.Name, path, err, p.LastWords())
		}
	}
}
