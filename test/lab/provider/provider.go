// Package provider is the network between two branches in the lab: a bottleneck with a FIFO buffer, delay and
// loss that neither branch can observe directly. It needs root, `ip` and `tc`.
//
//	                      provider's namespace
//	        .-------------------------------------------------------.
//	        |            rule iif A            rule iif relay-ab     |
//	edge-a --- A ------> relay-ab: loss, delay ------> TBF, FIFO - B --- edge-b
//	        |  A - FIFO, TBF <------ relay-ba: loss, delay <------ B |
//	        '-------------------------------------------------------'
//
// A meter lets a packet through at once when its bucket has room, as providers' policers and shapers do; the
// wire behind it is faster. A wire (Config.Wire) is busy with one packet at a time, and the relay keeps its
// clock: there is no TBF, and the FIFO is the relay's.
//
// It works on layer 3: the caller assigns the addresses of A and B, on whose links each branch's addresses
// are. Rate and buffer are the kernel's (TBF); delay and loss come from a relay, a TUN device for each
// direction that packets are routed through. Without delay and loss there is no relay and the kernel alone
// forwards. IPv4 and IPv6 are treated alike.
package provider

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ringway/test/lab/fifo"
	"ringway/test/lab/inside"
)

// DefaultBuffer is the bottleneck's FIFO if none is given: 120 ms at 20 Mbit/s.
const DefaultBuffer = 300_000

// Config is what the network does to packets, the same in each direction.
type Config struct {
	// of the bottleneck, counting Ethernet frames without checksum; 0 = none, nothing is queued
	RateBits    uint64
	BufferBytes int // FIFO before the bottleneck; 0 = DefaultBuffer. Unused without a rate
	// the bottleneck is a wire: a packet is there when its last bit is. Otherwise a meter (TBF)
	Wire  bool
	Delay time.Duration // one way
	Loss  float64       // 0 to 1, independent for each packet
	Seed  uint64        // of the loss: the same seed loses the same packets of each direction
}

// metered reports whether the kernel's TBF is the bottleneck.
func (c Config) metered() bool { return c.RateBits > 0 && !c.Wire }

func (c Config) relayed() bool { return c.Delay > 0 || c.Loss > 0 || c.Wire }

// Route tables and rule priority of the relay, in the provider's own namespace only.
const (
	tableAB, tableBA = "101", "102"
	rulePriority     = "100"
)

// Provider is a network that was built.
type Provider struct {
	ns     string
	ifaces [2]string // A, B
	config Config
	relays [2]*relay // from A, from B; nil without delay and loss
	once   sync.Once
}

// Build sets the network up inside ns (see package inside) between two devices that are up and have their
// addresses. Packets flow while Run runs. Close reverts everything.
func Build(ns, ifaceA, ifaceB string, c Config) (*Provider, error) {
	if c.Loss < 0 || c.Loss > 1 || c.Delay < 0 || c.BufferBytes < 0 || c.Wire && c.RateBits == 0 {
		return nil, fmt.Errorf("provider: loss %g, delay %v, buffer %d: out of range", c.Loss, c.Delay, c.BufferBytes)
	}
	if c.BufferBytes == 0 {
		c.BufferBytes = DefaultBuffer
	}
	p := &Provider{ns: ns, ifaces: [2]string{ifaceA, ifaceB}, config: c}
	if err := p.build(); err != nil {
		return nil, errors.Join(fmt.Errorf("build the provider: %w", err), p.Close())
	}
	return p, nil
}

func (p *Provider) build() error {
	ctx := context.Background()
	if err := inside.Do(p.ns, forwarding); err != nil {
		return err
	}
	mtu := 0
	for _, name := range p.ifaces {
		if err := inside.Do(p.ns, func() error {
			link, err := net.InterfaceByName(name)
			if err == nil {
				mtu = max(mtu, link.MTU)
			}
			return err
		}); err != nil {
			return fmt.Errorf("device %s: %w", name, err)
		}
	}
	if p.config.metered() {
		for _, name := range p.ifaces {
			// One packet in each frame: a super-packet that the burst lets through is split when it leaves.
			if _, err := inside.Run(ctx, p.ns, "ip", "link", "set", "dev", name, "gso_max_segs", "1"); err != nil {
				return err
			}
			if _, err := inside.Run(ctx, p.ns, "tc", tbf(name, p.config, mtu)...); err != nil {
				return err
			}
		}
	}
	if !p.config.relayed() {
		return nil
	}
	for i, r := range []struct{ device, table string }{{"relay-ab", tableAB}, {"relay-ba", tableBA}} {
		relay, err := newRelay(p.ns, r.device, mtu, p.config, uint64(i))
		if err != nil {
			return err
		}
		p.relays[i] = relay
		for _, args := range [][]string{
			{"link", "set", "dev", r.device, "mtu", strconv.Itoa(mtu), "txqueuelen", "10000", "addrgenmode", "none"},
			{"link", "set", "dev", r.device, "up"},
			{"-4", "route", "add", "default", "dev", r.device, "table", r.table},
			{"-6", "route", "add", "default", "dev", r.device, "table", r.table},
			{"-4", "rule", "add", "iif", p.ifaces[i], "lookup", r.table, "priority", rulePriority},
			{"-6", "rule", "add", "iif", p.ifaces[i], "lookup", r.table, "priority", rulePriority},
		} {
			if _, err := inside.Run(ctx, p.ns, "ip", args...); err != nil {
				return err
			}
		}
	}
	return nil
}

