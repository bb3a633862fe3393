package e2e

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/lab"
)

// captured is one packet of a file.
type captured struct {
	kept   []byte
	length int
}

// packetsIn reads a file that `ringway calls pcap` has written.
func packetsIn(t *testing.T, file string) (signalling string, media []captured) {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	require.Greater(t, len(b), 24)
	require.EqualValues(t, 0xa1b23c4d, binary.LittleEndian.Uint32(b))
	b = b[24:]
	for len(b) > 0 {
		require.GreaterOrEqual(t, len(b), 16)
		kept := int(binary.LittleEndian.Uint32(b[8:]))
		p := captured{b[16 : 16+kept], int(binary.LittleEndian.Uint32(b[12:]))}
		b = b[16+kept:]
		if text := string(p.kept); strings.Contains(text, "SIP/2.0") {
			signalling += text[28:]
			continue
		}
		media = append(media, p)
	}
	return signalling, media
}

// One call of two is written to a file: in berlin its headers, which is the default; in munich, where the
// config permits it, what is said as well. The calls notice nothing.
func TestACallIsWrittenToAFile(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: func(site string, values map[string]string) {
		more := map[string]string{}
		if site == "munich" {
			more["calls.recording"] = "allowed"
		}
		reading("enforce", more)(site, values)
	}})
	talk := talking(t, l, 2, 8*time.Second)
	dir := t.TempDir()
	done := map[string]chan error{}
	ids := map[string]string{}
	for _, side := range []string{"a", "b"} {
		e := l.Edge(side)
		ids[side] = callsOf(t, e)[0].ID
		args := []string{"calls", "pcap", ids[side], filepath.Join(dir, side)}
		if side == "a" {
			_, err := e.Ringway(within(t, 5*time.Second), append(args, "--with-sound")...)
			require.ErrorContains(t, err, "calls.recording: forbidden")
			require.NoFileExists(t, args[3])
		} else {
			args = append(args, "--with-sound")
		}
		ctx, ended := within(t, 30*time.Second), make(chan error, 1)
		done[side] = ended
		go func() {
			_, err := e.Ringway(ctx, args...)
			ended <- err
		}()
	}
	talk.unharmed()
	for side, whole := range map[string]bool{"a": false, "b": true} {
		require.NoError(t, <-done[side], "it ends with the call")
		signalling, media := packetsIn(t, filepath.Join(dir, side))
		for _, word := range []string{"INVITE sip:", "SIP/2.0 200 OK", "a=rtpmap:8 PCMA", "BYE sip:"} {
			assert.Contains(t, signalling, word, "edge-%s", side)
		}
		assert.Equal(t, 1, strings.Count(signalling, "INVITE sip:"), "edge-%s: the other call is not there", side)

		streams := map[string]int{}
		for _, p := range media {
			if p.length != 200 {
				continue // RTCP
			}
			streams[string(p.kept[12:24])]++
			want := 40
			if whole {
				want = 200
			}
			require.Len(t, p.kept, want, "edge-%s", side)
		}
		assert.Len(t, streams, 2, "edge-%s: each direction once", side)
		for _, n := range streams {
			assert.Greater(t, n, 100, "edge-%s", side)
			assert.Less(t, n, 450, "edge-%s: each packet once", side)
		}
	}
	said, err := os.ReadFile(l.Edge("b").Log())
	require.NoError(t, err)
	assert.Regexp(t, `the sound of a call is written to a file" call=`+ids["b"]+` .*who="uid 0`, string(said))
}
