package plane

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"ringway/process"
	"ringway/srtp/dtls"
	"ringway/srtp/media"
	"ringway/srtp/media/rules"
	"ringway/srtp/stream"
	"ringway/srtp/suite"
	"ringway/test/netnstest"
	"ringway/test/polltest"
)

const (
	patience = 30 * time.Second
	tick     = 2 * time.Millisecond
)

// The test binary is the process, too.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "media-plane" {
		// The machine may be busy, and what waits long is not what is tested.
		if err := run("test", time.Minute); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// Marks of the test's box.
const (
	markDelivered = 0x40
	markLAN       = 0x41
	markTunnel    = 0x42
)

// Addresses: a phone, the box beside it, the box's voice address, and a far end.
//
//	phone 192.0.2.7 --- 192.0.2.1 box 198.51.100.1 --- 198.51.100.2 far
var (
	phoneAt  = netip.MustParseAddrPort("192.0.2.7:4000")
	lanAt    = netip.MustParseAddrPort("192.0.2.1:40000")
	tunnelAt = netip.MustParseAddrPort("198.51.100.1:40010")
	farAt    = netip.MustParseAddrPort("198.51.100.2:41000")
)

// rig is a phone, a box with the media process, and a far end. No two supervisors of it are there at once.
type rig struct {
	t                 *testing.T
	phoneNS, box, far *netnstest.NS
	runDir            string
	pem               []byte
	log               *logBuffer
	phone, peer       *end
	handshakes        chan Handshake
	supervisor        *Supervisor
	detach            func() // as a daemon that is killed
	certificateOfDTLS *dtls.Certificate
	moved             chan netip.AddrPort
}

// logBuffer is a log that goroutines write.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func newRig(t *testing.T) *rig {
	netnstest.Root(t)
	r := &rig{
		t: t, phoneNS: netnstest.New(t), box: netnstest.New(t), far: netnstest.New(t), runDir: t.TempDir(),
		log: &logBuffer{}, handshakes: make(chan Handshake, 16), moved: make(chan netip.AddrPort, 16),
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(r.log.String())
		}
	})
	r.link(r.phoneNS, "eth", phoneAt, r.box, "lan", lanAt)
	r.link(r.box, "tun", tunnelAt, r.far, "eth", farAt)
	var err error
	r.pem, err = dtls.NewCertificate()
	require.NoError(t, err)
	r.certificateOfDTLS, err = dtls.ParseCertificate(bytes.Clone(r.pem))
	require.NoError(t, err)
	r.supervise()
	r.loadRules()
	r.phone = r.listen(r.phoneNS, phoneAt, lanAt)
	r.peer = r.listen(r.far, farAt, tunnelAt)
	return r
}

func (r *rig) link(
	a *netnstest.NS, nameA string, atA netip.AddrPort, b *netnstest.NS, nameB string, atB netip.AddrPort,
) {
	netnstest.Veth(r.t, a, nameA, b, nameB)
	a.Run("ip", "addr", "add", atA.Addr().String()+"/24", "dev", nameA)
	b.Run("ip", "addr", "add", atB.Addr().String()+"/24", "dev", nameB)
}

