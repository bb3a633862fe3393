package config_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/appliance/config"
	"ringway/qos"
	"ringway/srtp/keys/channel"
	"ringway/srtp/offer"
	"ringway/srtp/suite"
)

const munichIdentity = "IDENTITYmunichIDENTITYmunichIDENTITYmuniAAA="

// encrypted is the minimal config with SRTP everywhere, and keys agreed with munich.
func encrypted(t *testing.T) []byte {
	text, err := config.SetValues(minimal(t), map[string]string{
		"voice[voice0].srtp": "require", "data[data0].srtp": "prefer", "sites[munich].srtp": "require",
		"sites[munich].identity": munichIdentity, "sites[munich].box": "10.2.10.1",
		"sip.mode": "enforce", "sip.unread": "deny", "sip.on_failure": "closed",
		"sip.media.ports": "30000-30999", "sip.media.minimum": "AEAD_AES_128_GCM", "sip.media.methods": "[dtls]",
		"sip.media.rotate.every": "1h", "sip.media.rotate.packets": "20000", "sip.media.clear_srtcp": "true",
		"sip.media.require_emergency": "true", "sip.media.packets_per_port": "1000",
	})
	require.NoError(t, err)
	return text
}

func TestSRTP(t *testing.T) {
	got, err := config.ParseWithKeys("/etc/ringway/box.yaml", encrypted(t), config.WithRoot(box(t)))
	require.NoError(t, err)
	cfg := got.Config
	assert.Equal(t, map[string]offer.Level{"voice0": offer.Require, "data0": offer.Prefer}, cfg.LANSRTP)
	assert.Equal(t, config.Media{
		Ports: qos.PortMatch{Protocol: qos.UDP, Low: 30000, High: 30999}, Minimum: suite.AEADAES128GCM,
		Methods: []offer.Keying{offer.DTLS}, RotateEvery: time.Hour, RotatePackets: 20000, ClearSRTCP: true,
		RequireEmergency: true, PacketsPerPort: 1000,
	}, cfg.SIP.Media)
	munich, err := channel.ParsePublicKey(munichIdentity)
	require.NoError(t, err)
	assert.Equal(t, offer.Require, cfg.Sites[0].SRTP)
	assert.Equal(t, munich, cfg.Sites[0].Identity)
	assert.Equal(t, netip.MustParseAddr("10.2.10.1"), cfg.Sites[0].Box)
	assert.Equal(t, "/etc/ringway/identity.key", cfg.IdentityFile)
	assert.Equal(t, channel.PublicKey(identityKey().Public()), cfg.Identity)
	assert.Equal(t, identityKey(), got.Keys.Identity)
	identity, err := channel.NewIdentity(got.Keys.Identity[:])
	require.NoError(t, err)
	assert.Equal(t, cfg.Identity, identity.Public(), "keygen's public half is the channel's")
	assert.NotContains(t, fmt.Sprintf("%+v", got.Keys), identityKey().Base64())
	assert.True(t, cfg.Terminates() && cfg.Requires() && cfg.Boxes())
	assert.Equal(t, netip.MustParseAddr("10.1.10.1"), cfg.VoiceAddress(false))
	assert.False(t, cfg.VoiceAddress(true).IsValid())
}

// Nobody has to have an identity whose sites have none.
func TestWithoutSRTPThereIsNoIdentity(t *testing.T) {
	cfg, err := config.Parse("/nowhere/box.yaml", minimal(t), config.WithRoot(t.TempDir()), config.WithoutKeyFiles())
	require.NoError(t, err)
	assert.Empty(t, cfg.IdentityFile)
	assert.False(t, cfg.Terminates() || cfg.Requires() || cfg.Boxes())
}

func TestOwnIdentityOfAnotherSite(t *testing.T) {
	own := channel.PublicKey(identityKey().Public()).String()
	text := strings.ReplaceAll(string(encrypted(t)), munichIdentity, own)
	_, err := config.Parse("/etc/ringway/box.yaml", []byte(text), config.WithRoot(box(t)))
	assert.ErrorContains(t, err, "sites[munich].identity: is this box's own identity (allowed: the other site's)")
	assert.NotContains(t, err.Error(), own)
	assert.NotContains(t, err.Error(), identityKey().Base64())
}

// A rollback needs the identity of the config that it goes back to.
func TestKeysForAnotherConfigHaveTheIdentity(t *testing.T) {
	now, err := config.ParseWithKeys("/etc/ringway/box.yaml", encrypted(t), config.WithRoot(box(t)))
	require.NoError(t, err)
	keys, unread := now.KeysFor(now.Config)
	assert.Equal(t, identityKey(), keys.Identity)
	assert.Zero(t, unread)

	other := *now.Config
	other.IdentityFile = "/etc/ringway/other.key"
	keys, unread = now.KeysFor(&other)
	assert.Zero(t, keys.Identity)
	assert.Equal(t, 1, unread)
}
