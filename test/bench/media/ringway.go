package media

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"ringway/srtp/media"
	"ringway/srtp/media/rules"
	"ringway/srtp/stream"
	"ringway/srtp/suite"
	"ringway/test/lab/host"
)

// edgeConfig is what the box's process is told: secrets in a file of its own host, which disappears with it.
type edgeConfig struct {
	Suite [2]string // of the legs to the caller and the callee; empty: RTP
	Calls []edgeCall
}

type edgeCall struct {
	Port [2]uint16 // of ours
	// Keys and salts, by leg: of what arrives there, and of what leaves there.
	Arrives, Leaves [2][]byte
}

const (
	edgeFile = host.Dir + "/media.json"
	bareFile = host.Dir + "/bare" // memory in bytes, before there are calls
)

// beginRingway starts Ringway's media plane with the calls in it. Legs are joined as they are where both ends' calls go
// through this box.
func (s *stand) beginRingway(_ context.Context, c Case, callee suite.Suite, n int) ([]call, error) {
	conf := edgeConfig{Suite: [2]string{"", callee.String()}}
	if c == ReKey {
		conf.Suite[0] = callersSuite(callee).String()
	}
	calls := make([]call, n)
	for i := range calls {
		x := &calls[i]
		e := edgeCall{}
		for leg, name := range conf.Suite {
			x.ports[leg] = uint16(firstPort + 2*i)
			e.Port[leg] = x.ports[leg]
			if name == "" {
				continue
			}
			of, err := suite.Parse(name)
			if err != nil {
				return nil, err
			}
			x.sends[leg], x.gets[leg] = newSecret(of), newSecret(of)
			e.Arrives[leg] = append(append([]byte{}, x.sends[leg].master...), x.sends[leg].salt...)
			e.Leaves[leg] = append(append([]byte{}, x.gets[leg].master...), x.gets[leg].salt...)
		}
		conf.Calls = append(conf.Calls, e)
	}
	text, err := json.Marshal(conf)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(s.box.Path(edgeFile), text, 0o600); err != nil {
		return nil, fmt.Errorf("configure the media plane on %s: %w", s.box.Name, err)
	}
	words := []string{"-c", strconv.Itoa(s.cores.Box), s.program, "bench", "media-edge", edgeFile}
	cmd := s.box.Command("taskset", words...)
	if err := host.StartHolder(cmd, func() (err error) {
		s.process, err = s.box.Spawn("media", cmd)
		return err
	}); err != nil {
		return nil, fmt.Errorf("%s: start Ringway's media plane: %w", s.box.Name, err)
	}
	bare, err := os.ReadFile(s.box.Path(bareFile))
	if err != nil {
		return nil, err
	}
	s.bare, err = strconv.Atoi(string(bare))
	return calls, err
}

// Marks of the box's packets.
const (
	markDelivered = 0x100
	markLAN       = 0x200
	markTunnel    = 0x300
)

// EdgeMain forwards the calls of a file with Ringway's media plane, until ctx ends.
func EdgeMain(ctx context.Context, file string, stdout io.Writer) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read the calls: %w (only `ringway bench` starts it)", err)
	}
	var c edgeConfig
	if err := json.Unmarshal(text, &c); err != nil {
		return fmt.Errorf("read the calls: %w", err)
	}
	r, err := newRelay(ctx)
	if err != nil {
		return err
	}
	defer r.Close()
	if err := noteMemory(); err != nil {
		return err
	}
	if err := realtime(); err != nil {
		return err
	}
	for i := range c.Calls {
		a, b, err := c.legs(i)
		if err != nil {
			return err
		}
		if err := r.Set(a, b); err != nil {
			return err
		}
	}
	if _, err := fmt.Fprintln(stdout, host.Ready); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// newRelay opens the sockets, loads the rules that bring media to them, and starts the relay.
func newRelay(ctx context.Context) (*media.Relay, error) {
	plan := rules.Plan{
		Table: "ringway_media", Ports: rules.Ports{First: firstPort, Last: lastPort},
		Delivered: markDelivered, PacketsPerPort: 100_000,
		LAN:    rules.Side{Interfaces: []string{"lan0"}, Addresses: []netip.Addr{boxA}, Mark: markLAN},
		Tunnel: rules.Side{Interfaces: []string{"tun0"}, Addresses: []netip.Addr{boxB}, Mark: markTunnel},
	}
	o := media.Options{Alone: true, Threads: 1}
	for side, at := range []*rules.Side{&plan.LAN, &plan.Tunnel} {
		in, port, err := media.ListenIn(false, 0)
		if err != nil {
			return nil, err
		}
		defer in.Close()
		out, err := media.OpenOut(false, at.Mark)
		if err != nil {
			return nil, err
		}
		defer out.Close()
		at.Port4 = port
		o.Sockets[side].In[0], o.Sockets[side].Out[0] = in, out
	}
	text, err := plan.Text()
	if err != nil {
		return nil, err
	}
	nft := exec.CommandContext(ctx, "nft", "-f", "-")
	nft.Stdin = strings.NewReader(text)
	if out, err := nft.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("load the rules of media: %w: %s", err, out)
	}
	return media.New(o)
}

// legs are the two of a call.
func (c *edgeConfig) legs(i int) (a, b media.Leg, err error) {
	legs := [2]media.Leg{
		{Side: media.LAN, Local: netip.AddrPortFrom(boxA, c.Calls[i].Port[0]), Remote: callerAt},
		{Side: media.Tunnel, Local: netip.AddrPortFrom(boxB, c.Calls[i].Port[1]), Remote: calleeAt},
	}
	for n := range legs {
		l := &legs[n]
		l.ID, l.Protection, l.DSCP = uint64(2*i+n+1), media.Clear, 46
		l.Payloads = media.NewPayloads(payloadType)
		// A search for the highest rate sends more than a call would.
		l.Quota = media.Quota{Packets: 100_000, Bytes: 125_000_000, Burst: time.Second}
		if c.Suite[n] == "" {
			continue
		}
		s, err := suite.Parse(c.Suite[n])
		if err != nil {
			return a, b, err
		}
		in, out := c.Calls[i].Arrives[n], c.Calls[i].Leaves[n]
		opens, err1 := stream.NewKey(s, in[:s.KeyLen()], in[s.KeyLen():], nil, 0)
		seals, err2 := stream.NewKey(s, out[:s.KeyLen()], out[s.KeyLen():], nil, 0)
		if err := errors.Join(err1, err2); err != nil {
			return a, b, err
		}
		l.Protection, l.Receiver, l.Sender = media.Secure, stream.NewReceiver(opens), stream.NewSender(seals)
	}
	return legs[0], legs[1], nil
}
