package process

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/test/polltest"
)

func newTestLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

func TestRequestsGoBothWaysWithDescriptors(t *testing.T) {
	h := newHouse(t)
	var got string
	h.requests = map[string]Handler{"hole": func(_ context.Context, m *Message) (Reply, error) {
		var w word
		if err := m.Decode(&w); err != nil {
			return Reply{}, err
		}
		b := make([]byte, 100)
		n, _ := unix.Read(m.Files()[0].FD, b)
		got = w.Word + " with " + string(b[:n])
		return Reply{Body: word{Word: "granted"}, Files: []File{{"answer", pipeOf(h)}}}, nil
	}}
	k, _ := h.supervise()
	ctx := context.Background()
	w, err := k.ask("echo", "hello")
	require.NoError(t, err)
	assert.Equal(t, "hello", w)
	_, err = k.ask("echo", "refuse me")
	assert.EqualError(t, err, `tester refused "echo": refused as asked`)

	// A descriptor later than the start, there and back.
	later := pipeHolding(t, "thirteen bytes and more")
	defer Close(later)
	var kept word
	require.NoError(t, k.Current().Ask(ctx, Request{Type: "keep", Files: []File{{"phone", later}}}, &kept))
	assert.Equal(t, "phone holds thirteen bytes and more", kept.Word)
	m, err := k.Current().Call(ctx, Request{Type: "give"})
	require.NoError(t, err)
	require.Len(t, m.Files(), 1)
	assert.True(t, sameFile(t, later, m.Files()[0].FD))
	m.Close()

	// The process asks the daemon, with a descriptor, and gets one.
	writeTo(t, h, "a connection")
	refill := pipeHolding(t, "what arrived")
	defer Close(refill)
	_, err = k.Current().Call(ctx, Request{Type: "keep"})
	require.ErrorContains(t, err, "0 descriptors")
	p := pipeHolding(t, "x")
	defer Close(p)
	require.NoError(t, k.Current().Ask(ctx, Request{Type: "keep", Files: []File{{"line", p}}}, nil))
	w, err = k.ask("relay", "hole")
	require.NoError(t, err)
	assert.Equal(t, "granted with a connection", w)
	assert.Equal(t, "from the process with ", got, "the pipe was read empty before")
}

// pipeOf is the read end that the house was made with.
func pipeOf(h *house) int { return h.pipe[0] }

func writeTo(t *testing.T, h *house, text string) {
	t.Helper()
	_, err := unix.Write(h.pipe[1], []byte(text))
	require.NoError(t, err)
}

func sameFile(t *testing.T, a, b int) bool {
	t.Helper()
	var x, y unix.Stat_t
	require.NoError(t, unix.Fstat(a, &x))
	require.NoError(t, unix.Fstat(b, &y))
	return x.Ino == y.Ino && x.Dev == y.Dev
}

func TestARequestThatNobodyKnowsIsRefusedAtOnce(t *testing.T) {
	h := newHouse(t)
	k, release := h.supervise()
	_, err := k.ask("dance", "")
	assert.EqualError(t, err, `tester refused "dance": unknown request "dance" (tester speaks protocol 3.4)`)
	_, err = k.ask("relay", "hole")
	assert.ErrorContains(t, err, "no daemon is connected that answers requests")

	release()
	h.requests = map[string]Handler{"other": func(context.Context, *Message) (Reply, error) { return Reply{}, nil }}
	k, _ = h.supervise()
	_, err = k.ask("relay", "hole")
	assert.ErrorContains(t, err,
		`the daemon refused "hole": unknown request "hole" (the daemon speaks protocol 3.4 of tester)`)
}

func TestRequestsGoToTheLatestDaemonThatIsThere(t *testing.T) {
	h := newHouse(t)
	answering := func(w string) Handler {
		return func(context.Context, *Message) (Reply, error) { return Reply{Body: word{Word: w}}, nil }
	}
	h.requests = map[string]Handler{"hole": answering("first")}
	k, _ := h.supervise()

	c, err := dialControl(testKind(h.readable).controlPath(h.run))
	require.NoError(t, err)
	second, err := openConn(c, connOptions{
		peer: "tester", daemon: true, version: 3, maxWaiting: 1, serve: answering("second"), timing: defaultTiming,
	})
	require.NoError(t, err)
	_, _, err = second.hello(context.Background(), envelope{Answers: true}, patience)
	require.NoError(t, err)
	w, err := k.ask("relay", "hole")
	require.NoError(t, err)
	assert.Equal(t, "second", w)

	second.close()
	second.workers.Wait()
	polltest.Require(t, func() bool {
		w, err := k.ask("relay", "hole")
		return err == nil && w == "first"
	}, patience, time.Millisecond)
}

