package keychannel

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"ringway/srtp/keys"
	"ringway/srtp/keys/channel"
	"ringway/srtp/suite"
	"ringway/test/netnstest"
	"ringway/test/polltest"
)

// box is a daemon's key channels, in a namespace of its own, beside a media plane that does what it is asked to.
type box struct {
	*Channels
	ns   *netnstest.NS
	own  *channel.Identity
	addr netip.Addr
	end  func()

	todo chan carried

	mu    sync.Mutex
	state map[string][]byte
	uses  map[string]keys.Key // by site, what is sent under
	holds map[string]map[keys.MKI]keys.Key
}

type carried struct {
	site string
	a    keys.Action
}

func (b *box) Carry(site string, a keys.Action) { b.todo <- carried{site, a} }

func (b *box) Save(site string, state []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	clear(b.state[site])
	b.state[site] = state
}

func (b *box) State(site string) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return append([]byte(nil), b.state[site]...)
}

func (b *box) carry() {
	for c := range b.todo {
		b.mu.Lock()
		switch c.a.Kind {
		case keys.Hold:
			if b.holds[c.site] == nil {
				b.holds[c.site] = map[keys.MKI]keys.Key{}
			}
			b.holds[c.site][c.a.Key.MKI] = *c.a.Key
		case keys.Use:
			b.uses[c.site] = *c.a.Key
		case keys.Drop:
			delete(b.holds[c.site], c.a.Key.MKI)
		case keys.Stop:
			delete(b.uses, c.site)
		}
		b.mu.Unlock()
		link := b.Link(c.site)
		switch {
		case link == nil:
		case c.a.Kind == keys.Hold:
			link.Held(c.a.Leg, c.a.Key.MKI)
		case c.a.Kind == keys.Use:
			link.Sent(c.a.Leg, c.a.Key.MKI)
		}
	}
}

// inNamespace opens sockets in a namespace.
type inNamespace struct{ ns *netnstest.NS }

func (n inNamespace) Listen(ctx context.Context, device string, a netip.AddrPort) (l net.Listener, err error) {
	err = n.ns.Do(func() (err error) { l, err = machine{}.Listen(ctx, device, a); return err })
	return l, err
}

func (n inNamespace) Dial(ctx context.Context, device string, a netip.Addr, to netip.AddrPort) (c net.Conn, err error) {
	err = n.ns.Do(func() (err error) { c, err = machine{}.Dial(ctx, device, a, to); return err })
	return c, err
}

func newBox(t *testing.T, ns *netnstest.NS, addr string) *box {
	own, err := channel.GenerateIdentity()
	require.NoError(t, err)
	return &box{
		ns: ns, own: own, addr: netip.MustParseAddr(addr), state: map[string][]byte{}, uses: map[string]keys.Key{},
		holds: map[string]map[keys.MKI]keys.Key{},
	}
}

// start runs the daemon's half; end ends it, as a restart does.
func (b *box) start(t *testing.T) {
	b.todo = make(chan carried, 1024)
	b.Channels = New(Options{Log: slog.New(slog.DiscardHandler), Plane: b, Network: inNamespace{b.ns}})
	ctx, cancel := context.WithCancel(t.Context())
	var done sync.WaitGroup
	done.Go(func() { _ = b.Run(ctx, func() {}) })
	var carrying sync.WaitGroup
	carrying.Go(b.carry)
	b.end = sync.OnceFunc(func() {
		cancel()
		done.Wait()
		close(b.todo)
		carrying.Wait()
	})
	t.Cleanup(func() { b.end() })
}

func (b *box) want(far *box, as channel.PublicKey) {
	b.Set(Settings{
		Own: b.own, Device: "rw-voice",
		Sites: []Site{{Name: "far", Far: as, Local: b.addr, Remote: far.addr}},
	})
}

func (b *box) agreesWith(far *box) bool {
	b.mu.Lock()
	mine, sends := b.uses["far"]
	b.mu.Unlock()
	far.mu.Lock()
	defer far.mu.Unlock()
	theirs, holds := far.holds["far"][mine.MKI]
	return sends && holds && string(mine.Master()) == string(theirs.Master())
}

