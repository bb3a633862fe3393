package netnstest

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

// a ---veth--- b
func TestTwoNamespacesTalk(t *testing.T) {
	a, b := New(t), New(t)
	Veth(t, a, "va", b, "vb")
	a.Run("ip", "addr", "add", "192.0.2.1/24", "dev", "va")
	b.Run("ip", "addr", "add", "192.0.2.2/24", "dev", "vb")
	assert.Contains(t, a.Run("ping", "-c1", "-W5", "192.0.2.2"), "1 received")
}
