package settings

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/spf13/pflag"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// The value is that of the source which is named: what viper decides and what `version -v` says are one
// thing, for every setting and every set of sources.
func TestTheSourceThatIsNamedDecides(t *testing.T) {
	values := map[string][4]string{ // by default, file, variable, flag
		"config":     {"/etc/ringway/ringway.yaml", "/file", "/variable", ""},
		"run_dir":    {"/run/ringway", "/file", "/variable", "/flag"},
		"state_dir":  {"/var/lib/ringway", "/file", "/variable", "/flag"},
		"log_level":  {"info", "error", "warn", "debug"},
		"log_format": {"text", "json", "text", "json"},
		"output":     {"text", "json", "text", "json"},
		"interval":   {"2s", "3s", "4s", "5s"},
	}
	require.Len(t, values, len(table))
	for _, s := range table {
		for sources := range 8 {
			inFile, inVariable, inFlag := sources&1 != 0, sources&2 != 0, sources&4 != 0
			v := values[s.key]
			if inFlag && v[3] == "" {
				continue
			}
			t.Run(s.key, func(t *testing.T) {
				in := Input{Environment: true, UID: os.Getuid(), Flags: pflag.NewFlagSet("", pflag.ContinueOnError)}
				want, from := v[0], "default"
				if inFile {
					in.File = filepath.Join(t.TempDir(), "cli.yaml")
					require.NoError(t, os.WriteFile(in.File, []byte("# mine\n"+s.key+": "+v[1]+"\n"), 0o644))
					want, from = v[1], in.File+":2"
				}
				if inVariable {
					t.Setenv(s.variable(), v[2])
					want, from = v[2], s.variable()
				}
				in.Flags.String("flag", "", "")
				Bind(in.Flags, "flag", s.key)
				if inFlag {
					require.NoError(t, in.Flags.Set("flag", v[3]))
					want, from = v[3], "--flag"
				}
				got, err := Load(in)
				require.NoError(t, err)
				assert.Contains(t, got.Sources, Source{Key: s.key, Value: want, From: from})
				assert.Equal(t, from == "default", got.IsDefault(s.key))
			})
		}
	}
}

// A source is checked also where another overrides it: it would bite when that one goes.
func TestASourceThatIsOverriddenIsChecked(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cli.yaml")
	require.NoError(t, os.WriteFile(file, []byte("log_level: loud\n"), 0o644))
	t.Setenv("RINGWAY_LOG_LEVEL", "quiet")
	in := Input{Environment: true, File: file, UID: os.Getuid(), Flags: pflag.NewFlagSet("", pflag.ContinueOnError)}
	in.Flags.String("log-level", "", "")
	Bind(in.Flags, "log-level", "log_level")
	require.NoError(t, in.Flags.Set("log-level", "debug"))
	_, err := Load(in)
	assert.EqualError(t, err, file+`:1: log_level: unknown level "loud" (allowed: debug, info, warn, error)`+"\n"+
		`RINGWAY_LOG_LEVEL: unknown level "quiet" (allowed: debug, info, warn, error)`)
}
