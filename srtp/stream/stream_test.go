package stream_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"ringway/srtp/sdes"
	"ringway/srtp/stream"
	"ringway/srtp/suite"
)

// packet is an RTP packet with 160 bytes of PCMU that say which it is.
func packet(ssrc uint32, seq int) []byte {
	p := make([]byte, 12+160, 12+160+64)
	p[0] = 0x80
	binary.BigEndian.PutUint16(p[2:], uint16(seq))
	binary.BigEndian.PutUint32(p[4:], uint32(seq)*160)
	binary.BigEndian.PutUint32(p[8:], ssrc)
	binary.BigEndian.PutUint64(p[12:], uint64(seq))
	return p
}

// number is which packet it was.
func number(p []byte) int { return int(binary.BigEndian.Uint64(p[12:])) }

// report is a receiver report without blocks.
func report(ssrc uint32) []byte {
	p := make([]byte, 8, 80)
	p[0], p[1], p[3] = 0x80, 201, 1
	binary.BigEndian.PutUint32(p[4:], ssrc)
	return p
}

func key(t require.TestingT, s suite.Suite, k sdes.Key, mki ...byte) *stream.Key {
	made, err := stream.NewKey(s, k.Master, k.Salt, mki, 0)
	require.NoError(t, err)
	return made
}

// ends are a sender and a receiver of one key.
func ends(t require.TestingT, s suite.Suite) (*stream.Sender, *stream.Receiver) {
	k := sdes.NewKey(s)
	return stream.NewSender(key(t, s, k)), stream.NewReceiver(key(t, s, k))
}

func seal(t require.TestingT, s *stream.Sender, p []byte) []byte {
	out, err := s.Seal(make([]byte, len(p)+64), p, 1)
	require.NoError(t, err)
	return out
}

func open(r *stream.Receiver, p []byte, now time.Duration) ([]byte, error) {
	return r.Open(make([]byte, len(p)), p, int64(now)+1)
}

func each(t *testing.T, do func(*testing.T, suite.Suite)) {
	for _, s := range suite.All() {
		t.Run(s.String(), func(t *testing.T) { do(t, s) })
	}
}

func TestWhatIsSealedIsOpened(t *testing.T) {
	each(t, func(t *testing.T, s suite.Suite) {
		sender, receiver := ends(t, s)
		for i := range 200 {
			p := packet(7, i)
			want := string(p)
			sealed := seal(t, sender, p)
			assert.Len(t, sealed, len(want)+s.Overhead())
			assert.NotContains(t, string(sealed), want[12:40])
			before := string(sealed)
			got, err := open(receiver, sealed, 0)
			require.NoError(t, err)
			assert.Equal(t, want, string(got))
			assert.Equal(t, before, string(sealed), "the packet is left as it was")
		}

		p := report(7)
		want := string(p)
		sealed, err := sender.SealRTCP(make([]byte, 80), p, 1)
		require.NoError(t, err)
		assert.Len(t, sealed, len(want)+s.RTCPOverhead())
		got, err := receiver.OpenRTCP(make([]byte, 80), sealed, 1)
		require.NoError(t, err)
		assert.Equal(t, want, string(got))
		_, err = receiver.OpenRTCP(make([]byte, 80), sealed, 1)
		assert.ErrorIs(t, err, stream.ErrReplayed)
	})
}

// In place, as the forwarding thread does.
func TestSealInPlace(t *testing.T) {
	each(t, func(t *testing.T, s suite.Suite) {
		sender, receiver := ends(t, s)
		p := packet(7, 1)
		want := string(p)
		sealed, err := sender.Seal(p, p, 1)
		require.NoError(t, err)
		got, err := open(receiver, sealed, 0)
		require.NoError(t, err)
		assert.Equal(t, want, string(got))
	})
}

