package call

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Where the box re-keys media, the table says how the media of each call is secured towards caller and callee.
func TestPrintShowsHowMediaIsSecured(t *testing.T) {
	began := time.Date(2026, 11, 29, 9, 0, 0, 0, time.UTC)
	var b strings.Builder
	require.NoError(t, Print(&b, began.Add(time.Minute), []Call{
		{
			ID: "5f2a91c3", From: "21", To: "31", Hops: [2]string{"10.1.10.21", "10.2.10.5"}, State: "confirmed",
			Began: began, Codecs: []string{"PCMA"}, SRTP: []string{"RTP", "SRTP between boxes"},
		},
		{ID: "0b1c2d3e", From: "22", To: "0", Hops: [2]string{"10.1.10.22", "192.0.2.5"}, State: "early", Began: began},
	}))
	assert.Equal(t, `ID        FROM  TO  BETWEEN                STATE      TIME  CODEC  SRTP                     FLOWS  SENT  RECEIVED
5f2a91c3  21    31  10.1.10.21, 10.2.10.5  confirmed  1m0s  PCMA   RTP, SRTP between boxes  0      -     -
0b1c2d3e  22    0   10.1.10.22, 192.0.2.5  early      1m0s  -      -                        0      -     -
`, b.String())
}

func TestPrintShowsTheQuality(t *testing.T) {
	began := time.Date(2026, 11, 29, 9, 0, 0, 0, time.UTC)
	var b strings.Builder
	require.NoError(t, Print(&b, began.Add(time.Minute), []Call{{
		ID: "5f2a91c3", From: "21", To: "31", Hops: [2]string{"10.1.10.21", "10.2.10.5"}, State: "confirmed", Began: began,
		Answered: began, Codecs: []string{"PCMA"},
		Sent: &Quality{
			Packets: 2910, Lost: 90, Jitter: 2.25, MOS: 4.05, Where: map[string]uint64{PhoneLAN: 30, Line: 60, FarBox: 0},
		},
	}}))
	assert.Equal(t, `ID        FROM  TO  BETWEEN                STATE      TIME  CODEC  FLOWS  SENT                                         RECEIVED
5f2a91c3  21    31  10.1.10.21, 10.2.10.5  confirmed  1m0s  PCMA   0      4.05, 3.0%, 2.2ms (line 60, phone's LAN 30)  -
`, b.String())
}
