// Package settings reads the settings of the command line: flags, then variables of the environment that
// begin with RINGWAY_, then /etc/ringway/cli.yaml, then the defaults. What the appliance does is in its own
// config file (appliance/config); these settings say where that file is, where the daemon keeps its files,
// and how commands print.
//
// viper merges the four sources. It accepts whatever it finds, lowercases keys and has no positions, so
// every source is checked here before it gets to viper, also where another source overrides it.
package settings

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"github.com/spf13/viper"
)

// File is where the settings of a machine are.
const File = "/etc/ringway/cli.yaml"

// Settings are the merged settings.
type Settings struct {
	Config             string // the appliance's config file, where the command line names none
	RunDir, StateDir   string
	LogLevel           slog.Level
	LogJSON, PrintJSON bool
	Interval           time.Duration // of status --watch

	Sources []Source // of each, in the order of the table
}

// Source says where the value of a setting comes from.
type Source struct {
	Key, Value string
	From       string // "--run-dir", "RINGWAY_RUN_DIR", "/etc/ringway/cli.yaml:3" or "default"
}

const fromDefault = "default"

// IsDefault reports whether no source gives the setting.
func (s Settings) IsDefault(key string) bool {
	return slices.ContainsFunc(s.Sources, func(o Source) bool { return o.Key == key && o.From == fromDefault })
}

// Input names the sources.
type Input struct {
	Flags       *pflag.FlagSet // of the command
	Environment bool           // read RINGWAY_… variables
	File        string         // empty: none
	UID         int            // of the caller, who may own the file
}

// Load merges the sources. Its error is Problems, with everything that is wrong with any of them.
func Load(in Input) (Settings, error) {
	var problems Problems
	file := readFile(in.File, in.UID, &problems)
	if in.Environment {
		checkEnvironment(os.Environ(), &problems)
	}
	in.checkFlags(&problems)
	if len(problems) > 0 {
		return Settings{}, problems
	}

	v := in.merge(file)
	var out Settings
	for _, s := range table {
		value := v.GetString(s.key)
		s.apply(&out, value)
		out.Sources = append(out.Sources, Source{Key: s.key, Value: value, From: in.source(s, file)})
	}
	return out, nil
}

// merge hands the checked sources to viper, which decides by its order: flag, environment, file, default.
func (in Input) merge(file map[string]entry) *viper.Viper {
	v := viper.New()
	values := map[string]any{}
	for key, e := range file {
		values[key] = e.value
	}
	_ = v.MergeConfigMap(values) // cannot fail for a flat map of strings

	for _, s := range table {
		v.SetDefault(s.key, s.fallback)
		if in.Environment {
			_ = v.BindEnv(s.key, s.variable()) // fails without a key only
		}
		if f := in.flag(s); f != nil {
			_ = v.BindFlagValue(s.key, flagValue{f, s}) // fails for nil only
		}
	}
	return v
}

// source names the source that decided.
func (in Input) source(s setting, file map[string]entry) string {
	if f := in.flag(s); f != nil {
		return "--" + f.Name
	}
	if _, ok := os.LookupEnv(s.variable()); ok && in.Environment {
		return s.variable()
	}
	if e, ok := file[s.key]; ok {
		return fmt.Sprintf("%s:%d", in.File, e.line)
	}
	return fromDefault
}

// annotation marks the flags that override a setting. Names would not do: a command may have a flag of a
// setting's name that means something else.
const annotation = "ringway_setting"

// Bind makes a flag override the setting key.
func Bind(flags *pflag.FlagSet, flag, key string) {
	_ = flags.SetAnnotation(flag, annotation, []string{key}) // fails for an unknown flag only
}

// flag finds the flag that overrides a setting, where it was given.
func (in Input) flag(s setting) (given *pflag.Flag) {
	if in.Flags == nil {
		return nil
	}
	in.Flags.Visit(func(f *pflag.Flag) {
		if slices.Contains(f.Annotations[annotation], s.key) {
			given = f
		}
	})
	return given
}

// flagValue shows viper a flag as the setting's value: --log-json is the value json of log_format.
type flagValue struct {
	flag    *pflag.Flag
	setting setting
}

func (f flagValue) HasChanged() bool  { return f.flag.Changed }
func (f flagValue) Name() string      { return f.flag.Name }
func (f flagValue) ValueType() string { return "string" }

func (f flagValue) ValueString() string {
	value := f.flag.Value.String()
	switch {
	case value == "true":
		return "json"
	case value == "false":
		return "text"
	case f.setting.isPath && value != "":
		// Unlike a file's or a variable's, a flag's path is as the caller sees it.
		if path, err := filepath.Abs(value); err == nil {
			return path
		}
	}
	return value
}

func (in Input) checkFlags(problems *Problems) {
	for _, s := range table {
		f := in.flag(s)
		if f == nil {
			continue
		}
		if err := s.check(flagValue{f, s}.ValueString()); err != nil {
			problems.add("--"+f.Name, "%v", err)
		}
	}
}

const prefix = "RINGWAY_"

// checkEnvironment refuses variables that begin with RINGWAY_ and are none of the table: one is a misspelt
// setting.
func checkEnvironment(environ []string, problems *Problems) {
	for _, e := range slices.Sorted(slices.Values(environ)) {
		name, value, _ := strings.Cut(e, "=")
		if !strings.HasPrefix(name, prefix) {
			continue
		}
		s, ok := find(name, setting.variable)
		if !ok {
			problems.add(name, "unknown variable%s", hint(name, setting.variable))
			continue
		}
		if err := s.check(value); err != nil {
			problems.add(name, "%v", err)
		}
	}
}
