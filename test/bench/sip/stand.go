package sip

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"ringway/test/bench/cost"
	"ringway/test/bench/rival"
	"ringway/test/lab/host"
	"ringway/tunnel"
)

// Topology is one path's hosts, as `ringway bench sip --help` draws them.
const Topology = `  phones 10.1.1.1-10.1.1.250 --- 10.1.0.1 voice0 box data0 10.2.0.1 --- pbx 10.2.0.10`

// The hosts' addresses. Calls are spread over many phones, because a box bounds what one phone may have open.
const (
	phoneCount = 250
	boxVoice   = "10.1.0.1"
	boxData    = "10.2.0.1"
	pbx        = "10.2.0.10"
	upTime     = 30 * time.Second // of a path
)

func phoneAddresses() (all []string) {
	for i := range phoneCount {
		all = append(all, fmt.Sprintf("10.1.1.%d", 1+i))
	}
	return all
}

// stand is one path: its hosts, what runs on the box, and the sockets of the ends.
type stand struct {
	path    Path
	nextHop [4]byte
	phones  *host.Host
	box     *host.Host
	pbx     *host.Host
	process *host.Process // of the box
	ringway string        // its program; empty: kamailio
	cores   cost.Cores
	caller  socket
	callee  socket
}

// newStand builds the hosts of a path and starts what is measured.
func newStand(ctx context.Context, w *host.World, p Path, ringway string, c cost.Cores) (_ *stand, err error) {
	s := &stand{path: p, cores: c, nextHop: [4]byte{10, 2, 0, 10}}
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	if err := s.build(ctx, w); err != nil {
		return nil, err
	}
	if s.caller, err = listen(s.phones); err != nil {
		return nil, err
	}
	if s.callee, err = listen(s.pbx); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, upTime, fmt.Errorf("not up after %s", upTime))
	defer cancel()
	switch p {
	case Kamailio:
		s.nextHop = [4]byte{10, 2, 0, 1}
		err = s.startKamailio()
	default:
		s.ringway = ringway
		err = s.startRingway(ctx, p != Kernel)
	}
	if err == nil {
		err = s.waitForCalls(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, s.alive())
	}
	return s, nil
}

// build makes the hosts and cables.
func (s *stand) build(ctx context.Context, w *host.World) (err error) {
	for _, h := range []struct {
		at   **host.Host
		name string
	}{{&s.phones, "phones"}, {&s.box, "box"}, {&s.pbx, "pbx"}} {
		if *h.at, err = w.NewHost(h.name + "-" + string(s.path)); err != nil {
			return err
		}
		if err := (*h.at).IP(ctx, nil, "link set lo up"); err != nil {
			return err
		}
	}
	if err := s.box.IP(ctx, s.phones, "link add voice0 type veth peer name eth0 netns /proc/self/fd/3",
		"addr add "+boxVoice+"/16 dev voice0", "link set voice0 up",
		"link add wan0 type veth peer name wan1", "addr add 198.51.100.2/24 dev wan0",
		"link set wan0 up", "link set wan1 up"); err != nil {
		return err
	}
	if err := s.box.IP(ctx, s.pbx, "link add data0 type veth peer name eth0 netns /proc/self/fd/3",
		"addr add "+boxData+"/16 dev data0", "link set data0 up"); err != nil {
		return err
	}
	if err := s.pbx.IP(ctx, nil, "addr add "+pbx+"/16 dev eth0", "link set eth0 up",
		"route add default via "+boxData); err != nil {
		return err
	}
	var lines []string
	for _, a := range phoneAddresses() {
		lines = append(lines, "addr add "+a+"/16 dev eth0")
	}
	lines = append(lines, "link set eth0 up", "route add default via "+boxVoice)
	if err := s.phones.IP(ctx, nil, lines...); err != nil {
		return err
	}
	if err := s.box.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
	}); err != nil {
		return fmt.Errorf("forward packets: %w", err)
	}
	return s.steer()
}

// steer has packets worked on by the core of the host that receives them.
func (s *stand) steer() error {
	return errors.Join(
		cost.Steer(s.phones, "eth0", s.cores.Ends), cost.Steer(s.box, "voice0", s.cores.Box),
		cost.Steer(s.box, "data0", s.cores.Box), cost.Steer(s.pbx, "eth0", s.cores.Ends),
	)
}

