package stream_test

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/sdes"
	"ringway/srtp/stream"
	"ringway/srtp/suite"
)

// libsrtp 2 is the other end: an implementation that shares no line with ours.
type libsrtp struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Reader
}

func buildLibsrtp(t *testing.T) string {
	if testing.Short() {
		t.Skip("needs cc and libsrtp2-dev")
	}
	program := filepath.Join(t.TempDir(), "libsrtp")
	out, err := exec.Command("cc", "-Wall", "-O1", "-o", program, "testdata/libsrtp.c", "-lsrtp2").CombinedOutput()
	require.NoError(t, err, "%s(make test-packages installs what is needed)", out)
	return program
}

func startLibsrtp(t *testing.T, program, what string, s suite.Suite, keys ...string) *libsrtp {
	cmd := exec.Command(program, append([]string{what, s.String()}, keys...)...)
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = in.Close()
		assert.NoError(t, cmd.Wait())
	})
	return &libsrtp{t: t, in: in, out: bufio.NewReader(out)}
}

// do has libsrtp work on a packet with a key; nil: it refused.
func (l *libsrtp) do(key int, p []byte) []byte {
	request := binary.BigEndian.AppendUint16(nil, uint16(len(p)+1))
	_, err := l.in.Write(append(append(request, byte(key)), p...))
	require.NoError(l.t, err)
	var n uint16
	require.NoError(l.t, binary.Read(l.out, binary.BigEndian, &n))
	if n == 0 {
		return nil
	}
	answer := make([]byte, n)
	_, err = io.ReadFull(l.out, answer)
	require.NoError(l.t, err)
	return answer
}

func material(k sdes.Key) string { return hex.EncodeToString(k.Master) + hex.EncodeToString(k.Salt) }

// Both ways, SRTP and SRTCP, over a wrap of the sequence number.
func TestWithLibsrtp(t *testing.T) {
	program := buildLibsrtp(t)
	each(t, func(t *testing.T, s suite.Suite) {
		k := sdes.NewKey(s)
		ours, theirs := stream.NewSender(key(t, s, k)), startLibsrtp(t, program, "unprotect", s, material(k))
		for i := range 120 {
			seq := 60_000 + i*2500 // over five wraps
			p := packet(7, seq)
			sealed := seal(t, ours, p)
			want := fmt.Sprintf("%x", p)
			require.Equal(t, want, fmt.Sprintf("%x", theirs.do(0, sealed)), "packet %d", i)
			require.Nil(t, theirs.do(0, sealed), "a replay")
		}

		sender, receiver := startLibsrtp(t, program, "protect", s, material(k)), stream.NewReceiver(key(t, s, k))
		for i := range 120 {
			p := packet(7, 60_000+i*2500)
			got, err := open(receiver, sender.do(0, p), 0)
			require.NoError(t, err, "packet %d", i)
			require.Equal(t, p, got)
		}
		assert.Zero(t, receiver.Recovered())

		k = sdes.NewKey(s)
		ours, theirs = stream.NewSender(key(t, s, k)), startLibsrtp(t, program, "unprotect-rtcp", s, material(k))
		sender, receiver = startLibsrtp(t, program, "protect-rtcp", s, material(k)), stream.NewReceiver(key(t, s, k))
		for range 40 {
			sealed, err := ours.SealRTCP(make([]byte, 80), report(9), 1)
			require.NoError(t, err)
			require.Equal(t, report(9), theirs.do(0, sealed))
			got, err := receiver.OpenRTCP(make([]byte, 80), sender.do(0, report(9)), 1)
			require.NoError(t, err)
			require.Equal(t, report(9), got)
		}
	})
}

// Keys by MKI, changed every sixth packet, while the sequence number wraps: the roll-over counter goes on.
func TestRotationWithLibsrtp(t *testing.T) {
	program := buildLibsrtp(t)
	each(t, func(t *testing.T, s suite.Suite) {
		const keys = 16 // the most that libsrtp takes
		var texts []string
		var all []*stream.Key
		receiver := (*stream.Receiver)(nil)
		for i := range keys {
			k := sdes.NewKey(s)
			mki := []byte{1, 2, 0, byte(i)}
			texts = append(texts, hex.EncodeToString(mki)+":"+material(k))
			all = append(all, key(t, s, k, mki...))
			if i == 0 {
				receiver = stream.NewReceiver(key(t, s, k, mki...))
			} else {
				require.NoError(t, receiver.Add(key(t, s, k, mki...)))
			}
		}
		ours, theirs := stream.NewSender(all[0]), startLibsrtp(t, program, "unprotect", s, texts...)
		sender := startLibsrtp(t, program, "protect", s, texts...)
		for i := range 6 * keys {
			ours.Use(all[i/6])
			p := packet(7, 500+i*2000)
			sealed := seal(t, ours, p)
			require.Equal(t, fmt.Sprintf("%x", p), fmt.Sprintf("%x", theirs.do(0, sealed)), "packet %d", i)

			p = packet(7, 65_000+i*2000)
			got, err := open(receiver, sender.do(i/6, p), 0)
			require.NoError(t, err, "packet %d", i)
			require.Equal(t, p, got)
		}
		assert.Zero(t, receiver.Recovered())
	})
}
