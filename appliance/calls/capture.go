package calls

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"ringway/sip/call"
)

// Capture permits the packets of a call to be written to a file, and notes who asked. The caller, which is root, takes
// the packets itself: the daemon reads none. Sound is what is said in the call.
func (c *Calls) Capture(ctx context.Context, id string, sound bool, who string) (call.Call, error) {
	c.mu.Lock()
	allowed := c.wantCalls.Recording
	c.mu.Unlock()
	if sound && !allowed {
		c.log.Warn("the sound of a call may not be written", "call", id, "who", who)
		return call.Call{}, errors.New("what is said in calls may not be written to a file (calls.recording: forbidden); " +
			"where law and the parties permit it, set calls.recording: allowed")
	}
	all, err := c.relay.Calls(ctx)
	if err != nil {
		return call.Call{}, err
	}
	i := slices.IndexFunc(all, func(x call.Call) bool { return x.ID == id })
	if i < 0 {
		return call.Call{}, fmt.Errorf("there is no call %s (ringway calls lists the calls)", id)
	}
	x := all[i]
	if sound {
		c.log.Warn("the sound of a call is written to a file", "call", x.ID, "from", x.From, "to", x.To, "who", who)
	} else {
		c.log.Info("headers of a call's packets are written to a file", "call", x.ID, "from", x.From, "to", x.To, "who", who)
	}
	return x, nil
}
