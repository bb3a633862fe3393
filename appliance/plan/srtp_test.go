package plan

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestThePlanSaysWhereMediaIsEncrypted(t *testing.T) {
	assert.Empty(t, SRTPRemarks(shipped(t, "branch-berlin.yaml", nil)))
	change := map[string]string{
		"sip.mode": "observe", "sites[munich].srtp": "prefer", "sites[munich].box": "10.2.10.1",
		"sites[munich].identity": "IDENTITYmunichIDENTITYmunichIDENTITYmuniAAA=",
	}
	assert.Equal(t, []string{
		"# srtp: calls with site munich prefer are terminated here, at UDP ports 20000-29999, which are for 2500 calls; " +
			"AES_CM_128_HMAC_SHA1_80 at least, keys of phones by sdes or dtls",
		"# srtp: the sites with an identity have of this one box: 10.1.10.1",
	}, SRTPRemarks(shipped(t, "minimal.yaml", change)))

	change["sip.mode"], change["sip.unread"], change["sip.on_failure"] = "enforce", "deny", "closed"
	change["voice[voice0].srtp"] = "require"
	assert.Contains(t, SRTPRemarks(shipped(t, "minimal.yaml", change)),
		"# srtp: require: a call without SRTP is refused, "+
			"unless it is an emergency call; while nothing reads signalling, it waits")
	change["sip.media.require_emergency"] = "true"
	assert.Contains(t, SRTPRemarks(shipped(t, "minimal.yaml", change)),
		"# srtp: require: a call without SRTP is refused; while nothing reads signalling, it waits")
}
