package polltest

import (
	"fmt"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestUntil(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			name         string
			holds, takes time.Duration
			want         bool
			after        time.Duration
		}{
			{"at once", 0, 0, true, 0},
			{"with the fifth look", 45 * time.Millisecond, 0, true, 50 * time.Millisecond},
			{"at the limit", time.Second, 0, true, time.Second},
			{"later", time.Second + time.Millisecond, 0, false, time.Second},
			{"in time, with a look that takes long", 900 * time.Millisecond, 700 * time.Millisecond, true, 2100 * time.Millisecond},
		} {
			began := time.Now()
			got := Until(func() bool {
				holds := time.Since(began) >= c.holds
				time.Sleep(c.takes)
				return holds
			}, time.Second, 10*time.Millisecond)
			assert.Equal(t, c.want, got, c.name)
			assert.Equal(t, c.after, time.Since(began), c.name)
		}
	})
}

// standIn is a test that fails.
type standIn struct{ said []string }

func (*standIn) Helper()                     {}
func (s *standIn) Errorf(f string, a ...any) { s.said = append(s.said, fmt.Sprintf(f, a...)) }
func (s *standIn) FailNow()                  { runtime.Goexit() } // as testing.T's does

// A condition that fails ends the test at once, with what it said and nothing else.
func TestAConditionMayFail(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, s, passed := time.Now(), &standIn{}, false
		go func() {
			Require(s, func() bool { s.Errorf("no status"); s.FailNow(); return false }, time.Hour, time.Second)
			passed = true
		}()
		synctest.Wait()
		assert.Equal(t, []string{"no status"}, s.said)
		assert.Zero(t, time.Since(began))
		assert.False(t, passed)

		s = &standIn{}
		go func() {
			Require(s, func() bool { return false }, time.Second, time.Second, "of %d", 3)
			passed = true
		}()
		time.Sleep(time.Minute)
		synctest.Wait()
		assert.Len(t, s.said, 1)
		assert.Regexp(t, `(?s)not within 1s.*of 3`, s.said)
		assert.False(t, passed)
		assert.True(t, Assert(s, func() bool { return true }, 0, time.Second))
	})
}
