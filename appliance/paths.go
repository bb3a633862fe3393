package appliance

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"ringway/appliance/compare"
)

// Paths are the directories of the daemon's files.
type Paths struct {
	Run   string // sockets, lock, journal: gone after a reboot
	State string // endpoints, clock floor, leases, the config change under way: survive a reboot
	UAPI  string // where wg(8) looks for userspace devices
}

// DefaultPaths are those of an installed Ringway.
func DefaultPaths() Paths {
	return Paths{Run: "/run/ringway", State: "/var/lib/ringway", UAPI: "/var/run/wireguard"}
}

// Socket is the control socket.
func (p Paths) Socket() string    { return filepath.Join(p.Run, "ringway.sock") }
func (p Paths) lock() string      { return filepath.Join(p.Run, "lock") }
func (p Paths) journal() string   { return filepath.Join(p.Run, "journal.json") }
func (p Paths) planes() string    { return filepath.Join(p.Run, "planes") }
func (p Paths) clock() string     { return filepath.Join(p.State, "clock") }
func (p Paths) lines() string     { return filepath.Join(p.Run, "lines.json") }
func (p Paths) targets() string   { return filepath.Join(p.Run, "targets.json") }
func (p Paths) metered() string   { return filepath.Join(p.State, "metered.json") }
func (p Paths) pathMTUs() string  { return filepath.Join(p.Run, "mtu.json") }
func (p Paths) endpoints() string { return filepath.Join(p.State, "endpoints.json") }
func (p Paths) dialed() string    { return filepath.Join(p.Run, "pppoe") }
func (p Paths) leases() string    { return filepath.Join(p.State, "leases") }
func (p Paths) trial() string     { return filepath.Join(p.State, "trial.json") }
func (p Paths) records() string   { return filepath.Join(p.State, "calls") }
func (p Paths) refused() string   { return filepath.Join(p.State, "refused.yaml") }

// PlanFiles are the files that a plan needs.
func (p Paths) PlanFiles() compare.Files {
	return compare.Files{Socket: p.Socket(), Journal: p.journal(), Endpoints: p.endpoints(), Leases: p.leases()}
}

// make creates the directories.
func (p Paths) make() error {
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{
		{p.Run, 0o755}, // for the control socket, which a group may use
		{p.planes(), 0o700},
		{p.State, 0o700},
		{p.leases(), 0o700},
		{p.UAPI, 0o700},
	} {
		if err := os.MkdirAll(d.path, d.mode); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	return nil
}

// remove removes what the daemon put into the run directory; the state stays. Directories are removed if they
// are empty: others may use /var/run/wireguard, and systemd may own the run directory.
func (p Paths) remove() error {
	var errs []error
	for _, f := range []string{p.journal(), p.Socket(), p.lock(), p.lines(), p.targets(), p.pathMTUs()} {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	for _, d := range []string{p.planes(), p.Run, p.UAPI} {
		_ = os.Remove(d)
	}
	return errors.Join(errs...)
}
