package plane

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/process"
	"ringway/srtp/keys"
	"ringway/test/polltest"
)

// The process is killed, in a call and again before it can have said what it has sealed: media is back with the same
// keys, and no index is used twice.
func TestMediaIsBackWhenTheProcessIsKilled(t *testing.T) {
	r := newRig(t)
	send, receive := keyOf(1), keyOf(2)
	r.set(sdesPair(send, receive))
	c := &talk{rig: r, peer: newPeer(t, send, receive)}
	for range 50 {
		c.once()
	}
	c.reports()
	assert.GreaterOrEqual(t, r.leg(2).Sealed, uint64(50))
	for range 3 {
		r.kill()
		for range 3 {
			c.once()
			c.reports()
		}
	}
	st := r.status()
	assert.Equal(t, 3, st.Restarts)
	assert.Zero(t, st.Alarm)
	assert.NoError(t, r.supervisor.Remove(context.Background(), 1))
	assert.Empty(t, r.status().Legs)
}

// A process that ends before it has said what it has sealed, and another one after it: none begins where the one before
// has begun.
func TestProcessesThatSayNothingUseNoIndexTwice(t *testing.T) {
	r := newRig(t)
	send, receive := keyOf(1), keyOf(2)
	p := sdesPair(send, receive)
	p.Legs[0].Quota.Packets = 50 // so that it cannot have sealed much
	r.set(p)
	c := &talk{rig: r, peer: newPeer(t, send, receive)}
	c.once()
	deaf := func(is bool) {
		r.supervisor.mu.Lock()
		defer r.supervisor.mu.Unlock()
		r.supervisor.adopting, r.supervisor.early = is, nil
	}
	deaf(true)
	for range 3 {
		c.once()
		c.reports()
		r.kill()
	}
	c.once()
	c.reports()
	deaf(false)
}

// stream has the phone send without a pause while something happens, some packets at a time on their way. It returns
// how many were sent and how many the far end has opened.
func (c *talk) stream(during func()) (sent, opened int) {
	c.t.Helper()
	var stop atomic.Bool
	var running sync.WaitGroup
	var failed error
	window := make(chan struct{}, 8)
	done := make(chan struct{})
	running.Go(func() { // reads
		defer close(done)
		b, dst := make([]byte, 4096), make([]byte, 4096)
		for {
			_ = c.rig.peer.SetReadDeadline(time.Now().Add(time.Second))
			n, _, err := c.rig.peer.ReadFromUDPAddrPort(b)
			if errors.Is(err, os.ErrDeadlineExceeded) && stop.Load() {
				return
			} else if errors.Is(err, os.ErrDeadlineExceeded) {
				continue
			} else if err != nil {
				failed = err
				return
			}
			at := index{key: c.key, ssrc: 7, index: uint32(binary.BigEndian.Uint16(b[2:]))}
			if c.peer.indices[at] {
				failed = fmt.Errorf("sealed twice: %+v", at)
			}
			c.peer.indices[at] = true
			c.peer.now += int64(20 * time.Millisecond)
			if _, err := c.peer.receiver.Open(dst[:0], b[:n], c.peer.now); err != nil {
				failed = err
			}
			opened++
			select {
			case <-window:
			default:
			}
		}
	})
	running.Go(func() { // sends, at the rate of ten calls
		clock := time.NewTicker(2 * time.Millisecond)
		defer clock.Stop()
		for !stop.Load() {
			select {
			case window <- struct{}{}:
			case <-time.After(100 * time.Millisecond): // some were lost
				continue
			case <-done:
				return
			}
			c.seq++
			if _, err := c.phone.WriteToUDPAddrPort(rtp(7, c.seq), c.phone.to); err != nil {
				return
			}
			sent++
			if c.seq > 20_000 { // the recorder is for one round
				return
			}
			<-clock.C
		}
	})
	during()
	stop.Store(true)
	running.Wait()
	require.NoError(c.t, failed)
	return sent, opened
}

