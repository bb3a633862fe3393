package tunnel

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func testKey(n byte) (k PrivateKey) {
	for i := range k {
		k[i] = n
	}
	return k
}

func testDevice() Device {
	return Device{
		Class: Voice, FwMark: 1 << 13, PrivateKey: testKey(1),
		Settings: Settings{Interface: "rw-voice", ListenPort: 51820, MTU: 1420},
		Peers: []Peer{
			{Site: "munich", PublicKey: testKey(2).Public(), PresharedKey: PresharedKey(testKey(7)),
				Endpoint:   netip.MustParseAddrPort("203.0.113.2:51820"),
				AllowedIPs: prefixes("10.2.10.0/24", "10.2.20.0/24", "2001:db8:2::/48"), Keepalive: 25 * time.Second},
			{Site: "roamer", PublicKey: testKey(3).Public(), AllowedIPs: prefixes("10.3.0.0/16")},
		},
	}
}

func prefixes(s ...string) (out []netip.Prefix) {
	for _, x := range s {
		out = append(out, netip.MustParsePrefix(x))
	}
	return out
}

// observedAs is what an engine holds after d was set.
func observedAs(d Device) Observed {
	o := Observed{PrivateKey: d.PrivateKey, ListenPort: d.Settings.ListenPort, FwMark: d.FwMark}
	for _, p := range d.Peers {
		o.Peers = append(o.Peers, ObservedPeer{PresharedKey: p.PresharedKey,
			PeerStatus: PeerStatus{
				PublicKey: p.PublicKey, Endpoint: p.Endpoint, AllowedIPs: p.AllowedIPs,
				Keepalive: keepaliveSeconds(p.Keepalive),
			}})
	}
	return o
}

const (
	munichHex = "ce8d3ad1ccb633ec7b70c17814a5c76ecd029685050d344745ba05870e587d59"
	roamerHex = "5dfedd3b6bd47f6fa28ee15d969d5bb0ea53774d488bdaf9df1c6e0124b3ef22"
)

func TestTheWholeDeviceAsText(t *testing.T) {
	d := testDevice()
	require.Equal(t, munichHex, d.Peers[0].PublicKey.Hex())
	require.Equal(t, roamerHex, d.Peers[1].PublicKey.Hex())
	assert.Equal(t, `private_key=`+strings.Repeat("01", 32)+`
public_key=`+munichHex+`
preshared_key=`+strings.Repeat("07", 32)+`
endpoint=203.0.113.2:51820
persistent_keepalive_interval=25
allowed_ip=10.2.10.0/24
allowed_ip=10.2.20.0/24
allowed_ip=2001:db8:2::/48
public_key=`+roamerHex+`
allowed_ip=10.3.0.0/16
`, Diff(d, Observed{}, nil, time.Time{}).SetText())
	words := d.Words()
	assert.Equal(t, []string{
		"wg set rw-voice listen-port 51820 fwmark 0x2000",
		"wg set rw-voice private-key (hidden)",
		"wg set rw-voice peer zo060cy2M+x7cMF4FKXHbs0CloUFDTRHRboFhw5YfVk= preshared-key (hidden) " +
			"endpoint 203.0.113.2:51820 persistent-keepalive 25 allowed-ips 10.2.10.0/24,10.2.20.0/24,2001:db8:2::/48",
		"wg set rw-voice peer Xf7dO2vUf2+ijuFdlp1bsOpTd01Ii9r53xxuASSz7yI= allowed-ips 10.3.0.0/16",
	}, words)
}

func TestTheSameDeviceTwiceIsNothing(t *testing.T) {
	d := testDevice()
	delta := Diff(d, observedAs(d), nil, time.Time{})
	assert.True(t, delta.Empty())
	assert.Empty(t, delta.SetText())
	assert.Empty(t, delta.Words())
}

func TestANetworkThatMovesIsNeverWithoutAnOwner(t *testing.T) {
	before, after := testDevice(), testDevice()
	after.Peers[0].AllowedIPs = prefixes("10.2.10.0/24", "2001:db8:2::/48")
	after.Peers[1].AllowedIPs = prefixes("10.2.20.0/24", "10.3.0.0/16")
	assert.Equal(t, "public_key="+roamerHex+"\nupdate_only=true\nallowed_ip=10.2.20.0/24\n"+
		"public_key="+munichHex+"\nupdate_only=true\nallowed_ip=-10.2.20.0/24\n",
		Diff(after, observedAs(before), &before, time.Time{}).SetText(), "added to the one before it is taken from the other")
}

func TestASiteThatGoesIsRemovedLast(t *testing.T) {
	before, after := testDevice(), testDevice()
	after.Peers = []Peer{
		{Site: "new", PublicKey: testKey(4).Public(), AllowedIPs: prefixes("10.2.10.0/24")},
		after.Peers[1],
	}
	text := Diff(after, observedAs(before), &before, time.Time{}).SetText()
	assert.Equal(t, "public_key="+testKey(4).Public().Hex()+"\nallowed_ip=10.2.10.0/24\n"+
		"public_key="+munichHex+"\nupdate_only=true\nremove=true\n", text)
}

