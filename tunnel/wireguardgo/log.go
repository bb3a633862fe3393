package wireguardgo

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// logEvery is how often one kind of error of the device is told: a stranger can cause some, and
// a failing route one for each batch.
const logEvery = 10 * time.Second

// The device package tells some things only its log. A test holds these words to the version in use.
const (
	saysSource4   = "IPv4 packet with disallowed source address from %v"
	saysSource6   = "IPv6 packet with disallowed source address from %v"
	saysResponse  = "%v - Received handshake response"
	saysKeepalive = "%v - Receiving keepalive packet"
)

// newDeviceLog turns the device's log into ours.
func newDeviceLog(h *hub) *device.Logger {
	var mu sync.Mutex
	type told struct {
		at    time.Time
		quiet int
	}
	last := make(map[string]told) // by format: as many as the device package has
	return &device.Logger{
		Verbosef: func(format string, args ...any) {
			switch format {
			case saysSource4, saysSource6:
				h.drops.add(dropSource, 1)
				return
			case saysResponse, saysKeepalive: // a session begins
				h.peers.kick()
			}
			if h.log.Enabled(context.Background(), slog.LevelDebug) {
				h.log.Debug("wireguard-go", "says", fmt.Sprintf(format, args...))
			}
		},
		Errorf: func(format string, args ...any) {
			mu.Lock()
			t := last[format]
			now := time.Now()
			quiet := !t.at.IsZero() && now.Sub(t.at) < logEvery
			if quiet {
				t.quiet++
			} else {
				last[format] = told{at: now}
			}
			suppressed := t.quiet
			if quiet {
				last[format] = t
			}
			mu.Unlock()
			if !quiet {
				h.log.Warn("wireguard-go", "says", fmt.Sprintf(format, args...), "suppressed", suppressed)
			}
		},
	}
}