func TestReplaysAndForgeries(t *testing.T) {
	each(t, func(t *testing.T, s suite.Suite) {
		sender, receiver := ends(t, s)
		var all [][]byte
		for i := range 3000 {
			all = append(all, seal(t, sender, packet(7, i)))
			_, err := open(receiver, all[i], 0)
			require.NoError(t, err)
		}
		for _, i := range []int{2999, 2998, 2500, 1000, 0} {
			_, err := open(receiver, all[i], 0)
			assert.ErrorIs(t, err, stream.ErrReplayed)
		}
		next := seal(t, sender, packet(7, 3000))
		for _, at := range []int{0, 1, 4, 5, 20, len(next) - 1} {
			forged := append([]byte(nil), next...)
			forged[at] ^= 1
			_, err := open(receiver, forged, 0)
			assert.ErrorIs(t, err, stream.ErrForged, "byte %d", at)
		}
		for length := range len(next) {
			_, err := open(receiver, next[:length], 0)
			assert.Error(t, err, "%d bytes", length)
		}
		_, err := open(receiver, next, 0)
		assert.NoError(t, err, "forgeries changed nothing")
	})
}

// A packet of another direction, sent back, is none of ours: each has a key of its own.
func TestAnotherKey(t *testing.T) {
	sender, _ := ends(t, suite.AEADAES128GCM)
	_, receiver := ends(t, suite.AEADAES128GCM)
	_, err := open(receiver, seal(t, sender, packet(7, 1)), 0)
	assert.ErrorIs(t, err, stream.ErrForged)
}

// RFC 3711 section 3.3.1: counted on over the wrap, with packets lost and overtaken.
func TestOverTheWrap(t *testing.T) {
	each(t, func(t *testing.T, s suite.Suite) {
		for _, wrap := range []int{1 << 16, 4 << 16} {
			k := sdes.NewKey(s)
			sender, receiver := begun(t, s, k, uint64(wrap-95)), stream.NewReceiver(key(t, s, k))
			receiver.Restore([]stream.Heard{{SSRC: 7, Index: uint64(wrap - 96), HasRTP: true, Exact: true}}, 0)
			for first := wrap - 95; first < wrap+100; first += 10 {
				var ten [10][]byte
				for i := range ten {
					ten[i] = seal(t, sender, packet(7, first+i))
				}
				for _, i := range []int{9, 1, 0, 3, 2, 8, 5, 7, 6} { // and the fifth is lost
					got, err := open(receiver, ten[i], 0)
					require.NoError(t, err, "packet %d", first+i)
					require.Equal(t, first+i, number(got))
				}
			}
			assert.Zero(t, receiver.Recovered(), "nothing had to be found again")
		}
	})
}

// A sender begins just before a wrap and its first packets are lost; another packet from before the wrap comes late.
func TestFirstPacketsAreLostOverAWrap(t *testing.T) {
	each(t, func(t *testing.T, s suite.Suite) {
		k := sdes.NewKey(s)
		receiver := stream.NewReceiver(key(t, s, k))
		sender := begun(t, s, k, 65530)
		var all [][]byte
		for i := range 20 {
			all = append(all, seal(t, sender, packet(7, 65530+i)))
		}
		for _, i := range []int{10, 11, 3, 12} {
			got, err := open(receiver, all[i], 0)
			require.NoError(t, err, i)
			assert.Equal(t, 65530+i, number(got))
		}
	})
}

// begun is a sender that goes on at an index: a phone may begin anywhere, ours begin below 2^15.
func begun(t require.TestingT, s suite.Suite, k sdes.Key, index uint64) *stream.Sender {
	return begunWith(t, key(t, s, k), index)
}

// A hold of 12 minutes at 50 packets a second in which nothing arrives, at every counter, also at 0 and at 3.
func TestAGapBeyondHalfTheNumbers(t *testing.T) {
	each(t, func(t *testing.T, s suite.Suite) {
		for _, gap := range []int{1<<15 - 1, 1 << 15, 36_000, 1<<16 - 1, 1 << 16, 1<<16 + 1, 100_000, 180_000} {
			for _, at := range []uint64{50, 40_000, 3<<16 + 5, 3<<16 + 60_000} {
				k := sdes.NewKey(s)
				receiver := stream.NewReceiver(key(t, s, k))
				receiver.Restore([]stream.Heard{{SSRC: 7, Index: at, HasRTP: true, Exact: true}}, 0)
				sender := begun(t, s, k, at+uint64(gap))
				for i := range 100 {
					n := int(at) + gap + i
					got, err := open(receiver, seal(t, sender, packet(7, n)), time.Hour)
					require.NoError(t, err, "gap of %d after %d, packet %d", gap, at, i)
					require.Equal(t, n, number(got))
				}
				assert.LessOrEqual(t, receiver.Recovered(), uint64(1), "found once, it stays")
			}
		}
	})
}

