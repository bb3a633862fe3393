// Package manualtest compares man pages with the command lines that they describe.
package manualtest

import (
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var manualFlag = regexp.MustCompile(`--[a-z][a-z-]+`)

// Compare returns the commands and flags of root that the text of its man page lacks, and the flags that the page has
// and no command does.
func Compare(root *cobra.Command, page string) (missing, unknown []string) {
	page = strings.NewReplacer(`\-`, "-", `\fB`, "", `\fP`, "", `\fI`, "").Replace(page)
	known := []string{"--help", "--version"}
	var walk func(c *cobra.Command)
	walk = func(c *cobra.Command) {
		if c.Hidden || c.Name() == "help" || c.Parent() != nil && c.Parent().Name() == "completion" {
			return
		}
		path := strings.TrimPrefix(c.CommandPath(), root.Name())
		if path = strings.TrimSpace(path); path != "" && !strings.Contains(page, path) {
			missing = append(missing, path)
		}
		flags := func(f *pflag.Flag) {
			name := "--" + f.Name
			if !f.Hidden && !slices.Contains(known, name) {
				known = append(known, name)
				if !strings.Contains(page, name) {
					missing = append(missing, path+" "+name)
				}
			}
		}
		c.LocalFlags().VisitAll(flags)
		c.PersistentFlags().VisitAll(flags)
		for _, sub := range c.Commands() {
			walk(sub)
		}
	}
	walk(root)
	for _, name := range manualFlag.FindAllString(page, -1) {
		if !slices.Contains(known, name) && !slices.Contains(unknown, name) {
			unknown = append(unknown, name)
		}
	}
	return missing, unknown
}
