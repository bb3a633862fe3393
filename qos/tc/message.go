package tc

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"ringway/qos"
)

// Units are converted here only: qos has bits per second and bytes; the kernel has bytes per second, and
// stores a burst as time at the rate, in scheduler ticks of 64 ns.
const (
	nsPerTick     = 64
	ticksPerMicro = 1000.0 / nsPerTick

	htbVersion = 3  // TC_HTB_PROTOVER of sch_htb
	r2q        = 10 // tc's default; unused where every class has a quantum

	segmentTicks = 2 // the burst of a TBF that only splits segments reads back as at most this

	dumpTries = 5

	// linux/pkt_sched.h; the library has none of these.
	stabBase         = 1
	sizeOfSizeSpec   = 24
	sizeSpecOverhead = 4
	sizeSpecLayer    = 8

	cakeRate, cakeDiffserv, cakeATM, cakeFlows, cakeOverhead = 2, 3, 4, 5, 6
	cakeAutorate, cakeMemory, cakeNAT, cakeWash              = 9, 10, 11, 13
	cakeMPU, cakeIngress, cakeACKFilter, cakeSplitGSO        = 14, 15, 16, 17

	cakeBestEffort = 3
	cakeTriple     = 7 // cake's default: fair between hosts, and between the flows of each

	codelFlows     = 256 // what qos plans; another number is not ours
	codelDropBatch = 64  // the kernel's default

	attrTypeMask = 0x3fff // without NLA_F_NESTED and NLA_F_NET_BYTEORDER
)

func bytesPerSecond(r qos.BitRate) uint64 { return uint64(r) / 8 }

// burstTicks truncates to whole microseconds, as tc does (tc_calc_xmittime; since 6.13 it rounds up to a
// tick, which qos.Diff takes for the same), so that tc and this package make the same class from the same
// numbers.
func burstTicks(rate qos.BitRate, burst qos.ByteCount) uint32 {
	if rate < 8 {
		return 0
	}
	micros := uint32(1e6 * (float64(burst) / float64(bytesPerSecond(rate))))
	return uint32(float64(micros) * ticksPerMicro)
}

// burstBytes is the inverse of burstTicks. It rounds up, so that a burst that is read and written again
// stays the same.
func burstBytes(rate qos.BitRate, ticks uint32) qos.ByteCount {
	micros := math.Ceil(float64(ticks)/ticksPerMicro - 1e-6)
	return qos.ByteCount(math.Ceil(micros*float64(bytesPerSecond(rate))/1e6 - 1e-6))
}

// rateSpec is struct tc_ratespec. A rate beyond 32 bits is ^0 here and has an attribute of its own. There
// is no rate table: with the link layer given, the kernel computes.
func rateSpec(r qos.BitRate, overhead, mpu uint16, atm bool) nl.TcRateSpec {
	layer := uint8(nl.LINKLAYER_ETHERNET)
	if atm {
		layer = nl.LINKLAYER_ATM
	}
	return nl.TcRateSpec{
		Linklayer: layer,
		Overhead:  overhead,
		Mpu:       mpu,
		Rate:      uint32(min(bytesPerSecond(r), 1<<32-1)),
	}
}

// sizeTable is TCA_STAB without a table: the kernel adds the overhead, which may be negative here.
func sizeTable(overhead int) *nl.RtAttr {
	// struct tc_sizespec: cell_log, size_log, cell_align, overhead, linklayer, mpu, mtu, tsize
	base := make([]byte, sizeOfSizeSpec)
	binary.NativeEndian.PutUint32(base[sizeSpecOverhead:], uint32(int32(overhead)))
	binary.NativeEndian.PutUint32(base[sizeSpecLayer:], nl.LINKLAYER_ETHERNET)
	t := nl.NewRtAttr(nl.TCA_STAB, nil)
	t.AddRtAttr(stabBase, base)
	return t
}

// readSizeTable is the inverse of sizeTable; plain is false for a table that does more.
func readSizeTable(stab []byte) (overhead int, plain bool, err error) {
	if len(stab) == 0 {
		return 0, true, nil
	}
	a, err := parseAttrs(stab)
	if err != nil {
		return 0, false, err
	}
	base := a[stabBase]
	if len(base) < sizeOfSizeSpec {
		return 0, false, fmt.Errorf("size table of %d bytes", len(base))
	}
	mpu, tableSize := u32at(base, sizeSpecLayer+4), u32at(base, sizeSpecLayer+12)
	plain = u32at(base, sizeSpecLayer) == nl.LINKLAYER_ETHERNET && mpu == 0 && tableSize == 0
	return int(int32(u32at(base, sizeSpecOverhead))), plain, nil
}

