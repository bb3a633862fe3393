package relay

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/process"
	"ringway/sip/compact"
)

// journalFile opens a journal as the daemon does.
func journalFile(t *testing.T) (*journal, string) {
	t.Helper()
	dir := t.TempDir()
	f, err := openJournal(dir)
	require.NoError(t, err)
	file := os.NewFile(uintptr(f.FD), "journal")
	t.Cleanup(func() { file.Close() })
	return newJournal(f.FD), filepath.Join(dir, "calls.journal")
}

// talking is a world with one call that is up.
func talking(t *testing.T) *world {
	w := newWorld(t)
	w.answer(func() { w.pass(phone, pbx, invite) }, nil)
	w.answer(func() { w.pass(pbx, phone, okay) }, nil)
	return w
}

var (
	bye   = strings.Replace(text("BYE sip:bob@10.2.20.5 SIP/2.0", ";tag=b", ""), "1 INVITE", "2 BYE", 1)
	ended = strings.Replace(text("SIP/2.0 200 OK", ";tag=b", ""), "1 INVITE", "2 BYE", 1)
)

// The next process follows the calls of the one before: their flows are open, and their BYE ends them.
func TestTheNextProcessKnowsTheCalls(t *testing.T) { synctest.Test(t, testTheNextProcessKnowsTheCalls) }

func testTheNextProcessKnowsTheCalls(t *testing.T) {
	j, path := journalFile(t)
	before := talking(t)
	require.NoError(t, before.keepOnce(j))
	st, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), st.Mode().Perm())
	// The process died in the middle of an entry.
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, append(text, text[:len(text)/2]...), 0o600))

	legs, err := newJournal(j.fd).read()
	require.NoError(t, err)
	require.Len(t, legs, 1)
	next := newWorld(t)
	r := next.answer(func() { assert.NoError(t, next.load(legs)); <-next.told }, nil)
	assert.Len(t, r.Changes[0].Open, 4)

	calls := next.calls()
	require.Len(t, calls, 1)
	assert.Equal(t, []string{"ann", "bob", "accepted"}, []string{calls[0].From, calls[0].To, calls[0].State})
	assert.ElementsMatch(t, before.calls()[0].Flows, calls[0].Flows)
	next.pass(phone, pbx, bye)
	next.pass(pbx, phone, ended)
	r = <-next.asked
	next.reply <- nil
	assert.Len(t, r.Changes[0].Close, 4)
	assert.Equal(t, "bye", next.calls()[0].Why)
}

// A journal that could not be written is written again, and one that another process writes is left alone.
func TestAJournalThatFailsIsWrittenAgain(t *testing.T) {
	synctest.Test(t, testAJournalThatFailsIsWrittenAgain)
}

func testAJournalThatFailsIsWrittenAgain(t *testing.T) {
	j, path := journalFile(t)
	w := talking(t)
	fd := j.fd
	j.fd = -1
	require.Error(t, w.keepOnce(j))
	j.fd = fd
	require.NoError(t, os.WriteFile(path, []byte(`{"k":1,"leg":{"call`), 0o600))
	require.NoError(t, w.keepOnce(j))
	legs, err := newJournal(j.fd).read()
	require.NoError(t, err)
	assert.Len(t, legs, 1)

	j.handedOver = true
	before, err := os.ReadFile(path)
	require.NoError(t, err)
	w.pass(phone, pbx, bye)
	w.pass(pbx, phone, ended)
	require.NoError(t, w.keepOnce(j))
	after, err := os.ReadFile(path)
	require.NoError(t, err)
	assert.Equal(t, before, after)
}

// Bytes that are no text, in a Call-ID, a tag or a name, cost neither the journal nor the records anything.
func TestBytesThatAreNoTextAreKept(t *testing.T) { synctest.Test(t, testBytesThatAreNoTextAreKept) }

func testBytesThatAreNoTextAreKept(t *testing.T) {
	odd := func(s string) string {
		return strings.NewReplacer("one@10.1.10.9", "one\xff@10.1.10.9", "tag=a", "tag=a\xfe", "ann@", "an\xc3@").Replace(s)
	}
	j, _ := journalFile(t)
	before := newWorld(t)
	before.answer(func() { before.pass(phone, pbx, odd(invite)) }, nil)
	before.answer(func() { before.pass(pbx, phone, odd(okay)) }, nil)
	require.NoError(t, before.keepOnce(j))

	legs, err := newJournal(j.fd).read()
	require.NoError(t, err)
	require.Len(t, legs, 1)
	next := newWorld(t)
	next.answer(func() { assert.NoError(t, next.load(legs)); <-next.told }, nil)
	next.pass(phone, pbx, odd(bye))
	next.pass(pbx, phone, odd(ended))
	assert.Len(t, next.closed(), 4)

	var sent reportsRequest
	next.handOverOnce(context.Background(), func(_ context.Context, r process.Request) error {
		return compact.Decode(r.Attached, &sent)
	})
	require.Len(t, sent.Records, 1)
	assert.Equal(t, "one\xff@10.1.10.9", sent.Records[0].CallID)
	assert.Empty(t, next.records)
}

// Numbers that were kept while they were shown are masked once they no longer are.
func TestNumbersAreHidden(t *testing.T) { synctest.Test(t, testNumbersAreHidden) }

func testNumbersAreHidden(t *testing.T) {
	w := talking(t)
	_, kept := w.view("one@10.1.10.9")
	require.True(t, kept)
	require.NoError(t, w.use(Settings{}))
	calls := w.calls()
	require.Len(t, calls, 1)
	assert.NotEqual(t, "ann", calls[0].From)
	_, kept = w.view("one@10.1.10.9")
	assert.False(t, kept)
}

// What is no entry costs what follows it, not what was before.
func TestAJournalThatIsSpoiled(t *testing.T) { synctest.Test(t, testAJournalThatIsSpoiled) }

func testAJournalThatIsSpoiled(t *testing.T) {
	j, path := journalFile(t)
	require.NoError(t, talking(t).keepOnce(j))
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, append(text, 0xff, 0xff, 0xff), 0o600))
	legs, err := newJournal(j.fd).read()
	assert.ErrorContains(t, err, fmt.Sprintf("at byte %d", len(text)))
	assert.Len(t, legs, 1)
}

// A call that has ended is not in the journal, and a journal of calls that have ended becomes short.
func TestTheJournalStaysShort(t *testing.T) { synctest.Test(t, testTheJournalStaysShort) }

func testTheJournalStaysShort(t *testing.T) {
	j, path := journalFile(t)
	w := talking(t)
	require.NoError(t, w.keepOnce(j))
	w.pass(phone, pbx, bye)
	w.pass(pbx, phone, ended)
	<-w.asked
	w.reply <- nil
	require.NoError(t, w.keepOnce(j))
	legs, err := newJournal(j.fd).read()
	require.NoError(t, err)
	assert.Empty(t, legs)
	assert.Zero(t, j.live)

	j.size = compactAbove + 1
	require.NoError(t, w.keepOnce(j))
	st, err := os.Stat(path)
	require.NoError(t, err)
	assert.Zero(t, st.Size())
}
