package config

import (
	"io/fs"
	"syscall"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// lockedFiles are key files that this user may not read, or whose folder it may not enter.
type lockedFiles struct{ folder bool }

func (l lockedFiles) Stat(path string) (fs.FileInfo, error) {
	if l.folder {
		return nil, &fs.PathError{Op: "stat", Path: path, Err: syscall.EACCES}
	}
	return fstest.MapFS{"k": {Mode: 0o600}}.Stat("k")
}

func (lockedFiles) ReadFile(path string) ([]byte, error) {
	return nil, &fs.PathError{Op: "open", Path: path, Err: syscall.EACCES}
}

const aloneAndLocked = `site: berlin
wan: [{interface: wan0, address: dhcp, uplink: 20mbit}]
voice: [{interface: lan0, address: 10.1.10.1/24}]
key_file: /root/box.key
`

// TestCheckWithoutRoot: a key file that may not be read is remarked on, and no problem of the config.
func TestCheckWithoutRoot(t *testing.T) {
	for _, folder := range []bool{false, true} {
		locked := func(o *options) { o.keys = lockedFiles{folder} }
		cfg, err := Parse("box.yaml", []byte(aloneAndLocked), locked)
		require.NoError(t, err)
		assert.Zero(t, cfg.PublicKey)
		assert.Equal(t, "box.yaml: sites: is empty: there are no tunnels and no calls to other sites\n"+
			"box.yaml:4: key_file: /root/box.key cannot be read: permission denied: not checked", Problems(cfg.Warnings).Error())
	}
}