// What was recorded early in a call is not accepted later, although the counter is looked for.
func TestAnOldPacketIsNotAdopted(t *testing.T) {
	each(t, func(t *testing.T, s suite.Suite) {
		k := sdes.NewKey(s)
		receiver := stream.NewReceiver(key(t, s, k))
		receiver.Restore([]stream.Heard{{SSRC: 7, Index: 3<<16 + 1000, HasRTP: true, Exact: true}}, 0)
		for _, index := range []uint64{1000, 2<<16 + 1000, 2<<16 + 2000, 2<<16 + 40_000, 3 << 16} {
			_, err := open(receiver, seal(t, begun(t, s, k, index), packet(7, int(index))), 0)
			assert.Error(t, err, "index %d", index)
		}
		later := begun(t, s, k, 3<<16+1001)
		_, err := open(receiver, seal(t, later, packet(7, 1001)), 0)
		assert.NoError(t, err)
	})
}

// A key that was changed: packets of both are opened while both are there, and the counter goes on.
func TestRotation(t *testing.T) {
	each(t, func(t *testing.T, s suite.Suite) {
		first := sdes.NewKey(s)
		sender := begunWith(t, key(t, s, first, 0, 0, 0, 1), 65_000)
		receiver := stream.NewReceiver(key(t, s, first, 0, 0, 0, 1))
		n := 65_000
		var before []byte
		for round := range 100 {
			mki := []byte{0, 0, 0, byte(round + 2)}
			next := sdes.NewKey(s)
			require.NoError(t, receiver.Add(key(t, s, next, mki...)))
			assert.Error(t, receiver.Add(key(t, s, next, mki...)), "its MKI is there")
			old := sender.Use(key(t, s, next, mki...))
			for range 20 {
				p := packet(7, n)
				sealed := seal(t, sender, p)
				_, err := open(receiver, sealed, time.Duration(n))
				require.NoError(t, err)
				n++
				if n%10 == 0 {
					before = sealed
				}
			}
			held := key(t, s, sdes.NewKey(s), 9, 9, 9, 9)
			require.NoError(t, receiver.Add(held))
			receiver.Drop([]byte{9, 9, 9, 9})
			assert.True(t, held.Wiped())
			receiver.Drop(old.MKI())
			old.Wipe()
		}
		assert.Greater(t, n, 65_536)
		assert.Zero(t, receiver.Recovered())
		_, err := open(receiver, before, 0)
		assert.ErrorIs(t, err, stream.ErrReplayed)
		dropped := append([]byte(nil), before...)
		tag := 0
		if !s.AEAD() {
			tag = s.Overhead()
		}
		dropped[len(dropped)-tag-1] = 5
		_, err = open(receiver, dropped, 0)
		assert.ErrorIs(t, err, stream.ErrUnknownKey)

		assert.ErrorContains(t, receiver.Add(key(t, s, sdes.NewKey(s))), "a further key needs an MKI of 4 bytes")
		assert.ErrorContains(t, receiver.Add(key(t, s, sdes.NewKey(s), 1)), "a further key needs an MKI of 4 bytes")
	})
}

func begunWith(_ require.TestingT, k *stream.Key, index uint64) *stream.Sender {
	sender := stream.NewSender(k)
	sender.Restore(stream.Account{Sources: []stream.Sent{
		{SSRC: 7, Index: index - 1 - 1<<13, HasRTP: true, Delta: uint16(1<<16 - 1<<13)},
	}})
	return sender
}

