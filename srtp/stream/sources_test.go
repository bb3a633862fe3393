package stream_test

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/sdes"
	"ringway/srtp/stream"
	"ringway/srtp/suite"
)

// sealAt seals at a time.
func sealAt(s *stream.Sender, p []byte, now time.Duration) ([]byte, error) {
	return s.Seal(make([]byte, len(p)+64), p, int64(now)+1)
}

// However many sources somebody makes up on a leg in clear, there is a place for few of them. Ten a second for half an
// hour do not keep a phone from going on, from coming back after a hold, or from beginning another source.
func TestSourcesThatAreMadeUp(t *testing.T) {
	sender, receiver := ends(t, suite.AEADAES128GCM)
	streams := map[string]bool{}
	made := uint32(1000)
	for second := range 1800 {
		for tenth := range 10 {
			now := time.Duration(second)*time.Second + time.Duration(tenth)*100*time.Millisecond
			made++
			for seq := range 2 {
				p := packet(made, seq)
				clear(p[12:])
				if out, err := sealAt(sender, p, now); err == nil {
					require.False(t, streams[string(out[12:60])], "the key stream came twice")
					streams[string(out[12:60])] = true
				} else {
					require.ErrorIs(t, err, stream.ErrSources)
				}
			}
			sender.Account()
			for _, voice := range []struct {
				ssrc uint32
				on   bool
			}{
				{1, true}, {2, second < 100 || second > 1500}, {uint32(10 + second/300), true},
			} {
				if !voice.on {
					continue
				}
				sealed, err := sealAt(sender, packet(voice.ssrc, second*10+tenth), now)
				if err != nil && (voice.ssrc >= 10 && second%300 < 10 || voice.ssrc == 2 && second-1500 < 10) {
					continue // a new one, or one that was forgotten, beside as many as may begin
				}
				require.NoError(t, err, "source %d after %s", voice.ssrc, now)
				got, err := open(receiver, sealed, now)
				require.NoError(t, err, "source %d after %s", voice.ssrc, now)
				require.Equal(t, second*10+tenth, number(got))
			}
		}
	}
	assert.False(t, sender.Crowded())
	assert.Greater(t, len(streams), 15_000, "those that may begin do")
	assert.Len(t, sender.Account().Sources, stream.MaxSources)
}

// Somebody who gives each source that he makes up 2^15 packets gets as far as there are places. Then those that are
// known go on, and another key helps.
func TestACrowdedKey(t *testing.T) {
	s := suite.AEADAES128GCM
	sender := stream.NewSender(key(t, s, sdes.NewKey(s), 1))
	seq := 0
	for ssrc := range uint32(stream.MaxSources) {
		for range 200 {
			seq++
			_, err := sealAt(sender, packet(ssrc, seq), time.Duration(ssrc)*time.Second)
			require.NoError(t, err)
		}
		for range 12 {
			seq += 2999
			_, err := sealAt(sender, packet(ssrc, seq), time.Duration(ssrc)*time.Second)
			require.NoError(t, err)
		}
		sender.Account()
	}
	assert.False(t, sender.Crowded())
	_, err := sealAt(sender, packet(999, 1), time.Hour)
	assert.ErrorIs(t, err, stream.ErrSources)
	assert.True(t, sender.Crowded())
	for ssrc := range uint32(stream.MaxSources) {
		_, err = sealAt(sender, packet(ssrc, seq+1), time.Hour)
		assert.NoError(t, err)
	}

	sender.Use(key(t, s, sdes.NewKey(s), 2))
	assert.False(t, sender.Crowded())
	for ssrc := range uint32(100) {
		_, err := sealAt(sender, packet(1000+ssrc, 1), time.Hour+time.Duration(ssrc)*time.Second)
		assert.NoError(t, err)
		sender.Account()
	}
}

