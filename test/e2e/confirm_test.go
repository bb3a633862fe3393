package e2e

import (
	"encoding/json"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/test/lab"
	"ringway/test/polltest"
)

// box is an edge whose config is changed from afar.
type box struct {
	*testing.T
	l *lab.Lab
	*lab.Edge
	good string
}

// cutOff gives a config that is right in every word and reaches nobody: another address at a provider that
// has none such.
func (b *box) cutOff() string {
	b.Helper()
	bad := strings.NewReplacer("198.51.100.2/24", "192.0.2.2/24", "gateway: 198.51.100.1",
		"gateway: 192.0.2.1").Replace(b.good)
	require.NotEqual(b, b.good, bad)
	return bad
}

// apply writes text beside the config and applies it.
func (b *box) apply(text string, args ...string) (string, error) {
	b.Helper()
	require.NoError(b, os.WriteFile(b.Path("/etc/ringway/new.yaml"), []byte(text), 0o600))
	return b.Ringway(within(b.T, 20*time.Second), append([]string{"apply", "/etc/ringway/new.yaml"}, args...)...)
}

type confirmation struct {
	State  string
	LeftS  int `json:"left_s"`
	Reason string
}

// confirmation is what a script reads of the status.
func (b *box) confirmation() *confirmation {
	b.Helper()
	out, err := b.Ringway(within(b.T, 10*time.Second), "status", "--json")
	require.NoError(b, err)
	var st struct{ Confirmation *confirmation }
	require.NoError(b, json.Unmarshal([]byte(out), &st))
	return st.Confirmation
}

func (b *box) said() string {
	b.Helper()
	out, err := b.Ringway(within(b.T, 10*time.Second), "status")
	require.NoError(b, err)
	return out
}

// isCutOff demands the config that cuts off, in the kernel and on the disk.
func (b *box) isCutOff() {
	b.Helper()
	out, err := b.Edge.Run(b.Context(), "ip", "-o", "-4", "addr", "show", "dev", "wan0")
	require.NoError(b, err)
	assert.Contains(b, out, "192.0.2.2/24")
	assert.NotContains(b, out, "198.51.100.2/24")
	text, err := b.Config()
	require.NoError(b, err)
	assert.Equal(b, b.cutOff(), string(text))
	_, err = b.l.Host(lab.PCA).Run(b.Context(), "ping", "-n", "-c", "1", "-W", "1", "10.2.20.10")
	assert.Error(b, err, "it reaches the far site")
}

// comesBack waits until the far site is reached again, and demands the config that was before.
func (b *box) comesBack(limit time.Duration, why string) {
	b.Helper()
	require.NoError(b, b.l.Host(lab.PCA).WaitReach(within(b.T, limit), "10.2.20.10", "0"))
	// The file goes first, what runs second, the record last.
	polltest.Require(b, func() bool { c := b.confirmation(); return c != nil && c.State == "undone" },
		10*time.Second, 50*time.Millisecond)
	out, err := b.Edge.Run(b.Context(), "ip", "-o", "-4", "addr", "show", "dev", "wan0")
	require.NoError(b, err)
	assert.Contains(b, out, "198.51.100.2/24")
	assert.NotContains(b, out, "192.0.2.2/24")
	text, err := b.Config()
	require.NoError(b, err)
	assert.Equal(b, b.good, string(text))
	assert.Equal(b, why, b.confirmation().Reason)
	assert.Contains(
		b, b.said(), "\nCONFIG ROLLED BACK: "+why+". The previous config is running; the rejected one is kept "+
			"in /var/lib/ringway/refused.yaml\n")
	log, err := os.ReadFile(b.Log())
	require.NoError(b, err)
	assert.Regexp(
		b, `level=ERROR msg="CONFIG ROLLED BACK: the previous config is running" reason="`+regexp.QuoteMeta(
			why), string(log))
	kept, err := os.ReadFile(b.Path("/var/lib/ringway/refused.yaml"))
	require.NoError(b, err)
	assert.Equal(b, b.cutOff(), string(kept))
	assert.NoFileExists(b, b.Path("/var/lib/ringway/trial.json"))
}

// starts starts the daemon again; a box that is cut off shakes no hands.
func (b *box) starts() {
	b.Helper()
	require.NoError(b, b.Start(b.Context()))
	polltest.Require(b, func() bool { s, err := b.Status(b.Context()); return err == nil && s.Ready },
		20*time.Second, 50*time.Millisecond)
}