func TestAKeyHasALifetime(t *testing.T) {
	s := suite.AES128CMHMACSHA180
	k := sdes.NewKey(s)
	made, err := stream.NewKey(s, k.Master, k.Salt, nil, 3)
	require.NoError(t, err)
	sender := stream.NewSender(made)
	for i := range 3 {
		seal(t, sender, packet(7, i))
	}
	_, err = sender.Seal(make([]byte, 300), packet(7, 3), 1)
	assert.ErrorIs(t, err, stream.ErrExhausted)
	assert.EqualValues(t, 3, made.Sealed())
	sender.Use(key(t, s, sdes.NewKey(s)))
	seal(t, sender, packet(7, 3))

	_, err = stream.NewKey(s, k.Master[1:], k.Salt, nil, 0)
	assert.EqualError(t, err, "AES_CM_128_HMAC_SHA1_80 needs a key of 16 bytes and a salt of 14, not 15 and 14")
	_, err = stream.NewKey(0, k.Master, k.Salt, nil, 0)
	assert.EqualError(t, err, "suite 0 is not a crypto suite")
	assert.Equal(t, "key of AES_CM_128_HMAC_SHA1_80", fmt.Sprintf("%+v", made))
	assert.NotContains(t, fmt.Sprintf("%#v", made), "0x")
}

// A source that counts again from elsewhere is numbered on: nothing is lost, and the far end notices nothing.
func TestASourceThatCountsAgain(t *testing.T) {
	each(t, func(t *testing.T, s suite.Suite) {
		sender, receiver := ends(t, s)
		sent, lost := 0, 0
		last := -1
		for round, begin := range []int{60_000, 100, 30_000, 65_535, 0, 1_500, 1_490} {
			for i := range 50 {
				sent++
				p := packet(7, begin+i)
				sealed, err := sender.Seal(make([]byte, 300), p, 1)
				if err != nil {
					assert.ErrorIs(t, err, stream.ErrDuplicate)
					lost++
					continue
				}
				got, err := open(receiver, sealed, 0)
				require.NoError(t, err, "round %d, packet %d", round, i)
				seq := int(binary.BigEndian.Uint16(got[2:]))
				if round < 5 {
					assert.Greater(t, seq, last)
				}
				if round == 0 && i == 0 {
					assert.Less(t, seq, 1<<15, "the first number")
				}
				last = seq
			}
		}
		assert.LessOrEqual(t, lost, 4, "of %d: each of two steps back by less than the window looks like copies first", sent)
	})
}

// A packet moves the index by 3000 at the most: an account of what was sent is never older than what is skipped.
func TestAJumpAheadIsBounded(t *testing.T) {
	sender, _ := ends(t, suite.AEADAES128GCM)
	seal(t, sender, packet(7, 0))
	index := func() uint64 { return sender.Account().Sources[0].Index }
	seal(t, sender, packet(7, 100))
	assert.EqualValues(t, 1, index(), "a source that has sent little moves it by less")
	for i := range 200 {
		seal(t, sender, packet(7, 101+i))
	}
	for _, jump := range []struct{ seq, by int }{
		{3_299, 2_999}, {6_300, 1}, {6_301, 1}, {36_300, 1}, {36_310, 10}, {3_300, 1},
	} {
		before := index()
		seal(t, sender, packet(7, jump.seq))
		assert.EqualValues(t, jump.by, sender.Account().Sources[0].Index-before, "to %d", jump.seq)
	}
}

// Copies of packets, also late ones, are dropped.
func TestCopiesAreSentOnce(t *testing.T) {
	sender, _ := ends(t, suite.AEADAES128GCM)
	for i := range 1000 {
		seal(t, sender, packet(7, i))
		for _, back := range []int{0, 1, 30} {
			if i < back {
				continue
			}
			_, err := sender.Seal(make([]byte, 300), packet(7, i-back), 1)
			require.ErrorIs(t, err, stream.ErrDuplicate)
		}
	}
}

