package lab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"ringway/test/lab/host"
)

// tool is a program that the lab needs, and its Debian package.
type tool struct{ program, pkg string }

var (
	toolsAlways  = []tool{{"ip", "iproute2"}, {"tc", "iproute2"}, {"nft", "nftables"}, {"ping", "iputils-ping"}}
	toolCalls    = tool{"sipp", "sip-tester"}
	toolBulk     = tool{"iperf3", "iperf3"}
	toolBaseline = tool{"wg", "wireguard-tools"}
)

// checkTools reports everything that is missing at once.
func checkTools(o Options) error {
	if os.Geteuid() != 0 {
		return errors.New("the lab creates network namespaces and needs root (try: sudo ringway lab)")
	}
	need := slices.Clone(toolsAlways)
	if !o.NoCalls {
		need = append(need, toolCalls)
	}
	if o.Bulk != BulkNone {
		need = append(need, toolBulk)
	}
	if o.needsStock() {
		need = append(need, toolBaseline)
	}
	var programs, packages []string
	for _, t := range need {
		if _, err := host.LookPath(t.program); err != nil {
			programs = append(programs, t.program)
			if !slices.Contains(packages, t.pkg) {
				packages = append(packages, t.pkg)
			}
		}
	}
	if _, err := os.Stat(voicePcap); err != nil && !o.NoCalls && !slices.Contains(packages, toolCalls.pkg) {
		programs, packages = append(programs, voicePcap), append(packages, toolCalls.pkg)
	}
	if len(programs) > 0 {
		return fmt.Errorf(
			"the lab needs %s (on Debian: apt-get install %s)",
			strings.Join(programs, ", "),
			strings.Join(packages, " "),
		)
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		return fmt.Errorf("the lab needs TUN devices: %w (try: modprobe tun)", err)
	}
	return nil
}

// findWireGuardGo finds the stock program that the baseline runs: the given one, the one beside the binary,
// or the one in PATH.
func findWireGuardGo(said, binary string) (string, error) {
	if said != "" {
		p, err := filepath.Abs(said)
		if err == nil {
			_, err = os.Stat(p)
		}
		if err != nil {
			return "", fmt.Errorf("wireguard-go for the baseline: %w", err)
		}
		return p, nil
	}
	beside := filepath.Join(filepath.Dir(binary), "wireguard-go")
	if st, err := os.Stat(beside); err == nil && st.Mode().IsRegular() {
		return beside, nil
	}
	if p, err := host.LookPath("wireguard-go"); err == nil {
		return p, nil
	}
	return "", fmt.Errorf(
		"the baseline needs the stock program wireguard-go, which was found neither as %s nor in PATH (`make "+
			"build` makes it, Debian has it as apt-get install wireguard-go, or say --wireguard-go PATH)",
		beside,
	)
}
