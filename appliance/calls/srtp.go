package calls

import (
	"fmt"
	"time"

	"ringway/appliance/problem"
)

// noMediaLately is how long a call whose media could not be secured is a problem, if no other follows.
const noMediaLately = time.Hour

// withoutMedia are the problems of calls that have no media because the policy of SRTP does not allow it. It is called
// with c.mu held.
func (c *Calls) withoutMedia(now time.Time) (all []problem.Problem) {
	if n := c.stats.Barred; n > 0 {
		all = append(all, problem.Problem{
			Subject: "srtp policy", Severity: problem.Critical,
			Text:   fmt.Sprintf("calls without media, because SRTP is required since they were set up: %d legs", n),
			Action: "have them call again, or set srtp of their networks and sites back",
		})
	}
	if x := c.stats.NoMedia; x != nil && now.Sub(x.At) <= noMediaLately {
		all = append(all, problem.Problem{
			Subject: "srtp", Severity: problem.Warning,
			Text: fmt.Sprintf("a call was refused, or is without media, as it could not be secured; "+
				"the latest from %s to %s: %s", x.From, x.To, x.Reason),
			Action: "give the phone SRTP, or lower srtp of its network (ringway_sip_refused_total counts them)",
		})
	}
	return all
}