func addRate64(o *nl.RtAttr, typ int, r qos.BitRate) {
	if b := bytesPerSecond(r); b >= 1<<32 {
		o.AddRtAttr(typ, nl.Uint64Attr(b))
	}
}

func classOptions(c qos.HTBClass) *nl.RtAttr {
	o := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	addRate64(o, nl.TCA_HTB_RATE64, c.Rate)
	addRate64(o, nl.TCA_HTB_CEIL64, c.Ceil)
	parms := nl.TcHtbCopt{
		Rate:    rateSpec(c.Rate, c.Overhead, c.MPU, c.ATM),
		Ceil:    rateSpec(c.Ceil, c.Overhead, c.MPU, c.ATM),
		Buffer:  burstTicks(c.Rate, c.Burst),
		Cbuffer: burstTicks(c.Ceil, c.CBurst),
		Quantum: uint32(c.Quantum),
		Prio:    c.Prio,
	}
	o.AddRtAttr(nl.TCA_HTB_PARMS, parms.Serialize())
	return o
}

// qdiscOptions gives nil for a kind that has none.
func qdiscOptions(q qos.Qdisc) *nl.RtAttr {
	o := nl.NewRtAttr(nl.TCA_OPTIONS, nil)
	switch {
	case q.HTB != nil:
		glob := nl.TcHtbGlob{Version: htbVersion, Rate2Quantum: r2q, Defcls: q.HTB.Default}
		o.AddRtAttr(nl.TCA_HTB_INIT, glob.Serialize())
	case q.TBF != nil:
		parms := nl.TcTbfQopt{
			Rate:   rateSpec(q.TBF.Rate, 0, 0, false),
			Limit:  uint32(min(q.TBF.Limit, 1<<32-1)),
			Buffer: burstTicks(q.TBF.Rate, q.TBF.Burst),
		}
		o.AddRtAttr(nl.TCA_TBF_PARMS, parms.Serialize())
		addRate64(o, nl.TCA_TBF_RATE64, q.TBF.Rate)
		// In bytes as well: Buffer's ticks are too coarse for a bucket this small.
		o.AddRtAttr(nl.TCA_TBF_BURST, nl.Uint32Attr(uint32(q.TBF.Burst)))
	case q.FIFO != nil:
		return nl.NewRtAttr(nl.TCA_OPTIONS, nl.Uint32Attr(q.FIFO.Limit))
	case q.FQCoDel != nil:
		c := q.FQCoDel
		o.AddRtAttr(nl.TCA_FQ_CODEL_LIMIT, nl.Uint32Attr(c.Limit))
		o.AddRtAttr(nl.TCA_FQ_CODEL_FLOWS, nl.Uint32Attr(c.Flows))
		o.AddRtAttr(nl.TCA_FQ_CODEL_QUANTUM, nl.Uint32Attr(uint32(c.Quantum)))
		o.AddRtAttr(nl.TCA_FQ_CODEL_TARGET, nl.Uint32Attr(uint32(c.Target.Microseconds())))
		o.AddRtAttr(nl.TCA_FQ_CODEL_INTERVAL, nl.Uint32Attr(uint32(c.Interval.Microseconds())))
		o.AddRtAttr(nl.TCA_FQ_CODEL_MEMORY_LIMIT, nl.Uint32Attr(uint32(min(c.MemoryLimit, 1<<31))))
		o.AddRtAttr(nl.TCA_FQ_CODEL_ECN, nl.Uint32Attr(flag(c.ECN)))
	case q.Cake != nil:
		o.AddRtAttr(cakeRate, nl.Uint64Attr(0))
		o.AddRtAttr(cakeDiffserv, nl.Uint32Attr(cakeBestEffort))
		o.AddRtAttr(cakeMemory, nl.Uint32Attr(uint32(min(q.Cake.MemoryLimit, 1<<31))))
		o.AddRtAttr(cakeSplitGSO, nl.Uint32Attr(1))
	case len(q.Options) > 0:
		return nl.NewRtAttr(nl.TCA_OPTIONS, q.Options)
	default:
		return nil
	}
	return o
}

func flag(on bool) uint32 {
	if on {
		return 1
	}
	return 0
}