// A source that comes back goes on where it was, also where its counter is not 0.
func TestASourceComesBack(t *testing.T) {
	each(t, func(t *testing.T, s suite.Suite) {
		sender, receiver := ends(t, s)
		seq := 0
		for ; seq < 200_000; seq += 2 {
			_, err := open(receiver, seal(t, sender, packet(7, seq)), 0)
			require.NoError(t, err)
		}
		recorded := seal(t, sender, packet(7, seq))
		_, err := open(receiver, recorded, 0)
		require.NoError(t, err)
		for ssrc := range uint32(20) {
			now := time.Duration(ssrc+1) * time.Second
			sealed, err := sealAt(sender, packet(100+ssrc, 1), now)
			require.NoError(t, err)
			_, err = open(receiver, sealed, now)
			require.NoError(t, err)
		}
		_, err = open(receiver, recorded, time.Minute)
		assert.ErrorIs(t, err, stream.ErrReplayed)
		for range 3 {
			seq++
			got, err := open(receiver, seal(t, sender, packet(7, seq)), time.Minute)
			require.NoError(t, err)
			assert.Equal(t, seq, number(got))
		}
		assert.Zero(t, receiver.Recovered())
	})
}

// What was recorded of a source is not accepted again when so many others have come that it was forgotten, and the
// next process does not either. A new source is.
func TestAForgottenSourceIsNotReplayed(t *testing.T) {
	s := suite.AES128CMHMACSHA180
	k := sdes.NewKey(s)
	sender, receiver := stream.NewSender(key(t, s, k)), stream.NewReceiver(key(t, s, k))
	var recorded [][]byte
	var reports [][]byte
	now := time.Duration(0)
	for ssrc := range uint32(3 * stream.MaxSources) {
		now += time.Second
		sealed, err := sealAt(sender, packet(ssrc, 1), now)
		require.NoError(t, err)
		sender.Account()
		_, err = open(receiver, sealed, now)
		require.NoError(t, err, "source %d", ssrc)
		recorded = append(recorded, sealed)
		r, err := sender.SealRTCP(make([]byte, 80), report(ssrc), int64(now))
		require.NoError(t, err)
		_, err = receiver.OpenRTCP(make([]byte, 80), r, int64(now))
		require.NoError(t, err, "source %d", ssrc)
		reports = append(reports, r)
	}
	next := stream.NewReceiver(key(t, s, k))
	next.Restore(receiver.Heard(), int64(now))
	for name, r := range map[string]*stream.Receiver{"this one": receiver, "the next one": next} {
		assert.LessOrEqual(t, len(r.Heard()), stream.MaxHeard)
		for i := range recorded {
			now += time.Second
			_, err := open(r, recorded[i], now)
			assert.Error(t, err, "%s: source %d", name, i)
			_, err = r.OpenRTCP(make([]byte, 80), reports[i], int64(now))
			assert.Error(t, err, "%s: report of source %d", name, i)
		}
	}
	sealed, err := sealAt(sender, packet(999, 1), now)
	require.NoError(t, err)
	_, err = open(receiver, sealed, now)
	assert.NoError(t, err)
}

// forge is a packet that is not authentic.
func forge(ssrc uint32, seq int) []byte { return append(packet(ssrc, seq), make([]byte, 16)...) }

// Forgeries of sources that are not known keep nothing, and only so many are looked at. Those of sources that are
// parked bring none back.
func TestForgeriesMakeNoState(t *testing.T) {
	sender, receiver := ends(t, suite.AEADAES128GCM)
	for ssrc := range uint32(20) {
		sealed, err := sealAt(sender, packet(ssrc, 1), time.Duration(ssrc)*time.Second)
		require.NoError(t, err)
		_, err = open(receiver, sealed, time.Duration(ssrc)*time.Second)
		require.NoError(t, err)
	}
	before := receiver.Heard()
	require.Len(t, before, 20)
	errs := map[error]int{}
	for ssrc := range uint32(1000) {
		_, err := open(receiver, forge(1000+ssrc, 1), time.Hour)
		errs[err]++
	}
	assert.Equal(t, map[error]int{stream.ErrForged: 10, stream.ErrSources: 990}, errs)
	for ssrc := range uint32(20) {
		_, err := open(receiver, forge(ssrc, 2), 2*time.Hour)
		assert.ErrorIs(t, err, stream.ErrForged)
		_, err = receiver.OpenRTCP(make([]byte, 80), append(report(ssrc), make([]byte, 30)...), int64(2*time.Hour))
		assert.Error(t, err)
	}
	assert.Equal(t, before, receiver.Heard())
	assert.False(t, receiver.Due())
}

