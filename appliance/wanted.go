package appliance

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"ringway/appliance/config"
	"ringway/firewall"
	"ringway/qos"
	"ringway/routing"
	"ringway/tunnel"
)

// wanted is what one config makes of the machine: everything that the kernel and the engines are told
// comes from here, so that it can be printed before it is done.
type wanted struct {
	routing  routing.State
	firewall firewall.State
	queues   qos.State
	queueIn  qos.Input       // what queues was made from
	devices  []tunnel.Device // in the order of tunnel.Classes; they hold keys and are never printed whole
}

// facts is what the plan depends on besides the config.
type facts struct {
	leases          map[string]routing.Lease // by WAN interface
	queues          qos.Features
	firewallMissing []firewall.Feature
	kernelWireGuard bool
	wanMTU          map[string]int // of each WAN's interface as it is; absent: 1500
	secrets         secrets
	endpoint        func(tunnel.Class, tunnel.Site) (at netip.AddrPort, news int)    // what an engine is to be told; zero: not known
	heard           func(tunnel.Class, tunnel.Site) (at netip.AddrPort, when uint64) // where a site is now, the later the higher; zero: not known
	through         func(tunnel.Class, tunnel.Site) string                           // the WAN's interface that a site's ciphertext leaves by; "": not known
	refused         map[string]string                                                // interfaces whose queue is somebody else's: what it is
}

// want is the composition, and the only place where the domains' plans meet. It is pure.
func want(cfg *config.Config, f facts) wanted {
	var w wanted
	w.devices = devices(cfg, f)
	w.routing = routing.Want(routingInput(cfg, f, w.devices))
	w.firewall = wantFirewall(cfg, f)
	w.queueIn = queueInput(cfg, f)
	w.queues = qos.Want(w.queueIn)
	return w
}

// wantFirewall is want's part that changes when a site roams.
func wantFirewall(cfg *config.Config, f facts) firewall.State {
	return firewall.Want(firewallInput(cfg, f, queueInput(cfg, f)))
}

// outerMark is what sockets of a class's tunnel set on ciphertext.
func outerMark(c tunnel.Class) qos.Mark {
	if c == tunnel.Voice {
		return qos.MarkOuterVoice
	}
	return qos.MarkOuterData
}

// outerClass is the traffic class whose queue and code point a tunnel's ciphertext takes by default. Engines that see only
// whole devices mark all of a tunnel alike; realtime tells the classes apart (outer).
func outerClass(c tunnel.Class) qos.ClassName {
	if c == tunnel.Voice {
		return qos.Media
	}
	return qos.Data
}

// innerClasses are the traffic classes that a tunnel carries.
func innerClasses(c tunnel.Class) []qos.ClassName {
	if c == tunnel.Voice {
		return []qos.ClassName{qos.Media, qos.Signalling}
	}
	return []qos.ClassName{qos.Data, qos.Background}
}

// outer is how a tunnel's packets look from outside. An engine that sees packets marks them by the class inside, which the
// inner DSCP says: the firewall writes each class's own on the way into the tunnel (chain remark), so that is what counts; the
// code points by which phones' packets are known are there for what passes it as it is.
func outer(cfg *config.Config, c tunnel.Class) tunnel.Outer {
	o := tunnel.Outer{TOS: classNamed(cfg.Classes, outerClass(c)).Outer.TOS(), PadTo: cfg.Tunnels[c].PadTo}
	marks := map[qos.DSCP]qos.DSCP{}
	for _, n := range innerClasses(c) {
		class := classNamed(cfg.Classes, n)
		for _, d := range class.DSCP {
			marks[d] = class.Outer
		}
	}
	for _, n := range innerClasses(c) {
		d := classNamed(cfg.Classes, n).Outer
		marks[d] = d
	}
	for _, inner := range slices.Sorted(maps.Keys(marks)) {
		o.Marks = append(o.Marks, tunnel.OuterMark{Inner: uint8(inner), Outer: uint8(marks[inner])})
	}
	return o
}

func classNamed(classes []qos.Class, n qos.ClassName) qos.Class {
	i := slices.IndexFunc(classes, func(c qos.Class) bool { return c.Name == n })
	return classes[i] // config fills in all four
}

