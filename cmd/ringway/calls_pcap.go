package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"ringway/appliance/control"
	"ringway/cmd/cli"
	"ringway/sip/call"
	"ringway/sip/capture"
)

// Bounds of a file with a call's packets.
const (
	defaultPcapTime = time.Hour
	defaultPcapSize = 64 // MiB
	maxPcapSize     = 4096
)

func callsPcapCommand(a *app) *cobra.Command {
	var sound bool
	var longest time.Duration
	var size int
	c := &cobra.Command{
		Use: "pcap ID FILE", Short: "Write the packets of one call to a file", Args: cobra.ExactArgs(2),
		Long: `Writes the packets of a call (ID is that of ringway calls) to a new file, for Wireshark, until the call ends. FILE may be
- for the standard output.

Signalling is what ringway calls show has, without credentials and keys, each message as one packet. Of media, what goes
to the call's ports is written up to the end of RTP's header, and RTCP's reports. --with-sound writes what is said, too:
only with calls.recording: allowed, and the daemon's log then has who asked, when, and for which call. Dialled digits (RFC
4733) are blanked always. Root only.`,
		Example: `  ringway calls pcap 5f2a91c3 call.pcap
  ringway calls pcap 5f2a91c3 - | wireshark -k -i -`,
		RunE: func(c *cobra.Command, args []string) error {
			if longest < time.Second || size < 1 || size > maxPcapSize {
				return cli.UsageError{Err: fmt.Errorf("--for is at least 1s, and --max-size 1 to %d", maxPcapSize)}
			}
			ctx, cancel := context.WithTimeout(c.Context(), longest)
			defer cancel()
			x, err := a.client().Capture(ctx, args[0], sound)
			if err != nil {
				return err
			}
			tap, err := capture.Open()
			if err != nil {
				return err
			}
			defer tap.Close()
			file, err := pcapFile(args[1], c.OutOrStdout())
			if err != nil {
				return err
			}
			r := &recording{client: a.client(), tap: tap, id: x.ID, written: map[string]bool{}}
			r.cleaner.Sound = sound
			err = r.run(ctx, file, int64(size)<<20)
			text := fmt.Sprintf("%d packets of call %s written", r.packets(), x.ID)
			if lost := tap.Lost(); lost > 0 {
				text += fmt.Sprintf("; %d came too fast and are missing", lost)
			}
			fmt.Fprintln(c.ErrOrStderr(), text)
			return errors.Join(err, file.Close())
		},
	}
	flags := c.Flags()
	flags.BoolVar(&sound, "with-sound", false, "write what is said, too (calls.recording: allowed)")
	flags.DurationVar(&longest, "for", defaultPcapTime, "end after this time, if the call has not ended")
	flags.IntVar(&size, "max-size", defaultPcapSize, "end when the file has so many `MiB`")
	return c
}

// pcapFile makes a file that only root reads, and none in place of another.
func pcapFile(name string, out io.Writer) (io.WriteCloser, error) {
	if name != "-" {
		return os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	}
	if out == os.Stdout && isTerminal(os.Stdout) {
		return nil, cli.UsageError{Err: errors.New("packets are not for a terminal: give a file, or a pipe")}
	}
	return open{out}, nil
}

// open is a writer that stays open.
type open struct{ io.Writer }

func (open) Close() error { return nil }

// recording follows one call.
type recording struct {
	client  *control.Client
	tap     *capture.Tap
	id      string
	cleaner capture.Cleaner
	writer  *capture.Writer
	flows   []capture.Flow
	written map[string]bool // messages
	failed  int             // times in a row that the daemon did not answer
}

const (
	// pcapEvery is how often it is looked for messages and other ports.
	pcapEvery = 250 * time.Millisecond
	// pcapFailures is how often that may fail in a row: a process that reads signalling is replaced within a call.
	pcapFailures = 20
)

// run writes until the call or ctx ends, or the file is full.
func (r *recording) run(ctx context.Context, file io.Writer, limit int64) (err error) {
	buffer := bufio.NewWriter(file)
	defer func() {
		err = errors.Join(err, buffer.Flush())
		if errors.Is(err, capture.ErrFull) {
			err = nil
		}
	}()
	if r.writer, err = capture.NewWriter(buffer, limit); err != nil {
		return err
	}
	for next := time.Now(); ctx.Err() == nil; {
		if !time.Now().Before(next) {
			lives, err := r.follow(ctx)
			if err != nil || !lives {
				return ignoreEnd(ctx, err)
			}
			if err := buffer.Flush(); err != nil {
				return err
			}
			next = time.Now().Add(pcapEvery)
		}
		packet, at, err := r.tap.Read(pcapEvery / 5)
		if err != nil {
			return err
		}
		if kept, length, ok := r.cleaner.Clean(packet); ok {
			if err := r.writer.Packet(at, kept, length); err != nil {
				return err
			}
		}
	}
	return nil
}

// ignoreEnd is err, unless the time is over or the user has ended it.
func ignoreEnd(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// follow writes the messages that are new, and watches the ports that the call has now.
func (r *recording) follow(ctx context.Context) (lives bool, err error) {
	all, err := r.client.Calls(ctx)
	if err != nil {
		r.failed++
		if r.failed < pcapFailures {
			return true, nil
		}
		return false, err
	}
	r.failed = 0
	i := slices.IndexFunc(all, func(x call.Call) bool { return x.ID == r.id })
	if i >= 0 {
		lives = all[i].Live()
		var flows []capture.Flow
		for _, f := range all[i].Flows {
			if to, err := netip.ParseAddrPort(f.To); err == nil {
				flows = append(flows, capture.Flow{To: to, RTCP: f.RTCP})
			}
		}
		if !slices.Equal(flows, r.flows) && lives {
			if err := r.tap.Watch(flows, r.cleaner.Sound); err != nil {
				return false, err
			}
			r.flows = flows
		}
	}
	return lives, r.messages(ctx)
}

func (r *recording) messages(ctx context.Context) error {
	v, err := r.client.Ladder(ctx, r.id)
	if err != nil {
		return nil // none are kept, as after the process was replaced: media goes on
	}
	for _, row := range v.Rows {
		key := fmt.Sprint(row.Milliseconds, row.From, row.To)
		if r.written[key] {
			continue
		}
		r.written[key] = true
		r.cleaner.Describe([]byte(row.Text))
		from, errFrom := netip.ParseAddrPort(row.From)
		to, errTo := netip.ParseAddrPort(row.To)
		if errFrom != nil || errTo != nil {
			continue
		}
		at := v.Began.Add(time.Duration(row.Milliseconds * float64(time.Millisecond)))
		if err := r.writer.Signalling(at, from, to, row.Transport != "UDP", []byte(row.Text)); err != nil {
			return err
		}
	}
	return nil
}

func (r *recording) packets() int {
	if r.writer == nil {
		return 0
	}
	return r.writer.Packets
}
