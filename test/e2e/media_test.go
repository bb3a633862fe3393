package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/appliance/unmarked"
	"ringway/test/lab"
	"ringway/test/polltest"
)

// recorded says how many bytes of sound b has from the far end.
func (b *baresip) recorded() (n int64) {
	files, _ := filepath.Glob(filepath.Join(b.dir, "dump-*-dec.wav"))
	for _, f := range files {
		if i, err := os.Stat(f); err == nil {
			n = max(n, i.Size()-wavHeader)
		}
	}
	return n
}

// longTone is a minute of a tone.
func longTone(frequency float64) []byte {
	short := tone(frequency)
	out := slices.Concat(short[:wavHeader], bytes.Repeat(short[wavHeader:], 6))
	binary.LittleEndian.PutUint32(out[4:], uint32(len(out)-8))
	binary.LittleEndian.PutUint32(out[wavHeader-4:], uint32(len(out)-wavHeader))
	return out
}

// mediaOf is what the status says of media that is not treated as that.
type mediaOf struct {
	Media unmarked.Status `json:"unmarked_media"`
	Drops map[string]struct{ Packets uint64 }
}

func mediaStatus(t *testing.T, e *lab.Edge) (st mediaOf) {
	t.Helper()
	out, err := e.StatusJSON(within(t, 5*time.Second))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(out, &st))
	return st
}

// call has b call another one, and ends it once both have a second's sound of the other.
func (b *baresip) call(other *baresip, where string, mine, others float64) {
	b.t.Helper()
	b.do("dial", "sip:x@"+where)
	b.wait("CALL_ESTABLISHED")
	enough := func() bool { return min(b.recorded(), other.recorded()) > 2*baresipRate }
	polltest.Require(b.t, enough, 15*time.Second, 50*time.Millisecond, "no sound")
	b.do("hangup", "")
	b.wait("CALL_CLOSED")
	other.wait("CALL_CLOSED")
	b.hears(others)
	other.hears(mine)
}

// answering is an account that takes every call.
func answering(host string) string {
	return "<sip:x@" + sipHost(host, lab.IPv4) + ">;regint=0;answermode=auto"
}

// What configs/stock-wireguard.yaml says: a stock WireGuard at the far end, with one tunnel of class data, and phones
// and PCs there in one network. A phone there is called, and a softphone calls; both hear each other's tone.
func TestLongCallsHaveSoundWithAStockFarEnd(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{StockFarEnd: true, EdgeConfig: func(site string, values map[string]string) {
		if site == "berlin" {
			values["sites[munich].tunnels"], values["sites[munich].data_port"] = "data", "51820"
			values["sites[munich].networks"] = `[10.2.0.0/16, "2001:db8:2::/48"]`
			values["sites[munich].voice_networks"], values["sites[munich].data_networks"] = "[]", "[]"
		}
	}})
	a := startBaresip(t, l.Host(lab.PhoneA), answering(lab.PhoneA), 440)
	pc := startBaresip(t, l.Host(lab.PCB), answering(lab.PCB), 1000)
	a.call(pc, lab.AddressOf(lab.PCB, lab.IPv4), 440, 1000)
	pc.call(a, lab.AddressOf(lab.PhoneA, lab.IPv4), 1000, 440)
	assert.Zero(t, mediaStatus(t, l.Edge("a")).Drops["voice_data_apart"].Packets)
}

// A softphone on a PC in a data network: by default SIP passes and its media is dropped, and status says which and what
// to do. Either cure that it names gives sound.
func TestLongMediaThatIsDroppedIsNamed(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty})
	edge := l.Edge("a")
	phone := startBaresip(t, l.Host(lab.PhoneA), answering(lab.PhoneA), 440)
	soft := startBaresip(t, l.Host(lab.PCA), answering(lab.PCA), 1000)
	where := lab.AddressOf(lab.PCA, lab.IPv4)

	for b, frequency := range map[*baresip]float64{phone: 440, soft: 1000} { // a call ends with what is played
		require.NoError(t, os.WriteFile(filepath.Join(b.dir, "tone.wav"), longTone(frequency), 0o644))
	}
	phone.do("dial", "sip:x@"+where)
	phone.wait("CALL_ESTABLISHED")
	var found unmarked.Status
	polltest.Require(t, func() bool {
		found = mediaStatus(t, edge).Media
		return len(found.Flows) == 1 && found.Flows[0].BothWays
	}, 40*time.Second, 500*time.Millisecond, "status does not name the call")
	f := found.Flows[0]
	assert.True(t, f.Dropped)
	assert.ElementsMatch(t, []string{"voice0", "data0"}, []string{f.FromNetwork, f.ToNetwork})
	assert.ElementsMatch(t, []string{lab.AddressOf(lab.PhoneA, lab.IPv4), where},
		[]string{f.From.Addr().String(), f.To.Addr().String()})
	assert.InDelta(t, 50, f.PerSecond, 5)
	out, err := edge.Ringway(within(t, 5*time.Second), "status")
	require.NoError(t, err)
	assert.Contains(t, out, "set sip.mode: observe, or list the UDP ports of its media in classes[media].ports")
	phone.do("hangup", "")
	phone.wait("CALL_CLOSED")
	soft.wait("CALL_CLOSED")
	assert.Zero(t, max(phone.recorded(), soft.recorded()), "nobody heard anything")
	for _, b := range []*baresip{phone, soft} {
		old, _ := filepath.Glob(filepath.Join(b.dir, "dump-*.wav"))
		for _, file := range old {
			require.NoError(t, os.Remove(file))
		}
	}

	text, err := edge.Config()
	require.NoError(t, err)
	for _, cure := range []map[string]string{
		{"classes[media].ports": "udp/30000-30100"}, {"sip.mode": "observe"},
	} {
		changed, err := config.SetValues(text, cure)
		require.NoError(t, err)
		require.NoError(t, edge.WriteConfig(changed))
		_, err = edge.Ringway(within(t, 10*time.Second), "reload")
		require.NoError(t, err)
		if cure["sip.mode"] != "" {
			polltest.Require(t, func() bool { return callsStatus(t, edge).Reading }, 5*time.Second, 50*time.Millisecond)
		}
		phone.call(soft, where, 440, 1000)
		soft.call(phone, lab.AddressOf(lab.PhoneA, lab.IPv4), 1000, 440)
	}
}
