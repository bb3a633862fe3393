package wanted

import (
	"ringway/appliance/config"
	"ringway/firewall"
	"ringway/qos"
	"ringway/routing"
)

// lineMarks are the marks by which connections keep to the WAN on which they began. With one WAN there are none.
func lineMarks(cfg *config.Config) (lines []firewall.Line) {
	if len(cfg.WANs) < 2 {
		return nil
	}
	var names []string
	for _, w := range cfg.WANs {
		names = append(names, w.Interface)
	}
	numbers := routing.LineNumbers(names, qos.MaxLine)
	for _, name := range names {
		lines = append(lines, firewall.Line{Device: name, Mark: qos.LineMark(numbers[name])})
	}
	return lines
}

// MeteredWANs are the interfaces of the WANs whose volume counts: they carry calls only, and nothing probes them while
// they are not used, or once in 30 seconds at most.
func MeteredWANs(cfg *config.Config) (names []string) {
	for _, w := range cfg.WANs {
		if w.Volume != nil {
			names = append(names, w.Interface)
		}
	}
	return names
}
