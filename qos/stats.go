package qos

// QueueStats are the counters of one class's queue to one site on one WAN, for status; or, with
// ClassDownlink, of what comes in from one WAN on one LAN.
type QueueStats struct {
	WAN string `json:"wan"` // the interface of the queue: of a LAN with ClassDownlink
	// Local for what goes to no site; with ClassDownlink the WAN that it came from
	Site           string    `json:"site"`
	Class          ClassName `json:"class"`
	Rate           BitRate   `json:"rate"`
	Ceil           BitRate   `json:"ceil"`
	Limit          ByteCount `json:"limit"`   // the leaf's bound; 0 where it has none in bytes
	Backlog        ByteCount `json:"backlog"` // waiting now
	BacklogPackets uint64    `json:"backlog_packets"`
	Sent           ByteCount `json:"sent"`
	SentPackets    uint64    `json:"sent_packets"`
	Drops          uint64    `json:"drops"` // packets that found the leaf full, or that CoDel took out
	// packets marked (ECN) instead of dropped; absent where the leaf does not mark
	Marks      *uint64 `json:"marks,omitempty"`
	Overlimits uint64  `json:"overlimits"` // times the class had to wait for its ceiling
	Borrowed   uint64  `json:"borrowed"`   // packets sent beyond its own rate
}
