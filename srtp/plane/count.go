package plane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"ringway/durable"
)

// The count of pairs is all that is kept of calls in a file: by it the next daemon knows how many it has lost if it
// finds no process.

func countPath(runDir string) string { return filepath.Join(runDir, "media.count") }

func removeCount(runDir string) error {
	if err := os.Remove(countPath(runDir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove the count of pairs: %w", err)
	}
	return nil
}

// readCount is 0 where there is none.
func readCount(runDir string) int {
	b, err := os.ReadFile(countPath(runDir))
	if err != nil {
		return 0
	}
	n, err := strconv.Atoi(string(bytes.TrimSpace(b)))
	if err != nil || n < 0 {
		return 0
	}
	return n
}

// countEvery is how often the count is written, where it has changed.
const countEvery = time.Second

func (s *Supervisor) keepCount(ctx context.Context) {
	tick := time.NewTicker(countEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := s.writeCount(); err != nil {
				s.log.Warn("the count of pairs is not kept", "error", err)
			}
		}
	}
}

func (s *Supervisor) writeCount() error {
	s.mu.Lock()
	n, was, wanted := len(s.book.pairs), s.counted, s.wanted
	s.mu.Unlock()
	if n == was || !wanted {
		return nil
	}
	if err := durable.WriteFile(countPath(s.cfg.RunDir), fmt.Appendf(nil, "%d\n", n), 0o600); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counted = n
	return nil
}
