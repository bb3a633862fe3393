package appliance

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"ringway/appliance/config"
)

// How a config is put in the place of another one, so that at any moment, whatever is killed or loses its power, the
// next start ends in the old one or the new one, whole:
//
//  1. the record (trial.json): both texts, the boot, the deadline; phase applying
//  2. the file on the disk becomes the new one
//  3. what runs becomes the new one
//  4. phase waiting; or, where nothing is waited for, the record goes: the new one is kept
//  5. `ringway confirm`: the record goes
//
// and back, at the deadline, or where step 2 or 3 fails:
//
//  6. phase undoing
//  7. the file on the disk becomes the old one
//  8. what runs becomes the old one
//  9. the record goes
//
// The record is the truth. A start that finds one goes to step 6, but in one case: it is waiting, the machine has not been
// booted since, and the deadline is to come. Then the new one runs on, and so does the time: it is counted by the boot's
// clock, since a box without a clock battery knows no other that does not jump.

type phase string

const (
	applying phase = "applying" // steps 1 to 4
	waiting  phase = "waiting"  // for a confirmation
	undoing  phase = "undoing"  // steps 6 to 9
)

// record is trial.json.
type record struct {
	Phase    phase         `json:"phase"`
	Reason   string        `json:"reason,omitempty"` // why it is undone
	Boot     string        `json:"boot"`             // the kernel's boot_id
	Deadline time.Duration `json:"deadline"`         // since boot, nanoseconds
	Config   string        `json:"config"`           // path of the config file
	Old      fileImage     `json:"old"`
	New      fileImage     `json:"new"`
}

// loaded is a config with all that it takes to run it.
type loaded struct {
	text []byte
	cfg  *config.Config
	keys secrets
}

// box is what runs configs: the daemon.
type box interface {
	// load checks a text for the path of the config file and reads its secrets; problems call it name, or, where that is
	// empty, by its path. Nothing is changed.
	load(text []byte, name string) (loaded, error)
	// runningLocked is what was taken last.
	runningLocked() loaded
	// takeLocked makes the machine run l. An error means that it cannot be made to run anything; what else is
	// wrong is a problem of its own, tried again by and by.
	takeLocked(ctx context.Context, l loaded) ([]string, error)
	// tryLocked does so, but a problem that was not there before is an error, too.
	tryLocked(ctx context.Context, l loaded) ([]string, error)
}

// trial is the one change of config that may be under way. Whoever calls holds the box's lock.
type trial struct {
	box     box
	log     *slog.Logger
	config  string // path of the config file
	path    string // of the record
	refused string // where a config is put that was undone
	boot    func() (string, error)
	now     func() time.Duration // since boot
	step    func(string)         // told each step that is done; tests end the program there

	rec    *record       // nil: nothing is under way
	old    loaded        // what rec.Old loads as; cfg is nil where it does not
	again  time.Duration // when an undoing that failed is tried again
	failed error         // why it did
	undone string        // why the last one was undone; empty: it was not
}

// How long a confirmation may be waited for: long enough to type it, short enough that somebody remembers.
const (
	MinConfirm = 5 * time.Second
	MaxConfirm = 24 * time.Hour
)

const undoAgainIn = 30 * time.Second

func newTrial(b box, p Paths, configPath string, log *slog.Logger) *trial {
	return &trial{box: b, log: log, config: configPath, path: p.trial(), refused: p.refused(), boot: bootID, now: sinceBoot, step: func(string) {}}
}

func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("tell this boot from the next: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// sinceBoot counts suspended time as well, and is never set.
func sinceBoot() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // every Linux since 2.6.39 has it
	}
	return time.Duration(ts.Nano())
}

// begin finds the config to start with: the file's, or the one that the record says. It changes nothing, so the
// caller need not hold the lock yet; startLocked must follow under it.
func (t *trial) begin() (loaded, error) {
	t.rec, t.old = nil, loaded{}
	rec, err := readRecord(t.path)
	switch {
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0: // who may not read it may not run anything either
	case err != nil:
		t.log.Error("the record of a change of config cannot be read; the file is taken as it stands", "error", err)
	case rec != nil && rec.Config != t.config:
		t.log.Warn("a change of another config file was under way and is left alone", "file", rec.Config)
	default:
		t.rec = rec
	}
	if t.rec == nil {
		text, err := config.Read(t.config)
		if err != nil {
			return loaded{}, err
		}
		return t.box.load(text, "")
	}
	oldErr := t.loadOld()
	if oldErr != nil {
		t.log.Error("there is no way back from a config that is not confirmed", "error", oldErr)
	}
	if reason := t.over(); reason != "" {
		t.rec.Phase, t.rec.Reason = undoing, reason
	} else {
		l, err := t.box.load(t.rec.New.Text, "")
		if err == nil || oldErr != nil {
			return l, err
		}
		t.rec.Phase, t.rec.Reason = undoing, "it does not load any more: "+err.Error()
	}
	if oldErr == nil {
		return t.old, nil
	}
	// The worse of two evils is a box that runs nothing.
	if l, err := t.box.load(t.rec.New.Text, ""); err == nil {
		return l, nil
	}
	return loaded{}, oldErr
}

