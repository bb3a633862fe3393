package configs_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/configs"
	"ringway/qos"
	"ringway/test/certtest"
	"ringway/tunnel"
)

// box is a file system root with the key files of a shipped config in it.
func box(t *testing.T) string {
	t.Helper()
	root := t.TempDir()
	dir := filepath.Join(root, "etc/ringway")
	require.NoError(t, os.MkdirAll(dir, 0o700))
	key, err := tunnel.NewPrivateKey()
	require.NoError(t, err)
	for _, name := range []string{"private.key", "munich.psk", "hamburg.psk", "hub.psk"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(key.Base64()+"\n"), 0o600))
	}
	identity, err := tunnel.NewPrivateKey()
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "identity.key"), []byte(identity.Base64()+"\n"), 0o600))
	for _, name := range []string{"wan1.password", "line.password"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("secret\n"), 0o600))
	}
	ca := certtest.NewCA(t)
	pbx, pbxKey := ca.Issue("pbx.example.com")
	require.NoError(t, os.Mkdir(filepath.Join(dir, "tls"), 0o700))
	for name, text := range map[string]string{
		"ca.crt": ca.PEM, "pbx.crt": pbx, "pbx.key": pbxKey, "client.crt": pbx, "client.key": pbxKey,
	} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "tls", name), []byte(text), 0o600))
	}
	return root
}

func load(t *testing.T, name string, data []byte) *config.Config {
	t.Helper()
	cfg, err := config.Parse("/etc/ringway/"+name, data, config.WithRoot(box(t)))
	require.NoError(t, err)
	return cfg
}

func shipped(t *testing.T, name string) []byte {
	t.Helper()
	data, err := configs.FS.ReadFile(name)
	require.NoError(t, err)
	return data
}

func TestEveryShippedConfigIsGood(t *testing.T) {
	names, err := fs.Glob(configs.FS, "*.yaml")
	require.NoError(t, err)
	require.Len(t, names, 10)
	for _, name := range names {
		cfg := load(t, name, shipped(t, name))
		assert.Empty(t, cfg.Warnings, name)
	}
}

func TestMinimalIsShort(t *testing.T) {
	assert.LessOrEqual(t, strings.Count(string(shipped(t, "minimal.yaml")), "\n"), 25)
}

func TestLabPairFitsTogether(t *testing.T) {
	berlin := load(t, "berlin.yaml", shipped(t, "branch-berlin.yaml"))
	munich := load(t, "munich.yaml", shipped(t, "branch-munich.yaml"))
	assert.GreaterOrEqual(t, berlin.Calls(berlin.WANs[0]), 20)
	for _, pair := range [][2]*config.Config{{berlin, munich}, {munich, berlin}} {
		me, far := pair[0], pair[1]
		require.Len(t, me.Sites, 1)
		site := me.Sites[0]
		assert.Equal(t, far.Site, site.Name)
		assert.Equal(t, far.WANs[0].Addresses[0].Addr().String(), site.Endpoint)
		assert.Equal(t, far.Voice[0].Networks(), site.VoiceNetworks)
		assert.Equal(t, far.Data[0].Networks(), site.DataNetworks)
		for _, c := range tunnel.Classes {
			assert.Equal(t, far.Tunnels[c].ListenPort, site.Port(c))
		}
	}
}

func TestVariant(t *testing.T) {
	data, err := configs.Variant("branch-berlin.yaml", map[string]string{
		"wan[wan0].uplink":         "",
		"tunnels[voice].engine":    "wireguard-go",
		"sites[munich].keepalive":  "5s",
		"sites[munich].public_key": "EXAMPLE+paris+EXAMPLE+paris+EXAMPLE+paris+A=",
		"classes[media].share":     "20",
	})
	require.NoError(t, err)
	assert.Contains(t, string(data), "# 30 percent", "comments stay")
	cfg := load(t, "berlin.yaml", data)
	assert.Zero(t, cfg.WANs[0].Uplink)
	assert.Equal(t, tunnel.EngineWireGuardGo, cfg.Tunnels[tunnel.Voice].Engine)
	assert.Equal(t, "5s", cfg.Sites[0].Keepalive.String())
	assert.Equal(t, "EXAMPLE+paris+EXAMPLE+paris+EXAMPLE+paris+A=", cfg.Sites[0].PublicKey.String())
	assert.Equal(t, 20, cfg.Classes[0].Share)
	assert.Equal(t, qos.Media, cfg.Classes[0].Name)

	_, err = configs.Variant("none.yaml", nil)
	assert.ErrorIs(t, err, fs.ErrNotExist)
	_, err = configs.Variant("minimal.yaml", map[string]string{"sites[paris].endpoint": "x"})
	assert.EqualError(t, err, "minimal.yaml: set sites[paris].endpoint: there is no sites[paris]")
}

// TestCallsThatCommentsPromise: the files say how many calls fit.
func TestCallsThatCommentsPromise(t *testing.T) {
	for name, want := range map[string]int{"branch-berlin.yaml": 49, "branch-munich.yaml": 49, "dhcp-vlan.yaml": 30} {
		cfg := load(t, name, shipped(t, name))
		assert.Equal(t, want, cfg.Calls(cfg.WANs[0]), name)
	}
}
