package qos

// QueueStats are the counters of one class's queue on one WAN, for status.
type QueueStats struct {
	WAN            string    `json:"wan"`
	Class          ClassName `json:"class"`
	Rate           BitRate   `json:"rate"`
	Ceil           BitRate   `json:"ceil"`
	Limit          ByteCount `json:"limit"`   // the leaf's bound
	Backlog        ByteCount `json:"backlog"` // waiting now
	BacklogPackets uint64    `json:"backlog_packets"`
	Sent           ByteCount `json:"sent"`
	SentPackets    uint64    `json:"sent_packets"`
	Drops          uint64    `json:"drops"`      // packets that found the leaf full
	Overlimits     uint64    `json:"overlimits"` // times the class had to wait for its ceiling
	Borrowed       uint64    `json:"borrowed"`   // packets sent beyond its own rate
}

// ClassOf is ClassID's inverse, for reading a tree back.
func ClassOf(h Handle) (ClassName, bool) {
	for _, n := range ClassNames {
		if Handle(ClassID(n)) == h {
			return n, true
		}
	}
	return "", false
}
