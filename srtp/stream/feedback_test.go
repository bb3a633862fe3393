package stream_test

import (
	"encoding/binary"
	"testing"

	"github.com/pion/rtcp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/stream"
	"ringway/srtp/suite"
)

// shifted is a sender of two sources, and what a receiver has of each: the extended number of the last packet of ten,
// as it came and as the source gave it.
func shifted(t *testing.T) (s *stream.Sender, came, gave map[uint32]uint32) {
	s, _ = ends(t, suite.AEADAES128GCM)
	came, gave = map[uint32]uint32{}, map[uint32]uint32{}
	for ssrc, begin := range map[uint32]uint32{7: 65_530, 8: 30_000} {
		for i := range uint32(10) {
			p := seal(t, s, packet(ssrc, int(begin+i)))
			came[ssrc], gave[ssrc] = uint32(binary.BigEndian.Uint16(p[2:])), begin+i
		}
		require.NotEqual(t, came[ssrc], gave[ssrc])
	}
	return s, came, gave
}

func compound(t *testing.T, all ...rtcp.Packet) []byte {
	b, err := rtcp.Marshal(all)
	require.NoError(t, err)
	return b
}

// What the far end says of packets by their numbers reaches the source in the numbers that it gave; all else as it was.
func TestReportsSpeakOfTheSourcesNumbers(t *testing.T) {
	s, came, gave := shifted(t)
	make := func(n map[uint32]uint32) []rtcp.Packet {
		blocks := []rtcp.ReceptionReport{
			{SSRC: 7, FractionLost: 3, TotalLost: 5, LastSequenceNumber: n[7], Jitter: 9, LastSenderReport: 10, Delay: 11},
			{SSRC: 99, LastSequenceNumber: 12345},
			{SSRC: 8, LastSequenceNumber: n[8]},
		}
		chunk := func(ssrc uint32) []rtcp.ReportBlock {
			begin, end := uint16(n[ssrc]-9), uint16(n[ssrc]+1)
			return []rtcp.ReportBlock{
				&rtcp.LossRLEReportBlock{SSRC: ssrc, BeginSeq: begin, EndSeq: end, Chunks: []rtcp.Chunk{0x4006, 0}},
				&rtcp.DuplicateRLEReportBlock{SSRC: ssrc, BeginSeq: begin, EndSeq: end, Chunks: []rtcp.Chunk{0x4006, 0}},
				&rtcp.PacketReceiptTimesReportBlock{SSRC: ssrc, BeginSeq: begin, EndSeq: end, ReceiptTime: []uint32{1, 2}},
				&rtcp.StatisticsSummaryReportBlock{SSRC: ssrc, BeginSeq: begin, EndSeq: end, LostPackets: 4},
				&rtcp.VoIPMetricsReportBlock{SSRC: ssrc, LossRate: 4, BurstDensity: 5},
			}
		}
		return []rtcp.Packet{
			&rtcp.SenderReport{SSRC: 1, NTPTime: 1, RTPTime: 2, PacketCount: 3, OctetCount: 4, Reports: blocks},
			&rtcp.ReceiverReport{SSRC: 1, Reports: blocks, ProfileExtensions: []byte{1, 2, 3, 4}},
			&rtcp.SourceDescription{Chunks: []rtcp.SourceDescriptionChunk{{
				Source: 7, Items: []rtcp.SourceDescriptionItem{{Type: rtcp.SDESCNAME, Text: "name"}},
			}}},
			&rtcp.TransportLayerNack{SenderSSRC: 1, MediaSSRC: 7, Nacks: []rtcp.NackPair{
				{PacketID: uint16(n[7] - 3), LostPackets: 5}, {PacketID: uint16(n[7]), LostPackets: 0},
			}},
			&rtcp.TransportLayerNack{SenderSSRC: 1, MediaSSRC: 99, Nacks: []rtcp.NackPair{{PacketID: 5}}},
			&rtcp.PictureLossIndication{SenderSSRC: 1, MediaSSRC: 7},
			&rtcp.FullIntraRequest{SenderSSRC: 1, MediaSSRC: 7, FIR: []rtcp.FIREntry{{SSRC: 7, SequenceNumber: 3}}},
			&rtcp.ExtendedReport{SenderSSRC: 1, Reports: append(chunk(7), chunk(8)...)},
			&rtcp.CCFeedbackReport{SenderSSRC: 1, ReportTimestamp: 6, ReportBlocks: []rtcp.CCFeedbackReportBlock{
				{MediaSSRC: 7, BeginSequence: uint16(n[7]), MetricBlocks: []rtcp.CCFeedbackMetricBlock{{Received: true}, {}, {}}},
				{MediaSSRC: 8, BeginSequence: uint16(n[8]), MetricBlocks: []rtcp.CCFeedbackMetricBlock{{Received: true}, {}}},
			}},
			&rtcp.TransportLayerCC{
				Header:     rtcp.Header{Count: rtcp.FormatTCC, Type: rtcp.TypeTransportSpecificFeedback, Length: 5},
				SenderSSRC: 1, MediaSSRC: 7, BaseSequenceNumber: 600, PacketStatusCount: 1,
				PacketChunks: []rtcp.PacketStatusChunk{&rtcp.RunLengthChunk{RunLength: 1, PacketStatusSymbol: 1}},
				RecvDeltas:   []*rtcp.RecvDelta{{Type: 1, Delta: 250}},
			},
		}
	}
	for i, p := range make(came) {
		got, want := compound(t, p), compound(t, make(gave)[i])
		s.Translate(got)
		assert.Equal(t, want, got, "%T", p)
	}
	all := compound(t, make(came)...)
	s.Translate(all)
	assert.Equal(t, compound(t, make(gave)...), all)
}

