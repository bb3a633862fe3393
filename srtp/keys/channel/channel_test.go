package channel_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"ringway/srtp/keys"
	"ringway/srtp/keys/channel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// identities are two, the one that dials first.
func identities(t testing.TB) (dials, waits *channel.Identity) {
	for {
		a, err := channel.GenerateIdentity()
		require.NoError(t, err)
		b, err := channel.GenerateIdentity()
		require.NoError(t, err)
		assert.NotEqual(t, channel.Dials(a.Public(), b.Public()), channel.Dials(b.Public(), a.Public()))
		if channel.Dials(a.Public(), b.Public()) {
			return a, b
		}
	}
}

// pair is a connection between two ends, opened.
type pair struct {
	dials, waits *channel.Conn
}

// open opens both ends of a connection at once, and returns what each end's error is.
func open(
	t testing.TB, one, other net.Conn, first, second channel.Config,
) (p pair, firstErr, secondErr error) {
	var both sync.WaitGroup
	both.Go(func() { p.dials, firstErr = channel.Open(t.Context(), one, first) })
	both.Go(func() { p.waits, secondErr = channel.Open(t.Context(), other, second) })
	both.Wait()
	return p, firstErr, secondErr
}

// opened is a pair over net.Pipe, with what is between them.
func opened(t testing.TB, renew time.Duration, between func(net.Conn) net.Conn) pair {
	a, b := identities(t)
	one, other := net.Pipe()
	if between != nil {
		one = between(one)
	}
	p, err1, err2 := open(t, one, other,
		channel.Config{Own: a, Far: b.Public(), RenewEvery: renew},
		channel.Config{Own: b, Far: a.Public(), RenewEvery: renew})
	require.NoError(t, err1)
	require.NoError(t, err2)
	return p
}

// running runs a connection and collects what it receives.
type running struct {
	mu       sync.Mutex
	received []string
	ended    chan error
}

func run(ctx context.Context, c *channel.Conn) *running {
	r := &running{ended: make(chan error, 1)}
	go func() {
		r.ended <- c.Run(ctx, func(m []byte) error {
			r.mu.Lock()
			defer r.mu.Unlock()
			r.received = append(r.received, string(m))
			return nil
		})
	}()
	return r
}

func (r *running) all() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.received...)
}

// message is one that the channel hands over: of a kind that is not its own.
func message(i int) []byte { return fmt.Appendf([]byte{byte(keys.KindAck)}, "message %d", i) }

func TestMessagesArriveInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := opened(t, 0, nil)
		ctx, cancel := context.WithCancel(t.Context())
		one, other := run(ctx, p.dials), run(ctx, p.waits)
		var want []string
		for i := range 300 {
			want = append(want, string(message(i)))
			require.NoError(t, p.dials.Send(message(i)))
			require.NoError(t, p.waits.Send(message(i)))
		}
		time.Sleep(time.Minute) //nolint:forbidigo // fake time: the bubble's: nothing else ends a connection that nobody uses
		assert.Equal(t, want, one.all())
		assert.Equal(t, want, other.all())
		cancel()
		for _, r := range [...]*running{one, other} {
			err := <-r.ended
			assert.True(t, errors.Is(err, context.Canceled) || errors.Is(err, channel.ErrClosed), "%v", err)
		}
		assert.ErrorIs(t, p.dials.Send(message(0)), channel.ErrClosed)
	})
}

func TestAMessageIsOverwrittenWhenItIsSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := opened(t, 0, nil)
		one, other := run(t.Context(), p.dials), run(t.Context(), p.waits)
		m := message(1)
		require.NoError(t, p.dials.Send(m))
		synctest.Wait()
		assert.Equal(t, []string{string(message(1))}, other.all())
		assert.Equal(t, make([]byte, len(m)), m)
		p.dials.Close()
		<-one.ended
		<-other.ended
	})
}

// recorder keeps what one end writes, and lets a test see it or change it.
type recorder struct {
	net.Conn
	mu     sync.Mutex
	frames [][]byte
	change func(n int, frame []byte) [][]byte // of the nth Write, from 0
}

