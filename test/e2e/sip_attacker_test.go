package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/lab"
	"ringway/test/lab/capture"
	"ringway/test/polltest"
)

// The attacker's address in berlin's voice network, and his accomplice's in munich's: both are other phones than
// those of the calls.
const (
	attacker   = "10.1.10.11"
	accomplice = "10.2.10.11"

	injections = 40 // packets of RTP that are sent to a port of another's call
)

// While calls are up, another phone of the LAN forges a BYE, asks for holes that it must not have, sends RTP to a
// phone's open ports, tries two readings of one message, and floods. The calls notice nothing of it.
func TestAnAttackerBesideCalls(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: reading("enforce", map[string]string{
		"sip.limits.phone": "50",
	})})
	for _, host := range []string{lab.PhoneA, lab.PhoneB} {
		_, err := l.Pair(lab.Ringway).SecondPC(t.Context(), host)
		require.NoError(t, err)
	}
	wire := listenTo(t, l.Host(lab.PhoneA))
	talk := dialled(t, l, 2, 9*time.Second, lab.Dialing{Ramp: 200 * time.Millisecond})
	sent, came := wire.stop()
	before := [2][]string{holesOf(t, l.Edge("a")), holesOf(t, l.Edge("b"))}
	require.Len(t, before[0], 8)

	x := newAttack(t, l)
	x.forgeBye(text(sent), text(came))
	x.askForHoles()
	x.inject()
	x.twoLengths()
	x.flood()
	assert.Equal(t, before[0], holesOf(t, l.Edge("a")))
	assert.Equal(t, before[1], slices.DeleteFunc(holesOf(t, l.Edge("b")), func(hole string) bool {
		return strings.Contains(hole, " . 10.1.10.1 . ") // munich does not know the addresses of berlin's box
	}))
	injected := heardAll(t, l, talk, attacker)
	sentOff, lost := count(injected)
	assert.Equal(t, []int{injections, injections}, []int{sentOff, lost}, "RTP that the attacker sent, and of that lost")
	holesSettle(t, l.Edge("a"), 0)
	for _, side := range []string{"a", "b"} {
		assert.Zero(t, callsStatus(t, l.Edge(side)).Restarts)
	}
}

func text(streams map[string]string) string {
	var all strings.Builder
	for _, s := range streams {
		all.WriteString(s)
	}
	return all.String()
}

// attack is the attacker's sockets and those of his accomplice.
type attack struct {
	t        *testing.T
	l        *lab.Lab
	edge     *lab.Edge      // of the attacker
	from, to net.PacketConn // UDP, port 5060
	listener net.Listener   // TCP, port 5060, of the accomplice
}

func newAttack(t *testing.T, l *lab.Lab) *attack {
	t.Helper()
	x := &attack{t: t, l: l, edge: l.Edge("a")}
	x.from, x.to = x.udp(lab.PhoneA, attacker+":5060"), x.udp(lab.PhoneB, accomplice+":5060")
	require.NoError(t, l.Host(lab.PhoneB).Do(func() (err error) {
		x.listener, err = net.Listen("tcp", accomplice+":5060")
		return err
	}))
	t.Cleanup(func() { x.listener.Close() })
	return x
}

func (x *attack) udp(host, address string) (c net.PacketConn) {
	x.t.Helper()
	require.NoError(x.t, x.l.Host(host).Do(func() (err error) {
		c, err = net.ListenPacket("udp", address)
		return err
	}))
	x.t.Cleanup(func() { c.Close() })
	return c
}

// send sends a datagram as the attacker.
func (x *attack) send(message, to string) {
	x.t.Helper()
	a, err := net.ResolveUDPAddr("udp", to)
	require.NoError(x.t, err)
	_, err = x.from.WriteTo([]byte(message), a)
	require.NoError(x.t, err)
}

// sip is a message with its lines ended as they have to be.
func sip(body string, lines ...string) string {
	lines = append(lines, fmt.Sprintf("Content-Length: %d", len(body)), "", "")
	return strings.Join(lines, "\r\n") + body
}

// refused waits for the counter of a reason.
func (x *attack) refused(why string, n uint64) {
	x.t.Helper()
	polltest.Assert(x.t, func() bool { return callsStatus(x.t, x.edge).Refused[why] == n }, 3*time.Second,
		50*time.Millisecond, "%s: %v", why, callsStatus(x.t, x.edge).Refused)
}

