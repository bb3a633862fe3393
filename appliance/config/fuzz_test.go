package config_test

import (
	"errors"
	"io/fs"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/configs"
	"ringway/tunnel"
)

// FuzzParse: no file crashes the loader; what it refuses it refuses with a position in the file, and what it
// takes keeps its promises and means the same when it is written again.
func FuzzParse(f *testing.F) {
	shipped, err := fs.Glob(configs.FS, "*.yaml")
	require.NoError(f, err)
	for _, name := range shipped {
		data, err := configs.FS.ReadFile(name)
		require.NoError(f, err)
		f.Add(data)
	}
	bad, err := filepath.Glob("testdata/bad/*.txtar")
	require.NoError(f, err)
	for _, name := range bad {
		a, err := txtar.ParseFile(name)
		require.NoError(f, err)
		f.Add(a.Files[0].Data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		cfg, err := config.Parse("/f.yaml", data, config.WithoutKeyFiles())
		if err != nil {
			var ps config.Problems
			require.True(t, errors.As(err, &ps))
			require.NotEmpty(t, ps)
			for _, p := range ps {
				require.NotEmpty(t, p.Message)
				require.GreaterOrEqual(t, p.Line, 0)
				require.LessOrEqual(t, p.Line, len(data)+2)
			}
			return
		}
		promises(t, cfg)
		again, err := config.SetValues(data, nil)
		require.NoError(t, err)
		second, err := config.Parse("/f.yaml", again, config.WithoutKeyFiles())
		require.NoError(t, err, "%s", again)
		cfg.Warnings, second.Warnings = nil, nil // their lines may differ
		require.Equal(t, cfg, second)
	})
}

// promises is what every reader of a Config relies on.
func promises(t *testing.T, cfg *config.Config) {
	require.NotEmpty(t, cfg.Site)
	require.NotEmpty(t, cfg.WANs)
	require.NotEmpty(t, cfg.Voice)
	require.Len(t, cfg.Tunnels, 2)
	require.Len(t, cfg.Classes, 4)
	require.NotEqual(t, cfg.Tunnels[tunnel.Voice].ListenPort, cfg.Tunnels[tunnel.Data].ListenPort)
	devices := map[string]bool{}
	device := func(name string) {
		require.NotEmpty(t, name)
		require.LessOrEqual(t, len(name), 15)
		require.False(t, devices[name], name)
		devices[name] = true
	}
	var nets []netip.Prefix
	for _, w := range cfg.WANs {
		device(w.Interface)
		require.Equal(t, w.Leased(), len(w.Addresses) == 0)
		require.True(t, w.Uplink == 0 || cfg.Calls(w) >= 1)
	}
	for _, l := range append(append(cfg.Voice[:0:0], cfg.Voice...), cfg.Data...) {
		device(l.Device())
		require.NotEmpty(t, l.Addresses)
	}
	for _, c := range tunnel.Classes {
		device(cfg.Tunnels[c].Interface)
	}
	shares := 0
	for _, c := range cfg.Classes {
		shares += c.Share
	}
	require.LessOrEqual(t, shares, 100)
	for _, s := range cfg.Sites {
		require.NotEqual(t, cfg.Site, s.Name)
		require.NotEqual(t, tunnel.PublicKey{}, s.PublicKey)
		for _, p := range s.Networks() {
			require.Equal(t, p.Masked(), p)
			for _, o := range nets {
				require.False(t, o.Overlaps(p), "%s %s", o, p)
			}
			nets = append(nets, p)
		}
	}
}
