package relay

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"ringway/sip/dialog"
)

func flowTo(port uint16) dialog.Flow {
	to := netip.AddrPortFrom(netip.MustParseAddr("10.1.10.9"), port)
	return dialog.NewFlow(netip.MustParseAddr("10.2.20.5"), to, false)
}

// asked runs f beside an asker, and gives what the daemon was asked with the times.
func asked(t *testing.T, whole []Change, f func(a *asker)) (requests []flowsRequest, at []time.Duration) {
	synctest.Test(t, func(*testing.T) {
		began := time.Now()
		a := newAsker(func(_ context.Context, r flowsRequest) error {
			requests, at = append(requests, r), append(at, time.Since(began))
			return nil
		}, func() []Change { return whole })
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { a.run(ctx); close(done) }()
		f(a)
		time.Sleep(10 * closeAfter)
		cancel()
		<-done
	})
	return requests, at
}

// What many calls close is one change a moment later; what opens meanwhile is told at once.
func TestWhatClosesWaitsForOthers(t *testing.T) {
	requests, at := asked(t, nil, func(a *asker) {
		a.tell(Change{Close: []dialog.Flow{flowTo(4000)}})
		time.Sleep(closeAfter / 2)
		a.tell(Change{Open: []dialog.Flow{flowTo(5000)}, Close: []dialog.Flow{flowTo(4002)}})
	})
	assert.Equal(t, []time.Duration{closeAfter / 2, closeAfter}, at)
	assert.Equal(t, []Change{{Open: []dialog.Flow{flowTo(5000)}}}, requests[0].Changes)
	assert.ElementsMatch(t, []dialog.Flow{flowTo(4000), flowTo(4002)}, requests[1].Changes[0].Close)
}

// A flow that is needed again before its end was told stays open.
func TestAFlowThatIsNeededAgainIsNotClosed(t *testing.T) {
	requests, _ := asked(t, nil, func(a *asker) {
		a.tell(Change{Close: []dialog.Flow{flowTo(4000), flowTo(4002)}})
		a.tell(Change{Open: []dialog.Flow{flowTo(4000)}})
	})
	assert.Equal(t, []flowsRequest{
		{Changes: []Change{{Open: []dialog.Flow{flowTo(4000)}}}},
		{Changes: []Change{{Close: []dialog.Flow{flowTo(4002)}}}},
	}, requests)
}

// The whole says what is closed, too.
func TestTheWholeEndsWhatWaits(t *testing.T) {
	whole := []Change{{Open: []dialog.Flow{flowTo(5000)}}}
	requests, at := asked(t, whole, func(a *asker) {
		a.tell(Change{Close: []dialog.Flow{flowTo(4000)}})
		a.tellAll()
	})
	assert.Equal(t, []flowsRequest{{Whole: true, Changes: whole}}, requests)
	assert.Equal(t, []time.Duration{0}, at)
}

// Too many to wait are told at once.
func TestWhatWaitsToBeClosedIsBounded(t *testing.T) {
	_, at := asked(t, nil, func(a *asker) {
		for i := range maxQueued {
			a.tell(Change{Close: []dialog.Flow{flowTo(uint16(1024 + i))}})
		}
	})
	assert.Equal(t, []time.Duration{0}, at)
}