// SRTCP that is not encrypted needs to be allowed, and is authenticated all the same.
func TestUnencryptedRTCP(t *testing.T) {
	each(t, func(t *testing.T, s suite.Suite) {
		k := sdes.NewKey(s)
		receiver := stream.NewReceiver(key(t, s, k))
		clearText := unencrypted(t, s, k, report(7))
		_, err := receiver.OpenRTCP(make([]byte, 80), clearText, 1)
		assert.ErrorIs(t, err, stream.ErrUnencrypted)
		receiver.AllowUnencryptedRTCP = true
		got, err := receiver.OpenRTCP(make([]byte, 80), clearText, 1)
		require.NoError(t, err)
		assert.Equal(t, report(7), got)
		plain := append(report(7), make([]byte, 30)...)
		_, err = receiver.OpenRTCP(make([]byte, 80), plain, 1)
		assert.ErrorIs(t, err, stream.ErrForged)
		_, err = receiver.OpenRTCP(make([]byte, 80), report(7), 1)
		assert.ErrorIs(t, err, stream.ErrMalformed)
	})
}

// Nothing encrypts two packets under one index: with a payload of zeros what is encrypted in counter mode is the key
// stream itself, which never comes twice, whatever arrives, also after a crash with an old account of what was sent.
func TestAnIndexIsUsedOnce(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.SampledFrom(suite.All()).Draw(t, "suite")
		sender := stream.NewSender(key(t, s, sdes.NewKey(s)))
		account, crashes := sender.Account(), 0
		streams := map[string]bool{}
		now := int64(0)
		seal := func(ssrc uint32, seq int) {
			p := packet(ssrc, seq)
			clear(p[12:])
			now += int64(time.Second)
			out, err := sender.Seal(make([]byte, 300), p, now)
			if errors.Is(err, stream.ErrDuplicate) || errors.Is(err, stream.ErrSources) && (crashes > 2 || sender.Crowded()) {
				return
			}
			require.NoError(t, err)
			used := string(out[12 : 12+64])
			require.False(t, streams[used], "the key stream came twice")
			streams[used] = true
		}
		sealRTCP := func(ssrc uint32) {
			now += int64(time.Second)
			out, err := sender.SealRTCP(make([]byte, 80), report(ssrc), now)
			if errors.Is(err, stream.ErrSources) && (crashes > 2 || sender.Crowded()) {
				return
			}
			require.NoError(t, err)
			end := len(out)
			if !s.AEAD() {
				end -= 10
			}
			used := fmt.Sprintf("SRTCP of %d, %x", ssrc, out[end-4:end])
			require.False(t, streams[used], "%s came twice", used)
			streams[used] = true
		}
		seqs := [60]int{}
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			which := rapid.IntRange(0, len(seqs)-1).Draw(t, "source")
			switch rapid.IntRange(0, 4).Draw(t, "from") {
			case 0:
				seqs[which] = rapid.IntRange(0, 1<<16-1).Draw(t, "elsewhere")
			case 1:
				seqs[which] += rapid.IntRange(-2000, 4000).Draw(t, "step")
			case 2:
				seqs[which] += rapid.IntRange(-4, 0).Draw(t, "back")
			}
			for range rapid.SampledFrom([]int{1, 2, 5, 30, 150}).Draw(t, "packets") {
				seqs[which]++
				if rapid.IntRange(0, 30).Draw(t, "report") == 0 {
					sealRTCP(uint32(which))
				} else {
					seal(uint32(which), seqs[which])
				}
				if sender.Due() && rapid.IntRange(0, 9).Draw(t, "in time") > 0 {
					account = sender.Account()
				}
				if !sender.Due() {
					continue
				}
				// The process ends before its account is kept. The next one has the key and the account before.
				next := stream.NewSender(sender.Key())
				next.Restore(account)
				sender, account = next, next.Account()
				crashes++
			}
			switch rapid.IntRange(0, 9).Draw(t, "then") {
			case 0:
				next := stream.NewSender(sender.Key())
				next.Restore(account)
				sender, account = next, next.Account()
				crashes++
			case 1:
				sender.Use(key(t, s, sdes.NewKey(s)))
				clear(streams)
				account, crashes = sender.Account(), 0
			}
		}
	})
}

