package lab

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// recorded makes a pcap file of RTP packets with this audio in each.
func recorded(payloadType byte, audio ...string) []byte {
	le := binary.LittleEndian
	out := le.AppendUint32(nil, pcapMagic)
	out = append(out, make([]byte, 12)...)
	out = le.AppendUint32(out, 65535)
	out = le.AppendUint32(out, linkEthernet)
	for _, a := range audio {
		frame := appendHeaders(nil, rtpHeader+len(a))
		frame = append(frame, 0x80, payloadType)
		frame = append(frame, make([]byte, rtpHeader-2)...)
		frame = append(frame, a...)
		out = append(out, make([]byte, 8)...)
		out = le.AppendUint32(out, uint32(len(frame)))
		out = le.AppendUint32(out, uint32(len(frame)))
		out = append(out, frame...)
	}
	return out
}

func TestReadAudioJoinsPayloads(t *testing.T) {
	got, err := readAudio(recorded(payloadPCMA, "abc", "def"))
	require.NoError(t, err)
	assert.Equal(t, "abcdef", string(got))

	got, err = readAudio(recorded(0, "not A-law"))
	require.NoError(t, err)
	assert.Empty(t, got)
}

func TestReadAudioRefuses(t *testing.T) {
	_, err := readAudio([]byte("pcap"))
	assert.EqualError(t, err, "not a pcap file: too short")
	_, err = readAudio(make([]byte, 100))
	assert.EqualError(t, err, "not a pcap file: magic number 0x0")
	whole := recorded(payloadPCMA, "abc")
	_, err = readAudio(whole[:len(whole)-1])
	assert.EqualError(t, err, "the pcap file is cut off")
	_, err = voiceFile(recorded(payloadPCMA, "too short"), time.Second, 1)
	assert.EqualError(t, err, "the recording holds no G.711 A-law audio")
}

// The file for a call of any length is one unbroken stream: numbers and timestamps go on where the recording
// begins again.
func TestVoiceFileIsOneStream(t *testing.T) {
	audio := make([]byte, 400) // two and a half packets
	for i := range audio {
		audio[i] = byte(i)
	}
	file, err := voiceFile(recorded(payloadPCMA, string(audio)), 100*time.Millisecond, 0xabcd)
	require.NoError(t, err)

	joined, err := readAudio(file)
	require.NoError(t, err)
	want := append(append([]byte{}, audio...), audio...)
	assert.Equal(t, want, joined, "5 packets are the recording twice")

	const onWire = ethernetHeader + ipv4Header + udpHeader + rtpHeader + frameSamples
	require.Len(t, file, pcapHeader+5*(pcapRecord+onWire))
	for i := range 5 {
		record := file[pcapHeader+i*(pcapRecord+onWire):]
		assert.EqualValues(t, i*20_000, binary.LittleEndian.Uint32(record[4:]), "microseconds of packet %d", i)
		rtp := record[pcapRecord+ethernetHeader+ipv4Header+udpHeader:]
		assert.EqualValues(t, i+1, binary.BigEndian.Uint16(rtp[2:]))
		assert.EqualValues(t, i*160, binary.BigEndian.Uint32(rtp[4:]))
		assert.EqualValues(t, 0xabcd, binary.BigEndian.Uint32(rtp[8:]))
		assert.Equal(t, i == 0, rtp[1]&0x80 != 0, "the marker is on the first packet alone")
	}
}

func FuzzReadAudio(f *testing.F) {
	f.Add(recorded(payloadPCMA, "abc", "def"))
	f.Fuzz(func(t *testing.T, b []byte) {
		audio, err := readAudio(b)
		if err == nil && len(audio) > len(b) {
			t.Fatalf("%d bytes of audio out of %d", len(audio), len(b))
		}
	})
}
