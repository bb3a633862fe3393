package plane

import (
	"context"

	"ringway/process"
)

// Protocol 1.0 to 1.2 had a request, and a field of hello, for each setting. A daemon adopts such planes and
// configures them; only `ringway upgrade-planes` replaces them. A plane answers those requests still, so that
// it keeps forwarding when the daemon is downgraded.
const (
	olderBounds    = "bounds"
	olderLink      = "link" // the device's MTU
	olderOuter     = "outer"
	olderAdmission = "admission"

	minorSettings = 3 // the first minor version with `settings`
)

// tellOlder has a plane of an older protocol change, one request for each setting. Their bodies are a
// Settings with one field.
func tellOlder(ctx context.Context, i *process.Instance, change Settings) error {
	for _, x := range []struct {
		request string
		body    Settings
	}{
		{olderLink, Settings{MTU: change.MTU}},
		{olderBounds, Settings{Bounds: change.Bounds}},
		{olderOuter, Settings{Outer: change.Outer}},
		{olderAdmission, Settings{Admission: change.Admission}},
	} {
		if x.body.empty() {
			continue
		}
		if err := i.Ask(ctx, process.Request{Type: x.request, Body: x.body, Long: true}, nil); err != nil {
			return err
		}
	}
	return nil
}
