package sip

import (
	"fmt"
	"os"

	"ringway/test/lab/host"
)

// kamailioConfig is a proxy that keeps transactions and dialogs, and routes by the request URI: as little as a proxy
// with these modules does.
const kamailioConfig = `debug=-2
log_stderror=yes
fork=yes
children=2
disable_tcp=yes
auto_aliases=no
dns=no
rev_dns=no
mhomed=0
listen=udp:%s:5060
loadmodule "tm.so"
loadmodule "sl.so"
loadmodule "rr.so"
loadmodule "pv.so"
loadmodule "dialog.so"
modparam("dialog", "hash_size", 16384)
modparam("dialog", "db_mode", 0)
request_route {
	if (loose_route()) {
		t_relay();
		exit;
	}
	record_route();
	dlg_manage();
	t_relay();
}
`

// startKamailio starts it on the box.
func (s *stand) startKamailio() error {
	program, err := host.LookPath("kamailio")
	if err != nil {
		return err
	}
	const file = host.Dir + "/kamailio.cfg"
	if err := os.WriteFile(s.box.Path(file), fmt.Appendf(nil, kamailioConfig, boxData), 0o644); err != nil {
		return fmt.Errorf("configure Kamailio: %w", err)
	}
	return s.spawn("kamailio", program, "-f", file, "-DD", "-E", "-m", "1024", "-M", "32",
		"-w", host.Dir, "-Y", host.Dir, "-P", host.Dir+"/kamailio.pid")
}