// slowestUplink is the rate that bounds are sized by: the least of the known ones, since any WAN may carry a
// tunnel; 0 where one is not known, for then nothing holds its queue.
//
// All that leaves a tunnel goes to sites: where their lines together are below the uplink, they bound it.
func slowestUplink(cfg *config.Config) qos.BitRate {
	var least qos.BitRate
	for _, w := range cfg.WANs {
		rate := w.Shaped()
		if rate == 0 {
			return 0
		}
		sites := qos.BitRate(0)
		for _, s := range cfg.Sites {
			sites += w.Queue(0).Ceiling(s.Queue())
		}
		if sites > 0 {
			rate = min(rate, sites)
		}
		if least == 0 || rate < least {
			least = rate
		}
	}
	return least
}

// smallestLeaf is the least that the queue of a class to any site holds, which no super-packet may fill; 0 where none is shaped.
func smallestLeaf(cfg *config.Config, class qos.Class, mtu int) (least qos.ByteCount) {
	for _, w := range cfg.WANs {
		for _, s := range cfg.Sites {
			if w.Shaped() == 0 {
				continue
			}
			own := qos.Rate(w.Queue(0).Ceiling(s.Queue()), cfg.Classes, class.Name)
			if n := qos.LeafBytes(own, class, qos.WireFrame(mtu)); least == 0 || n < least {
				least = n
			}
		}
	}
	return least
}

func devices(cfg *config.Config, f facts) []tunnel.Device {
	var out []tunnel.Device
	for _, c := range tunnel.Classes {
		class := classNamed(cfg.Classes, outerClass(c))
		d := tunnel.Device{Class: c, Settings: cfg.Tunnels[c], FwMark: uint32(outerMark(c)), Outer: outer(cfg, c),
			PrivateKey: f.secrets.private, Bounds: bounds(slowestUplink(cfg), class, widestMTU(cfg, f), int(cfg.Tunnels[c].MTU))}
		if leaf := smallestLeaf(cfg, class, widestMTU(cfg, f)); leaf > 0 && d.Bounds.SuperPacket > int(leaf/2) {
			if d.Bounds.SuperPacket = int(leaf / 2); d.Bounds.SuperPacket < 2*int(cfg.Tunnels[c].MTU) {
				d.Bounds.SuperPacket = 0
			}
		}
		if d.Settings.Engine == tunnel.EngineAuto {
			d.Settings.Engine = tunnel.Auto(c, f.kernelWireGuard)
		}
		if d.Settings.Engine != tunnel.EngineWireGuardGo {
			d.Bounds.FlowPackets = 0
		} else if d.Bounds.FlowPackets > 0 { // the TUN's queue is emptied at once, and drops blindly what comes meanwhile
			d.Bounds.TxQueueLen = max(d.Bounds.TxQueueLen, flowTUN)
			if len(cfg.Sites) > 1 { // each may have a packet that waits for its own line, and the others go on
				d.Bounds.SendBuffer += len(cfg.Sites) * sitePacket
			}
		}
		if c == tunnel.Voice && d.Settings.Engine.PerPacket() {
			d.Admission = admission(cfg, f)
		}
		for _, s := range cfg.Sites {
			if !s.Has(c) {
				continue
			}
			p := tunnel.Peer{Site: s.Name, PublicKey: s.PublicKey, AllowedIPs: sortedNetworks(s.Networks()), Keepalive: s.Keepalive}
			p.PresharedKey = f.secrets.preshared[s.Name]
			if s.Tunnels == tunnel.CarriedBoth || s.Tunnels == "" {
				p.PresharedKey = tunnel.ClassPresharedKey(p.PresharedKey, c)
			}
			if f.endpoint != nil {
				p.Endpoint, p.EndpointNews = f.endpoint(c, s.Site)
			}
			d.Peers = append(d.Peers, p)
		}
		slices.SortFunc(d.Peers, func(a, b tunnel.Peer) int { return cmp.Compare(a.Site, b.Site) })
		out = append(out, d)
	}
	return out
}

