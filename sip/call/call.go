// Package call is what people are told of a call: the types of `ringway calls --json`, and their text.
package call

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Call is one leg of a call: what two hops exchange. Fields are added, never renamed.
type Call struct {
	ID        string    `json:"id"` // short, of the leg
	CallID    string    `json:"call_id"`
	From      string    `json:"from"`
	To        string    `json:"to"`
	Hops      [2]string `json:"hops"` // addresses of the caller's and the callee's side
	State     string    `json:"state"`
	Began     time.Time `json:"began"`
	Answered  time.Time `json:"answered,omitzero"`
	Ended     time.Time `json:"ended,omitzero"`
	Emergency bool      `json:"emergency,omitempty"`
	Why       string    `json:"why,omitempty"`    // it ended
	Status    int       `json:"status,omitempty"` // the final error that ended it
	Codecs    []string  `json:"codecs,omitempty"` // of the latest description, one for each medium
	Holes     int       `json:"holes"`            // the most flows that it needed at once
	Flows     []Flow    `json:"flows"`            // of media, as long as the call needs them
	Media     []Flow    `json:"media,omitempty"`  // flows of RTP that it has had, at most MaxMedia

	// SRTP is how media is secured between this box and caller and callee, where the box relays it; nil: it does not.
	SRTP []string `json:"srtp,omitempty"`

	Sent     *Quality `json:"sent,omitempty"`     // of media from this branch into the tunnel; nil: not measured
	Received *Quality `json:"received,omitempty"` // of media from the tunnel to this branch
}

// MaxMedia bounds Call.Media.
const MaxMedia = 32

// Flow is one direction of media of a call.
type Flow struct {
	From string `json:"from"` // an address; of the hop that was asked, if the sender is not known yet
	To   string `json:"to"`   // address and port
	RTCP bool   `json:"rtcp,omitempty"`
}

// Live reports whether the call has not ended.
func (c *Call) Live() bool { return c.Ended.IsZero() }

// Duration is how long the call has been talking, or ringing if nobody answered.
func (c *Call) Duration(now time.Time) time.Duration {
	from, until := c.Answered, c.Ended
	if from.IsZero() {
		from = c.Began
	}
	if until.IsZero() {
		until = now
	}
	return max(until.Sub(from), 0)
}

// Involves reports whether an address is one of the hops, or sends or receives media.
func (c *Call) Involves(address string) bool {
	if c.Hops[0] == address || c.Hops[1] == address {
		return true
	}
	for _, f := range c.Flows {
		host := f.To
		if colon := strings.LastIndexByte(host, ':'); colon >= 0 {
			host = strings.Trim(host[:colon], "[]")
		}
		if f.From == address || host == address {
			return true
		}
	}
	return false
}

// Print writes a table of the calls.
func Print(w io.Writer, now time.Time, calls []Call) error {
	if len(calls) == 0 {
		_, err := fmt.Fprintln(w, "no calls")
		return err
	}
	// Where this box re-keys no media, there is no column for that.
	secured := slices.ContainsFunc(calls, func(c Call) bool { return len(c.SRTP) > 0 })
	column := func(text string) string {
		if !secured {
			return ""
		}
		return text + "\t"
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "ID\tFROM\tTO\tBETWEEN\tSTATE\tTIME\tCODEC\t%sFLOWS\tSENT\tRECEIVED\n", column("SRTP"))
	for i := range calls {
		c := &calls[i]
		state := c.State
		if c.Why != "" {
			state += " (" + strings.ReplaceAll(c.Why, "_", " ")
			if c.Status > 0 {
				state += fmt.Sprintf(", %d", c.Status)
			}
			state += ")"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s, %s\t%s\t%s\t%s\t%s%d\t%s\t%s\n", c.ID, cmp.Or(c.From, "-"), cmp.Or(c.To, "-"),
			c.Hops[0], c.Hops[1], state, c.Duration(now).Round(time.Second),
			cmp.Or(strings.Join(c.Codecs, ","), "-"), column(cmp.Or(strings.Join(c.SRTP, ", "), "-")), len(c.Flows),
			c.Sent, c.Received)
	}
	return t.Flush()
}
