package relay

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"ringway/sip/message"
	"ringway/sip/transparent"
)

// BenchmarkCall is what the process does about one call beside its system calls: six messages, with admission, the
// watch for abuse and the ladder on. The daemon answers at once.
func BenchmarkCall(b *testing.B) {
	c := newCore(time.Now)
	c.asker = newAsker(func(context.Context, flowsRequest) error { return nil }, c.flows)
	require.NoError(b, c.use(Settings{
		Own:     []netip.Prefix{netip.MustParsePrefix("10.1.0.0/16")},
		Inside:  []netip.Prefix{netip.MustParsePrefix("10.2.0.0/16")},
		Phones:  []netip.Prefix{netip.MustParsePrefix("10.1.0.0/17")},
		Enforce: true, Admit: true, Abuse: AbuseBlock, Privacy: "mask", PhoneLimit: 100_000, ServerLimit: 100_000,
		Servers: []netip.Addr{netip.MustParseAddr("10.1.200.9")},
	}))
	m := transparent.Message{Transport: transparent.UDP, FromNear: true, SIP: new(message.Message)}
	pass := func(from, to, text string) {
		m.From, m.To, m.Raw = netip.MustParseAddrPort(from), netip.MustParseAddrPort(to), []byte(text)
		m.Reason = m.SIP.Scan(m.Raw)
		c.handle(&m)
	}
	var size int
	b.ReportAllocs()
	for i := range b.N {
		phone := fmt.Sprintf("10.1.%d.%d", i/200%100, i%200+1)
		for _, x := range benchCall(phone, i) {
			from, to := phone+":5060", "10.1.200.9:5060"
			if x.back {
				from, to = to, from
			}
			size += len(x.text)
			pass(from, to, x.text)
		}
		c.asker.mu.Lock()
		c.asker.take(true)
		clear(c.asker.closing)
		c.asker.mu.Unlock()
		c.mu.Lock()
		c.records = c.records[:0]
		clear(c.dirty)
		c.mu.Unlock()
	}
	require.Zero(b, c.tracker.Len())
	require.Empty(b, c.refused.all())
	b.ReportMetric(float64(size)/float64(b.N), "bytes/call")
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
			fmt.Sprintf("From: <sip:1001@%s>;tag=f%d", phone, n), "To: <sip:2001@10.1.200.9>" + tag,
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
		{false, end(head("INVITE sip:2001@10.1.200.9 SIP/2.0", "INVITE", 1, ""), description(phone, port))},
		{true, end(head("SIP/2.0 180 Ringing", "INVITE", 1, tag), "")},
		{true, end(head("SIP/2.0 200 OK", "INVITE", 1, tag), description("10.1.200.9", port))},
		{false, end(head("ACK sip:2001@10.1.200.9 SIP/2.0", "ACK", 1, tag), "")},
		{false, end(head("BYE sip:2001@10.1.200.9 SIP/2.0", "BYE", 2, tag), "")},
		{true, end(head("SIP/2.0 200 OK", "BYE", 2, tag), "")},
	}
}
