package conntrack

import (
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"ringway/test/netnstest"
)

// filled is a namespace with connections that differ from each other in one thing at a time.
func filled(t testing.TB) *netnstest.NS {
	ns := netnstest.New(t)
	for _, family := range []struct{ source, other, dest, beside string }{
		{"10.2.20.2", "10.2.21.9", "10.1.10.2", "10.1.10.3"},
		{"2001:db8:2::2", "2001:db8:3::9", "2001:db8:1::2", "2001:db8:1::3"},
	} {
		for i, c := range []struct {
			protocol, source, dest string
			sport, dport           int
		}{
			{"udp", family.source, family.dest, 30000, 16384},
			{"udp", family.source, family.dest, 30002, 16384}, // the same phone sends from another port
			{"udp", family.other, family.dest, 30000, 16384},
			{"udp", family.source, family.beside, 30000, 16384},
			{"udp", family.source, family.dest, 30000, 16385},
			{"tcp", family.source, family.dest, 30000, 16384},
			{"udp", family.dest, family.source, 16384, 30004}, // the other way round
		} {
			line := fmt.Sprintf(
				"-I -p %s -s %s -d %s --sport %d --dport %d -t %d", c.protocol, c.source, c.dest, c.sport,
				c.dport, 1000+i,
			)
			if c.protocol == "tcp" {
				line += " --state ESTABLISHED -u ASSURED"
			}
			ns.Run("conntrack", strings.Fields(line)...)
		}
	}
	return ns
}

var remaining = regexp.MustCompile(`(?m)^(\S+ +\d+) \d+ `)

// list is what conntrack(8) lists of both families, without the time that each entry has left.
func list(ns *netnstest.NS) []string {
	var all []string
	for _, family := range []string{"ipv4", "ipv6"} {
		out := ns.Run("conntrack", "-L", "-f", family)
		all = append(all, strings.Split(strings.TrimSpace(remaining.ReplaceAllString(out, "$1 ")), "\n")...)
	}
	slices.Sort(all)
	return all
}

// The oracle is conntrack(8): of the same connections it deletes the same ones.
func TestDeleteIsWhatConntrackDeletes(t *testing.T) {
	udp, tcp := uint8(unix.IPPROTO_UDP), uint8(unix.IPPROTO_TCP)
	for _, c := range []struct {
		tuple  Tuple
		oracle string
		n      int
	}{
		{
			Tuple{udp, netip.MustParsePrefix("10.2.20.2/32"), netip.MustParseAddr("10.1.10.2"), 16384},
			"-p udp -s 10.2.20.2 -d 10.1.10.2 --dport 16384", 2,
		},
		{
			Tuple{udp, netip.MustParsePrefix("10.2.20.0/23"), netip.MustParseAddr("10.1.10.2"), 16384},
			"-p udp -s 10.2.20.0/23 -d 10.1.10.2 --dport 16384", 3,
		},
		{Tuple{udp, netip.Prefix{}, netip.MustParseAddr("10.1.10.2"), 0}, "-p udp -d 10.1.10.2", 4},
		{Tuple{tcp, netip.Prefix{}, netip.MustParseAddr("10.1.10.2"), 0}, "-p tcp -d 10.1.10.2", 1},
		{
			Tuple{udp, netip.MustParsePrefix("2001:db8:2::2/128"), netip.MustParseAddr("2001:db8:1::2"), 16384},
			"-f ipv6 -p udp -s 2001:db8:2::2 -d 2001:db8:1::2 --dport 16384", 2,
		},
		{
			Tuple{udp, netip.MustParsePrefix("2001:db8:2::/47"), netip.MustParseAddr("2001:db8:1::2"), 16384},
			"-f ipv6 -p udp -s 2001:db8:2::/47 -d 2001:db8:1::2 --dport 16384", 3,
		},
		{
			Tuple{udp, netip.Prefix{}, netip.MustParseAddr("10.1.10.99"), 16384},
			"-p udp -d 10.1.10.99 --dport 16384", 0,
		},
	} {
		t.Run(c.tuple.String(), func(t *testing.T) {
			ours, theirs := filled(t), filled(t)
			require.Equal(t, list(theirs), list(ours))
			require.Len(t, list(ours), 14)

			// fails where there is none
			_, _ = theirs.Try("conntrack", append([]string{"-D"}, strings.Fields(c.oracle)...)...)
			var n int
			require.NoError(t, ours.Do(func() (err error) { n, err = Delete(c.tuple); return }))
			assert.Equal(t, c.n, n)
			assert.Equal(t, list(theirs), list(ours))
			assert.Len(t, list(ours), 14-c.n)

			require.NoError(t, ours.Do(func() (err error) { n, err = Delete(c.tuple); return }))
			assert.Zero(t, n, "the second time")
		})
	}
}

