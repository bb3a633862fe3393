package quality

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

const ms = Timestamp(time.Millisecond)

func TestSequenceNumbersGoOnOverTheWrap(t *testing.T) {
	var s Sequence
	for _, c := range []struct {
		seq     uint16
		want    int64
		restart bool
	}{
		{65533, 65533, false}, {65535, 65535, false}, {1, 65537, false}, {0, 65536, false}, {65534, 65534, false}, {2, 65538, false},
		{2900, 68436, false},       // a long loss
		{2700, 3<<16 + 2700, true}, // 200 back: the source plays its recording again
		{40000, 5<<16 + 40000, true},
	} {
		got, restarted := s.Extend(c.seq)
		assert.Equal(t, c.want, got, "%d", c.seq)
		assert.Equal(t, c.restart, restarted, "%d", c.seq)
	}
}

// stream is n packets 20 ms apart, from a sequence number near the wrap.
func stream(key string, n int, start Timestamp) []Sighting[string] {
	var out []Sighting[string]
	for i := range n {
		out = append(
			out,
			Sighting[string]{
				Key: key, Seq: uint16(65500 + i), Media: uint32(i * 160), At: start + Timestamp(i)*20*ms,
			},
		)
	}
	return out
}

func TestLossDuplicatesAndReorderingAreToldApart(t *testing.T) {
	sent := stream("a", 100, 0)
	var received []Sighting[string]
	arrive := func(i int, delay Timestamp) {
		s := sent[i]
		s.At += delay
		received = append(received, s)
	}
	for i := range sent {
		switch i {
		case 10, 11, 50: // lost
		case 20: // 21 overtakes it
			arrive(21, 5*ms)
			arrive(20, 30*ms)
		case 21:
		case 30:
			arrive(30, 5*ms)
			arrive(30, 6*ms)
		default:
			arrive(i, 5*ms)
		}
	}
	received = append(received, Sighting[string]{Key: "b", Seq: 1, At: 3000 * ms})
	streams, unmatched := Match(sent, received, MatchOptions{})
	require.Len(t, streams, 1)
	assert.Equal(t, 1, unmatched)
	s := Summarize(streams, G711)
	assert.Equal(t, 100, s.Sent)
	assert.Equal(t, 97, s.Received)
	assert.InDelta(t, 0.03, s.Loss, 1e-12)
	assert.Equal(t, 1, s.Duplicates)
	assert.Equal(t, 1, s.Reordered)
	assert.InDelta(t, 1.5*0.97, s.BurstR, 1e-12, "two bursts of 1.5 packets")
	assert.Equal(t, 5*time.Millisecond, s.Delay.Min())
	assert.Equal(t, 30*time.Millisecond, s.Delay.Max())
	assert.Equal(t, 25*time.Millisecond, s.IPDV.Max())
}

// SIPp plays one recording for every call: the same numbers, SSRC and, when a port is used again, addresses.
func TestARecordingPlayedAgainIsANewStream(t *testing.T) {
	sent := append(stream("a", 400, 0), stream("a", 400, 9000*ms)...)
	var received []Sighting[string]
	for i, s := range sent {
		if i%4 != 0 { // what the first call lost must not be found in the second
			s.At += 2 * ms
			received = append(received, s)
		}
	}
	streams, unmatched := Match(sent, received, MatchOptions{})
	require.Len(t, streams, 2)
	assert.Zero(t, unmatched)
	s := Summarize(streams, G711)
	assert.InDelta(t, 0.25, s.Loss, 1e-12)
	assert.Equal(t, 2*time.Millisecond, s.Delay.Max())
	assert.Zero(t, s.Reordered)
}

func TestOnlyTheWindowCounts(t *testing.T) {
	sent := stream("a", 100, 0)
	var received []Sighting[string]
	for _, s := range sent[:90] {
		s.At += ms
		received = append(received, s)
	}
	streams, unmatched := Match(sent, received, MatchOptions{From: 200 * ms, Until: 1800 * ms})
	require.Len(t, streams, 1)
	assert.Zero(t, unmatched)
	s := Summarize(streams, G711)
	assert.Equal(t, 80, s.Sent)
	assert.Zero(t, s.Loss)

	// Too late is lost.
	late := sent[0]
	late.At += 5000 * ms
	streams, _ = Match(sent[:1], []Sighting[string]{late}, MatchOptions{})
	assert.True(t, streams[0].Packets[0].Lost)
}

// Whatever the network does, packets are neither invented nor forgotten, and no delay comes from another
// packet.
func TestMatchingKeepsTheBooks(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		sent := stream("a", rapid.IntRange(1, 300).Draw(t, "packets"), 0)
		var received []Sighting[string]
		lost, doubled := 0, 0
		for _, s := range sent {
			s.At += 3 * ms
			switch rapid.IntRange(0, 9).Draw(t, "fate") {
			case 0:
				lost++
			case 1:
				doubled++
				received = append(received, s, s)
			default:
				received = append(received, s)
			}
		}
		streams, unmatched := Match(sent, received, MatchOptions{})
		s := Summarize(streams, G711)
		assert.Zero(t, unmatched)
		assert.Equal(t, len(sent), s.Sent)
		assert.Equal(t, len(sent)-lost, s.Received)
		assert.Equal(t, doubled, s.Duplicates)
		assert.Zero(t, s.Reordered)
		assert.EqualValues(t, s.Received, s.Delay.Count())
		assert.Zero(t, s.PDV)
	})
}

func TestTheWorstStreamShows(t *testing.T) {
	build := func(key string, loss int) Stream[string] {
		st := Stream[string]{Key: key}
		for i := range 100 {
			p := Packet{Seq: int64(i), Sent: Timestamp(i) * 20 * ms, Lost: i < loss}
			p.Received = p.Sent + ms
			st.Packets = append(st.Packets, p)
		}
		return st
	}
	s := Summarize([]Stream[string]{build("good", 0), build("bad", 30), build("good too", 0)}, G711)
	assert.Equal(t, 3, s.Streams)
	assert.InDelta(t, 0.1, s.Loss, 1e-12)
	assert.Less(t, s.WorstVoice.MOS, s.Voice.MOS)
	assert.Zero(t, s.Jitter)

	none := Summarize[string](nil, G711)
	assert.Zero(t, none.Loss)
	assert.Zero(t, none.Voice.MOS)
}
