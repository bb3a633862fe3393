package commit

import (
	"fmt"
	"time"

	"ringway/appliance/status"
)

// Status is nil if there is nothing to report.
func (c *Committer) Status() *status.Confirmation {
	switch {
	case c.rec == nil && c.lastUndone != "":
		return &status.Confirmation{State: status.Undone, Reason: c.lastUndone, Kept: c.files.Refused}
	case c.rec == nil:
		return nil
	case c.rec.Phase == waiting:
		return &status.Confirmation{State: status.Waiting, LeftS: int((c.left() + time.Second - 1) / time.Second)}
	}
	reason := fmt.Sprintf("%s: %v", c.rec.Reason, c.failed)
	return &status.Confirmation{State: status.Undoing, Reason: reason, Kept: c.files.Refused}
}
