package qos

// Mark is Ringway's part of skb->mark and of the conntrack mark. ONE layout, used by
// firewall (which sets it), routing (whose rules read it) and tunnel (whose sockets carry it):
//
//	bit  31..16  foreign: never read, never written (masked writes only)
//	bit  15      relayed: the packet goes to a relay on this box, or the media process sent it; on a connection: a
//	             relay sent its packets
//	bit  14..13  outer:   1 = ciphertext of the voice tunnel, 2 = of the data tunnel
//	bit  12      inner:   the destination is a site; the packet belongs in a tunnel
//	bit  11..9   class:   1 media, 2 signalling, 3 data, 4 background; 0 not classified yet
//	bit  8..5    line:    by which WAN the connection leaves; 0 none, and foreign where there is one WAN only
//	bit  4..0    foreign
type Mark uint32

// Fields of the mark.
const (
	MarkRelayed    Mark = 1 << 15
	MarkOuterMask  Mark = 3 << 13
	MarkOuterVoice Mark = 1 << 13
	MarkOuterData  Mark = 2 << 13
	MarkInner      Mark = 1 << 12
	MarkClassMask  Mark = 7 << 9
	MarkAll        Mark = MarkRelayed | MarkOuterMask | MarkInner | MarkClassMask

	// MarkLineMask is Ringway's only with several WANs. It is no part of MarkAll.
	MarkLineMask Mark = 15 << 5
)

// Marks of the media process's raw sockets, by which the firewall knows what it may send.
const (
	MarkMediaLAN    = MarkRelayed | 1<<9             // to LANs and WANs, of class media
	MarkMediaTunnel = MarkRelayed | MarkInner | 1<<9 // to sites
)

// MaxLine is the largest number of a line.
const MaxLine = 15

// LineMark is the line field's value for a line's number, 1 to MaxLine.
func LineMark(n int) Mark { return Mark(n) << 5 & MarkLineMask }

// ClassMark is the class field's value for c, 0 for an unknown name.
func ClassMark(c ClassName) Mark {
	for i, n := range ClassNames {
		if n == c {
			return Mark(i+1) << 9
		}
	}
	return 0
}
