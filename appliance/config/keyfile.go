package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"ringway/tunnel"
)

// keyFiles is how the checks reach key files; tests put another one in its place.
type keyFiles interface {
	Stat(path string) (fs.FileInfo, error)
	ReadFile(path string) ([]byte, error)
}

// maxKeyFile bounds what is read of a key file: one line of 44 characters.
const maxKeyFile = 4096

type osKeyFiles struct{ root string }

func (k osKeyFiles) Stat(path string) (fs.FileInfo, error) {
	return os.Stat(filepath.Join(k.root, path))
}

func (k osKeyFiles) ReadFile(path string) ([]byte, error) {
	f, err := os.Open(filepath.Join(k.root, path))
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // read only: nothing is lost
	return io.ReadAll(io.LimitReader(f, maxKeyFile+1))
}

// keyFileError is a key file that is there and cannot be used. It never holds any of the file's content.
type keyFileError struct {
	path, what string
	cause      error
}

func (e *keyFileError) Error() string { return e.path + " " + e.what }
func (e *keyFileError) Unwrap() error { return e.cause }

// readKey reads the one line of a key file that only its owner may read.
func readKey(files keyFiles, path string) (string, error) {
	fi, err := files.Stat(path)
	if err != nil {
		return "", &keyFileError{path, "cannot be read: " + reason(err).Error(), err}
	}
	if !fi.Mode().IsRegular() {
		return "", &keyFileError{path, "is not a regular file", nil}
	}
	if mode := fi.Mode().Perm(); mode&0o077 != 0 {
		return "", &keyFileError{path, fmt.Sprintf("may be read or written by others than its owner: mode %04o (allowed: 0600; run: chmod 600 %s)", mode, path), nil}
	}
	data, err := files.ReadFile(path)
	if err != nil {
		return "", &keyFileError{path, "cannot be read: " + reason(err).Error(), err}
	}
	if len(data) > maxKeyFile {
		return "", &keyFileError{path, "holds no key: too long (a key is 44 characters, 32 bytes)", nil}
	}
	return strings.TrimSpace(string(data)), nil
}

// ReadPrivateKey reads the key file of a tunnel. Its error holds nothing of the content.
func ReadPrivateKey(path string) (tunnel.PrivateKey, error) {
	return readPrivateKey(osKeyFiles{}, path)
}

func readPrivateKey(files keyFiles, path string) (tunnel.PrivateKey, error) {
	text, err := readKey(files, path)
	if err != nil {
		return tunnel.PrivateKey{}, err
	}
	k, err := tunnel.ParsePrivateKey(text)
	if err != nil {
		return k, &keyFileError{path, "holds no key: " + err.Error(), nil}
	}
	if k == (tunnel.PrivateKey{}) {
		return k, &keyFileError{path, "holds no key: all zeros (a key is drawn by: ringway keygen)", nil}
	}
	return k, nil
}

// ReadPresharedKey reads a site's preshared key file. Its error holds nothing of the content.
func ReadPresharedKey(path string) (tunnel.PresharedKey, error) {
	return readPresharedKey(osKeyFiles{}, path)
}

func readPresharedKey(files keyFiles, path string) (tunnel.PresharedKey, error) {
	text, err := readKey(files, path)
	if err != nil {
		return tunnel.PresharedKey{}, err
	}
	k, err := tunnel.ParsePresharedKey(text)
	if err != nil {
		return k, &keyFileError{path, "holds no key: " + err.Error(), nil}
	}
	if k.IsZero() {
		return k, &keyFileError{path, "holds no key: all zeros mean none (draw one with: ringway keygen --preshared)", nil}
	}
	return k, nil
}

// pastedKey is what a key looks like and the path of a file hardly does.
var pastedKey = regexp.MustCompile(`^([A-Za-z0-9+/]{42,44}=|[A-Za-z0-9+][A-Za-z0-9+/]{41,43})$`)

// keyPath makes the path of a key file absolute: relative ones are beside the config.
func (c *checker) keyPath(s scalar, def string) string {
	if !s.ok() {
		return def
	}
	if pastedKey.MatchString(s.text) {
		// Saying which file is missing would print the secret.
		c.wrong(s.at, "holds a key itself (allowed: the name of a file that holds it)")
		return def
	}
	if s.text == "" {
		c.wrong(s.at, "is empty (allowed: the name of a file)")
		return def
	}
	if !filepath.IsAbs(s.text) {
		return filepath.Join(c.dir, s.text)
	}
	return filepath.Clean(s.text)
}

// checkKey reports what is wrong with a key file. That this user may not look is no problem of the file:
// `check` runs without root.
func (c *checker) checkKey(pos at, err error, missing string) {
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrPermission):
		c.warn(pos, "%v: not checked", err)
	case errors.Is(err, fs.ErrNotExist):
		kf := err.(*keyFileError) // readKey wraps every error of the file system
		c.wrong(pos, "%s does not exist (%s)", kf.path, fmt.Sprintf(missing, kf.path))
	default:
		c.wrong(pos, "%v", err)
	}
}
