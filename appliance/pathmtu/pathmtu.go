// Package pathmtu keeps how long packets to each site may be, as the engines find by probing: also while a plane is
// replaced, and for the next daemon. It notices, too, where long packets are sent, so that engines confirm there that
// they pass: a tunnel whose engine does not probe loses them unseen.
package pathmtu

import (
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"sync"
	"time"

	"ringway/durable"
	"ringway/tunnel"
)

const (
	// keptFor is for how long what was found holds although no engine says it any more: a plane was replaced, or the
	// far end is silent.
	keptFor = time.Hour
	// longBytes in a second are two full packets or more: two looks are about a second apart.
	longBytes = 2500
	// hintEvery is how often an engine is told that long packets are sent.
	hintEvery = 10 * time.Second
	// least and most are what a file may hold, in bytes.
	least, most = 576, 65535
)

// Sites is what is known of all sites. It is safe for concurrent use.
type Sites struct {
	file string
	log  *slog.Logger

	mu    sync.Mutex
	found map[tunnel.PublicKey]map[tunnel.Class]found
	sent  map[tunnel.PublicKey]*sent
}

type found struct {
	mtu int // of outer packets, bytes
	at  time.Time
}

// sent is what is sent to a site.
type sent struct {
	bytes  map[tunnel.Class]uint64
	long   bool // since it was hinted
	hinted time.Time
}

// Load reads what an earlier daemon of this boot has found; a file that cannot be used is as good as none, since the
// planes find it again.
func Load(file string, now time.Time, log *slog.Logger) *Sites {
	s := &Sites{file: file, log: log, found: map[tunnel.PublicKey]map[tunnel.Class]found{},
		sent: map[tunnel.PublicKey]*sent{}}
	text, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return s
	}
	var kept map[string]map[tunnel.Class]int
	if err == nil {
		err = json.Unmarshal(text, &kept)
	}
	if err != nil {
		log.Warn("cannot read what paths take; it is found again", "error", err)
		return s
	}
	for text, classes := range kept {
		key, err := tunnel.ParsePublicKey(text)
		if err != nil {
			continue
		}
		for c, mtu := range classes {
			if mtu >= least && mtu <= most {
				s.take(key, c, found{mtu, now})
			}
		}
	}
	return s
}

func (s *Sites) take(key tunnel.PublicKey, c tunnel.Class, f found) {
	if s.found[key] == nil {
		s.found[key] = map[tunnel.Class]found{}
	}
	s.found[key][c] = f
}

// Observe takes what the engine of a class says of its peers. It reports whether what paths take has changed.
func (s *Sites) Observe(now time.Time, c tunnel.Class, peers []tunnel.PeerStatus) (changed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.leastLocked()
	for _, p := range peers {
		s.countLocked(c, p)
		if p.PathMTU >= least && p.PathMTU <= most {
			s.take(p.PublicKey, c, found{p.PathMTU, now})
		}
	}
	for key, classes := range s.found {
		maps.DeleteFunc(classes, func(_ tunnel.Class, f found) bool { return now.Sub(f.at) > keptFor })
		if len(classes) == 0 {
			delete(s.found, key)
		}
	}
	if maps.Equal(before, s.leastLocked()) {
		return false
	}
	s.saveLocked()
	return true
}

func (s *Sites) countLocked(c tunnel.Class, p tunnel.PeerStatus) {
	t := s.sent[p.PublicKey]
	if t == nil {
		t = &sent{bytes: map[tunnel.Class]uint64{}}
		s.sent[p.PublicKey] = t
	}
	was, known := t.bytes[c]
	t.long = t.long || known && p.TxBytes >= was+longBytes
	t.bytes[c] = p.TxBytes
}

// Long are the sites to which long packets are sent and whose engine is to confirm that they pass.
func (s *Sites) Long(now time.Time) (keys []tunnel.PublicKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, t := range s.sent {
		if t.long && now.Sub(t.hinted) >= hintEvery {
			t.long, t.hinted = false, now
			keys = append(keys, key)
		}
	}
	return keys
}

// Keep forgets all sites but these.
func (s *Sites) Keep(sites []tunnel.Site) {
	s.mu.Lock()
	defer s.mu.Unlock()
	keep := map[tunnel.PublicKey]bool{}
	for _, site := range sites {
		keep[site.PublicKey] = true
	}
	maps.DeleteFunc(s.found, func(k tunnel.PublicKey, _ map[tunnel.Class]found) bool { return !keep[k] })
	maps.DeleteFunc(s.sent, func(k tunnel.PublicKey, _ *sent) bool { return !keep[k] })
}

// MTUs is how long outer packets to sites may be, in bytes, by the sites' names; one that is absent is not known.
func (s *Sites) MTUs(sites []tunnel.Site) map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]int{}
	known := s.leastLocked()
	for _, site := range sites {
		if mtu := known[site.PublicKey]; mtu > 0 {
			all[site.Name] = mtu
		}
	}
	return all
}

// leastLocked is the least of both tunnels of each site.
func (s *Sites) leastLocked() map[tunnel.PublicKey]int {
	all := map[tunnel.PublicKey]int{}
	for key, classes := range s.found {
		for _, f := range classes {
			if all[key] == 0 || f.mtu < all[key] {
				all[key] = f.mtu
			}
		}
	}
	return all
}

func (s *Sites) saveLocked() {
	if s.file == "" {
		return
	}
	kept := map[string]map[tunnel.Class]int{}
	for key, classes := range s.found {
		kept[key.String()] = map[tunnel.Class]int{}
		for c, f := range classes {
			kept[key.String()][c] = f.mtu
		}
	}
	text, err := json.Marshal(kept)
	if err == nil {
		err = durable.WriteFile(s.file, text, 0o600)
	}
	if err != nil {
		s.log.Warn("cannot keep what paths take for the next daemon", "error", err)
	}
}
