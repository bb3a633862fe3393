package datagram

// Bounds of a message of several datagrams (UDP GSO).
const (
	MaxSegments = 64         // the kernel's limit (UDP_MAX_SEGMENTS of 2018)
	MaxPayload  = 65535 - 48 // leaves space for the headers of either family
)

// Segments collects the lengths of datagrams that can leave as one message: all have the length of the first,
// except that the last may be shorter.
type Segments struct {
	Size  int // of each but the last
	Count int

	total, last int
}

// StartSegments begins a message with a datagram of n bytes.
func StartSegments(n int) Segments { return Segments{Size: n, Count: 1, total: n, last: n} }

// Add takes in a datagram of n bytes, unless the message would exceed maxPayload bytes or the datagram does
// not fit in.
func (s *Segments) Add(n, maxPayload int) bool {
	if n > s.Size || s.last < s.Size || s.Count == MaxSegments || s.total+n > min(maxPayload, MaxPayload) {
		return false
	}
	s.Count++
	s.total += n
	s.last = n
	return true
}
