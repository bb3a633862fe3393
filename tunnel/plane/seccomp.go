//go:build amd64 || arm64

package plane

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// The filter on system calls: a list of what Go's runtime and an engine need, all else is refused with EPERM.
// Above all there is no way to a new file, socket, program, process or foreign thread: what the
// plane holds at its start is all it ever has.

// argument is a condition on one argument of a call: (value & mask) is one of equal. Only the low 32 bits
// are compared; high must then be zero, for the kernel may look at them.
type argument struct {
	n     int
	mask  uint32
	equal []uint32
	high  bool // compare nothing, just require all 64 bits zero
}

type rule struct {
	call uint32
	args []argument
}

const (
	tunGetIff     = unix.TUNGETIFF
	tunSetOffload = unix.TUNSETOFFLOAD
)

// rules is the list. self is the process's own pid: signals go nowhere else.
func rules(self uint32) []rule {
	plain := append([]uint32{
		// descriptors that are there
		unix.SYS_READ, unix.SYS_WRITE, unix.SYS_READV, unix.SYS_WRITEV, unix.SYS_PREAD64, unix.SYS_CLOSE, unix.SYS_FSTAT, unix.SYS_LSEEK,
		unix.SYS_RECVFROM, unix.SYS_RECVMSG, unix.SYS_RECVMMSG, unix.SYS_SENDTO, unix.SYS_SENDMSG, unix.SYS_SENDMMSG,
		unix.SYS_ACCEPT4, unix.SYS_SHUTDOWN, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME, unix.SYS_GETSOCKOPT, unix.SYS_SETSOCKOPT,
		unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_PPOLL, unix.SYS_PSELECT6, unix.SYS_EVENTFD2, unix.SYS_PIPE2,
		// memory
		unix.SYS_MUNMAP, unix.SYS_MADVISE, unix.SYS_MREMAP, unix.SYS_BRK, unix.SYS_MINCORE,
		unix.SYS_MLOCK, unix.SYS_MLOCKALL, unix.SYS_MUNLOCK, unix.SYS_MEMBARRIER,
		// threads, time, signals to itself
		unix.SYS_FUTEX, unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_SCHED_SETAFFINITY, unix.SYS_SET_ROBUST_LIST, unix.SYS_RSEQ, unix.SYS_SET_TID_ADDRESS,
		unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_RESTART_SYSCALL, unix.SYS_GETCPU,
		unix.SYS_NANOSLEEP, unix.SYS_CLOCK_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_GETRES, unix.SYS_GETTIMEOFDAY,
		unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK,
		// what it may know
		unix.SYS_GETPID, unix.SYS_GETTID, unix.SYS_GETPPID, unix.SYS_GETUID, unix.SYS_GETEUID, unix.SYS_GETGID, unix.SYS_GETEGID,
		unix.SYS_GETRANDOM, unix.SYS_GETRUSAGE, unix.SYS_UNAME, unix.SYS_SYSINFO,
	}, archCalls...)
	var out []rule
	for _, c := range plain {
		out = append(out, rule{call: c})
	}
	only := func(n int, values ...uint32) argument { return argument{n: n, mask: ^uint32(0), equal: values} }
	const thread = unix.CLONE_THREAD | unix.CLONE_VM | unix.CLONE_SIGHAND
	return append(out,
		rule{unix.SYS_CLONE, []argument{{n: 0, mask: thread, equal: []uint32{thread}}}}, // threads, never processes
		rule{unix.SYS_MMAP, []argument{{n: 2, mask: unix.PROT_EXEC, equal: []uint32{0}}}},
		rule{unix.SYS_MPROTECT, []argument{{n: 2, mask: unix.PROT_EXEC, equal: []uint32{0}}}},
		rule{unix.SYS_TGKILL, []argument{only(0, self)}},
		rule{unix.SYS_KILL, []argument{only(0, self)}},
		rule{unix.SYS_PRLIMIT64, []argument{only(0, 0, self), {n: 2, high: true}}}, // reading only
		rule{unix.SYS_PRCTL, []argument{only(0, unix.PR_SET_VMA, unix.PR_SET_NAME, unix.PR_GET_NO_NEW_PRIVS, unix.PR_GET_DUMPABLE, unix.PR_GET_SECCOMP)}},
		// Its own thread alone, and by RLIMIT_RTPRIO no higher than it was: one that took a core for too long gives way, and comes back.
		rule{unix.SYS_SCHED_GETATTR, []argument{only(0, 0)}},
		rule{unix.SYS_SCHED_SETATTR, []argument{only(0, 0)}},
		rule{unix.SYS_SCHED_SETSCHEDULER, []argument{only(0, 0)}},
		rule{unix.SYS_FCNTL, []argument{only(1, unix.F_DUPFD_CLOEXEC, unix.F_GETFL, unix.F_SETFL, unix.F_GETFD, unix.F_SETFD)}},
		rule{unix.SYS_IOCTL, []argument{only(1, tunGetIff, tunSetOffload, unix.SIOCGIFMTU, unix.TIOCOUTQ, unix.TIOCINQ)}},
	)
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

// program is the list as a BPF program. Each rule is a block of its own that ends in a verdict,
// so that no jump is long.
func program(list []rule) ([]bpf.RawInstruction, error) {
	p := []bpf.Instruction{
		bpf.LoadAbsolute{Off: dataArch, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: auditArch, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_KILL_PROCESS}, // another ABI has other numbers
		bpf.LoadAbsolute{Off: dataCall, Size: 4},
		// glibc and others ask for clone3 first, whose flags lie in memory, where no filter can look; told
		// that the kernel has none, they take clone.
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.SYS_CLONE3, SkipTrue: 1},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
	}
	for _, r := range list {
		block := r.block()
		if len(block) > 250 {
			return nil, fmt.Errorf("rule of call %d is too long", r.call)
		}
		p = append(p, bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: r.call, SkipTrue: uint8(len(block))})
		p = append(p, block...)
	}
	return bpf.Assemble(append(p, bpf.RetConstant{Val: verdictEPERM}))
}

func (r rule) block() []bpf.Instruction {
	var b []bpf.Instruction
	for _, a := range r.args {
		low := uint32(dataArgs + 8*a.n) // both architectures are little-endian
		if a.high {
			b = append(b,
				bpf.LoadAbsolute{Off: low, Size: 4}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1}, bpf.RetConstant{Val: verdictEPERM},
				bpf.LoadAbsolute{Off: low + 4, Size: 4}, bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0, SkipTrue: 1}, bpf.RetConstant{Val: verdictEPERM})
			continue
		}
		b = append(b, bpf.LoadAbsolute{Off: low, Size: 4}, bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: a.mask})
		for i, v := range a.equal {
			b = append(b, bpf.JumpIf{Cond: bpf.JumpEqual, Val: v, SkipTrue: uint8(len(a.equal) - i)})
		}
		b = append(b, bpf.RetConstant{Val: verdictEPERM})
	}
	return append(b, bpf.RetConstant{Val: verdictAllow})
}

// restrictCalls puts the filter on every thread of the process.
func restrictCalls() error {
	raw, err := program(rules(uint32(os.Getpid())))
	if err != nil {
		return err
	}
	filter := make([]unix.SockFilter, len(raw))
	for i, r := range raw {
		filter[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	tid, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("install the filter: %w", errno)
	}
	if tid != 0 {
		return fmt.Errorf("install the filter: thread %d has another", tid)
	}
	return nil
}
