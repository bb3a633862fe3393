package relay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"ringway/process"
)

// A message that begins a call waits for the daemon, and so does the call. The control connection is no way for that:
// on it a request passes four goroutines, two pollers and JSON, which cost more than what the kernel does about the
// flows. A channel is a pair of sockets beside it, of packets, with requests one way and their answers the other, in
// the same order.
//
// The process waits in the system call, for a few milliseconds at most, and Go is not told of it: for one that it
// knows to wait, its monitor thread looks for other work every 20 us. The daemon, whose wait has no end, waits as for
// any connection.
//
// A request is a number of 4 bytes and packed changes, its answer the same number and why it was refused, if it was.

const (
	maxChannel = 32 << 10 // bytes of a request; more goes by the control connection
	maxRefusal = 512      // bytes of an answer
)

var (
	errTooLong = errors.New("the request is too long for the channel")
	errLate    = errors.New("the answer did not come in time")
	errRefused = errors.New("the daemon refused it")
)

// channel is the process's end. It is used by one goroutine at a time.
type channel struct {
	fd             int
	sent, answered uint32 // numbers of the latest request, and of the latest that was answered
	buffer         []byte
}

func newChannel(fd int) *channel { return &channel{fd: fd} }

func (c *channel) close() { unix.Close(c.fd) }

// send sends a request. errTooLong: it did not, and the channel is as before.
func (c *channel) send(changes []Change) error {
	c.buffer = packChanges(binary.BigEndian.AppendUint32(c.buffer[:0], c.sent+1), changes)
	if len(c.buffer) > maxChannel {
		clear(c.buffer)
		return errTooLong
	}
	c.sent++
	defer func() { clear(c.buffer) }() // it may have keys
	if _, errno := transfer(short, unix.SYS_SENDTO, c.fd, c.buffer, sendNow); errno != 0 {
		return fmt.Errorf("tell the daemon of flows: %w", errno)
	}
	return nil
}

// answer waits for the answer to the oldest request that has none, as long as patience. errRefused: the daemon did
// not do all of it.
func (c *channel) answer(w wait) error {
	var b [maxRefusal]byte
	n, errno := transfer(w, unix.SYS_RECVFROM, c.fd, b[:], 0)
	switch {
	case errno == unix.EAGAIN:
		return errLate
	case errno != 0:
		return fmt.Errorf("wait for the daemon: %w", errno)
	case n == 0:
		return errors.New("wait for the daemon: it has closed the channel")
	case n < 4 || binary.BigEndian.Uint32(b[:]) != c.answered+1:
		return errors.New("wait for the daemon: the answer is to another request")
	}
	c.answered++
	if n > 4 {
		return fmt.Errorf("%w: %s", errRefused, b[4:n])
	}
	return nil
}

// collect waits for an answer that was late.
func (c *channel) collect(limit time.Duration) (err error) {
	for began := time.Now(); time.Since(began) < limit; {
		if err = c.answer(long); !errors.Is(err, errLate) {
			return err
		}
	}
	return err
}

// wait says whether Go is told that a system call may wait.
type wait bool

const (
	long  wait = true
	short wait = false
)

// sendNow are the flags of what is sent: it never waits.
const sendNow = unix.MSG_DONTWAIT | unix.MSG_NOSIGNAL

// transfer is sendto or recvfrom, again if a signal has interrupted it: Go's own signals ask for the processor.
func transfer(w wait, number uintptr, fd int, b []byte, flags uintptr) (n int, errno unix.Errno) {
	for {
		var got uintptr
		if w == long {
			got, _, errno = unix.Syscall6(number, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))),
				uintptr(len(b)), flags, 0, 0)
		} else {
			got, _, errno = unix.RawSyscall6(number, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(b))),
				uintptr(len(b)), flags, 0, 0)
		}
		if errno != unix.EINTR {
			return int(got), errno
		}
		runtime.Gosched()
	}
}

// openChannel asks the daemon for a channel.
func (s *server) openChannel(ctx context.Context) (*channel, error) {
	m, err := s.child.Ask(ctx, process.Request{Type: typeChannel, Within: askLimit})
	if err != nil {
		return nil, err
	}
	defer m.Close()
	files := m.TakeFiles()
	if len(files) != 1 {
		process.CloseFiles(files...)
		return nil, fmt.Errorf("the daemon sent %d sockets for a channel", len(files))
	}
	return newChannel(files[0].FD), nil
}

