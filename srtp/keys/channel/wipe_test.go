package channel

import (
	"context"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flynn/noise"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/keys"
)

// two are identities, the one that dials first.
func two(t *testing.T) (dials, waits *Identity) {
	a, err := GenerateIdentity()
	require.NoError(t, err)
	b, err := GenerateIdentity()
	require.NoError(t, err)
	if Dials(a.public, b.public) {
		return a, b
	}
	return b, a
}

// joined is a connection between two ends, opened.
func joined(t *testing.T, renew time.Duration) (dials, waits *Conn) {
	a, b := two(t)
	one, other := net.Pipe()
	var both sync.WaitGroup
	var err1, err2 error
	both.Go(func() { dials, err1 = Open(t.Context(), one, Config{Own: a, Far: b.public, RenewEvery: renew}) })
	both.Go(func() { waits, err2 = Open(t.Context(), other, Config{Own: b, Far: a.public, RenewEvery: renew}) })
	both.Wait()
	require.NoError(t, err1)
	require.NoError(t, err2)
	return dials, waits
}

// kept is a cipher and the key that it has.
type kept struct {
	cipher *noise.CipherState
	key    [keyLen]byte
}

func keep(c *noise.CipherState) kept { return kept{c, c.UnsafeKey()} }

// wiped says whether the cipher has another key, from which the one before cannot be computed.
func (k kept) wiped() bool { return k.cipher.UnsafeKey() != k.key }

// Ephemeral keys are overwritten when there is a session, and when there will be none.
func TestEphemeralKeysAreWiped(t *testing.T) {
	a, b := two(t)
	first, err := newHandshake(a, b.public, nil)
	require.NoError(t, err)
	second, err := newHandshake(b, a.public, nil)
	require.NoError(t, err)
	m, s, err := first.write()
	require.NoError(t, err)
	assert.Nil(t, s)
	_, err = second.read(m)
	require.NoError(t, err)
	private := func(h *handshake) []byte { return h.state.LocalEphemeral().Private }
	assert.NotEqual(t, make([]byte, keyLen), private(first))
	answer, s, err := second.write()
	require.NoError(t, err)
	require.NotNil(t, s)
	assert.Equal(t, make([]byte, keyLen), private(second))
	s, err = first.read(answer)
	require.NoError(t, err)
	require.NotNil(t, s)
	assert.Equal(t, make([]byte, keyLen), private(first))
}

// A handshake is for one purpose, one version and one session before it.
func TestAHandshakeIsBound(t *testing.T) {
	assert.Equal(t, byte(version), prologue[len(prologue)-1])
	a, b := two(t)
	for _, c := range []struct{ first, second []byte }{{nil, []byte{1}}, {[]byte{1}, nil}, {[]byte{1}, []byte{2}}} {
		first, err := newHandshake(a, b.public, c.first)
		require.NoError(t, err)
		second, err := newHandshake(b, a.public, c.second)
		require.NoError(t, err)
		m, _, err := first.write()
		require.NoError(t, err)
		_, err = second.read(m)
		assert.ErrorIs(t, err, ErrIdentity)
	}
}

// A session's keys are overwritten when the next one is in use, and all that there are at the end; messages that were
// not sent, too.
func TestSessionsAreWiped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dials, waits := joined(t, time.Minute)
		var before []kept
		for _, c := range []*Conn{dials, waits} {
			before = append(before, keep(c.out.cipher), keep(c.in.cipher))
		}
		var ended sync.WaitGroup
		for _, c := range []*Conn{dials, waits} {
			ended.Go(func() { _ = c.Run(t.Context(), func([]byte) error { return nil }) })
		}
		time.Sleep(time.Minute + 5*time.Second) //nolint:forbidigo // fake time
		synctest.Wait()
		for i, k := range before {
			assert.True(t, k.wiped(), "cipher %d of the session before", i)
		}
		dials.mu.Lock()
		binding := dials.binding
		dials.mu.Unlock()
		assert.Equal(t, binding, waits.binding)

		var last []kept
		for _, c := range []*Conn{dials, waits} {
			c.mu.Lock()
			last = append(last, keep(c.out.cipher), keep(c.in.cipher))
			c.mu.Unlock()
		}
		dials.Close()
		ended.Wait()
		for i, k := range last {
			assert.True(t, k.wiped(), "cipher %d at the end", i)
		}
		assert.Nil(t, dials.out.cipher)
	})
}

// At the end of a connection nothing of a renewal is left, nor of what waits to be sent.
func TestWhatWaitsIsWiped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dials, waits := joined(t, 0)
		m := []byte{byte(keys.KindAck), 1, 2, 3}
		require.NoError(t, dials.Send(m))

		dials.renewAt = time.Now().Add(-time.Second)
		require.NoError(t, dials.renew())
		asked := dials.queue[1][1:]
		ephemeral := dials.renewing.state.LocalEphemeral().Private
		require.NotEqual(t, make([]byte, keyLen), ephemeral)
		require.NoError(t, waits.renewAsked(asked))
		send, receive := keep(waits.next.send), keep(waits.next.receive)
		dials.Close()
		waits.Close()
		assert.Equal(t, make([]byte, 4), m)
		assert.Equal(t, make([]byte, keyLen), ephemeral)
		assert.True(t, send.wiped() && receive.wiped())
	})
}

