package record

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/sip/privacy"
)

var start = time.Date(2026, 11, 29, 10, 0, 0, 0, time.UTC)

// memory is a disk with so many bytes of room left.
type memory struct {
	fstest.MapFS
	room int
}

func newMemory() *memory { return &memory{MapFS: fstest.MapFS{}, room: 1 << 30} }

func (m *memory) file(name string) *fstest.MapFile {
	if m.MapFS[name] == nil {
		m.MapFS[name] = &fstest.MapFile{Mode: mode}
	}
	return m.MapFS[name]
}

func (m *memory) Append(name string, data []byte) error {
	fits := min(len(data), m.room)
	f := m.file(name)
	f.Data = append(f.Data, data[:fits]...)
	m.room -= fits
	if fits < len(data) {
		return syscall.ENOSPC
	}
	return nil
}

func (m *memory) Replace(name string, data []byte) error {
	if len(data) > m.room {
		return syscall.ENOSPC
	}
	m.room += len(m.file(name).Data) - len(data)
	m.file(name).Data = bytes.Clone(data)
	return nil
}

func (m *memory) Remove(name string) error {
	if f := m.MapFS[name]; f != nil {
		m.room += len(f.Data)
		delete(m.MapFS, name)
	}
	return nil
}

// call is a record of a call that began so many minutes after start and took one.
func callOf(id string, minute int) Record {
	began := start.Add(time.Duration(minute) * time.Minute)
	return Record{
		ID: id, Began: began, Answered: began.Add(10 * time.Second), Ended: began.Add(time.Minute), Direction: Outbound,
		Caller: Party{"+49301112223", netip.MustParseAddr("10.1.10.10")}, Callee: Party{Number: "004412345678"},
		Why: "bye", Hops: []netip.Addr{netip.MustParseAddr("10.1.10.10"), netip.MustParseAddr("10.2.10.5")},
	}
}

func open(t *testing.T, disk Disk, p privacy.Policy) *Log {
	t.Helper()
	l, err := Open(disk, Defaults(), p)
	require.NoError(t, err)
	return l
}

// ids are the records that were found.
func ids(t *testing.T) func(all []Record, err error) string {
	return func(all []Record, err error) string {
		t.Helper()
		require.NoError(t, err)
		var text []string
		for _, r := range all {
			text = append(text, r.ID)
		}
		return strings.Join(text, " ")
	}
}

func everything(*Record) bool { return true }

// The names of the fields are an interface.
func TestRecordAsJSON(t *testing.T) {
	r := callOf("7", 0)
	r.CallID, r.Site, r.Codec, r.Emergency, r.Admitted, r.Status = "x@y", "berlin", "G.711 A-law", true, "reserved", 486
	r.Agents, r.Holes = []string{"Phone 1.0"}, 4
	r.Sent = &Quality{Packets: 3000, Lost: 3, Jitter: 1.5, R: 92, MOS: 4.4, Where: map[string]uint64{"line": 3}}
	r.Received = &Quality{}
	disk := newMemory()
	l := open(t, disk, privacy.Mask)
	require.NoError(t, l.Append(start, r))
	assert.Equal(t, "\n"+`{"id":"7","call_id":"x@y","began":"2026-11-29T10:00:00Z","answered":"2026-11-29T10:00:10Z",`+
		`"ended":"2026-11-29T10:01:00Z","duration_s":50,"direction":"out",`+
		`"caller":{"number":"+49301112xxx","address":"10.1.10.10"},"callee":{"number":"004412345xxx"},`+
		`"site":"berlin","codec":"G.711 A-law","emergency":true,"admitted":"reserved","why":"bye","status":486,`+
		`"hops":["10.1.10.10","10.2.10.5"],"user_agents":["Phone 1.0"],"holes":4,`+
		`"sent":{"packets":3000,"lost":3,"jitter_ms":1.5,"r":92,"mos":4.4,"lost_where":{"line":3}},`+
		`"received":{"packets":0,"lost":0,"jitter_ms":0,"r":0,"mos":0}}`+"\n",
		string(disk.MapFS["calls-20261129T100000.000000000Z.jsonl"].Data))

	got, err := l.Find(start, everything)
	require.NoError(t, err)
	r.Caller.Number, r.Callee.Number, r.Duration = "+49301112xxx", "004412345xxx", 50
	assert.Equal(t, []Record{r}, got)
}