// tbf is the bottleneck of a device as arguments of tc. The burst is what the bucket holds while it waits for
// the kernel's timer: with room for one packet only, each late timer would lose capacity (a few percent at 20
// Mbit/s), and a shaper set just below the rate would be above it. The bytes of one millisecond, and at least
// three frames, keep the rate exact. TBF splits larger packets itself.
func tbf(device string, c Config, mtu int) []string {
	frame := mtu + 14
	burst := max(3*frame, int(c.RateBits/8/1000))
	return []string{
		"qdisc",
		"replace",
		"dev",
		device,
		"root",
		"handle",
		"1:",
		"tbf",
		"rate",
		fmt.Sprintf("%dbit", c.RateBits),
		"burst",
		strconv.Itoa(burst),
		"limit",
		strconv.Itoa(c.BufferBytes),
	}
}

// SetRate changes the bottleneck of both devices of a network that Build made with a rate, without a wire: by the
// kernel's TBF, which keeps what it holds.
func SetRate(ctx context.Context, ns string, devices [2]string, c Config) error {
	for _, name := range devices {
		mtu := 0
		if err := inside.Do(ns, func() error {
			link, err := net.InterfaceByName(name)
			if err == nil {
				mtu = link.MTU
			}
			return err
		}); err != nil {
			return fmt.Errorf("device %s: %w", name, err)
		}
		if _, err := inside.Run(ctx, ns, "tc", tbf(name, c, mtu)...); err != nil {
			return err
		}
	}
	return nil
}

// forwarding enables forwarding in the namespace; reverse path checks would drop what comes back out of a
// relay.
func forwarding() error {
	var errs []error
	for name, value := range map[string]string{
		"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1",
		"ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0",
		"ipv4/conf/all/send_redirects": "0", "ipv4/conf/default/send_redirects": "0",
	} {
		errs = append(errs, os.WriteFile("/proc/sys/net/"+name, []byte(value), 0))
	}
	// Reverse path checks take the stricter of "all" and the device's own, and the device has its own
	// already.
	entries, err := os.ReadDir("/proc/sys/net/ipv4/conf")
	for _, e := range entries {
		errs = append(errs, os.WriteFile("/proc/sys/net/ipv4/conf/"+e.Name()+"/rp_filter", []byte("0"), 0))
	}
	return errors.Join(append(errs, err)...)
}

// Run forwards packets until ctx ends. Without delay and loss the kernel does it alone and Run only waits.
func (p *Provider) Run(ctx context.Context) error {
	if p.relays[0] == nil {
		<-ctx.Done()
		return nil
	}
	defer quietRuntime()()

	errs := make(chan error, len(p.relays))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for _, r := range p.relays {
		go func() {
			err := r.run(ctx)
			cancel() // without one direction there is no network
			errs <- err
		}()
	}
	return errors.Join(<-errs, <-errs)
}

// Close removes what Build set up, after Run has ended. The devices A and B stay, and so does forwarding in
// the namespace.
func (p *Provider) Close() error {
	var errs []error
	p.once.Do(func() {
		ctx := context.Background()
		for i, table := range []string{tableAB, tableBA} {
			if p.relays[i] == nil {
				continue
			}
			for _, family := range []string{"-4", "-6"} {
				_, err := inside.Run(
					ctx,
					p.ns,
					"ip",
					family,
					"rule",
					"del",
					"iif",
					p.ifaces[i],
					"lookup",
					table,
					"priority",
					rulePriority,
				)
				errs = append(errs, err)
			}
			errs = append(errs, p.relays[i].close()) // the routes go with the device
		}
		if p.config.metered() {
			for _, name := range p.ifaces {
				_, err := inside.Run(ctx, p.ns, "tc", "qdisc", "del", "dev", name, "root")
				_, err2 := inside.Run(ctx, p.ns, "ip", "link", "set", "dev", name, "gso_max_segs", "65535")
				errs = append(errs, err, err2)
			}
		}
	})
	return errors.Join(errs...)
}