// admission says how much media may leave for each site, over the WAN that leads there: the queues' budgets, so that what is admitted
// is what they let through. Where the sites' budgets are more than the WAN's, its own bounds them together.
func admission(cfg *config.Config, f facts) (a tunnel.Admission) {
	media := classNamed(cfg.Classes, qos.Media)
	if !media.Admission {
		return a
	}
	in := queueInput(cfg, f)
	budgets, index := map[string]qos.Budgets{}, map[string]int{}
	for _, w := range in.WANs {
		if w.Shaped() == 0 || len(in.Sites) == 0 {
			continue
		}
		b := qos.VoiceBudgets(w, in.Sites, in.Classes)
		l := tunnel.AdmissionLine{Overhead: qos.EthernetHeader + w.Overhead, MPU: w.MPU, ATM: w.Cells == qos.ATM}
		if !b.Reserved {
			l.Rate = uint64(b.Pool)
		}
		budgets[w.Interface], index[w.Interface] = b, len(a.Lines)
		a.Lines = append(a.Lines, l)
	}
	for _, s := range cfg.Sites {
		if s.Via(tunnel.Voice) != tunnel.Voice || len(cfg.WANs) == 0 {
			continue
		}
		wan := cfg.WANs[0].Interface
		if len(cfg.WANs) > 1 && f.through != nil {
			wan = cmp.Or(f.through(tunnel.Voice, s.Site), wan)
		}
		if b, known := budgets[wan]; known {
			a.Sites = append(a.Sites, tunnel.AdmissionSite{Key: s.PublicKey, Rate: uint64(b.Sites[s.Name]), Line: index[wan]})
		}
	}
	if len(a.Sites) == 0 {
		return tunnel.Admission{}
	}
	slices.SortFunc(a.Sites, func(x, y tunnel.AdmissionSite) int { return bytes.Compare(x.Key[:], y.Key[:]) })
	for _, m := range outer(cfg, tunnel.Voice).Marks {
		if m.Outer == uint8(media.Outer) && !signals(cfg, m.Inner) {
			a.Media |= 1 << m.Inner
		}
	}
	return a
}

// signals says whether an inner code point is signalling's, which may look like media from outside.
func signals(cfg *config.Config, inner uint8) bool {
	c := classNamed(cfg.Classes, qos.Signalling)
	media := classNamed(cfg.Classes, qos.Media)
	return slices.Contains(c.DSCP, qos.DSCP(inner)) || inner == uint8(c.Outer) && !slices.Contains(media.DSCP, qos.DSCP(inner))
}

func sortedNetworks(n []netip.Prefix) []netip.Prefix {
	slices.SortFunc(n, tunnel.ComparePrefix)
	return slices.Compact(n)
}

// superPacketTime is the longest burst that one system call may put on the WAN: a whole 64 kB super-packet
// would make voice wait 26 ms at 20 Mbit/s.
const superPacketTime = time.Millisecond

// widestMTU is the largest of the WANs': its packets are the ones that a queue of bytes holds fewest of.
func widestMTU(cfg *config.Config, f facts) int {
	widest := 0
	for _, w := range cfg.WANs {
		widest = max(widest, cmp.Or(f.wanMTU[w.Interface], 1500))
	}
	return widest
}

func bounds(uplink qos.BitRate, class qos.Class, wanMTU, mtu int) tunnel.Bounds {
	p := qos.PathBounds(uplink, class, wanMTU)
	b := tunnel.Bounds{Rate: uint64(uplink), TxQueueLen: p.TUNPackets, InFlight: p.EnginePackets, FlowPackets: p.FlowPackets, SendBuffer: p.SendBuffer,
		ReceiveBuffer: receiveBuffer, SuperPacket: maxSuperPacket}
	b.DeviceGSO = p.TUNGSOBytes
	if b.InFlight == 0 {
		b.InFlight = maxInFlight
	}
	if uplink > 0 {
		b.SuperPacket = min(maxSuperPacket, int(uplink.Bytes(superPacketTime)))
		if b.SuperPacket < 2*mtu { // one packet is no super-packet
			b.SuperPacket = 0
		}
	}
	return b
}

const (
	maxSuperPacket = 65000   // under UDP's 65,507 with room for options
	maxInFlight    = 128     // where time asks for no bound memory does: an engine's buffers are 64 kB each, and more bring no throughput
	sitePacket     = 2304    // what the kernel charges a socket for a full packet
	flowTUN        = 256     // packets: what hosts send at once while the plane gets no processor
	receiveBuffer  = 7 << 20 // what stock wireguard-go asks for; the inbound direction has no pacing of ours
)