// attrs are the attributes of a message or a nested attribute, by type. Of several of a type the last counts.
type attrs map[uint16][]byte

func parseAttrs(b []byte) (attrs, error) {
	list, err := nl.ParseRouteAttr(b)
	if err != nil {
		return nil, fmt.Errorf("parse netlink attributes: %w", err)
	}
	m := make(attrs, len(list))
	for _, a := range list {
		m[a.Attr.Type&attrTypeMask] = a.Value
	}
	return m, nil
}

func (a attrs) text(typ uint16) string { return string(bytes.TrimRight(a[typ], "\x00")) }

func (a attrs) u64(typ uint16) (uint64, bool) {
	if v := a[typ]; len(v) >= 8 {
		return binary.NativeEndian.Uint64(v), true
	}
	return 0, false
}

func u32at(b []byte, off int) uint32 {
	if len(b) < off+4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b[off:])
}

func readRate(s nl.TcRateSpec, a attrs, typ uint16) qos.BitRate {
	if r, ok := a.u64(typ); ok {
		return qos.BitRate(r) * 8
	}
	return qos.BitRate(s.Rate) * 8
}

// tcMessage is one dumped qdisc or class.
type tcMessage struct {
	ifindex        int
	handle, parent qos.Handle
	kind           string
	attrs          attrs
}

func parseMessage(m []byte) (tcMessage, error) {
	if len(m) < nl.SizeofTcMsg {
		return tcMessage{}, fmt.Errorf("netlink message of %d bytes is shorter than a tcmsg", len(m))
	}
	head := nl.DeserializeTcMsg(m)
	a, err := parseAttrs(m[nl.SizeofTcMsg:])
	if err != nil {
		return tcMessage{}, err
	}
	return tcMessage{
		int(head.Ifindex), qos.Handle(head.Handle), qos.Handle(head.Parent), a.text(nl.TCA_KIND), a,
	}, nil
}

// dump reads all qdiscs or classes of one interface. A dump that a change interrupted is repeated.
func dump(get, reply uint16, ifindex int) (out []tcMessage, err error) {
	for range dumpTries {
		if out, err = dumpOnce(get, reply, ifindex); !errors.Is(err, nl.ErrDumpInterrupted) {
			break
		}
	}
	return out, err
}

func dumpOnce(get, reply uint16, ifindex int) ([]tcMessage, error) {
	req := nl.NewNetlinkRequest(int(get), unix.NLM_F_DUMP)
	req.AddData(&nl.TcMsg{Family: nl.FAMILY_ALL, Ifindex: int32(ifindex)})
	raw, err := req.Execute(unix.NETLINK_ROUTE, reply)
	if err != nil {
		return nil, err
	}
	var out []tcMessage
	for _, b := range raw {
		m, err := parseMessage(b)
		if err != nil {
			return nil, err
		}
		if m.ifindex == ifindex { // the kernel dumps the qdiscs of all interfaces
			out = append(out, m)
		}
	}
	return out, nil
}

func readQdisc(m tcMessage) (qos.Qdisc, error) {
	q := qos.Qdisc{Handle: m.handle, Parent: m.parent, Kind: m.kind}
	options := m.attrs[nl.TCA_OPTIONS]
	switch m.kind {
	case "bfifo", "pfifo":
		q.FIFO = &qos.FIFO{Limit: u32at(options, 0)}
		return q, nil
	case "htb", "tbf", "fq_codel", "cake":
	default:
		q.Options = bytes.Clone(options)
		return q, nil
	}

	a, err := parseAttrs(options)
	if err != nil {
		return q, err
	}
	switch m.kind {
	case "htb":
		q.HTB, err = readHTB(m, a)
	case "tbf":
		q.TBF, err = readTBF(m, a)
	case "fq_codel":
		q.FQCoDel = readFQCoDel(a)
	case "cake":
		q.Cake = readCake(a)
	}
	// more than we build: somebody else's
	if q.HTB == nil && q.TBF == nil && q.FQCoDel == nil && q.Cake == nil {
		q.Options = bytes.Clone(options)
	}
	return q, err
}

func readHTB(m tcMessage, a attrs) (*qos.HTB, error) {
	overhead, plain, err := readSizeTable(m.attrs[nl.TCA_STAB])
	if err != nil {
		return nil, fmt.Errorf("htb %s: %w", m.handle, err)
	}
	if !plain { // more than we build
		overhead = foreignSizeTable
	}
	return &qos.HTB{Default: u32at(a[nl.TCA_HTB_INIT], 8), Overhead: overhead}, nil
}