// Two boxes agree keys of a leg in both directions; a restart of either daemon, a line that goes and a stranger change
// nothing about that.
func TestTwoBoxesAgreeKeys(t *testing.T) {
	defer goleak.VerifyNone(t)
	a, b := netnstest.New(t), netnstest.New(t)
	netnstest.Veth(t, a, "rw-voice", b, "rw-voice")
	for _, ns := range []*netnstest.NS{a, b} {
		ns.Run("ip", "link", "set", "rw-voice", "up")
		ns.Run("ip", "link", "set", "lo", "up")
	}
	a.Run("ip", "addr", "add", "10.1.10.1/16", "dev", "rw-voice")
	b.Run("ip", "addr", "add", "10.1.20.1/16", "dev", "rw-voice")
	b.Run("ip", "addr", "add", "10.1.20.9/16", "dev", "rw-voice")
	berlin, munich := newBox(t, a, "10.1.10.1"), newBox(t, b, "10.1.20.1")
	berlin.start(t)
	munich.start(t)
	berlin.want(munich, munich.own.Public())
	munich.want(berlin, berlin.own.Public())
	up := func() bool { return berlin.Up("far") && munich.Up("far") }
	eventually(t, "the channel is up", up)

	leg := keys.Leg{1, 2, 3}
	require.NoError(t, berlin.Link("far").Begin(leg, suite.AEADAES128GCM))
	require.NoError(t, munich.Link("far").Begin(leg, suite.AEADAES128GCM))
	agreed := func() bool { return berlin.agreesWith(munich) && munich.agreesWith(berlin) }
	eventually(t, "both directions have keys", agreed)
	eventually(t, "the status says so", func() bool {
		st := berlin.Status().(Status)
		return len(st.Sites) == 1 && st.Sites[0].Up && st.Sites[0].Legs == 1 && st.Sites[0].Sending == 1
	})
	assert.Empty(t, berlin.Problems())

	// A daemon that follows another one goes on with the leg, under the same key.
	berlin.mu.Lock()
	before := berlin.uses["far"].MKI
	berlin.mu.Unlock()
	berlin.end()
	berlin.start(t)
	berlin.want(munich, munich.own.Public())
	eventually(t, "the channel is up again", up)
	st, known := berlin.Link("far").Status(leg)
	assert.True(t, known)
	assert.True(t, st.Sending)
	assert.True(t, agreed())
	berlin.mu.Lock()
	assert.Equal(t, before, berlin.uses["far"].MKI)
	berlin.mu.Unlock()

	// No settings for a moment, as while a media process does not start, change nothing of what was agreed.
	berlin.Set(Settings{})
	eventually(t, "there is no channel", func() bool { return berlin.Link("far") == nil })
	berlin.want(munich, munich.own.Public())
	eventually(t, "the channel is up after that", up)
	_, known = berlin.Link("far").Status(leg)
	assert.True(t, known)
	assert.True(t, agreed())

	// Whoever connects from elsewhere finds the connection closed.
	listens := berlin
	if berlin.Link("far").Dials() {
		listens = munich
	}
	dials, from := munich, netip.MustParseAddr("10.1.20.9")
	if listens == munich {
		a.Run("ip", "addr", "add", "10.1.10.9/16", "dev", "rw-voice")
		dials, from = berlin, netip.MustParseAddr("10.1.10.9")
	}
	c, err := inNamespace{dials.ns}.Dial(t.Context(), "rw-voice", from, netip.AddrPortFrom(listens.addr, Port))
	require.NoError(t, err)
	_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
	_, err = c.Read(make([]byte, 1))
	assert.False(t, isTimeout(err), "it is closed at once, not after a handshake's time: %v", err)
	c.Close()
	eventually(t, "it is counted", func() bool { return listens.Status().(Status).Strangers == 1 })
	assert.True(t, up())

	// A site that is taken out of the config ends.
	berlin.Set(Settings{Own: berlin.own, Device: "rw-voice"})
	eventually(t, "the site is gone", func() bool { return berlin.Link("far") == nil })
	assert.Equal(t, "Key channels: none", berlin.Status().(Status).String())
	eventually(t, "its keys are given up, and nothing is kept", func() bool {
		berlin.mu.Lock()
		defer berlin.mu.Unlock()
		_, sends := berlin.uses["far"]
		return !sends && len(berlin.holds["far"]) == 0 && len(berlin.state["far"]) == 0
	})
	berlin.end()
	munich.end()
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	polltest.Require(t, condition, 20*time.Second, 10*time.Millisecond, what)
}

func isTimeout(err error) bool {
	n, is := err.(net.Error)
	return is && n.Timeout()
}

// A far end with another identity than the configured one gets no channel, and the problem says so.
func TestAnotherIdentityIsRefused(t *testing.T) {
	defer goleak.VerifyNone(t)
	a, b := netnstest.New(t), netnstest.New(t)
	netnstest.Veth(t, a, "rw-voice", b, "rw-voice")
	for _, ns := range []*netnstest.NS{a, b} {
		ns.Run("ip", "link", "set", "rw-voice", "up")
	}
	a.Run("ip", "addr", "add", "10.1.10.1/16", "dev", "rw-voice")
	b.Run("ip", "addr", "add", "10.1.20.1/16", "dev", "rw-voice")
	berlin, munich := newBox(t, a, "10.1.10.1"), newBox(t, b, "10.1.20.1")
	other, err := channel.GenerateIdentity()
	require.NoError(t, err)
	for channel.Dials(berlin.own.Public(), other.Public()) != channel.Dials(berlin.own.Public(), munich.own.Public()) {
		other, err = channel.GenerateIdentity()
		require.NoError(t, err)
	}
	berlin.start(t)
	munich.start(t)
	berlin.want(munich, other.Public())
	munich.want(berlin, berlin.own.Public())
	eventually(t, "the problem names the cause", func() bool {
		for _, x := range []*box{berlin, munich} {
			for _, p := range x.Problems() {
				if p.Subject == "far" && p.Severity == "critical" && strings.Contains(p.Text, channel.ErrIdentity.Error()) {
					return true
				}
			}
		}
		return false
	})
	assert.False(t, berlin.Up("far"))
	assert.False(t, munich.Up("far"))
	berlin.end()
	munich.end()
}