// Beside a thousand forged packets a second a phone's new source is heard within seconds, and so is one whose counter
// has to be found again: at once, where the forger is elsewhere than the phone.
func TestAFloodOfForgeriesStarvesNobody(t *testing.T) {
	const flood, voice = time.Second / 1000, 20 * time.Millisecond
	for _, c := range []struct {
		name      string
		elsewhere bool // the forger's address is not the phone's
		known     bool // its packets claim to be of a source that is known
		within    time.Duration
	}{
		{"new sources from elsewhere", true, false, 2 * voice},
		{"new sources from the same address", false, false, time.Minute},
		{"a known source from elsewhere", true, true, 2 * voice},
		{"a known source from the same address", false, true, time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			sender, receiver := ends(t, suite.AES128CMHMACSHA180)
			_, err := open(receiver, seal(t, sender, packet(7, 0)), 0)
			require.NoError(t, err)
			seq, ssrc := 0, uint32(8)
			if c.known { // a gap
				ssrc = 7
				for range 70_000 {
					seq++
					seal(t, sender, packet(7, seq))
				}
			}
			heard := time.Duration(0)
			for now := time.Second; heard == 0 && now < 2*time.Minute; now += flood {
				fake := forge(uint32(now), 1)
				if c.known {
					fake = forge(7, 30_000)
				}
				receiver.Expected = !c.elsewhere
				_, err := open(receiver, fake, now)
				require.Error(t, err)
				if now%voice != 0 || now < 10*time.Second {
					continue
				}
				seq++
				sealed, err := sealAt(sender, packet(ssrc, seq), now)
				require.NoError(t, err)
				receiver.Expected = true
				if _, err := open(receiver, sealed, now); err == nil {
					heard = now
				}
			}
			require.NotZero(t, heard, "never heard")
			assert.LessOrEqual(t, heard-10*time.Second, c.within)
		})
	}
}

// A process that was killed has accepted packets of which it could not say so any more. The next one accepts none of
// them again, and everything after some more than a second.
func TestWhatWasHeardIsNotHeardAgain(t *testing.T) {
	for _, killed := range []int{1, 2, 47, 48, 49, 63, 64, 65, 100, 1000} {
		t.Run(fmt.Sprintf("after %d packets", killed), func(t *testing.T) {
			s := suite.AEADAES128GCM
			k := sdes.NewKey(s)
			sender, receiver := stream.NewSender(key(t, s, k)), stream.NewReceiver(key(t, s, k))
			var said []stream.Heard
			var recorded, reports [][]byte
			hear := func(seq int) {
				sealed := seal(t, sender, packet(7, seq))
				_, err := open(receiver, sealed, 0)
				require.NoError(t, err)
				recorded = append(recorded, sealed)
			}
			tell := func() {
				if receiver.Due() {
					said = receiver.Heard()
				}
			}
			seq := 0
			for range killed {
				hear(seq)
				tell()
				if seq%10 == 0 {
					r, err := sender.SealRTCP(make([]byte, 80), report(7), 1)
					require.NoError(t, err)
					_, err = receiver.OpenRTCP(make([]byte, 80), r, 1)
					require.NoError(t, err)
					reports = append(reports, r)
					tell()
				}
				seq++
			}
			next := stream.NewReceiver(key(t, s, k))
			next.Restore(said, 1)
			for i, p := range recorded {
				_, err := open(next, p, time.Hour)
				assert.ErrorIs(t, err, stream.ErrReplayed, "packet %d", i)
			}
			for i, r := range reports {
				_, err := next.OpenRTCP(make([]byte, 80), r, 1)
				assert.ErrorIs(t, err, stream.ErrReplayed, "report %d", i)
			}
			lost := 0
			for ; ; seq++ {
				if _, err := open(next, seal(t, sender, packet(7, seq)), time.Hour); err == nil {
					break
				}
				lost++
			}
			assert.LessOrEqual(t, lost, 64)
			assert.Zero(t, next.Recovered())
			assert.True(t, next.Due(), "the process after that has to know, too")
		})
	}
}

