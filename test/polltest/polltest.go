// Package polltest waits in a test until something holds. It looks in the goroutine that calls it, which is the test's
// own, so that a condition may use require and t.Fatal. testify's Eventually looks in another one: t.FailNow ends that
// goroutine and not the test, which then waits for the whole limit and reports the wrong thing. Only tests import it.
package polltest

import (
	"fmt"
	"time"

	"github.com/stretchr/testify/assert"
)

// T is the part of a test, or of what stands for one, that is needed.
type T interface {
	Helper()
	Errorf(format string, args ...any)
	FailNow()
}

// Require ends the test if the condition does not come to hold within limit. It looks at once, and then every tick.
func Require(t T, condition func() bool, limit, tick time.Duration, messageAndArgs ...any) {
	t.Helper()
	if !Assert(t, condition, limit, tick, messageAndArgs...) {
		t.FailNow()
	}
}

// Assert is Require, but the test goes on.
func Assert(t T, condition func() bool, limit, tick time.Duration, messageAndArgs ...any) bool {
	t.Helper()
	return Until(condition, limit, tick) || assert.Fail(t, fmt.Sprintf("not within %s", limit), messageAndArgs...)
}

// Until reports whether the condition comes to hold within limit. A condition that takes long is asked once more when
// the limit has passed: what holds by then was not late.
func Until(condition func() bool, limit, tick time.Duration) bool {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for began := time.Now(); ; <-ticker.C {
		late := time.Since(began) >= limit // before it is asked
		if condition() {
			return true
		}
		if late {
			return false
		}
	}
}
