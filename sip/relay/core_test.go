package relay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/sip/call"
	"ringway/sip/dialog"
	"ringway/sip/message"
	"ringway/sip/transparent"
)

const (
	phone = "10.1.10.9:5060"
	pbx   = "10.2.20.5:5060"
)

// world is a core with a daemon that the test plays. Its tests run in a bubble of testing/synctest: a message waits a
// few milliseconds for the daemon's answer, and a busy machine must not take them from the test.
type world struct {
	*core
	t     *testing.T
	asked chan flowsRequest
	reply chan error
	told  chan struct{} // one for each answer that the core has

	keeper keeper // the Supervisor's
}

func newWorld(t *testing.T) *world {
	w := newSilent(t)
	w.run()
	return w
}

// newSilent is a world whose daemon is asked nothing until run.
func newSilent(t *testing.T) *world {
	w := &world{core: newCore(time.Now), t: t, asked: make(chan flowsRequest), reply: make(chan error),
		told: make(chan struct{}, 100)}
	w.core.asker = newAsker(func(ctx context.Context, r flowsRequest) error {
		var err error
		if r.Changes, err = unpackChanges(packChanges(nil, r.Changes)); err != nil { // as the daemon has them
			return err
		}
		w.keeper.take(r.Changes, r.Whole)
		r.Changes = slices.DeleteFunc(r.Changes, func(c Change) bool { return reflect.DeepEqual(c, Change{}) })
		if len(r.Changes) == 0 && !r.Whole {
			return nil
		}
		select {
		case w.asked <- r:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case err := <-w.reply:
			w.told <- struct{}{}
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}, w.core.flows)
	require.NoError(t, w.use(Settings{Privacy: "show"}))
	return w
}

// run has the daemon asked from now on.
func (w *world) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	a := w.core.asker // a test may have another one later
	go func() { a.run(ctx); close(done) }()
	w.t.Cleanup(func() { cancel(); <-done })
}

// pass shows the core a message on its way from one address to another.
func (w *world) pass(from, to, text string) transparent.Action {
	w.t.Helper()
	m := transparent.Message{
		From: netip.MustParseAddrPort(from), To: netip.MustParseAddrPort(to), Raw: []byte(text), SIP: new(message.Message),
	}
	m.Reason = m.SIP.Scan(m.Raw)
	a := w.handle(&m)
	if a.Wait != nil {
		a.Wait()
	}
	a.Wait = nil
	return a
}

// answer plays the daemon for one request, while f runs.
func (w *world) answer(f func(), err error) (r flowsRequest) {
	w.t.Helper()
	done := make(chan struct{})
	go func() { f(); close(done) }()
	r = <-w.asked
	w.reply <- err
	<-done
	return r
}

// closed plays the daemon for a request that only closes.
func (w *world) closed() []dialog.Flow {
	w.t.Helper()
	r := <-w.asked
	w.reply <- nil
	require.Len(w.t, r.Changes, 1)
	assert.Empty(w.t, r.Changes[0].Open)
	return r.Changes[0].Close
}

// text is a message of a call with its lines ended as they have to be.
func text(start, extra, body string) string {
	lines := []string{
		start, "Via: SIP/2.0/UDP 10.1.10.9:5060;branch=z9hG4bK1", "From: \"Ann\" <sip:ann@10.1.10.9>;tag=a",
		"To: <sip:bob@10.2.20.5>" + extra, "Call-ID: one@10.1.10.9", "CSeq: 1 INVITE",
	}
	if body != "" {
		lines = append(lines, "Content-Type: application/sdp")
	}
	head := strings.Join(append(lines, fmt.Sprintf("Content-Length: %d", len(body)), "", ""), "\r\n")
	return head + body
}

func description(address string, port int) string {
	return strings.Join([]string{
		"v=0", "o=- 1 1 IN IP4 " + address, "s=-", "c=IN IP4 " + address, "t=0 0",
		fmt.Sprintf("m=audio %d RTP/AVP 8 0", port), "",
	}, "\r\n")
}

var (
	invite = text("INVITE sip:bob@10.2.20.5 SIP/2.0", "", description("10.1.10.9", 4000))
	okay   = text("SIP/2.0 200 OK", ";tag=b", description("10.2.20.5", 6000))
)

// With the INVITE the daemon is asked to open what its offer needs; the answer goes on when it has done so.
func TestACallOpensItsFlowsBeforeItsMessagesGoOn(t *testing.T) {
	synctest.Test(t, testACallOpensItsFlowsBeforeItsMessagesGoOn)
}

func testACallOpensItsFlowsBeforeItsMessagesGoOn(t *testing.T) {
	w := newWorld(t)
	r := w.answer(func() { assert.Equal(t, transparent.Action{}, w.pass(phone, pbx, invite)) }, nil)
	require.Len(t, r.Changes, 1)
	assert.Equal(t, [2]netip.Addr{netip.MustParseAddr("10.1.10.9"), netip.MustParseAddr("10.2.20.5")}, r.Changes[0].Hops)
	assert.Equal(t, []dialog.Flow{
		dialog.FlowAsked(netip.MustParseAddr("10.2.20.5"), netip.MustParseAddrPort("10.1.10.9:4000"), false),
		dialog.FlowAsked(netip.MustParseAddr("10.2.20.5"), netip.MustParseAddrPort("10.1.10.9:4001"), true),
	}, r.Changes[0].Open)

	r = w.answer(func() { assert.Equal(t, transparent.Action{}, w.pass(pbx, phone, okay)) }, nil)
	assert.Len(t, r.Changes[0].Open, 4, "RTP and RTCP, both ways")
	assert.Len(t, w.closed(), 2)
	assert.Zero(t, w.late.Load())

	calls := w.calls()
	require.Len(t, calls, 1)
	assert.Equal(t, []string{"ann", "bob", "accepted"}, []string{calls[0].From, calls[0].To, calls[0].State})
	assert.Equal(t, []string{"PCMA"}, calls[0].Codecs)
	assert.Len(t, calls[0].Flows, 4)
	assert.False(t, calls[0].Answered.IsZero())
}

