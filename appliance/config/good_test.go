package config_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/configs"
	"ringway/tunnel"
)

func minimal(t testing.TB) []byte {
	t.Helper()
	data, err := configs.FS.ReadFile("minimal.yaml")
	require.NoError(t, err)
	return data
}

// TestDefaults holds every value that a file without it gets.
func TestDefaults(t *testing.T) {
	cfg, err := config.Parse("/etc/ringway/box.yaml", minimal(t), config.WithRoot(box(t)))
	require.NoError(t, err)
	got, err := json.MarshalIndent(cfg, "", "  ")
	require.NoError(t, err)
	got = append(got, '\n')
	const golden = "testdata/defaults.json"
	if *update {
		require.NoError(t, os.WriteFile(golden, got, 0o644))
	}
	want, err := os.ReadFile(golden)
	require.NoError(t, err)
	assert.Equal(t, string(want), string(got))
}

// TestNotes holds the warnings of good files in testdata/notes: the config, then what is remarked.
func TestNotes(t *testing.T) {
	files, err := filepath.Glob("testdata/notes/*.txtar")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	root := box(t)
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			require.NoError(t, err)
			require.Len(t, a.Files, 2)
			cfg, err := config.Parse("/etc/ringway/box.yaml", a.Files[0].Data, config.WithRoot(root))
			require.NoError(t, err)
			got := config.Problems(cfg.Warnings).Error()
			got = strings.ReplaceAll(got, "/etc/ringway/box.yaml", "box.yaml") + "\n"
			if *update {
				a.Files[1].Data = []byte(got)
				require.NoError(t, os.WriteFile(file, txtar.Format(a), 0o644))
				return
			}
			assert.Equal(t, string(a.Files[1].Data), got)
		})
	}
}

// TestWordsSurvive: what YAML would resolve (0123, case, dots, on and off) comes through as written.
func TestWordsSurvive(t *testing.T) {
	data, err := config.SetValues(minimal(t), map[string]string{
		"site":                    "0123",
		"sites[munich].endpoint":  "Munich.Example.NET.",
		"wan[wan0].interface":     "Eth0.100",
		"voice[voice0].interface": "on",
		"data[data0].interface":   "1e3",
		"sites[munich].keepalive": "0s",
		"control.group":           `""`,
		"control.reflector":       "false",
		"classes[data].dscp":      "[0, 10]",
		"wan[wan0].uplink":        "1.5MBIT",
		"classes[media].ports":    "udp/16384-32767",
		"tunnels[data].mtu":       "1280",
	})
	require.NoError(t, err)
	cfg, err := config.Parse("/etc/ringway/box.yaml", data, config.WithoutKeyFiles())
	require.NoError(t, err)
	assert.Equal(t, "0123", cfg.Site)
	assert.Equal(t, "Munich.Example.NET.", cfg.Sites[0].Endpoint)
	assert.Equal(t, "Eth0.100", cfg.WANs[0].Interface)
	assert.Equal(t, "on", cfg.Voice[0].Interface)
	assert.Equal(t, "1e3", cfg.Data[0].Interface)
	assert.Equal(t, time.Duration(0), cfg.Sites[0].Keepalive)
	assert.Empty(t, cfg.Control.Group)
	assert.False(t, cfg.Control.Reflector)
	assert.Equal(t, "1500kbit", cfg.WANs[0].Uplink.String())
	assert.Equal(t, "udp/16384-32767", cfg.Classes[0].Ports[0].String())
	assert.Equal(t, tunnel.InnerMTU(1280), cfg.Tunnels[tunnel.Data].MTU)
	assert.Equal(t, tunnel.PublicKey{}, cfg.PublicKey, "key files were not looked at")
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "box.yaml")
	data, err := config.SetValues(minimal(t), map[string]string{"key_file": "box.key"})
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, data, 0o644))

	_, err = config.Load(path)
	require.EqualError(
		t,
		err,
		path+":21: key_file: "+dir+"/box.key does not exist (make it with: ringway keygen "+dir+"/box.key)",
	)

	require.NoError(t, os.WriteFile(filepath.Join(dir, "box.key"), []byte(exampleKey().Base64()), 0o600))
	cfg, err := config.Load(path)
	require.NoError(t, err)
	assert.Equal(t, path, cfg.Path)
	assert.Equal(t, filepath.Join(dir, "box.key"), cfg.KeyFile, "a relative key file is beside the config")
	assert.Equal(t, exampleKey().Public(), cfg.PublicKey)

	l, err := config.ParseWithKeys(path, data)
	require.NoError(t, err)
	assert.Equal(t, exampleKey().Base64(), l.Keys.Private.Base64())
}