func TestRequestsToTheDaemonAreBoundedInNumberAndTime(t *testing.T) {
	h := newHouse(t)
	var ended atomic.Int32
	h.requests = map[string]Handler{
		"slow": func(ctx context.Context, _ *Message) (Reply, error) {
			<-ctx.Done()
			ended.Add(1)
			return Reply{}, ctx.Err()
		},
		"panic": func(context.Context, *Message) (Reply, error) { panic("of the test") },
	}
	k, _ := h.supervise()
	_, err := k.ask("relay", "slow")
	require.Error(t, err)
	assert.Regexp(t, "no answer in time|deadline exceeded", err.Error(), "whoever sees first that time is up")
	polltest.Require(t, func() bool { return ended.Load() == 1 }, patience, time.Millisecond,
		"the handler hears of the deadline")

	var busy word
	many := Request{Type: "relay-many", Body: word{Word: "slow", Count: 20}, Within: patience}
	require.NoError(t, k.Current().Ask(context.Background(), many, &busy))
	assert.Equal(t, 20-4, busy.Count)

	_, err = k.ask("relay", "panic")
	assert.ErrorContains(t, err, `the daemon failed to answer "panic": of the test`)
}

// The daemon does not trust the process to keep to the bound.
func TestTheDaemonBoundsWhatAProcessAsks(t *testing.T) {
	a, b := socketPair(t)
	started, release := make(chan struct{}, 4), make(chan struct{})
	daemon, err := openConn(a, connOptions{
		peer: "tester", daemon: true, maxWaiting: 2,
		serve: func(context.Context, *Message) (Reply, error) {
			started <- struct{}{}
			<-release
			return Reply{}, nil
		},
	})
	require.NoError(t, err)
	child, err := openConn(b, connOptions{peer: "the daemon", timing: Timing{Answer: patience}})
	require.NoError(t, err)
	results := make(chan error, 20)
	ask := func(n int) {
		for range n {
			go func() {
				m, err := child.Call(context.Background(), Request{Type: "hole"})
				if err == nil {
					m.Close()
				}
				results <- err
			}()
		}
	}

	ask(2)
	<-started
	<-started
	ask(2)
	polltest.Require(t, func() bool { return len(daemon.queue) == 2 }, patience, time.Millisecond)
	ask(16) // two are worked on, two wait
	for range 16 {
		require.ErrorContains(t, <-results, "too many requests in flight (at most 2)")
	}
	close(release)
	for range 4 {
		require.NoError(t, <-results)
	}
	daemon.close()
	child.close()
	daemon.workers.Wait()
}

// What waits for the daemon is bounded in bytes: most requests are short, and of those that may be long, two wait.
func TestTheDaemonBoundsHowLongRequestsAre(t *testing.T) {
	a, b := socketPair(t)
	started, release := make(chan struct{}, 4), make(chan struct{})
	daemon, err := openConn(a, connOptions{
		peer: "tester", daemon: true, maxWaiting: 8, large: []string{"flows"}, timing: Timing{Answer: patience},
		serve: func(_ context.Context, m *Message) (Reply, error) {
			if m.Type == "flows" {
				started <- struct{}{}
				<-release
			}
			return Reply{}, nil
		},
	})
	require.NoError(t, err)
	child, err := openConn(b, connOptions{peer: "the daemon", timing: Timing{Answer: patience}})
	require.NoError(t, err)
	ask := func(typ string, bytes int) error {
		body := word{Word: strings.Repeat("x", bytes)}
		m, err := child.Call(context.Background(), Request{Type: typ, Body: body})
		if err == nil {
			m.Close()
		}
		return err
	}
	assert.NoError(t, ask("reports", maxRequest-1000))
	assert.ErrorContains(t, ask("reports", maxRequest), `request "reports" has 5`)
	assert.NoError(t, ask("reports", 0), "the connection goes on")

	results := make(chan error, maxLarge)
	for range maxLarge {
		go func() { results <- ask("flows", maxRequest) }()
		<-started
	}
	assert.ErrorContains(t, ask("flows", maxRequest), "too many requests in flight (at most 2 of more than 524288 bytes)")
	assert.NoError(t, ask("reports", 0), "short ones pass")
	close(release)
	for range maxLarge {
		assert.NoError(t, <-results)
	}
	assert.NoError(t, ask("flows", maxRequest), "there is room again")

	daemon.close()
	child.close()
	daemon.workers.Wait()
	assert.Zero(t, daemon.large.Load())
}