// A daemon is killed: no packet is lost, and the next one has all that the process has. With it the process may die,
// too.
func TestTheNextDaemonAdoptsTheProcess(t *testing.T) {
	r := newRig(t)
	send, receive := keyOf(1), keyOf(2)
	r.set(sdesPair(send, receive))
	c := &talk{rig: r, peer: newPeer(t, send, receive)}
	c.once()
	pid, generation := r.supervisor.PID(), r.supervisor.Generation()
	sent, opened := c.stream(func() {
		r.detach()
		r.supervise()
	})
	assert.NotZero(t, sent)
	assert.Equal(t, sent, opened, "packets were lost")
	assert.Equal(t, pid, r.supervisor.PID())
	assert.Equal(t, generation, r.supervisor.Generation())
	assert.Equal(t, []uint64{1}, slices.Sorted(maps.Keys(r.supervisor.Pairs())))
	st := r.status()
	assert.True(t, st.Adopted)
	assert.Zero(t, st.Alarm)

	r.set(sdesPair(send, receive)) // a refresh: the stream goes on
	c.once()
	c.reports()
	r.kill()
	c.once()
	c.reports()
}

// The process is replaced while a call is up.
func TestTheProcessIsUpgradedInACall(t *testing.T) {
	r := newRig(t)
	send, receive := keyOf(1), keyOf(2)
	r.set(sdesPair(send, receive))
	c := &talk{rig: r, peer: newPeer(t, send, receive)}
	c.once()
	c.reports()
	pid := r.supervisor.PID()
	sent, opened := c.stream(func() { require.NoError(t, r.supervisor.Upgrade(context.Background())) })
	assert.NotZero(t, sent)
	assert.Equal(t, sent, opened, "what arrives in between waits in the sockets")
	assert.NotEqual(t, pid, r.supervisor.PID())
	assert.Error(t, unix.Kill(pid, 0), "the old one has ended")
	c.once()
	c.reports()
	assert.Zero(t, r.status().Restarts)
}

// Daemon and process are killed at once: the keys are nowhere else. The next daemon says how many calls that were, and
// takes no key of before.
func TestKeysThatAreLostAreCounted(t *testing.T) {
	r := newRig(t)
	send, receive := keyOf(1), keyOf(2)
	r.set(sdesPair(send, receive))
	require.NoError(t, r.supervisor.writeCount()) // as it does every second
	generation, pid := r.supervisor.Generation(), r.supervisor.PID()
	r.detach()
	require.NoError(t, unix.Kill(pid, unix.SIGKILL))
	polltest.Require(t, func() bool { return errors.Is(unix.Kill(pid, 0), unix.ESRCH) || zombie(pid) }, patience, tick)
	r.supervise()
	assert.Equal(t, 1, r.status().Alarm.Lost)
	assert.Contains(t, strings.Join(r.supervisor.Problems(), "\n"),
		"calls that have lost the keys of their media since the daemon started: 1;")
	assert.Contains(t, r.log.String(), "calls have lost the keys of their media")
	p := sdesPair(send, receive)
	p.Generation = generation
	assert.ErrorContains(t, r.supervisor.Set(context.Background(), p), "may have been used by a process")
	r.loadRules()
	r.set(sdesPair(keyOf(3), keyOf(4)))
	c := &talk{rig: r, peer: newPeer(t, keyOf(3), keyOf(4))}
	c.once()
}