// A process that ended of its own accord has said all, and nothing is lost.
func TestWhatWasSaidExactlyLosesNothing(t *testing.T) {
	s := suite.AEADAES128GCM
	k := sdes.NewKey(s)
	sender, receiver := stream.NewSender(key(t, s, k)), stream.NewReceiver(key(t, s, k))
	_, err := open(receiver, seal(t, sender, packet(7, 1)), 0)
	require.NoError(t, err)
	said := receiver.Heard()
	said[0].Exact = true
	next := stream.NewReceiver(key(t, s, k))
	next.Restore(said, 1)
	_, err = open(next, seal(t, sender, packet(7, 2)), 0)
	assert.NoError(t, err)
}

// What sources leave behind in the library is bounded, too: 100 bytes each would be megabytes.
func TestSourcesLeaveNoMemoryBehind(t *testing.T) {
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	sender, receiver := ends(t, suite.AEADAES128GCM)
	before, opened := heap(), 0
	for ssrc := range uint32(25_000) {
		now := time.Duration(ssrc) * time.Second
		sealed, err := sealAt(sender, packet(ssrc, 1), now)
		if err != nil {
			require.ErrorIs(t, err, stream.ErrSources)
			continue
		}
		sender.Account()
		_, err = open(receiver, sealed, now)
		require.NoError(t, err)
		opened++
	}
	assert.Greater(t, opened, 20_000)
	assert.Less(t, int64(heap()-before), int64(1<<20))
	runtime.KeepAlive(sender)
	runtime.KeepAlive(receiver)
}

// What is said for the next process allocates nothing on the thread that says it, and sources that take turns do not.
func TestAccountsAllocateNothing(t *testing.T) {
	sender, receiver := ends(t, suite.AEADAES128GCM)
	account := stream.Account{Sources: make([]stream.Sent, 0, stream.MaxSources)}
	heard := make([]stream.Heard, 0, stream.MaxHeard)
	sealed, opened := make([]byte, 300), make([]byte, 300)
	p, seq, now := packet(0, 0), 0, int64(1)
	step := func() {
		now += int64(20 * time.Millisecond)
		binary.BigEndian.PutUint32(p[8:], uint32(seq%stream.MaxSources))
		binary.BigEndian.PutUint16(p[2:], uint16(seq/stream.MaxSources))
		seq++
		out, err := sender.Seal(sealed, p, now)
		if err != nil {
			return // too many new ones this second
		}
		_, _ = receiver.Open(opened, out, now)
		sender.AccountTo(&account)
		heard = receiver.AppendHeard(heard[:0])
	}
	for range 10_000 {
		step()
	}
	require.Len(t, account.Sources, stream.MaxSources)
	require.Len(t, heard, stream.MaxSources)
	assert.Zero(t, testing.AllocsPerRun(1000, step))
}

