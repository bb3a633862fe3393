package nft

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/firewall"
	"ringway/qos"
	"ringway/test/netnstest"
)

// shapedInwards is newWorld with the trees on both LANs.
func shapedInwards(t *testing.T, downlink qos.BitRate) (*world, qos.Downlink) {
	plan := qos.Input{WANs: []qos.Egress{{
		Interface: "wan0", Line: qos.Line{Downlink: downlink, Margin: 3},
	}}, LANs: []string{"voice0", "data0"},
		Classes: classes(), Features: qos.AssumedFeatures()}
	for i := range plan.Classes {
		plan.Classes[i].Limit = 50 * time.Millisecond
	}
	in := branch()
	in.Downlink = firewall.Downlink{LANs: plan.LANs, CallsID: qos.CallsID}
	for _, d := range qos.Downlinks(plan) {
		in.Downlink.WANs = append(in.Downlink.WANs, firewall.WANQueue{WAN: d.WAN, ClassID: d.ClassID})
	}
	w := newWorld(t, in)
	for _, l := range qos.Want(plan).Text() {
		w.edge.Run("tc", strings.Fields(l)[1:]...)
	}
	return w, qos.Downlinks(plan)[0]
}

// Only what a WAN brought in clear, and is no call, takes the WAN's queue.
func TestWhatComesInTakesItsQueue(t *testing.T) {
	t.Parallel()
	w, _ := shapedInwards(t, 20*qos.Mbit)
	w.internet.IP(
		"addr add 2001:db8:99::1/64 dev eth0 nodad", "-6 route add 2001:db8:1::/48 via 2001:db8:99::2",
	)
	w.edge.IP("addr add 2001:db8:99::2/64 dev wan0 nodad")

	for _, c := range []struct {
		what, lan, host, at string
		tos                 int
		priority            string
	}{
		{"data", "data0", pc4, internet4, 0, "2:10"},
		{"data over IPv6", "voice0", phone6, "2001:db8:99::1", 0, "2:10"},
		{"a call over the branch's own internet", "voice0", phone4, internet4, 46 << 2, "2:e0"},
		{"its signalling", "voice0", phone4, internet4, 24 << 2, "2:e0"},
	} {
		inside := w.listen(map[string]*netnstest.NS{"data0": w.pc, "voice0": w.phone}[c.lan], c.host, 0)
		port := inside.LocalAddr().(*net.UDPAddr).Port
		outside := w.listen(w.internet, c.at, 0)
		w.send(inside, c.at, outside.LocalAddr().(*net.UDPAddr).Port, c.tos)
		buf := make([]byte, 100)
		require.NoError(t, outside.SetReadDeadline(time.Now().Add(3*time.Second)))
		_, from, err := outside.ReadFromUDPAddrPort(buf)
		require.NoError(t, err, c.what)
		w.send(outside, from.Addr().Unmap().String(), int(from.Port()), 0)
		w.receive(inside, c.what)
		list := w.edge.Run("nft", "-y", "list", "table", "inet", "witness")
		assert.Regexp(
			t, `"`+c.lan+`" . `+strconv.Itoa(port)+` . 0x[0-9a-f]{8} . `+c.priority+` . `, list, c.what,
		)
	}
	// What comes out of tunnels is no business of the WAN's queue: calls go first, the rest has no priority
	// of the tree's.
	phone, pc := w.listen(w.phone, phone4, 20001), w.listen(w.pc, pc4, 20002)
	w.send(w.listen(w.far, farPhone4, 0), phone4, 20001, 46<<2)
	w.receive(phone, "a call out of the tunnel")
	w.assertSeen("voice0", 20001, 0x1200, "2:e0", "ef")
	w.send(w.listen(w.far, farPC4, 0), pc4, 20002, 0)
	w.receive(pc, "data out of the tunnel")
	assert.NotRegexp(
		t, `"data0" . 20002 . 0x[0-9a-f]{8} . 2:`, w.edge.Run("nft", "-y", "list", "table", "inet", "witness"),
	)
}