// over says why the config of the record must not run any more; empty: it may.
func (t *trial) over() string {
	switch boot, err := t.boot(); {
	case t.rec.Phase == undoing:
		return t.rec.Reason
	case t.rec.Phase == applying:
		return "the daemon ended while it was being applied"
	case err != nil:
		return err.Error()
	case boot != t.rec.Boot:
		return "the machine was booted before it was confirmed"
	case t.now() >= t.rec.Deadline:
		return "it was not confirmed in time"
	}
	return ""
}

func (t *trial) loadOld() error {
	l, err := t.box.load(t.rec.Old.Text, "")
	if err != nil {
		t.old = loaded{}
		return fmt.Errorf("the config before: %w", err)
	}
	t.old = l
	return nil
}

// startLocked makes the machine run l, which begin found.
func (t *trial) startLocked(ctx context.Context, l loaded) error {
	undo := func(reason string) error { // a file that cannot be put back keeps nothing from running
		_, err := t.undoLocked(ctx, reason)
		return err
	}
	switch {
	case t.rec == nil:
		_, err := t.box.takeLocked(ctx, l)
		return err
	case t.rec.Phase == waiting:
		if _, err := t.box.takeLocked(ctx, l); err != nil {
			return undo("it cannot be applied: " + err.Error())
		}
		t.log.Warn("this config is not confirmed; without `ringway confirm` the one before comes back", "in", t.left().Round(time.Second))
		return nil
	case t.old.cfg == nil: // begin has said so, and l is the one that is to be undone
		_, err := t.box.takeLocked(ctx, l)
		t.failed, t.again = t.loadOld(), t.now()+undoAgainIn
		return err
	}
	return undo(t.rec.Reason)
}

// pendingError refuses what cannot be while a config waits.
type pendingError struct{ state string }

func (e pendingError) Error() string {
	return e.state + ": first keep it (`ringway confirm`) or take it back (`ringway confirm --undo`)"
}

// busy says why nothing else may change the config now.
func (t *trial) busy() error {
	switch {
	case t.rec == nil:
		return nil
	case t.rec.Phase == waiting:
		return pendingError{fmt.Sprintf("a config waits for its confirmation, %s are left", t.left().Round(time.Second))}
	}
	return pendingError{fmt.Sprintf("a config is being undone (%s), which does not succeed: %v", t.rec.Reason, t.failed)}
}

func (t *trial) left() time.Duration { return max(t.rec.Deadline-t.now(), 0) }

// applyLocked puts text in the place of what runs: for good, or, with wait, until the deadline. What cannot be applied is
// undone at once. name is what problems call the text.
func (t *trial) applyLocked(ctx context.Context, text []byte, name string, wait time.Duration) ([]string, error) {
	if err := t.busy(); err != nil {
		return nil, err
	}
	if wait != 0 && (wait < MinConfirm || wait > MaxConfirm) {
		return nil, fmt.Errorf("a confirmation within %s cannot be waited for (allowed: %s to %s)", wait, MinConfirm, MaxConfirm)
	}
	next, err := t.box.load(text, name)
	if err != nil {
		return nil, err
	}
	rec, err := t.prepare(text, wait)
	if err != nil {
		return nil, err
	}
	t.rec, t.old, t.undone = rec, t.box.runningLocked(), ""
	t.step("recorded")
	lines, err := t.swapLocked(ctx, next, wait > 0)
	if err != nil {
		fileErr, runErr := t.undoLocked(ctx, "it could not be applied: "+err.Error())
		return nil, errors.Join(fmt.Errorf("%w (the config is kept in %s)", errNotApplied(err), t.refused), fileErr, runErr)
	}
	return lines, nil
}

