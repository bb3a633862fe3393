package secrets

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode"

	"ringway/sip/certificate"
	"ringway/tunnel"
)

// Files is where key files are read from.
type Files interface {
	Stat(path string) (fs.FileInfo, error)
	ReadFile(path string) ([]byte, error)
}

const (
	maxKeyFile  = 4096              // bytes of a key file, which is one line of 44 characters
	maxPassword = 255               // bytes: pppd's buffer
	maxFile     = certificate.MaxCA // that are read of any file
)

// Below reads key files below a directory, as if it were /. The empty directory is / itself.
func Below(root string) Files { return files{root} }

type files struct{ root string }

func (f files) Stat(path string) (fs.FileInfo, error) { return os.Stat(filepath.Join(f.root, path)) }

func (f files) ReadFile(path string) ([]byte, error) {
	file, err := os.Open(filepath.Join(f.root, path))
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }() // read only: nothing is lost
	return io.ReadAll(io.LimitReader(file, maxFile+1))
}

// FileError is a key file that cannot be used. It never holds any of the file's content.
type FileError struct {
	Path  string
	what  string
	cause error
}

func (e *FileError) Error() string { return e.Path + " " + e.what }
func (e *FileError) Unwrap() error { return e.cause }

// ReadPrivate reads a private key. Its error is a *FileError.
func ReadPrivate(files Files, path string) (tunnel.PrivateKey, error) {
	text, err := readLine(files, path)
	if err != nil {
		return tunnel.PrivateKey{}, err
	}
	k, err := tunnel.ParsePrivateKey(text)
	if err != nil {
		return tunnel.PrivateKey{}, &FileError{path, "holds no key: " + err.Error(), nil}
	}
	if k == (tunnel.PrivateKey{}) {
		return k, &FileError{path, "holds no key: all zeros (make one with: ringway keygen)", nil}
	}
	return k, nil
}

// ReadPreshared reads a site's preshared key. Its error is a *FileError.
func ReadPreshared(files Files, path string) (tunnel.PresharedKey, error) {
	text, err := readLine(files, path)
	if err != nil {
		return tunnel.PresharedKey{}, err
	}
	k, err := tunnel.ParsePresharedKey(text)
	if err != nil {
		return tunnel.PresharedKey{}, &FileError{path, "holds no key: " + err.Error(), nil}
	}
	if k.IsZero() {
		return k, &FileError{
			path,
			"holds no key: all zeros mean none (make one with: ringway keygen --preshared)",
			nil,
		}
	}
	return k, nil
}

// ReadPassword reads a password: the file's one line, without what ends it. Its error is a *FileError.
func ReadPassword(files Files, path string) (string, error) {
	data, err := readFile(files, path, onlyOwner)
	if err != nil {
		return "", err
	}
	text := strings.TrimSuffix(strings.TrimSuffix(string(data), "\n"), "\r")
	switch {
	case text == "":
		return "", &FileError{path, "holds no password: it is empty", nil}
	case len(text) > maxPassword:
		return "", &FileError{path, fmt.Sprintf("holds no password: too long (at most %d bytes)", maxPassword), nil}
	case strings.ContainsFunc(text, unicode.IsControl):
		return "", &FileError{path, "holds no password: more than one line, or control characters", nil}
	}
	return text, nil
}

// access says who may read a file.
type access bool

const (
	onlyOwner access = false
	anybody   access = true
)

// readFile reads a file, of which no more than maxFile and one byte is read.
func readFile(files Files, path string, who access) ([]byte, error) {
	fi, err := files.Stat(path)
	if err != nil {
		return nil, &FileError{path, "cannot be read: " + reason(err).Error(), err}
	}
	if !fi.Mode().IsRegular() {
		return nil, &FileError{path, "is not a regular file", nil}
	}
	if mode := fi.Mode().Perm(); mode&0o077 != 0 && who == onlyOwner {
		what := fmt.Sprintf(
			"is accessible to users other than its owner: mode %04o (allowed: 0600; run: chmod 600 %s)",
			mode,
			path,
		)
		return nil, &FileError{path, what, nil}
	}

	data, err := files.ReadFile(path)
	if err != nil {
		return nil, &FileError{path, "cannot be read: " + reason(err).Error(), err}
	}
	return data, nil
}

// readLine reads the one line of a key file that only its owner may read.
func readLine(files Files, path string) (string, error) {
	data, err := readFile(files, path, onlyOwner)
	if err != nil {
		return "", err
	}
	if len(data) > maxKeyFile {
		return "", &FileError{path, "holds no key: too long (a key is 44 characters, 32 bytes)", nil}
	}
	return strings.TrimSpace(string(data)), nil
}

// reason drops the operation and path that os puts before an error: FileError names the file already.
func reason(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return pe.Err
	}
	return err
}
