package ladder

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	shown "ringway/sip/call"
	"ringway/sip/message"
	"ringway/sip/privacy"
)

var (
	began = time.Date(2026, 11, 29, 10, 0, 0, 0, time.UTC)
	phone = netip.MustParseAddrPort("10.1.10.10:5060")
	pbx   = netip.MustParseAddrPort("10.2.10.5:5060")
	far   = netip.MustParseAddrPort("[2001:db8::31]:5060")
)

// sip is a message as it is kept. The first line says it all; more may be header fields and a body.
func sip(first string, cseq int, method, body string) string {
	text := fmt.Sprintf("%s\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK%d\r\nFrom: <sip:1001@x>;tag=a\r\nTo: <sip:1002@x>\r\n"+
		"Call-ID: 1\r\nCSeq: %d %s\r\n", first, cseq, cseq, method)
	if body != "" {
		text += "Content-Type: application/sdp\r\n"
	}
	return text + fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(body), body)
}

func kept(text string) privacy.Text {
	var m message.Message
	var r privacy.Redactor
	why := m.Scan([]byte(text))
	return r.Redact(&m, why)
}

func offer(address string, port int, more string) string {
	family := "IP4"
	if strings.Contains(address, ":") {
		family = "IP6"
	}
	return fmt.Sprintf("v=0\r\nc=IN %s %s\r\nm=audio %d RTP/AVP 0 8 101\r\na=rtpmap:101 telephone-event/8000\r\n%s",
		family, address, port, more)
}

// step adds a message so many milliseconds after the beginning.
func (r *Ring) step(ms int, from, to netip.AddrPort, text string) {
	at := began.Add(time.Duration(ms) * time.Millisecond)
	r.Add("1", Message{At: at, From: from, To: to, Transport: "UDP", Text: kept(text)})
}

func aCall() *Ring {
	r := New(Defaults())
	invite := sip("INVITE sip:1002@x SIP/2.0", 1, "INVITE", offer("10.1.10.10", 4000, ""))
	r.step(0, phone, pbx, invite)
	r.step(500, phone, pbx, invite)
	r.step(512, pbx, phone, sip("SIP/2.0 100 Trying", 1, "INVITE", ""))
	r.step(515, pbx, far, sip("INVITE sip:1002@x SIP/2.0", 1, "INVITE",
		offer("10.1.10.10", 4000, "a=crypto:1 x inline:k\r\n")))
	r.step(700, far, pbx, sip("SIP/2.0 180 Ringing all the phones that this user has", 1, "INVITE", ""))
	r.step(3000, far, phone, sip("SIP/2.0 200 OK", 1, "INVITE",
		offer("2001:db8::31", 7000, "a=sendonly\r\nm=image 0 udptl t38\r\n")))
	r.step(3005, phone, far, sip("ACK sip:1002@x SIP/2.0", 1, "ACK", ""))
	r.step(3006, pbx, netip.AddrPortFrom(pbx.Addr(), 7000), sip("OPTIONS sip:x SIP/2.0", 2, "OPTIONS", ""))
	r.step(4000, phone, pbx, "\r\n\r\n")
	return r
}

func TestDrawing(t *testing.T) {
	call, ok := aCall().Call("1")
	require.True(t, ok)
	v := call.View()
	assert.Equal(t, `1
2026-11-29 10:00:00.000 UTC

       ms  10.1.10.10                10.2.10.5                 2001:db8::31
        0  |-------- INVITE -------->|                         |  sdp: audio 10.1.10.10:4000 PCMU/PCMA
      500  |-------- INVITE -------->|                         |  again  sdp: audio 10.1.10.10:4000 PCMU/PCMA
      512  |<----- 100 Trying -------|                         |
      515  |                         |-------- INVITE -------->|  sdp: audio 10.1.10.10:4000 PCMU/PCMA SDES
      700  |                         |<- 180 Ringing all th… --|
     3000  |<-------------------- 200 OK ----------------------|  sdp: audio [2001:db8::31]:7000 PCMU/PCMA sendonly, image refused
     3005  |----------------------- ACK ---------------------->|
     3006  |                         |                         |  10.2.10.5:5060 -> 10.2.10.5:7000: OPTIONS
     4000  |-- [keep_alive, blank… ->|                         |
`, v.Draw())
}

