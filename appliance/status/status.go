// Package status holds what a running daemon reports about itself: the types of `ringway status --json` and their text.
package status

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"time"

	"ringway/appliance/problem"
	"ringway/qos"
	"ringway/tunnel"
)

// Status is what `ringway status --json` prints. Fields are added, never renamed.
type Status struct {
	Site   string    `json:"site"`
	Build  string    `json:"build"`
	Config string    `json:"config"`
	PID    int       `json:"pid"`
	Since  time.Time `json:"since"`
	Ready  bool      `json:"ready"`

	Tunnels       []tunnel.DeviceStatus `json:"tunnels"`
	Queues        []qos.QueueStats      `json:"queues"`
	QueueFeatures qos.Features          `json:"queue_features"` // what this kernel offers for queues

	Drops   map[string]Count `json:"drops"`   // packets dropped by policy: the named counters of table inet ringway
	Classes map[string]Count `json:"classes"` // packets put into each class
	// Unread is signalling from voice networks that nothing reads, by protocol: packets that begin a connection.
	Unread map[string]uint64 `json:"unread_signalling,omitempty"`

	// Closed are networks that left the config: they are not reached until then.
	Closed []ClosedNetwork `json:"closed,omitempty"`

	Reconcile Rounds            `json:"reconcile"`
	Missing   []Missing         `json:"features"` // what the kernel lacks or the machine denies
	Problems  []problem.Problem `json:"problems"` // what is wrong now; never null

	Confirmation *Confirmation `json:"confirmation,omitempty"` // a config on trial, or the one undone last

	Components []Component `json:"components"` // in words
	Sections   Sections    `json:"-"`          // in numbers: JSON has each as a field of the status
}

// ClosedNetwork is a network that left the config.
type ClosedNetwork struct {
	Network netip.Prefix `json:"network"`
	Until   time.Time    `json:"until"`
}

// Rounds counts how often the kernel was compared with the config since the daemon started.
type Rounds struct {
	Runs    uint64    `json:"runs"`
	Failed  uint64    `json:"failed"`  // rounds in which something could not be set
	Changes uint64    `json:"changes"` // what was set, in commands of ip, nft, tc and wg
	Last    time.Time `json:"last"`    // end of the latest round
}

// Count is a counter of packets.
type Count struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Missing is something that the kernel lacks, or that the machine denies the daemon, and what that costs.
type Missing struct {
	Name string `json:"name"`
	Cost string `json:"cost"`
}

// Component is one component of the daemon in words. Text is written by the daemon, so that a command line of another
// release shows components it does not know.
type Component struct {
	Name string `json:"name"`
	Text string `json:"text"` // one line; empty where there is nothing to say
}

// Sections are the statuses of components by name, each of the component's own type. Read from JSON, each is a
// json.RawMessage; Section decodes it.
type Sections map[string]any

// Section returns the status of a component as the component's own type. ok is false where there is none.
func Section[T any](s Status, name string) (section T, ok bool) {
	switch v := s.Sections[name].(type) {
	case T:
		return v, true
	case json.RawMessage:
		err := json.Unmarshal(v, &section)
		return section, err == nil
	}
	return section, false
}

// fields is Status without its methods.
type fields Status

// fieldNames are the JSON names of the status itself, which no section may have.
var fieldNames = func() (names []string) {
	for f := range reflect.TypeFor[Status]().Fields() {
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		names = append(names, name)
	}
	return names
}()

// MarshalJSON writes each section as a field of the status.
func (s Status) MarshalJSON() ([]byte, error) {
	if s.Problems == nil {
		s.Problems = []problem.Problem{}
	}

	whole, err := json.Marshal(fields(s))
	if err != nil || len(s.Sections) == 0 {
		return whole, err
	}
	for name := range s.Sections {
		if slices.Contains(fieldNames, name) {
			return nil, fmt.Errorf("component %s: the status has a field of that name", name)
		}
	}

	sections, err := json.Marshal(s.Sections)
	if err != nil {
		return nil, err
	}
	whole[len(whole)-1] = ',' // {"site":...} and {"reflector":...} become one object
	return append(whole, sections[1:]...), nil
}

// UnmarshalJSON takes every field that is not the status's own as a section.
func (s *Status) UnmarshalJSON(b []byte) error {
	if err := json.Unmarshal(b, (*fields)(s)); err != nil {
		return err
	}

	var all map[string]json.RawMessage
	if err := json.Unmarshal(b, &all); err != nil {
		return err
	}
	s.Sections = Sections{}
	for name, raw := range all {
		if !slices.Contains(fieldNames, name) {
			s.Sections[name] = raw
		}
	}
	return nil
}

// Confirmation is a config that is not confirmed yet, or was not confirmed.
type Confirmation struct {
	State  string `json:"state"`            // Waiting, Undoing or Undone
	LeftS  int    `json:"left_s"`           // whole seconds until the rollback, while waiting
	Reason string `json:"reason,omitempty"` // of the rollback
	Kept   string `json:"kept,omitempty"`   // file that holds the config that was rolled back
}

// States of a config on trial.
const (
	Waiting = "waiting" // for `ringway confirm`
	Undoing = "undoing" // the rollback failed and is tried again
	Undone  = "undone"
)

func (c Confirmation) String() string {
	switch c.State {
	case Waiting:
		left := time.Duration(c.LeftS) * time.Second
		return fmt.Sprintf("NOT CONFIRMED: rollback to the previous config in %s unless `ringway confirm` is given", left)
	case Undoing:
		return fmt.Sprintf("ROLLBACK FAILED, will retry: %s", c.Reason)
	}
	return fmt.Sprintf("CONFIG ROLLED BACK: %s. The previous config is running; the rejected one is kept in %s",
		c.Reason, c.Kept)
}
