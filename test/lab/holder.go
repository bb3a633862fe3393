package lab

import (
	"io"
	"os"

	"ringway/test/lab/host"
)

// Holder runs a process that `ringway lab holder …` started: one that holds a host, the provider's, or one
// beside stock wireguard-go.
func Holder(args []string, stdin io.Reader, stdout io.Writer) error {
	if len(args) == 2 && os.Getppid() == 0 {
		switch args[0] {
		case "provider":
			return runProvider(args[1], stdout)
		case "carrier":
			return runCarrier(args[1], stdout)
		case "duplicate":
			return runDuplicate(args[1], stdout)
		}
	}
	return host.Hold(args, stdin, stdout)
}