func TestPolicyShow(t *testing.T) {
	l := open(t, newMemory(), privacy.Show)
	require.NoError(t, l.Append(start, callOf("1", 0)))
	got, err := l.Find(start, everything)
	require.NoError(t, err)
	assert.Equal(t, "+49301112223", got[0].Caller.Number)
}

func TestAnUnansweredCallHasNoDuration(t *testing.T) {
	r := callOf("1", 0)
	r.Answered, r.Duration = time.Time{}, 7
	l := open(t, newMemory(), privacy.Mask)
	require.NoError(t, l.Append(start, r))
	got, err := l.Find(start, everything)
	require.NoError(t, err)
	assert.Zero(t, got[0].Duration)
	assert.Zero(t, got[0].Answered)
}

func TestSearches(t *testing.T) {
	l := open(t, newMemory(), privacy.Mask)
	for i := range 5 {
		require.NoError(t, l.Append(start, callOf(fmt.Sprint(i), 2*i)))
	}
	at := func(minute, second int) time.Time {
		return start.Add(time.Duration(minute)*time.Minute + time.Duration(second)*time.Second)
	}
	now := at(10, 0)
	assert.Equal(t, "2", ids(t)(l.At(now, at(4, 30))))
	assert.Equal(t, "", ids(t)(l.At(now, at(5, 30))), "between two calls")
	assert.Equal(t, "1 2", ids(t)(l.Between(now, at(3, 0), at(4, 0))))
	assert.Equal(t, "0 1 2 3 4", ids(t)(l.Between(now, at(-10, 0), at(100, 0))))
	assert.Equal(t, "0 1 2 3 4", ids(t)(l.Phone(now, netip.MustParseAddr("10.1.10.10"))))
	assert.Equal(t, "0 1 2 3 4", ids(t)(l.Phone(now, netip.MustParseAddr("10.2.10.5"))), "a hop")
	assert.Equal(t, "", ids(t)(l.Phone(now, netip.MustParseAddr("10.1.10.11"))))

	none, err := l.At(now, at(100, 0))
	require.NoError(t, err)
	assert.NotNil(t, none, "JSON shows an empty list")
}

func TestRecordsSurviveARestart(t *testing.T) {
	dir, err := OpenDir(filepath.Join(t.TempDir(), "calls"))
	require.NoError(t, err)
	require.NoError(t, open(t, dir, privacy.Mask).Append(start, callOf("1", 0)))
	l := open(t, dir, privacy.Mask)
	require.NoError(t, l.Append(start.Add(time.Hour), callOf("2", 60)))
	assert.Equal(t, "1 2", ids(t)(l.Find(start, everything)))

	entries, err := os.ReadDir(dir.path)
	require.NoError(t, err)
	require.Len(t, entries, 1)
	fi, err := entries[0].Info()
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o600), fi.Mode())
	assert.Equal(t, l.Size(), fi.Size())
	fi, err = os.Stat(dir.path)
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o700), fi.Mode().Perm())

	f, err := l.Forget("+49301112223", true)
	require.NoError(t, err)
	assert.Equal(t, Forgotten{Removed: 2}, f)
	entries, err = os.ReadDir(dir.path)
	require.NoError(t, err)
	assert.Empty(t, entries)
	assert.Zero(t, l.Size())
	require.NoError(t, l.Append(start, callOf("3", 0)))
	assert.Equal(t, "3", ids(t)(l.Find(start, everything)))
}

// A mode that somebody widened is put back.
func TestModeIsPutBack(t *testing.T) {
	dir, err := OpenDir(t.TempDir())
	require.NoError(t, err)
	l := open(t, dir, privacy.Mask)
	require.NoError(t, l.Append(start, callOf("1", 0)))
	path := filepath.Join(dir.path, l.segments[0].name)
	require.NoError(t, os.Chmod(path, 0o644))
	require.NoError(t, l.Append(start, callOf("2", 0)))
	fi, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, fs.FileMode(0o600), fi.Mode())
}

func TestOtherFilesAreLeftAlone(t *testing.T) {
	disk := newMemory()
	disk.MapFS["calls-x.jsonl"] = &fstest.MapFile{Data: []byte("x")}
	disk.MapFS["other"] = &fstest.MapFile{Data: []byte("x")}
	disk.MapFS["calls-20261129T100000.000000000Z.jsonl/x"] = &fstest.MapFile{}
	l := open(t, disk, privacy.Mask)
	assert.Zero(t, l.Size())
	assert.Equal(t, "", ids(t)(l.Find(start, everything)))
	require.NoError(t, l.Expire(start.Add(1000*time.Hour)))
	assert.Len(t, disk.MapFS, 3)
}