func (r *recorder) Write(b []byte) (int, error) {
	r.mu.Lock()
	n := len(r.frames)
	r.frames = append(r.frames, bytes.Clone(b))
	change := r.change
	r.mu.Unlock()
	out := [][]byte{b}
	if change != nil {
		out = change(n, bytes.Clone(b))
	}
	for _, f := range out {
		if _, err := r.Conn.Write(f); err != nil {
			return 0, err
		}
	}
	return len(b), nil
}

func (r *recorder) all() [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([][]byte(nil), r.frames...)
}

// TestRenewal: sessions change while messages pass both ways, and none is lost. What is sent carries another session's
// number each time.
func TestRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r *recorder
		p := opened(t, time.Minute, func(c net.Conn) net.Conn { r = &recorder{Conn: c}; return r })
		one, other := run(t.Context(), p.dials), run(t.Context(), p.waits)
		var want []string
		for i := range 6 * 600 { // ten a second, six minutes
			want = append(want, string(message(i)))
			require.NoError(t, p.dials.Send(message(i)))
			require.NoError(t, p.waits.Send(message(i)))
			time.Sleep(100 * time.Millisecond) //nolint:forbidigo // fake time
		}
		synctest.Wait()
		assert.Equal(t, want, one.all())
		assert.Equal(t, want, other.all())
		numbers := map[byte]bool{}
		for _, f := range r.all() {
			numbers[f[2]] = true
		}
		assert.GreaterOrEqual(t, len(numbers), 6, "sessions and the handshake")
		p.dials.Close()
		<-one.ended
		<-other.ended
	})
}

// TestARenewalThatDoesNotBegin ends the connection: a session is not used forever.
func TestARenewalThatDoesNotBegin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // the end that waits does not see it begin
		a, b := identities(t)
		one, other := net.Pipe()
		p, err1, err2 := open(t, one, other,
			channel.Config{Own: a, Far: b.Public(), RenewEvery: 24 * time.Hour},
			channel.Config{Own: b, Far: a.Public(), RenewEvery: time.Minute})
		require.NoError(t, errors.Join(err1, err2))
		first, second := run(t.Context(), p.dials), run(t.Context(), p.waits)
		began := time.Now()
		assert.ErrorIs(t, <-second.ended, channel.ErrRenewal)
		assert.InDelta(t, (2 * time.Minute).Seconds(), time.Since(began).Seconds(), 2)
		<-first.ended
	})
}

func TestAWrongIdentityEndsTheConnection(t *testing.T) {
	a, b := identities(t)
	stranger, err := channel.GenerateIdentity()
	require.NoError(t, err)
	for _, c := range []struct {
		name   string
		own    *channel.Identity
		far    channel.PublicKey
		accept channel.PublicKey
	}{
		{"the far end knows another one", a, b.Public(), stranger.Public()},
		{"a stranger dials", stranger, b.Public(), a.Public()},
		{"we expect another one", a, stranger.Public(), a.Public()},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				one, other := net.Pipe()
				p, err1, err2 := open(t, one, other,
					channel.Config{Own: c.own, Far: c.far}, channel.Config{Own: b, Far: c.accept})
				assert.Nil(t, p.dials)
				assert.Nil(t, p.waits)
				// Who reads the other's handshake first says why. The roles may not fit, either: then each waits.
				known := func(err error) bool {
					return errors.Is(err, channel.ErrIdentity) || errors.Is(err, channel.ErrClosed) ||
						errors.Is(err, channel.ErrSilent)
				}
				assert.True(t, known(err1), "%v", err1)
				assert.True(t, known(err2), "%v", err2)
				_, err := one.Write([]byte{0})
				assert.ErrorIs(t, err, io.ErrClosedPipe)
			})
		})
	}
	t.Run("our own", func(t *testing.T) {
		one, _ := net.Pipe()
		_, err := channel.Open(t.Context(), one, channel.Config{Own: a, Far: a.Public()})
		assert.ErrorContains(t, err, "same identity")
	})
}

