package rtnl_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"ringway/routing"
	"ringway/routing/rtnl"
)

func TestWatchTellsAndRepairs(t *testing.T) {
	box := newBox(t)
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	want := routing.Want(branch())
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	events := make(chan rtnl.Event, 100)
	done := make(chan error, 1)
	go func() {
		done <- box.Do(func() error {
			return rtnl.Watch(ctx, func(e rtnl.Event) { events <- e })
		})
	}()
	next := func(which func(rtnl.Event) bool) {
		t.Helper()
		deadline := time.After(10 * time.Second)
		for {
			select {
			case e := <-events:
				if which(e) {
					return
				}
			case <-deadline:
				t.Fatal("no such event")
			}
		}
	}
	next(func(e rtnl.Event) bool { return e.Lost })
	apply(t, box, routing.Diff(want, observe(t, box, want)))
	var all rtnl.Event // a burst is one event, or a few on a busy machine
	next(func(e rtnl.Event) bool {
		all.Rules, all.Routes = all.Rules || e.Rules, all.Routes || e.Routes
		all.Links, all.Addresses = all.Links || e.Links, all.Addresses || e.Addresses
		return all.Rules && all.Routes && all.Links && all.Addresses
	})

	box.Run("ip", "route", "flush", "table", "5271")
	next(func(e rtnl.Event) bool { return e.Routes })
	box.Run("ip", "rule", "del", "pref", "5230")
	next(func(e rtnl.Event) bool { return e.Rules })
	for _, command := range []string{"net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0",
		"net.ipv4.conf.voice0.rp_filter=0"} {
		box.Run("sysctl", "-q", "-w", command)
		next(func(e rtnl.Event) bool { return e.Sysctls })
	}
	box.Run("ip", "addr", "flush", "dev", "data0")
	next(func(e rtnl.Event) bool { return e.Addresses })
	box.Run("ip", "link", "set", "voice0", "down")
	next(func(e rtnl.Event) bool { return e.Links })
	apply(t, box, routing.Diff(want, observe(t, box, want)))
	assert.Empty(t, texts(routing.Diff(want, observe(t, box, want))), "repaired")

	// Down and up again, both reported as Links, only the second as a carrier. So is a change at the far end.
	box.Run("ip", "link", "add", "line0", "type", "veth", "peer", "name", "line1")
	box.Run("ip", "link", "set", "line0", "up")
	box.Run("ip", "link", "set", "line1", "up")
	var up []string
	next(func(e rtnl.Event) bool {
		up = append(up, e.CarrierUp...)
		return slices.Contains(up, "line0") && slices.Contains(up, "line1")
	})
	box.Run("ip", "link", "set", "line1", "down")
	next(func(e rtnl.Event) bool {
		assert.Empty(t, e.CarrierUp)
		return e.Links
	})
	box.Run("ip", "link", "set", "line0", "txqueuelen", "77")
	next(func(e rtnl.Event) bool {
		assert.Empty(t, e.CarrierUp, "any other change of a link is not one of its carrier")
		return e.Links
	})
	box.Run("ip", "link", "set", "line1", "up")
	next(func(e rtnl.Event) bool { return slices.Contains(e.CarrierUp, "line0") })

	cancel()
	require.NoError(t, <-done)
}