func TestNothingIsAllocated(t *testing.T) {
	each(t, func(t *testing.T, s suite.Suite) {
		sender, receiver := ends(t, s)
		seq := 0
		p, sealed, opened := packet(7, 0), make([]byte, 300), make([]byte, 300)
		forged := append(packet(7, 9), make([]byte, 16)...)
		step := func() {
			binary.BigEndian.PutUint16(p[2:], uint16(seq))
			seq++
			out, err := sender.Seal(sealed, p, 1)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := receiver.Open(opened, out, 1); err != nil {
				t.Fatal(err)
			}
			if _, err := receiver.Open(opened, out, 1); err == nil {
				t.Fatal("a replay was opened")
			}
			if _, err := sender.Seal(sealed, p, 1); err == nil {
				t.Fatal("a copy was sealed")
			}
		}
		for range 50 { // the attempts to find another counter are used up
			step()
		}
		assert.Zero(t, testing.AllocsPerRun(200, step))
		// What is forged costs nothing once its share of attempts is used up.
		for range 100 {
			_, _ = receiver.Open(opened, forged, 1)
		}
		assert.Zero(t, testing.AllocsPerRun(200, func() {
			forged[3]++
			binary.BigEndian.PutUint32(forged[8:], uint32(forged[3])+100)
			_, _ = receiver.Open(opened, forged, 1)
		}))
	})
}

// Bytes from a network crash nothing, and open nothing.
func FuzzOpen(f *testing.F) {
	s := suite.AES128CMHMACSHA180
	sender, receiver := ends(f, s)
	f.Add(seal(f, sender, packet(7, 1)))
	f.Add(packet(7, 1))
	f.Add(report(7))
	f.Add([]byte{0x9f, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 7, 0xbe, 0xde, 0xff, 0xff})
	gcm, other := ends(f, suite.AEADAES256GCM)
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, r := range []*stream.Receiver{receiver, other} {
			if len(b) > 2000 {
				return
			}
			_, _ = r.Open(make([]byte, 2100), b, 1)
			_, _ = r.OpenRTCP(make([]byte, 2100), b, 1)
		}
		_, _ = gcm.Seal(make([]byte, 2100), append([]byte(nil), b...), 1)
		_, _ = gcm.SealRTCP(make([]byte, 2100), append([]byte(nil), b...), 1)
	})
}

func BenchmarkRelay(b *testing.B) {
	for _, s := range suite.All() {
		b.Run(s.String(), func(b *testing.B) {
			sender, receiver := ends(b, s)
			p, sealed, opened := packet(7, 0), make([]byte, 300), make([]byte, 300)
			b.ReportAllocs()
			seq := 0
			for b.Loop() {
				binary.BigEndian.PutUint16(p[2:], uint16(seq))
				seq++
				out, err := sender.Seal(sealed, p, 1)
				if err == nil {
					_, err = receiver.Open(opened, out, 1)
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestAKeyCountsWhatItOpened: RTP, RTCP, the first packet of a source and one whose counter was found again. Nothing
// else counts.
func TestAKeyCountsWhatItOpened(t *testing.T) {
	k := sdes.NewKey(suite.AEADAES128GCM)
	sender := stream.NewSender(key(t, suite.AEADAES128GCM, k))
	opens := key(t, suite.AEADAES128GCM, k)
	receiver := stream.NewReceiver(opens)
	for i := range 10 {
		sealed := seal(t, sender, packet(7, i))
		_, err := open(receiver, sealed, 0)
		require.NoError(t, err)
		_, err = open(receiver, sealed, 0)
		require.ErrorIs(t, err, stream.ErrReplayed)
		assert.Equal(t, uint64(i+1), opens.Opened())
	}
	sealed, err := sender.SealRTCP(make([]byte, 80), report(7), 1)
	require.NoError(t, err)
	_, err = receiver.OpenRTCP(make([]byte, 80), sealed, 1)
	require.NoError(t, err)
	assert.Equal(t, uint64(11), opens.Opened())
	sealed[10]++
	_, err = receiver.OpenRTCP(make([]byte, 80), sealed, 1)
	require.Error(t, err)
	assert.Equal(t, uint64(11), opens.Opened())

	for i := 10; i < 110000; i++ { // not received
		seal(t, sender, packet(7, i))
	}
	_, err = open(receiver, seal(t, sender, packet(7, 110000)), time.Second)
	require.NoError(t, err)
	assert.Equal(t, uint64(1), receiver.Recovered())
	assert.Equal(t, uint64(12), opens.Opened())
}
