package offer

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/assert"

	"ringway/srtp/sdes"
	"ringway/srtp/suite"
)

// What a leg gives up on the way from one agreement to the next is overwritten, too, though nobody else has seen it.
func TestLegOverwritesWhatItGivesUp(t *testing.T) {
	c := NewCall(Config{}, Place{}, Place{})
	key := func(n byte) sdes.Key {
		return sdes.Key{Master: bytes.Repeat([]byte{n}, 16), Salt: bytes.Repeat([]byte{n}, 14)}
	}
	var l leg
	zero := func(keys []sdes.Key) {
		t.Helper()
		assert.Empty(t, bytes.Trim(append(keys[0].Master, keys[0].Salt...), "\x00"))
	}
	l.keying = SDES
	l.sends(key(1), 1)
	l.receives(c, []sdes.Key{key(2)}, false)
	sent, received := l.send, l.receive
	l.sends(key(3), 2)
	l.receives(c, []sdes.Key{key(4)}, true)
	zero(sent)
	zero(received)

	sent, received = l.send, l.receive
	l.suite = suite.AES128CMHMACSHA180
	l.became(Clear)
	zero(sent)
	zero(received)
	assert.Equal(t, leg{keying: Clear}, l)
}