// A key that was wiped protects and opens nothing: least of all what somebody has protected with zeros.
func TestAWipedKey(t *testing.T) {
	each(t, func(t *testing.T, s suite.Suite) {
		for _, mki := range [][]byte{nil, {1, 2, 3, 4}} {
			zeros := sdes.Key{Master: make([]byte, s.KeyLen()), Salt: make([]byte, s.SaltLen())}
			attacker := stream.NewSender(key(t, s, zeros, mki...))
			k := key(t, s, sdes.NewKey(s), mki...)
			receiver, sender := stream.NewReceiver(k), stream.NewSender(k)
			receiver.Wipe()
			for _, ssrc := range []uint32{7, 8} {
				_, err := open(receiver, seal(t, attacker, packet(ssrc, 1)), 0)
				assert.ErrorIs(t, err, stream.ErrWiped)
				r, err := attacker.SealRTCP(make([]byte, 80), report(ssrc), 1)
				require.NoError(t, err)
				_, err = receiver.OpenRTCP(make([]byte, 80), r, 1)
				assert.ErrorIs(t, err, stream.ErrWiped)
			}
			_, err := sender.Seal(make([]byte, 300), packet(7, 1), 1)
			assert.ErrorIs(t, err, stream.ErrWiped)
			_, err = sender.SealRTCP(make([]byte, 80), report(7), 1)
			assert.ErrorIs(t, err, stream.ErrWiped)
		}
	})
}

// A key that has protected something never begins again, whoever hands it in twice.
func TestAKeyDoesNotBeginTwice(t *testing.T) {
	s := suite.AEADAES128GCM
	first, second := key(t, s, sdes.NewKey(s)), key(t, s, sdes.NewKey(s))
	for name, again := range map[string]func(*stream.Sender, *stream.Key) *stream.Key{
		"use": (*stream.Sender).Use, "begin": (*stream.Sender).Begin,
	} {
		sender := stream.NewSender(first)
		streams := map[string]bool{}
		send := func(ssrc uint32, seq int) error {
			p := packet(ssrc, seq)
			clear(p[12:])
			out, err := sender.Seal(make([]byte, 300), p, int64(ssrc+1)*int64(time.Second))
			if err == nil {
				assert.False(t, streams[string(out[12:60])], "%s: the key stream came twice", name)
				streams[string(out[12:60])] = true
			}
			return err
		}
		require.NoError(t, send(7, 1))
		sender.Use(second)
		require.NoError(t, send(8, 1))
		for i, k := range []*stream.Key{first, second, second} {
			again(sender, k)
			_ = send(7, 1)
			_ = send(8, 1)
			assert.NoError(t, send(7, 2+i), name)
			assert.ErrorIs(t, send(9, 1), stream.ErrSources, name)
		}
		first, second = key(t, s, sdes.NewKey(s)), key(t, s, sdes.NewKey(s))
	}
}

// New offers bring new keys, under which everything begins again.
func TestBegin(t *testing.T) {
	s := suite.AES128CMHMACSHA180
	sender, _ := ends(t, s)
	for i := range 100_000 {
		seal(t, sender, packet(7, i))
	}
	k := sdes.NewKey(s)
	before := sender.Key()
	assert.Same(t, before, sender.Begin(key(t, s, k)))
	receiver := stream.NewReceiver(key(t, s, k))
	_, err := open(receiver, seal(t, sender, packet(7, 100_000)), 0)
	require.NoError(t, err)
	assert.Less(t, receiver.Heard()[0].Index, uint64(1<<15))
}

// Neither kind of index goes beyond its end.
func TestIndicesHaveAnEnd(t *testing.T) {
	s := suite.AEADAES128GCM
	sender := stream.NewSender(key(t, s, sdes.NewKey(s)))
	const last, lastRTCP = 1<<48 - 1, 1<<31 - 1
	sender.Restore(stream.Account{Sources: []stream.Sent{
		{SSRC: 7, Index: last - 2 - 1<<13, HasRTP: true, Delta: 1<<16 - 1<<13, RTCPIndex: lastRTCP - 2 - 1<<13},
	}})
	for i := range 2 {
		_, err := sender.Seal(make([]byte, 300), packet(7, 0xfffe+i), 1)
		require.NoError(t, err)
		_, err = sender.SealRTCP(make([]byte, 80), report(7), 1)
		require.NoError(t, err)
	}
	_, err := sender.Seal(make([]byte, 300), packet(7, 0x10000), 1)
	assert.ErrorIs(t, err, stream.ErrExhausted)
	_, err = sender.SealRTCP(make([]byte, 80), report(7), 1)
	assert.ErrorIs(t, err, stream.ErrExhausted)
}

