package rawudp

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
)

func FuzzParse(f *testing.F) {
	from, to := netip.MustParseAddrPort("198.51.100.2:50000"), netip.MustParseAddrPort("10.2.10.53:53")
	f.Add(build(from, to, []byte("question")))
	f.Add([]byte{0x4f, 0, 0, 60})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, _, payload, ok := parse(b); ok {
			assert.LessOrEqual(t, len(payload), len(b)-headerLength)
		}
		_, _, _ = parseARP(b)
	})
}

func TestWhatIsBuiltIsRead(t *testing.T) {
	from, to := netip.MustParseAddrPort("198.51.100.2:50000"), netip.MustParseAddrPort("10.2.10.53:53")
	p := build(from, to, []byte("question"))
	gotFrom, gotTo, payload, ok := parse(append(p, 0, 0, 0)) // Ethernet pads short frames
	assert.True(t, ok)
	assert.Equal(t, from, gotFrom)
	assert.Equal(t, to, gotTo)
	assert.Equal(t, "question", string(payload))
	assert.Zero(t, checksum(0, p[:20]), "the header's checksum is right")
}
