package record

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"ringway/durable"
)

// Disk is a directory as a Log needs it. Names are those of files in it.
type Disk interface {
	fs.FS
	// Append writes data at the end of a file, and makes the file if there is none. After an error a part of
	// data may be there.
	Append(name string, data []byte) error
	// Replace makes data the content of a file, all of it or nothing.
	Replace(name string, data []byte) error
	// Remove removes a file. One that is not there is no error.
	Remove(name string) error
}

const mode = 0o600 // of every file: records are for root alone

// Dir is a directory of the machine.
type Dir struct {
	fs.FS
	path string
}

// OpenDir makes a directory, for root alone, if it is not there.
func OpenDir(path string) (Dir, error) {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return Dir{}, err
	}
	return Dir{FS: os.DirFS(path), path: path}, nil
}

// Append opens the file each time: an open one would keep the space of a file that was replaced meanwhile.
func (d Dir) Append(name string, data []byte) error {
	f, err := os.OpenFile(filepath.Join(d.path, name), os.O_WRONLY|os.O_APPEND|os.O_CREATE, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Chmod(mode), f.Close())
}

// Replace survives a power cut.
func (d Dir) Replace(name string, data []byte) error {
	return durable.WriteFile(filepath.Join(d.path, name), data, mode)
}

// Remove survives a power cut.
func (d Dir) Remove(name string) error { return durable.Remove(filepath.Join(d.path, name)) }
