package settings

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// setting is a key of cli.yaml. Its variable is RINGWAY_ and the key in capitals.
type setting struct {
	key      string
	fallback string
	isPath   bool
	check    func(value string) error
	apply    func(s *Settings, value string) // a value that was checked
}

var table = []setting{
	{"config", "/etc/ringway/ringway.yaml", true, checkPath, func(s *Settings, v string) { s.Config = v }},
	{"run_dir", "/run/ringway", true, checkPath, func(s *Settings, v string) { s.RunDir = v }},
	{"state_dir", "/var/lib/ringway", true, checkPath, func(s *Settings, v string) { s.StateDir = v }},
	{"log_level", "info", false, checkLevel, func(s *Settings, v string) { s.LogLevel = levels[strings.ToLower(v)] }},
	{"log_format", "text", false, checkFormat, func(s *Settings, v string) { s.LogJSON = v == "json" }},
	{"output", "text", false, checkFormat, func(s *Settings, v string) { s.PrintJSON = v == "json" }},
	{"interval", "2s", false, checkInterval, func(s *Settings, v string) { s.Interval, _ = time.ParseDuration(v) }},
}

func (s setting) name() string     { return s.key }
func (s setting) variable() string { return prefix + strings.ToUpper(s.key) }

// Default returns a setting's default, for the help of the flag that overrides it.
func Default(key string) string {
	s, _ := find(key, setting.name)
	return s.fallback
}

func find(name string, of func(setting) string) (setting, bool) {
	i := slices.IndexFunc(table, func(s setting) bool { return of(s) == name })
	if i < 0 {
		return setting{}, false
	}
	return table[i], true
}

// hint names what a misspelt name probably means, or else all that there are.
func hint(name string, of func(setting) string) string {
	plain := func(s string) string { return strings.NewReplacer("_", "", "-", "").Replace(strings.ToLower(s)) }
	var all []string
	for _, s := range table {
		if plain(of(s)) == plain(name) {
			return ": did you mean " + of(s) + "?"
		}
		all = append(all, of(s))
	}
	return " (allowed: " + strings.Join(all, ", ") + ")"
}

func checkPath(v string) error {
	if !filepath.IsAbs(v) {
		return fmt.Errorf("%q is not an absolute path", v)
	}
	return nil
}

var levels = map[string]slog.Level{
	"debug": slog.LevelDebug,
	"info":  slog.LevelInfo,
	"warn":  slog.LevelWarn,
	"error": slog.LevelError,
}

func checkLevel(v string) error {
	if _, ok := levels[strings.ToLower(v)]; !ok {
		return fmt.Errorf("unknown level %q (allowed: debug, info, warn, error)", v)
	}
	return nil
}

func checkFormat(v string) error {
	if v != "text" && v != "json" {
		return fmt.Errorf("unknown format %q (allowed: text, json)", v)
	}
	return nil
}

const minInterval = 100 * time.Millisecond

func checkInterval(v string) error {
	d, err := time.ParseDuration(v)
	if err != nil {
		return fmt.Errorf("%q is not a duration (allowed: %s and more, for example 2s)", v, minInterval)
	}
	if d < minInterval {
		return fmt.Errorf("%s is too short (allowed: %s and more)", v, minInterval)
	}
	return nil
}
