package process

// Call is a system call that a process may make. A call may be listed more than once: one entry that fits is
// enough.
type Call struct {
	Number uint32
	Args   []Arg // all of them must fit
}

// Arg is a condition on one argument of a call: the low 32 bits, masked, are one of Values, or all 64 bits
// are zero.
type Arg struct {
	Index  int
	Mask   uint32
	Values []uint32
	Zero   bool
}

// Only is an argument that is one of values.
func Only(index int, values ...uint32) Arg {
	return Arg{Index: index, Mask: ^uint32(0), Values: values}
}