// What media went through stands above the messages, where it was measured.
func TestQualityIsDrawn(t *testing.T) {
	c, _ := aCall().Call("1")
	v := c.View()
	v.Sent = &shown.Quality{
		Packets: 2910, Lost: 90, Jitter: 2.25, JitterMax: 9, Delay: 40.3, R: 79.6, MOS: 4.02,
		Where:    map[string]uint64{shown.PhoneLAN: 20, shown.Line: 60, shown.ThisBox: 10},
		Why:      map[string]uint64{"over_budget": 10},
		WANDrops: map[string]uint64{"data": 340, "media": 12, "background": 0},
	}
	assert.Contains(t, v.Draw(), `
2026-11-29 10:00:00.000 UTC

sent:     MOS 4.02 (R 79.6), 90 of 3000 packets lost (line 60, phone's LAN 20, this box 10), `+
		`dropped here: over budget 10, jitter 2.2 ms, at most 9.0 ms, delay 40.3 ms; `+
		`while the line lost packets, the WANs' queues dropped data 340, media 12
received: not measured

       ms  10.1.10.10`)
}

func TestJSON(t *testing.T) {
	call, _ := aCall().Call("1")
	call.Messages = call.Messages[2:3]
	v := call.View()
	b, err := json.MarshalIndent(v, "", " ")
	require.NoError(t, err)
	assert.Equal(t, `{
 "call": "1",
 "began": "2026-11-29T10:00:00.512Z",
 "hops": [
  "10.2.10.5",
  "10.1.10.10"
 ],
 "messages": [
  {
   "ms": 0,
   "from": "10.2.10.5:5060",
   "to": "10.1.10.10:5060",
   "transport": "UDP",
   "label": "100 Trying",
   "method": "INVITE",
   "status": 100,
   "cseq": 1,
   "text": "SIP/2.0 100 Trying\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\nFrom: \u003csip:1xxx@x\u003e;tag=a\r\nTo: \u003csip:1xxx@x\u003e\r\nCall-ID: 1\r\nCSeq: 1 INVITE\r\nContent-Length: 0\r\n\r\n"
  }
 ],
 "missing": 0,
 "missing_after": 9
}`, string(b))

	empty := Call{ID: "x"}
	b, err = json.Marshal(empty.View())
	require.NoError(t, err)
	assert.Contains(t, string(b), `"hops":[],"messages":[]`, "lists are never null")
	v = empty.View()
	assert.Equal(t, "x\n", v.Draw())
}

// What a stranger sends must not steer the terminal of who looks at it.
func TestControlCharactersAreNotDrawn(t *testing.T) {
	r := New(Defaults())
	r.step(0, phone, pbx, sip("SIP/2.0 200 \x1b[2Jok\x9b", 1, "INVITE", ""))
	call, _ := r.Call("1")
	call.ID = "\x1b]0;x\a"
	v := call.View()
	for _, c := range v.Draw() {
		assert.True(t, c == '\n' || c >= ' ' && c != 0x7f && (c < 0x80 || c >= 0xa0), "%q", c)
	}
}

func TestManyHopsAreWrittenOut(t *testing.T) {
	r := New(Defaults())
	for i := range 10 {
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 5060)
		r.step(i, phone, to, sip("OPTIONS sip:x SIP/2.0", i, "OPTIONS", ""))
	}
	call, _ := r.Call("1")
	v := call.View()
	assert.Len(t, v.Hops, 11)
	assert.Contains(t, v.Draw(), "10.1.10.10:5060 -> 10.0.0.9:5060: OPTIONS")
}

func TestOldestCallsGoFirst(t *testing.T) {
	text := kept(sip("OPTIONS sip:x SIP/2.0", 1, "OPTIONS", ""))
	one := callCost + 1 + messageCost + text.Len()
	r := New(Limits{Total: 3 * one, Call: 100 * one})
	add := func(id string) { r.Add(id, Message{At: began, From: phone, To: pbx, Text: text}) }
	add("a")
	add("b")
	add("c")
	assert.Equal(t, 3*one, r.Size())
	assert.Equal(t, []string{"c", "b", "a"}, r.Calls())
	add("a")
	assert.Equal(t, []string{"a", "c"}, r.Calls(), "b was silent longest")
	assert.Equal(t, uint64(1), r.Gone())
	_, ok := r.Call("b")
	assert.False(t, ok)

	r.Forget("a")
	r.Forget("a")
	assert.Equal(t, []string{"c"}, r.Calls())
	assert.Equal(t, one, r.Size())
	r.Forget("c")
	assert.Zero(t, r.Size())
	assert.Zero(t, r.Len())
}

