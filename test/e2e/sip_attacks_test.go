package e2e

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/sip/call"
	"ringway/sip/relay"
	"ringway/test/lab"
	"ringway/test/polltest"
)

// Every attack from every place where it makes sense, with calls up between phone-a and phone-b. What each one did is
// measured at the phones and the boxes; with ATTACKS_TABLE it is written to that file (docs/results/attacks.md).
//
//	place                attacker's addresses   his target, beside the phones that talk
//	WAN                  198.51.100.1xx         10.1.10.12 through edge-a, and edge-a itself
//	data network         10.1.20.1xx            10.1.10.12
//	a phone's network    10.1.10.1xx            10.2.10.12
//
// Each attack has an address of its own, so that no ban of an earlier one helps.
func TestLongAttacksFromEveryPlace(t *testing.T) {
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: reading("enforce", map[string]string{
		"sip.limits.phone": "50", "sip.servers": `[{name: pbx, address: [10.2.20.5]}]`,
	})})
	r := newRange(t, l)
	wire := listenTo(t, l.Host(lab.PhoneA))
	talk := dialled(t, l, 2, 60*time.Second, lab.Dialing{Ramp: 200 * time.Millisecond})
	r.overhear(wire.stop())
	r.holes = r.openHoles()
	for _, a := range []struct {
		name string
		try  func(*origin) *outcome
	}{
		{"scan: OPTIONS and REGISTER to 30 names", r.scan},
		{"30 passwords guessed", r.guess},
		{"flood: 3,000 OPTIONS", r.flood},
		{"forged BYE, own address", r.bye},
		{"forged BYE, the far phone's address", r.spoofedBye},
		{"RTP to the call's open port, own address", r.rtp},
		{"RTP to the call's open port, the far phone's address", r.spoofedRTP},
		{"RTP to a closed port", r.closedRTP},
		{"holes by crafted SDP", r.sdp},
		{"two Content-Lengths over TCP", r.lengths},
		{"1 MiB of line ends over TCP", r.lineEnds},
		{"ICMP port unreachable for the call's media", r.icmp},
	} {
		for _, place := range r.places {
			r.attack(a.name, place, a.try)
		}
	}
	r.neighbour()
	r.outer()
	for _, o := range r.all {
		for _, never := range []string{"forged BYE, own", "forged BYE, the far", "RTP to a closed", ", own address",
			", the far phone's", "two Content", "as the far box"} {
			if strings.Contains(o.attack, never) {
				assert.Zero(t, o.reached, "%s, from %s", o.attack, o.place)
			}
		}
		if !strings.HasPrefix(o.attack, "holes") {
			assert.Empty(t, o.holes, "%s, from %s", o.attack, o.place)
		}
		if o.place == "WAN" {
			assert.Zero(t, o.reached, "%s, from the WAN", o.attack)
		}
		if o.place != "WAN" && (strings.HasPrefix(o.attack, "scan") || strings.Contains(o.attack, "passwords")) {
			assert.Equal(t, 1, o.bans, "%s, from %s", o.attack, o.place)
			assert.Less(t, o.reached, 30, "%s, from %s", o.attack, o.place)
		}
	}

	for _, c := range callsOf(t, l.Edge("a")) {
		if c.From == "phone-a" {
			assert.Equal(t, "confirmed", c.State)
		}
	}
	r.lost(talk)
	for _, side := range []string{"a", "b"} {
		assert.Zero(t, callsStatus(t, l.Edge(side)).Restarts)
	}
	r.write(os.Getenv("ATTACKS_TABLE"))
}

// origin is a place of the attacker.
type origin struct {
	name, host, prefix string
	target             string   // another phone, which answers
	also               []string // where messages go as well
	phone, peer        string   // of the live call: the one that he attacks, and the far one
	address            string   // of the attack in progress
	next               int
}

// outcome is what an attack did.
type outcome struct {
	attack, place, address string

	sent, reached int      // packets, or bytes with unit
	unit          string   // "" is packets
	holes         []string // that it opened, at either box
	bans          int
	why           string // counters of the box that moved
	note          string
	only          string // what a packet has to have to count as reached
	can           string // what it comes down to, where counts do not say it
	from, to      time.Time
	lost          int // voice packets of the live calls
}

