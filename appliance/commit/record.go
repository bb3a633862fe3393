package commit

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"ringway/appliance/config"
	"ringway/durable"
)

type phase string

const (
	applying phase = "applying" // steps 1 to 4
	waiting  phase = "waiting"  // for a confirmation
	undoing  phase = "undoing"  // steps 6 to 9
)

// record is the content of trial.json.
type record struct {
	Phase    phase         `json:"phase"`
	Reason   string        `json:"reason,omitempty"` // for the rollback
	Boot     string        `json:"boot"`             // the kernel's boot_id
	Deadline time.Duration `json:"deadline"`         // since boot, nanoseconds
	Config   string        `json:"config"`           // path of the config file
	Old      durable.File  `json:"old"`
	New      durable.File  `json:"new"`
}

func readRecord(path string) (*record, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}

	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	switch r.Phase {
	case applying, waiting, undoing:
		return &r, nil
	}
	return nil, fmt.Errorf("%s: unknown phase %q", path, r.Phase)
}

func (c *Committer) save(rec *record) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return durable.WriteFile(c.files.Record, append(b, '\n'), 0o600)
}

// forget ends the change that is under way: steps 4, 5 and 9.
func (c *Committer) forget() error {
	if err := durable.Remove(c.files.Record); err != nil {
		return fmt.Errorf("remove the record of the config change: %w", err)
	}
	c.rec, c.old = nil, config.Loaded{}
	c.step("forgotten")
	return nil
}

// file is the config file itself if its path is a symbolic link.
func (c *Committer) file() string {
	if target, err := filepath.EvalSymlinks(c.files.Config); err == nil {
		return target
	}
	return c.files.Config
}
