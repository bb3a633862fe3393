package relay

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"ringway/qos"
	"ringway/sip/admission"
	"ringway/sip/ladder"
	"ringway/sip/message"
	"ringway/sip/transparent"
	"ringway/tunnel"
)

// BenchmarkCall is what the process does about one call beside its system calls: six messages, with admission, the
// watch for abuse and the ladder on. The daemon answers at once.
func BenchmarkCall(b *testing.B) {
	c := benchCore(b)
	var size int
	b.ReportAllocs()
	for i := range b.N {
		phone := fmt.Sprintf("10.1.%d.%d", i/200%100, i%200+1)
		for _, x := range benchCall(phone, i) {
			size += len(x.text)
			c.pass(phone, x)
		}
		c.told()
	}
	require.Zero(b, c.tracker.Len())
	require.Empty(b, c.refused.all())
	b.ReportMetric(float64(size)/float64(b.N), "bytes/call")
}

// BenchmarkDialogs is what the process holds of each call that is up, in the budget of a site. The ladder is off: it
// has a bound of its own.
func BenchmarkDialogs(b *testing.B) {
	c := benchCore(b)
	c.ladder = ladder.New(ladder.Limits{})
	before := liveHeap()
	for i := range b.N {
		phone := fmt.Sprintf("10.1.1.%d", i%200+1)
		for _, x := range benchCall(phone, i)[:4] {
			c.pass(phone, x)
		}
		c.told()
	}
	require.Equal(b, b.N, c.tracker.Len())
	require.Empty(b, c.refused.all())
	b.ReportMetric(float64(liveHeap()-before)/float64(b.N), "bytes/dialog")
	runtime.KeepAlive(c)
}

// liveHeap is how many bytes are allocated and still needed.
func liveHeap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// benched is a core whose daemon answers at once, of a box with one site.
type benched struct {
	*core
	m transparent.Message
}

func benchCore(b *testing.B) *benched {
	c := newCore(time.Now)
	c.asker = newAsker(func(context.Context, flowsRequest) error { return nil }, c.flows)
	far := netip.MustParsePrefix("10.2.0.0/16")
	require.NoError(b, c.use(Settings{
		Own:     []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
		Inside:  []netip.Prefix{far},
		Phones:  []netip.Prefix{netip.MustParsePrefix("10.1.0.0/17")},
		Enforce: true, Admit: true, Abuse: AbuseBlock, Privacy: "mask", PhoneLimit: 100_000, ServerLimit: 100_000,
		Servers: []netip.Addr{netip.MustParseAddr(benchPBX)},
		Budgets: admission.Plan{
			Own:   []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
			Lines: []admission.PlanLine{{Name: "wan0"}},
			Sites: []admission.PlanSite{{
				Name: "munich", Key: tunnel.PublicKey{1}, Networks: []netip.Prefix{far}, Ringway: true,
				Rate: 10_000 * qos.Mbit, MTU: 1420,
			}},
		},
	}))
	m := transparent.Message{Transport: transparent.UDP, FromNear: true, SIP: new(message.Message)}
	return &benched{core: c, m: m}
}

const benchPBX = "10.2.200.9"

// pass has a message of a phone's call go by.
func (c *benched) pass(phone string, x benchMessage) {
	from, to := phone+":5060", benchPBX+":5060"
	if x.back {
		from, to = to, from
	}
	c.m.From, c.m.To, c.m.Raw = netip.MustParseAddrPort(from), netip.MustParseAddrPort(to), []byte(x.text)
	c.m.Reason = c.m.SIP.Scan(c.m.Raw)
	c.handle(&c.m)
}

// told has the daemon know what there is to tell it, and the journal and the records written.
func (c *benched) told() {
	c.asker.mu.Lock()
	c.asker.take(true)
	clear(c.asker.closing)
	c.asker.mu.Unlock()
	c.mu.Lock()
	c.records = c.records[:0]
	clear(c.dirty)
	c.mu.Unlock()
}

// benchMessage is a message of a call, to the PBX or back.
type benchMessage struct {
	back bool
	text string
}

func benchCall(phone string, n int) []benchMessage {
	head := func(start, method string, cseq int, tag string) string {
		return strings.Join([]string{
			start, fmt.Sprintf("Via: SIP/2.0/UDP %s:5060;branch=z9hG4bK-%d-%s", phone, n, method), "Max-Forwards: 70",
			fmt.Sprintf("From: <sip:1001@%s>;tag=f%d", phone, n), "To: <sip:2001@10.2.200.9>" + tag,
			fmt.Sprintf("Call-ID: %d@%s", n, phone), fmt.Sprintf("CSeq: %d %s", cseq, method),
			fmt.Sprintf("Contact: <sip:1001@%s:5060>", phone), "User-Agent: phone", "",
		}, "\r\n")
	}
	end := func(h, body string) string {
		if body != "" {
			h += "Content-Type: application/sdp\r\n"
		}
		return fmt.Sprintf("%sContent-Length: %d\r\n\r\n%s", h, len(body), body)
	}
	tag := fmt.Sprintf(";tag=t%d", n)
	port := 20000 + n%10000*2
	return []benchMessage{
		{false, end(head("INVITE sip:2001@10.2.200.9 SIP/2.0", "INVITE", 1, ""), description(phone, port))},
		{true, end(head("SIP/2.0 180 Ringing", "INVITE", 1, tag), "")},
		{true, end(head("SIP/2.0 200 OK", "INVITE", 1, tag), description("10.2.200.9", port))},
		{false, end(head("ACK sip:2001@10.2.200.9 SIP/2.0", "ACK", 1, tag), "")},
		{false, end(head("BYE sip:2001@10.2.200.9 SIP/2.0", "BYE", 2, tag), "")},
		{true, end(head("SIP/2.0 200 OK", "BYE", 2, tag), "")},
	}
}