// attackRange is the lab with its places, and what was measured.
type attackRange struct {
	t      *testing.T
	l      *lab.Lab
	places []*origin
	holes  [2][]string
	all    []*outcome
	voice  string // what became of the live calls

	dialog     []string // From, To and Call-ID of a live call, as phone-a sends them
	farDialog  []string // the same, as phone-b sends them
	mediaPort  int
	accomplice map[string]net.Listener
}

func newRange(t *testing.T, l *lab.Lab) *attackRange {
	t.Helper()
	r := &attackRange{t: t, l: l, accomplice: map[string]net.Listener{}, mediaPort: 20000}
	r.places = []*origin{
		{name: "WAN", host: lab.Provider, prefix: "198.51.100.", target: "10.1.10.12",
			also: []string{edgeA}, phone: "10.1.10.10", peer: "10.2.10.10"},
		{name: "data network", host: lab.PCA, prefix: "10.1.20.", target: "10.1.10.12",
			phone: "10.1.10.10", peer: "10.2.10.10"},
		{name: "phone's network", host: lab.PhoneA, prefix: "10.1.10.", target: "10.2.10.12",
			phone: "10.2.10.10"}, // the far phone's own network is not his
	}
	ctx := within(t, 10*time.Second)
	require.NoError(t, l.Host(lab.Provider).IP(ctx, nil, "route add 10.1.10.0/24 via "+edgeA))
	for address, host := range map[string]string{"10.1.10.12": lab.PhoneA, "10.2.10.12": lab.PhoneB} {
		require.NoError(t, l.Host(host).IP(ctx, nil, "addr add "+address+"/24 dev eth0"))
		answer(r.udp(host, address+":5060"))
		require.NoError(t, l.Host(host).Do(func() (err error) {
			r.accomplice[address], err = net.Listen("tcp", address+":5060")
			return err
		}))
		t.Cleanup(func() { r.accomplice[address].Close() })
	}
	return r
}

func (r *attackRange) udp(host, address string) (c *net.UDPConn) {
	r.t.Helper()
	require.NoError(r.t, r.l.Host(host).Do(func() error {
		p, err := net.ListenPacket("udp", address)
		if err == nil {
			c = p.(*net.UDPConn)
		}
		return err
	}))
	r.t.Cleanup(func() { c.Close() })
	return c
}

// answer has a phone answer until its socket is closed: REGISTER with a challenge, INVITE with a session description
// of its own, and all other requests with 404.
func answer(c *net.UDPConn) {
	go func() {
		buf := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				return
			}
			head, _, _ := strings.Cut(string(buf[:n]), "\r\n\r\n")
			lines := strings.Split(head, "\r\n")
			status := "404 Not Found"
			switch {
			case strings.HasPrefix(head, "SIP/"), strings.HasPrefix(head, "ACK"), strings.TrimSpace(head) == "":
				continue
			case strings.HasPrefix(head, "BYE"):
				status = "200 OK"
			case strings.HasPrefix(head, "REGISTER"):
				status = "401 Unauthorized"
			case strings.HasPrefix(head, "INVITE"):
				status = "200 OK"
			}
			out := []string{"SIP/2.0 " + status}
			for _, line := range lines[1:] {
				name, _, _ := strings.Cut(line, ":")
				switch name {
				case "To":
					if !strings.Contains(line, ";tag=") {
						line += ";tag=answer"
					}
					out = append(out, line)
				case "Via", "From", "Call-ID", "CSeq", "Content-Type":
					out = append(out, line)
				}
			}
			if strings.HasPrefix(status, "401") {
				out = append(out, `WWW-Authenticate: Digest realm="pbx", nonce="0123456789", algorithm=MD5`)
			}
			body := ""
			if strings.HasPrefix(head, "INVITE") {
				body = offer(c.LocalAddr().(*net.UDPAddr).IP.String(), 4000)
			}
			_, _ = c.WriteTo([]byte(sip(body, out...)), from)
		}
	}()
}