// A process that cannot be adopted is replaced, on the same sockets, and its calls are counted.
func TestAProcessThatForwardsNothingIsReplaced(t *testing.T) {
	r := newRig(t)
	r.set(sdesPair(keyOf(1), keyOf(2)))
	pid := r.supervisor.PID()
	ports, err := r.supervisor.Ports()
	require.NoError(t, err)
	conn, err := process.Dial(kindOf(nil, nil), r.runDir)
	require.NoError(t, err)
	m, err := conn.Call(context.Background(), process.Request{Type: typeStop})
	require.NoError(t, err)
	m.Close()
	conn.Close()
	r.detach()
	r.supervise()
	assert.NotEqual(t, pid, r.supervisor.PID())
	same, err := r.supervisor.Ports()
	require.NoError(t, err)
	assert.Equal(t, ports, same)
	assert.Equal(t, 1, r.status().Alarm.Lost)
	assert.Contains(t, r.log.String(), "it forwards nothing")
	r.set(sdesPair(keyOf(3), keyOf(4)))
	c := &talk{rig: r, peer: newPeer(t, keyOf(3), keyOf(4))}
	c.once()
}

func zombie(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && strings.Contains(string(b), ") Z ")
}

// Keys of the channel between boxes change in a call: none of its packets is lost, and the next process goes on.
func TestKeysOfTheChannel(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	name := keys.Leg{1, 2, 3}
	act := func(kind keys.ActionKind, number byte, fresh bool) {
		t.Helper()
		k := keyOf(number)
		a := keys.Action{Kind: kind, Leg: name, Key: keysKey(number), Fresh: fresh, Lifetime: 1 << 40}
		require.NoError(t, r.supervisor.Keys(ctx, a))
		assert.NotEqual(t, k.Master, a.Key.Master(), "it is overwritten")
	}
	withMKI := func(number byte) Key { return keyOf(number, 0, 0, 0, number) }
	l := farLeg()
	l.Keying, l.Channel = Channel, name
	act(keys.Hold, 2, true) // before there is a pair
	r.set(Pair{ID: 1, Legs: [2]Leg{phoneLeg(), l}})
	assert.False(t, r.leg(2).Keyed)
	act(keys.Use, 1, true)
	assert.True(t, r.leg(2).Keyed)
	c := &talk{rig: r, peer: newPeer(t, withMKI(1), withMKI(2)), key: "1"}
	c.once()

	act(keys.Use, 1, true) // once more: it is so already
	act(keys.Hold, 2, true)
	c.once()
	assert.Equal(t, map[string]uint64{"00000002": c.opened(2)}, r.leg(2).Opened)
	assert.Equal(t, "00000001", r.leg(2).SendMKI)

	rotate := func(from, to byte) {
		k := withMKI(to)
		next, err := k.live()
		require.NoError(t, err)
		require.NoError(t, c.peer.receiver.Add(next))
		act(keys.Use, to, false)
		c.key = fmt.Sprint(to)
		c.once()
		c.peer.receiver.Drop([]byte{0, 0, 0, from})
	}
	rotate(1, 3)
	act(keys.Hold, 4, false)
	four := withMKI(4)
	next, err := four.live()
	require.NoError(t, err)
	c.peer.sender.Use(next)
	c.once()
	act(keys.Drop, 2, false)
	c.once()
	assert.EqualValues(t, 1, r.leg(2).Rotations)

	r.kill()
	c.once()
	assert.Equal(t, "00000003", r.leg(2).SendMKI)
	rotate(3, 5)
	r.kill()
	c.once()

	// The pair ends, and another one cannot go on with its key.
	require.NoError(t, r.supervisor.Remove(ctx, 1))
	p := Pair{ID: 2, Generation: r.supervisor.Generation(), Legs: [2]Leg{phoneLeg(), l}}
	assert.ErrorContains(t, r.supervisor.Set(ctx, p), "was used by a pair that has ended")
	act(keys.Use, 6, false)
	six := withMKI(6)
	next, err = six.live()
	require.NoError(t, err)
	require.NoError(t, c.peer.receiver.Add(next))
	r.set(p)
	c.key = "6"
	c.once() // both ways: the key that was held is, still
	assert.Equal(t, 2, r.status().Restarts, "no other process had to do it")
	require.NoError(t, r.supervisor.Remove(ctx, 2))
	act(keys.Stop, 6, false)
	act(keys.Drop, 4, false)
	assert.Empty(t, r.supervisor.book.channels)
}