// supervise starts a daemon's half: it adopts a process that is there.
func (r *rig) supervise() {
	s, err := New(Config{
		RunDir: r.runDir, Threads: 1, Log: slog.New(slog.NewTextHandler(r.log, nil)),
		Open: func() (files []process.File, err error) {
			err = r.box.Do(func() error {
				files, err = Open(Side{Mark: markLAN}, Side{Mark: markTunnel})
				return err
			})
			return files, err
		},
		Certificate: func() ([]byte, error) { return bytes.Clone(r.pem), nil },
		DTLS:        func(h Handshake) { r.handshakes <- h },
		Moved:       func(_ uint64, rtp, _ netip.AddrPort) { r.moved <- rtp },
		// The machine may be busy.
		Timing: process.Timing{Answer: 20 * time.Second, Change: 20 * time.Second, Ready: 30 * time.Second},
	})
	require.NoError(r.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	require.NoError(r.t, s.Start(ctx))
	var running sync.WaitGroup
	running.Go(func() { _ = s.Run(ctx) })
	r.supervisor = s
	r.detach = func() {
		cancel()
		running.Wait()
	}
	r.t.Cleanup(func() {
		if r.supervisor == s {
			assert.NoError(r.t, s.Stop(context.Background()))
		}
		r.detach()
	})
}

func (r *rig) loadRules() {
	ports, err := r.supervisor.Ports()
	require.NoError(r.t, err)
	text, err := rules.Plan{
		Table: "media", Ports: rules.Ports{First: 40000, Last: 40999}, Delivered: markDelivered, PacketsPerPort: 100_000,
		LAN: rules.Side{
			Interfaces: []string{"lan"}, Addresses: []netip.Addr{lanAt.Addr()}, Mark: markLAN,
			Port4: ports[media.LAN][0], Port6: ports[media.LAN][1],
		},
		Tunnel: rules.Side{
			Interfaces: []string{"tun"}, Addresses: []netip.Addr{tunnelAt.Addr()}, Mark: markTunnel,
			Port4: ports[media.Tunnel][0], Port6: ports[media.Tunnel][1],
		},
	}.Text()
	require.NoError(r.t, err)
	cmd := r.box.Command("nft", "-f", "-")
	cmd.Stdin = strings.NewReader(text)
	out, err := cmd.CombinedOutput()
	require.NoError(r.t, err, "%s", out)
}

// kill kills the process, and waits for the next one.
func (r *rig) kill() {
	r.t.Helper()
	pid := r.supervisor.PID()
	require.NotZero(r.t, pid)
	require.NoError(r.t, unix.Kill(pid, unix.SIGKILL))
	r.waitForAnother(pid)
}

func (r *rig) waitForAnother(pid int) {
	r.t.Helper()
	polltest.Require(r.t, func() bool {
		now := r.supervisor.PID()
		return now != 0 && now != pid
	}, patience, tick, "no other process")
}

func (r *rig) set(p Pair) {
	r.t.Helper()
	p.Generation = r.supervisor.Generation()
	require.NoError(r.t, r.supervisor.Set(context.Background(), p))
}

// status is what the process says, once it says something.
func (r *rig) status() (st Status) {
	r.t.Helper()
	polltest.Require(r.t, func() (ok bool) {
		var err error
		st, err = r.supervisor.Status(context.Background())
		return err == nil
	}, patience, tick)
	return st
}

func (r *rig) leg(id uint64) LegStats {
	r.t.Helper()
	for _, l := range r.status().Legs {
		if l.ID == id {
			return l
		}
	}
	require.Fail(r.t, fmt.Sprintf("no leg %d", id))
	return LegStats{}
}

// end is a UDP socket of a phone or a far end.
type end struct {
	t *testing.T
	*net.UDPConn
	to netip.AddrPort
}

func (r *rig) listen(ns *netnstest.NS, at, to netip.AddrPort) *end {
	e := &end{t: r.t, to: to}
	require.NoError(r.t, ns.Do(func() (err error) {
		e.UDPConn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	}))
	r.t.Cleanup(func() { _ = e.Close() })
	return e
}

func (e *end) send(p []byte) {
	_, err := e.WriteToUDPAddrPort(p, e.to)
	require.NoError(e.t, err)
}

// receive is the next packet that arrives within that time; nil: there was none.
func (e *end) receive(within time.Duration) []byte {
	b := make([]byte, 4096)
	require.NoError(e.t, e.SetReadDeadline(time.Now().Add(within)))
	n, _, err := e.ReadFromUDPAddrPort(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	require.NoError(e.t, err)
	return b[:n]
}

// wideQuota never says no.
var wideQuota = media.Quota{Packets: 1000, Bytes: 1_000_000, Burst: time.Second}

func phoneLeg() Leg {
	return Leg{
		ID: 1, Side: media.LAN, Local: lanAt, Remote: phoneAt, Keying: Clear,
		Payloads: media.NewPayloads(0), Quota: wideQuota,
	}
}

func farLeg() Leg {
	return Leg{
		ID: 2, Side: media.Tunnel, Local: tunnelAt, Remote: farAt, Payloads: media.NewPayloads(0), Quota: wideQuota, DSCP: 46,
	}
}

// sdesPair is a phone in clear and a far end whose keys are from descriptions.
func sdesPair(send, receive Key) Pair {
	l := farLeg()
	l.Keying = SDES
	l.Send, l.Receive = Stream{1, []Key{send}}, Stream{2, []Key{receive}}
	return Pair{ID: 1, Legs: [2]Leg{phoneLeg(), l}}
}

const testSuite = suite.AEADAES128GCM

// keyOf is a key of a test: every number has its own.
func keyOf(number byte, mki ...byte) Key {
	b := make([]byte, testSuite.KeyLen()+testSuite.SaltLen())
	for i := range b {
		b[i] = byte(i)*11 ^ number ^ 0x5a
	}
	return Key{Suite: testSuite, MKI: mki, Master: b[:testSuite.KeyLen()], Salt: b[testSuite.KeyLen():]}
}

// peer is the other end of a keyed leg.
type peer struct {
	t        *testing.T
	sender   *stream.Sender
	receiver *stream.Receiver
	now      int64
	mki      int

	indices map[index]bool // that the box has sealed
}

// index is what is used once. That a counter rolls over is not for these tests: they are below 2^16.
type index struct {
	key   string
	ssrc  uint32
	index uint32
	rtcp  bool
}

// newPeer is sent under the first key, and sends under the other.
func newPeer(t *testing.T, send, receive Key) *peer {
	p := &peer{t: t, indices: map[index]bool{}, mki: len(send.MKI)}
	in, err := send.live()
	require.NoError(t, err)
	out, err := receive.live()
	require.NoError(t, err)
	p.receiver, p.sender = stream.NewReceiver(in), stream.NewSender(out)
	return p
}

// record fails the test if the box has sealed another packet with that index.
func (p *peer) record(key string, packet []byte) {
	p.t.Helper()
	at := index{key: key, ssrc: binary.BigEndian.Uint32(packet[8:]), index: uint32(binary.BigEndian.Uint16(packet[2:]))}
	if isRTCP(packet) {
		at.ssrc, at.rtcp = binary.BigEndian.Uint32(packet[4:]), true
		at.index = binary.BigEndian.Uint32(packet[len(packet)-4-p.mki:]) &^ (1 << 31)
	}
	require.False(p.t, p.indices[at], "sealed twice: %+v", at)
	p.indices[at] = true
}

func isRTCP(p []byte) bool { return p[1] >= 192 && p[1] <= 223 }

// open decrypts what the box has sent.
func (p *peer) open(packet []byte) []byte {
	p.t.Helper()
	p.now += int64(20 * time.Millisecond)
	dst := make([]byte, 0, 4096)
	var err error
	if isRTCP(packet) {
		dst, err = p.receiver.OpenRTCP(dst, packet, p.now)
	} else {
		dst, err = p.receiver.Open(dst, packet, p.now)
	}
	require.NoError(p.t, err)
	return dst
}

func (p *peer) seal(packet []byte) []byte {
	p.now += int64(20 * time.Millisecond)
	b := make([]byte, len(packet), len(packet)+64)
	copy(b, packet)
	b, err := p.sender.Seal(b, b, p.now)
	require.NoError(p.t, err)
	return b
}

// rtp is a packet of PCMU.
func rtp(ssrc uint32, seq uint16) []byte {
	p := make([]byte, 12+160)
	p[0] = 0x80
	binary.BigEndian.PutUint16(p[2:], seq)
	binary.BigEndian.PutUint32(p[4:], uint32(seq)*160)
	binary.BigEndian.PutUint32(p[8:], ssrc)
	for i := 12; i < len(p); i++ {
		p[i] = byte(seq) + byte(i)*3
	}
	return p
}

// assertSent compares a packet with the one that was sent, which its timestamp tells: it may be late, and the box may
// number a source otherwise.
func assertSent(t *testing.T, ssrc uint32, got []byte) {
	t.Helper()
	require.Greater(t, len(got), 12)
	sent := rtp(ssrc, uint16(binary.BigEndian.Uint32(got[4:])/160))
	assert.Equal(t, sent[4:], got[4:])
}

// report is a receiver report without blocks.
func report(ssrc uint32) []byte {
	p := []byte{0x80, 201, 0, 1, 0, 0, 0, 0}
	binary.BigEndian.PutUint32(p[4:], ssrc)
	return p
}

// talk is a call on its way: the phone sends, the far end opens and records, and both the other way round.
type talk struct {
	*rig
	peer *peer
	seq  uint16
	key  string // that the box sends with
}

// once sends a packet each way until both have arrived, and returns how many were lost.
func (c *talk) once() (lost int) {
	c.t.Helper()
	for range 2000 {
		c.seq++
		c.phone.send(rtp(7, c.seq))
		if got := c.rig.peer.receive(50 * time.Millisecond); got != nil {
			c.peer.record(c.key, got)
			assertSent(c.t, 7, c.peer.open(got))
			break
		}
		lost++
	}
	for range 2000 {
		c.seq++
		c.rig.peer.send(c.peer.seal(rtp(8, c.seq)))
		if got := c.phone.receive(50 * time.Millisecond); got != nil {
			assertSent(c.t, 8, got)
			return lost
		}
		lost++
	}
	require.Fail(c.t, "no media")
	return lost
}

// reports has the phone send RTCP, which is sealed with an index of its own.
func (c *talk) reports() {
	c.t.Helper()
	c.phone.send(report(7))
	for { // media may be late
		got := c.rig.peer.receive(patience)
		require.NotNil(c.t, got)
		c.peer.record(c.key, got)
		c.peer.open(got)
		if isRTCP(got) {
			return
		}
	}
}