func TestAnEndpointIsAHint(t *testing.T) {
	roamed := netip.MustParseAddrPort("198.51.100.9:4242")
	config, other := netip.MustParseAddrPort("203.0.113.2:51820"), netip.MustParseAddrPort("203.0.113.3:51820")
	now := time.Unix(1e9, 0)
	d := testDevice()
	for name, c := range map[string]struct {
		have      netip.AddrPort
		handshake time.Time
		before    netip.AddrPort // wanted before; zero: not known
		want      netip.AddrPort
		news      int // those told before: 1
		set       bool
	}{
		"none known yet":                          {netip.AddrPort{}, time.Time{}, config, config, 0, true},
		"roamed, config as before":                {roamed, now.Add(-time.Hour), config, config, 0, false},
		"config changed":                          {roamed, now, config, other, 0, true},
		"after a restart, session lives":          {roamed, now.Add(-time.Minute), netip.AddrPort{}, config, 0, false},
		"after a restart, no session":             {roamed, now.Add(-time.Hour), netip.AddrPort{}, config, 0, true},
		"config has none: dials in, keep what is": {roamed, time.Time{}, config, netip.AddrPort{}, 0, false},
		"equal":                                {config, time.Time{}, netip.AddrPort{}, config, 0, false},
		"after a restart, session lives, news": {roamed, now.Add(-time.Minute), netip.AddrPort{}, other, 1, true},
		"after a restart, it is there already": {other, now.Add(-time.Minute), netip.AddrPort{}, other, 1, false},
		"news that were told, roamed since":    {roamed, now.Add(-time.Minute), other, other, 1, false},
		"roamed, and silent there":             {roamed, now.Add(-time.Hour), config, config, 2, true},
	} {
		have := observedAs(d)
		have.Peers[0].Endpoint, have.Peers[0].LastHandshake = c.have, c.handshake
		want := testDevice()
		want.Peers[0].Endpoint, want.Peers[0].EndpointRevision = c.want, c.news
		var prev *Device
		if c.before.IsValid() {
			p := testDevice()
			p.Peers[0].Endpoint, p.Peers[0].EndpointRevision = c.before, 1
			prev = &p
		}
		assert.Equal(t, c.set, strings.Contains(Diff(want, have, prev, now).SetText(), "endpoint="), name)
	}
}

func TestWordsHoldNoSecrets(t *testing.T) {
	d := testDevice()
	text := strings.Join(d.Words(), "\n")
	assert.NotContains(t, text, d.PrivateKey.Base64())
	assert.NotContains(t, text, strings.Repeat("07", 8))
	assert.NotContains(t, text, "BwcH", "the preshared key in base64")
}

func TestWhatAnEngineSays(t *testing.T) {
	o, err := ParseUAPI(strings.NewReader(`private_key=` + strings.Repeat("01", 32) + `
listen_port=51820
fwmark=8192
x_new=1
public_key=` + roamerHex + `
preshared_key=` + strings.Repeat("00", 32) + `
protocol_version=1
last_handshake_time_sec=1700000000
last_handshake_time_nsec=5
tx_bytes=10
rx_bytes=20
persistent_keepalive_interval=25
allowed_ip=2001:db8::/32
allowed_ip=10.3.0.0/16
endpoint=[2001:db8::1]:51820
errno=0

ignored`))
	require.NoError(t, err)
	s := o.Status()
	assert.Equal(t, testKey(1).Public().String(), s.PublicKey)
	assert.EqualValues(t, 51820, s.ListenPort)
	assert.EqualValues(t, 8192, o.FwMark)
	assert.Equal(t, []PeerStatus{{
		PublicKey: testKey(3).Public(), Endpoint: netip.MustParseAddrPort("[2001:db8::1]:51820"),
		LastHandshake: time.Unix(1700000000, 5).UTC(), TxBytes: 10, RxBytes: 20, Keepalive: 25 * time.Second,
		AllowedIPs: prefixes("10.3.0.0/16", "2001:db8::/32"),
	}}, s.Peers)

	for in, want := range map[string]string{
		"listen_port=70000\n":         "read UAPI line 1: bad value of listen_port",
		"\n":                          "",
		"nonsense\n":                  "read UAPI line 1: no key=value",
		"private_key=secretsecret\n":  "read UAPI line 1: bad value of private_key",
		"errno=-22\n":                 `read UAPI: the engine answers errno "-22"`,
		"fwmark=0\npublic_key=00zz\n": "read UAPI line 2: bad value of public_key",
		"public_key=" + roamerHex + "\nallowed_ip=10.0.0.0\n": "read UAPI line 2: bad value of allowed_ip",
	} {
		_, err := ParseUAPI(strings.NewReader(in))
		if want == "" {
			assert.NoError(t, err)
			continue
		}
		assert.EqualError(t, err, want)
	}
}