// offer is a session description with one stream.
func offer(address string, port int) string {
	return fmt.Sprintf("v=0\r\no=- 1 1 IN IP4 %[1]s\r\ns=-\r\nc=IN IP4 %[1]s\r\nt=0 0\r\nm=audio %[2]d RTP/AVP 8\r\n"+
		"a=rtcp:%[3]d\r\n", address, port, port+1)
}

// overhear takes from the wire what an attacker needs to pose as a party of a live call.
func (r *attackRange) overhear(sent, _ map[string]string) {
	r.t.Helper()
	_, after, found := strings.Cut(text(sent), "ACK sip:")
	require.True(r.t, found)
	head, _, _ := strings.Cut(after, "\r\n\r\n")
	fields := map[string]string{}
	for line := range strings.SplitSeq(head, "\r\n") {
		name, value, _ := strings.Cut(line, ": ")
		fields[name] = value
	}
	require.Contains(r.t, fields["To"], ";tag=")
	r.dialog = []string{"From: " + fields["From"], "To: " + fields["To"], "Call-ID: " + fields["Call-ID"]}
	r.farDialog = []string{"From: " + fields["To"], "To: " + fields["From"], "Call-ID: " + fields["Call-ID"]}
}

func (r *attackRange) openHoles() (at [2][]string) {
	r.t.Helper()
	return [2][]string{holesOf(r.t, r.l.Edge("a")), holesOf(r.t, r.l.Edge("b"))}
}

// attack tries one attack from one place and measures what it did.
func (r *attackRange) attack(name string, place *origin, try func(*origin) *outcome) {
	r.t.Helper()
	place.next++
	place.address = fmt.Sprintf("%s%d", place.prefix, 100+place.next)
	device := map[string]string{lab.Provider: "wan-a"}[place.host]
	if device == "" {
		device = "eth0"
	}
	require.NoError(r.t, r.l.Host(place.host).IP(within(r.t, 5*time.Second), nil,
		"addr add "+place.address+"/24 dev "+device))
	was := r.counters()
	ears := []*wire{listenTo(r.t, r.l.Host(lab.PhoneA)), listenTo(r.t, r.l.Host(lab.PhoneB))}
	began := time.Now()
	o := try(place)
	if o == nil {
		return
	}
	o.attack, o.place, o.address, o.from, o.to = name, place.name, place.address, began, time.Now()
	is := r.counters()
	for _, ear := range ears {
		ear.each(func(packet []byte, outgoing bool, _ time.Time) {
			answer := strings.HasPrefix(sipText(packet), "SIP/2.0 ")
			if !outgoing && !answer && bytes.Contains(packet, []byte(mark)) && bytes.Contains(packet, []byte(o.only)) {
				o.reached++
			}
		})
	}
	holes := r.openHoles()
	for i := range holes {
		for _, hole := range holes[i] {
			if !slices.Contains(r.holes[i], hole) {
				o.holes = append(o.holes, fmt.Sprintf("edge-%c: %s", 'a'+i, hole))
			}
		}
	}
	r.holes = holes
	for _, b := range r.bans() {
		if b.Source.String() == place.address {
			o.bans++
		}
	}
	var moved []string
	for _, counter := range slices.Sorted(maps.Keys(is)) {
		if d := is[counter] - was[counter]; d > 0 {
			moved = append(moved, fmt.Sprintf("%s %d", counter, d))
		}
	}
	o.why = strings.Join(moved, ", ")
	r.all = append(r.all, o)
	r.t.Logf("%s, from %s: %d of %d arrived; holes %v", o.attack, o.place, o.reached, o.sent, o.holes)
}

func (r *attackRange) bans() (all []relay.Standing) {
	r.t.Helper()
	out, err := r.l.Edge("a").Ringway(within(r.t, 5*time.Second), "bans", "--json")
	require.NoError(r.t, err)
	require.NoError(r.t, json.Unmarshal([]byte(out), &all), out)
	return all
}

