// Package provider is the network between two branches in the lab: a bottleneck with a FIFO buffer, a distance and a
// loss that neither branch can see into. test/lab and tests import it. Needs root, `ip` and `tc`.
//
//	                      provider's namespace
//	        .-------------------------------------------------------.
//	        |            rule iif A            rule iif relay-ab     |
//	edge-a --- A ------> relay-ab: loss, delay ------> TBF, FIFO - B --- edge-b
//	        |  A - FIFO, TBF <------ relay-ba: loss, delay <------ B |
//	        '-------------------------------------------------------'
//
// A meter lets a packet through at once when there is room in its bucket, as providers' policers and shapers do; the wire behind it is
// faster. A wire (Config.Wire) is busy with one packet at a time, and the relay keeps its clock: no TBF, and the FIFO is the relay's.
//
// It works on layer 3: the caller gives A and B their addresses, and each branch's addresses are on link there. Rate and buffer are
// the kernel's (TBF); delay and loss come from a relay of ours, a TUN device per direction that packets are routed through. Without
// delay and loss there is no relay and the kernel alone forwards. Everything works alike for IPv4 and IPv6.
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

// DefaultBuffer is the bottleneck's FIFO where none is asked for: 120 ms at 20 Mbit/s.
const DefaultBuffer = 300_000

// Config is what the network does to packets, in each direction alike.
type Config struct {
	RateBits    uint64        // of the bottleneck, counting Ethernet frames without checksum; 0 = none, nothing is queued
	BufferBytes int           // FIFO before the bottleneck; 0 = DefaultBuffer. Means nothing without a rate
	Wire        bool          // the bottleneck is a wire: a packet is there when its last bit is. Otherwise a meter (TBF)
	Delay       time.Duration // one way
	Loss        float64       // 0 to 1, each packet by itself
	Seed        uint64        // of the loss: the same seed loses the same packets of each direction
}

// metered says whether the kernel's TBF is the bottleneck.
func (c Config) metered() bool { return c.RateBits > 0 && !c.Wire }

func (c Config) relayed() bool { return c.Delay > 0 || c.Loss > 0 || c.Wire }

// Route tables and rule priority of the relay, in the provider's own namespace only.
const (
	tableAB, tableBA = "101", "102"
	rulePriority     = "100"
)

// Provider is a built network.
type Provider struct {
	ns     string
	ifaces [2]string // A, B
	config Config
	relays [2]*relay // from A, from B; nil without delay and loss
	once   sync.Once
}

// Build sets the network up inside ns (see package inside) between two devices that are up and have their
// addresses. Packets flow once Run runs. Close undoes it all.
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
			// One packet a frame: a super-packet that the burst would let through is cut when it leaves.
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

// tbf is the bottleneck of a device in tc's words. The burst is what the bucket holds while it waits for the kernel's timer:
// with room for one packet only, each late timer would be capacity lost (a few percent at 20 Mbit/s), and a shaper set just
// under the rate would find itself above it. A millisecond's worth, three frames at least, keeps the rate true. What
// is larger, TBF cuts into packets itself.
func tbf(device string, c Config, mtu int) []string {
	frame := mtu + 14
	burst := max(3*frame, int(c.RateBits/8/1000))
	return []string{"qdisc", "replace", "dev", device, "root", "handle", "1:", "tbf", "rate", fmt.Sprintf("%dbit", c.RateBits),
		"burst", strconv.Itoa(burst), "limit", strconv.Itoa(c.BufferBytes)}
}

// forwarding lets the namespace forward; reverse path checks would refuse what comes back out of a relay.
func forwarding() error {
	var errs []error
	for name, value := range map[string]string{
		"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "1",
		"ipv4/conf/all/rp_filter": "0", "ipv4/conf/default/rp_filter": "0",
		"ipv4/conf/all/send_redirects": "0", "ipv4/conf/default/send_redirects": "0",
	} {
		errs = append(errs, os.WriteFile("/proc/sys/net/"+name, []byte(value), 0))
	}
	// Reverse path checks take the stricter of "all" and the device's own, and the device has its own already.
	entries, err := os.ReadDir("/proc/sys/net/ipv4/conf")
	for _, e := range entries {
		errs = append(errs, os.WriteFile("/proc/sys/net/ipv4/conf/"+e.Name()+"/rp_filter", []byte("0"), 0))
	}
	return errors.Join(append(errs, err)...)
}

// Run carries packets until ctx ends. Without delay and loss the kernel does it alone and Run only waits.
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
			cancel() // half a network is none
			errs <- err
		}()
	}
	return errors.Join(<-errs, <-errs)
}

// String names the task.
func (p *Provider) String() string { return "provider" }

// Close takes down what Build set up, after Run has ended. The devices A and B stay, and so does the namespace's forwarding.
func (p *Provider) Close() error {
	var errs []error
	p.once.Do(func() {
		ctx := context.Background()
		for i, table := range []string{tableAB, tableBA} {
			if p.relays[i] == nil {
				continue
			}
			for _, family := range []string{"-4", "-6"} {
				_, err := inside.Run(ctx, p.ns, "ip", family, "rule", "del", "iif", p.ifaces[i], "lookup", table, "priority", rulePriority)
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

// Stats is what happened in each direction.
type Stats struct {
	AToB, BToA DirectionStats
}

// DirectionStats counts packets of one direction.
type DirectionStats struct {
	Sent     uint64 // left the bottleneck; counted by TBF only
	Dropped  uint64 // found the buffer full
	Backlog  uint64 // bytes in the buffer now
	Relayed  uint64 // by the relay
	Lost     uint64 // on purpose
	Overflow uint64 // more packets under way than the relay holds: the figures of such a run are not the network's
	// How much later than its time the relay released a packet: its own jitter.
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
		out, err := inside.Run(context.Background(), p.ns, "tc", "-s", "-j", "qdisc", "show", "dev", p.ifaces[1-i], "root")
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

// Queue is what stands before a wire, and what went past it: bytes of frames, packets.
type Queue struct {
	Sent    uint64 `json:"sent"`
	Backlog uint64 `json:"backlog"`
	Drops   uint64 `json:"drops"`
}

// Queues are the FIFOs before the wires, from A to B and back; nothing where the bottleneck is a meter: its queue is the kernel's. To ask
// keeps no packet waiting.
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
		_ = json.NewEncoder(c).Encode(p.Queues()) // who asked may have gone
		c.Close()
	}
}

// quiet is held while any provider's relays work; several providers may run in one process.
var quiet struct {
	sync.Mutex
	users, processors, percent int
	limit                      int64
}

// room is what may be allocated while relays work until the collector runs: hours of answers to who reads the queues.
const room = 256 << 20

// quietRuntime keeps the runtime out of the relays' way until the returned function is called.
//   - Processors to spare: a thread that comes back from waiting needs one, and would queue for it behind busy goroutines, real time or
//     not: 100 ms late instead of 0.2 was seen. With some to spare it gets one at once, and the kernel decides who runs.
//   - No collection: a real-time thread that comes back while the collector looks at its stack spins until that ends, and on a
//     machine with one processor it never does: the kernel's bound on real-time threads ends it after a second (golang/go#76353).
func quietRuntime() (release func()) {
	quiet.Lock()
	defer quiet.Unlock()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	limit := debug.SetMemoryLimit(int64(m.Sys) + room)
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

// realTime puts the calling (locked) thread before all others. In a cpu control group without real-time share the kernel refuses; then it
// is nice -20.
func realTime() error {
	if fifo.RealTime() == nil {
		return nil
	}
	return unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), -20)
}