// channels are the daemon's ends, one for each process: while one replaces another there are two.
type channels struct {
	take func(ctx context.Context, changes []Change) error
	log  *slog.Logger

	mu     sync.Mutex // guards what follows
	byPID  map[int]*served
	closed bool
}

// maxServed bounds the channels: the processes that can be connected at a time are fewer.
const maxServed = 8

// served is a channel that a goroutine answers.
type served struct {
	file   *os.File
	cancel context.CancelFunc
	done   chan struct{}
}

// end returns when nothing comes by the channel any more.
func (s *served) end() {
	s.cancel()
	s.file.Close()
	<-s.done
}

// open gives a process a channel in place of the one that it had. The caller closes the descriptor.
func (c *channels) open(pid int) (fd int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.byPID[pid]; old != nil {
		old.end()
		delete(c.byPID, pid)
	}
	switch {
	case c.closed:
		return process.NoFD, errors.New("the supervisor was closed")
	case len(c.byPID) >= maxServed:
		return process.NoFD, fmt.Errorf("more than %d channels", maxServed)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return process.NoFD, fmt.Errorf("make a channel: %w", err)
	}
	if err := setUp(pair); err != nil {
		unix.Close(pair[0])
		unix.Close(pair[1])
		return process.NoFD, fmt.Errorf("make a channel: %w", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	s := &served{file: os.NewFile(uintptr(pair[0]), "channel"), cancel: cancel, done: make(chan struct{})}
	c.byPID[pid] = s
	go func() {
		if err := c.serve(ctx, s.file); err != nil && ctx.Err() == nil {
			c.log.Warn("a channel of calls is closed", "pid", pid, "error", err)
		}
		s.file.Close()
		close(s.done)
		c.gone(pid, s)
	}()
	return pair[1], nil
}

// setUp has the process's end give up a wait in time, and the daemon's wait in the poller.
func setUp(pair [2]int) error {
	wait := unix.NsecToTimeval(patience.Nanoseconds())
	if err := unix.SetsockoptTimeval(pair[1], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return fmt.Errorf("set its timeout: %w", err)
	}
	return unix.SetNonblock(pair[0], true)
}

// gone forgets a channel that has ended.
func (c *channels) gone(pid int, s *served) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.byPID[pid] == s {
		delete(c.byPID, pid)
	}
	s.cancel()
}

// close ends all channels.
func (c *channels) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for pid, s := range c.byPID {
		s.end()
		delete(c.byPID, pid)
	}
}

// serve answers requests, whose bytes are an unprivileged process's, until the channel is closed.
func (c *channels) serve(ctx context.Context, file *os.File) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	buffer, n, errno := make([]byte, maxChannel), 0, unix.Errno(0)
	receive := func(fd uintptr) bool {
		n, errno = transfer(short, unix.SYS_RECVFROM, int(fd), buffer, unix.MSG_DONTWAIT)
		return errno != unix.EAGAIN
	}
	var answer []byte
	send := func(fd uintptr) bool {
		_, errno = transfer(short, unix.SYS_SENDTO, int(fd), answer, sendNow)
		return true
	}
	for {
		switch err := raw.Read(receive); {
		case err != nil, errno == unix.ECONNRESET, errno == 0 && n == 0: // closed, at this end or the other one
			return nil
		case errno != 0:
			return fmt.Errorf("read a request: %w", errno)
		case n < 4:
			return fmt.Errorf("read a request: it has %d bytes (at least 4)", n)
		}
		answer = buffer[:4:4]
		err = c.handle(ctx, buffer[4:n])
		clear(buffer[4:n]) // it may have keys
		if err != nil {
			answer = append(answer, err.Error()...)
			answer = answer[:min(len(answer), maxRefusal)]
		}
		switch err := raw.Write(send); {
		case err != nil, errno == unix.EPIPE, errno == unix.ECONNRESET:
			return nil
		case errno != 0: // it has asked many times and read no answer
			return fmt.Errorf("answer: %w", errno)
		}
	}
}

// handle does what one request asks for. One that panics costs itself alone.
func (c *channels) handle(ctx context.Context, packed []byte) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("the daemon failed: %v", p)
		}
	}()
	changes, err := unpackChanges(packed)
	if err != nil {
		return err
	}
	return c.take(ctx, changes)
}
