package flowqueue

import "time"

// SiteLimit is how much may be under way to a site after a packet left that took so long with so much under
// way to it, itself included: what leaves to that site in the time wait (Little's law), so that a site behind
// a slow line has little where nobody can pass it. It falls at once and doubles at most, since a packet that
// found nothing before it says little. The unit is the caller's.
func SiteLimit(limit, most, underWay int, took, wait time.Duration) int {
	next := most
	if took > 0 {
		if n := float64(underWay) * float64(wait) / float64(took); n < float64(most) {
			next = int(n)
		}
	}
	return max(min(next, 2*limit, most), 1)
}
