package echo

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/netnstest"
)

// A host is asked over one of two interfaces, and the kernel of the other end answers.
func TestTheInterfaceDecides(t *testing.T) {
	t.Parallel()
	box, far := netnstest.New(t), netnstest.New(t)
	netnstest.Veth(t, box, "wan0", far, "eth0")
	netnstest.Veth(t, box, "lte0", far, "eth1")
	for _, c := range [][]string{
		{"addr", "add", "198.51.100.2/24", "dev", "wan0"}, {"addr", "add", "192.0.2.2/24", "dev", "lte0"},
		{"-6", "addr", "add", "2001:db8::2/64", "dev", "lte0", "nodad"},
		{"route", "add", "default", "via", "198.51.100.1", "metric", "10"},
		{"route", "add", "default", "via", "192.0.2.1", "metric", "20"},
	} {
		box.Run("ip", c...)
	}
	for _, c := range [][]string{
		{"addr", "add", "198.51.100.1/24", "dev", "eth0"}, {"addr", "add", "192.0.2.1/24", "dev", "eth1"},
		{"-6", "addr", "add", "2001:db8::1/64", "dev", "eth1", "nodad"}, {"addr", "add", "203.0.113.9/32", "dev", "lo"},
	} {
		far.Run("ip", c...)
	}
	ask := func(device, to string) (m Message, err error) {
		host := netip.MustParseAddr(to)
		var c *Conn
		require.NoError(t, box.Do(func() (err error) { c, err = Open(device, host.Is6()); return }))
		defer c.Close()
		want := Message{ID: 7, Seq: 9, Cookie: 0x0123456789abcdef}
		if err := c.Send(host, want); err != nil {
			return m, err
		}
		require.NoError(t, c.conn.SetReadDeadline(time.Now().Add(3*time.Second)))
		from, m, err := c.Receive()
		if err == nil {
			assert.Equal(t, host, from)
			assert.Equal(t, want, m)
		}
		return m, err
	}
	for _, host := range []string{"192.0.2.1", "203.0.113.9", "2001:db8::1"} {
		_, err := ask("lte0", host)
		assert.NoError(t, err, host)
	}
	_, err := ask("wan0", "203.0.113.9")
	assert.NoError(t, err)
	far.Run("ip", "link", "set", "eth0", "down")
	far.Run("ip", "link", "set", "eth0", "up")
	far.Run("ip", "addr", "del", "203.0.113.9/32", "dev", "lo")
	box.Run("ip", "link", "set", "wan0", "down")
	_, err = ask("wan0", "203.0.113.9")
	assert.Error(t, err, "it does not leave by the other interface")
	_, err = Open("none0", false)
	assert.Error(t, err)
}

func TestParse(t *testing.T) {
	m := Message{ID: 1, Seq: 2, Cookie: 3}
	for _, ipv6 := range []bool{false, true} {
		b := m.encode(ipv6)
		_, err := Parse(b, ipv6)
		assert.ErrorIs(t, err, ErrOther, "the question itself")
		b[0] = reply4
		if ipv6 {
			b[0] = reply6
		} else {
			b[2], b[3] = 0, 0
			sum := checksum(b)
			b[2], b[3] = byte(sum>>8), byte(sum)
		}
		got, err := Parse(b, ipv6)
		require.NoError(t, err)
		assert.Equal(t, m, got)
		_, err = Parse(b[:Size-1], ipv6)
		assert.ErrorIs(t, err, ErrOther)
		_, err = Parse(append(b, 0), ipv6)
		assert.ErrorIs(t, err, ErrOther)
		b[9] ^= 1
		if _, err = Parse(b, ipv6); !ipv6 {
			assert.ErrorIs(t, err, ErrOther, "a wrong checksum")
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Message{ID: 1, Seq: 2, Cookie: 3}.encode(false), false)
	f.Add([]byte{reply6, 0, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3}, true)
	f.Fuzz(func(t *testing.T, b []byte, ipv6 bool) {
		if _, err := Parse(b, ipv6); err != nil {
			assert.ErrorIs(t, err, ErrOther)
		}
	})
}
