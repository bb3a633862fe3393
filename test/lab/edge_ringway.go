package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"ringway/appliance"
	"ringway/configs"
	"ringway/test/lab/host"
)

// Where the appliance finds its things by default; each host has these folders to itself.
const (
	edgeConfig = "/etc/ringway/ringway.yaml"
	edgeKey    = "/etc/ringway/private.key"
)

// setUpRingway writes what an installer would: the shipped configuration with the far side's key in it, and a private key.
func (e *Edge) setUpRingway() error {
	o := e.pair.lab.Options
	values := map[string]string{
		"sites[" + e.far.site + "].public_key": e.pair.edges[e.far.edge].key.Public().String(),
		"wan[wan0].uplink":                     "",
		"wan[wan0].downlink":                   "",
	}
	if o.WAN > 0 {
		values["wan[wan0].uplink"], values["wan[wan0].downlink"] = o.WAN.String(), o.WAN.String()
	}
	e.addresses(values)
	if o.EdgeConfig != nil {
		o.EdgeConfig(e.side.site, values)
	}
	text, err := configs.Variant("branch-"+e.side.site+".yaml", values)
	if err != nil {
		return fmt.Errorf("%s: %w", e.Name, err)
	}
	if err := e.WriteConfig(text); err != nil {
		return err
	}
	if err := os.WriteFile(e.Path(edgeKey), []byte(e.key.Base64()+"\n"), 0o600); err != nil {
		return fmt.Errorf("write the private key of %s: %w", e.Name, err)
	}
	return nil
}

// addresses puts IPv6 where the shipped file has IPv4, or both.
func (e *Edge) addresses(values map[string]string) {
	site := "sites[" + e.far.site + "]."
	if e.pair.outer() == IPv6 {
		near, far := e.side.wan.of(IPv6), e.far.wan.of(IPv6)
		values["wan[wan0].address"], values["wan[wan0].gateway"] = near.edge+near.length, near.remote
		values[site+"endpoint"] = far.edge
	}
	if e.pair.inner() == IPv6 {
		for name, l := range map[string][2]lan{"voice": {e.side.voice, e.far.voice}, "data": {e.side.data, e.far.data}} {
			near := l[0].of(IPv6)
			values[name+"["+name+"0].address"] = near.edge + near.length
			values[site+name+"_networks"] = `["` + l[1].of(IPv6).network + `"]`
		}
	}
}

// WriteConfig replaces the edge's configuration file; Reload or Restart makes the edge read it.
func (e *Edge) WriteConfig(text []byte) error {
	if err := os.WriteFile(e.Path(edgeConfig), text, 0o644); err != nil {
		return fmt.Errorf("write the configuration of %s: %w", e.Name, err)
	}
	return nil
}

// Calls is what `ringway plan` says of the WAN: its rates, its longest packets, how many calls it carries and how long their packets are.
func (e *Edge) Calls(ctx context.Context) (appliance.WANCalls, error) {
	out, err := e.Ringway(ctx, "plan", "--json", "--only", "calls", edgeConfig)
	if err != nil {
		return appliance.WANCalls{}, err
	}
	var plan appliance.Planned
	if err := json.Unmarshal([]byte(out), &plan); err != nil {
		return appliance.WANCalls{}, fmt.Errorf("%s: read `ringway plan --json`: %w", e.Name, err)
	}
	if len(plan.Calls) != 1 {
		return appliance.WANCalls{}, fmt.Errorf("%s: `ringway plan` speaks of %d WANs", e.Name, len(plan.Calls))
	}
	return plan.Calls[0], nil
}

// Config reads the edge's configuration file.
func (e *Edge) Config() ([]byte, error) { return os.ReadFile(e.Path(edgeConfig)) }

func (e *Edge) startRingway(context.Context) (*host.Process, error) {
	return e.Spawn("ringway", e.Command(e.program(), "run", edgeConfig))
}

// program is the program ringway that this edge runs.
func (e *Edge) program() string {
	if e.Binary != "" {
		return e.Binary
	}
	return e.pair.lab.Options.Binary
}

// Ringway runs a command of the edge's program on it: stop, reload, status.
func (e *Edge) Ringway(ctx context.Context, args ...string) (string, error) {
	return e.Run(ctx, e.program(), args...)
}