// TestTheRespondersErrorNamesTheIdentity: an operator has to see what is wrong.
func TestTheRespondersErrorNamesTheIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := identities(t)
		var stranger *channel.Identity
		for stranger == nil || !channel.Dials(stranger.Public(), b.Public()) || !channel.Dials(a.Public(), b.Public()) {
			s, err := channel.GenerateIdentity()
			require.NoError(t, err)
			stranger = s
		}
		one, other := net.Pipe()
		_, err1, err2 := open(t, one, other,
			channel.Config{Own: stranger, Far: b.Public()}, channel.Config{Own: b, Far: a.Public()})
		assert.ErrorIs(t, err1, channel.ErrClosed)
		assert.ErrorIs(t, err2, channel.ErrIdentity)
	})
}

// TestAReplayedHandshakeOpensNothing: whoever has recorded a connection can send its first bytes again, and gets no
// further. Were it enough, the connection in use would be given up for it.
func TestAReplayedHandshakeOpensNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, b := identities(t)
		one, other := net.Pipe()
		r := &recorder{Conn: one}
		p, err1, err2 := open(t, r, other, channel.Config{Own: a, Far: b.Public()}, channel.Config{Own: b, Far: a.Public()})
		require.NoError(t, errors.Join(err1, err2))
		p.dials.Close()
		p.waits.Close()

		for name, replayed := range map[string][][]byte{"the handshake": r.all()[:1], "all of it": r.all()} {
			attacker, victim := net.Pipe()
			go func() { _, _ = io.Copy(io.Discard, attacker) }()
			go func() {
				for _, f := range replayed {
					_, _ = attacker.Write(f)
				}
			}()
			c, err := channel.Open(t.Context(), victim, channel.Config{Own: b, Far: a.Public()})
			assert.Nil(t, c, name)
			assert.True(t, errors.Is(err, channel.ErrSilent) || errors.Is(err, channel.ErrForged), "%s: %v", name, err)
			_ = attacker.Close()
		}
	})
}

// TestWhatIsChangedOnTheWayEndsTheConnection: and hands nothing over that was changed, nor what follows.
func TestWhatIsChangedOnTheWayEndsTheConnection(t *testing.T) {
	const first = 2 // the handshake and the first message are the 0th and the 1st
	var held []byte
	for name, c := range map[string]struct {
		change func(n int, f []byte) [][]byte
		want   error
		passed int
	}{
		"changed": {func(n int, f []byte) [][]byte {
			if n == first+1 {
				f[len(f)-20] ^= 1
			}
			return [][]byte{f}
		}, channel.ErrForged, 1},
		"number changed": {func(n int, f []byte) [][]byte {
			if n == first+1 {
				f[2] ^= 1
			}
			return [][]byte{f}
		}, channel.ErrForged, 1},
		"replayed": {func(n int, f []byte) [][]byte {
			if n == first+1 {
				return [][]byte{f, f}
			}
			return [][]byte{f}
		}, channel.ErrForged, 2},
		"reordered": {func(n int, f []byte) [][]byte {
			switch n {
			case first + 1:
				held = f
				return nil
			case first + 2:
				return [][]byte{f, held}
			}
			return [][]byte{f}
		}, channel.ErrForged, 1},
		"left out": {func(n int, f []byte) [][]byte {
			if n == first+1 {
				return nil
			}
			return [][]byte{f}
		}, channel.ErrForged, 1},
		"too long": {func(n int, f []byte) [][]byte {
			if n == first+1 {
				f[0] = 0xff
			}
			return [][]byte{f}
		}, channel.ErrFrame, 1},
		"no length": {func(n int, f []byte) [][]byte {
			if n == first+1 {
				f[0], f[1] = 0, 0
			}
			return [][]byte{f}
		}, channel.ErrFrame, 1},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := opened(t, 0, func(conn net.Conn) net.Conn { return &recorder{Conn: conn, change: c.change} })
				one, other := run(t.Context(), p.dials), run(t.Context(), p.waits)
				for i := range 5 {
					_ = p.dials.Send(message(i))
				}
				assert.ErrorIs(t, <-other.ended, c.want)
				assert.Len(t, other.all(), c.passed)
				err := <-one.ended
				assert.ErrorIs(t, err, channel.ErrClosed)
			})
		})
	}
}