// A source that counts again, and one that was not heard for long, are translated by what holds for them then.
func TestTranslationFollowsTheSource(t *testing.T) {
	s, receiver := ends(t, suite.AEADAES128GCM)
	last := uint32(0)
	send := func(ssrc uint32, seq int) {
		sealed := seal(t, s, packet(ssrc, seq))
		got, err := open(receiver, sealed, 0)
		require.NoError(t, err)
		last = uint32(binary.BigEndian.Uint16(got[2:]))
	}
	reported := func(ssrc uint32) uint32 {
		b := compound(t, &rtcp.ReceiverReport{Reports: []rtcp.ReceptionReport{{SSRC: ssrc, LastSequenceNumber: last}}})
		s.Translate(b)
		return binary.BigEndian.Uint32(b[16:])
	}
	for i := range 300 {
		send(7, 40_000+i)
	}
	assert.EqualValues(t, 40_299, reported(7))
	send(7, 5)
	assert.EqualValues(t, 5, reported(7))
	here := last
	for ssrc := range uint32(9) {
		_, err := s.Seal(make([]byte, 300), packet(100+ssrc, 50_000), int64(ssrc+1)*1e9)
		require.NoError(t, err)
	}
	send(7, 6)
	assert.EqualValues(t, 6, reported(7))
	assert.Equal(t, here+1, last)

	next := stream.NewSender(s.Key())
	next.Restore(s.Account())
	s = next
	sealed := seal(t, s, packet(7, 7))
	last = uint32(binary.BigEndian.Uint16(sealed[2:]))
	assert.EqualValues(t, 7, uint16(reported(7)))
}

// FuzzTranslate: whatever comes, nothing grows or crashes, and twice back is twice.
func FuzzTranslate(f *testing.F) {
	s, _ := ends(f, suite.AES128CMHMACSHA180)
	seal(f, s, packet(7, 40_000))
	b, err := rtcp.Marshal([]rtcp.Packet{
		&rtcp.ReceiverReport{Reports: []rtcp.ReceptionReport{{SSRC: 7}}}, &rtcp.TransportLayerNack{MediaSSRC: 7},
	})
	require.NoError(f, err)
	f.Add(b)
	f.Add([]byte{0x80 | 11, 205, 0, 3, 0, 0, 0, 1, 0, 0, 0, 7, 0, 1, 0xff, 0xff})
	f.Add([]byte{0x80, 207, 0, 3, 0, 0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 7})
	f.Fuzz(func(_ *testing.T, b []byte) { s.Translate(b) })
}

// Reports come by another thread than what they are about.
func TestTranslationBesideSealing(t *testing.T) {
	s, _ := ends(t, suite.AEADAES128GCM)
	seal(t, s, packet(7, 40_000))
	b := compound(t, &rtcp.ReceiverReport{Reports: []rtcp.ReceptionReport{{SSRC: 7}}})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 1000 {
			s.Translate(b)
		}
	}()
	for i := range 1000 {
		seal(t, s, packet(7, i*4000))
	}
	<-done
}
