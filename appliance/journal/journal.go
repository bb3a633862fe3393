// Package journal is the way back: it holds what the machine was like before Ringway changed it, and restores
// that. Its file is in the run directory, so a reboot, which forgets all kernel state, forgets it as well.
package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"

	"ringway/appliance/config"
	"ringway/appliance/plan"
	"ringway/durable"
	"ringway/firewall"
	"ringway/firewall/conntrack"
	"ringway/firewall/nft"
	"ringway/qos"
	"ringway/qos/tc"
	"ringway/routing"
	"ringway/routing/rtnl"
)

// Journal is not safe for concurrent use.
type Journal struct {
	path string
	content
}

// content is what the file holds.
type content struct {
	Routing routing.State `json:"routing"` // as found
	Queues  qos.State     `json:"queues"`  // as found
	Last    routing.State `json:"last"`    // as last applied: what a restore has to look at besides
	Devices []string      `json:"devices"` // tunnel devices in use
	// Networks are the config's that was applied last; nil in the journal of an earlier build. Closed are those that
	// are no config's any more.
	Networks *Networks `json:"networks,omitempty"`
	Closed   []Closed  `json:"closed,omitempty"`
}

// Load reads a journal. It always returns one: an empty one with the error, which wraps fs.ErrNotExist if
// there is no file yet.
func Load(path string) (*Journal, error) {
	j := &Journal{path: path}
	b, err := os.ReadFile(path)
	if err != nil {
		return j, fmt.Errorf("read journal: %w", err)
	}

	var c content
	if err := json.Unmarshal(b, &c); err != nil {
		return j, fmt.Errorf("read journal %s: %w", path, err)
	}
	j.content = c
	return j, nil
}

func (j *Journal) save() error {
	b, err := json.MarshalIndent(j.content, "", "  ")
	if err != nil {
		return err
	}
	return durable.WriteFile(j.path, append(b, '\n'), 0o600)
}

// Clone returns a copy that a plan may change. It must not be saved.
func (j *Journal) Clone() *Journal {
	c := *j
	c.Queues.Links, c.content.Devices = slices.Clone(j.Queues.Links), slices.Clone(j.content.Devices)
	return &c
}

// Before is what a difference needs of the journal.
func (j *Journal) Before() plan.Before {
	return plan.Before{Routing: j.Routing, Last: j.Last, Queues: j.Queues}
}

// Devices are the tunnel devices that Ringway has used since the boot.
func (j *Journal) Devices() []string { return j.content.Devices }

// Note adds what is about to be touched for the first time, as it was observed, and the tunnel devices that
// are about to be made. It must be on disk before anything is changed: a crash right afterwards must still
// find the way back.
func (j *Journal) Note(network routing.State, queues qos.State, devices []string) error {
	j.Routing = j.Routing.Extend(network)
	// What was noted stays; what is new is noted, without what a crash left of Ringway's own.
	j.Queues = j.Queues.Over(queues.Foreign())
	for _, name := range devices {
		if !slices.Contains(j.content.Devices, name) {
			j.content.Devices = append(j.content.Devices, name)
		}
	}
	return j.save()
}

// Applied records what was applied last.
func (j *Journal) Applied(network routing.State, networks Networks, closed []Closed) error {
	j.Last, j.content.Networks, j.content.Closed = network, &networks, closed
	return j.save()
}

// ForeignQueues returns the interfaces that are to be shaped and have a queue that somebody else made before
// Ringway came, each with what that queue is. It is left alone unless take_over is set. A queue that replaces
// Ringway's own later is a change by hand, and repaired.
func (j *Journal) ForeignQueues(cfg *config.Config) (map[string]string, error) {
	have, err := tc.Observe(keptQueues(cfg))
	if err != nil {
		return nil, err
	}

	foreign := map[string]string{}
	for _, l := range have.Links {
		theirs := l.Theirs()
		found, noted := j.Queues.Link(l.Interface)
		if theirs == "" || noted && found.Theirs() == "" {
			continue
		}
		foreign[l.Interface] = theirs
		// Nothing was changed there yet: what is there when it is taken over is what to restore.
		j.Queues.Links = slices.DeleteFunc(j.Queues.Links, func(q qos.Link) bool { return q.Interface == l.Interface })
	}
	return foreign, nil
}

// keptQueues are the interfaces that are to be shaped, and where a foreign queue may not be replaced.
func keptQueues(cfg *config.Config) (names []string) {
	shapesLANs, takesOverLANs := false, false
	for _, w := range cfg.WANs {
		if w.Uplink > 0 && !w.TakeOver {
			names = append(names, w.Interface)
		}
		if w.ShapeDownlink && w.Downlink > 0 {
			shapesLANs = true
			takesOverLANs = takesOverLANs || w.TakeOver
		}
	}
	if shapesLANs && !takesOverLANs {
		names = append(names, cfg.Cards()...)
	}
	return names
}

// Restore puts the kernel back to what the journal found. It goes on after an error, so that one failure
// leaves as little as possible. The order is the reverse of a start: what drops packets goes last.
func (j *Journal) Restore() error {
	return errors.Join(j.restoreQueues(), j.restoreNetwork(), removeFirewall(), j.forgetFlows())
}

// forgetFlows removes the connections of the networks that Ringway kept apart.
func (j *Journal) forgetFlows() error {
	networks := j.networks()
	_, err := conntrack.Flush(slices.Concat(networks.Sites, networks.Own))
	return err
}

func (j *Journal) restoreQueues() error {
	have, err := tc.Observe(j.Queues.Interfaces())
	if err != nil {
		return err
	}
	return tc.Apply(qos.Diff(j.Queues, have))
}

func (j *Journal) restoreNetwork() error {
	have, err := rtnl.Observe(routing.Scope(j.Routing, j.Last))
	if err != nil {
		return err
	}
	return rtnl.Apply(routing.Diff(j.Routing.WithRestored(j.Last, j.Routing), have))
}

func removeFirewall() error {
	have, err := nft.Observe()
	if err != nil {
		return err
	}
	return new(nft.Ruleset).Apply(firewall.Diff(firewall.State{}, have))
}
