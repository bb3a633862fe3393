package relay

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/process"
	"ringway/sip/terminate"
	"ringway/sip/transparent"
	"ringway/test/netnstest"
	"ringway/test/polltest"
)

// The test binary is the relay's process, too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "calls-relay" {
		if err := Main("test"); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// Processes that are killed hand the keys of calls on by the daemon's memory: each tells the daemon the same pairs. On
// disk is none of them, nor in what is logged.
func TestKeysSurviveTheProcess(t *testing.T) {
	netnstest.Root(t)
	dir := t.TempDir()
	before := newSecureCall(t, secured()) // without a bubble: the process has the machine's time
	file, err := openJournal(dir)
	require.NoError(t, err)
	require.NoError(t, before.keepOnce(newJournal(file.FD)))
	process.CloseFiles(file)
	pair := before.pair

	ns := netnstest.New(t)
	ns.Run("ip", "link", "set", "lo", "up")
	told := make(chan []*terminate.Pair, 100)
	var logged lockedBuffer
	s, err := NewSupervisor(Config{
		RunDir: dir, Log: slog.New(slog.NewTextHandler(&logged, nil)),
		Listen: func() (files []process.File, err error) {
			return files, ns.Do(func() (err error) { files, err = Listen(); return err })
		},
		Open: func(kind transparent.SocketKind) (fd int, err error) {
			return fd, ns.Do(func() (err error) { fd, err = Open(kind); return err })
		},
		Flows: func(_ context.Context, changes []Change, whole bool) error {
			if all, _ := pairs(flowsRequest{Changes: changes}); whole && len(all) > 0 {
				told <- all
			}
			return nil
		},
		Reports: func([]Report, []Ended) {}, Unreachable: func(netip.AddrPort) {},
	})
	require.NoError(t, err)
	s.keeper.calls = before.keeper.calls
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { _ = s.Run(ctx); close(done) }()
	t.Cleanup(func() {
		assert.NoError(t, s.Stop(context.Background()))
		cancel()
		<-done
	})
	require.NoError(t, s.Configure(t.Context(), secured()))
	const patience = 20 * time.Second
	next := func() []*terminate.Pair {
		select {
		case all := <-told:
			return all
		case <-time.After(patience):
			t.Fatalf("no process has told any pair: %s", logged.String())
			return nil
		}
	}
	assert.Equal(t, []*terminate.Pair{pair}, next())

	for range 2 {
		pid := s.PID()
		require.NoError(t, unix.Kill(pid, unix.SIGKILL))
		polltest.Require(t, func() bool { return s.PID() != pid && s.PID() != 0 }, patience, time.Millisecond)
		for len(told) > 0 { // of the process before
			<-told
		}
		require.NoError(t, s.Configure(t.Context(), secured())) // tells the whole, to be sure that it is this process's
		assert.Equal(t, []*terminate.Pair{pair}, next())
	}
	require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		assert.False(t, bytes.Contains(b, pair.Ends[0].Receive.Keys[0].Master), path)
		return err
	}))
	assert.NotContains(t, logged.String(), "not handed over")
	assert.NotContains(t, logged.String(), "inline")
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
