package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"ringway/appliance/config"
	"ringway/qos"
	"ringway/test/lab/host"
	"ringway/tunnel"
)

// The baseline's one tunnel.
const (
	baselineDevice = "wg0"
	baselinePort   = "51820"
	baselineMTU    = "1420"
)

// setUpBaseline makes the edge a plain Linux router: addresses and forwarding only.
func (e *Edge) setUpBaseline(ctx context.Context) error {
	var lines []string
	inner, outer := e.pair.inner(), e.pair.outer()
	for _, c := range []struct {
		device string
		lan    lan
		family Family
	}{{"voice0", e.side.voice, inner}, {"data0", e.side.data, inner}, {"wan0", e.side.wan, outer}} {
		if c.device == "wan0" && e.overLines() {
			continue
		}
		lines = append(lines, "link set "+c.device+" up")
		for _, f := range families(c.family) {
			n := c.lan.of(f)
			lines = append(lines, "addr add "+n.edge+n.length+" dev "+c.device+n.flags)
		}
	}
	if !e.overLines() {
		lines = append(lines, "route add default via "+e.side.wan.of(outer).remote)
	}
	if err := e.IP(ctx, nil, lines...); err != nil {
		return err
	}
	if e.overLines() {
		if err := e.stockLines(ctx); err != nil {
			return err
		}
	}
	for _, q := range stockQueue(e.pair.Name, e.pair.lab.Options.WAN) {
		if _, err := e.Run(ctx, "tc", append([]string{"qdisc", "add", "dev", "wan0"},
			strings.Fields(q)...)...); err != nil {
			return err
		}
	}
	return e.Do(forward)
}

// stockQueue is what people put in front of a single tunnel, as arguments of tc, at the default margin of
// Ringway's config. A qdisc of wan0 counts what the provider counts of a packet, 14 bytes of Ethernet and the
// rest; cake has to be told. On a slow line fq_codel's target is 1.5 full packets, as sqm-scripts sets it and
// as cake does by itself: with 5 ms it would drop a lone packet.
func stockQueue(p PathName, rate qos.BitRate) []string {
	held := rate.Percent(100 - config.DefaultMargin)
	switch p {
	case FQCoDel:
		const target, interval = 5 * time.Millisecond, 100 * time.Millisecond
		slow := max(target, held.Serialization(fullFrame)*3/2)
		return []string{
			fmt.Sprintf(
				"root handle 1: tbf rate %dbit burst %d latency 1s",
				held,
				max(1600, held.Bytes(time.Millisecond)),
			),
			fmt.Sprintf(
				"parent 1:1 fq_codel target %dus interval %dus",
				slow.Microseconds(),
				(interval + slow - target).Microseconds(),
			),
		}
	case Cake:
		return []string{fmt.Sprintf("root cake bandwidth %dbit diffserv4 overhead %d", held, ethernetHeader)}
	}
	return nil
}

const fullFrame = ethernetHeader + 1500

// forward enables forwarding in the network namespace of the calling thread.
func forward() error {
	for _, f := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := os.WriteFile("/proc/sys/net/"+f, []byte("1"), 0); err != nil &&
			(f == "ipv4/ip_forward" || !os.IsNotExist(err)) {
			return fmt.Errorf("forward packets: %w", err)
		}
	}
	return nil
}

// startBaseline runs stock wireguard-go with one peer, as its manual describes. Without a tunnel, the
// provider gets routes to the branch's networks, and no program runs.
func (e *Edge) startBaseline(ctx context.Context) (*host.Process, error) {
	if e.pair.Name == Kernel {
		f := e.pair.inner()
		via := " via " + e.side.wan.of(f).edge
		return nil, e.pair.Host(Provider).
			IP(ctx, nil, "route replace "+e.side.voice.of(f).network+via, "route replace "+e.side.data.of(f).network+via)
	}
	cmd := e.Command(e.pair.lab.Options.WireGuardGo, "--foreground", baselineDevice)
	cmd.Env = append(cmd.Env, "LOG_LEVEL=error")
	p, err := e.Spawn("wireguard-go", cmd)
	if err != nil {
		return nil, err
	}
	socket := e.Path("/run/wireguard/" + baselineDevice + ".sock")
	for {
		if _, err := os.Stat(socket); err == nil {
			break
		}
		select {
		case <-p.Ended:
			return nil, fmt.Errorf("%s: wireguard-go ended (%v):\n%s", e.Name, p.Err(), p.LastWords())
		default:
		}
		if err := host.Pause(ctx, 20*time.Millisecond); err != nil {
			return nil, fmt.Errorf("%s: wireguard-go did not come up: %w:\n%s", e.Name, err, p.LastWords())
		}
	}
	if err := e.writeSecret("baseline.key", e.key); err != nil {
		return nil, err
	}
	endpoint := net.JoinHostPort(e.far.wan.of(e.pair.outer()).edge, baselinePort)
	if e.pair.Name == Duplicate {
		if endpoint, err = e.duplicate(); err != nil {
			return nil, err
		}
	}
	farKey := e.pair.edges[e.far.edge].key.Public()
	var networks []string
	lines := []string{"link set " + baselineDevice + " mtu " + baselineMTU + " up"}
	for _, l := range []lan{e.far.voice, e.far.data} {
		for _, f := range families(e.pair.inner()) {
			networks = append(networks, l.of(f).network)
			lines = append(lines, "route replace "+l.of(f).network+" dev "+baselineDevice)
		}
	}
	if _, err := e.Run(ctx, "wg", "set", baselineDevice, "listen-port", baselinePort, "private-key",
		MachineDir+"/baseline.key",
		"peer", farKey.String(), "endpoint", endpoint,
		"allowed-ips", strings.Join(networks, ",")); err != nil {
		return nil, err
	}
	return p, e.IP(ctx, nil, lines...)
}

// writeSecret writes a private key into the host's own files, readable by root only.
func (e *Edge) writeSecret(name string, k tunnel.PrivateKey) error {
	path := e.Path(MachineDir + "/" + name)
	if err := os.WriteFile(path, []byte(k.Base64()+"\n"), 0o600); err != nil {
		return fmt.Errorf("write the private key of %s: %w", e.Name, err)
	}
	return nil
}
