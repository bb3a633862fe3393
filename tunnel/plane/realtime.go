package plane

// forwardingThreads are the names (comm) by which a realtime engine shows which of its threads forward packets.
var forwardingThreads = []string{"rw-fwd-out", "rw-fwd-in"}
