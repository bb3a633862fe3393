package config

import (
	"errors"

	"ringway/appliance/secrets"
	"ringway/tunnel"
)

// Loaded is a config with everything that running it takes.
type Loaded struct {
	Text   []byte
	Config *Config
	Keys   secrets.Keys
}

// ParseWithKeys is Parse for a config that is to run: it keeps the keys, and every key file must be readable.
func ParseWithKeys(path string, text []byte, opts ...Option) (Loaded, error) {
	c, cfg, err := parse(path, text, opts)
	if err != nil {
		return Loaded{}, err
	}
	if err := errors.Join(c.unread...); err != nil {
		return Loaded{}, err
	}
	return Loaded{text, cfg, c.secrets}, nil
}

// KeysFor returns l's keys for another config, as far as that names the same files, without opening any.
// unread is how many files it names besides: their keys are taken to be those that l has for the same peer,
// or some other key.
func (l Loaded) KeysFor(cfg *Config) (keys secrets.Keys, unread int) {
	type source struct {
		file string
		peer tunnel.PublicKey
	}
	loaded, byPeer := map[source]tunnel.PresharedKey{}, map[tunnel.PublicKey]tunnel.PresharedKey{}
	for _, s := range l.Config.Sites {
		k := l.Keys.Preshared[s.Name]
		loaded[source{s.PresharedKeyFile, s.PublicKey}], byPeer[s.PublicKey] = k, k
	}

	keys = secrets.Keys{Private: l.Keys.Private, Preshared: map[string]tunnel.PresharedKey{}}
	if cfg.KeyFile != l.Config.KeyFile {
		unread++
	}
	switch cfg.IdentityFile {
	case "":
	case l.Config.IdentityFile:
		keys.Identity = l.Keys.Identity
	default:
		unread++
	}
	for _, s := range cfg.Sites {
		if s.PresharedKeyFile == "" {
			continue
		}
		k, known := loaded[source{s.PresharedKeyFile, s.PublicKey}]
		if !known {
			unread++
			k = byPeer[s.PublicKey]
		}
		if k.IsZero() {
			k = unreadKey
		}
		keys.Preshared[s.Name] = k
	}
	return keys, unread
}

// unreadKey stands for a key that was not read. No engine is ever told it.
var unreadKey = tunnel.PresharedKey{1}