// counters are those of edge-a that say why something did not pass.
func (r *attackRange) counters() map[string]uint64 {
	r.t.Helper()
	out, err := r.l.Edge("a").StatusJSON(within(r.t, 5*time.Second))
	require.NoError(r.t, err)
	var st struct {
		Drops map[string]struct{ Packets uint64 }
		Calls struct {
			Refused map[string]uint64
			NotOpen map[string]uint64 `json:"not_opened"`
			Abuse   map[string]uint64
		}
	}
	require.NoError(r.t, json.Unmarshal(out, &st))
	all := map[string]uint64{}
	for name, n := range st.Drops {
		all[name] = n.Packets
	}
	for kind, counts := range map[string]map[string]uint64{
		"refused": st.Calls.Refused, "no hole": st.Calls.NotOpen, "abuse": st.Calls.Abuse,
	} {
		for name, n := range counts {
			all[kind+" "+name] = n
		}
	}
	return all
}

// mark is in every packet of an attack.
const mark = "mallory"

// request is a request of the attacker.
func request(method, user, from, to, id string, n int, more ...string) string {
	body := ""
	if len(more) > 0 && strings.HasPrefix(more[0], "v=0") {
		body, more = more[0], append(more[1:], "Content-Type: application/sdp")
	}
	return sip(body, append([]string{
		fmt.Sprintf("%s sip:%s@%s SIP/2.0", method, user, to),
		fmt.Sprintf("Via: SIP/2.0/UDP %s:5060;branch=z9hG4bK%s%s%d", from, method, id, n),
		fmt.Sprintf("From: <sip:%s@%s>;tag=m", mark, from), fmt.Sprintf("To: <sip:%s@%s>", user, to),
		fmt.Sprintf("Call-ID: %s@%s", id, from), fmt.Sprintf("CSeq: %d %s", n, method), "Max-Forwards: 70",
		fmt.Sprintf("Contact: <sip:%s@%s>", mark, from),
	}, more...)...)
}

// talkTo sends messages to the target and waits for the answer to each, for at most a twentieth of a second.
func (r *attackRange) talkTo(p *origin, n int, message func(i int, to string) string) *outcome {
	r.t.Helper()
	c := r.udp(p.host, p.address+":5060")
	o, buf := &outcome{}, make([]byte, 1<<16)
	answered := 0
	for i := range n {
		for _, to := range append([]string{p.target}, p.also...) {
			_, err := c.WriteTo([]byte(message(i, to)), r.addr(to, 5060))
			require.NoError(r.t, err)
			o.sent++
		}
		require.NoError(r.t, c.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
		if _, _, err := c.ReadFrom(buf); err == nil {
			answered++
		}
	}
	if answered > 0 {
		o.note = fmt.Sprintf("%d answered", answered)
	}
	return o
}

func (r *attackRange) addr(ip string, port int) *net.UDPAddr {
	return net.UDPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr(ip), uint16(port)))
}

func (r *attackRange) scan(p *origin) *outcome {
	return r.talkTo(p, 30, func(i int, to string) string {
		method := []string{"OPTIONS", "REGISTER"}[i%2]
		return request(method, fmt.Sprintf("user%02d", i), p.address, to, fmt.Sprintf("scan%d", i), 1)
	})
}

func (r *attackRange) guess(p *origin) *outcome {
	return r.talkTo(p, 30, func(i int, to string) string {
		return request("REGISTER", "alice", p.address, to, "guess", i+1, fmt.Sprintf("Authorization: Digest "+
			`username="alice", realm="pbx", nonce="0123456789", uri="sip:pbx", response="%032d"`, i))
	})
}

func (r *attackRange) flood(p *origin) *outcome {
	c, o := r.udp(p.host, p.address+":5060"), &outcome{}
	for i := range 3000 {
		_, err := c.WriteTo([]byte(request("OPTIONS", "eve", p.address, p.target, fmt.Sprintf("flood%d", i), 1)),
			r.addr(p.target, 5060))
		require.NoError(r.t, err)
		o.sent++
	}
	// What the box still reads of it has passed when a counter of it no longer moves.
	r.settle()
	return o
}

// settle waits until no counter of the box moves.
func (r *attackRange) settle() {
	r.t.Helper()
	last := r.counters()
	polltest.Assert(r.t, func() bool {
		now := r.counters()
		same := maps.Equal(last, now)
		last = now
		return same
	}, 5*time.Second, 200*time.Millisecond, "counters go on moving: %v", last)
}

