package plane

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"ringway/tunnel"
)

// What a plane is told of copies is what an engine that can send them gets, and a wrong one is refused.
func TestCopiesAreTold(t *testing.T) {
	d := device(tunnel.Voice)
	d.Copies = copiesAlways
	want, none := settingsOf(d), settingsOf(device(tunnel.Voice))
	change := want.changes(none)
	require.NotNil(t, change.Copies)
	assert.Nil(t, change.MTU)
	assert.True(t, want.changes(none.with(change)).empty(), "told once")
	older := none
	older.Copies = nil
	assert.Nil(t, want.changes(older).Copies, "a plane that does not know them is not told")

	e := &copiesFake{}
	done, err := Settings{Copies: change.Copies}.apply(e)
	require.NoError(t, err)
	assert.Equal(t, copiesAlways, *done.Copies)
	assert.Equal(t, copiesAlways, e.copies)
	bad := copiesAlways
	bad.Sites = []tunnel.CopySite{{Key: key(7).Public(), When: tunnel.CopiesAlways, Line: 1}}
	_, err = Settings{Copies: &bad}.apply(e)
	assert.ErrorContains(t, err, "line 1 and 0 rates for 1 lines")
}

type copiesFake struct {
	Engine
	copies tunnel.Copies
}

func (f *copiesFake) SetCopies(c tunnel.Copies) error {
	if err := c.Check(); err != nil {
		return err
	}
	f.copies = c
	return nil
}