func TestAge(t *testing.T) {
	disk := newMemory()
	l := open(t, disk, privacy.Mask)
	for hour := range 24 {
		require.NoError(t, l.Append(start.Add(time.Duration(hour)*time.Hour), callOf(fmt.Sprint(hour), hour*60)))
	}
	assert.Len(t, disk.MapFS, 4, "a segment spans six hours")
	day := 24 * time.Hour
	assert.Equal(t, "12 13 14 15 16 17 18 19 20 21 22 23",
		ids(t)(l.Find(start.Add(7*day+12*time.Hour), everything)), "what is too old is not shown")
	require.NoError(t, l.Expire(start.Add(7*day)))
	assert.Len(t, disk.MapFS, 4)
	require.NoError(t, l.Expire(start.Add(7*day+6*time.Hour+time.Second)))
	assert.Len(t, disk.MapFS, 3)
	require.NoError(t, l.Expire(start.Add(9*day)))
	assert.Empty(t, disk.MapFS)
	assert.Zero(t, l.Size())
}

func TestSize(t *testing.T) {
	disk := newMemory()
	l, err := Open(disk, Limits{Keep: 7 * 24 * time.Hour, Size: 64 << 10}, privacy.Mask)
	require.NoError(t, err)
	for i := range 2000 {
		require.NoError(t, l.Append(start.Add(time.Duration(i)*time.Second), callOf(fmt.Sprint(i), 0)))
		require.LessOrEqual(t, l.Size(), int64(64<<10))
	}
	total := 0
	for _, f := range disk.MapFS {
		total += len(f.Data)
	}
	assert.Equal(t, l.Size(), int64(total))
	assert.Greater(t, total, 48<<10, "the room is used")
	found, err := l.Find(start, everything)
	require.NoError(t, err)
	assert.Equal(t, "1999", found[len(found)-1].ID)
	assert.Equal(t, uint64(2000), l.Counts().Written)
}

// A clock that was set back begins a new segment, so that the age of each is known.
func TestClockSetBack(t *testing.T) {
	disk := newMemory()
	l := open(t, disk, privacy.Mask)
	require.NoError(t, l.Append(start.Add(1000*time.Hour), callOf("future", 0)))
	require.NoError(t, l.Append(start, callOf("1", 0)))
	require.NoError(t, l.Append(start, callOf("2", 0)))
	assert.Len(t, disk.MapFS, 2)
	assert.Equal(t, "future 1 2", ids(t)(l.Find(start, everything)))
}

// While a disk is full records are lost and counted; those of before and after can be read.
func TestFullDisk(t *testing.T) {
	disk := newMemory()
	l := open(t, disk, privacy.Mask)
	require.NoError(t, l.Append(start, callOf("1", 0)))
	for _, room := range []int{0, 1, 50, 200} {
		disk.room = room
		err := l.Append(start, callOf("lost", 0))
		require.ErrorIs(t, err, syscall.ENOSPC)
		assert.EqualError(t, err, "write the record of call lost: no space left on device")
		assert.ErrorIs(t, l.Counts().Failure, syscall.ENOSPC)
		assert.Equal(t, int64(len(disk.MapFS[l.segments[0].name].Data)), l.Size())
		disk.room = 1 << 30
		require.NoError(t, l.Append(start, callOf(fmt.Sprint("after", room), 0)))
		assert.NoError(t, l.Counts().Failure)
	}
	assert.Equal(t, "1 after0 after1 after50 after200", ids(t)(l.Find(start, everything)))
	assert.Equal(t, uint64(4), l.Counts().Lost)
	assert.Equal(t, uint64(5), l.Counts().Written)
	assert.NotZero(t, l.Counts().Damaged)
}

// Records that come together take as many writes as they need segments; one that is too long costs itself.
func TestRecordsThatComeTogether(t *testing.T) {
	disk := newMemory()
	l, err := Open(disk, Limits{Keep: time.Hour, Size: 64 << 10}, privacy.Show)
	require.NoError(t, err)
	var all []Record
	want := ""
	for i := range 60 {
		all = append(all, callOf(fmt.Sprint(i), 0))
		want += fmt.Sprint(" ", i)
	}
	long := callOf("long", 0)
	long.Why = strings.Repeat("x", maxLine)
	err = l.Append(start, append(all, long)...)
	assert.ErrorContains(t, err, "write the record of call long: ")
	assert.Equal(t, want[1:], ids(t)(l.Find(start, everything)))
	assert.Equal(t, Counts{Written: 60, Lost: 1, Failure: l.Counts().Failure}, l.Counts())
	for _, s := range l.segments {
		assert.LessOrEqual(t, s.size, int64(8<<10))
	}
	assert.Greater(t, len(l.segments), 1)

	disk.room = 0
	err = l.Append(start, all[:3]...)
	require.ErrorIs(t, err, syscall.ENOSPC)
	assert.ErrorContains(t, err, "3 records of calls are lost, the last one: write the record of call 2: ")
}

