package realtime

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/test/polltest"
	"ringway/tunnel/turn"
)

// Every processor has a thread of each direction, which stays there while there is little to forward.
func TestAThreadOnEachProcessor(t *testing.T) {
	cpus, err := turn.UsableProcessors(0)
	require.NoError(t, err)
	if len(cpus) < 2 {
		t.Skip("one processor")
	}
	a, b := wire(t)
	a.Open(0, 0, wide)
	b.Open(0, 0, wide)
	pa := a.Spawn(wide, a.Peer(b, "192.0.2.2:51820"))
	b.Spawn(wide, b.Peer(a, "192.0.2.1:51820"))
	require.NoError(t, a.Ping("10.66.0.2"))
	for _, name := range []string{threadIn, threadOut} {
		var at []int
		for _, tid := range pa.Threads(name) {
			var set unix.CPUSet
			require.NoError(t, unix.SchedGetaffinity(tid, &set))
			require.Equal(t, 1, set.Count(), name)
			for _, c := range cpus {
				if set.IsSet(c) {
					at = append(at, c)
				}
			}
		}
		assert.ElementsMatch(t, cpus, at, name)
	}
}

// Whoever binds the threads elsewhere has the last word, also when a flood has had them roam.
func TestAffinityThatSomebodySetStays(t *testing.T) {
	cpus, err := turn.UsableProcessors(0)
	require.NoError(t, err)
	if len(cpus) < 2 {
		t.Skip("one processor")
	}
	a, b := wire(t)
	a.Open(0, 0, wide)
	b.Open(0, 0, wide)
	a.Spawn(wide, a.Peer(b, "192.0.2.2:51820"))
	pb := b.Spawn(wide, b.Peer(a, "192.0.2.1:51820"))
	require.NoError(t, a.Ping("10.66.0.2"))
	var only unix.CPUSet
	only.Set(cpus[len(cpus)-1])
	for _, tid := range pb.Threads(threadIn) {
		require.NoError(t, unix.SchedSetaffinity(tid, &only))
	}
	junk := make([]byte, 64)
	binary.LittleEndian.PutUint32(junk, typeTransport)
	stop := a.Flood("192.0.2.2:51820", 0, func() []byte { return junk })
	before := pb.Status().Drops["no_such_session"]
	polltest.Require(t, func() bool { return pb.Status().Drops["no_such_session"] > before+100_000 },
		20*time.Second, 10*time.Millisecond)
	stop()
	for _, tid := range pb.Threads(threadIn) {
		var set unix.CPUSet
		require.NoError(t, unix.SchedGetaffinity(tid, &set))
		assert.Equal(t, only, set)
	}
	require.NoError(t, a.Ping("10.66.0.2"))
}
