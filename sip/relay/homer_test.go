package relay

import (
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A Homer server gets the messages of calls, without what must not be kept.
func TestAHomerServerGetsACopy(t *testing.T) {
	server, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	defer server.Close()
	w := newWorld(t)
	at := server.LocalAddr().(*net.UDPAddr).AddrPort()
	require.NoError(t, w.useHomer(Homer{Server: at, Agent: 7}, OpenHomer))
	defer func() { require.NoError(t, w.useHomer(Homer{}, OpenHomer)) }()

	secret := strings.Replace(invite, "Call-ID:", "Authorization: Digest response=\"topsecret\"\r\nCall-ID:", 1)
	go func() { <-w.asked; w.reply <- nil }()
	w.pass(phone, pbx, secret)
	require.NoError(t, server.SetReadDeadline(time.Now().Add(5*time.Second)))
	b := make([]byte, 65536)
	n, err := server.Read(b)
	require.NoError(t, err)
	got := string(b[:n])
	assert.True(t, strings.HasPrefix(got, "HEP3"))
	assert.Contains(t, got, "INVITE sip:bob@10.2.20.5")
	assert.Contains(t, got, "m=audio 4000")
	assert.NotContains(t, got, "topsecret")
	assert.EqualValues(t, 1, w.mirrored.Load())
}
