package nft

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"ringway/firewall"
)

const box4, boxWAN4 = "10.1.10.1", "198.51.100.2"

// What the box itself asks a far reflector takes the tunnel that its code point says; nothing else of the
// box is believed.
func TestOwnProbesChooseTheirTunnel(t *testing.T) {
	t.Parallel()
	w := newWorld(t, branch())
	const ef = 46 << 2
	for _, c := range []struct {
		name    string
		sport   int
		dst     string
		dport   int
		tos     int
		dev     string
		mark    uint32
		arrives int
	}{
		{"EF", 30000, farPhone4, 862, ef, "rw-voice", 0x1200, ef},
		{"unmarked", 30001, farPC4, 862, 0, "rw-data", 0x1600, 0},
		{"the same connection, now marked", 30001, farPC4, 862, ef, "rw-voice", 0x1200, ef},
		{"EF to another port", 30002, farPC4, 863, ef, "rw-data", 0x1600, 0},
	} {
		to, from := w.listen(w.far, c.dst, c.dport), w.listen(w.edge, box4, c.sport)
		w.send(from, c.dst, c.dport, c.tos)
		assert.Equal(t, c.arrives, w.receive(to, c.name), c.name)
		w.assertSeen(c.dev, c.dport, c.mark, "none", map[int]string{0: "cs0", ef: "ef"}[c.arrives])
		from.Close()
		to.Close()
	}
}

// Probes reach the box from tunnels alone; the answer goes back as the question came.
func TestReflectorIsReachedFromTunnelsAlone(t *testing.T) {
	t.Parallel()
	in := branch()
	in.Reflector = true
	w := newWorld(t, in)
	box, far := w.listen(w.edge, box4, 862), w.listen(w.far, farPhone4, 31000)
	w.send(far, box4, 862, 46<<2)
	assert.Equal(t, 46<<2, w.receive(box, "from the voice tunnel"))
	w.send(box, farPhone4, 31000, 0)
	assert.Equal(t, 46<<2, w.receive(far, "the answer, unmarked"))
	w.assertSeen("rw-voice", 31000, 0x1200, "none", "ef")

	w.send(w.listen(w.internet, internet4, 31001), boxWAN4, 862, 46<<2)
	w.assertCounter(firewall.CounterInputWANDrop, 1, "from the WAN")
	w.send(w.listen(w.phone, phone4, 31002), box4, 862, 46<<2)
	w.assertCounter(firewall.CounterInputLANDrop, 1, "from a phone")
	w.send(w.listen(w.pc, pc4, 31003), box4, 862, 0)
	w.assertCounter(firewall.CounterInputLANDrop, 2, "from a PC")

	in.Reflector = false
	applyIn(t, w.edge, firewall.Want(in))
	w.send(w.listen(w.far, farPhone4, 31004), box4, 862, 46<<2)
	w.assertCounter(firewall.CounterInputTunnelDrop, 1, "the reflector is off")
}
