//go:build amd64 || arm64

package process

import (
	"fmt"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The filter on system calls: a list of what Go's runtime, the control protocol and descriptors that were
// handed over need, and what the kind adds; all else is refused with EPERM. Above all there is no way to a
// new file, socket, program, process or foreign thread: a process has what it is given, and no more.

// plainCalls are allowed with any arguments.
var plainCalls = append([]uint32{
	// descriptors that are there
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREAD64,
	unix.SYS_CLOSE, unix.SYS_FSTAT, unix.SYS_LSEEK, unix.SYS_EVENTFD2, unix.SYS_PIPE2,
	unix.SYS_RECVFROM, unix.SYS_RECVMSG, unix.SYS_RECVMMSG, unix.SYS_SENDTO, unix.SYS_SENDMSG, unix.SYS_SENDMMSG,
	unix.SYS_ACCEPT4, unix.SYS_SHUTDOWN, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME,
	unix.SYS_GETSOCKOPT, unix.SYS_SETSOCKOPT,
	unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_PPOLL, unix.SYS_PSELECT6,
	// memory
	unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_MREMAP, unix.SYS_BRK, unix.SYS_MINCORE,
	unix.SYS_MLOCK, unix.SYS_MLOCKALL, unix.SYS_MUNLOCK, unix.SYS_MEMBARRIER,
	// threads
	unix.SYS_FUTEX, unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_SCHED_SETAFFINITY,
	unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ, unix.SYS_SET_TID_ADDRESS,
	unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_RESTART_SYSCALL, unix.SYS_GETCPU,
	// time
	unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_GETRES,
	unix.SYS_GETTIMEOFDAY,
	// signals
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK,
	// facts about itself
	unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_GETPPID, unix.SYS_GETUID, unix.SYS_GETEUID,
	unix.SYS_GETGID, unix.SYS_GETEGID,
	unix.SYS_GETRANDOM, unix.SYS_GETRUSAGE, unix.SYS_UNAME, unix.SYS_SYSINFO,
}, archCalls...)

// conditionalCalls are allowed with some arguments. self is the process's own pid: signals go nowhere else.
func conditionalCalls(self uint32) []Call {
	const thread = unix.CLONE_THREAD | unix.CLONE_VM | unix.CLONE_SIGHAND
	return []Call{
		{unix.SYS_CLONE, []Arg{{Index: 0, Mask: thread, Values: []uint32{thread}}}}, // threads, never processes
		{unix.SYS_MMAP, []Arg{{Index: 2, Mask: unix.PROT_EXEC, Values: []uint32{0}}}},
		{unix.SYS_MPROTECT, []Arg{{Index: 2, Mask: unix.PROT_EXEC, Values: []uint32{0}}}},
		{unix.SYS_TGKILL, []Arg{Only(0, self)}},
		{unix.SYS_KILL, []Arg{Only(0, self)}},
		{unix.SYS_PRLIMIT64, []Arg{Only(0, 0, self), {Index: 2, Zero: true}}}, // reading only
		{unix.SYS_PRCTL, []Arg{Only(0, unix.PR_SET_VMA, unix.PR_SET_NAME,
			unix.PR_GET_NO_NEW_PRIVS, unix.PR_GET_DUMPABLE, unix.PR_GET_SECCOMP)}},
		{unix.SYS_FCNTL, []Arg{Only(1, unix.F_DUPFD_CLOEXEC,
			unix.F_GETFL, unix.F_SETFL, unix.F_GETFD, unix.F_SETFD)}},
		{unix.SYS_IOCTL, []Arg{Only(1, unix.TIOCOUTQ, unix.TIOCINQ)}},
	}
}

// fileCalls are what reading files takes, for a kind that may read some. There is no call that asks about a
// path (newfstatat): landlock does not restrict those. Open the file and ask about the descriptor.
var fileCalls = []Call{
	{unix.SYS_OPENAT, []Arg{{
		Index: 2, Mask: unix.O_ACCMODE | unix.O_CREAT | unix.O_TRUNC, Values: []uint32{unix.O_RDONLY},
	}}},
	{unix.SYS_GETDENTS64, nil},
}

// Offsets in struct seccomp_data.
const (
	dataCall = 0
	dataArch = 4
	dataArgs = 16
)

const (
	verdictAllow = unix.SECCOMP_RET_ALLOW
	verdictEPERM = unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)
)

// filter is the list as a BPF program. Each call is a block of its own that ends in a verdict, so that no
// jump is long.
func filter(list []Call) ([]bpf.RawInstruction, error) {
	p := []bpf.Instruction{
		bpf.LoadAbsolute{Off: dataArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS}, // another ABI has other numbers
		bpf.LoadAbsolute{Off: dataCall, Size: 4},
		// glibc and others try clone3 first, whose flags lie in memory, where no filter can look; told that
		// the kernel has none, they use clone.
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_CLONE3, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
	}
	for _, number := range numbersOf(list) {
		var block []bpf.Instruction
		for _, c := range list {
			if c.Number == number {
				block = append(block, c.allow()...)
			}
		}
		block = append(block, bpf.RetConstant{Val: verdictEPERM})
		if len(block) > 250 {
			return nil, fmt.Errorf("rules for system call %d are too long", number)
		}
		p = append(p, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: number, SkipTrue: uint8(len(block))})
		p = append(p, block...)
	}
	return bpf.Assemble(append(p, bpf.RetConstant{Val: verdictEPERM}))
}

// numbersOf is every call of the list once, in its order.
func numbersOf(list []Call) (numbers []uint32) {
	for _, c := range list {
		if !slices.Contains(numbers, c.Number) {
			numbers = append(numbers, c.Number)
		}
	}
	return numbers
}

// allow allows the call if its arguments fit, and else goes on behind its last instruction.
func (c Call) allow() []bpf.Instruction {
	out := []bpf.Instruction{bpf.RetConstant{Val: verdictAllow}}
	for _, a := range slices.Backward(c.Args) { // from the last one: each has to jump over what follows it
		out = append(a.test(uint8(len(out))), out...)
	}
	return out
}

// test goes on if the argument fits, and else skips as many instructions behind its own.
func (a Arg) test(skip uint8) []bpf.Instruction {
	low := uint32(dataArgs + 8*a.Index) // both architectures are little-endian
	if a.Zero {
		return []bpf.Instruction{
			bpf.LoadAbsolute{Off: low, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: skip + 2},
			bpf.LoadAbsolute{Off: low + 4, Size: 4},
			bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 0, SkipTrue: skip},
		}
	}
	b := []bpf.Instruction{
		bpf.LoadAbsolute{Off: low, Size: 4},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: a.Mask},
	}
	for i, v := range a.Values {
		b = append(b, bpf.JumpIf{Cond: bpf.JumpEqual, Val: v, SkipTrue: uint8(len(a.Values) - i)})
	}
	return append(b, bpf.Jump{Skip: uint32(skip)})
}

// restrictCalls puts the filter on every thread of the process.
func restrictCalls(extra []Call) error {
	var list []Call
	for _, number := range plainCalls {
		list = append(list, Call{Number: number})
	}
	list = append(list, conditionalCalls(uint32(os.Getpid()))...)
	raw, err := filter(append(list, extra...))
	if err != nil {
		return err
	}

	instructions := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		instructions[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	prog := unix.SockFprog{Len: uint16(len(instructions)), Filter: &instructions[0]}
	tid, _, errno := unix.Syscall(unix.SYS_SECCOMP,
		unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("install the filter: %w", errno)
	}
	if tid != 0 {
		return fmt.Errorf("install the filter: thread %d has another one", tid)
	}
	return nil
}
