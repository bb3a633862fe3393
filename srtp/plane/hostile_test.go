package plane

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/process"
	"ringway/srtp/keys"
	"ringway/test/polltest"
)

// Garbage at the media ports changes counters, and nothing else.
func TestGarbageChangesCountersOnly(t *testing.T) {
	r := newRig(t)
	send, receive := keyOf(1), keyOf(2)
	r.set(sdesPair(send, receive))
	c := &talk{rig: r, peer: newPeer(t, send, receive)}
	c.once()
	pid, before := r.supervisor.PID(), r.leg(2)
	random := rand.New(rand.NewPCG(1, 2))
	const packets = 500
	for range packets {
		p := make([]byte, 1+random.IntN(1400))
		for i := range p {
			p[i] = byte(random.Uint32())
		}
		if len(p) > 12 && random.IntN(2) == 0 { // some look like media
			p[0] = 0x80
		}
		c.rig.peer.send(p)
	}
	polltest.Require(t, func() bool {
		dropped := uint64(0)
		for _, n := range r.leg(2).Drops {
			dropped += n
		}
		return dropped >= packets
	}, patience, tick)
	after := r.leg(2)
	assert.Equal(t, before.ReceivedPackets, after.ReceivedPackets)
	assert.Equal(t, before.Remote, after.Remote)
	c.once()
	assert.Equal(t, pid, r.supervisor.PID())
}

// Garbage at the control socket ends its connection. A request that is malformed is refused, and changes nothing.
func TestMalformedRequestsChangeNothing(t *testing.T) {
	r := newRig(t)
	send, receive := keyOf(1), keyOf(2)
	r.set(sdesPair(send, receive))
	c := &talk{rig: r, peer: newPeer(t, send, receive)}
	c.once()
	pid := r.supervisor.PID()

	for _, text := range []string{"", "x", ".", ".{", ".null", ".{\"type\":1}", "+{", "." + strings.Repeat("[", 1000)} {
		conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{
			Name: filepath.Join(r.runDir, "media.sock"), Net: "unixpacket",
		})
		require.NoError(t, err)
		_, _ = conn.Write([]byte(text))
		require.NoError(t, conn.Close())
	}

	var conn *process.Conn
	polltest.Require(t, func() bool { // those before may not have ended yet, and there are eight at most
		var err error
		if conn, err = process.Dial(kindOf(nil, nil), r.runDir); err != nil {
			return false
		}
		m, err := conn.Call(context.Background(), process.Request{Type: typeStatus})
		if err != nil {
			conn.Close()
			return false
		}
		m.Close()
		return true
	}, patience, tick)
	defer conn.Close()
	good := sdesPair(keyOf(3), keyOf(4))
	good.ID, good.Generation = 7, r.supervisor.Generation()
	good.Legs[0].ID, good.Legs[1].ID = 70, 71
	secrets := packKeys(nil, good.keys())
	with := func(change func(p *Pair)) Pair {
		p := good
		change(&p)
		return p
	}
	for name, x := range map[string]struct {
		request string
		body    any
		secrets []byte
		says    string
	}{
		"no keys":         {typeSet, setRequest{good}, nil, "keys beside the message"},
		"too many keys":   {typeSet, setRequest{good}, append(bytes.Clone(secrets), 0), "keys beside the message"},
		"no suite":        {typeSet, map[string]any{"pair": map[string]any{"id": 7}}, nil, "leg 0"},
		"not a pair":      {typeSet, map[string]any{"pair": "x"}, nil, "decode"},
		"another's port":  {typeSet, setRequest{good}, secrets, "leg 1 has 192.0.2.1:40000 already"},
		"same legs twice": {typeSet, setRequest{with(func(p *Pair) { p.Legs[0].ID = 71 })}, secrets, "joined with itself"},
		"another generation": {
			typeSet, setRequest{with(func(p *Pair) { p.Generation++ })}, secrets, "may have been used",
		},
		"no such keying": {
			typeSet, setRequest{with(func(p *Pair) { p.Legs[1].Keying = "x" })}, secrets, "keys belong to a leg of SDES",
		},
		"an epoch with another key": {
			typeSet, setRequest{with(func(p *Pair) { p.ID, p.Legs[0].ID, p.Legs[1].ID = 1, 1, 2 })}, secrets, "has other keys",
		},
		"no such action": {typeKeys, action{Kind: 9}, nil, "action 9"},
		"hold without a key": {
			typeKeys, action{Kind: keys.Hold, Key: Key{Suite: testSuite}}, nil, "keys beside the message",
		},
		"start again":     {typeStart, startRequest{}, nil, "it was started before"},
		"unknown request": {"x", nil, nil, "unknown request"},
	} {
		t.Run(name, func(t *testing.T) {
			m, err := conn.Call(context.Background(), process.Request{Type: x.request, Body: x.body, Attached: x.secrets})
			if err == nil {
				m.Close()
			}
			require.ErrorContains(t, err, x.says)
		})
	}
	assert.Len(t, r.status().Legs, 2)
	m, err := conn.Call(context.Background(), process.Request{Type: typeExport})
	require.NoError(t, err)
	defer m.Close()
	var st state
	require.NoError(t, m.Decode(&st))
	assert.Len(t, st.Pairs, 1)
	assert.Empty(t, st.Channels)
	assert.Empty(t, st.Used)
	c.once()
	c.reports()
	assert.Equal(t, pid, r.supervisor.PID())
}