func TestATruncatedFrameEndsTheConnection(t *testing.T) {
	for name, keep := range map[string]func(length int) int{
		"without its last byte": func(length int) int { return length - 1 },
		"behind its head":       func(int) int { return 3 },
		"within its head":       func(int) int { return 2 },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var r *recorder
				p := opened(t, 0, func(c net.Conn) net.Conn { r = &recorder{Conn: c}; return r })
				r.change = func(_ int, f []byte) [][]byte {
					_, _ = r.Conn.Write(f[:keep(len(f))])
					_ = r.Conn.Close()
					return nil
				}
				one, other := run(t.Context(), p.dials), run(t.Context(), p.waits)
				require.NoError(t, p.dials.Send(message(1)))
				err := <-other.ended
				assert.ErrorIs(t, err, channel.ErrClosed)
				assert.ErrorContains(t, err, "within a frame")
				assert.Empty(t, other.all())
				<-one.ended
			})
		})
	}
}

// TestBytesOfAStranger: whatever comes instead of a handshake ends the connection, within 5 s.
func TestBytesOfAStranger(t *testing.T) {
	a, b := identities(t)
	handshake := append([]byte{0, 50, 1, 1}, make([]byte, 48)...)
	for name, c := range map[string]struct {
		bytes []byte
		want  error
	}{
		"nothing":           {nil, channel.ErrSilent},
		"half a head":       {[]byte{0}, channel.ErrSilent},
		"HTTP":              {[]byte("GET / HTTP/1.1\r\n\r\n"), channel.ErrFrame},
		"TLS":               {[]byte("\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"), channel.ErrFrame},
		"another version":   {[]byte{0, 50, 1, 2, 0}, channel.ErrSilent},
		"a later version":   {append([]byte{0, 50, 1, 2}, make([]byte, 48)...), channel.ErrVersion},
		"zeros":             {handshake, channel.ErrIdentity},
		"a short handshake": {append([]byte{0, 49, 1, 1}, make([]byte, 47)...), channel.ErrFrame},
		"an empty one":      {[]byte{0, 1, 1}, channel.ErrFrame},
		"no handshake":      {append([]byte{0, 50, 0x80, 1}, make([]byte, 48)...), channel.ErrFrame},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				attacker, victim := net.Pipe()
				go func() { _, _ = attacker.Write(c.bytes) }()
				began := time.Now()
				_, err := channel.Open(t.Context(), victim, channel.Config{Own: b, Far: a.Public()})
				assert.ErrorIs(t, err, c.want)
				assert.LessOrEqual(t, time.Since(began), 5*time.Second)
				_ = attacker.Close()
			})
		})
	}
}

// silenced lets nothing through from a moment on, without an error: a peer that is gone, behind a connection that is
// half-open.
type silenced struct {
	net.Conn
	mu   sync.Mutex
	gone bool
}

func (s *silenced) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return len(b), nil
	}
	return s.Conn.Write(b)
}

func TestADeadPeerIsFoundWithinSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var s *silenced
		p := opened(t, 0, func(c net.Conn) net.Conn { s = &silenced{Conn: c}; return s })
		one, other := run(t.Context(), p.dials), run(t.Context(), p.waits)
		time.Sleep(time.Hour / 2) //nolint:forbidigo // fake time
		assert.Empty(t, other.ended)
		s.mu.Lock()
		s.gone = true
		s.mu.Unlock()
		began := time.Now()
		assert.ErrorIs(t, <-other.ended, channel.ErrSilent)
		assert.LessOrEqual(t, time.Since(began), 5*time.Second)
		<-one.ended
	})
}

