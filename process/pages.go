package process

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// pages is a mapping of the program's own file, which nobody writes to.
type pages struct{ at, size uintptr }

// programPages finds what is mapped of files, is read-only, and was never written to: the loader of a dynamic
// program writes to some, and protects them then. It reads files, so it has to run before the sandbox.
func programPages() (out []pages) {
	b, err := os.ReadFile("/proc/self/smaps")
	if err != nil {
		return nil
	}
	var p pages
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		switch {
		// 00402000-00ee6000 r-xp 00002000 fe:00 1234 /usr/bin/ringway
		case len(f) >= 5 && !strings.HasSuffix(f[0], ":"):
			p = pages{}
			if len(f) >= 6 && f[4] != "0" && strings.HasPrefix(f[1], "r-") {
				p = parseRange(f[0])
			}
		case len(f) == 3 && f[0] == "Anonymous:" && f[1] == "0" && p.size > 0: // once for each mapping
			out = append(out, p)
		}
	}
	return out
}

// parseRange reads a mapping's addresses; zero if it cannot.
func parseRange(s string) pages {
	from, to, _ := strings.Cut(s, "-")
	a, errA := strconv.ParseUint(from, 16, 64)
	z, errZ := strconv.ParseUint(to, 16, 64)
	if errA != nil || errZ != nil || z <= a {
		return pages{}
	}
	return pages{uintptr(a), uintptr(z - a)}
}

// releasePages takes pages out of the process; what is used is back at its next use, from the kernel's cache.
// The one binary holds everything that Ringway is, and its start runs through most of it: two thirds of a
// plane's memory would be pages that forwarding never looks at.
func releasePages(all []pages) {
	for _, p := range all {
		_, _, _ = unix.Syscall(unix.SYS_MADVISE, p.at, p.size, unix.MADV_DONTNEED)
	}
}