// forged is a BYE that has all that was overheard of a live call.
func (r *attackRange) forged(p *origin, i int) string {
	dialog := r.dialog
	if p.peer != "" {
		dialog = r.farDialog // to phone-a
	}
	return sip("", append([]string{
		"BYE sip:" + mark + "@" + p.phone + ":5060 SIP/2.0",
		fmt.Sprintf("Via: SIP/2.0/UDP %s:5060;branch=z9hG4bK%s%d", p.address, mark, i),
	}, append(dialog[:3:3], fmt.Sprintf("CSeq: %d BYE", 90+i), "Max-Forwards: 70")...)...)
}

func (r *attackRange) bye(p *origin) *outcome {
	c, o := r.udp(p.host, p.address+":5060"), &outcome{}
	for i := range 10 {
		for _, to := range append([]string{p.phone}, p.also...) {
			_, err := c.WriteTo([]byte(r.forged(p, i)), r.addr(to, 5060))
			require.NoError(r.t, err)
			o.sent++
		}
	}
	r.settle()
	return o
}

// spoofedBye is not for his own network, where the far phone's address would not be believed by any box: see
// neighbour.
func (r *attackRange) spoofedBye(p *origin) *outcome {
	if p.peer == "" {
		return nil
	}
	o := &outcome{}
	for i := range 10 {
		o.sent += r.spoof(p.host, p.peer+":5060", p.phone+":5060", []byte(r.forged(p, i)))
	}
	r.settle()
	return o
}

func rtpOf(i int) []byte {
	return append([]byte{0x80, 8, 0, byte(i), 0, 0, 0, 0, 6, 6, 6, 6}, mark+strings.Repeat("x", 153)...)
}

// injectedSSRC is the source of all RTP of the attacker.
const injectedSSRC = 0x06060606

func (r *attackRange) inject(p *origin, port int) *outcome {
	c, o := r.udp(p.host, p.address+":20000"), &outcome{}
	for i := range injections {
		for _, to := range append([]string{p.phone}, p.also...) {
			_, err := c.WriteTo(rtpOf(i), r.addr(to, port))
			require.NoError(r.t, err)
			o.sent++
		}
	}
	r.settle()
	return o
}

func (r *attackRange) rtp(p *origin) *outcome       { return r.inject(p, r.mediaPort) }
func (r *attackRange) closedRTP(p *origin) *outcome { return r.inject(p, 21900) }

func (r *attackRange) spoofedRTP(p *origin) *outcome {
	if p.peer == "" {
		return nil
	}
	o := &outcome{}
	for i := range injections {
		o.sent += r.spoof(p.host, fmt.Sprintf("%s:%d", p.peer, r.mediaPort), fmt.Sprintf("%s:%d", p.phone, r.mediaPort),
			rtpOf(i))
	}
	r.settle()
	return o
}

// spoof sends one datagram with a source that is not the attacker's.
func (r *attackRange) spoof(host, from, to string, payload []byte) int {
	r.t.Helper()
	src, dst := netip.MustParseAddrPort(from), netip.MustParseAddrPort(to)
	r.raw(host, dst.Addr(), ip4(unix.IPPROTO_UDP, src.Addr(), dst.Addr(), udp4(src, dst, payload)))
	return 1
}

// raw sends packets that begin with their IP header.
func (r *attackRange) raw(host string, to netip.Addr, packets ...[]byte) {
	r.t.Helper()
	require.NoError(r.t, r.l.Host(host).Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		for _, packet := range packets {
			err = errors.Join(err, unix.Sendto(fd, packet, 0, &unix.SockaddrInet4{Addr: to.As4()}))
		}
		return err
	}))
}

// ip4 is a packet; the kernel fills in length and checksum of the header.
func ip4(protocol byte, src, dst netip.Addr, payload []byte) []byte {
	head := make([]byte, 20, 20+len(payload))
	head[0], head[8], head[9] = 0x45, 64, protocol
	binary.BigEndian.PutUint16(head[2:], uint16(20+len(payload)))
	copy(head[12:], src.AsSlice())
	copy(head[16:], dst.AsSlice())
	return append(head, payload...)
}

