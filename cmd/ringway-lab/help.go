package main

import (
	"ringway/test/bench"
	"ringway/test/bench/media"
	"ringway/test/bench/sip"
	"ringway/test/lab"
)

const labHelp = `Builds two whole branches on this machine and measures the voice between them.

` + lab.Topology + `

The edges run ringway with configs/branch-berlin.yaml and branch-munich.yaml. The provider limits the WAN to its rate,
with a FIFO buffer. SIPp places real SIP calls from phone-a to phone-b while iperf3 fills the WAN from pc-a to pc-b.
With --baseline a second such pair runs beside the first at the same time, joined by one stock wireguard-go tunnel
without queues: what people use today. With --family ipv6 the WAN and the branches have IPv6 addresses only.

Every voice packet is captured at both phones with the kernel's timestamps. The table shows each path's worse direction:
one-way delay, its variation (PDV: p99.9 less the minimum, RFC 8219), jitter (RFC 3550), loss, and what a listener would
report (MOS and R, ITU-T G.107). Meanwhile the queues on the path are sampled five times a second: what each class at the
edge and the provider's FIFO sent, held and dropped. --plot draws both, the queues into FILE-queues; --json has both.

With --wans 2 berlin has two lines, wan0 and wan1, each a network of its own with the rate, buffer and delay of the options;
it drops what has no address of the line (BCP 38). Then --delay is 25ms and --bulk none, if not given. Things happen to
lines while the calls are up, at times that count from the first call, each flag as often as wanted:

  --cut wan0@10s              the cable is pulled; with @10s-20s it is plugged in again at 20 s
  --blackhole wan0@10s-20s    nothing is delivered in either direction; the carrier stays
  --loss wan0=5%@10s-20s      each packet is lost with that probability; without @ all the time
  --swing wan1=5-50mbit@10s   the rate goes down and up again every 10 s; without @ all the time

Then the table, the JSON (events, gaps) and the picture show what each event cost the call that it harmed most, until the
next event: for how long a phone heard nothing, packets lost, and when the last of them was sent. The baseline has a default
route by each line with metrics; its addresses and routes go with the carrier, as systemd-networkd has it.

The lab needs root, and the programs sipp, iperf3, nft, ip, tc and, for the baseline, wg and wireguard-go. It never
touches the machine's own network, and leaves nothing behind when it ends, even if it is killed. Meanwhile the kernel's
idle loop is kept polling: a virtual machine that sleeps between packets would add its wake-up time to the delay.`

const labExamples = `  ringway lab                                     ten calls while TCP fills 20 Mbit/s
  ringway lab --baseline --bulk udp               the same beside stock WireGuard, under a flood
  ringway lab --baseline --wan none               no bottleneck: limited by the processor
  ringway lab --family ipv6                       without IPv4: the WAN, phones and PCs
  ringway lab --delay 40ms --loss 1% --bulk none  a long and lossy path
  ringway lab --json --plot calls.svg > run.json  for scripts, and a plot
  ringway lab --wans 2 --cut wan0@10s --baseline  one of two lines is cut, beside stock WireGuard with route metrics
  ringway lab --keep                              leave it running and look around`

const benchHelp = `Benchmarks that a network engineer can repeat. Except for live, which asks another box, they run on one machine: they
need root, create their own network namespaces, send traffic nowhere else, and leave nothing behind.

jitter, throughput, link and memory take --ringway OLD,NEW: they measure two builds of ringway in turn, in pairs of runs,
and report the median of the paired ratios.`

const benchExamples = `  ringway bench jitter --vs wireguard-go-shared,wireguard-go,nebula,openvpn,kernel --plot bench-out
  ringway bench throughput --sizes 200 --one-core --engines ringway,wireguard-go --rounds 5
  ringway bench link --rates 2mbit --duration 10s
  ringway bench rekey --far wireguard-go
  ringway bench paths --vs metric,single,duplicate-all
  ringway bench memory
  ringway bench live munich`