// Nothing that a user can see has a key in it.
func TestKeysAreNowhereToBeSeen(t *testing.T) {
	r := newRig(t)
	ctx := context.Background()
	var seen bytes.Buffer
	see := func(what any) {
		text, err := json.Marshal(what)
		assert.NoError(t, err)
		fmt.Fprintf(&seen, "%s\n%v\n%+v\n%#v\n", text, what, what, what)
	}

	p := sdesPair(keyOf(1), keyOf(2))
	see(p)
	r.set(p)
	bad := p
	bad.Legs[1].Send.Keys = []Key{keyOf(9)}
	bad.Generation = r.supervisor.Generation()
	see(r.supervisor.Set(ctx, bad).Error())
	a := keys.Action{Kind: keys.Hold, Leg: keys.Leg{1}, Key: keysKey(3), Fresh: true}
	require.NoError(t, r.supervisor.Keys(ctx, a))
	a.Key, a.Fresh = keysKey(4), false
	copy(a.Key.MKI[:], []byte{0, 0, 0, 3})
	see(r.supervisor.Keys(ctx, a).Error())
	r.kill()
	see(r.status())
	r.detach()
	r.supervise()
	require.NoError(t, r.supervisor.Upgrade(ctx))
	see(r.status())
	see(r.supervisor.Problems())
	_, missing := r.supervisor.Sandbox()
	see(missing)
	seen.WriteString(r.log.String())
	require.NoError(t, filepath.Walk(r.runDir, func(path string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			b, err := os.ReadFile(path)
			assert.NoError(t, err)
			seen.Write(b)
		}
		return err
	}))

	for _, number := range []byte{1, 2, 3, 4, 9} {
		k := keyOf(number)
		for _, secret := range [][]byte{k.Master, k.Salt} {
			assertUnseen(t, seen.Bytes(), secret)
		}
	}
	assert.NotContains(t, seen.String(), "PRIVATE KEY")
}

func assertUnseen(t *testing.T, seen, secret []byte) {
	t.Helper()
	decimal := strings.Trim(fmt.Sprint(secret[:8]), "[]")
	for _, form := range []string{
		string(secret[:8]), hex.EncodeToString(secret[:8]), strings.ToUpper(hex.EncodeToString(secret[:8])),
		base64.StdEncoding.EncodeToString(secret[:6]), decimal, strings.ReplaceAll(decimal, " ", ","),
		strings.Trim(fmt.Sprintf("%#v", secret[:4]), "[]byte{}"),
	} {
		assert.NotContains(t, string(seen), form)
	}
}

// The process has given up what it does not need.
func TestTheProcessIsConfined(t *testing.T) {
	r := newRig(t)
	holds, missing := r.supervisor.Sandbox()
	for _, want := range []string{
		"user 61804", "no capabilities", "no new privileges", "not dumpable", "no core file", "at most 128 files",
		"at most 1024 MiB", "at most 500 ms of real-time without a pause", "landlock", "seccomp",
	} {
		assert.Contains(t, holds, want)
	}
	for _, m := range missing { // a container's root
		assert.Regexp(t, "^(memory shortage|coming back to real-time by itself|real-time): ", m)
	}
	realtime := !strings.Contains(strings.Join(missing, " "), "real-time: ")
	polltest.Require(t, func() bool { // one that lowered itself, on a slow machine, is raised at the next look
		threads := r.status().Threads
		return len(threads) == 2 && threads[0].Realtime == realtime && threads[1].Realtime == realtime
	}, 20*time.Second, 100*time.Millisecond, "two threads, real-time: %v", realtime)
	var locked bool
	for line := range strings.Lines(readProc(t, r.supervisor.PID(), "status")) {
		if kB, found := strings.CutPrefix(line, "VmLck:"); found {
			locked = strings.Fields(kB)[0] != "0"
		}
	}
	unlocked := strings.Contains(strings.Join(r.supervisor.Problems(), "\n"), "keys of media may be swapped out")
	assert.Equal(t, !locked, unlocked, "what is not locked is a problem")
}

func readProc(t *testing.T, pid int, name string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
	require.NoError(t, err)
	return string(b)
}