// A source that a process begins may have been begun by the process before, which could not say so any more. Packets
// that come late have no index below that at which this one begins.
func TestASourceBeginsNowhereBefore(t *testing.T) {
	sender, _ := ends(t, suite.AEADAES128GCM)
	sender.Restore(stream.Account{})
	begin := binary.BigEndian.Uint16(seal(t, sender, packet(7, 5000))[2:])
	assert.Less(t, begin, uint16(1<<15))
	for _, late := range []int{4999, 4990, 4500} {
		_, err := sender.Seal(make([]byte, 300), packet(7, late), 1)
		assert.ErrorIs(t, err, stream.ErrDuplicate)
	}
	assert.Equal(t, begin+2, binary.BigEndian.Uint16(seal(t, sender, packet(7, 5002))[2:]))
	assert.Equal(t, begin+1, binary.BigEndian.Uint16(seal(t, sender, packet(7, 5001))[2:]))
}

// What a leg in clear can begin is bounded: ten sources at once, and one to be forgotten until there is an account of
// the one before. A process that ended without that would begin where this one has been.
func TestNewSourcesAreBounded(t *testing.T) {
	sender, _ := ends(t, suite.AEADAES128GCM)
	begun := 0
	for ssrc := range uint32(100) {
		if _, err := sealAt(sender, packet(ssrc, int(ssrc)+1), 0); err == nil {
			begun++
		}
	}
	assert.Equal(t, 10, begun)
	now := time.Duration(0)
	begin := func() error {
		now += time.Second
		_, err := sealAt(sender, packet(uint32(1000+now/time.Second), int(100+now/time.Second)), now)
		return err
	}
	for len(sender.Account().Sources) < stream.MaxSources {
		require.NoError(t, begin())
	}
	assert.NoError(t, begin())
	assert.ErrorIs(t, begin(), stream.ErrSources)
	assert.False(t, sender.Crowded())
	sender.Account()
	assert.NoError(t, begin())
}

// A source that goes on sending keeps its place, and with it what it needs to tell a late packet from a copy.
func TestASourceThatSendsKeepsItsPlace(t *testing.T) {
	sender, receiver := ends(t, suite.AEADAES128GCM)
	for second := range 30 {
		now := time.Duration(second) * time.Second
		for _, seq := range []int{3*second + 1, 3*second + 3, 3*second + 2} {
			sealed, err := sealAt(sender, packet(7, seq), now)
			require.NoError(t, err, "packet %d", seq)
			_, err = open(receiver, sealed, now)
			require.NoError(t, err, "packet %d", seq)
			if seq == 3*second+3 {
				sealed, err = sealAt(sender, packet(uint32(100+second), 1), now)
				require.NoError(t, err)
				_, err = open(receiver, sealed, now)
				require.NoError(t, err)
			}
		}
	}
}

// An account is due before a source has moved on by what the next process skips, whichever index it is.
func TestAnAccountIsDueInTime(t *testing.T) {
	sender, _ := ends(t, suite.AEADAES128GCM)
	for name, send := range map[string]func(i int){
		"SRTP": func(i int) { seal(t, sender, packet(7, i)) },
		"SRTCP": func(int) {
			_, err := sender.SealRTCP(make([]byte, 80), report(7), 1)
			require.NoError(t, err)
		},
	} {
		send(0)
		sender.Account()
		sent := 0
		for ; !sender.Due() && sent < 1<<13; sent++ {
			send(sent + 1)
		}
		assert.Equal(t, 1<<12, sent, name)
	}
}