func TestDescriptorsThatDoNotFitAreAnErrorOfTheRequestAlone(t *testing.T) {
	h := newHouse(t)
	k, _ := h.supervise()
	pid := k.Current().PID()
	w, err := k.ask("fill", "")
	require.NoError(t, err)
	assert.Equal(t, "too many open files", w)
	_, err = k.Current().Call(context.Background(), Request{Type: "keep", Files: []File{{"one", h.pipe[0]}}})
	assert.EqualError(t, err, `tester refused "keep": descriptors were lost on the way `+
		`(the receiver's limit of open files is reached)`)
	w, err = k.ask("echo", "goes on")
	require.NoError(t, err)
	assert.Equal(t, "goes on", w)
	assert.Equal(t, pid, k.Current().PID())

	many := make([]File, maxFiles+1)
	_, err = k.Current().Call(context.Background(), Request{Type: "keep", Files: many})
	assert.ErrorContains(t, err, "65 descriptors (at most 64 in one message)")
}

func TestBadMessagesDoNoHarm(t *testing.T) {
	h := newHouse(t)
	k, _ := h.supervise()
	pid := k.Current().PID()
	path := testKind(h.readable).controlPath(h.run)
	for name, p := range map[string][]byte{
		"nothing": {}, "no kind": []byte("{}"), "no JSON": []byte(".{"), "no type": []byte(".{}"),
		"too large":   append([]byte{'.'}, bytes.Repeat([]byte{' '}, frameSize+100)...),
		"wrong shape": []byte(`.{"v":"x","type":7}`),
	} {
		c, err := dialControl(path)
		require.NoError(t, err)
		_, err = c.Write(p)
		require.NoError(t, err, name)
		require.NoError(t, c.SetReadDeadline(time.Now().Add(patience)))
		if n, err := c.Read(make([]byte, 10)); err == nil {
			assert.Zero(t, n, name)
		} else {
			assert.ErrorIs(t, err, io.EOF, name)
		}
		c.Close()
	}

	// More connections than it has room for: refused in words, and the daemon's own goes on.
	var refused int
	for range maxConnections + 2 {
		c, err := Dial(testKind(h.readable), h.run)
		require.NoError(t, err)
		defer c.Close()
		if _, _, err := c.hello(context.Background(), envelope{}, patience); err != nil {
			assert.ErrorContains(t, err, "more than 8 connections")
			refused++
		}
	}
	assert.NotZero(t, refused)
	w, err := k.ask("echo", "goes on")
	require.NoError(t, err)
	assert.Equal(t, "goes on", w)
	assert.Equal(t, pid, k.Current().PID())
}

// socketPair is a pair of connected ends.
func socketPair(t *testing.T) (a, b *net.UnixConn) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	var out [2]*net.UnixConn
	for i, fd := range pair {
		out[i], err = asConn(fd)
		require.NoError(t, err)
		t.Cleanup(func() { out[i].Close() })
	}
	return out[0], out[1]
}

func wires(t *testing.T) (a, b *wire) {
	t.Helper()
	x, y := socketPair(t)
	a, err := newWire(x, true)
	require.NoError(t, err)
	b, err = newWire(y, true)
	require.NoError(t, err)
	return a, b
}

func TestALongMessageArrivesWholeWithItsDescriptors(t *testing.T) {
	a, b := wires(t)
	text := strings.Repeat("public_key=0123\n", 100_000) // a hub's
	attached := bytes.Repeat([]byte{0, '{', 0xff, '\n'}, 10_000)
	null, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer null.Close()
	sent := make(chan error, 1)
	go func() {
		files := []File{{"null", int(null.Fd())}}
		sent <- a.write(envelope{Version: 3, Type: "set"}, word{Word: text}, attached, files, time.Minute)
	}()
	m, err := b.read()
	require.NoError(t, err)
	require.NoError(t, <-sent)
	defer m.Close()
	var w word
	require.NoError(t, m.Decode(&w))
	assert.Equal(t, text, w.Word)
	assert.Equal(t, attached, m.Attached())
	assert.Equal(t, 3, m.env.Version)
	assert.Equal(t, os.Getpid(), m.Sender.PID, "according to the kernel")
	require.Len(t, m.Files(), 1)
	assert.Equal(t, "null", m.Files()[0].Name)
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(m.Files()[0].FD, &st))
	assert.EqualValues(t, unix.Mkdev(1, 3), st.Rdev)
}

