package lab

import (
	"bytes"
	"cmp"
	"context"
	"embed"
	"encoding/csv"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ringway/test/lab/host"
)

//go:embed scenarios/*.xml
var scenarios embed.FS

// How calls are placed.
const (
	rampTime  = 2 * time.Second        // calls start spread over this time
	hangUp    = 500 * time.Millisecond // from the end of the media to the BYE, so that the last packets arrive
	patience  = 45 * time.Second       // for signalling that has to be retransmitted
	callerRTP = 0x0a0a0a0a             // SSRCs of the two directions
	calleeRTP = 0x0b0b0b0b
	phoneNice = -10
)

// Calls are calls in progress from phone-a to phone-b.
type Calls struct {
	Placed   int // requested
	Started  time.Time
	pair     *Pair
	caller   *host.Process
	callee   *host.Process
	ramp     time.Duration
	duration time.Duration
}

// CallResult is SIPp's own count.
type CallResult struct {
	Placed    int
	Completed int
	Refused   int    // by a box on the way, with 488 or 503
	Why       string // SIPp's first error, where not all completed
}

// Dialing is how calls are placed. The zero value: over UDP to phone-b, in the overlay's family.
type Dialing struct {
	Transport string // SIPp's: u1 (UDP), t1 (one TCP connection for all calls), tn (one for each)
	Family    Family
	Ramp      time.Duration // calls start spread over this time; default 2 s
	// Outside: the provider's host answers, at its address on berlin's WAN, and sends media back where it came from.
	Outside bool
}

func (d Dialing) fill(p *Pair) Dialing {
	d.Transport, d.Family, d.Ramp = cmp.Or(d.Transport, "u1"), cmp.Or(d.Family, p.inner()), cmp.Or(d.Ramp, rampTime)
	return d
}

// callee is the host that answers, its address and its part of the scenario.
func (d Dialing) callee(p *Pair) (h *Host, address, role string) {
	if d.Outside {
		return p.Host(Provider), sides[0].wan.of(p.outer()).remote, "echo"
	}
	return p.Host(PhoneB), sides[1].voice.of(d.Family).remote, "callee"
}

// args are SIPp's for this end of the calls.
func (d Dialing) args(role string) []string {
	args := []string{"-t", d.Transport, "-max_socket", strconv.Itoa(2 * maxCalls)}
	if role == "echo" {
		args = append(args, "-rtp_echo")
	}
	return args
}

// StartCalls places n calls of the given duration; they start within two seconds.
func (p *Pair) StartCalls(ctx context.Context, n int, duration time.Duration) (*Calls, error) {
	return p.Dial(ctx, n, duration, Dialing{})
}

// Dial places calls like StartCalls, in another way.
func (p *Pair) Dial(ctx context.Context, n int, duration time.Duration, d Dialing) (*Calls, error) {
	d = d.fill(p)
	c := &Calls{Placed: n, pair: p, ramp: d.Ramp, duration: duration}
	recording, err := readRecording()
	if err != nil {
		return nil, err
	}
	caller := p.Host(PhoneA)
	callee, calleeAddr, role := d.callee(p)
	callerAddr := sides[0].voice.of(d.Family).remote
	if err := writeScenario(callee, role, recording, duration, calleeRTP); err != nil {
		return nil, err
	}
	if err := writeScenario(caller, "caller", recording, duration, callerRTP); err != nil {
		return nil, err
	}
	c.callee, err = sipp(callee, role, calleeAddr, duration, append(d.args(role), "-m", strconv.Itoa(n))...)
	if err != nil {
		return nil, err
	}
	if err := waitListens(ctx, callee, c.callee, sipPort); err != nil {
		c.Stop()
		return nil, err
	}
	c.Started = time.Now()
	// -r calls every -rp milliseconds: all of them within the ramp, evenly.
	c.caller, err = sipp(
		caller,
		"caller",
		callerAddr,
		duration,
		append(
			d.args("caller"),
			"-m", strconv.Itoa(n), "-l", strconv.Itoa(n),
			"-r", strconv.Itoa(n), "-rp", strconv.FormatInt(d.Ramp.Milliseconds(), 10),
			"-s", "phone-b", bracketed(calleeAddr))...,
	)
	if err != nil {
		c.Stop()
		return nil, err
	}
	return c, nil
}