// forgeBye ends nothing: a BYE for each call, with all that was overheard, from another address than the caller's.
func (x *attack) forgeBye(sent, came string) {
	x.t.Helper()
	find := func(pattern, in string) []string {
		all := regexp.MustCompile(pattern).FindAllStringSubmatch(in, -1)
		require.NotEmpty(x.t, all, pattern)
		return all[len(all)-1]
	}
	ack := find(`(?s)ACK sip:[^\r]*\r\n.*?(From: [^\r]*)\r\n(To: [^\r]*)\r\n(Call-ID: [^\r]*)\r\n`, sent)
	require.Contains(x.t, came, strings.TrimPrefix(ack[2], "To: "), "the callee's tag")
	for range 3 {
		x.send(sip("", "BYE sip:phone-b@10.2.10.10:5060 SIP/2.0",
			"Via: SIP/2.0/UDP "+attacker+":5060;branch=z9hG4bKforged", ack[1], ack[2], ack[3], "CSeq: 2 BYE",
			"Max-Forwards: 70"), "10.2.10.10:5060")
	}
	x.refused("foreign_hop", 3)
	list := callsOf(x.t, x.edge)
	require.Len(x.t, list, 2)
	for _, c := range list {
		assert.Equal(x.t, "confirmed", c.State)
	}
}

// askForHoles offers, and answers with, what a call between two phones must not open.
func (x *attack) askForHoles() {
	x.t.Helper()
	bad := []struct {
		address string
		port    int
	}{
		{attacker, 53}, {"10.1.20.10", 22}, {"10.1.10.1", 4000}, {"198.51.100.77", 4000}, {"192.168.7.7", 4000},
		{"224.0.1.75", 4000}, {"127.0.0.1", 4000}, {"0.0.0.0", 4000}, {"255.255.255.255", 4000},
	}
	for i, b := range bad {
		body := fmt.Sprintf("v=0\r\no=- 1 1 IN IP4 %[1]s\r\ns=-\r\nc=IN IP4 %[1]s\r\nt=0 0\r\n"+
			"m=audio %[2]d RTP/AVP 8\r\na=rtcp:%[3]d\r\n", b.address, b.port, 161)
		head := []string{
			"Via: SIP/2.0/UDP " + attacker + ":5060;branch=z9hG4bKhole" + strconv.Itoa(i),
			"From: <sip:mallory@" + attacker + ">;tag=m", "To: <sip:eve@" + accomplice + ">",
			fmt.Sprintf("Call-ID: hole-%d@%s", i, attacker), "CSeq: 1 INVITE", "Content-Type: application/sdp",
		}
		x.send(sip(body, append([]string{"INVITE sip:eve@" + accomplice + " SIP/2.0"}, head...)...), accomplice+":5060")
		buf := make([]byte, 2048)
		require.NoError(x.t, x.to.SetReadDeadline(time.Now().Add(3*time.Second)))
		_, from, err := x.to.ReadFrom(buf)
		require.NoError(x.t, err, "%v: the INVITE goes on", b)
		head[2] += ";tag=e"
		_, err = x.to.WriteTo([]byte(sip(body, append([]string{"SIP/2.0 200 OK"}, head...)...)), from)
		require.NoError(x.t, err)
		require.NoError(x.t, x.from.SetReadDeadline(time.Now().Add(3*time.Second)))
		n, _, err := x.from.ReadFrom(buf)
		require.NoError(x.t, err, "%v: the answer goes on", b)
		require.True(x.t, bytes.HasPrefix(buf[:n], []byte("SIP/2.0 200 OK")), string(buf[:n]))
	}
	st := callsStatus(x.t, x.edge)
	assert.Equal(x.t, 8, st.Holes, "those of the two calls, and no other: %v", st.NotOpen)
	for _, why := range []string{"port", "address", "network"} {
		assert.Positive(x.t, st.NotOpen[why], "%v", st.NotOpen)
	}
}

// inject sends RTP to the open ports of phone-b, from the attacker and from a PC beside it.
func (x *attack) inject() {
	x.t.Helper()
	for _, from := range []struct{ host, address, side string }{
		{lab.PhoneA, attacker + ":20000", "a"}, {lab.PCB, "10.2.20.10:20000", "b"},
	} {
		before := x.closed(from.side)
		ear, err := capture.Start(x.l.Host(lab.PhoneB).NetPath(), "eth0", capture.Ports{Low: 20000, High: 20000})
		require.NoError(x.t, err)
		c := x.udp(from.host, from.address)
		to := &net.UDPAddr{IP: net.ParseIP("10.2.10.10"), Port: 20000}
		for i := range injections {
			_, err := c.WriteTo(append([]byte{0x80, 8, 0, byte(i), 0, 0, 0, 0, 6, 6, 6, 6}, make([]byte, 160)...), to)
			require.NoError(x.t, err)
		}
		polltest.Assert(x.t, func() bool { return x.closed(from.side) >= before+injections },
			3*time.Second, 50*time.Millisecond, "sip_closed of edge-%s was %d", from.side, before)
		heard, err := ear.Stop()
		require.NoError(x.t, err)
		for _, p := range heard.Packets {
			assert.NotEqual(x.t, from.address, p.Key.Source.String(), "injected RTP arrived")
		}
	}
}

