package rival

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"ringway/qos"
	"ringway/test/lab/host"
	"ringway/tunnel"
	"ringway/tunnel/descriptor"
	"ringway/tunnel/plane"
)

// edgeConfig is the configuration of EdgeMain. The key is a temporary one, in a file that only the host sees.
type edgeConfig struct {
	PrivateKey string           `json:"private_key"`
	Peer       tunnel.PublicKey `json:"peer"`
	Endpoint   netip.AddrPort   `json:"endpoint"`
	Networks   []netip.Prefix   `json:"networks"`
	Port       int              `json:"port"`
	Device     string           `json:"device"`
	Engine     string           `json:"engine"`
	Denied     string           `json:"denied"`  // file for what the machine did not allow
	Program    string           `json:"program"` // that the plane runs
}

const outerTOS = 0xb8 // EF, as the appliance marks its voice tunnel

// ringway runs Ringway's voice plane on each edge: the daemon's own supervisor starts it in its sandbox, with
// its priorities.
func (w spec) ringway(ctx context.Context) (*Tunnel, error) {
	keys, err := w.keys()
	if err != nil {
		return nil, err
	}
	t := &Tunnel{Program: "ringway plane, engine " + w.engine}
	for i, e := range w.ends() {
		p, err := w.ringwayEnd(ctx, e, keys[i], keys[1-i].Public())
		if err != nil {
			return nil, err
		}
		t.processes = append(t.processes, p)
	}
	return t, nil
}

// ringwayEnd runs one end's plane.
func (w spec) ringwayEnd(
	ctx context.Context,
	e end,
	key tunnel.PrivateKey,
	peer tunnel.PublicKey,
) (p *host.Process, err error) {
	h := e.near.Host
	c := edgeConfig{
		PrivateKey: key.Base64(),
		Peer:       peer,
		Port:       w.port,
		Device:     w.device,
		Engine:     w.engine,
		Denied:     deniedFile,
		Program:    w.programs.Ringway,
	}
	if c.Endpoint, err = netip.ParseAddrPort(net.JoinHostPort(e.far.WAN, strconv.Itoa(w.port))); err != nil {
		return nil, err
	}
	for _, n := range e.farther {
		prefix, err := netip.ParsePrefix(n)
		if err != nil {
			return nil, err
		}
		c.Networks = append(c.Networks, prefix)
	}
	text, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	const file = host.Dir + "/edge.json"
	if err := os.WriteFile(h.Path(file), text, 0o600); err != nil {
		return nil, fmt.Errorf("configure the plane on %s: %w", h.Name, err)
	}
	// Supervisor and plane are of the same build: this program may not know how another build starts a plane.
	supervisor := w.programs.Helper
	if w.programs.OtherBuild {
		supervisor = w.programs.Ringway
	}
	cmd := h.Command(supervisor, "bench", "edge", file)
	if err := host.StartHolder(cmd, func() (err error) {
		p, err = h.Spawn(string(w.kind), cmd)
		return err
	}); err != nil {
		words := ""
		if p != nil {
			words = "\n" + p.LastWords()
		}
		return nil, fmt.Errorf("%s: start Ringway's plane: %w%s", h.Name, err, words)
	}
	link := fmt.Sprintf("link set %s mtu %d txqueuelen %d up", w.device, wireguardMTU, unbounded().TUNPackets)
	return p, w.routeIn(ctx, e, link)
}

// deniedFile is where EdgeMain lists what the machine denied the plane, on its host.
const deniedFile = host.Dir + "/denied.json"

var processPath = regexp.MustCompile(`/proc/[0-9]+/`)

// Denied lists what this machine denied Ringway's planes on the edges.
func Denied(edges ...Edge) []string {
	var all []string
	for _, e := range edges {
		var some []string
		if text, err := os.ReadFile(e.Host.Path(deniedFile)); err == nil && json.Unmarshal(text, &some) == nil {
			for _, d := range some {
				all = append(all, processPath.ReplaceAllString(d, "/proc/PID/")) // the two planes are denied the same
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// EdgeMain supervises one plane as the daemon does, until ctx ends.
func EdgeMain(ctx context.Context, file string, stdout, stderr io.Writer) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read the edge's configuration: %w (only `ringway bench` starts it)", err)
	}
	var c edgeConfig
	if err := json.Unmarshal(text, &c); err != nil {
		return fmt.Errorf("read the edge's configuration: %w", err)
	}
	key, err := tunnel.ParsePrivateKey(strings.TrimSpace(c.PrivateKey))
	if err != nil {
		return err
	}
	s, err := plane.NewSupervisor(plane.Config{
		Class: tunnel.Voice, RunDir: "/run/ringway/planes", UAPIDir: "/var/run/wireguard",
		Program: c.Program, OpenTUN: descriptor.OpenTUN, OpenUDP: descriptor.OpenUDP,
		Log: slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	})
	if err != nil {
		return err
	}
	watched := make(chan error, 1)
	go func() { watched <- s.Run(context.WithoutCancel(ctx)) }()
	p := unbounded()
	if err := s.Configure(ctx, tunnel.Device{
		Class: tunnel.Voice, PrivateKey: key,
		Outer: tunnel.Outer{TOS: outerTOS, Marks: []tunnel.OuterMark{{Inner: outerTOS >> 2, Outer: outerTOS >> 2}}},
		Settings: tunnel.Settings{Interface: c.Device, ListenPort: uint16(c.Port),
			Engine: tunnel.EngineName(c.Engine), MTU: wireguardMTU},
		Peers: []tunnel.Peer{{Site: "far", PublicKey: c.Peer, Endpoint: c.Endpoint, AllowedIPs: c.Networks}},
		Bounds: tunnel.Bounds{TxQueueLen: p.TUNPackets, InFlight: inFlight, SendBuffer: p.SendBuffer,
			ReceiveBuffer: receiveBuffer,
			DeviceGSO:     p.TUNGSOBytes, SuperPacket: maxSuperPacket},
	}); err != nil {
		return fmt.Errorf("start the plane: %w", err)
	}
	_, missing := s.Sandbox()
	if denied, err := json.Marshal(missing); err == nil {
		_ = os.WriteFile(c.Denied, denied, 0o644) // without it the report lacks this list
	}
	if _, err := fmt.Fprintln(stdout, host.Ready); err != nil {
		return err
	}
	select {
	case <-ctx.Done():
	case err := <-watched:
		return errors.Join(errors.New("the plane's supervision ended"), err)
	}
	return s.Stop(context.WithoutCancel(ctx))
}

// unbounded are the bounds of a path whose uplink has no rate.
func unbounded() qos.Path { return qos.PathBounds(0, qos.Class{Name: qos.Media}, 1500) }

// What the appliance takes where nothing bounds the uplink.
const (
	inFlight       = 128
	receiveBuffer  = 7 << 20
	maxSuperPacket = 65000
)
