package config

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"

	"ringway/appliance/secrets"
)

// pastedKey is what a key looks like and the path of a file hardly does.
var pastedKey = regexp.MustCompile(`^([A-Za-z0-9+/]{42,44}=|[A-Za-z0-9+][A-Za-z0-9+/]{41,43})$`)

// keyPath makes the path of a key file absolute: relative ones are beside the config.
func (c *checker) keyPath(s scalar, def string) string {
	if !s.ok() {
		return def
	}
	if pastedKey.MatchString(s.text) {
		// Saying which file is missing would print the secret.
		c.wrong(s.at, "contains a key (allowed: the name of a file that contains it)")
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

// checkKey reports what is wrong with a key file. A file that this user may not read is a warning, since
// `check` runs without root; a start needs the key and refuses (ParseWithKeys).
func (c *checker) checkKey(pos at, err error, missing string) {
	switch {
	case err == nil:
	case errors.Is(err, fs.ErrPermission):
		c.unread = append(c.unread, err)
		c.warn(pos, "%v: not checked", err)
	case errors.Is(err, fs.ErrNotExist):
		file := err.(*secrets.FileError)
		c.wrong(pos, "%s does not exist (%s)", file.Path, fmt.Sprintf(missing, file.Path))
	default:
		c.wrong(pos, "%v", err)
	}
}