// A renewal has its roles and its order: everything else ends the connection.
func TestRenewalsThatAreNotExpected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dials, waits := joined(t, 0)
		defer dials.Close()
		defer waits.Close()
		h, err := newHandshake(dials.config.Own, dials.config.Far, dials.binding)
		require.NoError(t, err)
		ask, _, err := h.write()
		require.NoError(t, err)
		assert.ErrorIs(t, dials.renewAsked(ask), ErrRenewal, "the end that dials is not asked")
		assert.ErrorIs(t, dials.renewAnswered(ask), ErrRenewal, "it has not asked")
		assert.ErrorIs(t, waits.renewAnswered(ask), ErrRenewal)

		unbound, err := newHandshake(dials.config.Own, dials.config.Far, nil)
		require.NoError(t, err)
		m, _, err := unbound.write()
		require.NoError(t, err)
		assert.ErrorIs(t, waits.renewAsked(m), ErrRenewal, "of no session")

		out := waits.out.number
		require.NoError(t, waits.renewAsked(ask))
		assert.Equal(t, out, waits.out.number, "it switches when the other end has")
		assert.ErrorIs(t, waits.renewAsked(ask), ErrRenewal, "before the one under way is over")
	})
}

// A session that its far end does not renew ends with the connection.
func TestARenewalThatIsNotAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dials, waits := joined(t, time.Minute)
		defer waits.Close()
		require.NoError(t, waits.conn.SetDeadline(time.Time{}))
		began := time.Now()
		var theirs sync.WaitGroup
		theirs.Go(func() { // reads, and says that it is alive, and nothing else
			for waits.write([]byte{byte(kindAlive)}) == nil {
				time.Sleep(time.Second) //nolint:forbidigo // fake time
			}
		})
		theirs.Go(func() {
			for {
				if _, err := waits.read(); err != nil {
					return
				}
			}
		})
		err := dials.Run(t.Context(), func([]byte) error { return nil })
		assert.ErrorIs(t, err, ErrRenewal)
		assert.LessOrEqual(t, time.Since(began), time.Minute+renewTimeout+2*time.Second)
		waits.Close()
		theirs.Wait()
	})
}

// A frame under the next session but one, or under the next before it was agreed, is nobody's.
func TestTheOrderOfSessions(t *testing.T) {
	for name, number := range map[string]byte{"the next": 1, "the next but one": 2, "the one before": sessionMask} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				dials, waits := joined(t, 0)
				defer dials.Close()
				defer waits.Close()
				if number != 1 { // one is agreed
					dials.renewAt = time.Now().Add(-time.Second)
					require.NoError(t, dials.renew())
					require.NoError(t, waits.renewAsked(dials.queue[0][1:]))
					require.NoError(t, dials.renewAnswered(waits.queue[0][1:]))
				}
				dials.out.number = sessionType | (sessionType+number)&sessionMask
				go func() { _ = dials.write([]byte{byte(kindAlive)}) }()
				_, err := waits.read()
				assert.ErrorIs(t, err, ErrForged)
			})
		})
	}
}

// What was handed over is overwritten, what is the channel's own is not handed over, and a message with nothing in it
// ends the connection.
func TestWhatIsReceived(t *testing.T) {
	m := []byte{byte(keys.KindAck), 1, 2, 3}
	run := func(t *testing.T, send func(dials *Conn)) (borrowed [][]byte, err error) {
		dials, waits := joined(t, 0)
		go func() {
			send(dials)
			dials.Close()
		}()
		err = waits.Run(t.Context(), func(b []byte) error {
			assert.Equal(t, m, b)
			borrowed = append(borrowed, b)
			return nil
		})
		return borrowed, err
	}
	synctest.Test(t, func(t *testing.T) {
		borrowed, err := run(t, func(dials *Conn) {
			_ = dials.write(append([]byte{byte(kindRenewed) + 1}, m...)) // of a later version of the channel
			_ = dials.write(m)
		})
		assert.ErrorIs(t, err, ErrClosed)
		assert.Equal(t, [][]byte{make([]byte, len(m))}, borrowed)
	})
	synctest.Test(t, func(t *testing.T) {
		borrowed, err := run(t, func(dials *Conn) { _ = dials.write(nil) })
		assert.ErrorIs(t, err, ErrFrame)
		assert.Empty(t, borrowed)
	})
}

// A far end that says that it is alive, and reads nothing, ends the connection.
func TestAFarEndThatReadsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dials, waits := joined(t, 0)
		require.NoError(t, waits.conn.SetDeadline(time.Time{}))
		var theirs sync.WaitGroup
		theirs.Go(func() {
			for waits.write([]byte{byte(kindAlive)}) == nil {
				time.Sleep(time.Second) //nolint:forbidigo // fake time
			}
		})
		require.NoError(t, dials.Send([]byte{byte(keys.KindAck)}))
		began := time.Now()
		assert.ErrorIs(t, dials.Run(t.Context(), func([]byte) error { return nil }), ErrBlocked)
		assert.LessOrEqual(t, time.Since(began), deadAfter+time.Second)
		theirs.Wait()
		waits.Close()
	})
}

// Whoever opens a connection can give it up while the far end keeps it waiting.
func TestOpenEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := two(t)
		far, conn := net.Pipe()
		defer far.Close()
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error)
		began := time.Now()
		go func() {
			_, err := Open(ctx, conn, Config{Own: b, Far: a.public})
			ended <- err
		}()
		synctest.Wait()
		cancel()
		assert.ErrorIs(t, <-ended, context.Canceled)
		assert.Zero(t, time.Since(began))
	})
}
