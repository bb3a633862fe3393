package plane

import (
	"net/netip"
	"time"

	"ringway/srtp/dtls"
	"ringway/srtp/media"
)

// Stats is what the process says of itself.
type Stats struct {
	Legs   []LegStats        `json:"legs"`
	Totals media.Totals      `json:"totals"`
	Drops  map[string]uint64 `json:"drops,omitempty"` // by reason, of all legs that there are and were
	DTLS   dtls.Counters     `json:"dtls"`
}

// LegStats is what is known of a leg: counters as in media.Counts.
type LegStats struct {
	ID     uint64 `json:"id"`
	Pair   uint64 `json:"pair"`
	Keying Keying `json:"keying"`
	// Keyed says that packets can be opened and protected, or that the leg is in clear.
	Keyed  bool           `json:"keyed"`
	Remote netip.AddrPort `json:"remote"`

	ReceivedPackets uint64            `json:"received_packets"`
	ReceivedBytes   uint64            `json:"received_bytes"`
	SentPackets     uint64            `json:"sent_packets"`
	SentBytes       uint64            `json:"sent_bytes"`
	LastReceived    time.Time         `json:"last_received,omitzero"`
	Recovered       uint64            `json:"recovered,omitempty"`
	Moved           uint64            `json:"moved,omitempty"`
	Rotations       uint64            `json:"rotations,omitempty"`
	Drops           map[string]uint64 `json:"drops,omitempty"`

	// SendMKI names the key that Sealed counts; Opened counts by the MKI of each key. MKIs are in hexadecimal digits.
	Sealed  uint64            `json:"sealed,omitempty"`
	SendMKI string            `json:"send_mki,omitempty"`
	Opened  map[string]uint64 `json:"opened,omitempty"`
}

func statsOf(c *media.Counts) LegStats {
	return LegStats{
		ID: c.ID, Remote: c.Remote, ReceivedPackets: c.ReceivedPackets, ReceivedBytes: c.ReceivedBytes,
		SentPackets: c.SentPackets, SentBytes: c.SentBytes, LastReceived: c.LastReceived, Recovered: c.Recovered,
		Moved: c.Moved, Rotations: c.Rotations, Drops: c.Drops, Sealed: c.Sealed,
	}
}