// prepare is step 1. After an error of it nothing is changed.
func (t *trial) prepare(text []byte, wait time.Duration) (*record, error) {
	boot, err := t.boot()
	if err != nil {
		return nil, err
	}
	file := t.file()
	if err := writable(filepath.Dir(file)); err != nil {
		return nil, err
	}
	now, err := readImage(file)
	if errors.Is(err, fs.ErrNotExist) {
		now, err = fileImage{Mode: 0o644, UID: -1, GID: -1}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look at the config file: %w", err)
	}
	rec := &record{Phase: applying, Boot: boot, Deadline: t.now() + wait, Config: t.config, Old: now, New: now}
	// What ran is not what the file says, where that was edited since.
	rec.Old.Text, rec.New.Text = t.box.runningLocked().text, text
	t.step("checked")
	if err := writeFileAtomic(t.refused, text, 0o600); err != nil {
		return nil, err
	}
	t.step("laid by")
	if err := t.save(rec); err != nil {
		_ = os.Remove(t.path) // no later start is to go back
		return nil, err
	}
	return rec, nil
}

// swapLocked is steps 2 to 4.
func (t *trial) swapLocked(ctx context.Context, next loaded, confirm bool) ([]string, error) {
	if now, err := readImage(t.file()); err != nil || !now.same(t.rec.New) {
		if err := t.rec.New.write(t.file()); err != nil {
			return nil, err
		}
	}
	t.step("file replaced")
	lines, err := t.box.tryLocked(ctx, next)
	if err != nil {
		return nil, err
	}
	t.step("taken")
	if !confirm {
		return lines, t.keep()
	}
	t.rec.Phase = waiting
	err = t.save(t.rec)
	t.step("waiting")
	return lines, err
}

// errNotApplied says what became of a config that is good and does not work here.
func errNotApplied(err error) error {
	return fmt.Errorf("the config is valid, but cannot be applied here; what ran before runs on: %w", err)
}

// writable tells beforehand what the way back would fail at.
func writable(folder string) error {
	if err := unix.Access(folder, unix.W_OK); err != nil {
		return fmt.Errorf("the daemon has to put the config file back and cannot write %s: %w (a unit of systemd's wants ReadWritePaths=%s)", folder, err, folder)
	}
	return nil
}

// keep makes what runs the config for good.
func (t *trial) keep() error {
	if err := t.forget(); err != nil {
		return err
	}
	_ = os.Remove(t.refused) // it is the config now; left over it harms nobody
	t.undone = ""
	return nil
}

// confirmLocked keeps a config that waits.
func (t *trial) confirmLocked() error {
	switch {
	case t.rec == nil && t.undone != "":
		return fmt.Errorf("too late: the config was undone (%s); it is kept in %s", t.undone, t.refused)
	case t.rec == nil:
		return errors.New("no config waits for a confirmation")
	case t.rec.Phase == undoing && t.old.cfg != nil:
		return fmt.Errorf("too late: the config is being undone (%s): %w", t.rec.Reason, t.failed)
	}
	if err := t.keep(); err != nil {
		return fmt.Errorf("the config still waits: %w", err)
	}
	t.log.Info("config confirmed; it stays")
	return nil
}

// undoAskedLocked goes back because somebody says so.
func (t *trial) undoAskedLocked(ctx context.Context) error {
	if t.rec == nil {
		return errors.New("no config waits for a confirmation: nothing is to be undone")
	}
	fileErr, runErr := t.undoLocked(ctx, "it was taken back")
	return errors.Join(fileErr, runErr)
}

// lookLocked goes back once the deadline has passed.
func (t *trial) lookLocked(ctx context.Context) {
	switch {
	case t.rec == nil:
	case t.rec.Phase == waiting && t.now() >= t.rec.Deadline:
		_, _ = t.undoLocked(ctx, "it was not confirmed in time") // said and tried again there
	case t.rec.Phase == undoing && t.now() >= t.again:
		_, _ = t.undoLocked(ctx, t.rec.Reason)
	}
}

