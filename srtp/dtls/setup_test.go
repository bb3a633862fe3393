package dtls_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/srtp/dtls"
)

func TestSetup(t *testing.T) {
	for _, s := range []dtls.Setup{dtls.Actpass, dtls.Active, dtls.Passive, dtls.Holdconn} {
		got, err := dtls.ParseSetup(s.String())
		require.NoError(t, err)
		assert.Equal(t, s, got)
	}
	got, err := dtls.ParseSetup(" ActPass")
	require.NoError(t, err)
	assert.Equal(t, dtls.Actpass, got)
	_, err = dtls.ParseSetup("")
	assert.EqualError(t, err, `setup "" is not actpass, active, passive or holdconn`)
}

// Case 25: an offer of actpass keeps the roles.
func TestAnswer(t *testing.T) {
	for _, c := range []struct {
		offered dtls.Setup
		current dtls.Role
		want    dtls.Setup
	}{
		{dtls.Actpass, 0, dtls.Active},
		{dtls.Actpass, dtls.Client, dtls.Active},
		{dtls.Actpass, dtls.Server, dtls.Passive},
		{dtls.Active, dtls.Client, dtls.Passive},
		{dtls.Passive, dtls.Server, dtls.Active},
	} {
		got, err := dtls.Answer(c.offered, c.current)
		require.NoError(t, err)
		assert.Equal(t, c.want, got, "%s as %s", c.offered, c.current)
	}
	_, err := dtls.Answer(dtls.Holdconn, 0)
	assert.ErrorIs(t, err, dtls.ErrHoldconn)
	_, err = dtls.Answer(0, 0)
	assert.Error(t, err)
}

func TestAgree(t *testing.T) {
	for _, c := range []struct {
		offer, answer     dtls.Setup
		offerer, answerer dtls.Role // 0: not an answer
	}{
		{dtls.Actpass, dtls.Active, dtls.Server, dtls.Client},
		{dtls.Actpass, dtls.Passive, dtls.Client, dtls.Server},
		{dtls.Active, dtls.Passive, dtls.Client, dtls.Server},
		{dtls.Passive, dtls.Active, dtls.Server, dtls.Client},
		{dtls.Actpass, dtls.Actpass, 0, 0},
		{dtls.Active, dtls.Active, 0, 0},
		{dtls.Passive, dtls.Passive, 0, 0},
		{dtls.Actpass, 0, 0, 0},
		{0, dtls.Active, 0, 0},
		{dtls.Holdconn, dtls.Active, 0, 0},
		{dtls.Actpass, dtls.Holdconn, 0, 0},
	} {
		offerer, err := dtls.Agree(c.offer, c.answer, true)
		answerer, err2 := dtls.Agree(c.offer, c.answer, false)
		assert.Equal(t, c.offerer, offerer, "%s, %s", c.offer, c.answer)
		assert.Equal(t, c.answerer, answerer, "%s, %s", c.offer, c.answer)
		assert.Equal(t, c.offerer == 0, err != nil)
		assert.Equal(t, c.offerer == 0, err2 != nil)
	}
}