// A call keeps the messages that set it up and its latest ones.
func TestOneCallIsBounded(t *testing.T) {
	r := New(Limits{Total: 1 << 20, Call: 8 << 10})
	for i := range 1000 {
		r.step(i, phone, pbx, sip("OPTIONS sip:x SIP/2.0", i, "OPTIONS", ""))
		require.LessOrEqual(t, r.Size(), 8<<10)
	}
	call, _ := r.Call("1")
	v := call.View()
	assert.Equal(t, 1000, len(v.Rows)+v.Missing)
	assert.Greater(t, v.After, 5)
	assert.Equal(t, uint32(0), v.Rows[0].CSeq)
	assert.Equal(t, uint32(v.After-1), v.Rows[v.After-1].CSeq)
	assert.Equal(t, uint32(999), v.Rows[len(v.Rows)-1].CSeq)
	assert.Equal(t, 1, strings.Count(v.Draw(), fmt.Sprintf("… %d messages not kept", v.Missing)))

	long := "v=0\r\n" + strings.Repeat("a=sendrecv\r\n", 1000)
	r.step(1000, phone, pbx, sip("MESSAGE sip:x SIP/2.0", 1000, "MESSAGE", long))
	call, _ = r.Call("1")
	assert.Equal(t, v.Missing+1, call.Missing, "a message that is too long alone")
	r.Add(strings.Repeat("x", 10000), Message{Text: kept("\r\n")})
	assert.Equal(t, 1, r.Len(), "a Call-ID that is too long alone")
}

// A short message behind a long one stays behind it, though there is room before.
func TestMessagesStayInOrder(t *testing.T) {
	r := New(Limits{Total: 1 << 20, Call: 8 << 10})
	long := sip("INVITE sip:x SIP/2.0", 2, "INVITE", "v=0\r\n"+strings.Repeat("a=sendrecv\r\n", 230))
	r.step(0, phone, pbx, sip("OPTIONS sip:x SIP/2.0", 0, "OPTIONS", ""))
	r.step(1, phone, pbx, sip("INVITE sip:x SIP/2.0", 1, "INVITE", "v=0\r\n"+strings.Repeat("a=sendrecv\r\n", 100)))
	r.step(2, phone, pbx, long)
	r.step(3, phone, pbx, sip("OPTIONS sip:x SIP/2.0", 3, "OPTIONS", ""))
	call, _ := r.Call("1")
	v := call.View()
	require.Len(t, v.Rows, 4)
	for i, row := range v.Rows {
		assert.Equal(t, uint32(i), row.CSeq)
	}
	assert.Equal(t, 2, v.After)
}

// A Redactor makes the next text in the place of the one before.
func TestTheRingKeepsACopy(t *testing.T) {
	r := New(Defaults())
	var redactor privacy.Redactor
	var m message.Message
	for i := range 3 {
		why := m.Scan([]byte(sip("OPTIONS sip:x SIP/2.0", i, "OPTIONS", "")))
		r.Add("1", Message{At: began, From: phone, To: pbx, Text: redactor.Redact(&m, why)})
	}
	call, _ := r.Call("1")
	v := call.View()
	assert.Equal(t, []uint32{0, 1, 2}, []uint32{v.Rows[0].CSeq, v.Rows[1].CSeq, v.Rows[2].CSeq})
}

// The bound is one of real memory, not of what Ring reckons alone.
func TestAllocatedMemoryIsBounded(t *testing.T) {
	limits := Limits{Total: 4 << 20, Call: 64 << 10}
	r := New(limits)
	text := kept(sip("OPTIONS sip:x SIP/2.0", 1, "OPTIONS", ""))
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range 200_000 {
		r.Add(fmt.Sprintf("call-%d@10.1.10.10", i), Message{At: began, From: phone, To: pbx, Transport: "UDP", Text: text})
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	assert.LessOrEqual(t, r.Size(), limits.Total)
	assert.Less(t, int64(after.HeapAlloc)-int64(before.HeapAlloc), int64(limits.Total)*3/2)
	runtime.KeepAlive(r)
}

func BenchmarkAdd(b *testing.B) {
	r := New(Defaults())
	text := kept(sip("INVITE sip:1002@x SIP/2.0", 1, "INVITE", offer("10.1.10.10", 4000, "")))
	ids := make([]string, 1000)
	for i := range ids {
		ids[i] = fmt.Sprint(i)
	}
	for i := 0; b.Loop(); i++ {
		r.Add(ids[i%1000], Message{At: began, From: phone, To: pbx, Transport: "UDP", Text: text})
	}
}