// The process closes the connection of a daemon that reads nothing. It is replaced, after it has told how far it has
// come: what was told before is not enough, and nothing is lost.
func TestAProcessThatIsLostTellsAllBeforeItIsKilled(t *testing.T) {
	r := newRig(t)
	send, receive := keyOf(1), keyOf(2)
	r.set(sdesPair(send, receive))
	c := &talk{rig: r, peer: newPeer(t, send, receive)}
	c.once()
	s := r.supervisor
	s.mu.Lock()
	s.beat = 1 // since boot it has told nothing
	s.mu.Unlock()
	pid := s.PID()
	s.procs.Lock()
	s.askLast()
	s.procs.Unlock()
	assert.EqualValues(t, 0, func() time.Duration { s.mu.Lock(); defer s.mu.Unlock(); return s.beat }())
	require.NoError(t, unix.Kill(pid, unix.SIGKILL))
	r.waitForAnother(pid)
	c.once()
	c.reports()
	assert.Zero(t, r.status().Alarm)
}

// What is heard while a book is on its way is newer than it, or in it.
func TestWhatIsHeardMeanwhileComesAfterTheBook(t *testing.T) {
	s, err := New(Config{
		RunDir: t.TempDir(), Open: func() ([]process.File, error) { return nil, nil }, Program: "/bin/true",
	})
	require.NoError(t, err)
	defer s.close()
	s.adopting = true
	for n := range uint64(3) {
		s.hear(func() { s.book.sent(2, accountOf(n)) })
	}
	s.book.mustSet(t, sdesPair(keyOf(1), keyOf(2)))
	s.book.sent(2, accountOf(1))
	s.caughtUp()
	assert.Equal(t, accountOf(2), s.book.legs[2].out.Sent)
	s.hear(func() { s.book.sent(2, accountOf(5)) })
	assert.Equal(t, accountOf(5), s.book.legs[2].out.Sent)
}

// A pair that the process refuses is not kept for the next one, and its keys were not used.
func TestAPairThatIsRefusedIsNotKept(t *testing.T) {
	r := newRig(t)
	r.set(sdesPair(keyOf(1), keyOf(2)))
	p := sdesPair(keyOf(3), keyOf(4))
	p.ID, p.Legs[0].ID, p.Legs[1].ID, p.Generation = 7, 70, 71, r.supervisor.Generation()
	require.ErrorContains(t, r.supervisor.Set(context.Background(), p), "leg 1 has 192.0.2.1:40000 already")
	assert.Equal(t, []uint64{1}, slices.Sorted(maps.Keys(r.supervisor.Pairs())))
	require.NoError(t, r.supervisor.Remove(context.Background(), 1))
	r.set(p)
	c := &talk{rig: r, peer: newPeer(t, keyOf(3), keyOf(4))}
	c.once()
}

// A pair with which the next process cannot go on is lost, and counted; the others go on.
func TestAPairThatCannotBeTakenUpIsLost(t *testing.T) {
	r := newRig(t)
	r.set(sdesPair(keyOf(1), keyOf(2)))
	p := sdesPair(keyOf(3), keyOf(4)) // the same ports
	p.ID, p.Legs[0].ID, p.Legs[1].ID = 7, 70, 71
	r.supervisor.mu.Lock()
	r.supervisor.book.mustSet(t, p)
	r.supervisor.mu.Unlock()
	r.kill()
	assert.Equal(t, 1, r.status().Alarm.Lost)
	assert.Equal(t, []uint64{1}, slices.Sorted(maps.Keys(r.supervisor.Pairs())))
	c := &talk{rig: r, peer: newPeer(t, keyOf(1), keyOf(2))}
	c.once()
}

// keysKey is that key as package keys has it.
func keysKey(number byte) *keys.Key {
	from := keyOf(number)
	k := &keys.Key{MKI: keys.MKI{0, 0, 0, number}, Suite: from.Suite}
	copy(k.Master(), from.Master)
	copy(k.Salt(), from.Salt)
	return k
}