// Stats are the counters of each direction.
type Stats struct {
	AToB, BToA DirectionStats
}

// DirectionStats counts packets of one direction.
type DirectionStats struct {
	Sent     uint64 // left the bottleneck; counted by TBF only
	Dropped  uint64 // found the buffer full
	Backlog  uint64 // bytes in the buffer now
	Relayed  uint64 // by the relay
	Lost     uint64 // as Config.Loss says
	Overflow uint64 // more packets in flight than the relay holds: the figures of such a run are invalid
	// By how much the relay released a packet too late: its own jitter.
	LateP50, LateP99, LateP999, LateMax time.Duration
}

// Stats reads the counters.
func (p *Provider) Stats() (Stats, error) {
	var s Stats
	for i, d := range []*DirectionStats{&s.AToB, &s.BToA} {
		if r := p.relays[i]; r != nil {
			r.stats(d)
		}
		if !p.config.metered() {
			continue
		}
		out, err := inside.Run(
			context.Background(),
			p.ns,
			"tc",
			"-s",
			"-j",
			"qdisc",
			"show",
			"dev",
			p.ifaces[1-i],
			"root",
		)
		if err != nil {
			return s, err
		}
		var q []struct {
			Packets, Drops, Backlog uint64
		}
		if err := json.Unmarshal([]byte(out), &q); err != nil || len(q) == 0 {
			return s, fmt.Errorf("read queue of %s: %w: %s", p.ifaces[1-i], err, out)
		}
		d.Sent, d.Dropped, d.Backlog = q[0].Packets, q[0].Drops, q[0].Backlog
	}
	return s, nil
}

// Queue is the backlog before a wire, and what passed it: bytes of frames, packets.
type Queue struct {
	Sent    uint64 `json:"sent"`
	Backlog uint64 `json:"backlog"`
	Drops   uint64 `json:"drops"`
}

// Queues are the FIFOs before the wires, from A to B and back; nothing where the bottleneck is a meter: its
// queue is the kernel's. Reading them delays no packet.
func (p *Provider) Queues() []Queue {
	if !p.config.Wire {
		return nil
	}
	return []Queue{p.relays[0].queue(), p.relays[1].queue()}
}

// Serve answers each connection with Queues, until l is closed.
func (p *Provider) Serve(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		_ = json.NewEncoder(c).Encode(p.Queues()) // the client may have gone
		c.Close()
	}
}

// quiet guards what is shared by all providers of a process while their relays run.
var quiet struct {
	sync.Mutex
	users, processors, percent int
	limit                      int64
}

// heapGrowth is what may be allocated before the collector runs while relays work: hours of readings of the
// queues.
const heapGrowth = 256 << 20

// quietRuntime keeps the runtime out of the relays' way until the returned function is called.
//   - Processors to spare: a thread that returns from waiting needs one, and would queue for it behind busy
//     goroutines, real time or not: 100 ms late instead of 0.2 was seen. With some to spare it gets one at once,
//     and the kernel decides who runs.
//   - No collection: a real-time thread that returns while the collector scans its stack spins until that is
//     over. On a machine with one processor it never is: the kernel's bound on real-time threads ends it after a
//     second (golang/go#76353).
func quietRuntime() (release func()) {
	quiet.Lock()
	defer quiet.Unlock()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	limit := debug.SetMemoryLimit(int64(m.Sys) + heapGrowth)
	if quiet.users++; quiet.users == 1 {
		quiet.limit = limit
		quiet.percent = debug.SetGCPercent(-1)
		quiet.processors = runtime.GOMAXPROCS(0)
		runtime.GOMAXPROCS(quiet.processors + 6)
	}
	return func() {
		quiet.Lock()
		defer quiet.Unlock()
		if quiet.users--; quiet.users == 0 {
			runtime.GOMAXPROCS(quiet.processors)
			debug.SetGCPercent(quiet.percent)
			debug.SetMemoryLimit(quiet.limit)
		}
	}
}

// realTime gives the calling (locked) thread priority over all others. In a cgroup without a real-time share
// the kernel refuses; then it gets nice -20.
func realTime() error {
	if fifo.RealTime() == nil {
		return nil
	}
	return unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), -20)
}
