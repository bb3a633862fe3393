package relay

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/sip/dialog"
)

// newChannels are the daemon's ends, with what is done with requests.
func newChannels(t *testing.T, take func(ctx context.Context, changes []Change) error) *channels {
	t.Helper()
	c := &channels{take: take, log: slog.New(slog.DiscardHandler), byPID: map[int]*served{}}
	t.Cleanup(c.close)
	return c
}

// ask sends a request and waits for its answer, however busy the machine is.
func (c *channel) ask(changes []Change) error {
	if err := c.send(changes); err != nil {
		return err
	}
	return c.collect(10 * time.Second)
}

func (c *channels) must(t *testing.T, pid int) *channel {
	t.Helper()
	fd, err := c.open(pid)
	require.NoError(t, err)
	ch := newChannel(fd)
	t.Cleanup(ch.close)
	return ch
}

// A request reaches the daemon as it was asked, and so does the answer.
func TestAChannelCarriesRequests(t *testing.T) {
	heard := make(chan []Change, 3)
	c := newChannels(t, func(_ context.Context, changes []Change) error {
		heard <- changes
		if len(heard) == 2 {
			return errors.New("the set is full")
		}
		return nil
	})
	ch := c.must(t, 1)
	require.NoError(t, ch.ask(packed()))
	err := ch.ask(packed())
	require.ErrorIs(t, err, errRefused)
	assert.ErrorContains(t, err, "the set is full")
	require.NoError(t, ch.ask(packed()))
	for range 3 {
		assert.Equal(t, packed(), <-heard)
	}
}

// A daemon that is slow holds a message up for a moment. Its answer is not taken for that to the next request.
func TestALateAnswerIsCollected(t *testing.T) {
	goOn := make(chan struct{})
	c := newChannels(t, func(context.Context, []Change) error { <-goOn; return nil })
	ch := c.must(t, 1)
	require.NoError(t, ch.send(packed()))
	require.ErrorIs(t, ch.answer(short), errLate)
	require.NoError(t, ch.send(packed()))
	close(goOn)
	require.NoError(t, ch.collect(10*time.Second))
	require.NoError(t, ch.collect(10*time.Second))
}

// What is too long, or no request at all, costs nothing else; a request that makes the daemon panic costs itself.
func TestAChannelBearsGarbage(t *testing.T) {
	var asked atomic.Int32
	c := newChannels(t, func(context.Context, []Change) error {
		if asked.Add(1) == 1 {
			panic("broken")
		}
		return errors.New(strings.Repeat("long ", 1000))
	})
	ch := c.must(t, 1)
	many := make([]dialog.Flow, maxChannel)
	assert.ErrorIs(t, ch.ask([]Change{{Close: many}}), errTooLong)
	assert.ErrorContains(t, ch.ask(packed()), "broken")
	assert.ErrorIs(t, ch.ask(packed()), errRefused)

	other := c.must(t, 2)
	_, err := unix.Write(other.fd, []byte{1, 2, 3, 4, 77})
	require.NoError(t, err)
	other.answered = 0x01020303
	assert.ErrorContains(t, other.collect(10*time.Second), "have no such form")
	_, err = unix.Write(other.fd, []byte{1})
	require.NoError(t, err)
	assert.Error(t, other.collect(10*time.Second))
	assert.NotErrorIs(t, other.collect(10*time.Second), errLate, "the channel is closed")

	flood := c.must(t, 3) // it asks and reads no answer
	for range 100_000 {
		if _, err = unix.Write(flood.fd, []byte{0, 0, 0, 1, 77}); err != nil {
			break
		}
	}
	assert.Error(t, err, "the channel is closed")
	assert.ErrorIs(t, ch.ask(packed()), errRefused, "the others go on")
}

// After a process has a new channel, nothing comes by the old one, also not what was on its way.
func TestANewChannelEndsTheOldOne(t *testing.T) {
	var began, ended atomic.Int32
	c := newChannels(t, func(ctx context.Context, _ []Change) error {
		began.Add(1)
		defer ended.Add(1)
		<-ctx.Done()
		return ctx.Err()
	})
	old := c.must(t, 1)
	require.NoError(t, old.send(packed()))
	require.ErrorIs(t, old.answer(short), errLate)
	next := c.must(t, 1)
	assert.Equal(t, began.Load(), ended.Load())
	assert.NotErrorIs(t, old.collect(10*time.Second), errLate)
	assert.Error(t, old.ask(packed()))

	c.close()
	assert.Error(t, next.ask(packed()))
	_, err := c.open(1)
	assert.ErrorContains(t, err, "closed")
}

// The processes that can have a channel are bounded.
func TestChannelsAreBounded(t *testing.T) {
	c := newChannels(t, func(context.Context, []Change) error { return nil })
	for pid := range maxServed {
		c.must(t, pid)
	}
	_, err := c.open(maxServed)
	assert.ErrorContains(t, err, "more than 8")
}

// withChannel is an asker that has a channel, and what the daemon heard by it and by the control connection.
type withChannel struct {
	*asker
	daemon *channels
	opened atomic.Int32
	quick  chan []Change
	slow   chan flowsRequest
	fail   atomic.Bool
}

func newWithChannel(t *testing.T) *withChannel {
	w := &withChannel{quick: make(chan []Change, 100), slow: make(chan flowsRequest, 100)}
	w.daemon = newChannels(t, func(_ context.Context, changes []Change) error {
		w.quick <- changes
		if w.fail.Swap(false) {
			return errors.New("the set is full")
		}
		return nil
	})
	w.asker = newAsker(func(_ context.Context, r flowsRequest) error { w.slow <- r; return nil },
		func() []Change { return packed()[:1] })
	w.asker.open = func(context.Context) (*channel, error) {
		w.opened.Add(1)
		fd, err := w.daemon.open(1)
		if err != nil {
			return nil, err
		}
		return newChannel(fd), nil
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { w.run(ctx); close(done) }()
	t.Cleanup(func() { cancel(); <-done })
	return w
}

// A new process tells the whole, then each message's flows by the channel, and the whole again when it may have lost
// something: the daemon refused it, or the channel ended.
func TestFlowsGoByTheChannel(t *testing.T) {
	w := newWithChannel(t)
	w.tellAll()
	assert.True(t, (<-w.slow).Whole)

	tell := func() {
		done, queued := w.put(packed()[1])
		assert.True(t, queued)
		w.wait(done)
		assert.Equal(t, packed()[1:2], <-w.quick)
		<-done // also if the machine was too busy for it to come in time
	}
	tell()
	w.tell(packed()[1]) // nobody waits
	assert.Equal(t, packed()[1:2], <-w.quick)

	w.fail.Store(true)
	tell()
	assert.True(t, (<-w.slow).Whole)
	assert.EqualValues(t, 1, w.opened.Load(), "a refusal does not end the channel")

	w.daemon.mu.Lock()
	w.daemon.byPID[1].end()
	w.daemon.mu.Unlock()
	done, _ := w.put(packed()[1])
	w.wait(done)
	assert.True(t, (<-w.slow).Whole)
	assert.EqualValues(t, 2, w.opened.Load())
	tell()
}
