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
	State string // endpoints, clock floor, leases, trial: kept over reboots
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
func (p Paths) trial() string     { return filepath.Join(p.State, "trial.json") }
func (p Paths) refused() string   { return filepath.Join(p.State, "refused.yaml") }

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
// disk before the name points to it, and the name before anything else is done.
func writeFileAtomic(path string, data []byte, mode os.FileMode) error {
	return fileImage{Text: data, Mode: mode, UID: -1, GID: -1}.write(path)
}

// fileImage is a file as it stands on the disk.
type fileImage struct {
	Text []byte      `json:"text"`
	Mode os.FileMode `json:"mode"`
	UID  int         `json:"uid"` // -1: whoever writes it
	GID  int         `json:"gid"`
}

// write makes path this file, as writeFileAtomic says.
func (f fileImage) write(path string) (err error) {
	tmp, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			os.Remove(tmp.Name())
			err = fmt.Errorf("write %s: %w", path, err)
		}
	}()
	if err = tmp.Chmod(f.Mode); err == nil { // while it is ours: the unit has no CAP_FOWNER
		err = tmp.Chown(f.UID, f.GID)
	}
	if err == nil {
		_, err = tmp.Write(f.Text)
	}
	if err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	if err = os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return syncFolder(filepath.Dir(path))
}

// syncFolder puts the names in a folder on the disk: a rename or a removal that the power takes back never was.
func syncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