// The kernel does the choosing where it can: a full table is not copied for each call that ends.
func TestTheKernelFilters(t *testing.T) {
	ns := filled(t)
	for _, c := range []struct {
		tuple Tuple
		n     int
	}{
		{
			Tuple{
				unix.IPPROTO_UDP, netip.MustParsePrefix("10.2.20.2/32"), netip.MustParseAddr("10.1.10.2"),
				16384,
			},
			2,
		},
		// of any address
		{
			Tuple{
				unix.IPPROTO_UDP, netip.MustParsePrefix("2001:db8:2::2/128"),
				netip.MustParseAddr("2001:db8:1::2"), 16384,
			},
			4,
		},
	} {
		var listed [][]byte
		require.NoError(t, ns.Do(func() (err error) {
			req := request(c.tuple.family(), nl.IPCTNL_MSG_CT_GET, unix.NLM_F_DUMP)
			attrs, flags := c.tuple.attributes()
			req.AddData(attrs)
			req.AddData(filterAttr(flags))
			listed, err = req.Execute(unix.NETLINK_NETFILTER, 0)
			return err
		}))
		assert.Len(t, listed, c.n, "of the 7 connections of the family")
	}
}

func TestWhatCannotBeDeleted(t *testing.T) {
	for text, tuple := range map[string]Tuple{
		"delete connections of protocol 1 from anywhere to 10.1.10.2:0: it is not UDP or TCP": {
			Protocol: 1, Destination: netip.MustParseAddr("10.1.10.2"),
		},
		"delete connections of protocol 17 from 2001:db8::/32 to 10.1.10.2:5: " +
			"source and destination are of different families": {
			unix.IPPROTO_UDP, netip.MustParsePrefix("2001:db8::/32"), netip.MustParseAddr("10.1.10.2"), 5},
		"delete connections of protocol 17 from anywhere to invalid AddrPort: " +
			"the destination is not a plain address": {Protocol: unix.IPPROTO_UDP},
	} {
		_, err := Delete(tuple)
		assert.EqualError(t, err, text)
	}
}

// One connection is deleted among 20,000: by this package, and by the library's own filters, which copy the
// table.
func BenchmarkDeleteAmongMany(b *testing.B) {
	ns := netnstest.New(b)
	var lines []string
	for i := range 20000 {
		lines = append(
			lines,
			fmt.Sprintf(
				"-A -p udp -s 10.2.%d.%d -d 10.1.10.2 --sport 30000 --dport 16384 -t 1000", i>>8, i&255,
			),
		)
	}
	file := b.TempDir() + "/connections"
	require.NoError(b, os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600))
	ns.Run("conntrack", "-R", file)
	missing := netip.MustParseAddr("10.1.10.3")

	b.Run("kernel filters", func(b *testing.B) {
		require.NoError(b, ns.Do(func() error {
			for b.Loop() {
				if _, err := Delete(Tuple{
					Protocol: unix.IPPROTO_UDP, Destination: missing, Port: 16384,
				}); err != nil {
					return err
				}
			}
			return nil
		}))
	})
	b.Run("library filters", func(b *testing.B) {
		require.NoError(b, ns.Do(func() error {
			for b.Loop() {
				f := &netlink.ConntrackFilter{}
				if err := f.AddIP(netlink.ConntrackOrigDstIP, missing.AsSlice()); err != nil {
					return err
				}
				if _, err := netlink.ConntrackDeleteFilters(
					netlink.ConntrackTable, unix.AF_INET, f,
				); err != nil {
					return err
				}
			}
			return nil
		}))
	})
}
