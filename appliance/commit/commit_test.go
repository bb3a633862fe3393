package commit

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/status"
)

func TestAnUnconfirmedConfigIsRolledBackAtTheDeadline(t *testing.T) {
	b := newBench(t)
	c := b.start()
	assert.Nil(t, c.Status())
	require.NoError(t, b.apply(c, newText, 2*time.Minute))
	b.runs(newText)
	b.now += 30 * time.Second
	c.Tick(t.Context())
	b.runs(newText)
	assert.Equal(t, &status.Confirmation{State: "waiting", LeftS: 90}, c.Status())
	assert.Equal(t, "NOT CONFIRMED: rollback to the previous config in 1m30s unless `ringway confirm` is given",
		c.Status().String())
	fi, err := os.Stat(b.path("state/trial.json"))
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), fi.Mode().Perm())

	b.now += 90 * time.Second
	c.Tick(t.Context())
	b.runs(oldText)
	fi, err = os.Stat(b.file())
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o640), fi.Mode().Perm(), "the file's own mode")
	kept := b.path("state/refused.yaml")
	assert.Equal(t, &status.Confirmation{State: "undone", Reason: "it was not confirmed in time", Kept: kept}, c.Status())
	assert.Equal(t, newText, b.read("state/refused.yaml"))
	assert.EqualError(t, c.Confirm(),
		"too late: the config was rolled back (it was not confirmed in time); it is kept in "+kept)
	assert.NoFileExists(t, b.path("state/trial.json"))

	require.NoError(t, b.apply(c, newText, 0), "the next one can be applied")
	assert.Nil(t, c.Status())
	b.runs(newText)
}

func TestAConfirmedConfigStays(t *testing.T) {
	b := newBench(t)
	c := b.start()
	assert.EqualError(t, c.Confirm(), "no config is waiting for confirmation")
	require.NoError(t, b.apply(c, newText, time.Minute))
	require.NoError(t, c.Confirm())
	assert.Nil(t, c.Status())
	b.now += time.Hour
	c.Tick(t.Context())
	b.runs(newText)
	b.boot = "second"
	b.start()
	b.runs(newText)
	assert.NoFileExists(t, b.path("state/refused.yaml"))
}

func TestAConfigIsRolledBackOnRequest(t *testing.T) {
	b := newBench(t)
	c := b.start()
	assert.ErrorContains(t, c.Undo(t.Context()), "there is nothing to roll back")
	require.NoError(t, b.apply(c, newText, time.Minute))
	require.NoError(t, c.Undo(t.Context()))
	b.runs(oldText)
}

// While a config is waiting for confirmation, everything else that would change it is refused.
func TestOneChangeAtATime(t *testing.T) {
	b := newBench(t)
	c := b.start()
	require.NoError(t, b.apply(c, newText, time.Minute))
	const busy = "a config is waiting for confirmation, 1m0s left: " +
		"keep it first (`ringway confirm`) or roll it back (`ringway confirm --undo`)"
	assert.EqualError(t, b.apply(c, "site: third\n", time.Minute), busy)
	assert.EqualError(t, b.apply(c, "site: third\n", 0), busy)
	assert.EqualError(t, c.pending(), busy)
	b.runs(newText)
}

func TestAWrongConfigOrTimeChangesNothing(t *testing.T) {
	b := newBench(t)
	c := b.start()
	for want, err := range map[string]error{
		"new.yaml: bad": b.apply(c, "bad\n", time.Minute),
		"cannot wait 1s for a confirmation (allowed: 5s to 24h0m0s)":      b.apply(c, newText, time.Second),
		"cannot wait 48h0m0s for a confirmation (allowed: 5s to 24h0m0s)": b.apply(c, newText, 48*time.Hour),
	} {
		assert.EqualError(t, err, want)
	}
	b.runs(oldText)
	assert.Nil(t, c.Status())
}