// udp4 is a datagram without checksum, which RFC 768 allows.
func udp4(src, dst netip.AddrPort, payload []byte) []byte {
	head := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(head, src.Port())
	binary.BigEndian.PutUint16(head[2:], dst.Port())
	binary.BigEndian.PutUint16(head[4:], uint16(8+len(payload)))
	return append(head, payload...)
}

// wantedHoles are the addresses and ports that a call between two phones must not open.
var wantedHoles = []struct {
	what, address string
	port          int
}{
	{"a port below 1024", "", 53},
	{"a PC's address", "10.1.20.10", 4000},
	{"the box's own address", "10.1.10.1", 4000},
	{"the box's WAN address", edgeA, 4000},
	{"a server's address", "10.2.20.5", 4000},
	{"a public address", "192.0.2.99", 4000},
	{"a foreign private address", "192.168.7.7", 4000},
	{"0.0.0.0", "0.0.0.0", 4000},
	{"broadcast", "255.255.255.255", 4000},
	{"broadcast of the LAN", "10.1.10.255", 4000},
	{"multicast", "224.0.1.75", 4000},
	{"loopback", "127.0.0.1", 4000},
}

func (r *attackRange) sdp(p *origin) *outcome {
	o := r.talkTo(p, len(wantedHoles), func(i int, to string) string {
		w := wantedHoles[i]
		address := w.address
		if address == "" {
			address = p.address
		}
		body := offer(address, w.port)
		return request("INVITE", "eve", p.address, to, fmt.Sprintf("hole%d", i), 1, body)
	})
	r.settle()
	var opened []string
	for _, w := range wantedHoles {
		for _, at := range []string{"a", "b"} { // a box cannot know the other one's own addresses
			if slices.ContainsFunc(holesOf(r.t, r.l.Edge(at)), func(hole string) bool {
				return w.address != "" && strings.Contains(hole, " . "+w.address+" . ")
			}) {
				opened = append(opened, w.what+" (edge-"+at+")")
			}
		}
	}
	o.can, o.note = strings.Join(opened, ", "), ""
	return o
}

// connect connects to the target over TCP, or gives nil where nobody answers in two seconds.
func (r *attackRange) connect(p *origin) (near, far net.Conn) {
	r.t.Helper()
	err := r.l.Host(p.host).Do(func() (err error) {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(p.address)}, Timeout: 2 * time.Second}
		near, err = d.DialContext(r.t.Context(), "tcp", p.target+":5060")
		return err
	})
	if err != nil {
		return nil, nil
	}
	r.t.Cleanup(func() { near.Close() })
	require.NoError(r.t, r.accomplice[p.target].(*net.TCPListener).SetDeadline(time.Now().Add(3*time.Second)))
	if far, err = r.accomplice[p.target].Accept(); err != nil {
		return near, nil // the box answered, and does not connect
	}
	r.t.Cleanup(func() { far.Close() })
	for _, c := range []net.Conn{near, far} {
		require.NoError(r.t, c.SetDeadline(time.Now().Add(5*time.Second)))
	}
	return near, far
}

// lengths hides a request in what is the body of another one by the first of its two Content-Lengths.
func (r *attackRange) lengths(p *origin) *outcome {
	r.t.Helper()
	near, far := r.connect(p)
	if near == nil {
		return &outcome{sent: 1, note: "no connection"}
	}
	hidden := request("OPTIONS", "hidden", p.address, p.target, "hidden", 1)
	good := strings.ReplaceAll(request("OPTIONS", "eve", p.address, p.target, "lengths", 1), "/UDP", "/TCP")
	bad := strings.Replace(good, "Max-Forwards", fmt.Sprintf("Content-Length: %d\r\nMax-Forwards", len(hidden)), 1)
	_, err := near.Write([]byte(bad + hidden))
	require.NoError(r.t, err)
	o := &outcome{sent: 1}
	if far != nil {
		got, err := io.ReadAll(far)
		assert.NotErrorIs(r.t, err, os.ErrDeadlineExceeded, "the target's end is not closed")
		o.note = "connection closed by the box"
		assert.Empty(r.t, got)
	}
	return o
}

