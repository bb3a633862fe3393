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
	o := p.lab.Options
	config, err := json.Marshal(provider.Config{
		RateBits: uint64(o.WAN), BufferBytes: int(o.Buffer), Wire: o.Wire, Delay: o.Delay, Loss: o.Loss, Seed: o.Seed,
	})
	if err != nil {
		return err
	}
	h := p.Host(Provider)
	cmd := h.Command(o.Helper, "lab", "holder", "provider", string(config))
	var proc *host.Process
	if err := host.StartHolder(cmd, func() (err error) {
		proc, err = h.Spawn("provider", cmd)
		return err
	}); err != nil {
		words := ""
		if proc != nil {
			words = "\n" + proc.LastWords()
		}
		return fmt.Errorf("%s: start the provider: %w%s", p.Name, err, words)
	}
	p.provider = proc
	return p.addNeighbours(ctx)
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
		var link net.HardwareAddr
		if err := p.Host(s.edge).Do(func() error {
			device, err := net.InterfaceByName("wan0")
			if err == nil {
				link = device.HardwareAddr
			}
			return err
		}); err != nil {
			return fmt.Errorf("%s: find wan0: %w", s.edge, err)
		}
		if err := p.Host(Provider).IP(ctx, nil, "neigh replace "+s.wan.of(
			p.outer()).edge+" lladdr "+link.String()+" dev "+s.provider+" nud permanent"); err != nil {
			return err
		}
	}
	return nil
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
