// Package unmarked finds media of calls that is not treated as media: it travels in class data, because nobody marks it
// and no signalling was read that names it, or it is dropped between voice and data networks.
//
// The firewall counts such packets by flow (firewall.MediaFlowSets). Of each only the first byte of RTP and its source
// are looked at, and what a browser in a data network does with the internet is not.
package unmarked

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"ringway/appliance/config"
	"ringway/appliance/exposition"
	"ringway/appliance/problem"
	"ringway/appliance/status"
	"ringway/firewall/nft"
)

// Name is the component's name, and that of its section of the status.
const Name = "unmarked_media"

// Finder is the component.
type Finder struct {
	log   *slog.Logger
	read  func() ([]nft.MediaFlow, error)
	every time.Duration

	mu       sync.Mutex // guards what follows
	networks places
	mode     config.SIPMode
	tracker  tracker
	failed   error
}

// New returns a finder that reads the kernel's table.
func New(log *slog.Logger) *Finder { return &Finder{log: log, read: nft.MediaFlows, every: interval} }

// Name is the component's name.
func (u *Finder) Name() string { return Name }

// Follow takes up the networks of cfg.
func (u *Finder) Follow(cfg *config.Config) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.networks, u.mode = placesOf(cfg), cfg.SIP.Mode
}

// Run looks every few seconds until ctx ends.
func (u *Finder) Run(ctx context.Context, ready func()) error {
	ready()
	tick := time.NewTicker(u.every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case now := <-tick.C:
			u.look(now)
		}
	}
}

func (u *Finder) look(now time.Time) {
	flows, err := u.read()

	u.mu.Lock()
	defer u.mu.Unlock()
	if u.failed = err; err != nil {
		return
	}
	known := len(u.tracker.flows)
	u.tracker.look(now, flows, u.networks, u.mode)
	if n := len(u.tracker.flows); n > known {
		f := u.tracker.list()[0]
		u.log.Warn("media of a call is not treated as that", "flow", f.String(), "cure", f.Cure)
	}
}

// Problems are the flows that were found lately.
func (u *Finder) Problems() []problem.Problem {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := u.tracker.problems(time.Now())
	if u.failed != nil {
		out = append(out, problem.Problem{
			Severity: problem.Warning, Text: fmt.Sprintf("flows that look like media are not known: %v", u.failed),
			Action: "it is read again in seconds; if this lasts, restart the daemon",
		})
	}
	return out
}

// Status is the component's section of the status. Fields are added, never renamed.
type Status struct {
	Flows  []Flow `json:"flows"`  // of the last hour, the latest first; never null
	Found  uint64 `json:"found"`  // flows, since the daemon started
	Beyond uint64 `json:"beyond"` // of these, those that gave way to later ones
}

// Status lists the flows of the last hour.
func (u *Finder) Status() fmt.Stringer {
	u.mu.Lock()
	defer u.mu.Unlock()
	return Status{Flows: u.tracker.list(), Found: u.tracker.number, Beyond: u.tracker.missed}
}

// String is one line of the status; empty where nothing was found.
func (s Status) String() string {
	if len(s.Flows) == 0 {
		return ""
	}
	return fmt.Sprintf("Media outside its class: %d flows in the last hour, the latest %s; %s",
		len(s.Flows), s.Flows[0], s.Flows[0].Cure)
}

var (
	families exposition.Families

	listed = families.Gauge("ringway_unmarked_media_flows",
		"Flows of the last hour that look like media of a call, by what became of them: in class data, or dropped between "+
			"voice and data networks.", "treatment")
	found = families.Counter("ringway_unmarked_media_flows_found_total",
		"Flows found that look like media of a call and are not treated as that.")
	beyond = families.Counter("ringway_unmarked_media_beyond_total",
		"Such flows that are not listed any more, because there were later ones.")
)

// Families are the metrics of such flows.
func (u *Finder) Families() exposition.Families { return families }

// Collect shows the section of the status.
func (u *Finder) Collect(st status.Status, to exposition.Sink) {
	s, ok := status.Section[Status](st, Name)
	if !ok {
		return
	}
	dropped := 0
	for _, f := range s.Flows {
		if f.Dropped {
			dropped++
		}
	}
	to.Put(listed, float64(len(s.Flows)-dropped), "data")
	to.Put(listed, float64(dropped), "dropped")
	to.Put(found, float64(s.Found))
	to.Put(beyond, float64(s.Beyond))
}