// readTBF gives nil for one with more than we build.
func readTBF(m tcMessage, a attrs) (*qos.TBF, error) {
	p := a[nl.TCA_TBF_PARMS]
	if len(p) < nl.SizeofTcTbfQopt {
		return nil, fmt.Errorf("tbf %s: parameters of %d bytes", m.handle, len(p))
	}
	parms := nl.DeserializeTcTbfQopt(p)
	if parms.Peakrate.Rate != 0 || parms.Rate.Overhead != 0 {
		return nil, nil
	}

	t := &qos.TBF{Rate: readRate(parms.Rate, a, nl.TCA_TBF_RATE64), Limit: qos.ByteCount(parms.Limit)}
	t.Burst = burstBytes(t.Rate, parms.Buffer)
	if b, ok := qos.SegmentBurst(t.Rate); ok && parms.Buffer <= segmentTicks {
		t.Burst = b
	}
	return t, nil
}

// readFQCoDel gives nil for one with more than we build.
func readFQCoDel(a attrs) *qos.FQCoDel {
	n := func(typ uint16) uint32 { return u32at(a[typ], 0) }
	micros := func(typ uint16) time.Duration { return time.Duration(n(typ)) * time.Microsecond }
	_, threshold := a[nl.TCA_FQ_CODEL_CE_THRESHOLD]
	if threshold || n(nl.TCA_FQ_CODEL_FLOWS) != codelFlows || n(nl.TCA_FQ_CODEL_DROP_BATCH_SIZE) != codelDropBatch {
		return nil
	}
	return &qos.FQCoDel{
		Limit:       n(nl.TCA_FQ_CODEL_LIMIT),
		Target:      micros(nl.TCA_FQ_CODEL_TARGET),
		Interval:    micros(nl.TCA_FQ_CODEL_INTERVAL),
		Flows:       n(nl.TCA_FQ_CODEL_FLOWS),
		Quantum:     qos.ByteCount(n(nl.TCA_FQ_CODEL_QUANTUM)),
		MemoryLimit: qos.ByteCount(n(nl.TCA_FQ_CODEL_MEMORY_LIMIT)),
		ECN:         n(nl.TCA_FQ_CODEL_ECN) != 0,
	}
}

// readCake gives nil for one with more than we build.
func readCake(a attrs) *qos.Cake {
	n := func(typ uint16) uint32 { return u32at(a[typ], 0) }
	rate, _ := a.u64(cakeRate)
	ours := rate == 0 && n(cakeDiffserv) == cakeBestEffort && n(cakeFlows) == cakeTriple && n(cakeSplitGSO) == 1
	for _, typ := range []uint16{
		cakeATM, cakeOverhead, cakeAutorate, cakeNAT, cakeWash, cakeMPU, cakeIngress, cakeACKFilter,
	} {
		ours = ours && n(typ) == 0
	}
	if !ours {
		return nil
	}
	return &qos.Cake{MemoryLimit: qos.ByteCount(n(cakeMemory))}
}

// foreignSizeTable is an overhead that no plan has.
const foreignSizeTable = -1 << 15

func readClass(m tcMessage) (qos.HTBClass, error) {
	c := qos.HTBClass{Handle: m.handle, Parent: m.parent}
	if c.Parent == qos.RootHandle { // the kernel's name for the qdisc as parent of its top classes
		c.Parent = m.handle &^ 0xffff
	}
	a, err := parseAttrs(m.attrs[nl.TCA_OPTIONS])
	if err != nil {
		return c, err
	}
	p := a[nl.TCA_HTB_PARMS]
	if len(p) < nl.SizeofTcHtbCopt {
		return c, fmt.Errorf("HTB class %s: parameters of %d bytes", m.handle, len(p))
	}
	o := nl.DeserializeTcHtbCopt(p)
	c.Rate, c.Ceil = readRate(o.Rate, a, nl.TCA_HTB_RATE64), readRate(o.Ceil, a, nl.TCA_HTB_CEIL64)
	c.Burst, c.CBurst = burstBytes(c.Rate, o.Buffer), burstBytes(c.Ceil, o.Cbuffer)
	c.Prio, c.Quantum = o.Prio, qos.ByteCount(o.Quantum)
	c.Overhead, c.MPU, c.ATM = o.Rate.Overhead, o.Rate.Mpu, o.Rate.Linklayer == nl.LINKLAYER_ATM
	return c, nil
}
