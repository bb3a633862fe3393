package realtime

import (
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
)

// session is one pair of keys. Forwarding threads find it through an atomic pointer (peer.current to send,
// the index table to receive) and use it without a lock. The control side removes the pointers, and wipes the
// keys only when every thread has gone another round since (retire.go).
type session struct {
	peer      *peer
	send      cipher.AEAD
	receive   cipher.AEAD
	local     uint32 // index that the peer sends to
	remote    uint32
	initiator bool
	created   int64 // ns of the engine's clock

	nonce     atomic.Uint64 // next to send
	confirmed atomic.Bool   // responder: the peer has used it, so that we may (section 5.4.6)
	retired   atomic.Bool   // out of use: its keys are about to be wiped
	replay    window        // the inbound thread's alone
	got       uint64        // messages, but probes of paths and their answers; the inbound thread's alone
	elsewhere uint32        // probes of paths and answers that were sent; under Engine.mu
}

func newSession(p *peer, send, receive [32]byte, local, remote uint32, initiator bool, now int64) *session {
	s := &session{peer: p, local: local, remote: remote, initiator: initiator, created: now}
	s.send, _ = chacha20poly1305.New(send[:])
	s.receive, _ = chacha20poly1305.New(receive[:])
	s.confirmed.Store(initiator)
	return s
}

func (s *session) age(now int64) time.Duration { return time.Duration(now - s.created) }

// usable reports whether the session may send (section 6.2). s may be nil.
func (s *session) usable(now int64) bool {
	return s != nil && !s.retired.Load() && s.age(now) < rejectAfterTime && s.nonce.Load() < rejectAfterMessages
}

// entry is what an index stands for: a session, or a handshake that was not answered yet.
type entry struct {
	index   uint32
	session *session
	peer    *peer // of the handshake
}

// indices finds what an index stands for with one load and one compare: the low bits are the slot.
type indices struct {
	now atomic.Pointer[[]atomic.Pointer[entry]]
	n   int // slots in use; the control side's alone
}

const minIndices = 1 << 10

func newIndices() *indices {
	t := &indices{}
	s := make([]atomic.Pointer[entry], minIndices)
	t.now.Store(&s)
	return t
}

// find is for forwarding threads.
func (t *indices) find(index uint32) *entry {
	s := *t.now.Load()
	e := s[index&uint32(len(s)-1)].Load()
	if e == nil || e.index != index {
		return nil
	}
	return e
}

var errNoRandom = errors.New("draw a random index")

// add draws a free random index for e. It is for the control side alone, as are remove and replace.
func (t *indices) add(e *entry) error {
	s := *t.now.Load()
	if 4*(t.n+1) > len(s) { // keep it mostly empty, so that a random slot is likely free
		grown := make([]atomic.Pointer[entry], 2*len(s))
		for i := range s {
			if old := s[i].Load(); old != nil { // the entries of one slot go to two slots: no two collide
				grown[old.index&uint32(len(grown)-1)].Store(old)
			}
		}
		t.now.Store(&grown)
		s = grown
	}
	for {
		var b [4]byte
		if _, err := rand.Read(b[:]); err != nil {
			return errNoRandom
		}
		e.index = binary.LittleEndian.Uint32(b[:])
		if slot := &s[e.index&uint32(len(s)-1)]; slot.Load() == nil {
			slot.Store(e)
			t.n++
			return nil
		}
	}
}

// remove frees an index.
func (t *indices) remove(index uint32) {
	s := *t.now.Load()
	slot := &s[index&uint32(len(s)-1)]
	if e := slot.Load(); e != nil && e.index == index {
		slot.Store(nil)
		t.n--
	}
}

// replace has an index stand for something else.
func (t *indices) replace(e *entry) {
	s := *t.now.Load()
	s[e.index&uint32(len(s)-1)].Store(e)
}