func TestLoadWhatIsNoFile(t *testing.T) {
	_, err := config.Load("/nowhere/box.yaml")
	assert.EqualError(t, err, "/nowhere/box.yaml: cannot be read: no such file or directory")
	_, err = config.Load("/dev/zero")
	assert.EqualError(t, err, "/dev/zero: is not a regular file")
	dir := t.TempDir()
	_, err = config.Load(dir)
	assert.EqualError(t, err, dir+": is not a regular file")
}

func TestDefaultKeyFileMissing(t *testing.T) {
	_, err := config.Parse("box.yaml", minimal(t), config.WithRoot(t.TempDir()))
	assert.EqualError(
		t,
		err,
		"box.yaml: key_file: /etc/ringway/private.key does not exist (make it with: ringway keygen /etc/ringway/private.key)",
	)
}

// TestHugeInput: whatever the size or nesting, the answer is short and comes at once.
func TestHugeInput(t *testing.T) {
	deep := strings.Repeat("[", 5000) + strings.Repeat("]", 5000)
	var many strings.Builder
	many.WriteString("site: a\nsites:\n")
	for range 1000 {
		many.WriteString("  - {name: b, voice_networks: [" + strings.Repeat("10.0.0.0/9, ", 60) + "]}\n")
	}
	for name, c := range map[string]struct{ data, want string }{
		"too large":     {strings.Repeat("#", 1<<20+1), "box.yaml: is too large (allowed: up to 1 MiB)"},
		"deep flow":     {"site: " + deep, "box.yaml:1: site: is a list (allowed: one value)"},
		"deeper flow":   {strings.Repeat("[", 1<<19), "not YAML"},
		"deep mappings": {strings.Repeat("{a: ", 9000), "not YAML"},
		"deep blocks":   {strings.Repeat("- ", 1<<18), "not YAML"},
		"a long key":    {strings.Repeat("k", 1000) + ": 1\n", "unknown key"},
		"a long value":  {"site: " + strings.Repeat("v ", 1<<18) + "\n", "..."},
		"many keys":     {strings.Repeat("sit: 1\n", 1<<17), "more problems"},
		"many overlaps": {many.String(), "more problems"},
		"binary":        {"\x00\x01\x02", "not YAML: control characters are not allowed"},
		"not UTF-8":     {"site: \xff\xfe\n", "not YAML: invalid leading UTF-8 octet"},
	} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			_, err := config.Parse("box.yaml", []byte(c.data), config.WithoutKeyFiles())
			require.ErrorContains(t, err, c.want)
			assert.Less(t, len(err.Error()), 200_000)
			assert.Less(t, time.Since(start), 10*time.Second)
		})
	}
}

// A text that was read elsewhere is checked for the place where it will stand: its problems name where it was
// read, its key files are beside the place.
func TestATextIsCheckedForAnotherPlace(t *testing.T) {
	dir := t.TempDir()
	text := "site: berlin\nkey_file: private.key\nnonsense: true\n"
	_, err := config.Parse(filepath.Join(dir, "ringway.yaml"), []byte(text), config.Named("new.yaml"))
	assert.ErrorContains(t, err, "new.yaml:3: nonsense: unknown key")
	assert.NotContains(t, err.Error(), filepath.Join(dir, "ringway.yaml"))
	berlin, err := configs.FS.ReadFile("branch-berlin.yaml")
	require.NoError(t, err)
	berlin = bytes.Replace(berlin, []byte("/etc/ringway/private.key"), []byte("private.key"), 1)
	cfg, err := config.Parse(
		filepath.Join(dir, "ringway.yaml"),
		berlin,
		config.Named("/elsewhere/new.yaml"),
		config.WithoutKeyFiles(),
	)
	require.NoError(t, err)
	assert.Equal(t, filepath.Join(dir, "private.key"), cfg.KeyFile)
	assert.Equal(t, filepath.Join(dir, "ringway.yaml"), cfg.Path)
}
