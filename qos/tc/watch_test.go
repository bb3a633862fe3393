package tc

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/netnstest"
)

func TestWatchTellsOfQueues(t *testing.T) {
	ns, far := netnstest.New(t), netnstest.New(t)
	netnstest.Veth(t, ns, "wan0", far, "wan0")
	ctx, cancel := context.WithCancel(t.Context())
	ready, told, ended := make(chan struct{}), make(chan struct{}, 100), make(chan error, 1)
	go func() {
		_ = ns.Do(func() error {
			ended <- Watch(ctx, func() { close(ready) }, func() { told <- struct{}{} })
			return nil
		})
	}()
	<-ready
	for _, line := range [][]string{
		{"qdisc", "add", "dev", "wan0", "root", "handle", "1:", "htb", "default", "30"},
		{"class", "add", "dev", "wan0", "parent", "1:", "classid", "1:1", "htb", "rate", "1mbit"},
		{"qdisc", "del", "dev", "wan0", "root"},
	} {
		ns.Run("tc", line...)
		select {
		case <-told:
		case <-time.After(20 * time.Second):
			assert.Fail(t, "not told of", "%v", line)
		}
	}
	cancel()
	require.NoError(t, <-ended)
}
