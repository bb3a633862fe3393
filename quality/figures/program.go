package figures

import "fmt"

// Program is the build that was measured.
type Program struct {
	File    string `json:"file"`
	Version string `json:"version"`
	BuildID string `json:"build_id"` // as `go tool buildid FILE` and file(1) print it
}

// Line is the program in one line.
func (p Program) Line() string {
	return fmt.Sprintf("ringway %s, %s, build id %s", p.Version, p.File, p.BuildID)
}