// writeScenario writes the scenario and the RTP that SIPp plays on this host.
func writeScenario(h *host.Host, role string, recording []byte, duration time.Duration, ssrc uint32) error {
	rtp, err := voiceFile(recording, duration, ssrc)
	if err != nil {
		return err
	}
	rtpPath := MachineDir + "/" + role + ".pcap"
	xml, err := scenarios.ReadFile("scenarios/" + role + ".xml")
	if err != nil {
		return err
	}
	talk := (duration + hangUp).Milliseconds()
	text := strings.NewReplacer("RTP_FILE", rtpPath, "TALK_MS", strconv.FormatInt(talk, 10)).Replace(string(xml))
	if err := os.WriteFile(h.Path(rtpPath), rtp, 0o644); err != nil {
		return fmt.Errorf("write RTP for %s: %w", h.Name, err)
	}
	if err := os.WriteFile(h.Path(MachineDir+"/"+role+".xml"), []byte(text), 0o644); err != nil {
		return fmt.Errorf("write the SIPp scenario for %s: %w", h.Name, err)
	}
	// The count of an earlier round must not be mistaken for this one's.
	if err := os.Remove(h.Path(MachineDir + "/" + role + ".csv")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func sipp(h *host.Host, role, address string, duration time.Duration, args ...string) (*host.Process, error) {
	limit := strconv.Itoa(int((rampTime + duration + 2*patience) / time.Second))
	args = append([]string{"-sf", MachineDir + "/" + role + ".xml", "-nostdin",
		"-i", bracketed(address), "-p", strconv.Itoa(sipPort), "-mi", bracketed(address), "-mp", strconv.Itoa(mediaPort),
		"-cid_str", role + "-%u-%p@%s",
		"-timeout", limit + "s",
		"-watchdog_interval", "0", // it would give up on a busy machine, and this one is meant to be busy
		"-trace_stat", "-stf", MachineDir + "/" + role + ".csv", "-fd", "1",
		"-trace_err", "-error_file", MachineDir + "/" + role + ".err"}, args...)
	cmd := h.Command("sipp", args...)
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	cmd.Stdout = null // its screens are useless in a file
	p, err := h.Spawn("sipp-"+role, cmd)
	if err != nil {
		return nil, err
	}
	// A real phone is a machine of its own: the bulk traffic on this one must not starve it. Threads that it
	// starts inherit the priority.
	if err := unix.Setpriority(unix.PRIO_PROCESS, cmd.Process.Pid, phoneNice); err != nil {
		return nil, fmt.Errorf("set the priority of SIPp on %s: %w", h.Name, err)
	}
	return p, nil
}

// bracketed is an address in the form that SIPp expects: [2001:db8::1] for IPv6.
func bracketed(address string) string {
	if strings.Contains(address, ":") {
		return "[" + address + "]"
	}
	return address
}

// waitListens waits until a port of UDP or TCP is bound on the host.
func waitListens(ctx context.Context, h *host.Host, p *host.Process, port int) error {
	bound := fmt.Sprintf(":%04X ", port)
	for {
		for _, table := range []string{"udp", "udp6", "tcp", "tcp6"} {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", h.PID, table))
			if err != nil && !(strings.HasSuffix(table, "6") && errors.Is(err, os.ErrNotExist)) {
				return fmt.Errorf("see what listens on %s: %w", h.Name, err)
			}
			for line := range strings.Lines(string(text)) {
				// 0A is LISTEN; 07 is any socket of UDP.
				waits := strings.Contains(line, " 0A ") || strings.Contains(line, " 07 ")
				if waits && strings.Contains(line, bound) {
					return nil
				}
			}
		}
		select {
		case <-p.Ended:
			return fmt.Errorf("%s: SIPp ended (%v):\n%s", h.Name, p.Err(), p.LastWords())
		default:
		}
		if err := host.Pause(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// Ends is about when the last packet of media is sent, if signalling is quick.
func (c *Calls) Ends() time.Time { return c.Started.Add(c.ramp + c.duration) }

// Wait waits for the end of the last call and returns SIPp's own count. Failed calls are not an error.
func (c *Calls) Wait(ctx context.Context) (CallResult, error) {
	ctx, cancel := context.WithDeadlineCause(ctx, c.Ends().Add(3*patience), errors.New("SIPp does not end"))
	defer cancel()
	err := c.caller.Wait(ctx)
	if ctx.Err() != nil {
		c.Stop()
		return CallResult{Placed: c.Placed}, context.Cause(ctx)
	}
	// The callee now only waits for retransmitted requests.
	c.callee.Signal(unix.SIGTERM)
	h := c.pair.Host(PhoneA)
	r, readErr := readCalls(h.Path(MachineDir + "/caller.csv"))
	if readErr != nil {
		return r, fmt.Errorf("%s: %s: %w (SIPp: %v)\n%s", c.pair.Name, h.Name, readErr, err, c.caller.LastWords())
	}
	if r.Completed+r.Refused < r.Placed {
		r.Why = complaint(h.Path(MachineDir + "/caller.err"))
	}
	return r, nil
}

// complaint is the first error in SIPp's error file.
func complaint(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return "SIPp does not say why"
	}
	_, text, _ = bytes.Cut(text, []byte("events occurred:"))
	line := strings.Join(strings.Fields(string(bytes.ToValidUTF8(text, nil))), " ")
	if len(line) > 300 {
		line = line[:300] + " …"
	}
	return line
}

// Stop aborts the calls.
func (c *Calls) Stop() {
	for _, p := range []*host.Process{c.caller, c.callee} {
		if p != nil {
			p.Signal(unix.SIGKILL)
		}
	}
}

// readCalls reads the last line of SIPp's statistics.
func readCalls(path string) (CallResult, error) {
	f, err := os.Open(path)
	if err != nil {
		return CallResult{}, fmt.Errorf("read SIPp's statistics: %w", err)
	}
	defer f.Close()
	return parseCalls(f)
}

func parseCalls(f interface{ Read([]byte) (int, error) }) (CallResult, error) {
	var r CallResult
	table := csv.NewReader(f)
	table.Comma = ';'
	table.FieldsPerRecord = -1
	table.LazyQuotes = true
	rows, err := table.ReadAll()
	if err != nil {
		return r, fmt.Errorf("read SIPp's statistics: %w", err)
	}
	if len(rows) < 2 {
		return r, errors.New("SIPp wrote no statistics")
	}
	last := rows[len(rows)-1]
	for _, want := range []struct {
		column   string
		into     *int
		optional bool // a scenario without it counts nothing there
	}{
		{"OutgoingCall(C)", &r.Placed, false}, {"SuccessfulCall(C)", &r.Completed, false},
		{"GenericCounter1(C)", &r.Refused, true},
	} {
		found := false
		for i, name := range rows[0] {
			if name == want.column && i < len(last) {
				if *want.into, err = strconv.Atoi(last[i]); err != nil {
					return r, fmt.Errorf("read SIPp's statistics: %s: %w", name, err)
				}
				found = true
			}
		}
		if !found && !want.optional {
			return r, fmt.Errorf("SIPp's statistics have no column %s", want.column)
		}
	}
	r.Completed -= r.Refused // its scenario ended as it should
	return r, nil
}