func (r *attackRange) lineEnds(p *origin) *outcome {
	r.t.Helper()
	const size = 1 << 20
	near, far := r.connect(p)
	if near == nil {
		return &outcome{sent: size, unit: "bytes", note: "no connection"}
	}
	got := make(chan int, 1)
	go func() {
		n := int64(0)
		if far != nil {
			n, _ = io.Copy(io.Discard, far)
		}
		got <- int(n)
	}()
	_, err := near.Write(bytes.Repeat([]byte("\r\n"), size/2)) // an error is a flood that was stopped
	near.Close()
	o := &outcome{sent: size, unit: "bytes", reached: <-got}
	if err != nil {
		o.note = "connection closed by the box"
	}
	return o
}

// unreachable is an ICMP port unreachable that quotes a datagram (RFC 792), with the attacker's mark in the quote.
func unreachable(from, to netip.Addr, quoted, quotedTo netip.AddrPort) []byte {
	quote := ip4(unix.IPPROTO_UDP, quoted.Addr(), quotedTo.Addr(), udp4(quoted, quotedTo, []byte(mark+mark)))
	quote[10], quote[11] = 0, 0
	binary.BigEndian.PutUint16(quote[10:], checksum(quote[:20]))
	icmp := append([]byte{3, 3, 0, 0, 0, 0, 0, 0}, quote...)
	binary.BigEndian.PutUint16(icmp[2:], checksum(icmp))
	return ip4(unix.IPPROTO_ICMP, from, to, icmp)
}