// The first record of all meets a full disk: there is no file, or an empty one.
func TestFullDiskFromTheBeginning(t *testing.T) {
	disk := newMemory()
	l := open(t, disk, privacy.Mask)
	disk.room = 0
	require.ErrorIs(t, l.Append(start, callOf("lost", 0)), syscall.ENOSPC)
	delete(disk.MapFS, l.segments[0].name)
	assert.Equal(t, "", ids(t)(l.Find(start, everything)))
	disk.room = 1 << 30
	require.NoError(t, l.Append(start.Add(time.Minute), callOf("1", 0)))
	assert.Equal(t, "1", ids(t)(l.Find(start, everything)))
	assert.Len(t, disk.MapFS, 1)
}

// A full disk does not keep a number from being forgotten halfway: nothing is removed, and it says so.
func TestForgetOnAFullDisk(t *testing.T) {
	disk := newMemory()
	l := open(t, disk, privacy.Show)
	other := callOf("2", 0)
	other.Caller.Number = "1000"
	require.NoError(t, l.Append(start, callOf("1", 0)))
	require.NoError(t, l.Append(start, other))
	disk.room = 0
	f, err := l.Forget("+49301112223", false)
	require.ErrorIs(t, err, syscall.ENOSPC)
	assert.Zero(t, f.Removed)
	assert.Equal(t, "1 2", ids(t)(l.Find(start, everything)))

	disk.room = 1 << 30
	f, err = l.Forget("+49301112223", false)
	require.NoError(t, err)
	assert.Equal(t, 1, f.Removed)
	assert.Equal(t, "2", ids(t)(l.Find(start, everything)))
	assert.Equal(t, l.Size(), int64(len(disk.MapFS[l.segments[0].name].Data)))
}

// Wherever a power cut tears the last line, the lines before it are read, and the next one is whole.
func TestTornLastLine(t *testing.T) {
	disk := newMemory()
	l := open(t, disk, privacy.Mask)
	require.NoError(t, l.Append(start, callOf("1", 0)))
	name := l.segments[0].name
	whole := len(disk.MapFS[name].Data)
	require.NoError(t, l.Append(start, callOf("2", 0)))
	data := bytes.Clone(disk.MapFS[name].Data)
	for cut := whole; cut <= len(data); cut++ {
		disk.MapFS[name].Data = bytes.Clone(data[:cut])
		l = open(t, disk, privacy.Mask)
		require.NoError(t, l.Append(start, callOf("3", 0)))
		want := "1 3"
		if cut >= len(data)-1 { // the line is whole, with or without its end
			want = "1 2 3"
		}
		require.Equal(t, want, ids(t)(l.Find(start, everything)), "cut at %d of %d", cut, len(data))
	}

	// Blocks of zeros, as a file system leaves them.
	disk.MapFS[name].Data = append(data, make([]byte, 100_000)...)
	l = open(t, disk, privacy.Mask)
	require.NoError(t, l.Append(start, callOf("3", 0)))
	assert.Equal(t, "1 2 3", ids(t)(l.Find(start, everything)))
	assert.Equal(t, uint64(1), l.Counts().Damaged)
}