// A flood from the internet at twice the line is limited to its part of it, and a call out of the tunnel to
// the same LAN does not wait behind it.
func TestAFloodFromTheInternetIsHeldAndCallsGoFirst(t *testing.T) {
	t.Parallel()
	const line = 20 * qos.Mbit
	w, d := shapedInwards(t, line)
	phone, download := w.listen(w.phone, phone4, 20001), w.listen(w.phone, phone4, 20002)
	server, far := w.listen(w.internet, internet4, 7000), w.listen(w.far, farPhone4, 20000)
	w.send(download, internet4, 7000, 0)
	require.NoError(t, server.SetReadDeadline(time.Now().Add(3*time.Second)))
	_, client, err := server.ReadFromUDPAddrPort(make([]byte, 100))
	require.NoError(t, err)
	w.send(far, phone4, 20001, 46<<2)
	w.receive(phone, "the call's first packet")

	type arrival struct {
		at    time.Time
		delay time.Duration
	}
	start := time.Now()
	stamp := func(size int) []byte {
		b := make([]byte, size)
		binary.BigEndian.PutUint64(b, uint64(time.Since(start)))
		return b
	}
	collect := func(c *net.UDPConn, into *[]arrival, end *atomic.Bool, wg *sync.WaitGroup) {
		wg.Go(func() {
			buf := make([]byte, 2000)
			for !end.Load() {
				_ = c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
				n, err := c.Read(buf)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					continue
				}
				if err != nil || n < 8 {
					return
				}
				*into = append(
					*into, arrival{time.Now(), time.Since(start) - time.Duration(binary.BigEndian.Uint64(buf))},
				)
			}
		})
	}
	var calls, data []arrival
	var end, quiet atomic.Bool
	var receivers, sender sync.WaitGroup
	collect(phone, &calls, &end, &receivers)
	collect(download, &data, &end, &receivers)
	const size, packets = 1400, 100
	sender.Go(func() { // twice the line: 1442 bytes on it
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		sent := 0
		for begun := time.Now(); !quiet.Load(); <-tick.C {
			for due := int((2 * line).Bytes(time.Since(begun)) / 1442); sent < due; sent++ {
				if _, err := server.WriteToUDPAddrPort(stamp(size), client); err != nil {
					t.Errorf("flood: %v", err)
					return
				}
			}
		}
	})
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for range packets {
		<-tick.C
		_, err := far.WriteToUDPAddrPort(stamp(172), netip.MustParseAddrPort(phone4+":20001"))
		require.NoError(t, err)
	}
	quiet.Store(true)
	sender.Wait()
	<-time.After(200 * time.Millisecond) // what is in the queue comes out
	end.Store(true)
	receivers.Wait()

	require.Len(t, calls, packets, "no packet of the call is lost")
	require.Greater(t, len(data), 500)
	data = data[len(data)/10:] // after the burst with which an idle class begins
	rate := float64((len(data)-1)*1442*8) / data[len(data)-1].at.Sub(data[0].at).Seconds()
	delays := func(a []arrival) (out []time.Duration) {
		for _, p := range a {
			out = append(out, p.delay)
		}
		slices.Sort(out)
		return out
	}
	call, bulk := delays(calls), delays(data)
	t.Logf("data %.2f of %.2f Mbit/s; waits: data p50 %s, the call p50 %s, p90 %s, max %s", rate/1e6, float64(d.Rate)/1e6,
		bulk[len(bulk)/2], call[packets/2], call[packets*9/10], call[packets-1])
	assert.LessOrEqual(t, rate, 1.03*float64(d.Rate))
	assert.GreaterOrEqual(t, rate, 0.85*float64(d.Rate))
	assert.Greater(t, bulk[len(bulk)/2], 20*time.Millisecond, "data waits in its queue")
	assert.Less(t, call[packets*9/10], bulk[len(bulk)/2]/4, "the call does not wait behind it")
}
