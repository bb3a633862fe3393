package admission

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"ringway/qos"
	"ringway/sip/dialog"
	"ringway/sip/message"
	"ringway/sip/sdp"
)

// BenchmarkCall is a whole call, INVITE to the 200 of its BYE, through dialogs and ledger, beside so many others.
// Reading the messages is not in it.
func BenchmarkCall(b *testing.B) {
	for _, others := range []int{0, 1000} {
		b.Run(fmt.Sprint(others, "_others"), func(b *testing.B) {
			w := testWorld(1)
			w.Sites[0].Out.Rate = qos.Gbit
			tr, l, now := dialog.New(1<<14), New(1<<14, w), time.Unix(1_800_000_000, 0)
			play := func(messages []recordedMessage) {
				for i := range messages {
					x := &messages[i]
					st := tr.Message(now, hosts[x.from], hosts[x.to], &x.m, x.d)
					if d := l.Follow(now, st, Info{Refusable: Refusable(&x.m)}); d.Verdict == Refused {
						b.Fatal("refused")
					}
				}
			}
			for n := range others {
				play(record(b, fmt.Sprint("other", n), n+1)[:4])
			}
			mine := record(b, "mine", 5000)
			b.ReportAllocs()
			for b.Loop() {
				play(mine)
			}
		})
	}
}

// recordedMessage is a message that can be played again and again.
type recordedMessage struct {
	from, to string
	m        message.Message
	d        *sdp.Description
}

func record(b *testing.B, id string, port int) (call []recordedMessage) {
	add := func(from, to, words, body string) {
		x := &text{cseq: "1", id: id, user: "b", body: body}
		x.plain = strings.Fields(words)
		r := recordedMessage{from: from, to: to}
		require.Equal(b, message.None, r.m.Scan([]byte(x.message())))
		if body != "" {
			r.d = new(sdp.Description)
			require.True(b, r.d.Read([]byte(body)))
		}
		call = append(call, r)
	}
	describe := func(host string) string {
		return fmt.Sprintf("v=0\r\nc=IN IP4 %s\r\nm=audio %d RTP/AVP 9 8 0 18 101\r\na=rtpmap:101 telephone-event/8000\r\n",
			host, 2*port)
	}
	add("A", "P", "INVITE a", describe("10.1.10.10"))
	add("P", "A", "180 INVITE a b", "")
	add("P", "A", "200 INVITE a b", describe("10.2.10.31"))
	add("A", "P", "ACK a b", "")
	add("A", "P", "BYE a b", "")
	add("P", "A", "200 BYE a b", "")
	return call
}