func TestAPeerThatDoesNotReadHoldsNobodyUp(t *testing.T) {
	a, b := wires(t)
	err := a.write(envelope{Type: "set"}, word{Word: strings.Repeat("x", 4<<20)}, nil, nil, 50*time.Millisecond)
	assert.ErrorIs(t, err, os.ErrDeadlineExceeded)
	_, err = b.read()
	assert.Error(t, err, "half a message is never taken for the beginning of the next one")
}

func TestAnEndlessMessageIsRefused(t *testing.T) {
	var a assembler
	packet := append([]byte{'+'}, make([]byte, frameSize)...)
	for {
		if _, _, err := a.add(packet); err != nil {
			assert.ErrorIs(t, err, errTooLong)
			break
		}
		require.LessOrEqual(t, len(a.buf), maxMessage)
	}
}

// The three requests that let any daemon replace any process never change their form.
func TestTheFrozenRequestsKeepTheirForm(t *testing.T) {
	for typ, want := range map[string]string{
		typeHello: `{"v":1,"type":"hello","id":7}`,
		typeFiles: `{"v":1,"type":"fds","id":7}`,
		typeQuit:  `{"v":1,"type":"quit","id":7}`,
	} {
		b, err := encode(envelope{Version: 1, Type: typ, ID: 7}, nil)
		require.NoError(t, err)
		assert.Equal(t, want, string(b))
	}
	newer := `{"v":3,"type":"hello","id":7,"hello":{"major":3,"minor":9,"pid":12,"news":[1]},"more":{}}`
	m, err := decode([]byte(newer))
	require.NoError(t, err, "fields of a newer process are ignored")
	var hello Hello
	require.NoError(t, json.Unmarshal(m.env.Hello, &hello))
	assert.Equal(t, 3, hello.Major)
}

func TestAKindsFieldsStandBesideTheEnvelopes(t *testing.T) {
	b, err := encode(envelope{Version: 1, Type: "set", ID: 7}, word{Word: "x"})
	require.NoError(t, err)
	assert.Equal(t, `{"word":"x","v":1,"type":"set","id":7}`, string(b))

	// A kind cannot change what the envelope says.
	b, err = encode(envelope{Version: 1, Type: "set", ID: 7}, map[string]any{"type": "quit", "ID": 9})
	require.NoError(t, err)
	m, err := decode(b)
	require.NoError(t, err)
	assert.Equal(t, "set", m.Type)
	assert.EqualValues(t, 7, m.env.ID)

	_, err = encode(envelope{Type: "set"}, []int{1})
	assert.ErrorContains(t, err, "the body is not a JSON object")
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`.{"v":1,"type":"hello","id":1,"watch":true}`))
	f.Add([]byte(`.{"v":1,"type":"start","start":{"engine":"fake","mtu":1420,"text":"private_key=00\n"}}`))
	f.Add([]byte(`+{"v":1`))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, p []byte) {
		var a assembler
		whole, done, err := a.add(p)
		if err != nil || !done {
			return
		}
		m, err := decode(whole)
		if err != nil {
			return
		}
		c := &Child{conns: map[*Conn]*caller{}, quit: make(chan struct{})}
		c.log = newPushLog(c.push)
		reply, _ := c.serve(context.Background(), m) // every answer, no panic
		assert.Empty(t, reply.Files)
		h, _ := reply.Body.(helloBody)
		_, err = encode(envelope{Type: m.Type, Hello: h.json}, nil)
		require.NoError(t, err)
	})
}

func FuzzControl(f *testing.F) {
	f.Add(unix.UnixRights(9999))
	f.Add(bytes.Repeat([]byte{0}, 16))
	f.Fuzz(func(t *testing.T, oob []byte) {
		if bytes.Contains(oob, []byte{1, 0, 0, 0, 1, 0, 0, 0}) {
			return // would name descriptors of this process, and close them
		}
		_, _, _ = parseControl(oob)
	})
}

// An answer may come in the moment in which its caller gives up: one of the two must close its descriptors.
func TestAnAnswerThatMeetsItsCallerGivingUpIsClosed(t *testing.T) {
	c := &Conn{waiting: map[uint64]chan *Message{}}
	for range 100_000 {
		env := envelope{Type: "late"}
		ch, err := c.expect(&env)
		require.NoError(t, err)
		var both sync.WaitGroup
		both.Go(func() { c.answered(&Message{env: env}) })
		both.Go(func() { c.forget(env.ID, ch) })
		both.Wait()
		require.Empty(t, ch, "an answer that nobody closes")
	}
}