// With and without a deadline.
func TestAConfigThatCannotBeAppliedIsRolledBackAtOnce(t *testing.T) {
	for _, wait := range []time.Duration{0, time.Minute} {
		for _, text := range []string{"refused: no such device\n", "mute: everything\n"} {
			b := newBench(t)
			c := b.start()
			err := b.apply(c, text, wait)
			require.ErrorContains(t, err, "the previous config keeps running: ")
			require.ErrorContains(t, err, "(the rejected config is kept in "+b.path("state/refused.yaml")+")")
			b.runs(oldText)
			assert.Equal(t, "undone", c.Status().State)
			assert.NoFileExists(t, b.path("state/trial.json"))
			assert.Equal(t, text, b.read("state/refused.yaml"))
		}
	}
}

// The operator edited the file in place: what ran is what the daemon loaded, not what the file says.
func TestAFileEditedInPlaceIsRolledBackToWhatRan(t *testing.T) {
	b := newBench(t)
	c := b.start()
	b.write("etc/ringway.yaml", newText)
	require.NoError(t, b.apply(c, newText, time.Minute))
	b.runs(newText)
	b.write("etc/ringway.yaml", "site: edited meanwhile\n")
	b.now += time.Minute
	c.Tick(t.Context())
	b.runs(oldText)
	assert.Equal(t, "site: edited meanwhile\n", b.read("state/refused.yaml"), "nobody's work is lost")
}

func TestASymbolicLinkStaysALink(t *testing.T) {
	b := newBench(t)
	require.NoError(t, os.Rename(b.file(), b.path("etc/real.yaml")))
	require.NoError(t, os.Symlink("real.yaml", b.file()))
	c := b.start()
	require.NoError(t, b.apply(c, newText, 0))
	assert.Equal(t, newText, b.read("etc/real.yaml"))
	to, err := os.Readlink(b.file())
	require.NoError(t, err)
	assert.Equal(t, "real.yaml", to)
}

// What a start does with the record that an earlier daemon left.
func TestAStartFindsARecord(t *testing.T) {
	recorded := func(change func(*record)) func(*bench) { return func(b *bench) { b.record(change) } }
	reboot := func(b *bench) { b.boot, b.now = "second", time.Second }
	for _, tc := range []struct {
		name   string
		change func(*bench)
		want   string
		reason string // empty: it is still waiting
	}{
		{"a daemon that died", func(b *bench) { b.now += 59 * time.Second }, newText, ""},
		{
			"a daemon that died, started late",
			func(b *bench) { b.now += 61 * time.Second }, oldText, "it was not confirmed in time",
		},
		{"a reboot", reboot, oldText, "the machine rebooted before it was confirmed"},
		{
			"a reboot with a broken file",
			func(b *bench) { reboot(b); b.write("etc/ringway.yaml", "bad\n") },
			oldText, "the machine rebooted before it was confirmed",
		},
		{
			"a daemon that died while applying",
			recorded(func(r *record) { r.Phase = applying }), oldText, "the daemon ended while applying it",
		},
		{
			"a daemon that died during a rollback",
			recorded(func(r *record) { r.Phase, r.Reason = undoing, "rolled back on request" }),
			oldText, "rolled back on request",
		},
		{
			"a new config that can no longer be applied",
			recorded(func(r *record) { r.New.Data = []byte("mute: x\n") }), oldText, "it cannot be applied: no firewall",
		},
		{
			"a new config that no longer loads",
			recorded(func(r *record) { r.New.Data = []byte("bad: x\n") }), oldText, "it no longer loads: : bad",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBench(t)
			require.NoError(t, b.apply(b.start(), newText, time.Minute))
			tc.change(b)
			c := b.start()
			b.runs(tc.want)
			require.NotNil(t, c.Status())
			assert.Equal(t, tc.reason, c.Status().Reason)
			if tc.reason != "" {
				assert.Equal(t, "undone", c.Status().State)
				return
			}
			assert.Equal(t, &status.Confirmation{State: "waiting", LeftS: 1}, c.Status(), "the time goes on")
			b.now += time.Second
			c.Tick(t.Context())
			b.runs(oldText)
		})
	}
}

