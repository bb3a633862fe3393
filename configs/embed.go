// Package configs holds the config files that ship with Ringway: minimal.yaml, reference.yaml with every key,
// and one for each kind of use.
package configs

import (
	"embed"
	"fmt"

	"ringway/appliance/config"
)

// FS holds the files, by name.
//
//go:embed *.yaml
var FS embed.FS

// Variant is a shipped file with values replaced, as config.SetValues takes them.
func Variant(name string, replace map[string]string) ([]byte, error) {
	data, err := FS.ReadFile(name)
	if err != nil {
		return nil, fmt.Errorf("shipped config: %w", err)
	}
	out, err := config.SetValues(data, replace)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return out, nil
}
