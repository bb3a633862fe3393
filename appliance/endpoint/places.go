package endpoint

import (
	"maps"
	"net/netip"
	"slices"
	"time"

	"ringway/tunnel"
)

const (
	// maxHeard bounds the places of a peer that are remembered.
	maxHeard = 8
	// saveEvery is the shortest time between two writes of the file, which is on flash, while the daemon runs; saveDelay
	// is how long after a change the first of them waits for further ones.
	saveEvery = 10 * time.Minute
	saveDelay = 10 * time.Second
)

// heardAt is a place where a peer was heard.
type heardAt struct {
	At   netip.AddrPort `json:"at"`
	WAN  string         `json:"wan,omitempty"` // the interface by which; "": not known
	Last time.Time      `json:"last"`          // its last handshake there
}

// resolvedLocked is where a site's configured endpoints lead, in order of preference. Of several, a name that was not
// looked up yet leads where it did before. whole reports that all lead somewhere.
func (m *Memory) resolvedLocked(c tunnel.Class, s tunnel.Site) (all []netip.AddrPort, whole bool) {
	hosts := s.Endpoints()
	whole = true
	for i, host := range hosts {
		a := m.names[host].addr
		if !a.IsValid() && len(hosts) > 1 {
			a = m.lastMeantLocked(s, i)
		}
		at := netip.AddrPortFrom(a, s.Port(c))
		switch {
		case !a.IsValid():
			whole = false
		case !slices.Contains(all, at): // two names may mean one address
			all = append(all, at)
		}
	}
	return all, whole
}

// Remotes are where a site's configured endpoints lead, in order of preference; those of which nothing is known are
// left out.
func (m *Memory) Remotes(c tunnel.Class, s tunnel.Site) []netip.AddrPort {
	m.mu.Lock()
	defer m.mu.Unlock()
	all, _ := m.resolvedLocked(c, s)
	return all
}

// meanLocked notes what a site's configured names mean, for the next daemon. Addresses need no note.
func (m *Memory) meanLocked(c tunnel.Class, s tunnel.Site) {
	p := m.known[c][s.PublicKey.String()]
	var meant map[string]netip.Addr
	for i, host := range s.Endpoints() {
		a := m.names[host].addr
		if !a.IsValid() {
			a = m.lastMeantLocked(s, i)
		}
		if _, err := netip.ParseAddr(host); err == nil || !a.IsValid() {
			continue
		}
		if meant == nil {
			meant = map[string]netip.Addr{}
		}
		meant[host] = a
	}
	if !maps.Equal(p.Meant, meant) {
		p.Meant = meant
		m.setLocked(c, s.PublicKey, p)
	}
}

// resolvedList is what the configured endpoints meant last.
func (p place) resolvedList() []netip.AddrPort {
	if !p.Resolved.IsValid() {
		return nil
	}
	return append([]netip.AddrPort{p.Resolved}, p.Also...)
}

// setResolved notes what the configured endpoints mean.
func (p *place) setResolved(all []netip.AddrPort) {
	p.Resolved, p.Also = netip.AddrPort{}, nil
	if len(all) > 0 {
		p.Resolved, p.Also = all[0], slices.Clone(all[1:])
	}
}

// rememberLocked notes that a peer is heard at a place. A later handshake at the same place is no reason to write the
// file.
func (m *Memory) rememberLocked(c tunnel.Class, k tunnel.PublicKey, h heardAt) {
	p, known := m.known[c][k.String()]
	if !known || p.Current != h.At {
		return // it is not, or no more
	}
	i := slices.IndexFunc(p.Heard, func(o heardAt) bool { return o.At == h.At })
	if i == 0 && p.Heard[0].WAN == h.WAN && !h.Last.After(p.Heard[0].Last) {
		return
	}
	news := i != 0 || p.Heard[0].WAN != h.WAN
	heard := slices.Clone(p.Heard) // a Clone of the memory may share it
	if i >= 0 {
		heard = slices.Delete(heard, i, i+1)
	}
	heard = slices.Insert(heard, 0, h)
	p.Heard = heard[:min(len(heard), maxHeard)]
	m.known[c][k.String()] = p
	if news {
		m.changedLocked()
	} else {
		m.later = true
	}
}

// places are where a peer may be, the likeliest first: where it is told to be, and where it was heard.
func (p place) places(resolved []netip.AddrPort) (all []netip.AddrPort) {
	all = slices.Clone(resolved)
	for _, h := range p.Heard {
		if h.At.IsValid() && !slices.Contains(all, h.At) {
			all = append(all, h.At)
		}
	}
	return all
}

// after is the place to look for a peer next; zero: there is no other one.
func (p place) after(at netip.AddrPort, resolved []netip.AddrPort) netip.AddrPort {
	all := p.places(resolved)
	next := slices.Index(all, at) + 1
	if len(all) == 0 || all[next%len(all)] == at {
		return netip.AddrPort{}
	}
	return all[next%len(all)]
}

// changedLocked notes that the file has to be written.
func (m *Memory) changedLocked() {
	if !m.unsaved {
		m.unsaved, m.changed = true, m.now()
	}
}

// SaveInTime writes the file if it has to change and was not written lately.
func (m *Memory) SaveInTime() error {
	m.mu.Lock()
	now := m.now()
	due := m.unsaved && now.Sub(m.written) >= saveEvery && now.Sub(m.changed) >= saveDelay
	m.mu.Unlock()
	if !due {
		return nil
	}
	return m.Save()
}
