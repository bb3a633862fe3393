package lab

import (
	"io"
	"os"

	"ringway/test/lab/host"
)

// Holder runs a process that `ringway lab holder …` started: one that holds a host, or the provider's.
func Holder(args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) == 2 && args[0] == "provider" && os.Getppid() == 0 {
		return runProvider(args[1], stdout)
	}
	return host.Hold(args, stdin, stdout)
}
