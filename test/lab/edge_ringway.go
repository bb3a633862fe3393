package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"

	"ringway/appliance/plan"
	"ringway/configs"
	"ringway/test/lab/host"
)

// Paths that the appliance uses by default. Each host has these directories to itself.
const (
	edgeConfig   = "/etc/ringway/ringway.yaml"
	edgeKey      = "/etc/ringway/private.key"
	edgeIdentity = "/etc/ringway/identity.key"
)

// setUpRingway writes what an installer would: the shipped configuration with the far side's public key, and
// a private key.
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
	e.ringwayLines(values)
	if o.SIP != "" {
		// The phones of a lab are one SIPp each, which sends as many messages as all of them.
		values["sip.mode"], values["sip.unread"], values["sip.limits.phone"] = o.SIP, "allow", "20000"
	}
	if o.Identities {
		site := "sites[" + e.far.site + "]."
		values[site+"identity"] = e.pair.edges[e.far.edge].identity.Public().String()
		values[site+"box"] = e.far.voice.of(e.pair.inner()).edge
		if err := os.WriteFile(e.Path(edgeIdentity), []byte(e.identity.Base64()+"\n"), 0o600); err != nil {
			return fmt.Errorf("write the identity of %s: %w", e.Name, err)
		}
	}
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

// addresses replaces the IPv4 addresses of the shipped file by IPv6, or adds IPv6.
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

// Calls is the WAN's part of `ringway plan`: rates, longest packets, and how many calls fit.
func (e *Edge) Calls(ctx context.Context) (plan.WANCalls, error) {
	out, err := e.Ringway(ctx, "plan", "--json", "--only", "calls", edgeConfig)
	if err != nil {
		return plan.WANCalls{}, err
	}
	var planned plan.Plan
	if err := json.Unmarshal([]byte(out), &planned); err != nil {
		return plan.WANCalls{}, fmt.Errorf("%s: read `ringway plan --json`: %w", e.Name, err)
	}
	if len(planned.Calls) != 1 {
		return plan.WANCalls{}, fmt.Errorf("%s: `ringway plan` speaks of %d WANs", e.Name, len(planned.Calls))
	}
	return planned.Calls[0], nil
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

// Ringway runs a subcommand of the edge's program on the edge: stop, reload, status.
func (e *Edge) Ringway(ctx context.Context, args ...string) (string, error) {
	return e.Run(ctx, e.program(), args...)
}