// TestAPeerThatDoesNotRead: what is written to it blocks, and neither the sender nor memory wait for it.
func TestAPeerThatDoesNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := opened(t, 0, nil)
		one := run(t.Context(), p.dials) // nobody runs the other end
		began := time.Now()
		var err error
		for i := 0; err == nil && i < 10000; i++ {
			err = p.dials.Send(message(i))
		}
		assert.ErrorIs(t, err, channel.ErrBlocked)
		<-one.ended
		assert.LessOrEqual(t, time.Since(began), 5*time.Second)
		p.waits.Close()
	})
	synctest.Test(t, func(t *testing.T) {
		p := opened(t, 0, nil)
		one := run(t.Context(), p.dials)
		require.NoError(t, p.dials.Send(message(1)))
		err := <-one.ended
		assert.True(t, errors.Is(err, channel.ErrBlocked) || errors.Is(err, channel.ErrSilent), "%v", err)
		p.waits.Close()
	})
}

func TestAFloodEndsTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := opened(t, 0, nil)
		one, other := run(t.Context(), p.dials), run(t.Context(), p.waits)
		for i := range 3000 {
			_ = p.dials.Send(message(i))
		}
		assert.ErrorIs(t, <-other.ended, channel.ErrFlood)
		assert.LessOrEqual(t, len(other.all()), 2000)
		<-one.ended
	})
}

func TestAnErrorOfTheReceiverEndsTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := opened(t, 0, nil)
		one := run(t.Context(), p.dials)
		require.NoError(t, p.dials.Send(message(1)))
		err := p.waits.Run(t.Context(), func([]byte) error { return keys.ErrMalformed })
		assert.ErrorIs(t, err, keys.ErrMalformed)
		<-one.ended
	})
}

const base64Digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"

func TestIdentitiesPrintNoSecret(t *testing.T) {
	a, _ := identities(t)
	config := channel.Config{Own: a, Far: a.Public()}
	for _, text := range []string{
		fmt.Sprint(a), fmt.Sprintf("%+v %#v %x %s", *a, a, a, a), fmt.Sprintf("%+v %#v", config, &config),
	} {
		for n := 0; n+4 <= len(a.Private()); n++ {
			part := a.Private()[n : n+4]
			assert.NotContains(t, text, fmt.Sprintf("%x", part))
			assert.NotContains(t, text, strings.Trim(fmt.Sprint(part), "[]"))
			assert.NotContains(t, text, string(part))
		}
	}
	again, err := channel.ParsePublicKey(a.Public().String())
	require.NoError(t, err)
	assert.Equal(t, a.Public(), again)
	text := a.Public().String()
	last := strings.IndexByte(base64Digits, text[42]) // two of its bits are no key's
	unclean := text[:42] + string(base64Digits[last|1]) + "="
	for _, bad := range []string{unclean, "", "AAAA", a.Public().String() + "A", strings.Repeat("!", 44)} {
		_, err := channel.ParsePublicKey(bad)
		assert.ErrorContains(t, err, "is not 32 bytes in base64")
	}
	a.Wipe()
	assert.Equal(t, make([]byte, 32), a.Private())
}

// FuzzOpen has both ends read what a stranger sends.
func FuzzOpen(f *testing.F) {
	a, b := identities(f)
	f.Add([]byte{0, 50, 1, 1})
	f.Add(append([]byte{0, 50, 1, 1}, make([]byte, 48)...))
	f.Add(binary.BigEndian.AppendUint16(nil, 1042))
	f.Fuzz(func(t *testing.T, b1 []byte) {
		for _, c := range []channel.Config{{Own: a, Far: b.Public()}, {Own: b, Far: a.Public()}} {
			conn, err := channel.Open(t.Context(), &bytesConn{in: bytes.NewReader(b1)}, c)
			assert.Nil(t, conn)
			assert.Error(t, err)
		}
	})
}

// bytesConn is a connection on which a stranger has sent some bytes and has closed.
type bytesConn struct {
	net.Conn
	in *bytes.Reader
}

func (c *bytesConn) Read(b []byte) (int, error)         { return c.in.Read(b) }
func (c *bytesConn) Write(b []byte) (int, error)        { return len(b), nil }
func (c *bytesConn) Close() error                       { return nil }
func (c *bytesConn) SetDeadline(time.Time) error        { return nil }
func (c *bytesConn) SetReadDeadline(time.Time) error    { return nil }
func (c *bytesConn) SetWriteDeadline(_ time.Time) error { return nil }