func routingInput(cfg *config.Config, f facts, devs []tunnel.Device) routing.Input {
	in := routing.Input{LANs: append(slices.Clone(cfg.Voice), cfg.Data...), Leases: f.leases,
		VoiceSource: routing.FirstAddresses(cfg.Voice), DataSource: routing.FirstAddresses(cfg.Data),
		Marks: routing.Marks{
			OuterValues: []uint32{uint32(qos.MarkOuterVoice), uint32(qos.MarkOuterData)}, OuterMask: uint32(qos.MarkOuterMask),
			VoiceValues: []uint32{uint32(qos.MarkInner | qos.ClassMark(qos.Media)), uint32(qos.MarkInner | qos.ClassMark(qos.Signalling))},
			DataValues:  []uint32{uint32(qos.MarkInner | qos.ClassMark(qos.Data)), uint32(qos.MarkInner | qos.ClassMark(qos.Background))},
			ClassMask:   uint32(qos.MarkInner | qos.MarkClassMask),
		}}
	if cfg.Machine.Tune {
		in.SoftirqBudget = softirqBudget
	}
	for _, w := range cfg.WANs {
		in.WANs = append(in.WANs, w.WAN)
	}
	name := map[tunnel.Class]string{}
	for _, d := range devs {
		name[d.Class] = d.Settings.Interface
		in.Tunnels = append(in.Tunnels, routing.TunnelDevice{Class: string(d.Class), Name: d.Settings.Interface, MTU: int(d.Settings.MTU), TxQueueLen: d.Bounds.TxQueueLen, GSOMax: d.Bounds.DeviceGSO})
	}
	siteMTU := cfg.SiteMTUs()
	for _, s := range cfg.Sites {
		in.Sites = append(in.Sites, routing.SiteRoute{Name: s.Name, Prefixes: s.Networks(), DataMTU: siteMTU[s.Name],
			VoiceDevice: name[s.Via(tunnel.Voice)], DataDevice: name[s.Via(tunnel.Data)]})
	}
	return in
}

func firewallInput(cfg *config.Config, f facts, queues qos.Input) firewall.Input {
	in := firewall.Input{Classes: cfg.Classes, LocalServices: served(cfg), Reflector: cfg.Control.Reflector, Missing: f.firewallMissing}
	for _, w := range cfg.WANs {
		in.WANs = append(in.WANs, w.Interface)
		if w.DHCP {
			in.DHCP = append(in.DHCP, w.Interface)
		}
		if sent, received := w.InternetMTU(); sent > 0 || received > 0 {
			in.Slow = append(in.Slow, firewall.SlowWAN{Device: w.Interface, Sent: sent, Received: received})
		}
	}
	lans := func(ls []routing.LAN) (out []firewall.LAN) {
		for _, l := range ls {
			out = append(out, firewall.LAN{Device: l.Device(), Networks: l.Networks()})
		}
		return out
	}
	in.Voice, in.Data = lans(cfg.Voice), lans(cfg.Data)
	for _, c := range tunnel.Classes {
		t := cfg.Tunnels[c]
		in.Tunnels = append(in.Tunnels, firewall.Tunnel{Class: string(c), Device: t.Interface, ListenPort: t.ListenPort, MTU: int(t.MTU)})
	}
	in.Peers, in.PeerQueues = peers(cfg, f, queues), len(cfg.Sites) > 0
	for _, p := range qos.Priorities(queues) {
		in.Priorities = append(in.Priorities, firewall.Priority{WAN: p.WAN, Class: p.Class, ClassID: p.ClassID})
	}
	in.Downlink = downlink(cfg, queues)
	for _, s := range cfg.Sites {
		in.SiteVoiceNetworks = append(in.SiteVoiceNetworks, s.VoiceNetworks...)
		in.SiteDataNetworks = append(in.SiteDataNetworks, s.DataNetworks...)
		if s.Tunnels == tunnel.CarriedVoice || s.Tunnels == tunnel.CarriedData {
			in.SingleSiteNetworks = append(in.SingleSiteNetworks, s.Networks()...)
		}
	}
	return in
}