// opened is how many packets the far end has sent since the leg has had its key.
func (c *talk) opened(leg uint64) uint64 { return c.leg(leg).ReceivedPackets }

// What a leg has learned of its address is told, and the next process knows it.
func TestALearnedAddressOutlivesTheProcess(t *testing.T) {
	r := newRig(t)
	send, receive := keyOf(1), keyOf(2)
	p := sdesPair(send, receive)
	p.Legs[1].Learn = true
	r.set(p)
	c := &talk{rig: r, peer: newPeer(t, send, receive)}
	c.once()
	elsewhere := netip.AddrPortFrom(farAt.Addr(), 41500)
	c.rig.peer = r.listen(r.far, elsewhere, tunnelAt)
	polltest.Require(t, func() bool { // in the first moments of a relay a leg does not move
		c.seq++
		c.rig.peer.send(c.peer.seal(rtp(8, c.seq)))
		return len(r.moved) > 0
	}, patience, 50*time.Millisecond, "nothing was learned")
	assert.Equal(t, elsewhere, <-r.moved)
	r.kill()
	assert.Equal(t, elsewhere, r.leg(2).Remote)
	c.phone.send(rtp(7, 9000))
	got := c.rig.peer.receive(patience)
	require.NotNil(t, got)
	c.peer.open(got)
}

// A key to send with is shared by the branches of a fork: the stream goes on where another pair has the leg.
func TestBranchesOfAForkShareAStream(t *testing.T) {
	r := newRig(t)
	send, receive := keyOf(1), keyOf(2)
	r.set(sdesPair(send, receive))
	c := &talk{rig: r, peer: newPeer(t, send, receive)}
	c.once()
	c.reports()
	branch := sdesPair(send, receive)
	branch.ID, branch.Legs[0].ID = 2, 3
	r.set(branch)
	assert.Equal(t, []uint64{2}, slices.Sorted(maps.Keys(r.supervisor.Pairs())))
	c.once()
	c.reports()
	r.kill()
	c.once()
	c.reports()
	require.NoError(t, r.supervisor.Remove(context.Background(), 1), "the pair that has ended is no longer there")
	c.once()

	// It goes on, too, where the branch has ended before the next one has its pair; nothing is opened twice.
	old := c.peer.seal(rtp(8, 30_000))
	c.rig.peer.send(old)
	require.NotNil(t, c.phone.receive(patience))
	for id := uint64(2); id < 5; id++ {
		require.NoError(t, r.supervisor.Remove(context.Background(), id))
		branch.ID, branch.Legs[0].ID, branch.Legs[1].ID = id+1, 10*id, 10*id+1
		r.set(branch)
		c.rig.peer.send(old)
		c.reports()
		c.phone.send(rtp(7, c.seq)) // what it has sent before
		c.once()
		polltest.Assert(t, func() bool { return r.leg(10*id + 1).Drops["replayed"] > 0 }, patience, tick)
	}
	r.kill()
	c.once()
	c.reports()

	// The same key on another leg would begin again.
	other := sdesPair(send, keyOf(9))
	other.ID, other.Generation, other.Legs[1].Send.Epoch = 9, r.supervisor.Generation(), 7
	other.Legs[0].ID, other.Legs[1].ID = 8, 9
	other.Legs[0].Local = netip.AddrPortFrom(lanAt.Addr(), 40100)
	other.Legs[1].Local = netip.AddrPortFrom(tunnelAt.Addr(), 40110)
	assert.ErrorContains(t, r.supervisor.Set(context.Background(), other), "was used before")
	require.NoError(t, r.supervisor.Remove(context.Background(), 5))
	assert.ErrorContains(t, r.supervisor.Set(context.Background(), other), "was used before")
	r.kill()
	assert.ErrorContains(t, r.supervisor.Set(context.Background(), other), "was used before")
}
