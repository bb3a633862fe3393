package process

import (
	"bytes"
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// connected are both ends of a control connection.
func connected(t *testing.T) (a, b *wire) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	for i, w := range []**wire{&a, &b} {
		f := os.NewFile(uintptr(pair[i]), "end")
		c, err := net.FileConn(f)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		*w, err = newWire(c.(*net.UnixConn), false)
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
	}
	return a, b
}

// What a message was read into keeps nothing of it: there may be keys in it.
func TestBuffersOfAConnectionKeepNoKeys(t *testing.T) {
	a, b := connected(t)
	key := []byte("a key of sixteen")
	for _, fill := range []int{0, 2 * frameSize} { // one packet, and several
		attached := append(bytes.Repeat([]byte{1}, fill), key...)
		var writing error
		done := make(chan struct{})
		go func() {
			defer close(done)
			writing = a.write(envelope{Type: "keys"}, nil, attached, nil, time.Second)
		}()
		m, err := b.read()
		require.NoError(t, err)
		<-done
		require.NoError(t, writing)
		assert.Equal(t, attached, m.Attached())
		assert.NotContains(t, string(b.buf), string(key))
		assert.NotContains(t, string(b.in.buf[:cap(b.in.buf)]), string(key))
		m.Wipe()
		assert.Equal(t, make([]byte, len(attached)), m.Attached())
	}
}

func TestABufferThatGrowsLeavesNoCopy(t *testing.T) {
	var a assembler
	part := append([]byte("+"), bytes.Repeat([]byte("key"), frameSize/3)...)
	_, _, err := a.add(part)
	require.NoError(t, err)
	before := a.buf
	for range 4 {
		_, _, err = a.add(part)
		require.NoError(t, err)
	}
	require.NotSame(t, &before[0], &a.buf[0])
	assert.Equal(t, make([]byte, len(before)), before)
}