// checksum is that of RFC 1071.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		if i+1 < len(b) {
			sum += uint32(b[i])<<8 | uint32(b[i+1])
		} else {
			sum += uint32(b[i]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// icmp tells the attacked phone that the port to which it sends is not there, from his own address and, from
// elsewhere than a phone's network, from the far phone's.
func (r *attackRange) icmp(p *origin) *outcome {
	phone := netip.MustParseAddr(p.phone)
	far, sources := "10.1.10.10", []string{p.address}
	if p.peer != "" {
		far, sources = p.peer, []string{p.address, p.peer}
	}
	o := &outcome{}
	for range 20 {
		for _, from := range sources {
			r.raw(p.host, phone, unreachable(netip.MustParseAddr(from), phone,
				netip.AddrPortFrom(phone, uint16(r.mediaPort)),
				netip.AddrPortFrom(netip.MustParseAddr(far), uint16(r.mediaPort))))
			o.sent++
		}
	}
	r.settle()
	o.can = "the phone is told that the far port is closed; the call went on"
	return o
}

// outer tells edge-a, as its provider could, that the far box's WireGuard ports are unreachable.
func (r *attackRange) outer() {
	wan := r.places[0]
	r.attack("ICMP port unreachable for the tunnels, as the far box", wan, func(*origin) *outcome {
		o, box := &outcome{note: "to the box itself"}, netip.MustParseAddr(edgeA)
		for range 20 {
			for _, port := range []uint16{51820, 51821} {
				far := netip.MustParseAddr("203.0.113.2")
				r.raw(lab.Provider, box, unreachable(far, box, netip.AddrPortFrom(box, port), netip.AddrPortFrom(far, port)))
				o.sent++
			}
		}
		r.settle()
		return o
	})
}

// neighbour has the attacker use the address of the phone itself, which nothing but the phone's own switch can
// prevent: RTP into the live call, and a BYE for a call that he has set up for it.
func (r *attackRange) neighbour() {
	p := r.places[2]
	r.attack("RTP to the call's open port, the near phone's address", p, func(*origin) *outcome {
		o := &outcome{can: "the far phone gets it as the near phone's"}
		for i := range injections {
			o.sent += r.spoof(p.host, fmt.Sprintf("10.1.10.10:%d", r.mediaPort),
				fmt.Sprintf("%s:%d", p.phone, r.mediaPort), rtpOf(i))
		}
		r.settle()
		return o
	})
	r.attack("forged BYE, the near phone's address, for a call of its own", p, func(*origin) *outcome {
		c := r.udp(p.host, p.address+":5060")
		_, err := c.WriteTo([]byte(request("INVITE", "eve", p.address, p.target, "victim", 1, offer(p.address, 4000))),
			r.addr(p.target, 5060))
		require.NoError(r.t, err)
		require.NoError(r.t, c.SetReadDeadline(time.Now().Add(3*time.Second)))
		buf := make([]byte, 1<<16)
		n, _, err := c.ReadFrom(buf)
		require.NoError(r.t, err)
		require.True(r.t, bytes.HasPrefix(buf[:n], []byte("SIP/2.0 200 OK")), string(buf[:n]))
		bye := strings.Replace(request("BYE", "eve", p.address, p.target, "victim", 2), "<sip:eve@"+p.target+">\r\n",
			"<sip:eve@"+p.target+">;tag=answer\r\n", 1)
		up := func() bool {
			return slices.ContainsFunc(callsOf(r.t, r.l.Edge("a")), func(x call.Call) bool {
				return slices.Contains(x.Hops[:], p.address) && x.State != "ended"
			})
		}
		require.True(r.t, up(), "the call that is to be ended")
		o := &outcome{only: "BYE sip:", sent: r.spoof(p.host, p.address+":5060", p.target+":5060", []byte(bye))}
		r.settle()
		o.can = "the call goes on"
		if !up() {
			o.can = "the call is ended, its holes are closed"
		}
		return o
	})
}

// lost attributes lost voice packets to attacks, by the time when they were sent.
func (r *attackRange) lost(k *talk) {
	r.t.Helper()
	result, err := k.calls.Wait(r.t.Context())
	require.NoError(r.t, err)
	h, err := k.ears.Stop()
	require.NoError(r.t, err)
	require.Zero(r.t, h.CaptureDrops, "the capture missed packets")
	assert.Equal(r.t, k.calls.Placed, result.Completed, "calls completed (%s)", result.Why)
	sent, lost := 0, 0
	for _, s := range slices.Concat(h.AToB.Streams, h.BToA.Streams) {
		if s.Key.SSRC == injectedSSRC {
			continue
		}
		for _, p := range s.Packets {
			sent++
			if !p.Lost {
				continue
			}
			lost++
			at := time.Unix(0, int64(p.Sent))
			for _, o := range r.all {
				if !at.Before(o.from) && !at.After(o.to) {
					o.lost++
				}
			}
		}
	}
	assert.Zero(r.t, lost, "voice packets lost of %d: %s", sent, losses(h))
	r.voice = fmt.Sprintf("Of the live calls, %d voice packets were sent, and %d lost.", sent, lost)
}

// sentence is what the attacker could do, from what was measured.
func (o *outcome) sentence() string {
	arrived := fmt.Sprintf("%d of %d %s arrived", o.reached, o.sent, cmp.Or(o.unit, "packets"))
	var parts []string
	switch {
	case o.reached == 0 && len(o.holes) == 0:
		parts = append(parts, "nothing")
	case o.bans > 0:
		parts = append(parts, arrived+", then he was banned")
	default:
		parts = append(parts, arrived)
	}
	if len(o.holes) > 0 {
		parts = append(parts, fmt.Sprintf("%d holes opened", len(o.holes)))
	}
	if o.can != "" && o.reached > 0 {
		parts = append(parts, o.can)
	}
	if o.note != "" {
		parts = append(parts, o.note)
	}
	return strings.Join(parts, "; ")
}

// write writes the table as Markdown to a file.
func (r *attackRange) write(file string) {
	r.t.Helper()
	var b strings.Builder
	b.WriteString("| attack | from | sent | reached a phone | holes | voice lost | what the attacker could do | " +
		"counters of edge-a |\n|---|---|---|---|---|---|---|---|\n")
	for _, o := range r.all {
		fmt.Fprintf(&b, "| %s | %s | %d | %d | %d | %d | %s | %s |\n", o.attack, o.place, o.sent, o.reached, len(o.holes),
			o.lost, o.sentence(), o.why)
	}
	b.WriteString("\n" + r.voice + "\n")
	r.t.Log("\n" + b.String())
	if file != "" {
		require.NoError(r.t, os.WriteFile(file, []byte(b.String()), 0o644))
	}
}