// apply is an engine in a few lines: the oracle of the differences.
func apply(o Observed, text string) Observed {
	peers := map[PublicKey]*ObservedPeer{}
	for _, p := range o.Peers {
		peers[p.PublicKey] = &p
	}
	var cur *ObservedPeer
	for line := range strings.Lines(text) {
		k, v, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch k {
		case "private_key":
			_ = decodeHex(o.PrivateKey[:], v)
		case "public_key":
			var key PublicKey
			_ = decodeHex(key[:], v)
			if cur = peers[key]; cur == nil {
				cur = &ObservedPeer{PeerStatus: PeerStatus{PublicKey: key}}
				peers[key] = cur
			}
		case "remove":
			delete(peers, cur.PublicKey)
		case "preshared_key":
			_ = decodeHex(cur.PresharedKey[:], v)
		case "allowed_ip":
			minus, a := strings.HasPrefix(v, "-"), netip.MustParsePrefix(strings.TrimPrefix(v, "-"))
			for _, p := range peers {
				if p == cur || !minus { // cryptokey routing: one owner a prefix
					p.AllowedIPs = missing(p.AllowedIPs, []netip.Prefix{a})
				}
			}
			if !minus {
				cur.AllowedIPs = append(cur.AllowedIPs, a)
			}
		default:
			_ = cur.line(k, v)
		}
	}
	o.Peers = nil
	for _, p := range peers {
		o.Peers = append(o.Peers, *p)
	}
	return o
}

// Whatever is wanted after whatever: the difference leads there, and then there is none.
func TestTheDifferenceLeadsThere(t *testing.T) {
	pool := prefixes("10.0.0.0/8", "10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16", "2001:db8::/32", "2001:db8:1::/48")
	draw := rapid.Custom(func(t *rapid.T) Device {
		d := Device{Settings: Settings{Interface: "rw-voice"}, PrivateKey: testKey(rapid.ByteRange(1, 2).Draw(t, "key"))}
		free := rapid.Permutation(pool).Draw(t, "networks")
		for _, n := range rapid.SliceOfNDistinct(rapid.ByteRange(10, 14), 0, 4, rapid.ID[byte]).Draw(t, "peers") {
			k := min(rapid.IntRange(0, 2).Draw(t, "networks of one"), len(free))
			keepalive := time.Duration(rapid.IntRange(0, 2).Draw(t, "keepalive")) * time.Second
			p := Peer{PublicKey: testKey(n).Public(), AllowedIPs: free[:k], Keepalive: keepalive,
				Endpoint: netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), rapid.Uint16Range(1, 3).Draw(t, "port"))}
			if rapid.Bool().Draw(t, "psk") {
				p.PresharedKey = PresharedKey(testKey(n))
			}
			d.Peers, free = append(d.Peers, p), free[k:]
		}
		return d
	})
	rapid.Check(t, func(t *rapid.T) {
		a, b := draw.Draw(t, "before"), draw.Draw(t, "after")
		have := apply(Observed{}, Diff(a, Observed{}, nil, time.Time{}).SetText())
		assert.True(t, Diff(a, have, &a, time.Time{}).Empty())
		have = apply(have, Diff(b, have, &a, time.Time{}).SetText())
		assert.True(t, Diff(b, have, &b, time.Time{}).Empty(), "%s", Diff(b, have, &b, time.Time{}).SetText())
	})
}

func FuzzParseUAPI(f *testing.F) {
	f.Add("private_key=" + strings.Repeat("01", 32) + "\npublic_key=" + roamerHex + "\nallowed_ip=10.0.0.0/8\nerrno=0\n\n")
	f.Add("public_key=\n=\nendpoint=[::1%eth0]:1\n")
	f.Fuzz(func(t *testing.T, text string) {
		o, err := ParseUAPI(strings.NewReader(text))
		if err == nil {
			_ = o.Status()
			_ = Diff(Device{}, o, nil, time.Time{}).SetText()
		}
	})
}

func TestMustTellEndpoint(t *testing.T) {
	here, there := netip.MustParseAddrPort("203.0.113.2:51820"), netip.MustParseAddrPort("203.0.113.3:51820")
	peer := func(at netip.AddrPort, news int) *Peer { return &Peer{Endpoint: at, EndpointRevision: news} }
	for _, c := range []struct {
		name   string
		before *Peer
		now    *Peer
		want   bool
	}{
		{"the same", peer(here, 1), peer(here, 1), false},
		{"another address", peer(here, 1), peer(there, 1), true},
		{"the same address, to be tried again", peer(here, 1), peer(here, 2), true},
		{"after a restart", nil, peer(here, 0), false},
		{"after a restart, with another meaning", nil, peer(here, 1), true},
		{"a site that dialled in and is known by now", peer(netip.AddrPort{}, 0), peer(here, 0), false},
		{"a name that resolves at last", peer(netip.AddrPort{}, 0), peer(here, 1), true},
		{"not known any more", peer(here, 1), peer(netip.AddrPort{}, 2), false},
	} {
		assert.Equal(t, c.want, c.now.MustTellEndpoint(c.before), c.name)
	}
}
