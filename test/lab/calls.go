package lab

import (
	"bytes"
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
	rampTime  = 2 * time.Second        // calls do not begin all at once
	hangUp    = 500 * time.Millisecond // from the end of the media to the BYE, so that no packet is cut off
	patience  = 45 * time.Second       // for signalling that has to be sent again and again
	callerRTP = 0x0a0a0a0a             // SSRCs of the two directions
	calleeRTP = 0x0b0b0b0b
	phoneNice = -10
)

// Calls are calls from phone-a to phone-b that are going on.
type Calls struct {
	Placed   int // how many were asked for
	Started  time.Time
	pair     *Pair
	caller   *host.Process
	callee   *host.Process
	duration time.Duration
}

// CallResult is what SIPp says of its calls.
type CallResult struct {
	Placed    int
	Completed int
	Why       string // SIPp's first complaint, where not all completed
}

// StartCalls places n calls that last duration each; they begin within two seconds.
func (p *Pair) StartCalls(ctx context.Context, n int, duration time.Duration) (*Calls, error) {
	c := &Calls{Placed: n, pair: p, duration: duration}
	recording, err := readRecording()
	if err != nil {
		return nil, err
	}
	callee, caller := p.Host(PhoneB), p.Host(PhoneA)
	if err := writeScenario(callee, "callee", recording, duration, calleeRTP); err != nil {
		return nil, err
	}
	if err := writeScenario(caller, "caller", recording, duration, callerRTP); err != nil {
		return nil, err
	}
	calleeAddr, callerAddr := p.Address(PhoneB), p.Address(PhoneA)
	c.callee, err = sipp(callee, "callee", calleeAddr, duration, "-m", strconv.Itoa(n))
	if err != nil {
		return nil, err
	}
	if err := waitListens(ctx, callee, c.callee, sipPort); err != nil {
		return nil, err
	}
	c.Started = time.Now()
	// -r calls every -rp milliseconds: all of them within rampTime, evenly.
	c.caller, err = sipp(caller, "caller", callerAddr, duration, "-m", strconv.Itoa(n), "-l", strconv.Itoa(n),
		"-r", strconv.Itoa(n), "-rp", strconv.FormatInt(rampTime.Milliseconds(), 10), "-s", "phone-b", bracketed(calleeAddr))
	if err != nil {
		c.Stop()
		return nil, err
	}
	return c, nil
}

// writeScenario writes what SIPp needs on this host: the scenario and the RTP that it plays.
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
	// A count of an earlier round must not be taken for this one's.
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
		"-watchdog_interval", "0", // it would give up on a machine that is busy, and ours shall be
		"-trace_stat", "-stf", MachineDir + "/" + role + ".csv", "-fd", "1",
		"-trace_err", "-error_file", MachineDir + "/" + role + ".err"}, args...)
	cmd := h.Command("sipp", args...)
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	cmd.Stdout = null // its screens are of no use in a file
	p, err := h.Spawn("sipp-"+role, cmd)
	if err != nil {
		return nil, err
	}
	// A phone is a machine of its own: the bulk on this one must not keep it from talking. Threads it starts inherit it.
	if err := unix.Setpriority(unix.PRIO_PROCESS, cmd.Process.Pid, phoneNice); err != nil {
		return nil, fmt.Errorf("set the priority of SIPp on %s: %w", h.Name, err)
	}
	return p, nil
}

// bracketed is an address as SIPp wants it: [2001:db8::1] where it is one of IPv6.
func bracketed(address string) string {
	if strings.Contains(address, ":") {
		return "[" + address + "]"
	}
	return address
}

// waitListens waits until a UDP port is bound on the host.
func waitListens(ctx context.Context, h *host.Host, p *host.Process, port int) error {
	bound := fmt.Sprintf(":%04X ", port)
	for {
		for _, table := range []string{"udp", "udp6"} {
			text, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", h.PID, table))
			if err != nil && !(table == "udp6" && errors.Is(err, os.ErrNotExist)) {
				return fmt.Errorf("see what listens on %s: %w", h.Name, err)
			}
			if strings.Contains(string(text), bound) {
				return nil
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
func (c *Calls) Ends() time.Time { return c.Started.Add(rampTime + c.duration) }

// Wait waits until the last call is over and gives SIPp's own count. Calls that failed are no error.
func (c *Calls) Wait(ctx context.Context) (CallResult, error) {
	ctx, cancel := context.WithDeadlineCause(ctx, c.Ends().Add(3*patience), errors.New("SIPp does not end"))
	defer cancel()
	err := c.caller.Wait(ctx)
	if ctx.Err() != nil {
		c.Stop()
		return CallResult{Placed: c.Placed}, context.Cause(ctx)
	}
	// The callee only waits for repeated requests now.
	c.callee.Signal(unix.SIGTERM)
	h := c.pair.Host(PhoneA)
	r, readErr := readCalls(h.Path(MachineDir + "/caller.csv"))
	if readErr != nil {
		return r, fmt.Errorf("%s: %s: %w (SIPp: %v)\n%s", c.pair.Name, h.Name, readErr, err, c.caller.LastWords())
	}
	if r.Completed < r.Placed {
		r.Why = complaint(h.Path(MachineDir + "/caller.err"))
	}
	return r, nil
}

// complaint is the first thing that SIPp found wrong.
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

// Stop breaks the calls off.
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
		column string
		into   *int
	}{{"OutgoingCall(C)", &r.Placed}, {"SuccessfulCall(C)", &r.Completed}} {
		found := false
		for i, name := range rows[0] {
			if name == want.column && i < len(last) {
				if *want.into, err = strconv.Atoi(last[i]); err != nil {
					return r, fmt.Errorf("read SIPp's statistics: %s: %w", name, err)
				}
				found = true
			}
		}
		if !found {
			return r, fmt.Errorf("SIPp's statistics have no column %s", want.column)
		}
	}
	return r, nil
}
