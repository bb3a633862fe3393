// Package secrets reads private and preshared keys from their files. It is the only reader of key files, so
// that the checks of `ringway config check` and those of a start are the same ones.
package secrets

import (
	"fmt"

	"ringway/tunnel"
)

// Keys are the keys that a config names by file.
type Keys struct {
	Private   tunnel.PrivateKey
	Preshared map[string]tunnel.PresharedKey // by site name
	Identity  tunnel.PrivateKey              // for the key channel between boxes; zero: none
}

// Format keeps the keys out of every printed value: fmt reads struct fields without calling their String
// methods.
func (Keys) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("(secrets hidden)")) }
