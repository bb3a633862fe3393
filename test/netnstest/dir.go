package netnstest

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// Dir makes a directory for the programs that a TestMain builds. remove takes it away; so does an interrupt of the
// tests, which then end by it.
func Dir(pattern string) (dir string, remove func(), err error) {
	dir, err = os.MkdirTemp("", pattern)
	if err != nil {
		return "", nil, err
	}
	interrupts := []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGHUP, unix.SIGPIPE}
	came := make(chan os.Signal, 1)
	signal.Notify(came, interrupts...)
	go func() {
		s := <-came
		os.RemoveAll(dir)
		signal.Reset(interrupts...)
		_ = unix.Kill(os.Getpid(), s.(unix.Signal))
	}()
	return dir, func() { os.RemoveAll(dir) }, nil
}