// The file cannot be restored (here its folder is gone; it may be a read-only disk): the old config runs, the
// record stays, and the rollback is retried.
func TestAFileThatCannotBeRestoredIsRetried(t *testing.T) {
	b := newBench(t)
	c := b.start()
	require.NoError(t, b.apply(c, newText, time.Minute))
	require.NoError(t, os.Rename(b.path("etc"), b.path("elsewhere")))
	b.now += time.Minute
	c.Tick(t.Context())
	assert.Equal(t, oldText, b.read("kernel"))
	assert.Equal(t, "undoing", c.Status().State)
	assert.Contains(t, c.Status().String(), "it was not confirmed in time: write "+b.file())
	assert.ErrorContains(t, c.Confirm(), "too late")
	assert.ErrorContains(t, b.apply(c, newText, 0),
		"a config is being rolled back (it was not confirmed in time), but the rollback fails (write "+b.file()+": ")

	c = b.start() // a start does not fail because of it
	assert.Equal(t, oldText, b.read("kernel"))
	assert.Equal(t, "undoing", c.Status().State)

	require.NoError(t, os.Rename(b.path("elsewhere"), b.path("etc")))
	c.Tick(t.Context())
	assert.Equal(t, newText, b.read("etc/ringway.yaml"), "not at once")
	b.now += retryInterval
	c.Tick(t.Context())
	b.runs(oldText)
	assert.Equal(t, "undone", c.Status().State)
}

// The previous config no longer loads (a key file is gone): the new one keeps running, says so, and may be
// confirmed.
func TestThePreviousConfigNoLongerLoads(t *testing.T) {
	b := newBench(t)
	require.NoError(t, b.apply(b.start(), newText, time.Minute))
	for _, boot := range []string{"first", "second"} {
		b.boot = boot
		c := b.committer(func(string) {})
		b.machine.bad = oldText
		l, err := c.Load()
		require.NoError(t, err)
		require.NoError(t, c.Start(t.Context(), l))
		b.runs(newText)
		b.now += time.Minute
		c.Tick(t.Context())
		b.runs(newText)
		assert.Equal(t, "undoing", c.Status().State)
		assert.Contains(t, c.Status().Reason, "load the previous config: ")
		if boot == "second" {
			require.NoError(t, c.Confirm())
			assert.Nil(t, c.Status())
		}
	}
}

func TestAnUnreadableRecordDoesNotPreventAStart(t *testing.T) {
	for _, text := range []string{"{", "{}", `{"phase": "later"}`, ""} {
		b := newBench(t)
		b.write("state/trial.json", text)
		c := b.start()
		b.runs(oldText)
		assert.NoError(t, c.pending())
	}
}

func TestAReadOnlyFolderIsRefusedBeforeAnythingChanges(t *testing.T) {
	b := newBench(t)
	c := b.start()
	require.NoError(t, os.RemoveAll(b.path("etc")))
	folder := b.path("etc")
	assert.EqualError(t, b.apply(c, newText, time.Minute),
		"the daemon must be able to restore the config file and cannot write "+
			folder+": no such file or directory (under systemd, add ReadWritePaths="+folder+" to the unit)")
	assert.Equal(t, oldText, b.read("kernel"))
}

func TestReload(t *testing.T) {
	b := newBench(t)
	c := b.start()
	reload := func(text string) error {
		l, err := b.machine.Load([]byte(text), "")
		require.NoError(t, err)
		_, err = c.Reload(t.Context(), l)
		return err
	}
	assert.EqualError(t, reload("refused: no such device\n"),
		"the config is valid, but cannot be applied here; the previous config keeps running: no such device")
	b.runs(oldText)

	b.write("etc/ringway.yaml", newText)
	require.NoError(t, reload(newText))
	b.runs(newText)

	require.NoError(t, b.apply(c, oldText, time.Minute))
	assert.ErrorContains(t, reload(newText), "a config is waiting for confirmation")
	b.runs(oldText)
}