// undoLocked goes back, steps 6 to 9. Where the file or what runs cannot be put back, the record stays and it is tried again.
func (t *trial) undoLocked(ctx context.Context, reason string) (fileErr, runErr error) {
	rec := t.rec
	rec.Phase, rec.Reason = undoing, reason
	// A disk that is full is no reason not to go back: a start that finds an earlier phase comes here as well, at the deadline at the latest.
	saveErr := t.save(rec)
	t.step("undoing")
	if t.old.cfg == nil {
		runErr = t.loadOld()
	}
	if runErr == nil {
		fileErr = t.putFileBack()
		t.step("file back")
		_, runErr = t.box.takeLocked(ctx, t.old)
		t.step("taken back")
	}
	if fileErr == nil && runErr == nil {
		fileErr = t.forget()
	}
	if t.failed = errors.Join(fileErr, runErr); t.failed != nil {
		t.again = t.now() + undoAgainIn
		t.log.Error("the config is to be undone, which does not succeed; it is tried again", "why", reason, "error", errors.Join(t.failed, saveErr))
		return fileErr, runErr
	}
	t.undone = reason
	t.log.Error("CONFIG UNDONE: the one before runs again", "why", reason, "kept", t.refused, "file", t.config)
	return nil, nil
}

// putFileBack makes the file on the disk the old one. What somebody wrote there meanwhile is laid by.
func (t *trial) putFileBack() error {
	file := t.file()
	now, err := readImage(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look at the config file: %w", err)
	}
	if err == nil && now.same(t.rec.Old) {
		return nil
	}
	if err == nil && !bytes.Equal(now.Text, t.rec.New.Text) && !bytes.Equal(now.Text, t.rec.Old.Text) {
		if err := writeFileAtomic(t.refused, now.Text, 0o600); err != nil {
			return err
		}
	}
	return t.rec.Old.write(file)
}

// file is the config file itself, where its path is a link.
func (t *trial) file() string {
	if real, err := filepath.EvalSymlinks(t.config); err == nil {
		return real
	}
	return t.config
}

func (t *trial) save(rec *record) error {
	b, err := json.Marshal(rec)
	if err != nil {
		return err
	}
	return writeFileAtomic(t.path, append(b, '\n'), 0o600)
}

func (t *trial) forget() error {
	if err := os.Remove(t.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("forget the change of config: %w", err)
	}
	if err := syncFolder(filepath.Dir(t.path)); err != nil {
		return fmt.Errorf("forget the change of config: %w", err)
	}
	t.rec, t.old = nil, loaded{}
	t.step("forgotten")
	return nil
}

func readRecord(path string) (*record, error) {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	switch r.Phase {
	case applying, waiting, undoing:
		return &r, nil
	}
	return nil, fmt.Errorf("%s: unknown phase %q", path, r.Phase)
}

// readImage reads a file with its rights.
func readImage(path string) (fileImage, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return fileImage{}, err
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return fileImage{}, err
	}
	f := fileImage{Text: text, Mode: fi.Mode().Perm(), UID: -1, GID: -1}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		f.UID, f.GID = int(st.Uid), int(st.Gid)
	}
	return f, nil
}

func (f fileImage) same(o fileImage) bool {
	return bytes.Equal(f.Text, o.Text) && f.Mode == o.Mode && f.UID == o.UID && f.GID == o.GID
}

// ConfirmationStatus is a config that is not confirmed, or was not.
type ConfirmationStatus struct {
	State  string `json:"state"`            // waiting, undoing (which does not succeed), undone
	LeftS  int    `json:"left_s"`           // whole seconds until the config before comes back, while waiting
	Reason string `json:"reason,omitempty"` // why it is undone
	Kept   string `json:"kept,omitempty"`   // where the undone one can be read
}

// status is nil where there is nothing to say.
func (t *trial) status() *ConfirmationStatus {
	switch {
	case t.rec == nil && t.undone != "":
		return &ConfirmationStatus{State: "undone", Reason: t.undone, Kept: t.refused}
	case t.rec == nil:
		return nil
	case t.rec.Phase == waiting:
		return &ConfirmationStatus{State: string(waiting), LeftS: int((t.left() + time.Second - 1) / time.Second)}
	}
	return &ConfirmationStatus{State: string(undoing), Reason: fmt.Sprintf("%s: %v", t.rec.Reason, t.failed), Kept: t.refused}
}

func (s ConfirmationStatus) String() string {
	switch s.State {
	case string(waiting):
		return fmt.Sprintf("NOT CONFIRMED: the config before comes back in %s unless `ringway confirm` is given", time.Duration(s.LeftS)*time.Second)
	case string(undoing):
		return fmt.Sprintf("UNDOING the config does not succeed and is tried again: %s", s.Reason)
	}
	return fmt.Sprintf("CONFIG UNDONE: %s. The one before runs again; the one undone is kept in %s", s.Reason, s.Kept)
}