// closed is how many packets an edge dropped because they had no hole.
func (x *attack) closed(side string) int {
	x.t.Helper()
	out := x.counter(side, "sip_closed")
	var n int
	_, err := fmt.Sscanf(out[strings.Index(out, "packets"):], "packets %d", &n)
	require.NoError(x.t, err, out)
	return n
}

// counter is what nft shows of a counter.
func (x *attack) counter(side, name string) string {
	x.t.Helper()
	out, err := x.l.Edge(side).Run(within(x.t, 5*time.Second), "nft", "list", "counter", "inet", "ringway", name)
	require.NoError(x.t, err)
	return out
}

// connect is a connection from the attacker to his accomplice, with its two ends.
func (x *attack) connect() (near, far net.Conn) {
	x.t.Helper()
	require.NoError(x.t, x.l.Host(lab.PhoneA).Do(func() (err error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(attacker)}, Timeout: 3 * time.Second}
		near, err = d.DialContext(x.t.Context(), "tcp", accomplice+":5060")
		return err
	}))
	x.t.Cleanup(func() { near.Close() })
	far, err := x.listener.Accept()
	require.NoError(x.t, err)
	x.t.Cleanup(func() { far.Close() })
	for _, c := range []net.Conn{near, far} {
		require.NoError(x.t, c.SetDeadline(time.Now().Add(5*time.Second)))
	}
	return near, far
}

// twoLengths sends a message that has two lengths on a connection: both ends are closed, and what was sent before
// has arrived, but no byte of it.
func (x *attack) twoLengths() {
	x.t.Helper()
	near, far := x.connect()
	options := func(more ...string) string {
		return sip("", append([]string{
			"OPTIONS sip:eve@" + accomplice + " SIP/2.0", "Via: SIP/2.0/TCP " + attacker + ":5060;branch=z9hG4bKlengths",
			"From: <sip:mallory@" + attacker + ">;tag=m", "To: <sip:eve@" + accomplice + ">",
			"Call-ID: lengths@" + attacker, "CSeq: 1 OPTIONS",
		}, more...)...)
	}
	good := options()
	_, err := near.Write([]byte(good + options("Content-Length: 40") + good))
	require.NoError(x.t, err)
	got, err := io.ReadAll(far) // a reset is an end, too
	assert.NotErrorIs(x.t, err, os.ErrDeadlineExceeded, "the accomplice's end is not closed")
	assert.Equal(x.t, good, string(got))
	_, err = io.ReadAll(near)
	assert.NotErrorIs(x.t, err, os.ErrDeadlineExceeded, "the attacker's end is not closed")
	x.refused("repeated_content_length", 1)
}

// flood sends a megabyte of line ends on a connection, and more datagrams than a phone may.
func (x *attack) flood() {
	x.t.Helper()
	near, far := x.connect()
	read := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, far)
		close(read)
	}()
	_, _ = near.Write(bytes.Repeat([]byte("\r\n"), 1<<19)) // an error is a flood that was stopped
	near.Close()
	<-read
	assert.Positive(x.t, callsStatus(x.t, x.edge).Refused["flood"], "of line ends")
	for i := range 6000 {
		x.send("\r\n\r\n", accomplice+":5060")
		x.send(sip("", "OPTIONS sip:eve@"+accomplice+" SIP/2.0",
			"Via: SIP/2.0/UDP "+attacker+":5060;branch=z9hG4bKflood"+strconv.Itoa(i),
			"From: <sip:mallory@"+attacker+">;tag=m", "To: <sip:eve@"+accomplice+">",
			fmt.Sprintf("Call-ID: flood-%d@%s", i, attacker), "CSeq: 1 OPTIONS"), accomplice+":5060")
	}
	assert.NotContains(x.t, x.counter("a", "sip_flood"), "packets 0 ", "the limit was reached")
	for _, c := range callsOf(x.t, x.edge) {
		if c.From == "phone-a" {
			assert.Equal(x.t, "confirmed", c.State)
		}
	}
	x.t.Logf("refused %v, not opened %v", callsStatus(x.t, x.edge).Refused, callsStatus(x.t, x.edge).NotOpen)
}
