package wireguardgo

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.zx2c4.com/wireguard/conn/bindtest"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"ringway/tunnel"
	"ringway/tunnel/uapi"
)

func FuzzSet(f *testing.F) {
	key := strings.Repeat("ab", 32)
	for _, s := range []string{
		"", "\n", "fwmark=1\n\n", "listen_port=0\n", "private_key=" + key + "\nreplace_peers=true\n\n",
		"public_key=" + key + "\nupdate_only=true\nremove=true\nallowed_ip=-10.0.0.0/8\n\n",
		"public_key=" + key +
			"\nendpoint=[fe80::1%2]:5\npersistent_keepalive_interval=65535\nprotocol_version=1\nallowed_ip=::ffff:1.2.3.4/120\n",
		strings.Repeat("x", 2000), "public_key=" + key + "\npublic_key=\x00\n",
	} {
		f.Add([]byte(s))
	}
	dev := device.NewDevice(tuntest.NewChannelTUN().TUN(), bindtest.NewChannelBinds()[0],
		device.NewLogger(device.LogLevelSilent, ""))
	f.Cleanup(dev.Close)
	f.Fuzz(func(t *testing.T, in []byte) {
		body, err := uapi.ReadSet(bytes.NewReader(in))
		if err != nil {
			return
		}
		for line := range strings.Lines(string(body)) {
			require.NotContains(t, line, "fwmark")
			require.NotContains(t, line, "listen_port")
		}
		_ = dev.IpcSetOperation(bytes.NewReader(body))
		var out bytes.Buffer
		require.NoError(t, dev.IpcGetOperation(&out))
		_, _, err = parseGet(out.Bytes(), tunnel.PrivateKey.Public)
		require.NoError(t, err)
		dev.RemoveAllPeers()
	})
}

func TestSuperPacketGroups(t *testing.T) {
	ep := newEndpoint(netip.MustParseAddrPort("192.0.2.1:1"))
	packets := func(sizes ...int) (bufs [][]byte) {
		for _, n := range sizes {
			bufs = append(bufs, make([]byte, n))
		}
		return bufs
	}
	for _, c := range []struct {
		max   int
		in    []int
		first []int
	}{
		{0, []int{100, 100, 100}, []int{0, 1, 2, 3}},
		{199, []int{100, 100}, []int{0, 1, 2}},
		{200, []int{100, 100, 100}, []int{0, 2, 3}},
		{1000, []int{100, 100, 50, 50, 100}, []int{0, 3, 4, 5}},
		{1000, []int{50, 100, 100}, []int{0, 1, 3}},
		{1000, []int{100}, []int{0, 1}},
	} {
		st := newSendState()
		n := st.group(packets(c.in...), ep, c.max)
		require.Equal(t, c.first, st.first[:n+1], "max %d, %v", c.max, c.in)
	}
}
