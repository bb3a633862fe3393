// Package bench measures Ringway's forwarding beside other tunnels: all of them run between the same two
// edges at the same time and carry the same voice under the same load, so that changes of the machine affect
// all alike. `ringway bench` runs it.
//
// The packages below it: probe (voice streams and wake-up latency, in processes of their own), tester (one
// stream at a given rate), rival (the tunnels), report (JSON, tables, plots, pages). Hosts are the lab's
// (test/lab/host): a benchmark leaves nothing behind, however it ends.
package bench

import "errors"

// ErrUsage marks a mistake in the options, as opposed to a failure of the benchmark.
var ErrUsage = errors.New("wrong usage")