// A daemon that is slow costs the first message a moment, and no other one any; what failed is told as a whole.
func TestASlowDaemonHoldsNothingUp(t *testing.T) { synctest.Test(t, testASlowDaemonHoldsNothingUp) }

func testASlowDaemonHoldsNothingUp(t *testing.T) {
	w := newWorld(t)
	began := time.Now()
	assert.Equal(t, transparent.Action{}, w.pass(phone, pbx, invite), "nobody answers")
	assert.Zero(t, time.Since(began), "who is called has to read it first")
	assert.Equal(t, transparent.Action{}, w.pass(pbx, phone, okay))
	assert.Equal(t, patience, time.Since(began))
	assert.EqualValues(t, 1, w.late.Load())
	for range 20 {
		w.pass(pbx, phone, okay)
	}
	assert.Equal(t, patience, time.Since(began))

	<-w.asked
	w.reply <- errors.New("the daemon is busy")
	r := <-w.asked
	w.reply <- nil
	assert.True(t, r.Whole)
	require.Len(t, r.Changes, 1)
	assert.Len(t, r.Changes[0].Open, 4, "all that the call needs by now")
}

func TestWhatDoesNotGoOn(t *testing.T) { synctest.Test(t, testWhatDoesNotGoOn) }

func testWhatDoesNotGoOn(t *testing.T) {
	w := newWorld(t)
	twice := strings.Replace(invite, "Content-Length:", "Content-Length: 0\r\nContent-Length:", 1)
	assert.Equal(t, transparent.Action{}, w.pass(phone, pbx, twice), "observe refuses nothing")
	assert.EqualValues(t, 1, w.unread.all()["repeated_content_length"])
	require.NoError(t, w.use(Settings{Privacy: "show", Enforce: true}))
	assert.Equal(t, transparent.Action{Drop: true, Close: true}, w.pass(phone, pbx, twice))
	assert.EqualValues(t, 1, w.refused.all()["repeated_content_length"])
	assert.Equal(t, transparent.Action{}, w.pass(phone, pbx, "\r\n\r\n"))
	require.NoError(t, w.use(Settings{Privacy: "show"}))
	assert.EqualValues(t, 1, w.unread.all()["keep_alive"])

	w.answer(func() { w.pass(phone, pbx, invite) }, nil)
	w.answer(func() { w.pass(pbx, phone, okay) }, nil)
	assert.Equal(t, transparent.Action{}, w.pass("10.1.10.66:5060", pbx, bye), "observe refuses nothing")
	require.NoError(t, w.use(Settings{Privacy: "show", Enforce: true}))
	assert.Equal(t, transparent.Action{Drop: true}, w.pass("10.1.10.66:5060", pbx, bye), "from somebody else")
	assert.EqualValues(t, 1, w.refused.all()["foreign_hop"])

	assert.Equal(t, transparent.Action{}, w.pass(phone, pbx, bye))
	w.pass(pbx, phone, ended)
	assert.Len(t, w.closed(), 2+4, "with those that the answer has made needless")
	calls := w.calls()
	require.Len(t, calls, 1)
	assert.Equal(t, "bye", calls[0].Why)
	assert.False(t, calls[0].Live())
}

// Records fit into what the daemon takes, whatever a caller writes into his messages. Longer ones would be tried again
// forever, and reports of abuse with them.
func TestRecordsAreShort(t *testing.T) { synctest.Test(t, testRecordsAreShort) }

func testRecordsAreShort(t *testing.T) {
	w := newWorld(t)
	long := strings.Repeat("\x01", 15_000)
	fill := func(s string) string {
		s = strings.Replace(s, "one@10.1.10.9", strings.Repeat("x", 1000)+"@10.1.10.9", 1)
		return strings.Replace(s, "sip:ann@", "sip:"+long+"@", 1)
	}
	body := strings.Replace(description("10.1.10.9", 4000), "AVP 8 0", "AVP 96", 1) +
		"a=rtpmap:96 " + strings.Repeat("y", 15_000) + "/8000\r\n"
	offer := fill(text("INVITE sip:bob@10.2.20.5 SIP/2.0", "", body))
	w.answer(func() { assert.False(t, w.pass(phone, pbx, offer).Drop) }, nil)
	w.answer(func() { w.pass(pbx, phone, fill(okay)) }, nil)
	w.pass(phone, pbx, fill(bye))
	w.pass(pbx, phone, fill(ended))
	w.closed()
	require.Len(t, w.records, 1)

	sent, longest := reportsRequest{}, w.records[0]
	longest.Media = slices.Repeat([]call.Flow{{
		From: "2001:db8:1111:2222:3333:4444:5555:6666", To: "[2001:db8:1111:2222:3333:4444:5555:7777]:65535", RTCP: true,
	}}, call.MaxMedia)
	for range recordsAtOnce {
		sent.Records = append(sent.Records, longest)
	}
	report := Report{Kind: "toll_out_of_hours", Level: "block", Action: "refuse", Text: strings.Repeat("z", 200)}
	for range maxReports {
		sent.Reports = append(sent.Reports, report)
	}
	b, err := json.Marshal(sent)
	require.NoError(t, err)
	assert.Less(t, len(b), 400<<10, "process.Config.Large: 512 KiB")
}
