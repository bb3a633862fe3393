package calls

import (
	"testing"

	"github.com/stretchr/testify/assert"

	"ringway/sip/relay"
)

func TestTheStatusSaysWhatIsNotRead(t *testing.T) {
	s := Status{Mode: "observe", Reading: true}
	assert.Equal(t, "Signalling: read (sip.mode: observe); 0 calls, 0 holes; not read 0; refused 0", s.String())

	s.TLS, s.Encrypted = []relay.TLSServer{{Name: "pbx"}}, 3
	s.Transport = map[string]uint64{"tls_unread_no_certificate": 2, "tls_established": 5, "udp_passed": 7}
	assert.Equal(t, "Signalling: read (sip.mode: observe); 0 calls, 0 holes; not read 0; refused 0; TLS of 3 connections "+
		"read, not read no_certificate 2", s.String())
}
