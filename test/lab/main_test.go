package lab

import (
	"fmt"
	"os"
	"testing"

	"ringway/test/netnstest"
)

// The lab starts the program that it is part of as its holders: here that is the test itself.
func TestMain(m *testing.M) {
	if len(os.Args) > 3 && os.Args[1] == "lab" && os.Args[2] == "holder" {
		if err := Holder(os.Args[3:], os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if code, done := netnstest.Isolate(); done {
		os.Exit(code)
	}
	os.Exit(m.Run())
}