const jitterHelp = `Joins two branches on this machine by several tunnels at the same time and sends the same voice through each, while TCP
fills one of them:

` + bench.Topology + `

  ringway              Ringway's voice plane, as the daemon runs it (--engine)
  wireguard-go-shared  stock wireguard-go that also carries the bulk: one tunnel for everything
  wireguard-go         a stock wireguard-go of its own
  nebula               Nebula of its own, built from the Go module proxy into your cache the first time
  openvpn              OpenVPN of its own, over UDP, in user space (Debian: apt-get install openvpn)
  kernel               no tunnel: what forwarding alone costs, the lower bound

Bulk always goes through wireguard-go-shared. First the machine itself is measured (how late it wakes a thread that slept
until a deadline), then the capacity: what TCP gets with nothing beside it. A load is a percentage of that; 100 is
unlimited TCP. The delay of a packet is the kernel's timestamp at its arrival less the sender's clock. The figures are the
worse direction's, the terms those of RFC 8219, RFC 3550, RFC 5481 and ITU-T G.107. Rows of one run can be compared, rows
of two runs cannot: use --rounds for a median, on a quiet machine.

It needs root, and ip, ss, ping, iperf3, wg and the stock program wireguard-go.`

const jitterExamples = `  ringway bench jitter                            five loads of 20 s beside stock wireguard-go and the kernel
  ringway bench jitter --loads 0,100 --rounds 5   idle and saturated, the median of five interleaved rounds
  ringway bench jitter --vs wireguard-go-shared,wireguard-go,nebula,openvpn,kernel --plot bench-out
  ringway bench jitter --json > run.json          for scripts
  ringway bench jitter --loads 100 --ringway /old/ringway,bin/ringway   two builds in turn`

const linkHelp = `Builds two whole branches at each rate in turn, as ringway lab does, and limits the provider between them to that rate in
both directions, with a FIFO of 120 ms (at least 32 full packets) in front of it. Ringway is told the rate and nothing
else. Three loads follow each other: voice alone; TCP, eight flows in each direction at once; UDP, twice the link rate in
each direction at once. Rivals run beside it, each between branches and on a link of its own, under the same load:

  none       one stock wireguard-go tunnel for everything; only the provider queues
  fq_codel   the same behind the rate less Ringway's default margin, with fq_codel  (where the kernel has it)
  cake       the same with cake, diffserv4, told the overhead; all of the tunnel's
             packets carry DSCP 0, so it cannot tell voice from data                (where the kernel has it)
  kernel     no tunnel: the lower bound; above 10 Mbit/s, where the processor affects the figures

While a data packet is on the wire, voice has to wait; any further delay is the queues' fault. So the goal for the PDV
that a load adds (p99.9 less the minimum, less that of the same round without load) is one data packet on the wire, 1 ms,
and one voice packet for each further call. The goal for data is 95 % of the bytes at the provider's bottleneck that voice
and the margin leave; for signalling, a round trip under 50 ms; for a second data flow, a ping under 30 ms (p99, from
2 Mbit/s up). A goal that is not met is reported, and is an error only with --check. What each queue held is in --json and
in the plots.

It needs root, and ip, tc, nft, ss, ping, iperf3, wg and the stock program wireguard-go. A full run takes about half an
hour.`

const linkExamples = `  ringway bench link                                        all rates, three rounds of 20 s a load
  ringway bench link --rates 2mbit --duration 10s --check   one link, and an error where a goal is not met
  ringway bench link --rates 10mbit --calls 10 --plot bench-out
  ringway bench link --rates 2mbit --family ipv6            the same without IPv4; packets are 20 bytes longer, twice
  ringway bench link --json > run.json                      for scripts`

