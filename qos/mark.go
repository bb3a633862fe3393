package qos

// Mark is Ringway's part of skb->mark and of the conntrack mark. ONE layout, used by
// firewall (which sets it), routing (whose rules read it) and tunnel (whose sockets carry it):
//
//	bit  31..16  foreign: never read, never written (masked writes only)
//	bit  15      relayed: the packet goes to a relay on this box; on a connection: a relay sent its packets
//	bit  14..13  outer:   1 = ciphertext of the voice tunnel, 2 = of the data tunnel
//	bit  12      inner:   the destination is a site; the packet belongs in a tunnel
//	bit  11..9   class:   1 media, 2 signalling, 3 data, 4 background; 0 not classified yet
//	bit  8..0    foreign
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
)

// ClassMark is the class field's value for c, 0 for an unknown name.
func ClassMark(c ClassName) Mark {
	for i, n := range ClassNames {
		if n == c {
			return Mark(i+1) << 9
		}
	}
	return 0
}
