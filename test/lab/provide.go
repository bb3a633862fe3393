package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"

	"ringway/test/lab/host"
	"ringway/test/lab/provider"
)

// provide creates the network between the branches. It runs in a process of the provider's own, so that its
// relay never waits for this process, and keeps running in a lab that is kept.
func (p *Pair) provide(ctx context.Context) error {
	if len(p.lines) > 0 {
		return p.provideLines(ctx)
	}
	o := p.lab.Options
	proc, err := p.provideAt(p.Host(Provider), provider.Config{
		RateBits: uint64(o.WAN), BufferBytes: int(o.Buffer), Wire: o.Wire, Delay: o.Delay, Loss: o.Loss, Seed: o.Seed,
	})
	if err != nil {
		return err
	}
	p.provider = proc
	return p.addNeighbours(ctx)
}

// provideAt runs a bottleneck between the devices of a host.
func (p *Pair) provideAt(h *Host, c provider.Config) (*host.Process, error) {
	config, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	cmd := h.Command(p.lab.Options.Helper, "lab", "holder", "provider", string(config))
	var proc *host.Process
	if err := host.StartHolder(cmd, func() (err error) {
		proc, err = h.Spawn("provider", cmd)
		return err
	}); err != nil {
		words := ""
		if proc != nil {
			words = "\n" + proc.LastWords()
		}
		return nil, fmt.Errorf("%s: start the provider: %w%s", p.Name, err, words)
	}
	return proc, nil
}

// Carried returns how many bytes left the provider's bottleneck so far, towards b and towards a: Ethernet
// frames without checksum, as the bottleneck's rate counts them.
func (p *Pair) Carried() (toB, toA uint64, err error) {
	h := p.Host(Provider)
	toB, errB := h.Counter(sides[1].provider, "tx_bytes")
	toA, errA := h.Counter(sides[0].provider, "tx_bytes")
	return toB, toA, errors.Join(errB, errA)
}

// addNeighbours gives the provider its customers' hardware addresses. Otherwise it would queue what is sent
// to an edge that is not up yet, and deliver it seconds later, just when that edge starts to send.
func (p *Pair) addNeighbours(ctx context.Context) error {
	for _, s := range sides {
		if err := neighbour(ctx, p.Host(s.edge), "wan0", p.Host(Provider), s.provider, s.wan.of(p.outer()).edge); err != nil {
			return err
		}
	}
	return nil
}

// neighbour tells a host the hardware address of an edge's device.
func neighbour(ctx context.Context, edge *Host, device string, told *Host, towards, address string) error {
	var link net.HardwareAddr
	if err := edge.Do(func() error {
		d, err := net.InterfaceByName(device)
		if err == nil {
			link = d.HardwareAddr
		}
		return err
	}); err != nil {
		return fmt.Errorf("%s: find %s: %w", edge.Name, device, err)
	}
	return told.IP(ctx, nil, "neigh replace "+address+" lladdr "+link.String()+" dev "+towards+" nud permanent")
}

// providerSocket is where the provider's process answers questions about its queues; the directory is the
// host's own.
const providerSocket = "/run/provider.sock"

// runProvider is the main function of the provider's process.
func runProvider(config string, stdout io.Writer) (err error) {
	var c provider.Config
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return fmt.Errorf("read the provider's configuration: %w", err)
	}
	// The empty name is the network namespace of this process.
	n, err := provider.Build("", sides[0].provider, sides[1].provider, c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.Close()) }()
	l, err := net.Listen("unix", providerSocket)
	if err != nil {
		return fmt.Errorf("listen for queries of the queues: %w", err)
	}
	defer l.Close()
	go n.Serve(l)
	if _, err := fmt.Fprintln(stdout, host.Ready); err != nil {
		return err
	}
	return n.Run(context.Background())
}
