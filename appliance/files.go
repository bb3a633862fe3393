package appliance

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Paths says where the daemon keeps what it keeps. docs/architecture.md has the table of every file.
type Paths struct {
	Run   string // sockets, lock, journal: gone after a reboot
	State string // endpoints, clock floor, leases: kept over reboots
	UAPI  string // where wg(8) looks for userspace devices
}

// DefaultPaths are the paths of an installed box.
func DefaultPaths() Paths {
	return Paths{Run: "/run/ringway", State: "/var/lib/ringway", UAPI: "/var/run/wireguard"}
}

func (p Paths) socket() string    { return filepath.Join(p.Run, "ringway.sock") }
func (p Paths) lock() string      { return filepath.Join(p.Run, "lock") }
func (p Paths) journal() string   { return filepath.Join(p.Run, "journal.json") }
func (p Paths) planes() string    { return filepath.Join(p.Run, "planes") }
func (p Paths) clock() string     { return filepath.Join(p.State, "clock") }
func (p Paths) endpoints() string { return filepath.Join(p.State, "endpoints.json") }
func (p Paths) leases() string    { return filepath.Join(p.State, "leases") }

// make creates the folders with the rights that the table in docs/architecture.md states.
func (p Paths) make() error {
	for _, d := range []struct {
		path string
		mode os.FileMode
	}{{p.Run, 0o755}, {p.planes(), 0o700}, {p.State, 0o700}, {p.leases(), 0o700}, {p.UAPI, 0o700}} {
		if err := os.MkdirAll(d.path, d.mode); err != nil {
			return fmt.Errorf("make folder: %w", err)
		}
	}
	return nil
}

// remove takes away what make and the daemon put into the run directory; the state stays. The folders go when
// they are empty: others may use /var/run/wireguard, and systemd may own the run directory.
func (p Paths) remove() error {
	var errs []error
	for _, f := range []string{p.journal(), p.socket(), p.lock()} {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	for _, d := range []string{p.planes(), p.Run, p.UAPI} {
		_ = os.Remove(d)
	}
	return errors.Join(errs...)
}

// writeFileAtomic replaces path whole or not at all, also when the power goes: the new content is on the
// disk before the name points to it.
func writeFileAtomic(path string, data []byte, mode os.FileMode) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if err = f.Chmod(mode); err == nil {
		if _, err = f.Write(data); err == nil {
			err = f.Sync()
		}
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