func TestForget(t *testing.T) {
	for _, test := range []struct {
		policy privacy.Policy
		masked bool
		number string
		want   string // records that stay
		unsure int
	}{
		{privacy.Show, false, "+49 30 111222-3", "friend abroad name short", 0},
		{privacy.Show, false, "0301112223", "friend abroad name short", 0},
		{privacy.Show, false, "0049301112223", "friend abroad name short", 0},
		{privacy.Show, false, "1112223", "friend abroad name short", 0},
		{privacy.Show, false, "2223", "own national friend abroad name short", 0},
		{privacy.Show, false, "101", "own national friend abroad name", 0},
		{privacy.Show, false, "Alice", "own national friend abroad short", 0},
		{privacy.Show, false, "+44 123 45678", "own national friend name short", 0},
		{privacy.Show, true, "0301112223", "friend abroad name short", 0},
		{privacy.Mask, false, "0301112223", "own national friend abroad name short", 3},
		{privacy.Mask, true, "0301112223", "abroad name short", 0},
		{privacy.Mask, true, "0309912223", "own national friend abroad name short", 0},
		{privacy.Mask, true, "101", "own national friend abroad name", 0},
		{privacy.Mask, true, "alice", "own national friend abroad short", 0},
		{privacy.Mask, false, "0301112xxx", "abroad name short", 0},
	} {
		disk := newMemory()
		l := open(t, disk, test.policy)
		for _, one := range [][2]string{{"own", "+49301112223"}, {"national", "0301112223"}, {"friend", "+49301112999"},
			{"abroad", "004412345678"}, {"name", "alice"}, {"short", "101"}} {
			r := callOf(one[0], 0)
			r.Caller, r.Callee = Party{Number: one[1]}, Party{}
			if one[0] == "national" {
				r.Caller, r.Callee = r.Callee, r.Caller
			}
			require.NoError(t, l.Append(start, r))
		}
		f, err := l.Forget(test.number, test.masked)
		require.NoError(t, err)
		assert.Equal(t, test.want, ids(t)(l.Find(start, everything)), "%v %v %s", test.policy, test.masked, test.number)
		assert.Equal(t, test.unsure, f.Unsure, "%v %v %s", test.policy, test.masked, test.number)
		assert.Equal(t, 6-len(strings.Fields(test.want)), f.Removed)
	}
}

// A line that cannot be read may hold the number, so it goes.
func TestForgetRemovesDamagedLines(t *testing.T) {
	disk := newMemory()
	l := open(t, disk, privacy.Mask)
	require.NoError(t, l.Append(start, callOf("1", 0)))
	name := l.segments[0].name
	disk.MapFS[name].Data = append(disk.MapFS[name].Data, `{"id":"2","caller":{"number":"0309`+"\n"...)
	_, err := l.Forget("101", false)
	require.NoError(t, err)
	assert.NotContains(t, string(disk.MapFS[name].Data), "0309")
	assert.Equal(t, "1", ids(t)(l.Find(start, everything)))
}

func TestARecordIsBounded(t *testing.T) {
	disk := newMemory()
	l := open(t, disk, privacy.Mask)
	r := callOf("1", 0)
	r.Agents = []string{strings.Repeat("x", maxLine)}
	err := l.Append(start, r)
	require.ErrorContains(t, err, "write the record of call 1: 16")
	assert.Equal(t, uint64(1), l.Counts().Lost)
	assert.Empty(t, disk.MapFS)
}

func TestSearchIsBounded(t *testing.T) {
	disk := newMemory()
	line, err := json.Marshal(callOf("x", 0))
	require.NoError(t, err)
	name := prefix + start.Format(stamp) + suffix
	disk.MapFS[name] = &fstest.MapFile{Data: bytes.Repeat(append(line, '\n'), 2*MaxFound+5)}
	l := open(t, disk, privacy.Mask)
	require.NoError(t, l.Append(start, callOf("last", 0)))
	found, err := l.Find(start, everything)
	require.NoError(t, err)
	assert.Len(t, found, MaxFound)
	assert.Equal(t, "last", found[MaxFound-1].ID)
}

func TestLimits(t *testing.T) {
	require.NoError(t, Defaults().Validate())
	err := Limits{Keep: time.Minute, Size: 1}.Validate()
	assert.EqualError(t, err, "keep: 1m0s (allowed 1h0m0s to 8784h0m0s)\nsize: 1 bytes (allowed 65536 to 1073741824)")
	_, err = Open(newMemory(), Limits{}, privacy.Mask)
	assert.Error(t, err)
}

func FuzzSegment(f *testing.F) {
	f.Add([]byte(`{"id":"1","ended":"2026-11-29T10:01:00Z"}` + "\n{"))
	f.Fuzz(func(t *testing.T, data []byte) {
		disk := newMemory()
		disk.MapFS[prefix+start.Format(stamp)+suffix] = &fstest.MapFile{Data: data}
		l := open(t, disk, privacy.Mask)
		require.NoError(t, l.Append(start, callOf("own", 0)))
		found, err := l.Find(start, everything)
		require.NoError(t, err)
		require.NotEmpty(t, found)
		assert.Equal(t, "own", found[len(found)-1].ID)
		_, err = l.Forget("+49301112223", true)
		require.NoError(t, err)
	})
}
