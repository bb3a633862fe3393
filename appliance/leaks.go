package appliance

import (
	"fmt"
	"sync"
	"time"

	"ringway/appliance/problem"
	"ringway/firewall"
	"ringway/firewall/nft"
)

// leakShown is how long packets that were about to leave in clear stay a problem after the last of them.
const leakShown = 10 * time.Minute

// leakKinds are the counters of packets that only a wrong route sends to a WAN, and what they were for.
var leakKinds = map[string]string{
	firewall.CounterLeakWAN: "for a site",
	firewall.CounterOwnWAN:  "for a network of this box",
}

// leaks knows since when the counters of leakKinds rise.
type leaks struct {
	mu   sync.Mutex
	seen map[string]uint64
	rose map[string]time.Time
}

// look compares counters with the reading before, of which the first only says where they begin.
func (l *leaks) look(counters map[string]nft.Counter, now time.Time) (problems []problem.Problem) {
	l.mu.Lock()
	defer l.mu.Unlock()

	first := l.seen == nil
	if first {
		l.seen, l.rose = map[string]uint64{}, map[string]time.Time{}
	}
	for name, what := range leakKinds {
		n := counters[name].Packets
		if n > l.seen[name] && !first {
			l.rose[name] = now
		}
		l.seen[name] = n // less after the table was made again
		if at, ok := l.rose[name]; ok && now.Sub(at) < leakShown {
			problems = append(problems, problem.Problem{
				Subject: name, Severity: problem.Critical,
				Text: fmt.Sprintf("packets %s were routed to a WAN in clear and dropped, %d so far", what, n),
				Action: "look for a route on a WAN that lies inside these networks (ip route, ip rule): another program's, or of " +
					"a lease or an advertisement",
			})
		}
	}
	return problems
}
