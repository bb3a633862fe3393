package config_test

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/test/certtest"
	"ringway/tunnel"
)

var update = flag.Bool("update", false, "write what is printed into testdata")

// exampleKey is the private key of the box in the tests: the same in every run, so that a config can name its
// public half.
func exampleKey() tunnel.PrivateKey {
	var k tunnel.PrivateKey
	copy(k[:], "example, not a secret: all zeros")
	k[0] &= 248
	k[31] = k[31]&127 | 64
	return k
}

// identityKey is the box's identity in the tests.
func identityKey() tunnel.PrivateKey {
	k := exampleKey()
	k[1] ^= 1
	return k
}

// box is a file system root with key files, good and bad, in /etc/ringway.
func box(t testing.TB) string {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, "etc/ringway")
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "folder.key"), 0o700))
	good := exampleKey().Base64() + "\n"
	for name, f := range map[string]struct {
		text string
		mode os.FileMode
	}{
		"private.key":    {good, 0o600},
		"identity.key":   {identityKey().Base64() + "\n", 0o600},
		"wan1.password":  {"a secret with \"quotes\"\n", 0o600},
		"lines.password": {"one\ntwo\n", 0o600},
		"munich.psk":     {good, 0o400},
		"open.key":       {good, 0o644},
		"group.key":      {good, 0o620},
		"short.key":      {"c2hvcnQ=\n", 0o600},
		"words.key":      {"this is not a key\n", 0o600},
		"empty.key":      {"", 0o600},
		"zero.key":       {strings.Repeat("A", 43) + "=\n", 0o600},
		"long.key":       {strings.Repeat("A", 5000), 0o600},
	} {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(f.text), f.mode))
		require.NoError(t, os.Chmod(path, f.mode)) // whatever the umask
	}
	certificates(t, filepath.Join(dir, "tls"))
	return root
}

// certificates are those of a PBX, good and bad.
func certificates(t testing.TB, dir string) {
	t.Helper()
	require.NoError(t, os.Mkdir(dir, 0o700))
	ca := certtest.NewCA(t)
	pbx, pbxKey := ca.Issue("pbx.example.com", "10.2.20.5")
	client, clientKey := ca.Issue("berlin.example.com")
	for name, text := range map[string]string{
		"ca.crt": ca.PEM, "pbx.crt": pbx, "pbx.key": pbxKey, "client.crt": client, "client.key": clientKey,
		"open.key": pbxKey, "long.crt": strings.Repeat(ca.PEM, 200), "words.crt": "no certificate\n",
	} {
		path := filepath.Join(dir, name)
		mode := os.FileMode(0o600)
		if name == "open.key" || strings.HasSuffix(name, ".crt") {
			mode = 0o644
		}
		require.NoError(t, os.WriteFile(path, []byte(text), mode))
		require.NoError(t, os.Chmod(path, mode))
	}
}

// TestBadConfigs holds the whole error text of every file in testdata/bad: the config, then what is printed.
func TestBadConfigs(t *testing.T) {
	files, err := filepath.Glob("testdata/bad/*.txtar")
	require.NoError(t, err)
	require.GreaterOrEqual(t, len(files), 30)
	root := box(t)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			require.NoError(t, err)
			require.Len(t, a.Files, 2)
			require.Equal(t, "box.yaml", a.Files[0].Name)
			require.Equal(t, "want", a.Files[1].Name)
			cfg, err := config.Parse("/etc/ringway/box.yaml", a.Files[0].Data, config.WithRoot(root))
			require.Error(t, err)
			require.Nil(t, cfg)
			got := strings.ReplaceAll(err.Error(), "/etc/ringway/box.yaml", "box.yaml") + "\n"
			if *update {
				a.Files[1].Data = []byte(got)
				require.NoError(t, os.WriteFile(file, txtar.Format(a), 0o644))
				return
			}
			assert.Equal(t, string(a.Files[1].Data), got)
			assert.NotContains(t, got, exampleKey().Base64())
		})
	}
}