const throughputHelp = `Searches the highest rate at which every packet arrives (RFC 2544, section 26.1), for each engine in turn so that nothing
else runs beside it, and reports what a packet costs at each end.

  ringway               Ringway's voice plane with the engine realtime (also: realtime)
  ringway-wireguard-go  the same plane with the engine wireguard-go, which data uses
  wireguard-go          the stock program, without tuning (also: stock)
  nebula, openvpn       as in bench jitter
  kernel                no tunnel: what forwarding alone allows

Sizes are those of IP packets inside the tunnel; 200 is G.711's 172 bytes of RTP in UDP. imix is the simple IMIX: of every
twelve packets seven have 46 bytes, four 552, one the tunnel's MTU. A trial that lost packets is repeated once before its
rate counts as too high: RFC 2544 assumes a machine that nobody shares. Every trial is in the JSON. On a machine that
stalls for a millisecond, a rate without loss measures the device's queue rather than the engine: --loss 0.5 allows the
loss of half a percent.

--one-core gives the sending edge's engine one core of its own, the tester the others, and has the far end's kernel drop
the sealed packets, so that only the engine on its core is measured. What counts is then what the engine reports as sent.
Rivals written in Go are told that they have one core (GOMAXPROCS), since they are slower with two threads on one core.

It needs root, and ip, ss, ping, iperf3, wg, the stock program wireguard-go, and nft for --one-core.`

const throughputExamples = `  ringway bench throughput                              all sizes, beside stock wireguard-go and the kernel
  ringway bench throughput --sizes 200 --one-core --engines ringway,wireguard-go --rounds 5 --loss 0.5
  ringway bench throughput --json > run.json            for scripts`

const rekeyHelp = `Sends voice both ways through one tunnel while the tunnel goes through what happens to it in weeks, at each end in turn: new
sessions (--rekeys), another address while the old one still receives, as behind a provider's NAT (--roams), another
address with the old one gone at once (--moves), the forwarding process killed (--restarts). For each event it reports how
many packets were lost and the worst delay within a second of it, beside the same run's p99.9 away from all events.

WireGuard starts a new session every two minutes; --natural waits for that. Otherwise each end is told to start one, as
often as the protocol allows, every five seconds. Stock wireguard-go has no such command: its key is changed to another
and back at once, after which it queues packets for the new session.

Far ends (--far): ringway, ringway-wireguard-go (the same plane with the engine wireguard-go), wireguard-go (the stock
program).

It needs root, and ip, ss, ping, iperf3, wg, the stock program wireguard-go, and nft for --roams.`

const rekeyExamples = `  ringway bench rekey                          20 re-keys by each end, roams, restarts: about two and a half minutes
  ringway bench rekey --far wireguard-go       the same with stock WireGuard at the far end
  ringway bench rekey --natural --rekeys 1 --restarts 0 --roams 0 --moves 0`

const pathsHelp = `Joins branches of which one has two lines, as ringway lab --wans 2 does, places calls, and has the same thing happen
to the first line of each pair of branches at the same moment:

  cut        its cable is pulled
  blackhole  it delivers nothing, with its carrier
  loss       it loses 5 % in each direction
  swing      its rate goes from 50 to 5 Mbit/s and back every 10 s
  failback   it is well again after 2 s without a carrier: what the return to it costs (a minute a round)

Rivals are all stock wireguard-go, with one tunnel:

  metric         a default route by each line, the first one preferred; addresses and routes go with the carrier
  single         the first line alone
  duplicate-all  everything by both lines, as engarde and others do: a relay at each end, between tunnel and lines

For each it prints packets lost, the longest time for which a phone of the worst call heard nothing (median and worst of the
rounds), for how long packets were lost, bytes on all lines for each packet of a phone, and calls that did not go on to their end. Every round builds new
branches.

It needs root, and sipp, ip, tc, nft, ping, wg, the stock program wireguard-go, and iperf3 for --bulk. A run takes some 25
minutes.`

