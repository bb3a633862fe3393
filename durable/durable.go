// Package durable replaces and creates files so that a crash or a power cut at any moment leaves the old file
// or the new one, whole, with its mode and owner.
//
// github.com/google/renameio writes the new content beside the file, syncs it and renames it. It does not set
// an owner, does not sync the directory (until then a power cut may bring the old name back, after the caller
// has acted on the new one), and prefers $TMPDIR to the file's own directory. This package adds the first two
// and prevents the third: a daemon whose files are confined to its directories has no $TMPDIR to write in.
package durable

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"
)

// File is the content of a file, with the mode and owner that it has or is to have.
type File struct {
	Data []byte      `json:"text"`
	Mode os.FileMode `json:"mode"`
	UID  int         `json:"uid"` // -1: the writing process's
	GID  int         `json:"gid"`
}

// Read reads a file with its mode and owner.
func Read(path string) (File, error) {
	file, err := os.Open(path)
	if err != nil {
		return File{}, err
	}
	defer file.Close()

	fi, err := file.Stat()
	if err != nil {
		return File{}, err
	}
	data, err := io.ReadAll(file)
	if err != nil {
		return File{}, err
	}

	f := File{Data: data, Mode: fi.Mode().Perm(), UID: -1, GID: -1}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		f.UID, f.GID = int(st.Uid), int(st.Gid)
	}
	return f, nil
}

// Equal reports whether content, mode and owner are the same.
func (f File) Equal(o File) bool {
	return bytes.Equal(f.Data, o.Data) && f.Mode == o.Mode && f.UID == o.UID && f.GID == o.GID
}

// WriteFile replaces path by data, owned by the writing process. The umask does not apply to mode.
func WriteFile(path string, data []byte, mode os.FileMode) error {
	return File{Data: data, Mode: mode, UID: -1, GID: -1}.Replace(path)
}

// Replace makes path this file. When it returns nil, the new file survives a power cut. After an error path
// is the old file, except where the last step, syncing the directory, failed: then it is either.
func (f File) Replace(path string) error {
	if err := f.replace(path); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func (f File) replace(path string) error {
	p, err := f.pending(path)
	if err != nil {
		return err
	}
	defer p.Cleanup() // does nothing after a success

	if err := p.CloseAtomicallyReplace(); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// Create makes path with the given content, owned by the writing process. If path exists, it stays as it is,
// and the error wraps fs.ErrExist.
func Create(path string, data []byte, mode os.FileMode) error {
	p, err := File{Data: data, Mode: mode, UID: -1, GID: -1}.pending(path)
	if err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	defer p.Cleanup() // removes nothing after the rename

	if err := p.Sync(); err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	err = unix.Renameat2(unix.AT_FDCWD, p.Name(), unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	return syncDir(filepath.Dir(path))
}

// pending writes the file beside path under a temporary name, not synced yet.
func (f File) pending(path string) (p *renameio.PendingFile, err error) {
	p, err = renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			p.Cleanup()
		}
	}()

	// The mode comes before the owner: to change the mode of another user's file takes CAP_FOWNER.
	if err := p.Chmod(f.Mode); err != nil {
		return nil, err
	}
	if err := p.Chown(f.UID, f.GID); err != nil {
		return nil, err
	}
	if _, err := p.Write(f.Data); err != nil {
		return nil, err
	}
	return p, nil
}

// Remove removes path, and it does not come back after a power cut. A file that is not there is no error.
func Remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir writes a directory's entries to the disk: until then a rename or a removal may be undone by a power
// cut.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