// A branch far away is given a config that cuts it off. Nobody can confirm it; it comes back by itself, also
// where the daemon is killed or the box is booted meanwhile. One that is confirmed stays, and a call does not
// notice.
func TestLongAConfigThatCutsOffIsUndone(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty})
	e := l.Edge("a")
	text, err := e.Config()
	require.NoError(t, err)
	for _, c := range []struct {
		name string
		run  func(*box)
	}{
		{"at the deadline", func(b *box) {
			start := time.Now()
			out, err := b.apply(b.cutOff(), "--confirm", "5s")
			require.NoError(b, err)
			assert.Regexp(b, `(?m)^ip -4 address add 192\.0\.2\.2/24 .*dev wan0$`, out, "the plan")
			assert.Contains(b, out, "\n# applied; rolled back in 5s unless `ringway confirm` follows\n")
			assert.Contains(b, b.said(), "\nNOT CONFIRMED: rollback to the previous config in ")
			b.isCutOff()
			b.comesBack(30*time.Second, "it was not confirmed in time")
			assert.GreaterOrEqual(b, time.Since(start), 5*time.Second)
			_, err = b.Ringway(b.Context(), "confirm")
			assert.ErrorContains(b, err, "too late: the config was rolled back (it was not confirmed in time)")
		}},
		{"at the deadline, though the daemon is killed", func(b *box) {
			_, err := b.apply(b.cutOff(), "--confirm", "10s")
			require.NoError(b, err)
			require.NoError(b, b.Kill(within(b.T, 5*time.Second)))
			b.starts()
			if w := b.confirmation(); assert.NotNil(b, w) {
				assert.Equal(b, "waiting", w.State)
				assert.LessOrEqual(b, w.LeftS, 10)
			}
			b.isCutOff()
			b.comesBack(30*time.Second, "it was not confirmed in time")
		}},
		{"at the next boot", func(b *box) {
			_, err := b.apply(b.cutOff(), "--confirm", "1h")
			require.NoError(b, err)
			b.isCutOff()
			_, err = b.Ringway(within(b.T, 15*time.Second), "stop") // a boot forgets what the kernel holds
			require.NoError(b, err)
			record := b.Path("/var/lib/ringway/trial.json")
			boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
			require.NoError(b, err)
			r, err := os.ReadFile(record)
			require.NoError(b, err)
			earlier := strings.Replace(string(r), strings.TrimSpace(string(boot)), "5a9b1c52-0000-4000-8000-000000000000", 1)
			require.NotEqual(b, string(r), earlier)
			require.NoError(b, os.WriteFile(record, []byte(earlier), 0o600))
			b.starts()
			b.comesBack(30*time.Second, "the machine rebooted before it was confirmed")
		}},
		{"or stays whole, where the daemon is killed while it applies it", func(b *box) {
			record := b.Path("/var/lib/ringway/trial.json")
			require.NoError(b, os.WriteFile(b.Path("/etc/ringway/new.yaml"), []byte(b.cutOff()), 0o600))
			for round := range 5 {
				done := make(chan error, 1)
				go func() {
					_, err := b.Ringway(b.Context(), "apply", "--confirm", "1h", "/etc/ringway/new.yaml")
					done <- err
				}()
				polltest.Require(b, func() bool { _, err := os.Stat(record); return err == nil }, 10*time.Second,
					time.Duration(round+1)*time.Millisecond)
				require.NoError(b, b.Kill(within(b.T, 5*time.Second)))
				err := <-done
				b.starts()
				c := b.confirmation()
				require.NotNil(b, c)
				b.Logf("killed, the command said: %v; then %s (%s)", err, c.State, c.Reason)
				if c.State == "waiting" {
					b.isCutOff()
					_, err := b.Ringway(within(b.T, 15*time.Second), "confirm", "--undo")
					require.NoError(b, err)
					b.comesBack(30*time.Second, "rolled back on request")
				} else {
					b.comesBack(30*time.Second, "the daemon ended while applying it")
				}
			}
		}},
		{"on demand", func(b *box) {
			_, err := b.apply(b.cutOff(), "--confirm", "1h")
			require.NoError(b, err)
			for _, more := range [][]string{{"reload"}, {"apply"}, {"apply", "--confirm", "1m"}} {
				_, err = b.Ringway(b.Context(), more...)
				assert.ErrorContains(b, err, "a config is waiting for confirmation, ", "%s", more)
			}
			out, err := b.Ringway(within(b.T, 15*time.Second), "confirm", "--undo")
			require.NoError(b, err)
			assert.Equal(b, "the previous config runs again\n", out)
			b.comesBack(30*time.Second, "rolled back on request")
		}},
		{"not when it is confirmed", func(b *box) {
			calls := talking(b.T, b.l, 2, 9*time.Second) // longer than the trial
			narrow := strings.Replace(b.good, "uplink: 20mbit", "uplink: 18mbit", 1)
			require.NoError(b, b.WriteConfig([]byte(narrow))) // edited in its place
			out, err := b.Ringway(within(b.T, 20*time.Second), "apply", "--confirm", "5s")
			require.NoError(b, err)
			assert.Contains(b, out, "\ntc class ")
			out, err = b.Ringway(b.Context(), "confirm")
			require.NoError(b, err)
			assert.Equal(b, "the config stays\n", out)
			calls.unharmed()
			assert.Nil(b, b.confirmation())
			text, err := b.Config()
			require.NoError(b, err)
			assert.Equal(b, narrow, string(text))
			out, err = b.Ringway(b.Context(), "reload")
			require.NoError(b, err)
			assert.Equal(b, "nothing to change\n", out, "what runs is what the file says")
			out, err = b.apply(b.good)
			require.NoError(b, err)
			assert.True(b, strings.HasSuffix(out, "\n# applied\n"), "for good")
		}},
		{"not applied at all where it is wrong", func(b *box) {
			_, err := b.apply(b.good+"nonsense: true\n", "--confirm", "5s")
			assert.ErrorContains(b, err, "/etc/ringway/new.yaml:")
			assert.ErrorContains(b, err, "nonsense: unknown key")
			assert.Nil(b, b.confirmation())
		}},
	} {
		if !t.Run(c.name, func(t *testing.T) { c.run(&box{t, l, e, string(text)}) }) {
			return // what is left of it would be the next one's
		}
	}
}
