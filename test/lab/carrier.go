package lab

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os/exec"
	"strings"

	"ringway/test/lab/host"
	"ringway/test/lab/twice"
)

// carrierLine is a device, and what a box without Ringway does when its carrier comes and goes: lines of ip(8).
type carrierLine struct {
	Device  string   `json:"device"`
	With    []string `json:"with"`
	Without []string `json:"without"`
}

// runCarrier takes addresses and routes away from a device without a carrier, and puts them back, as systemd-networkd
// and other programs do: stock wireguard-go then hears of the routes, and leaves an address that is gone.
func runCarrier(config string, stdout io.Writer) error {
	var devices []carrierLine
	if err := json.Unmarshal([]byte(config), &devices); err != nil {
		return fmt.Errorf("read the lines to watch: %w", err)
	}
	monitor := exec.Command("ip", "-o", "monitor", "link")
	out, err := monitor.StdoutPipe()
	if err == nil {
		err = monitor.Start()
	}
	if err != nil {
		return fmt.Errorf("watch the devices: %w", err)
	}
	defer func() { _ = monitor.Process.Kill(); _ = monitor.Wait() }()
	if _, err := fmt.Fprintln(stdout, host.Ready); err != nil {
		return err
	}
	had := map[string]bool{}
	for _, d := range devices {
		had[d.Device] = true
	}
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		device, has, ok := parseLink(lines.Text())
		for _, d := range devices {
			if !ok || d.Device != device || had[device] == has {
				continue
			}
			had[device] = has
			commands := d.Without
			if has {
				commands = d.With
			}
			for _, c := range commands {
				if text, err := exec.Command("ip", strings.Fields(c)...).CombinedOutput(); err != nil {
					return fmt.Errorf("ip %s: %w: %s", c, err, text)
				}
			}
		}
	}
	return lines.Err()
}

// parseLink reads a line of `ip -o monitor link`: 2: wan0@if3: <NO-CARRIER,BROADCAST,MULTICAST,UP> mtu 1500 …
func parseLink(line string) (device string, carrier, ok bool) {
	fields := strings.Fields(line)
	if len(fields) < 3 || !strings.HasPrefix(fields[2], "<") {
		return "", false, false
	}
	device, _, _ = strings.Cut(strings.TrimSuffix(fields[1], ":"), "@")
	return device, strings.Contains(fields[2], "LOWER_UP"), true
}

// runDuplicate runs the relay around a tunnel that sends everything by every line.
func runDuplicate(config string, stdout io.Writer) error {
	var c twice.Config
	if err := json.Unmarshal([]byte(config), &c); err != nil {
		return fmt.Errorf("read the relay's configuration: %w", err)
	}
	r, err := twice.New(c)
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := fmt.Fprintln(stdout, host.Ready); err != nil {
		return err
	}
	r.Run()
	return nil
}
