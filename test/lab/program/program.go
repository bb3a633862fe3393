// Package program finds and identifies the program ringway that the lab and the benchmarks measure.
package program

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"ringway/quality/figures"
)

// Where the Debian packages install the two programs.
const (
	labDir    = "/usr/lib/ringway"
	appliance = "/usr/bin/ringway"
)

// Find returns the appliance that belongs to this program: the file ringway beside it, or /usr/bin/ringway
// where the packages installed both. It must be of the given version, unless that is empty. PATH is not
// searched: the file runs as root.
func Find(version string) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find the program ringway: %w", err)
	}

	path := filepath.Join(filepath.Dir(self), "ringway")
	if filepath.Dir(self) == labDir {
		path = appliance
	}
	if st, err := os.Stat(path); err != nil || !st.Mode().IsRegular() {
		return "", fmt.Errorf(
			"find the program ringway: %s is missing (install the package ringway, or run `make build`)",
			path,
		)
	}

	if version == "" {
		return path, nil
	}
	other, err := versionOf(context.Background(), path)
	if err != nil {
		return "", err
	}
	if other != version {
		return "", fmt.Errorf(
			"%s is version %s, but this ringway-lab is %s (install ringway and ringway-lab of the same version)",
			path,
			other,
			version,
		)
	}
	return path, nil
}

func versionOf(ctx context.Context, file string) (string, error) {
	out, err := exec.CommandContext(ctx, file, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("ask %s for its version: %w", file, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// Identify asks the program for its version and reads its build ID.
func Identify(ctx context.Context, file string) (p figures.Program, err error) {
	p.File = file
	if p.Version, err = versionOf(ctx, file); err != nil {
		return p, err
	}
	if p.BuildID, err = buildID(file); err != nil {
		return p, fmt.Errorf("read the build ID of %s: %w", file, err)
	}
	return p, nil
}

// buildID returns the ID that the Go linker noted in the file. A build without one is identified by its
// contents.
func buildID(file string) (string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()

	if s := f.Section(".note.go.buildid"); s != nil {
		note, err := s.Data()
		if err != nil {
			return "", err
		}
		id, err := parseNote(note, f.ByteOrder)
		if err != nil {
			return "", err
		}
		if id != "" {
			return id, nil
		}
	}
	return hash(file)
}

// parseNote reads the one ELF note of the section: lengths of name and description, the type, then both, each
// padded to four bytes.
func parseNote(note []byte, order binary.ByteOrder) (string, error) {
	const header = 12
	if len(note) < header {
		return "", errors.New("the note .note.go.buildid is truncated")
	}
	name := int64(order.Uint32(note[0:4])+3) &^ 3
	length := int64(order.Uint32(note[4:8]))
	if header+name+length > int64(len(note)) {
		return "", errors.New("the note .note.go.buildid is truncated")
	}
	return string(note[header+name : header+name+length]), nil
}

func hash(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()

	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}
