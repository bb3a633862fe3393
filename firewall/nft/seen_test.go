package nft

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/firewall"
)

// Signalling that nobody reads is counted once a connection, where it passes and where it does not, and only if a
// phone begins it.
func TestOtherSignallingIsCounted(t *testing.T) {
	t.Parallel()
	for _, mode := range []firewall.SignallingMode{firewall.Observe, firewall.Enforce} {
		t.Run(string(mode), func(t *testing.T) {
			r := newRelay(t, signalled(mode))
			mgcp, sccp := firewall.SeenCounter("mgcp"), firewall.SeenCounter("sccp")
			gateway := r.listen(r.phone, phone4, 2427)
			r.send(gateway, farPhone4, 2727, 0)
			r.assertCounter(mgcp, 1, "a gateway to its call agent")

			manager := r.listenTCP(r.far, farPhone4, 2000)
			phone, err := r.dial(r.phone, at(phone4, 0), at(farPhone4, 2000), 0, 0)
			require.NoError(t, err)
			far, err := manager.Accept()
			require.NoError(t, err)
			t.Cleanup(func() { far.Close() })
			for range 3 {
				_, err = phone.Write([]byte("keep alive"))
				require.NoError(t, err)
				_, err = far.Read(make([]byte, 10))
				require.NoError(t, err)
			}
			assert.EqualValues(t, 1, r.counters()[sccp].Packets, "one connection, whatever it carries")
			assert.EqualValues(t, 1, r.counters()[mgcp].Packets)

			pc := r.listen(r.pc, pc4, 0)
			r.assertPasses(pc, r.listen(r.far, farPC4, 2427), 0, "of a data network")
			assert.EqualValues(t, 1, r.counters()[mgcp].Packets, "no phone of this box began it")
		})
	}
}
