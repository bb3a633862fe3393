package e2e

import (
	"encoding/json"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/sip/registrar"
	"ringway/test/lab"
	"ringway/test/polltest"
)

// Phones of both branches register with a Kamailio in munich's data network, over UDP and over TCP, over IPv4 and over
// IPv6, and call each other through it, in both directions. munich's box sees each call twice, berlin's once; the media
// goes straight from phone to phone.
//
//	phone-a --- edge-a --- edge-b --- phone-b
//	                         |
//	                       pc-b: Kamailio
func TestKamailio(t *testing.T) {
	t.Parallel()
	l := branches(t, lab.Options{WAN: twenty, EdgeConfig: reading("enforce", nil)})
	startKamailio(t, l.Host(lab.PCB), kamailioConfig)
	for _, way := range ways {
		t.Run(way.transport+" "+string(way.family), func(t *testing.T) {
			pbx, end := lab.AddressOf(lab.PCB, way.family), way.transport+string(way.family)
			at := func(user string) string { return user + end + "@" + sipHost(lab.PCB, way.family) }
			account := func(user string) string {
				return "<sip:" + at(user) + ";transport=" + way.transport + ">;regint=600;answermode=auto"
			}
			a := startBaresip(t, l.Host(lab.PhoneA), account("anna-"), 440)
			b := startBaresip(t, l.Host(lab.PhoneB), account("ben-"), 1000)
			both := []string{at("anna-"), at("ben-")}
			registers(t, l.Edge("a"), way.transport, sipHost(lab.PCB, way.family)+":5060", both[:1])
			registers(t, l.Edge("b"), way.transport, sipHost(lab.PCB, way.family)+":5060", both)

			for _, from := range []struct {
				caller, callee *baresip
				name, to       string
				plays, hears   float64
			}{{a, b, "anna-", "ben-", 440, 1000}, {b, a, "ben-", "anna-", 1000, 440}} {
				ears := hearing(t, l)
				from.caller.do("dial", "sip:"+at(from.to)+";transport="+way.transport)
				from.caller.wait("CALL_ESTABLISHED")
				ears.until(25)
				for side, legs := range map[string]int{"a": 1, "b": 2} {
					list := callsOf(t, l.Edge(side))
					assert.Len(t, list, legs, "edge-%s", side)
					for _, x := range list {
						assert.Equal(t, []string{from.name + end, from.to + end}, []string{x.From, x.To}, "edge-%s", side)
						assert.Contains(t, x.Hops, pbx, "through Kamailio")
					}
					holesSettle(t, l.Edge(side), 4)
				}
				from.caller.do("hangup", "")
				from.caller.wait("CALL_CLOSED")
				from.callee.wait("CALL_CLOSED")
				noHoles(t, l)
				ears.unharmed()
				from.caller.hears(from.hears)
				from.callee.hears(from.plays)
			}
			for _, side := range []string{"a", "b"} {
				st := callsStatus(t, l.Edge(side))
				assert.Empty(t, st.NotOpen, "edge-%s", side)
				assert.Empty(t, st.Refused, "edge-%s", side)
			}
		})
	}
}

// registers demands that a box comes to see these addresses of record register with a PBX: those that cross it.
func registers(t *testing.T, e *lab.Edge, transport, pbx string, want []string) {
	t.Helper()
	var got []string
	polltest.Until(func() bool {
		got = registered(t, e, transport, pbx)
		return slices.Equal(want, got)
	}, 10*time.Second, 50*time.Millisecond)
	assert.Equal(t, want, got, "registrations that cross %s", e.Host.Name)
}

// registered are the addresses of record that `ringway phones` shows with a PBX, by one transport.
func registered(t *testing.T, e *lab.Edge, transport, pbx string) (all []string) {
	t.Helper()
	out, err := e.Ringway(within(t, 5*time.Second), "phones", "--json")
	require.NoError(t, err)
	var list []registrar.Binding
	require.NoError(t, json.Unmarshal([]byte(out), &list), out)
	for _, b := range list {
		if string(b.Transport) == transport && b.PBX.String() == pbx {
			assert.InDelta(t, 600, time.Until(b.Expires).Seconds(), 20)
			all = append(all, b.AOR)
		}
	}
	slices.Sort(all)
	return all
}

// kamailioConfig is a registrar and proxy that stays in the way of each call.
const kamailioConfig = `debug=2
log_stderror=yes
children=1
tcp_children=1
auto_aliases=no
dns=no
rev_dns=no
listen=udp:10.2.20.10:5060
listen=tcp:10.2.20.10:5060
listen=udp:[2001:db8:2:20::10]:5060
listen=tcp:[2001:db8:2:20::10]:5060
loadmodule "sl.so"
loadmodule "tm.so"
loadmodule "rr.so"
loadmodule "pv.so"
loadmodule "siputils.so"
loadmodule "textops.so"
loadmodule "usrloc.so"
loadmodule "registrar.so"
request_route {
	if (is_method("REGISTER")) {
		save("location");
		exit;
	}
	if (has_totag()) {
		if (loose_route() || is_method("ACK") && t_check_trans()) t_relay();
		exit;
	}
	if (is_method("CANCEL")) {
		if (t_check_trans()) t_relay();
		exit;
	}
	record_route();
	if (!lookup("location")) {
		sl_send_reply("404", "Not Found");
		exit;
	}
	t_relay();
}
`

// startKamailio starts one; it ends with the lab.
func startKamailio(t *testing.T, h *lab.Host, config string) {
	t.Helper()
	const path = lab.MachineDir + "/kamailio.cfg"
	require.NoError(t, os.WriteFile(h.Path(path), []byte(config), 0o644))
	p, err := h.Spawn("kamailio", h.Command("kamailio", "-DD", "-E", "-m", "16", "-M", "4", "-f", path))
	require.NoError(t, err)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("Kamailio said:\n%s", p.LastWords())
		}
	})
	require.NoError(t, h.WaitTCP(within(t, 10*time.Second), 5060), p.LastWords())
}
