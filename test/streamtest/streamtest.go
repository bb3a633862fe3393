// Package streamtest counts lost packets: streams of numbered UDP packets, spaced as a call's, that run while a test
// does something to what they go through. Only tests import it.
package streamtest

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Spacing is that of the packets of a call.
const Spacing = 20 * time.Millisecond

// Stream is a UDP stream of numbered packets, one every Spacing, that runs until the test ends. Each packet
// that did not come is known by its number.
type Stream struct {
	Name string

	mu   sync.Mutex
	more *sync.Cond // something was sent or received
	sent int        // numbers 0 to sent-1 are on their way
	got  map[int]bool
}

// Inside calls f in a network namespace, as netnstest's NS.Do does.
type Inside func(f func() error) error

// Start sends from one namespace to another until the test ends; tos is the whole IPv4 byte.
func Start(t *testing.T, name string, sender Inside, from netip.AddrPort, receiver Inside, to netip.AddrPort,
	tos int) *Stream {
	t.Helper()
	s := &Stream{Name: name, got: map[int]bool{}}
	s.more = sync.NewCond(&s.mu)
	var in, out *net.UDPConn
	require.NoError(t, receiver(func() (err error) {
		in, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(to))
		return err
	}))
	require.NoError(t, sender(func() (err error) {
		out, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(from), net.UDPAddrFromAddrPort(to))
		if err != nil {
			return err
		}
		raw, err := out.SyscallConn()
		if err != nil {
			return err
		}
		var serr error
		err = raw.Control(func(fd uintptr) { serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, tos) })
		if err == nil {
			err = serr
		}
		return err
	}))
	var running sync.WaitGroup
	stop := make(chan struct{})
	running.Go(func() { s.receive(in) })
	running.Go(func() { s.send(out, stop) })
	t.Cleanup(func() {
		close(stop)
		in.Close()
		out.Close()
		running.Wait()
	})
	return s
}

func (s *Stream) send(c *net.UDPConn, stop <-chan struct{}) {
	tick := time.NewTicker(Spacing)
	defer tick.Stop()
	payload := make([]byte, 160) // G.711, 20 ms
	for {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
		s.mu.Lock()
		binary.BigEndian.PutUint64(payload, uint64(s.sent))
		s.sent++
		s.mu.Unlock()
		// An error (a route that is gone) is a lost packet, which the receiver's side will miss.
		_, _ = c.Write(payload)
		s.more.Broadcast()
	}
}

func (s *Stream) receive(c *net.UDPConn) {
	b := make([]byte, 1500)
	for {
		n, err := c.Read(b)
		if err != nil {
			return
		}
		if n < 8 {
			continue
		}
		s.mu.Lock()
		s.got[int(binary.BigEndian.Uint64(b))] = true
		s.mu.Unlock()
		s.more.Broadcast()
	}
}

// next is the number of the next packet.
func (s *Stream) next() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent
}

// waitFor waits until ok holds, which it asks with s.mu held. The sender wakes it every 20 ms.
func (s *Stream) waitFor(limit time.Duration, ok func() bool) bool {
	deadline := time.Now().Add(limit)
	s.mu.Lock()
	defer s.mu.Unlock()
	for !ok() {
		if time.Now().After(deadline) {
			return false
		}
		s.more.Wait()
	}
	return true
}

// Arrives waits until a packet that is sent from now on is received.
func (s *Stream) Arrives(limit time.Duration) bool {
	first := s.next()
	return s.waitFor(limit, func() bool {
		for n := first; n < s.sent; n++ {
			if s.got[n] {
				return true
			}
		}
		return false
	})
}

// lost counts packets from number first to last-1 that did not come, and the longest run of them.
func (s *Stream) lost(first, last int) (lost, run int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := 0
	for n := first; n < last; n++ {
		if s.got[n] {
			now = 0
			continue
		}
		lost, now = lost+1, now+1
		run = max(run, now)
	}
	return lost, run
}

// Streams are measured together.
type Streams []*Stream

// Loss is what one stream lost.
type Loss struct {
	Sent, Lost, Longest int // packets; Longest in a row
}

// During counts what every stream loses while f runs and for a second after it.
func (ss Streams) During(f func()) map[string]Loss {
	first := make([]int, len(ss))
	for i, s := range ss {
		first[i] = s.next()
	}
	f()
	last := make([]int, len(ss))
	for i, s := range ss {
		last[i] = s.next() + int(time.Second/Spacing)
	}
	out := map[string]Loss{}
	for i, s := range ss {
		// A packet in flight gets time: what comes late is not lost. What counts is that one after the last came.
		s.waitFor(5*time.Second, func() bool { return s.sent > last[i]+5 && s.got[last[i]+2] })
		lost, run := s.lost(first[i], last[i])
		out[s.Name] = Loss{Sent: last[i] - first[i], Lost: lost, Longest: run}
	}
	return out
}