// downlink says which queue what comes in takes on the LANs that have one.
func downlink(cfg *config.Config, queues qos.Input) (d firewall.Downlink) {
	for _, q := range qos.Downlinks(queues) {
		d.WANs = append(d.WANs, firewall.WANQueue{WAN: q.WAN, ClassID: q.ClassID})
	}
	if len(d.WANs) == 0 {
		return d
	}
	d.CallsID = qos.CallsID
	for _, l := range slices.Concat(cfg.Voice, cfg.Data) {
		if slices.Contains(queues.LANs, l.Interface) {
			d.LANs = append(d.LANs, l.Device())
		}
	}
	return d
}

// served is what the box serves to data networks: the config's services, and metrics where they are not for the box alone.
func served(cfg *config.Config) []qos.PortMatch {
	out := slices.Clone(cfg.Control.Services)
	for _, a := range cfg.Control.Metrics {
		if !a.Addr().IsLoopback() {
			out = append(out, qos.PortMatch{Protocol: qos.TCP, Low: a.Port(), High: a.Port()})
		}
	}
	return out
}

// peers says which queue the ciphertext to each site takes, by where the site is now. Where two are said to be in one place, as
// after a NAT gave a port to another, it is the one heard there last.
func peers(cfg *config.Config, f facts, queues qos.Input) []firewall.Peer {
	if f.heard == nil {
		return nil
	}
	id := map[string]map[qos.ClassName]uint32{}
	for _, p := range qos.SitePriorities(queues) {
		if id[p.Site] == nil {
			id[p.Site] = map[qos.ClassName]uint32{}
		}
		id[p.Site][p.Class] = p.ClassID
	}
	type heard struct {
		firewall.Peer
		when uint64
	}
	var all []heard
	for _, s := range cfg.Sites {
		for _, c := range tunnel.Classes {
			at, when := f.heard(c, s.Site)
			if !s.Has(c) || !at.IsValid() || id[s.Name] == nil {
				continue
			}
			for _, n := range innerClasses(c) {
				all = append(all, heard{firewall.Peer{Endpoint: at, Class: n, ClassID: id[s.Name][n]}, when})
			}
		}
	}
	slices.SortStableFunc(all, func(a, b heard) int { return cmp.Compare(b.when, a.when) })
	out := make([]firewall.Peer, len(all))
	for i, h := range all {
		out[i] = h.Peer
	}
	return out
}

func queueInput(cfg *config.Config, f facts) qos.Input {
	in := qos.Input{Classes: cfg.Classes, Sites: cfg.QueueSites(), Features: f.queues}
	for _, w := range cfg.WANs {
		q := w.Queue(f.wanMTU[w.Interface])
		if _, refused := f.refused[w.Interface]; refused {
			q.Uplink = 0
		}
		in.WANs = append(in.WANs, q)
	}
	for _, card := range cfg.Cards() {
		if _, refused := f.refused[card]; !refused {
			in.LANs = append(in.LANs, card)
		}
	}
	return in
}

// secrets are the keys that the config names by file.
type secrets struct {
	private   tunnel.PrivateKey
	preshared map[string]tunnel.PresharedKey // by site name
}

// Format keeps the keys out of whatever prints: fmt looks into unexported fields without asking the keys.
func (secrets) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("(secrets hidden)")) }

// readSecrets reads the key files. Its errors name files, never content.
func readSecrets(cfg *config.Config) (s secrets, err error) {
	b, err := os.ReadFile(cfg.KeyFile)
	if err != nil {
		return s, fmt.Errorf("read the private key: %w", err)
	}
	if s.private, err = tunnel.ParsePrivateKey(strings.TrimSpace(string(b))); err != nil {
		return s, fmt.Errorf("private key in %s: %w", cfg.KeyFile, err)
	}
	s.preshared = map[string]tunnel.PresharedKey{}
	for _, site := range cfg.Sites {
		if site.PresharedKeyFile == "" {
			continue
		}
		b, err := os.ReadFile(site.PresharedKeyFile)
		if err != nil {
			return s, fmt.Errorf("read the preshared key of site %s: %w", site.Name, err)
		}
		k, err := tunnel.ParsePresharedKey(strings.TrimSpace(string(b)))
		if err != nil {
			return s, fmt.Errorf("preshared key of site %s in %s: %w", site.Name, site.PresharedKeyFile, err)
		}
		s.preshared[site.Name] = k
	}
	return s, nil
}