// spawn starts a program on the box's core. It finds one core, as on a machine that has no other.
func (s *stand) spawn(name string, args ...string) (err error) {
	words := append([]string{"-c", fmt.Sprint(s.cores.Box)}, args...)
	s.process, err = s.box.Spawn(name, s.box.Command("taskset", words...))
	return err
}

// Files of the box, as the appliance's own defaults.
const (
	configFile = "/etc/ringway/ringway.yaml"
	keyFile    = "/etc/ringway/private.key"
)

// config is a box with phones, a PBX beside its data network, and a line and a site that nothing goes to.
func config(reads bool, far string) string {
	mode := "off"
	if reads {
		mode = "enforce"
	}
	return fmt.Sprintf(`site: box
wan:
  - {interface: wan0, address: 198.51.100.2/24, gateway: 198.51.100.1, uplink: 1gbit, downlink: 1gbit}
voice:
  - {interface: voice0, address: %s/16}
data:
  - {interface: data0, address: %s/16}
sites:
  - {name: far, public_key: %s, voice_networks: 10.3.0.0/16, data_networks: 10.4.0.0/16}
sip:
  mode: %s
  unread: allow
  limits: {phone: 20000, server: 50000}
`, boxVoice, boxData, far, mode)
}

func (s *stand) startRingway(ctx context.Context, reads bool) error {
	own, err := tunnel.NewPrivateKey()
	if err != nil {
		return err
	}
	far, err := tunnel.NewPrivateKey()
	if err != nil {
		return err
	}
	if err := errors.Join(
		os.WriteFile(s.box.Path(keyFile), []byte(own.Base64()+"\n"), 0o600),
		os.WriteFile(s.box.Path(configFile), []byte(config(reads, far.Public().String())), 0o644),
	); err != nil {
		return fmt.Errorf("configure %s: %w", s.box.Name, err)
	}
	if err := s.spawn("ringway", s.ringway, "run", configFile); err != nil {
		return err
	}
	for {
		st, err := s.status(ctx)
		if err == nil && st.Ready && st.Calls.Reading == reads {
			return nil
		}
		if cause := host.Pause(ctx, 100*time.Millisecond); cause != nil {
			return errors.Join(cause, err, errors.New(s.process.LastWords()))
		}
	}
}

// ringwayStatus is the part of `ringway status --json` that is looked at.
type ringwayStatus struct {
	Ready bool `json:"ready"`
	Calls struct {
		Reading  bool   `json:"reading"`
		Messages uint64 `json:"messages"`
		Holes    int    `json:"holes"`
		Calls    int    `json:"calls"`
		Late     uint64 `json:"late_flows"`

		Refused   map[string]uint64 `json:"refused"`
		Unread    map[string]uint64 `json:"unread"`
		Transport map[string]uint64 `json:"transport"`
		NotOpen   map[string]uint64 `json:"not_opened"`
	} `json:"calls"`
}

func (s *stand) status(ctx context.Context) (st ringwayStatus, err error) {
	out, err := s.box.Run(ctx, s.ringway, "status", "--json")
	if err != nil {
		return st, err
	}
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		return st, fmt.Errorf("read `ringway status --json` of %s: %w", s.box.Name, err)
	}
	return st, nil
}

// processes are those that are measured.
func (s *stand) processes() ([]int, error) { return rival.WithChildren(s.process.PID()) }

// waitForCalls places a few calls until all of them are answered.
func (s *stand) waitForCalls(ctx context.Context) error {
	for i := 0; ; i++ {
		t := trial{name: fmt.Sprintf("up%d-", i), rate: 100, count: 10, hold: 10 * time.Millisecond, rest: time.Second}
		r, err := s.run(ctx, t) // its processes may have started only now
		if err == nil && r.Lost == 0 && !r.Restarted {
			return nil
		}
		if cause := host.Pause(ctx, 100*time.Millisecond); cause != nil {
			return errors.Join(fmt.Errorf("no calls get through: %w", cause), err)
		}
	}
}

// alive returns an error if the box's program has exited.
func (s *stand) alive() error {
	if s.process == nil {
		return nil
	}
	select {
	case <-s.process.Ended:
		return fmt.Errorf("the program of %s exited: %w: %s", s.path, s.process.Err(), s.process.LastWords())
	default:
		return nil
	}
}

func (s *stand) close() {
	for _, x := range []socket{s.caller, s.callee} {
		if x.fd > 0 {
			x.close()
		}
	}
	for _, h := range []*host.Host{s.phones, s.box, s.pbx} {
		if h != nil {
			h.Close()
		}
	}
}
