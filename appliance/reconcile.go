package appliance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"

	"ringway/appliance/config"
	"ringway/firewall"
	"ringway/firewall/nft"
	"ringway/qos"
	"ringway/qos/tc"
	"ringway/routing"
	"ringway/routing/rtnl"
)

// journal is what the machine looked like before Ringway: what `stop` goes back to. It lives in the run
// directory, so a reboot, which forgets all kernel state, forgets it as well.
type journal struct {
	Routing routing.State `json:"routing"`
	Queues  qos.State     `json:"queues"`
	// Last is what was applied last: what stop has to look at beside the above.
	Last routing.State `json:"last"`
	// Devices are the tunnel devices in use, and UAPI where wg(8) finds them.
	Devices []string `json:"devices"`
}

func loadJournal(path string) (*journal, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	var j journal
	if err := json.Unmarshal(b, &j); err != nil {
		return nil, fmt.Errorf("read journal %s: %w", path, err)
	}
	return &j, nil
}

func (j *journal) save(path string) error {
	b, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return err
	}
	return writeFileAtomic(path, append(b, '\n'), 0o600)
}

// note records what is about to be touched for the first time. It must be on the disk before anything
// is changed: a crash right after must still know the way back.
func (j *journal) note(w wanted, path string) error {
	now, err := rtnl.Observe(routing.Scope(w.routing, j.Last))
	if err != nil {
		return err
	}
	queues, err := tc.Observe(w.queues.Interfaces())
	if err != nil {
		return err
	}
	j.Routing = j.Routing.Extend(now)
	j.Queues = j.Queues.Over(queues.Foreign()) // what is noted stays; what is new is noted, less what a crash left of ours
	for _, d := range w.devices {
		if n := d.Settings.Interface; !slices.Contains(j.Devices, n) {
			j.Devices = append(j.Devices, n)
		}
	}
	return j.save(path)
}

// refuse lists the interfaces that are to be shaped and have a queue that somebody else made before Ringway came, by interface, with
// what it is: it is left as it is unless take_over says otherwise. One that is put in the place of Ringway's own later is
// a change by hand, and mended.
func (j *journal) refuse(cfg *config.Config) (map[string]string, error) {
	var names []string
	inwards, lansToo := false, false
	for _, w := range cfg.WANs {
		if w.Uplink > 0 && !w.TakeOver {
			names = append(names, w.Interface)
		}
		if w.ShapeDownlink && w.Downlink > 0 {
			inwards, lansToo = true, lansToo || w.TakeOver
		}
	}
	if inwards && !lansToo {
		names = append(names, cfg.Cards()...)
	}
	have, err := tc.Observe(names)
	if err != nil {
		return nil, err
	}
	refused := map[string]string{}
	for _, l := range have.Links {
		theirs := l.Theirs()
		if found, noted := j.Queues.Link(l.Interface); theirs == "" || noted && found.Theirs() == "" {
			continue
		}
		refused[l.Interface] = theirs
		// Nothing was changed there: what stands there when it is taken over is what to give back.
		j.Queues.Links = slices.DeleteFunc(j.Queues.Links, func(q qos.Link) bool { return q.Interface == l.Interface })
	}
	return refused, nil
}

// refusedQueues says what refuse found, and what to do.
func refusedQueues(cfg *config.Config, refused map[string]string) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(refused)) {
		if !slices.ContainsFunc(cfg.WANs, func(w config.WAN) bool { return w.Interface == name }) {
			errs = append(errs, fmt.Errorf("%s has a queue that is not Ringway's (%s), so what comes in from WANs is not shaped there: remove it with `tc qdisc del dev %s root`, or set take_over: true of a WAN with a downlink to have it replaced until `ringway stop`, or shape_downlink: false of each to have it left alone",
				name, refused[name], name))
			continue
		}
		errs = append(errs, fmt.Errorf("%s has a queue that is not Ringway's (%s), so nothing is shaped there: remove it with `tc qdisc del dev %s root`, or set wan[%s].take_over: true to have it replaced until `ringway stop`",
			name, refused[name], name, name))
	}
	return errors.Join(errs...)
}

// applyFirewall brings the ruleset to what w says. It goes first and is the one thing that must not fail: without
// it a site's prefix could leave in clear.
func (j *journal) applyFirewall(want firewall.State) ([]string, error) {
	have, err := nft.Observe()
	if err != nil {
		return nil, err
	}
	d := firewall.Diff(want, have)
	if len(d) == 0 {
		return nil, nil
	}
	return words(d), nft.Apply(d)
}

// applyRouting brings links, addresses, routes, rules and sysctls to what want says. What fails does not keep the rest.
func (j *journal) applyRouting(want routing.State) ([]string, error) {
	have, err := rtnl.Observe(routing.Scope(want, j.Last, j.Routing))
	if err != nil {
		return nil, err
	}
	d := routing.Diff(want.GiveBack(j.Last, j.Routing), have)
	if len(d) == 0 {
		return nil, nil
	}
	return words(d), rtnl.Apply(d)
}

// applyQueues brings the WANs' queues to what want says; a WAN that is not shaped any more gets back what it had.
func (j *journal) applyQueues(want qos.State) ([]string, error) {
	target := want.Over(j.Queues)
	have, err := tc.Observe(target.Interfaces())
	if err != nil {
		return nil, err
	}
	d := qos.Diff(target, have)
	if len(d) == 0 {
		return nil, nil
	}
	return words(d), tc.Apply(d)
}

// restore puts the kernel back to what the journal found. It goes on after an error, so that one thing that
// cannot be undone leaves as little as possible; the order is the reverse of the start's: what drops goes last.
func (j *journal) restore(_ context.Context) error {
	var errs []error
	if have, err := tc.Observe(j.Queues.Interfaces()); err != nil {
		errs = append(errs, err)
	} else if err := tc.Apply(qos.Diff(j.Queues, have)); err != nil {
		errs = append(errs, err)
	}
	if _, err := j.applyRouting(j.Routing); err != nil {
		errs = append(errs, err)
	}
	if have, err := nft.Observe(); err != nil {
		errs = append(errs, err)
	} else if err := nft.Apply(firewall.Diff(firewall.State{}, have)); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
