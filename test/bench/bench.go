// Package bench measures Ringway's forwarding beside what people know: every rival stands between the same two edges at the same
// time and carries the same voice under the same load, so that the machine's moods hit all alike. It is what `ringway
// bench` runs; cmd/ringway and tests import it, nobody else.
//
// Its rooms: probe (voice streams and wake-up latency, in processes of their own), rival (the tunnels), report (JSON, table,
// plots, page). Hosts are the lab's (test/lab/host): nothing is left when a benchmark ends, however it ends.
package bench

import "errors"

// ErrUsage marks an error of what was asked for, not of the benchmark.
var ErrUsage = errors.New("wrong usage")
