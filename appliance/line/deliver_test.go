package line

import (
	"net/netip"
	"path/filepath"
	"testing"
	"time"

	"log/slog"

	"github.com/stretchr/testify/assert"

	"ringway/tunnel"
)

const (
	firstLine, secondLine = "198.51.100.2", "192.0.2.2"
)

// peer is a site with the states of the paths from both lines.
func peer(first, second tunnel.PathState) tunnel.PeerStatus {
	return tunnel.PeerStatus{Paths: []tunnel.PathStatus{
		{Source: netip.MustParseAddr(firstLine), State: first}, {Source: netip.MustParseAddr(secondLine), State: second},
	}}
}

func TestWhichLinesDeliver(t *testing.T) {
	const up, silent, unknown = tunnel.PathUp, tunnel.PathSilent, tunnel.PathUnknown
	ours := map[netip.Addr]bool{netip.MustParseAddr(firstLine): true, netip.MustParseAddr(secondLine): true}
	var d deliveries
	now := time.Now()
	seconds := func(n int, peers ...tunnel.PeerStatus) (changes int) {
		for range n {
			now = now.Add(time.Second)
			if d.observe(now, ours, peers) {
				changes++
			}
		}
		return changes
	}
	first := addresses(firstLine)

	assert.Zero(t, seconds(samples-1, peer(silent, up)))
	assert.Zero(t, seconds(10, peer(up, up)), "a site that hiccups")
	assert.Zero(t, seconds(10, peer(silent, silent)), "a site that has gone")
	assert.Zero(t, seconds(10, peer(silent, unknown)), "nobody is heard by another line")
	assert.Zero(t, seconds(10, peer(silent, up), peer(up, up)), "the line of one of two sites")
	assert.Zero(t, seconds(10, peer(unknown, up)), "a NAT lets nothing in")
	assert.False(t, d.isSilent(first))

	assert.Equal(t, 1, seconds(10, peer(silent, up), peer(silent, up)))
	assert.True(t, d.isSilent(first))
	assert.False(t, d.isSilent(addresses(secondLine)))
	assert.Zero(t, seconds(20, peer(up, up)), "well again, not for long")
	assert.Zero(t, seconds(5, peer(silent, up)))
	assert.Equal(t, 1, seconds(40, peer(up, up)))
	assert.False(t, d.isSilent(first))

	assert.Equal(t, 1, seconds(10, peer(silent, up)))
	assert.Equal(t, 1, seconds(70, tunnel.PeerStatus{}), "nobody looks any more")
	assert.False(t, d.isSilent(first))
	assert.Equal(t, 1, seconds(10, peer(silent, up)))
	delete(ours, first[0])
	assert.Equal(t, 1, seconds(1, peer(silent, up)), "it is not ours any more")
	assert.Empty(t, d.lines)
}

// The next daemon knows which lines are silent before it has asked anybody.
func TestSilentLinesAreKept(t *testing.T) {
	file := filepath.Join(t.TempDir(), "lines.json")
	l := New(Options{File: file, Log: slog.New(slog.DiscardHandler)})
	l.save(addresses(firstLine))
	assert.Equal(t, addresses(firstLine), New(Options{File: file}).load())
	assert.Empty(t, New(Options{File: file + "x"}).load())
}

// A dead line of a site with several addresses is no dead line of ours: only an address that another line hears shows
// that ours delivers nothing.
func TestADeadLineOfTheFarEndIsNotOurs(t *testing.T) {
	const first, second = "203.0.113.1:51820", "203.0.113.2:51820"
	path := func(source, remote string, state tunnel.PathState) tunnel.PathStatus {
		return tunnel.PathStatus{
			Source: netip.MustParseAddr(source), Remote: netip.MustParseAddrPort(remote), State: state,
		}
	}
	ours := map[netip.Addr]bool{netip.MustParseAddr(firstLine): true, netip.MustParseAddr(secondLine): true}
	look := func(peers ...tunnel.PeerStatus) (silent []netip.Addr) {
		var d deliveries
		for n := range 10 {
			d.observe(time.Unix(int64(n), 0), ours, peers)
		}
		return d.all()
	}
	apart := tunnel.PeerStatus{Paths: []tunnel.PathStatus{
		path(firstLine, first, tunnel.PathUp), path(secondLine, second, tunnel.PathSilent),
	}}
	assert.Empty(t, look(apart))
	crossed := apart
	crossed.Paths = append(crossed.Paths, path(firstLine, second, tunnel.PathSilent))
	assert.Empty(t, look(crossed), "no line of ours is answered from there")
	crossed.Paths[2].State = tunnel.PathUp
	assert.Equal(t, addresses(secondLine), look(crossed))
	assert.Empty(t, look(apart, tunnel.PeerStatus{Paths: []tunnel.PathStatus{path(firstLine, second, tunnel.PathUp)}}),
		"another site has the same address behind a NAT")
}