const pathsExamples = `  ringway bench paths --vs metric,single,duplicate-all
  ringway bench paths --events cut,blackhole --rounds 3
  ringway bench paths --events failback --vs "" --rounds 1
  ringway bench paths --json > run.json`

const memoryHelp = `Starts a branch from nothing with a given number of sites in its config, and reads the resident memory (VmRSS) of the
daemon and of both planes three seconds after they are ready. One site exists; the others never connect. With --ringway
OLD,NEW it measures two builds in turn.

It needs root, and ip, tc, nft and ping.`

const memoryExamples = `  ringway bench memory
  ringway bench memory --ringway /old/ringway,bin/ringway --sites 2,500 --pairs 3`

const sipHelp = `Places the same calls (INVITE, 180, 200, ACK, BYE, 200; UDP; with session descriptions) from phones to a PBX through

` + sip.Topology + `

where the box is

  ringway   the whole daemon with sip.mode: enforce: the relay, holes for each call's media, everything
  kamailio  a proxy with the modules tm, rr and dialog, two children, logs off (Debian: apt-get install kamailio)
  kernel    the daemon with sip.mode: off: what forwarding alone costs, the lower bound

Calls are placed by an absolute schedule, whatever becomes of the earlier ones, and neither end sends anything again: a
lost message is a lost call. The ends have one core, the box another one, which also works on all packets that the box
receives. CPU time is that of the path's processes, user and system. The delay of a message is the kernel's timestamp at
its arrival less the sender's clock; what a path adds is the difference from the kernel path in the same round. Memory is
what --calls dialogs add to the proportional set size (Pss) of the path's processes.

The paths take turns within a round. Rows of one run can be compared, rows of two runs cannot. It needs root, and ip, nft
and taskset.`

const sipExamples = `  ringway bench sip --vs kamailio                 three rates, five rounds, 10,000 dialogs, the best rate
  ringway bench sip --rates 500 --rounds 9 --calls 0 --best=false   one rate only
  ringway bench sip --vs kamailio --json > run.json`

const mediaHelp = `Sends the media of the same calls (G.711, 20 ms) in both directions through

` + media.Topology + `

where the box is

  ringway    the forwarding core of Ringway's media plane, with real-time threads
  rtpengine  in user space, with one thread of the same real-time priority (Debian: apt-get install rtpengine-daemon)
  kernel     a router: what forwarding alone costs, the lower bound

and where the caller's leg is RTP and the callee's SRTP (rtp-srtp), or both are SRTP under keys of their own (srtp-srtp,
the caller's leg with another suite of the same cipher, since rtpengine otherwise passes the ends' keys on and encrypts
nothing). Before anything is measured, packets of each call are opened at their destination under the key that was agreed
there.

Packets are sent by an absolute schedule, spread over all calls, and sealed before the trial. The ends have one core, the
box another one, which also works on all packets that the box receives. CPU a packet is the time that this core was not
idle. The delay of a packet is the kernel's timestamp at its arrival less the sender's clock; what a path adds is the
difference from the kernel path in the same round. Memory is the proportional set size (Pss) of the path's processes, with
all calls after the trials of all rounds, and what a call adds to it.

The paths take turns within a round. Rows of one run can be compared, rows of two runs cannot. It needs root, two
processors, and ip, nft and taskset.`

const mediaExamples = `  ringway bench media --vs rtpengine              both cases, both suites, five rounds, the highest rates
  ringway bench media --cases rtp-srtp --suites AEAD_AES_128_GCM --rates 10000,50000 --best=false
  ringway bench media --vs rtpengine --json > run.json`

// Usage of flags that several benchmarks have.
const (
	jsonUsage   = "print JSON to standard output, everything else to standard error"
	plotUsage   = "write plots (PNG, SVG) and a page with the whole report into `DIR`"
	stockUsage  = "the stock `PROGRAM` (default: beside ringway, else in PATH)"
	nebulaUsage = "a Nebula `PROGRAM` to use instead of building one; nebula-cert must be beside it"
)
